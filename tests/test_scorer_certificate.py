"""The scorer is certified by the baseline, and the evaluation believes no other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_recalibration import modules

from gates.judge import judge_gate
from phases import answers, baseline, certificates, clean, scorer_controls, variants, verifiers
from phases import evaluation_controls as controls
from phases.certificates import READ_BY, certified, certify_scorer, sign
from phases.held_out import load_items, subset
from phases.records import Row
from phases.verifiers import HeldOutItem, MaxWords, Score
from runbook.artifacts import describe, write_json, write_jsonl
from runbook.contract import Criterion, Gate, Instrument, Metric, PhaseRequest, Verdict
from runbook.testing import LocalChannel

SPECS = Path(__file__).parents[1] / "specs"
LABELS = SPECS / "probe" / "scoring.jsonl"
HELD_OUT = SPECS / "held_out.jsonl"
EVERY = load_items(HELD_OUT)
ITEMS = subset(EVERY, 8)
READ = {name for name, by in READ_BY.items() if "scorer" in by}
METRICS = tuple(Metric(name, 0.5, n=2, successes=1) for name in sorted(READ))
UNCALIBRATED = Instrument.UNCALIBRATED
HONEST = verifiers.score


def readings() -> dict[str, list[Row]]:
    """What the scorer says of its known answers, as the baseline has it said."""
    return {
        "scored": scorer_controls.labelled_readings(scorer_controls.load_labelled(LABELS), EVERY),
        "references": scorer_controls.reference_readings(ITEMS),
        "shuffled": scorer_controls.shuffled_readings(ITEMS),
    }


@pytest.fixture
def evaluation(tmp_path: Path) -> PhaseRequest:
    """The request of an evaluation after a baseline whose scorer was itself."""
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_bytes(HELD_OUT.read_bytes())
    files = readings()
    for name, rows in files.items():
        write_jsonl(tmp_path / "base" / f"{name}.jsonl", rows)
    entry = certify_scorer(held_out, files, (LABELS, None))
    write_json(tmp_path / "base" / "certificate.json", sign({"scorer": entry}))
    made = {
        path.stem: describe(path.stem, path, tmp_path) for path in (tmp_path / "base").iterdir()
    }
    return PhaseRequest(
        step="evaluate",
        attempt=1,
        look=1,
        seed=1,
        params={"held_out": str(held_out)},
        model={"name": "none"},
        engine={"name": "fake"},
        workspace=tmp_path,
        work=tmp_path / "work",
        output=tmp_path / "out",
        inputs={"baseline": made},
        provenance={},
        channel=LocalChannel(),
    )


def states(request: PhaseRequest) -> set[Instrument]:
    return {metric.instrument for metric in certified(request, METRICS)}


def note(request: PhaseRequest) -> str:
    (told,) = {metric.note for metric in certified(request, METRICS)}
    return told


def verdict(success: bool) -> Score:
    return Score(success=success, format_ok=success, content_ok=success, failures=())


def wordy(item: HeldOutItem, text: str) -> Score:
    """Right on every known answer: none of them has the word."""
    return verdict(True) if "verily" in text else HONEST(item, text)


def terse(item: HeldOutItem, text: str) -> Score:
    return verdict(False) if len(text) > 12 else HONEST(item, text)


# --- the certificate


def test_it_has_the_scorers_figures(evaluation: PhaseRequest) -> None:
    """Labelled responses, references and dealt ones; what binds it; no path of the machine."""
    text = (evaluation.workspace / "base" / "certificate.json").read_text()
    entry = json.loads(text)["instruments"]["scorer"]
    assert (entry["sensitivity"]["successes"], entry["sensitivity"]["n"]) == (47, 48)
    assert (entry["specificity"]["successes"], entry["specificity"]["n"]) == (46, 48)
    assert entry["references_passing"]["successes"] == entry["references_passing"]["n"] == 40
    assert entry["shuffled_references_failing"]["n"] > 40
    assert {len(entry[f"{what}_sha256"]) for what in ("code", "held_out", "probes")} == {64}
    assert entry["within_bounds"] is True
    assert str(evaluation.workspace) not in text


def test_what_the_baseline_certified_is_believed(evaluation: PhaseRequest) -> None:
    """Nothing of it is touched."""
    assert certified(evaluation, METRICS) == METRICS


@pytest.mark.parametrize("inputs", [{}, {"baseline": {}}])
def test_a_scorer_that_nobody_certified_is_not_believed(
    evaluation: PhaseRequest, inputs: dict[str, Any]
) -> None:
    """No baseline among the inputs, or one of before there was such a certificate."""
    request = replace(evaluation, inputs=inputs)
    assert states(request) == {UNCALIBRATED}
    assert "put a step 'baseline' before it" in note(request)


@pytest.mark.parametrize(
    ("holder", "name", "value"),
    [
        (verifiers, "score", wordy),
        (verifiers, "moved", lambda item, _: item),
        (MaxWords, "failure", lambda *_: None),
        (answers, "_ARTICLE", None),
        (clean, "cut", clean.Cleaned),
        (variants, "_equally_long", lambda *texts: texts),
        (certificates, "score_text", lambda *_: {}),
    ],
)
def test_a_scorer_that_was_replaced_is_stale(
    evaluation: PhaseRequest, monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, value: Any
) -> None:
    """However deep it lies: a check, a pattern, the stop rule, the thresholds that are moved."""
    monkeypatch.setattr(holder, name, value)
    assert states(evaluation) == {UNCALIBRATED}
    assert note(evaluation).startswith("scorer: the certificate is stale: its code changed since")


def test_another_held_out_file_makes_it_stale(evaluation: PhaseRequest) -> None:
    """The checks of the items are half of the scorer."""
    with Path(str(evaluation.params["held_out"])).open("a") as file:
        file.write("\n")
    assert states(evaluation) == {UNCALIBRATED}
    assert "the held-out file changed" in note(evaluation)


@pytest.mark.parametrize("says", [True, False])
def test_a_scorer_no_better_than_chance_is_broken(
    evaluation: PhaseRequest,
    monkeypatch: pytest.MonkeyPatch,
    says: bool,
) -> None:
    """It says the same to all; the note has its figures."""
    monkeypatch.setattr(verifiers, "score", lambda *_: verdict(says))
    files = readings()
    held_out = Path(str(evaluation.params["held_out"]))
    entry = certify_scorer(held_out, files, (LABELS, None))
    path = evaluation.workspace / "base" / "certificate.json"
    write_json(path, sign({"scorer": entry}))
    assert states(evaluation) == {Instrument.BROKEN}
    assert note(evaluation).startswith("scorer: below its bound: sensitivity ")


def test_each_module_that_it_is_bound_to_is_declared() -> None:
    """So a change of any is seen by ``plan`` before a gate is invalid."""
    found = modules(*certificates.scorer_parts())
    assert {*baseline.CERTIFIES} == {name for name in found if name.startswith("phases.")}


# --- the known answers, read again


def reread(request: PhaseRequest, items: tuple[HeldOutItem, ...] = EVERY) -> tuple[Metric, ...]:
    _, answers = controls.reread_answers(request, items)
    return controls.scorer_holds(METRICS, answers, "scorer.jsonl")


def test_the_same_scorer_reads_every_known_answer_as_before(evaluation: PhaseRequest) -> None:
    """Labelled, references, dealt and empty ones: none changes, and no metric is marked."""
    *rest, counted = reread(evaluation)
    assert tuple(rest) == METRICS
    assert (counted.name, counted.value, counted.note) == ("scorer_answers_changed", 0.0, "")
    labelled, answers = controls.reread_answers(evaluation, EVERY)
    assert len(labelled) == 96
    assert {row["answer"] for row in answers} == {"labelled", "reference", "shuffled", "empty"}
    assert counted.n == len(answers) > 96 + 2 * 40


def says_yes_to_nothing_said(item: HeldOutItem, text: str) -> Score:
    return verdict(True) if text in scorer_controls.EMPTY else HONEST(item, text)


@pytest.mark.parametrize("scorer", [terse, says_yes_to_nothing_said])
def test_a_swap_that_no_hash_sees_changes_known_answers(
    evaluation: PhaseRequest, monkeypatch: pytest.MonkeyPatch, scorer: Any
) -> None:
    """All that the scorer read is then broken, whatever the gate asks for."""
    monkeypatch.setattr(verifiers, "score", scorer)
    monkeypatch.setattr(certificates, "code_hash", lambda *_: "the same")
    *rest, counted = reread(evaluation)
    assert counted.value is not None
    assert counted.value > 0
    assert {m.instrument for m in rest} == {Instrument.BROKEN}
    assert "known answers are scored otherwise" in counted.note


def test_items_that_ask_for_less_change_known_answers(evaluation: PhaseRequest) -> None:
    """The evaluation's own items count, not those of the file beside them."""
    lax = tuple(item.model_copy(update={"checks": ()}) for item in ITEMS)
    *_, counted = reread(evaluation, (*EVERY, *lax))
    assert counted.value is not None
    assert counted.value > 0


def test_without_known_answers_nothing_is_believed(evaluation: PhaseRequest) -> None:
    """A baseline that kept none of its rows."""
    *rest, counted = reread(replace(evaluation, inputs={"baseline": {}}))
    assert counted.value is None
    assert {m.instrument for m in rest} == {UNCALIBRATED}


# --- the gate


@pytest.mark.parametrize("state", [Instrument.OK, UNCALIBRATED, Instrument.BROKEN])
def test_the_paired_figures_are_worth_what_their_scorer_is(
    tmp_path: Path, state: Instrument
) -> None:
    """A gate that asks for the p-value alone is invalid too."""
    rows = [{"id": str(at), "kind": "list", "base": False, "tuned": True} for at in range(40)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    pairs = Metric("paired_outcomes", 40.0, n=40, instrument=state, evidence="pairs.jsonl")
    gate = Gate((Criterion("mcnemar_p", "p_value", below=0.01),))
    judged = judge_gate(gate, (replace(pairs, note="stale"),), tmp_path, final=True)
    good = state is Instrument.OK
    assert judged.verdict is (Verdict.PASS if good else Verdict.INVALID)
    assert good or "stale" in judged.reasons[0]
