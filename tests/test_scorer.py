"""The evaluation's scorer is measured before it is believed."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gates.judge import judge_gate
from phases import scorer_controls, verifiers
from phases.held_out import load_items, subset
from phases.verifiers import HeldOutItem, Score
from runbook.contract import Criterion, Gate, Judgement, Metric, Verdict
from runbook.errors import ConfigError

SPECS = Path(__file__).parents[1] / "specs"
LABELS = SPECS / "probe" / "scoring.jsonl"
ITEMS = load_items(SPECS / "held_out.jsonl")
GATE = Gate(
    (
        Criterion("scorer_sensitivity", "instrument", at_least=0.85, min_n=40),
        Criterion("scorer_specificity", "instrument", at_least=0.85, min_n=40),
    )
)
REAL = verifiers.score


def readings() -> list[dict[str, Any]]:
    return scorer_controls.labelled_readings(scorer_controls.load_labelled(LABELS), ITEMS)


def judge(folder: Path, rows: list[dict[str, Any]]) -> Judgement:
    (folder / "s").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = Metric("scored_responses", float(len(rows)), n=len(rows), evidence="s")
    return judge_gate(GATE, (scored,), folder, final=True)


def test_the_labels_have_both_sides_of_every_kind_and_length() -> None:
    """At least 60 rows; of each kind right and wrong ones; of each length too."""
    rows = readings()
    assert len(rows) == len(LABELS.read_text("utf-8").splitlines()) >= 60
    assert {(r["kind"], r["success"]) for r in rows} == {
        (kind, label)
        for kind in ("list", "choice", "number", "format", "short")
        for label in (0, 1)
    }
    for label in (True, False):
        for length in ("long", "short"):
            part = [r for r in rows if r["success"] is label and r["length"] == length]
            assert len(part) >= 20, (label, length)


def test_the_scorer_passes_its_own_check(tmp_path: Path) -> None:
    """Its faults are known, and few: 47 of 48 right ones, 46 of 48 wrong ones."""
    judged = judge(tmp_path, readings())
    assert judged.verdict is Verdict.PASS
    sensitivity, specificity = judged.criteria
    assert (sensitivity.value, specificity.value) == (47 / 48, 46 / 48)


def brief(limit: int) -> Any:
    """A scorer that fails what is longer than so many characters."""

    def score(item: HeldOutItem, response: str) -> Score:
        found = REAL(item, response)
        if len(response.strip()) <= limit:
            return found
        return Score(success=False, format_ok=False, content_ok=False, failures=("too long",))

    return score


def yes(item: HeldOutItem, response: str) -> Score:
    """A scorer that says yes to everything."""
    del item, response
    return Score(success=True, format_ok=True, content_ok=True, failures=())


@pytest.mark.parametrize(
    ("scorer", "named"), [(brief(500), "sens"), (brief(80), "sens"), (yes, "spec")]
)
def test_a_lying_scorer_is_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorer: Any, named: str
) -> None:
    """One that calls every response over 500 characters a failure, and one that says yes."""
    monkeypatch.setattr(verifiers, "score", scorer)
    judged = judge(tmp_path, readings())
    assert judged.verdict is Verdict.INVALID
    assert [r for r in judged.reasons if r.startswith(f"scorer_{named}")]


def empty_passing(items: Sequence[HeldOutItem]) -> float | None:
    """As the baseline has it."""
    rows = scorer_controls.reference_readings(items)
    metrics = scorer_controls.reference_metrics(rows, "rows.jsonl")
    assert [m.evidence for m in metrics] == ["rows.jsonl"] * 2
    return metrics[1].value


@pytest.mark.parametrize("per_kind", [32, 65])
def test_shuffled_references_and_empty_responses_fail(per_kind: int) -> None:
    """Of references dealt to other items few pass: short answers to like questions."""
    items = subset(ITEMS, per_kind)
    dealt = scorer_controls.shuffled_readings(items)
    assert len(dealt) == 2 * sum(map(scorer_controls.has_content_check, items))
    assert all(row["id"] != row["from"] for row in dealt)
    assert sum(row["scored"] for row in dealt) / len(dealt) < 0.02
    assert empty_passing(items) == 0


def test_a_yes_to_one_kind_shows_in_the_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the items is enough to be seen."""
    monkeypatch.setattr(verifiers, "score", lambda i, r: (yes if i.kind == "short" else REAL)(i, r))
    dealt = scorer_controls.shuffled_readings(subset(ITEMS, 32))
    assert sum(row["scored"] for row in dealt) / len(dealt) >= 0.2
    assert empty_passing(subset(ITEMS, 32)) not in (0, None)


def test_equal_references_are_not_dealt() -> None:
    """Two yes-or-no items with one answer are no control."""
    twins = [i for i in ITEMS if i.reference == "yes"][:3]
    assert scorer_controls.shuffled_readings(twins) == []


def item(name: str, kind: str, reference: str, check: dict[str, Any]) -> HeldOutItem:
    fields = {"id": name, "kind": kind, "instruction": f"Do {name}.", "reference": reference}
    return HeldOutItem.model_validate_json(json.dumps({**fields, "checks": [check]}))


def answering(name: str, kind: str, reference: str) -> HeldOutItem:
    return item(name, kind, reference, {"check": "allowed_answers", "answers": [reference]})


@pytest.mark.parametrize("turn", [1, -1])
def test_other_references_are_dealt_in_turn(turn: int) -> None:
    """Many items with one reference do not all meet the same other one, in any order."""
    same = [answering(f"y{at:02d}", "yes", "yes") for at in range(30)]
    others = [answering(f"o{at}", "yes", word) for at, word in enumerate(("no", "red", "six"))]
    items = [*same, *others][::turn]
    dealt = scorer_controls.shuffled_readings(items)
    met = Counter(row["response"] for row in dealt if row["id"].startswith("y"))
    assert {*met} == {"no", "red", "six"}
    assert max(met.values()) - min(met.values()) <= 2
    told = scorer_controls.shuffled_metric(items, dealt, "")
    assert (told.value, told.n) == (0.0, 33)
    assert told.note == "4 different references dealt"
    assert dealt == scorer_controls.shuffled_readings(items[::-1])


def test_an_item_without_a_content_check_is_dealt_none() -> None:
    """Any text of its form answers it, and rightly so; the note tells how many there are."""
    loose = [
        item(f"f{at}", "short", f"Number {at} is nice.", {"check": "max_words", "words": 5})
        for at in range(10)
    ]
    words = ("red", "six", "no", "yes")
    items = [*loose, *(answering(f"o{at}", "word", word) for at, word in enumerate(words))]
    dealt = scorer_controls.shuffled_readings(items)
    assert {row["id"][0] for row in dealt} == {"o"}
    told = scorer_controls.shuffled_metric(items, dealt, "")
    assert (told.successes, told.n) == (0, 8)
    assert "10 of 14 items left out" in told.note
    nothing = scorer_controls.shuffled_metric(loose, scorer_controls.shuffled_readings(loose), "")
    assert (nothing.value, nothing.n) == (None, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: [],
        lambda rows: [*rows, rows[0]],
        lambda rows: [{**rows[0], "scored": None}, *rows[1:]],
        lambda rows: [{k: v for k, v in r.items() if k != "scored"} for r in rows],
        lambda rows: rows[:20],
        lambda rows: [r for r in rows if r["success"]],
    ],
)
def test_labels_that_show_nothing_are_invalid(tmp_path: Path, change: Any) -> None:
    """None, doubles, unread ones, too few, and one side alone."""
    assert judge(tmp_path, change(readings())).verdict is Verdict.INVALID


def test_labels_of_other_items_are_left_out() -> None:
    """A held-out set of one's own needs labels of its own."""
    assert scorer_controls.labelled_readings(scorer_controls.load_labelled(LABELS), ITEMS[:1]) == [
        row for row in readings() if row["item"] == ITEMS[0].id
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "s1", "item": "a", "response": "b", "success": 1, "length": "long"}',
        '{"id": "s1", "item": "a", "response": "b", "success": true, "length": "longish"}',
        '{"id": "s1", "item": "a"',
        '{"id": "s0", "item": "a", "response": "b", "success": true, "length": "long"}',
    ],
)
def test_a_bad_label_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    """Not a boolean, no length, torn, or an id that stood before."""
    path = tmp_path / "labels.jsonl"
    good = '{"id": "s0", "item": "a", "response": "b", "success": true, "length": "long"}'
    path.write_text(f"{good}\n\n{line}\n")
    with pytest.raises(ConfigError) as told:
        scorer_controls.load_labelled(path)
    assert f"{path}:3" in str(told.value)
