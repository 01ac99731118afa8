"""Step, bootstrap: what each declared filter is worth on this model, measured on labelled probes.

The probes' tuning half sets a filter's scale, zero and margin, and which of the declared filters
is used; the other half is never used for that, and from it alone the gate reads how well the one
in use tells good from bad. Rows that a model wrote itself are read as well: reported, not judged.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from phases.engines import Engine, open_engine
from phases.filters import READERS, SCORED, Filter, Parts, keeps, to_document
from phases.linear_probe import Weights, cross_fitted, fit
from phases.probes import GeneratedPair, Probe, ProbeInstruction, ProbePair, load_probes
from phases.prompts import FewShot, load_few_shot
from phases.records import Row, batch, chunks, parse_params
from runbook.artifacts import describe, write_json, write_jsonl
from runbook.contract import Json, Metric, PhaseRequest, PhaseResult

PARAMS: Final = "phases.calibration:CalibrationParams"
METRICS: Final = (
    "filter_readings",
    "instruction_filter_auc",
    "pair_filter_auc",
    "pair_filter_hard_auc",
)
"""All but the first the gate derives from the readings."""
MIN_KEPT: Final = 10
"""A share of fewer rows than these sets no margin."""


class CalibrationParams(BaseModel):
    """The probes, the filters to measure, and how good what is kept must be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    few_shot: str
    probe_instructions: str
    probe_pairs: str
    probe_generated: str | None = None
    """Rows that a model wrote itself, labelled by hand; reported, never judged."""
    instructions: list[Literal["critic", "linear_probe"]] = Field(min_length=1)
    pairs: list[Literal["critic", "likelihood"]] = Field(min_length=1)
    good_share: float = Field(gt=0.5, lt=1)
    """Share of good rows among the kept, on the tuning half, that sets the margin."""

    def check_files(self) -> None:
        """Read the few-shot file and the probes; raises ConfigError for one that is no use."""
        load_few_shot(Path(self.few_shot))
        load_probes(Path(self.probe_instructions), ProbeInstruction)
        load_probes(Path(self.probe_pairs), ProbePair)
        if self.probe_generated:
            load_probes(Path(self.probe_generated), GeneratedPair)


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifacts ``filters`` (those in use, with their cuts) and ``readings`` (rows)."""
    params = parse_params(CalibrationParams, request)
    instructions = load_probes(Path(params.probe_instructions), ProbeInstruction)
    pairs = load_probes(Path(params.probe_pairs), ProbePair)
    written = params.probe_generated
    generated = load_probes(Path(written), GeneratedPair) if written else []
    shots, engine = load_few_shot(Path(params.few_shot)), open_engine(request)
    rows: list[Row] = []
    used: list[Filter] = []
    for kind, names in (("instructions", params.instructions), ("pairs", params.pairs)):
        probes = [*(instructions if kind == "instructions" else pairs), *generated]
        candidates = []
        for name in names:
            shown = shots.labelled_instructions if name == "linear_probe" else []
            items = [*(s.text for s in shown), *(_item(kind, probe) for probe in probes)]
            readings = _read(request, engine, shots, kind, name, items)
            weights, parts = _parts(name, [s.good for s in shown], probes, readings)
            candidates.append(_measure(kind, name, weights, probes, parts, params.good_share))
        best = max(candidates, key=lambda c: c[1])
        used.append(best[0])
        for one, _, measured in candidates:
            rows += [{**row, "in_use": one is best[0]} for row in measured]
    return _finished(request, rows, used, Path(params.few_shot))


def _item(kind: str, probe: Probe) -> Json:
    if isinstance(probe, ProbeInstruction):
        return probe.text
    return probe.instruction if kind == "instructions" else (probe.instruction, probe.response)


def _read(
    request: PhaseRequest,
    engine: Engine,
    shots: FewShot,
    kind: str,
    name: str,
    items: Sequence[Json],
) -> list[Row]:
    """What the filter reads off the model, of each item, in batches of like length."""
    read = READERS[kind][name]
    order = sorted(range(len(items)), key=lambda at: (len(str(items[at])), at))
    groups = chunks([{"at": at} for at in order], int(request.engine.get("batch_size", 32)))
    found: dict[int, Row] = {}
    for number, part in enumerate(groups):

        def make(_seed: int, part: list[Row] = part) -> list[Row]:
            return [*read(engine, shots, [items[row["at"]] for row in part])]

        made = batch(request, f"{kind}/{name}/{number:04d}", make)
        found.update({row["at"]: reading for row, reading in zip(part, made, strict=True)})
        request.channel.progress(stage=f"{kind}: {name}", done=number + 1, total=len(groups))
    return [found[at] for at in range(len(items))]


def _parts(
    name: str, shown: Sequence[bool], probes: Sequence[Probe], readings: Sequence[Row]
) -> tuple[Weights | None, list[Parts]]:
    """The parts of each probe; a linear probe is fitted first.

    It is fitted on the few-shot file's labelled instructions, whose readings come first, and on
    the tuning half. A row of that half is scored by fits that did not know it.
    """
    if name != "linear_probe":
        return None, [*readings]
    states = [reading["state"] for reading in readings]
    own = states[len(shown) :]
    tuning = _tuning(probes)
    known = [*states[: len(shown)], *(own[at] for at in tuning)]
    labels = [*shown, *(probes[at].good for at in tuning)]
    weights = fit(known, labels)
    scores = [weights.score(state) for state in own]
    for at, score in zip(tuning, cross_fitted(known, labels, len(shown)), strict=True):
        scores[at] = score
    return weights, [{"probe": score} for score in scores]


def _tuning(probes: Sequence[Probe]) -> list[int]:
    return [at for at, probe in enumerate(probes) if probe.half == "tune"]


def _measure(  # what was read, and what it was read with
    kind: str,
    name: str,
    weights: Weights | None,
    probes: Sequence[Probe],
    parts: Sequence[Parts],
    good_share: float,
) -> tuple[Filter, float, list[Row]]:
    """The filter with its cut, how well it separates the tuning half, and a row a probe."""
    tuning = _tuning(probes)
    scale = dict.fromkeys(SCORED[name], (0.0, 1.0))
    if len(scale) > 1:
        for part in scale:
            values = [parts[at][part] for at in tuning]
            scale[part] = (fmean(values), pstdev(values) or 1.0)
    blank = Filter(kind, name, scale, zero=0.0, margin=None, weights=weights)
    labelled = [(blank.raw(parts[at]), probes[at].good) for at in tuning]
    zero, separation = find_zero(labelled)
    margin = find_margin([(score - zero, good) for score, good in labelled], good_share)
    one = replace(blank, zero=zero, margin=margin)
    rows = [_row(one, probe, part) for probe, part in zip(probes, parts, strict=True)]
    return one, separation, rows


def _row(one: Filter, probe: Probe, parts: Parts) -> Row:
    """What the gate reads of one probe."""
    critique = one.critique(parts)
    good = probe.good
    if isinstance(probe, GeneratedPair) and one.kind == "instructions":
        good = probe.instruction_good
    return {
        "kind": one.kind,
        "filter": one.name,
        "id": probe.id,
        "half": probe.half,
        "group": probe.group,
        "good": good,
        "score": critique["score"],
        "kept": keeps(critique),
    }


def find_zero(labelled: Sequence[tuple[float, bool]]) -> tuple[float, float]:
    """The cut that separates best, and Youden's J there (Youden 1950).

    ``labelled`` are raw scores with their labels. The cut lies midway between two scores; of
    equals the highest is taken, since what is in doubt is bad.
    """
    scores = sorted({score for score, _ in labelled})
    cuts = [(low + high) / 2 for low, high in pairwise(scores)]
    measured = [(cut, _youden(labelled, cut)) for cut in cuts or scores]
    return max(measured, key=lambda found: (round(found[1], 9), found[0]))


def _youden(labelled: Sequence[tuple[float, bool]], cut: float) -> float:
    good = [score > cut for score, label in labelled if label]
    bad = [score > cut for score, label in labelled if not label]
    return fmean(good) - fmean(bad)


def find_margin(labelled: Sequence[tuple[float, bool]], good_share: float) -> float | None:
    """The smallest margin from which on the kept are good often enough; None where none is.

    ``labelled`` are scores with zero taken off. At least ``MIN_KEPT`` rows must be kept.
    """
    for margin in sorted({0.0, *(score for score, _ in labelled if score > 0)}):
        kept = [label for score, label in labelled if score > 0 and score >= margin]
        if len(kept) < MIN_KEPT:
            return None
        if fmean(kept) >= good_share:
            return margin
    return None


def _finished(
    request: PhaseRequest, rows: Sequence[Row], used: Sequence[Filter], few_shot: Path
) -> PhaseResult:
    filters, readings = request.output / "filters.json", request.output / "readings.jsonl"
    write_json(filters, to_document(used, few_shot))
    write_jsonl(readings, rows)
    evidence = readings.relative_to(request.workspace).as_posix()
    return PhaseResult(
        metrics=(Metric("filter_readings", float(len(rows)), n=len(rows), evidence=evidence),),
        artifacts=(
            describe("filters", filters, request.workspace),
            describe("readings", readings, request.workspace),
        ),
        summary={
            "filters": {
                one.kind: {
                    "in use": one.name,
                    "zero": round(one.zero, 4),
                    "margin": None if one.margin is None else round(one.margin, 4),
                }
                for one in used
            }
        },
        judged_file="calibration.json",
    )
