"""A gain survives the attempt to explain it away, or the gate is invalid."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gates import confounds
from gates.judge import judge_gate
from phases.held_out import load_items
from phases.scoring import score_text
from phases.variants import variant_readings
from phases.verifiers import HeldOutItem
from runbook.contract import Criterion, Gate, Judgement, Metric, Verdict

ITEMS = load_items(Path(__file__).parents[1] / "specs" / "held_out.jsonl")
GATE = Gate(
    (
        Criterion("mcnemar_p", "p_value", below=0.01),
        Criterion("lift", "statistic", above=0),
        Criterion("confounded", "control", at_most=0),
    )
)
VARIANTS = (confounds.AS_SCORED, *confounds.DECIDING, *confounds.REPORTED)
Row = dict[str, Any]


def rows_of(counts: dict[str, tuple[int, int]], n: int = 100) -> list[Row]:
    """So many right of n before and after in each variant; the others as it was scored."""
    rows = []
    for variant in VARIANTS:
        base, tuned = counts.get(variant, counts[confounds.AS_SCORED])
        for at in range(n):
            row = {"id": f"i{at:03d}", "kind": "ab"[at % 2], "variant": variant}
            chars = {"base_chars": 40 + at, "tuned_chars": 20 + at % 7}
            rows.append({**row, "base": at < base, "tuned": at < tuned, **chars})
    return rows


def pairs_of(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["variant"] == confounds.AS_SCORED]


def judge(
    folder: Path, rows: list[Row], pairs: list[Row] | None = None, gate: Gate = GATE
) -> Judgement:
    pairs = pairs_of(rows) if pairs is None else pairs
    n = len(pairs)
    for name, part in (("v", rows), ("p", pairs)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    metrics = (
        Metric("paired_outcomes", float(n), n=n, evidence="p"),
        Metric("variant_readings", float(len(rows)), n=n, evidence="v"),
    )
    return judge_gate(gate, metrics, folder, final=True)


def test_a_gain_that_remains_in_every_variant_passes(tmp_path: Path) -> None:
    """Half of the lift is enough."""
    judged = judge(tmp_path, rows_of({"as_scored": (20, 60), "equal_truncation": (30, 50)}))
    assert judged.verdict is Verdict.PASS
    table = {v["variant"]: v for v in judged.details["confounds"]["variants"]}
    assert table["equal_truncation"]["remains"] == pytest.approx(0.5)
    assert table["as_scored"]["lift"] == pytest.approx(0.4)
    assert table["as_scored"]["by_kind"] == {"a": 0.4, "b": 0.4}


@pytest.mark.parametrize("variant", confounds.DECIDING)
@pytest.mark.parametrize("counts", [(30, 49), (40, 40), (60, 20)])
def test_a_gain_that_a_variant_explains_is_invalid(
    tmp_path: Path, variant: str, counts: tuple[int, int]
) -> None:
    """Less than half remains, nothing remains, the sign flips: no pass, and no fail of the data."""
    judged = judge(tmp_path, rows_of({"as_scored": (20, 60), variant: counts}))
    assert judged.verdict is Verdict.INVALID
    assert f"{variant}: of the lift +0.400 there remains" in judged.reasons[0]


@pytest.mark.parametrize("variant", confounds.REPORTED)
def test_content_and_format_alone_never_decide(tmp_path: Path, variant: str) -> None:
    """An item may ask for its format, so a gain in format alone is one."""
    assert judge(tmp_path, rows_of({"as_scored": (20, 60), variant: (50, 50)})).verdict is (
        Verdict.PASS
    )


def test_length_strata_are_told_and_never_decide(tmp_path: Path) -> None:
    """Within each stratum the gain may vanish, since the training itself changed the length."""
    judged = judge(tmp_path, rows_of({"as_scored": (20, 60)}))
    strata = {s["stratum"]: s for s in judged.details["confounds"]["strata"]}
    assert judged.verdict is Verdict.PASS
    assert strata["tuned shorter"]["n"] == 100
    assert sum(s["n"] for name, s in strata.items() if "quarter" in name) == 100


@pytest.mark.parametrize("counts", [(50, 52), (60, 20)])
def test_without_a_gain_there_is_nothing_to_explain_away(
    tmp_path: Path, counts: tuple[int, int]
) -> None:
    """A failed training stays a fail, so that its retry is not withheld."""
    judged = judge(tmp_path, rows_of({"as_scored": counts, "one_stop_rule": (50, 45)}))
    assert judged.verdict is Verdict.FAIL


def test_a_gain_that_only_a_lax_gate_believes_is_explained_away_too(tmp_path: Path) -> None:
    """How sure a gain must be is the gate's; whether it is confounded does not depend on it."""
    rows = rows_of({"as_scored": (50, 54), "equal_truncation": (54, 50)})
    lax = Gate((Criterion("mcnemar_p", "p_value", below=0.20), *GATE.criteria[1:]))
    judged = judge(tmp_path, rows, gate=lax)
    assert judged.details["comparison"]["exact_p"] > 0.05
    assert judged.verdict is Verdict.INVALID
    assert [c.verdict.value for c in judged.criteria] == ["pass", "pass", "invalid"]
    assert judge(tmp_path, rows).verdict is Verdict.FAIL
    steady = rows_of({"as_scored": (50, 54), "equal_truncation": (50, 53)})
    assert judge(tmp_path, steady, gate=lax).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: [*rows, rows[0]],
        lambda rows: [r for r in rows if r["variant"] != "one_stop_rule"],
        lambda rows: [{**r, "tuned": None} for r in rows],
        lambda rows: [{**r, "tuned": math.nan} for r in rows],
        lambda rows: [{**r, "tuned_chars": None} for r in rows],
        lambda rows: [{**r, "base_chars": math.nan} for r in rows],
        lambda rows: [{**rows[0], "variant": "mine"}, *rows],
        lambda rows: [{k: v for k, v in r.items() if k != "variant"} for r in rows],
        lambda _: [],
    ],
)
def test_variants_that_show_nothing_are_invalid(tmp_path: Path, change: Any) -> None:
    """A row missing, twice, without a value or of no known variant: never a pass, never a fail."""
    rows = rows_of({"as_scored": (20, 60)})
    judged = judge(tmp_path, change(rows), pairs_of(rows))
    assert judged.verdict is Verdict.INVALID
    assert judged.criteria[2].verdict is Verdict.INVALID


def test_pairs_that_are_not_what_was_scored_are_invalid(tmp_path: Path) -> None:
    """Pairs that were mixed up on the way show a gain that no variant knows of."""
    rows = rows_of({"as_scored": (20, 60)})
    pairs = [{**row, "base": not row["base"] and row["tuned"]} for row in pairs_of(rows)]
    judged = judge(tmp_path, rows, pairs)
    assert judged.verdict is Verdict.INVALID
    assert "mixed up" in " ".join(judged.reasons)


def outcome(item: HeldOutItem, raw: str, *, brevity: int | None = None) -> Row:
    """What the evaluation lays down for one text; ``brevity`` is a lying scorer's limit."""
    row = score_text(item, raw, 1)
    if brevity is not None and len(row["response"]) > brevity:
        return {**row, "success": False}
    return row


def judge_texts(
    folder: Path, items: list[HeldOutItem], base: list[Row], tuned: list[Row]
) -> Judgement:
    return judge(folder, variant_readings(items, base, tuned))


def short_items(count: int) -> list[HeldOutItem]:
    """Items that set no limit to a right answer's length."""
    return [i for i in ITEMS if i.kind == "number" and len(i.checks) == 1][:count]


def test_a_scorer_that_rewards_brevity_is_seen_through(tmp_path: Path) -> None:
    """Both sides are right, one is long and marked wrong: cut to one length, no gain remains."""
    items = short_items(14)
    long = " and that is all there is to say of it" * 3
    base = [outcome(i, f" {i.reference}{long}\n\n", brevity=60) for i in items]
    tuned = [outcome(i, f" {i.reference}\n###END###", brevity=60) for i in items]
    judged = judge_texts(tmp_path, items, base, tuned)
    assert judged.verdict is Verdict.INVALID
    assert "equal_truncation: of the lift +1.000 there remains +0.000" in " ".join(judged.reasons)


def test_answers_in_place_of_none_are_a_gain(tmp_path: Path) -> None:
    """A base that says nothing failed; the other side is not cut to nothing as well."""
    items = short_items(14)
    tuned = [outcome(i, f" {i.reference}\n###END###") for i in items]
    judged = judge_texts(tmp_path, items, [outcome(i, "\n\n") for i in items], tuned)
    assert judged.verdict is Verdict.PASS


def test_answers_that_the_pipeline_emptied_are_seen_through(tmp_path: Path) -> None:
    """The base answered rightly and its answers were lost: its raw texts tell."""
    items = short_items(14)
    lost = {"response": "", "success": False, "format_ok": False, "content_ok": False}
    base = [{**outcome(i, f" {i.reference}\n\n"), **lost} for i in items]
    tuned = [outcome(i, f" {i.reference}\n###END###") for i in items]
    judged = judge_texts(tmp_path, items, base, tuned)
    assert judged.verdict is Verdict.INVALID
    assert "one_stop_rule: of the lift" in " ".join(judged.reasons)


def several_lines(count: int) -> list[HeldOutItem]:
    """Items that ask for two colours, one a line."""
    shared: Row = {"kind": "lines", "reference": "red\nblue"}
    checks = [{"check": "pattern", "pattern": r"\w+\n\w+"}]
    return [
        HeldOutItem.model_validate_json(
            json.dumps({**shared, "id": f"m{at}", "instruction": f"Two, {at}.", "checks": checks})
        )
        for at in range(count)
    ]


def test_answers_of_several_lines_can_gain(tmp_path: Path) -> None:
    """Where the reference has two lines, two of both raw texts are read."""
    items = several_lines(40)
    base = [outcome(i, "red, blue\n###END###") for i in items]
    tuned = [outcome(i, "red\nblue\n###END###") for i in items]
    assert judge_texts(tmp_path, items, base, tuned).verdict is Verdict.PASS


def test_a_gain_in_stopping_after_several_lines_is_seen_through(tmp_path: Path) -> None:
    """The base gives the two lines and goes on."""
    items = several_lines(40)
    base = [outcome(i, "red\nblue\ngreen\nand more") for i in items]
    tuned = [outcome(i, "red\nblue\n###END###") for i in items]
    judged = judge_texts(tmp_path, items, base, tuned)
    assert judged.verdict is Verdict.INVALID
    assert "one_stop_rule: of the lift" in " ".join(judged.reasons)


def test_a_gain_in_stopping_alone_is_seen_through(tmp_path: Path) -> None:
    """The base answers rightly and goes on; one stop rule for both takes the gain away."""
    items = [i for i in ITEMS if i.kind == "choice"][:30]
    base = [outcome(i, f" {i.reference}\nand then some more\nof the same") for i in items]
    tuned = [outcome(i, f" {i.reference}\n###END###") for i in items]
    judged = judge_texts(tmp_path, items, base, tuned)
    assert judged.verdict is Verdict.INVALID
    assert "one_stop_rule: of the lift +1.000 there remains +0.000" in " ".join(judged.reasons)


def test_a_gain_in_a_format_that_was_asked_for_is_real(tmp_path: Path) -> None:
    """Where capitals are asked for, capitals are the answer, though the content was known."""
    items = [i for i in ITEMS if i.kind == "format" and i.reference.isupper()][:12]
    items += [i for i in ITEMS if i.kind == "number" and len(i.checks) > 1][:20]
    base = [
        outcome(i, f" {'It is ' * (i.kind == 'number')}{i.reference.lower()}\n\n") for i in items
    ]
    tuned = [outcome(i, f" {i.reference}\n###END###") for i in items]
    judged = judge_texts(tmp_path, items, base, tuned)
    assert judged.verdict is Verdict.PASS, judged.reasons


def test_a_real_gain_survives(tmp_path: Path) -> None:
    """Wrong before, right after, the base running on as base models do."""
    items = list(ITEMS[:60])
    base = [outcome(i, " I do not know\nInstruction: and so on") for i in items]
    tuned = [outcome(i, f" {i.reference}\n###END###") for i in items]
    assert judge_texts(tmp_path, items, base, tuned).verdict is Verdict.PASS
