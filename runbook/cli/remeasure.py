"""A past step's numbers, read anew from its stored rows by today's instruments. No model.

What a model said stays as it is stored: raw texts, critiques, token counts, which rows were kept.
What a program read off those is thrown away and read again: cleaning and its detectors, duplicates,
leaks, provenance, and the verifiers of today's held-out file. A detector is measured on its own
labelled rows before its reading is believed; the state of a filter stays as it was. Controls that
need the model stay as they were read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from runbook.artifacts import read_jsonl, sha256_file, write_jsonl
from runbook.contract import Instrument, Json, Metric, PhaseRequest
from runbook.errors import CorruptError, RunbookError
from runbook.evidence import CHANGED
from runbook.testing import LocalChannel

if TYPE_CHECKING:
    from phases.verifiers import HeldOutItem
    from runbook.decided import Decided
    from runbook.events import StepFinished
    from runbook.replay import Reading, Remeasure

_Row = dict[str, Json]
_Found = tuple[Sequence[Metric], Mapping[str, Sequence[_Row]]]
"""Metrics, and the rows behind them by the path of their evidence."""
_UNREADABLE = (KeyError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True)
class _Past:
    """A decided step, and what it is measured with."""

    decided: "Decided"
    finished: "StepFinished"
    root: Path
    """The workspace, which is only read."""
    folder: Path
    """For what is written."""
    held_out: Path


def remeasures(
    root: Path, scratch: Path, held_out: Mapping[str, Path], probes: Mapping[str, Path]
) -> "dict[str, Remeasure]":
    """How to measure anew, by the function of the step.

    Args:
        root: the workspace, which is only read.
        scratch: a folder for rows that are read anew.
        held_out: today's held-out file of a step; one without has that which it ran with.
        probes: a user's own labelled rows, by detector.
    """
    doubts = cache(partial(_doubts, probes))

    def measured(how: Callable[[_Past], _Found], decided: "Decided") -> "Reading":
        judged = decided.judged
        assert decided.finished is not None
        try:
            named = held_out.get(judged.step) or Path(str(decided.params["held_out"]))
            folder = scratch / f"{judged.step}-{judged.attempt}-{judged.look}"
            past = _Past(decided, decided.finished, root, folder, named)
            return _reading(past, *how(past), doubts)
        except _UNREADABLE as error:
            # Rows of another version may lack what today's instruments look at.
            what = f"its rows cannot be measured by today's instruments: {error!r}"
            raise RunbookError(what) from error

    known: Mapping[str, Callable[[_Past], _Found]] = {
        "phases.pilot:run": _generated,
        "phases.scale:run": _generated,
        "phases.baseline:run": _baseline,
        "phases.evaluate:run": _evaluated,
    }
    return {name: partial(measured, how) for name, how in known.items()}


def _generated(past: _Past) -> _Found:
    from phases import data_checks, dedup, qc  # noqa: PLC0415 - start-up stays light

    path, rows = _rows(past, past.finished, "candidates")
    made, kept = _rows(past, past.finished, "dataset")
    metrics = [*qc.measure([_read_anew(row) for row in rows], kept, path, made)]
    written: dict[str, Sequence[_Row]] = {}
    asked = {
        k: v for k, v in past.decided.params.items() if k in data_checks.DataParams.model_fields
    }
    if any(m.name in data_checks.CLEAN for m in past.finished.metrics):
        params = data_checks.DataParams.model_validate({**asked, "held_out": str(past.held_out)})
        metrics += data_checks.measure_data(_request(past, path), params, kept)
    for counted in (m for m in past.finished.metrics if m.name == "forecast_target"):
        bound = float(past.decided.params["near_duplicate"])
        written[counted.evidence] = dedup.instruction_counts(rows, bound)
    return metrics, written


def _request(past: _Past, beside: str) -> PhaseRequest:
    """What a measurement that writes its evidence itself is given: the scratch folder."""
    judged, output = past.decided.judged, (past.folder / beside).parent
    return PhaseRequest(
        step=judged.step,
        attempt=judged.attempt,
        look=judged.look,
        seed=0,
        params=past.decided.params,
        model={},
        engine={},
        workspace=past.folder,
        work=output,
        output=output,
        inputs={},
        provenance={},
        channel=LocalChannel(),
    )


def _read_anew(row: _Row) -> _Row:
    """A candidate as today's cleaning and detectors see its raw text.

    One that they clear and that an earlier detector dropped was never judged as a pair, so it has
    no fate.
    """
    from phases.generation import read_raw  # noqa: PLC0415 - start-up stays light

    if "raw" not in row:
        return row
    found = read_raw(row["raw"])
    before = row["fate"] if "pair_critique" in row else ""
    return {**row, **found, "fate": found["fate"] or before}


def _baseline(past: _Past) -> _Found:
    path, rows = _rows(past, past.finished, "outcomes")
    items = _items(past.held_out)
    scored = _rescored(rows, items)
    controls, written = _scorer_controls(past, items, {str(row["id"]) for row in rows})
    return [_rate(past, "base_rate", scored), *controls], {path: scored, **written}


def _scorer_controls(
    past: _Past, items: "Mapping[str, HeldOutItem]", asked: set[str]
) -> tuple[list[Metric], dict[str, Sequence[_Row]]]:
    """Those controls of the scorer that the step had, by today's scorer: they need no model."""
    from phases import scorer_controls, verifiers  # noqa: PLC0415 - start-up stays light

    stored = {metric.name: metric for metric in past.finished.metrics}
    own = [item for item in items.values() if item.id in asked]
    rows = scorer_controls.reference_readings(own)
    found = [
        replace(metric, evidence=stored[metric.name].evidence)
        for metric in scorer_controls.reference_metrics(rows, "")
        if metric.name in stored
    ]
    written: dict[str, Sequence[_Row]] = {m.evidence: rows for m in found if m.evidence}
    dealt = stored.get("shuffled_references_passing")
    if dealt is not None:
        written[dealt.evidence] = readings = scorer_controls.shuffled_readings(own)
        found.append(scorer_controls.shuffled_metric(own, readings, dealt.evidence))
    if "scored_responses" in stored:
        path, labelled = _rows(past, past.finished, "scored")
        gone = [row["id"] for row in labelled if row["item"] not in items]
        if gone:
            what = f"the labelled response {gone[0]!r} is to no item of today's held-out file"
            raise RunbookError(what)
        written[path] = [
            {**row, "scored": verifiers.score(items[row["item"]], row["response"]).success}
            for row in labelled
        ]
    return found, written


def _evaluated(past: _Past) -> _Found:
    from phases.evaluate import pair_rows  # noqa: PLC0415 - start-up stays light
    from phases.evaluation_controls import changed_outcomes  # noqa: PLC0415 - start-up stays light
    from phases.variants import variant_readings  # noqa: PLC0415 - start-up stays light

    items = _items(past.held_out)
    _, rows = _rows(past, past.decided.inputs["baseline"], "outcomes")
    path, answers = _rows(past, past.finished, "outcomes")
    base, tuned = _rescored(rows, items), _rescored(answers, items)
    written = {path: tuned, _rows(past, past.finished, "pairs")[0]: pair_rows(base, tuned)}
    for read in (m for m in past.finished.metrics if m.name == "variant_readings"):
        written[read.evidence] = variant_readings([*items.values()], base, tuned)
    # Against the outcomes as stored: they are what the training and the pairs went by.
    changed = [
        replace(m, value=float(changed_outcomes([*items.values()], stored)), n=len(stored))
        for m in past.finished.metrics
        for name, stored in (("base_outcomes_changed", rows), ("tuned_outcomes_changed", answers))
        if m.name == name
    ]
    return [_rate(past, "tuned_rate", tuned), *changed], written


def _items(path: Path) -> "dict[str, HeldOutItem]":
    from phases.held_out import load_items  # noqa: PLC0415 - start-up stays light

    return {item.id: item for item in load_items(path)}


def _rescored(rows: Sequence[_Row], items: "Mapping[str, HeldOutItem]") -> list[_Row]:
    """Outcomes by today's verifiers. Raises RunbookError: an item is not asked so any more."""
    from phases.scoring import score_text  # noqa: PLC0415 - start-up stays light

    found = []
    for row in rows:
        item = items.get(row["id"])
        if item is None or item.instruction != row["instruction"]:
            what = f"item {row['id']!r} does not stand in today's held-out file as it was asked"
            raise RunbookError(what)
        found.append({**row, **score_text(item, row["raw"], row["tokens"])})
    return found


def _rate(past: _Past, name: str, rows: Sequence[_Row]) -> Metric:
    """The share of successes, in place of the one that is stored."""
    right = sum(row["success"] for row in rows)
    stored = next((m for m in past.finished.metrics if m.name == name), Metric(name, None))
    return replace(stored, value=right / len(rows), n=len(rows), successes=right)


def _reading(
    past: _Past,
    measured: Sequence[Metric],
    written: Mapping[str, Sequence[_Row]],
    doubts: Callable[[], Mapping[str, str]],
) -> "Reading":
    """What was measured anew in place of what is stored, with a folder that holds all evidence."""
    from runbook.replay import Reading  # noqa: PLC0415 - start-up stays light

    stored = {metric.name: metric for metric in past.finished.metrics}
    anew = {m.name: _believed(m, stored.get(m.name), doubts) for m in measured}
    metrics = (*anew.values(), *(m for m in stored.values() if m.name not in anew))
    for path, rows in written.items():
        write_jsonl(past.folder / path, rows)
    for path in filter(None, (metric.evidence for metric in metrics)):
        target = past.folder / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(past.root / path)
    return Reading(metrics, past.folder)


def _believed(
    metric: Metric, stored: Metric | None, doubts: Callable[[], Mapping[str, str]]
) -> Metric:
    """The metric, marked where one of its detectors fails its own check or its filter failed it."""
    from phases.certificates import READ_BY  # noqa: PLC0415 - start-up stays light
    from phases.detectors import DETECTORS  # noqa: PLC0415 - start-up stays light

    for name in READ_BY.get(metric.name, ()):
        if name in doubts():
            return replace(metric, instrument=Instrument.BROKEN, note=doubts()[name])
        if name not in DETECTORS and stored and metric.instrument is Instrument.OK:
            metric = replace(metric, instrument=stored.instrument, note=stored.note)
    return metric


def _doubts(probes: Mapping[str, Path]) -> dict[str, str]:
    """Detectors that are today below their bound on their own labelled rows."""
    from phases import certificates, detectors  # noqa: PLC0415 - start-up stays light

    rows = []
    for name, one in detectors.DETECTORS.items():
        rows += detectors.read(one, detectors.load_detector_probes(one, probes.get(name)))
    return {
        name: f"the {name} detector is below its bound; 'runbook gate calibrate' shows it"
        for name, entry in certificates.certify_detectors(rows, {}).items()
        if entry["within_bounds"] is not True
    }


def _rows(past: _Past, finished: "StepFinished", name: str) -> tuple[str, list[_Row]]:
    """An artifact's path, and its rows. Raises CorruptError: they are not those committed."""
    artifact = next((a for a in finished.artifacts if a.name == name), None)
    if artifact is None:
        raise RunbookError(f"it has no artifact {name!r}, so it cannot be measured again")
    path = past.root / artifact.path
    rows = read_jsonl(path)
    if sha256_file(path) != artifact.sha256:
        raise CorruptError(CHANGED, where=artifact.path)
    return artifact.path, rows
