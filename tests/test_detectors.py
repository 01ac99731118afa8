"""The detectors that gates believe: their labelled rows are fair, and liars do not get through."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gates import instruments
from gates.judge import judge_gate
from gates.stats import wilson, wilson_bound
from phases import clean, detectors, qc
from phases.certificates import agreement, certify_detectors
from phases.detectors import (
    DETECTORS,
    SENTINELS,
    Detector,
    DetectorProbe,
    load_detector_probes,
    read,
)
from runbook.contract import Criterion, CriterionResult, Gate, Instrument, Metric, Verdict
from runbook.errors import ConfigError
from runbook.report import detectors as report
from runbook.schema import load_plan
from runbook.text import NearDuplicates

SPECS = Path(__file__).parents[1] / "specs"
ALL = [*detectors.ALL.values()]
SIDES = ("sensitivity", "specificity")
Says = Callable[[dict[str, Any]], bool]


def texts(detector: Detector, row: DetectorProbe) -> str:
    return " ".join(str(getattr(row, field)) for field in detector.fields)


def within(detector: Detector, says: Says) -> bool:
    rows = read(replace(detector, says=says), load_detector_probes(detector))
    return bool(certify_detectors(rows, {})[detector.name]["within_bounds"])


# --- the rows


@pytest.mark.parametrize("detector", ALL, ids=[*detectors.ALL])
def test_there_are_enough_rows_of_both_labels_and_hard_ones_of_both(detector: Detector) -> None:
    """At least sixty, fifteen hard ones on either side, and ten of each in the half that judges."""
    rows = load_detector_probes(detector)
    assert len(rows) >= 60
    hard = Counter(row.label for row in rows if row.difficulty == "hard")
    assert min(hard[True], hard[False]) >= 15
    test = Counter((row.label, row.difficulty) for row in rows if row.half == "test")
    assert len(test) == 4
    assert min(test.values()) >= 8


@pytest.mark.parametrize("detector", ALL, ids=[*detectors.ALL])
def test_no_row_stands_twice_and_each_says_why(detector: Detector) -> None:
    """No text comes back under another id, and a person can see what a label rests on."""
    rows = load_detector_probes(detector)
    assert len({texts(detector, row) for row in rows}) == len(rows)
    assert [row.id for row in rows if not row.why] == []


def test_length_does_not_tell_a_runaway() -> None:
    """No cut by length, in characters or words, reaches the declared bounds."""
    detector = DETECTORS["runaway"]

    def longer(cut: int, row: dict[str, Any]) -> bool:
        return len(row["raw"]) > cut

    def wordier(cut: int, row: dict[str, Any]) -> bool:
        return len(row["raw"].split()) > cut

    for cut in range(1, 600):
        assert not within(detector, partial(longer, cut))
        assert not within(detector, partial(wordier, cut))


# --- the detectors


@pytest.mark.parametrize("detector", ALL, ids=[*detectors.ALL])
def test_a_shipped_detector_reaches_its_bounds(detector: Detector) -> None:
    """On the rows of the half by which nothing was mended."""
    assert within(detector, detector.says)


@pytest.mark.parametrize("detector", ALL, ids=[*detectors.ALL])
@pytest.mark.parametrize("answer", [True, False])
def test_one_answer_to_all_is_below_a_bound(detector: Detector, answer: bool) -> None:
    """Whichever it is."""
    assert not within(detector, lambda _: answer)


@pytest.mark.parametrize("detector", ALL, ids=[*detectors.ALL])
def test_the_opposite_and_a_coin_are_below_a_bound(detector: Detector) -> None:
    """Of what the detector says; and of a coin that falls by the row's place."""
    assert not within(detector, lambda row: not detector.says(row))
    for start in (0, 1):
        rows = read(detector, load_detector_probes(detector))
        coin = [{**row, "said": at % 2 == start} for at, row in enumerate(rows)]
        assert certify_detectors(coin, {})[detector.name]["within_bounds"] is False


def test_the_detector_of_the_first_failure_is_below_its_bound() -> None:
    """Long or repeating means runaway: it flags good answers for their length."""
    assert not within(
        DETECTORS["runaway"],
        lambda row: len(row["raw"]) > 120 or clean.repeats_itself(row["raw"]),
    )


def test_a_detector_of_the_whole_marker_alone_is_below_its_bound() -> None:
    """38 % of the responses once carried a piece of it."""
    assert not within(DETECTORS["residue"], lambda row: clean.DELIMITER in row["response"])


def test_a_detector_that_takes_every_missing_period_for_a_cut_is_below_its_bound() -> None:
    """Titles, lists, numbers and code end without one."""
    assert not within(
        DETECTORS["truncation"], lambda row: not row["response"].rstrip().endswith((".", "!", "?"))
    )


def test_the_sentinels_of_the_first_attempt_are_below_their_bounds() -> None:
    """Words looked for at a text's start, or anywhere; markers looked for in pieces."""
    opened = ("sure", "certainly", "of course", "here is", "here are", "i can help")
    assert not within(
        SENTINELS["assistant"], lambda row: row["text"].strip().lower().startswith(opened)
    )
    assert not within(SENTINELS["completion"], lambda row: len(row["text"]) < 40)
    assert not within(SENTINELS["chat_markup"], lambda row: "<" in row["fed"])
    assert not within(SENTINELS["chat_markup"], lambda row: "<|im_" in row["fed"])


def test_a_detector_of_exact_copies_alone_is_below_its_bounds() -> None:
    """Neither of instructions that come back, nor of held-out items."""
    assert not within(DETECTORS["near_duplicate"], lambda row: row["earlier"] == row["instruction"])
    assert not within(DETECTORS["leakage"], lambda row: row["held_out"] == row["instruction"])


def test_the_screen_and_the_count_say_the_same() -> None:
    """What drops near-duplicates while they are made, and what counts them in the merged set."""
    detector = DETECTORS["near_duplicate"]
    for row in load_detector_probes(detector):
        texts = row.model_dump()
        screen = NearDuplicates(0.8, [texts["earlier"]]).find(texts["instruction"]) is not None
        assert screen is detector.says(texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("## Steps\n1. Mix", False),
        ("Rome\n## Steps", False),
        ("Rome ##", True),
        ("##", True),
        ("## END ##", True),
        ("### Response: 4", True),
        ("\uff03\uff03\uff03END", True),
        ("WEEKEND#1", False),
        ("", False),
    ],
)
def test_a_heading_is_no_residue(text: str, expected: bool) -> None:
    """A piece of the delimiter has nothing behind it, or a turn's name."""
    assert qc.left_over(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It begins and", True),
        ("He saw a fox. Then he saw a very old", True),
        ("1. Mix.\n2. Bake\n3.", True),
        ('She said: "Go', True),
        ("", False),
        ("42", False),
        ("He saw a fox. Then he slept.", False),
        ("Dear Ann,\nthank you.\nTom", False),
    ],
)
def test_a_cut_is_read_off_the_end(text: str, expected: bool) -> None:
    """Words and signs that must be followed by something."""
    assert clean.is_cut_off(text) is expected


# --- the engine's own reading of the token limit


def raw(count: int, text: str, *, hit_limit: bool = False) -> list[dict[str, Any]]:
    return [{"raw": text, "hit_limit": hit_limit, "response": "", "runaway": False}] * count


def token_limit(rows: Sequence[dict[str, Any]]) -> Metric:
    found = qc.measure([{**row, "fate": "kept"} for row in rows], [], "rows.jsonl", "kept.jsonl")
    return next(metric for metric in found if metric.name == "token_limit_rate")


def test_an_engine_that_never_says_that_it_cut_is_broken() -> None:
    """Ten of a hundred break off without a stop string, and none is said to have hit the limit."""
    torn = [*raw(90, " Rome.\n###END###"), *raw(10, " Rome is the capital of")]
    found = token_limit(torn)
    assert found.instrument is Instrument.BROKEN
    assert "10 of 100" in found.note


def test_an_honest_engine_may_end_a_text_badly_now_and_then() -> None:
    """Texts that hit the limit, or carry a stop string, do not count."""
    rows = [
        *raw(60, " Rome.\n###END###"),
        *raw(20, " Rome is the capital of", hit_limit=True),
        *raw(20, " It is the\n\nInstruction: more"),
        *raw(4, " Rome is the capital of"),
    ]
    assert token_limit(rows).instrument is Instrument.OK


# --- what is made of the readings


def judged(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> dict[str, CriterionResult]:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate = Gate(
        tuple(
            Criterion(f"{one.name}_{side}", "instrument", at_least=getattr(one, side), min_n=16)
            for one in ALL
            for side in SIDES
        )
    )
    metric = Metric("detector_readings", float(len(rows)), len(rows), evidence="d.jsonl")
    found = judge_gate(gate, [metric], tmp_path, final=True)
    return {c.metric: c for c in found.criteria}


def readings() -> list[dict[str, Any]]:
    return [row for one in ALL for row in read(one, load_detector_probes(one))]


def test_the_gate_passes_the_shipped_and_names_the_liar(tmp_path: Path) -> None:
    """The bound decides, and nothing but the lying instrument is invalid."""
    rows = readings()
    assert {c.verdict for c in judged(tmp_path, rows).values()} == {Verdict.PASS}
    lies = [{**row, "said": row["said"] and row["instrument"] != "runaway"} for row in rows]
    found = judged(tmp_path, lies)
    assert [n for n, c in found.items() if c.verdict is not Verdict.PASS] == ["runaway_sensitivity"]
    assert found["runaway_sensitivity"].verdict is Verdict.INVALID
    assert found["runaway_sensitivity"].evidence == "d.jsonl"


def test_the_report_has_a_row_for_each_detector(tmp_path: Path) -> None:
    """With its hard rows apart, and the ids that it got wrong."""
    rows = readings()
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metric = Metric("detector_readings", float(len(rows)), len(rows), evidence="d.jsonl")
    _, details = instruments.derive([metric], tmp_path)
    shown = report.table(details["detectors"])
    assert [row[0] for row in shown] == [*detectors.ALL]
    residue = shown[[*detectors.ALL].index("residue")]
    assert residue[1:] == ("18 of 18 [0.82, 1.00]", "9 of 9 [0.70, 1.00]", *residue[3:5], "-")
    assert report.table([{"instrument": "x", "wrong": [*"abcdefgh"]}]) == [
        ("x", "-", "-", "-", "-", "a, b, c, d, e, f and 2 more")
    ]


def test_only_rows_by_which_nothing_was_mended_judge(tmp_path: Path) -> None:
    """The tuning half may be right or wrong throughout."""
    rows = readings()
    for said in (True, False):
        turned = [{**r, "said": said if r["half"] == "tune" else r["said"]} for r in rows]
        assert judged(tmp_path, turned) == judged(tmp_path, rows)


@pytest.mark.parametrize("field", [{"said": None}, {"said": 1}, {"label": "yes"}, {"half": "tune"}])
def test_readings_that_show_nothing_are_invalid(tmp_path: Path, field: dict[str, Any]) -> None:
    """No answer, no label, no row that counts."""
    found = judged(tmp_path, [{**row, **field} for row in readings()])
    assert {c.verdict for c in found.values()} == {Verdict.INVALID}


def test_a_row_that_stands_twice_is_invalid(tmp_path: Path) -> None:
    """Copies would narrow the interval for nothing."""
    rows = readings()
    found = judged(tmp_path, [*rows, rows[0]])
    assert {c.verdict for c in found.values()} == {Verdict.INVALID}


def test_certificate_and_gate_compute_the_same() -> None:
    """Wilson's interval and bound, by scipy and by the gates' own statistics; kappa by hand."""
    for hits in range(21):
        rows = [{"label": True, "said": at < hits} for at in range(20)]
        rows += [{"label": False, "said": False}] * 10
        found = agreement(rows)
        assert found["sensitivity"]["interval"] == pytest.approx(wilson(hits, 20))
        assert found["sensitivity"]["bound"] == pytest.approx(wilson_bound(hits, 20, side="lower"))
    four = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    table = agreement([{"label": label, "said": said} for label, said in four])
    assert table["kappa"] == pytest.approx(0.4)
    assert agreement([{"label": True, "said": True}])["kappa"] is None


@pytest.mark.parametrize("name", ["quickstart", "stage1"])
def test_the_shipped_gates_declare_the_same_bounds(name: str) -> None:
    """Both sides of every detector, at least as strict as the certificate."""
    plan = load_plan(SPECS / name / "runbook.yaml", environ={})
    gates = [gate for step in ("calibration", "contamination") if (gate := plan.step(step).gate)]
    assert len(gates) == 2
    declared = {c.metric: c.at_least for g in gates for c in g.criteria if c.metric.endswith(SIDES)}
    assert declared == {f"{one.name}_{side}": getattr(one, side) for one in ALL for side in SIDES}


# --- a user's own rows


def own(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_own_rows_are_judged_beside_the_shipped(tmp_path: Path) -> None:
    """Twenty good answers that the detector takes for runaway bring it below its bound."""
    detector = DETECTORS["runaway"]
    rows = [{"id": f"own-{n}", "raw": f" Answer: {n}", "label": False} for n in range(20)]
    probes = load_detector_probes(detector, own(tmp_path, *rows))
    entry = certify_detectors(read(detector, probes), {})["runaway"]
    assert entry["n"] == 59
    assert entry["within_bounds"] is False


def easy(count: int) -> list[dict[str, Any]]:
    """Rows on either side that any detector of runaways gets right."""
    loops = [f" {n} go go go go go go go go" for n in range(count)]
    fine = [f" It is number {n}.\n###END###" for n in range(count)]
    told = [*((raw, True) for raw in loops), *((raw, False) for raw in fine)]
    return [{"id": f"own-{n}", "raw": r, "label": label} for n, (r, label) in enumerate(told)]


def test_easy_rows_do_not_lift_a_broken_detector_over_its_bounds(tmp_path: Path) -> None:
    """All rows together clear them, the shipped ones alone do not: neither certificate nor gate."""
    blunt = replace(DETECTORS["runaway"], says=lambda row: "go go go" in row["raw"])
    rows = read(blunt, load_detector_probes(blunt, own(tmp_path, *easy(200))))
    entry = certify_detectors(rows, {})["runaway"]
    assert entry["sensitivity"]["bound"] >= blunt.sensitivity
    assert entry["specificity"]["bound"] >= blunt.specificity
    assert entry["shipped"]["sensitivity"]["bound"] < blunt.sensitivity
    assert entry["within_bounds"] is False
    found = judged(tmp_path, rows)["runaway_sensitivity"]
    assert found.verdict is Verdict.INVALID
    assert found.n == entry["shipped"]["sensitivity"]["n"]


def test_easy_rows_leave_a_sound_detector_as_it_is(tmp_path: Path) -> None:
    """They are counted, and the shipped rows pass beside them."""
    detector = DETECTORS["runaway"]
    rows = read(detector, load_detector_probes(detector, own(tmp_path, *easy(20))))
    entry = certify_detectors(rows, {})["runaway"]
    assert (entry["n"], entry["shipped"]["n"], entry["within_bounds"]) == (79, 39, True)
    passed = {name for name, c in judged(tmp_path, rows).items() if c.verdict is Verdict.PASS}
    assert passed == {"runaway_sensitivity", "runaway_specificity"}


@pytest.mark.parametrize("label", [True, False])
def test_a_row_that_says_what_another_says_is_refused(tmp_path: Path, label: bool) -> None:
    """Whatever its id, label, case and spacing: both rows are named, a shipped one too."""
    detector = DETECTORS["runaway"]
    shipped = load_detector_probes(detector)[0]
    text = str(getattr(shipped, "raw"))  # noqa: B009 - the field is a subclass's
    first = {"id": "mine", "raw": "A Cat.", "label": True}
    for twin, of in (("a  cat.\n", "mine"), (f"{text.upper()} ", shipped.id)):
        path = own(tmp_path, first, {"id": "twin", "raw": twin, "label": label})
        with pytest.raises(ConfigError, match=f"the row 'twin' says what '{of}' says") as refused:
            load_detector_probes(detector, path)
        assert refused.value.where == f"{path}:2"
    load_detector_probes(detector, own(tmp_path, first, {**first, "id": "b", "raw": "A cat!"}))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"id": "r001", "raw": "x", "label": True}, "the id 'r001' stands twice"),
        ({"id": "a", "raw": "x", "label": "yes"}, "label"),
        ({"id": "a", "label": True}, "raw"),
        ({"id": "a", "raw": "X ", "label": False}, "the row 'a' says what 'fine' says"),
        ({"id": "a", "raw": "x", "label": True, "half": "both"}, "half"),
        ({"id": "a", "raw": "x", "label": True, "extra": 1}, "extra"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    """File, line and field; shipped ids count too."""
    path = own(tmp_path, {"id": "fine", "raw": "x", "label": True}, row)
    with pytest.raises(ConfigError, match=what) as refused:
        load_detector_probes(DETECTORS["runaway"], path)
    assert refused.value.where == f"{path}:2"
