"""Step, bootstrap: what each instrument is worth, measured on labelled probes, and a certificate.

Filters are measured on this model, detectors on their own rows.

The probes' tuning half sets a filter's scale, zero and margin, and which of the declared filters
is used; the other half is never used for that, and from it alone the gate reads how well the one
in use tells good from bad. Rows that a model wrote itself are read as well: reported, not judged.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Final

from phases.calibration_params import CalibrationParams
from phases.certificates import ARTIFACT, certify_detectors, certify_filter, sign
from phases.detectors import DETECTORS, read
from phases.engines import Engine, open_engine
from phases.filters import READERS, SCORED, Filter, Parts, keeps, to_document
from phases.linear_probe import Weights, cross_fitted, fit
from phases.probes import GeneratedPair, Probe, ProbeInstruction, load_probes
from phases.prompts import FewShot, load_few_shot
from phases.records import Row, batch, chunks, parse_params
from runbook.artifacts import describe, write_json, write_jsonl
from runbook.contract import Json, Metric, PhaseRequest, PhaseResult

PARAMS: Final = "phases.calibration_params:CalibrationParams"
METRICS: Final = (
    "filter_readings",
    "detector_readings",
    "instruction_filter_auc",
    "pair_filter_auc",
    "pair_filter_hard_auc",
    "runaway_sensitivity",
    "runaway_specificity",
    "residue_sensitivity",
    "residue_specificity",
    "truncation_sensitivity",
    "truncation_specificity",
    "near_duplicate_sensitivity",
    "near_duplicate_specificity",
    "leakage_sensitivity",
    "leakage_specificity",
)
"""All but the first two the gate derives from the readings."""
CERTIFIES: Final = (
    "phases.clean",
    "phases.critic",
    "phases.dedup",
    "phases.detectors",
    "phases.filters",
    "phases.generation",
    "phases.leakage",
    "phases.likelihood",
    "phases.linear_probe",
    "phases.prompts",
    "phases.qc",
    "runbook.text",
    "specs/probe/detectors/leakage.jsonl",
    "specs/probe/detectors/near_duplicate.jsonl",
    "specs/probe/detectors/residue.jsonl",
    "specs/probe/detectors/runaway.jsonl",
    "specs/probe/detectors/truncation.jsonl",
)
"""What the certificate is bound to; a change of any makes the step anew, where a person accepts."""
MIN_KEPT: Final = 10
"""A share of fewer rows than these sets no margin."""


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifacts ``filters`` (those in use, with their cuts), ``readings`` (rows),
    ``detector_readings`` (rows) and ``certificate``.
    """
    params = parse_params(CalibrationParams, request)
    instructions, pairs = params.filter_probes()
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
    said = [
        row
        for name, labelled in params.detector_probes().items()
        for row in read(DETECTORS[name], labelled)
    ]
    return _finished(request, params, rows, used, said)


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
    request: PhaseRequest,
    params: CalibrationParams,
    rows: Sequence[Row],
    used: Sequence[Filter],
    said: Sequence[Row],
) -> PhaseResult:
    few_shot = Path(params.few_shot)
    filters, readings = request.output / "filters.json", request.output / "readings.jsonl"
    detectors = request.output / "detector_readings.jsonl"
    certificate = request.output / "certificate.json"
    write_json(filters, to_document(used, few_shot))
    write_jsonl(readings, rows)
    write_jsonl(detectors, said)
    write_json(certificate, _certificate(request, params, rows, used, said))
    files = {
        "filters": filters,
        "readings": readings,
        "detector_readings": detectors,
        ARTIFACT: certificate,
    }
    return PhaseResult(
        metrics=(
            _count("filter_readings", rows, readings, request),
            _count("detector_readings", said, detectors, request),
        ),
        artifacts=tuple(describe(name, path, request.workspace) for name, path in files.items()),
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
        flagged=tuple(row for row in said if row["said"] is not row["label"])[:10],
        judged_file="calibration.json",
    )


def _count(name: str, rows: Sequence[Row], path: Path, request: PhaseRequest) -> Metric:
    evidence = path.relative_to(request.workspace).as_posix()
    return Metric(name, float(len(rows)), n=len(rows), evidence=evidence)


def _certificate(
    request: PhaseRequest,
    params: CalibrationParams,
    rows: Sequence[Row],
    used: Sequence[Filter],
    said: Sequence[Row],
) -> dict[str, Json]:
    files = {
        "instructions": (params.probe_instructions, params.own_instructions),
        "pairs": (params.probe_pairs, params.own_pairs),
    }
    judges = {
        one.kind: certify_filter(
            request,
            one,
            [row for row in rows if row["kind"] == one.kind and row["in_use"]],
            [Path(path) if path else None for path in files[one.kind]],
            Path(params.few_shot),
        )
        for one in used
    }
    return sign({**certify_detectors(said, params.added()), **judges})
