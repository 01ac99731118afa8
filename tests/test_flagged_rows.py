"""The rows that a reviewer is shown: raw, and of every reading that may lie."""

from typing import Any

from phases import qc
from phases.evaluate import _agreeing, _disagreeing, _raw_rows

Row = dict[str, Any]


def row(number: int, fate: str, **fields: Any) -> Row:
    """A candidate that was answered."""
    text = f"answer {number}"
    return {
        "instruction": f"ask {number}",
        "raw": f"{text} ###END###",
        "response": text,
        "runaway": fate == "runaway",
        "hit_limit": False,
        "cut_by": "delimiter",
        "fate": fate,
        **fields,
    }


def test_rows_of_a_lying_detector_are_not_hidden_behind_limit_hits() -> None:
    """However many rows hit the limit, some that were only called runaway are shown, raw."""
    limits = [row(i, "rejected_pair", hit_limit=True) for i in range(50)]
    called = [row(100 + i, "runaway") for i in range(20)]
    shown = qc.flagged([*limits, *called])
    assert len(shown) == 10
    assert sum(r["runaway"] for r in shown) >= 4
    assert sum(r["hit_limit"] for r in shown) >= 3
    assert all(r["raw"].endswith("###END###") for r in shown)


def test_a_share_that_is_not_used_goes_to_the_others() -> None:
    """Ten runaways and nothing else are ten rows; no row stands twice, and no kept one at all."""
    rows = [row(i, "runaway", hit_limit=i % 2 == 0) for i in range(30)]
    rows += [row(100 + i, "kept") for i in range(30)]
    shown = qc.flagged(rows)
    assert len({r["instruction"] for r in shown}) == len(shown) == 10
    assert {r["fate"] for r in shown} == {"runaway"}


def test_rows_come_from_the_whole_run() -> None:
    """Not only from its first batch."""
    shown = qc.flagged([row(i, "runaway") for i in range(100)])
    numbers = sorted(int(r["instruction"].split()[1]) for r in shown)
    assert numbers[0] < 25
    assert numbers[-1] >= 60


def test_rejected_instructions_have_no_raw_answer() -> None:
    """They are shown by what there is; where nothing is wrong, nothing is."""
    rejected = [{"instruction": "x", "fate": "rejected_instruction"}] * 1
    assert qc.flagged(rejected) == ({"instruction": "x", "fate": "rejected_instruction"},)
    assert qc.flagged([row(1, "kept")]) == ()


def outcome(number: int, *, success: bool) -> Row:
    return {
        "id": f"i{number}",
        "kind": "fact",
        "instruction": f"ask {number}",
        "success": success,
        "raw": f"raw {success}",
        "failures": [] if success else ["too long"],
    }


def test_an_evaluation_shows_lost_and_gained_items_raw() -> None:
    """A scorer that calls the base's long answers wrong shows in what was gained."""
    base = [outcome(i, success=i % 3 == 0) for i in range(60)]
    tuned = [outcome(i, success=i % 3 != 1) for i in range(60)]
    rows = _raw_rows(base, tuned)
    gained = _disagreeing(rows)
    assert len(gained) == 10
    assert all(r["tuned"] and not r["base"] for r in gained)
    assert (gained[0]["base_raw"], gained[0]["base_failures"]) == ("raw False", ["too long"])
    both = _disagreeing(_raw_rows(base, [outcome(i, success=i % 3 == 1) for i in range(60)]))
    assert [r["base"] for r in both] == [True] * 5 + [False] * 5
    calm = _agreeing(rows, 7)
    assert len(calm) == 10
    assert calm == _agreeing(rows, 7)
    assert all(r["base"] == r["tuned"] for r in calm)
