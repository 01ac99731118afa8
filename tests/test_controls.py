"""The evaluation's controls: noise is no gain, and a damage must be seen."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from gates import controls, power, scorer, significance
from gates.judge import judge_gate
from runbook.contract import Criterion, Gate, Judgement, Metric, Verdict

GATE = Gate(
    (
        Criterion("aa_p", "control", above=0.01),
        Criterion("damage_unseen", "control", at_most=0),
        Criterion("mcnemar_p", "p_value", below=0.01),
    )
)
SHIPPED = Path(__file__).parents[1] / "specs" / "quickstart" / "evaluation.yaml"
Row = dict[str, Any]


def rows_of(control: str, left: str, right: str, cells: tuple[int, int, int, int]) -> list[Row]:
    """Counts of: both right, lost, gained, both wrong."""
    outcomes = [(True, True), (True, False), (False, True), (False, False)]
    pairs = [pair for pair, count in zip(outcomes, cells, strict=True) for _ in range(count)]
    return [
        {"control": control, "id": f"i{at}", "kind": "k", left: before, right: after}
        for at, (before, after) in enumerate(pairs)
    ]


def repeated(*cells: int) -> list[Row]:
    both, lost, gained, neither = cells
    return rows_of("aa", "first", "again", (both, lost, gained, neither))


def damaged(*cells: int) -> list[Row]:
    both, lost, gained, neither = cells
    return rows_of("damaged", "undamaged", "damaged", (both, lost, gained, neither))


STEADY = repeated(10, 2, 3, 17)


def judge(folder: Path, rows: list[Row], *, gained: int = 40, gate: Gate = GATE) -> Judgement:
    """Controls beside 160 pairs, of which so many were gained."""
    pairs = [
        {"id": f"p{at}", "kind": "k", "base": at % 4 == 0, "tuned": at % 4 == 0 or at < gained}
        for at in range(160)
    ]
    for name, part in (("c", rows), ("p", pairs)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    asked = sum(row["control"] == "aa" for row in rows)
    metrics = (
        Metric("aa_flips", 0.0, n=asked, evidence="c"),
        Metric("paired_outcomes", 160.0, n=160, evidence="p"),
    )
    return judge_gate(gate, metrics, folder, final=True)


def test_a_damage_that_is_seen_and_noise_that_is_none_pass(tmp_path: Path) -> None:
    """A few flips either way are the noise of batches; all right answers lost are a damage."""
    judged = judge(tmp_path, [*STEADY, *damaged(0, 18, 0, 46)])
    assert judged.verdict is Verdict.PASS
    assert judged.details["controls"]["aa"] == {"n": 32, "gained": 3, "lost": 2}


def test_a_base_that_gains_without_training_is_invalid(tmp_path: Path) -> None:
    """Twelve gained and none lost is no noise: something else changed between the two."""
    judged = judge(tmp_path, [*repeated(10, 0, 12, 10), *damaged(0, 18, 0, 46)])
    assert judged.verdict is Verdict.INVALID
    assert "12 gained, 0 lost without any training" in judged.reasons[0]


@pytest.mark.parametrize("cells", [(64, 0, 0, 0), (16, 16, 16, 16), (20, 4, 1, 39)])
def test_a_damage_that_goes_unseen_is_invalid(
    tmp_path: Path, cells: tuple[int, int, int, int]
) -> None:
    """A scorer that says yes to all, one that throws a coin, one that hardly looks."""
    judged = judge(tmp_path, [*STEADY, *damaged(*cells)])
    assert judged.verdict is Verdict.INVALID
    assert "the damaged copy lost" in judged.reasons[0]


def test_too_few_right_answers_to_damage_matter_only_for_a_gain(tmp_path: Path) -> None:
    """A training that failed altogether is a fail and not a broken instrument."""
    rows = [*STEADY, *damaged(0, 3, 0, 61)]
    assert judge(tmp_path, rows, gained=0).verdict is Verdict.FAIL
    assert judge(tmp_path, rows).verdict is Verdict.INVALID
    blind = [*STEADY, *damaged(20, 4, 1, 39)]
    assert judge(tmp_path, blind, gained=0).verdict is Verdict.INVALID


def shipped(name: str) -> Gate:
    gate = YAML(typ="safe").load(SHIPPED)["gate"]
    return Gate(tuple(Criterion(**c) for c in gate["criteria"] if c["metric"] == name))


@pytest.mark.parametrize(
    ("cells", "verdict"),
    [
        ((15, 1, 0, 16), Verdict.PASS),
        ((15, 1, 1, 15), Verdict.PASS),
        ((10, 2, 3, 17), Verdict.UNDERPOWERED),
        ((8, 4, 4, 16), Verdict.INVALID),
        ((0, 16, 16, 0), Verdict.INVALID),
    ],
)
def test_flips_that_cancel_out_are_seen_by_their_rate(
    tmp_path: Path, cells: tuple[int, int, int, int], verdict: Verdict
) -> None:
    """As shipped: one flip of 32, as measured, is no alarm; outcomes that all flip are."""
    rows = [*repeated(*cells), *damaged(0, 18, 0, 46)]
    assert judge(tmp_path, rows, gate=shipped("aa_flip_rate")).verdict is verdict
    assert judge(tmp_path, rows, gate=shipped("aa_p")).verdict is Verdict.PASS


def test_a_repetition_of_a_few_items_shows_nothing(tmp_path: Path) -> None:
    """Four flips one way of four have p = 0.125: as shipped, both ask for thirty items."""
    rows = [*repeated(0, 0, 4, 0), *damaged(0, 18, 0, 46)]
    for name in ("aa_p", "aa_flip_rate"):
        judged = judge(tmp_path, rows, gate=shipped(name))
        assert judged.verdict is Verdict.INVALID
        assert len(judged.criteria) == 1


@pytest.mark.parametrize(
    "rows",
    [
        [],
        STEADY,
        damaged(0, 18, 0, 46),
        [*STEADY, *STEADY, *damaged(0, 18, 0, 46)],
        [*STEADY, {"control": "damaged", "id": "x", "undamaged": True}],
        [*STEADY, {"control": "damaged", "id": "x", "undamaged": True, "damaged": None}],
    ],
)
def test_controls_that_show_nothing_are_invalid(tmp_path: Path, rows: list[Row]) -> None:
    """Rows missing, twice or without a value."""
    assert judge(tmp_path, rows).verdict is Verdict.INVALID


def test_what_the_gate_derives_around_an_evaluation_is_promised(tmp_path: Path) -> None:
    """The names in METRICS that the steps do not measure themselves."""
    from phases import baseline, evaluate  # noqa: PLC0415 - with what they promise

    found, _ = controls.derive((Metric("aa_flips", 0.0, evidence="none"),), tmp_path)
    assert {m.name for m in found[1:]} == set(controls.DERIVES) < set(evaluate.METRICS)
    found, _ = scorer.derive((Metric("scored_responses", 0.0, evidence="none"),), tmp_path)
    found, _ = power.derive((*found, Metric(power.EFFECT, 0.2)), tmp_path)
    assert {m.name for m in found if m.value is None} < set(baseline.METRICS)
    assert significance.PAIRED in evaluate.METRICS
