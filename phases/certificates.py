"""Certificates: what an instrument was worth when it was calibrated, and whether that still holds.

The calibration writes one, the contamination step one of its sentinels, the baseline one of the
scorer; a step that measures with the same instruments reads it and marks its metrics. It holds for
the code that was calibrated; of a detector, for its shipped probes; of a filter, for its cut, the
model and the few-shot file; of the scorer, for the held-out file. A filter's probes, the labelled
responses and a user's own rows are on record only: later steps are not given them. What does not
hold makes a gate invalid; it never fails the data.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Final, get_args

from phases import verifiers
from phases.code_hash import code_hash
from phases.detectors import ALL, SENTINELS
from phases.filters import READERS, Filter, keeps
from phases.leakage import OVERLAPS
from phases.linear_probe import Weights
from phases.records import Row
from phases.scoring import score_text
from phases.variants import variant_readings
from runbook.artifacts import canonical_json, sha256_bytes, sha256_file
from runbook.contract import Instrument, Json, Metric, PhaseRequest

ARTIFACT: Final = "certificate"
SCORER: Final = "scorer"
READ_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "runaway_rate": ("runaway",),
    "delimiter_left": ("residue",),
    "token_limit_rate": ("truncation",),
    "instruction_acceptance": ("instructions",),
    "pair_acceptance": ("pairs",),
    "distinct_near": ("near_duplicate",),
    "distinct_near_rate": ("near_duplicate",),
    "largest_repeat": ("near_duplicate",),
    **dict.fromkeys(OVERLAPS, ("leakage",)),
    "completions_right": ("completion",),
    "assistant_like": ("assistant",),
    "fed_markup": ("chat_markup",),
    **dict.fromkeys(
        ("paired_outcomes", "tuned_rate", "aa_flips", "damaged_rate", "variant_readings"),
        (SCORER,),
    ),
}
"""For a metric, the instruments that it was read with."""
_CONFIDENCE: Final = 0.95
_REDO: Final = (
    "bring back what was calibrated, or measure what is there now: 'runbook plan' shows what "
    "--accept-changes makes again"
)


def certify_detectors(rows: Sequence[Row], added: Mapping[str, str]) -> dict[str, Json]:
    """An entry for each detector whose readings are given.

    It is within its bounds where all rows together clear them, and the shipped ones alone.

    Args:
        rows: of all detectors, as ``detectors.read`` gives them.
        added: name -> path of the user's own rows, '' where there are none.
    """
    found = {}
    for name in dict.fromkeys(str(row["instrument"]) for row in rows):
        one = ALL[name]
        test = [r for r in rows if r["instrument"] == name and r["half"] == "test"]
        figures, shipped = agreement(test), agreement([r for r in test if not r.get("own")])
        within = all(
            measured[side]["bound"] >= at_least
            for measured in (figures, shipped)
            for side, at_least in (
                ("sensitivity", one.sensitivity),
                ("specificity", one.specificity),
            )
        )
        found[name] = {
            **_detector_identity(name),
            "added_probes_sha256": sha256_file(Path(added[name])) if added.get(name) else "",
            **figures,
            **({"shipped": shipped} if shipped["n"] < figures["n"] else {}),
            "at_least": {"sensitivity": one.sensitivity, "specificity": one.specificity},
            "within_bounds": within,
        }
    return found


def certify_filter(
    request: PhaseRequest,
    one: Filter,
    rows: Sequence[Row],
    probes: Sequence[Path | None],
    few_shot: Path,
) -> dict[str, Json]:
    """The entry of a filter in use.

    Its bound is the calibration gate's; below that it holds only where a person said so. What is
    here refused is a filter without a cut, and one that is no better than chance. ``probes`` are
    the declared file and a user's own, if there is one.
    """
    declared, own = probes
    test = [
        {"label": r["good"] is True, "said": r["kept"] is True, "score": r["score"]}
        for r in rows
        if r["half"] == "test"
    ]
    area = _area(test)
    return {
        **filter_identity(request, one.kind, one.name, few_shot),
        "cut_sha256": sha256_bytes(canonical_json(asdict(one)).encode()),
        "probes_sha256": sha256_file(declared) if declared else "",
        "added_probes_sha256": sha256_file(own) if own else "",
        **agreement(test),
        "auc": area,
        "within_bounds": one.margin is not None and area is not None and area > 0.5,
    }


def certify_scorer(
    held_out: Path, files: Mapping[str, Sequence[Row]], probes: Sequence[Path | None]
) -> dict[str, Json]:
    """The entry of the scorer, by its readings of labelled responses and of known answers.

    Its bounds are the baseline gate's; below those it holds only where a person said so. What is
    here refused is one that is no better than chance.

    Args:
        held_out: the items that it scores by.
        files: the rows ``scored``, ``references`` and ``shuffled`` of the baseline.
        probes: the declared file of labelled responses and a user's own, if there are any.
    """
    declared, own = probes
    figures = agreement(
        [{"label": row["success"], "said": row["scored"]} for row in files["scored"]]
    )
    references = _rate(sum(r["scored"] for r in files["references"]), len(files["references"]))
    dealt = _rate(sum(not r["scored"] for r in files["shuffled"]), len(files["shuffled"]))
    return {
        **scorer_identity(held_out),
        "probes_sha256": sha256_file(declared) if declared else "",
        "added_probes_sha256": sha256_file(own) if own else "",
        **figures,
        "references_passing": references,
        "shuffled_references_failing": dealt,
        "within_bounds": references["n"] > 0
        and _beats_chance(references, dealt)
        and _beats_chance(figures["sensitivity"], figures["specificity"]),
    }


def _beats_chance(yes: Mapping[str, Json], no: Mapping[str, Json]) -> bool:
    """Whether right ones are told from wrong ones at all; nothing is said of one side alone."""
    if not yes["n"] or not no["n"]:
        return True
    return bool(yes["successes"] / yes["n"] + no["successes"] / no["n"] > 1)


def agreement(rows: Sequence[Row]) -> dict[str, Json]:
    """How far what was said agrees with the labels.

    Sensitivity and specificity with Wilson's two-sided 95 % interval and one-sided lower bound, and
    Cohen's kappa (1960).
    """
    yes = [row["said"] for row in rows if row["label"]]
    no = [not row["said"] for row in rows if not row["label"]]
    return {
        "n": len(rows),
        "sensitivity": _rate(sum(yes), len(yes)),
        "specificity": _rate(sum(no), len(no)),
        "kappa": _kappa(rows),
    }


def _rate(hits: int, n: int) -> dict[str, Json]:
    """Nothing measured has a bound of 0: it is within no bounds."""
    from scipy.stats import binomtest  # noqa: PLC0415 - slow, and few steps need it

    if n == 0:
        return {"successes": 0, "n": 0, "interval": [0.0, 1.0], "bound": 0.0}
    both = binomtest(hits, n).proportion_ci(_CONFIDENCE, method="wilson")
    one = binomtest(hits, n, alternative="greater").proportion_ci(_CONFIDENCE, method="wilson")
    return {
        "successes": hits,
        "n": n,
        "interval": [float(both.low), float(both.high)],
        "bound": float(one.low),
    }


def _kappa(rows: Sequence[Row]) -> float | None:
    """None where both give one and the same answer to all, so that chance alone agrees."""
    if not rows:
        return None
    n = len(rows)
    agreed = sum(row["said"] == row["label"] for row in rows) / n
    said, label = sum(r["said"] for r in rows) / n, sum(r["label"] for r in rows) / n
    chance = said * label + (1 - said) * (1 - label)
    return (agreed - chance) / (1 - chance) if chance < 1 else None


def _area(rows: Sequence[Row]) -> float | None:
    from scipy.stats import mannwhitneyu  # noqa: PLC0415 - slow, and few steps need it

    good = [row["score"] for row in rows if row["label"]]
    bad = [row["score"] for row in rows if not row["label"]]
    if not good or not bad:
        return None
    return float(mannwhitneyu(good, bad).statistic) / (len(good) * len(bad))


def _detector_identity(name: str) -> dict[str, Json]:
    one = ALL[name]
    return {
        "kind": "detector",
        "code_sha256": code_hash(one.says),
        "probes_sha256": sha256_file(one.shipped),
    }


def filter_identity(request: PhaseRequest, kind: str, name: str, few_shot: Path) -> dict[str, Json]:
    """What a filter's readings hang on: its code, the examples it is shown, and the model."""
    base = request.inputs.get("prepare_model", {}).get("base_model")
    declared = {field: request.model.get(field) for field in ("name", "prefix", "quantization")}
    return {
        "kind": "filter",
        "filter": name,
        "code_sha256": code_hash(
            READERS[kind][name], Filter.parts, Filter.raw, Filter.critique, Weights.score, keeps
        ),
        "few_shot_sha256": sha256_file(few_shot),
        "model": {
            **declared,
            "engine": request.engine.get("name"),
            "snapshot_sha256": base.sha256 if base else "",
        },
    }


def scorer_identity(held_out: Path) -> dict[str, Json]:
    """What an outcome hangs on: the scorer's code, each check's, and the items."""
    return {
        "kind": SCORER,
        "code_sha256": code_hash(*scorer_parts()),
        "held_out_sha256": sha256_file(held_out),
    }


def scorer_parts() -> tuple[Callable[..., object], ...]:
    """All code by which a raw text becomes an outcome, as scored and as the variants read it.

    The checks are named, since ``score`` finds them by the item alone.
    """
    checks = get_args(get_args(verifiers.Check)[0])
    held = (score_text, variant_readings, verifiers.score, verifiers.moved)
    return (*held, verifiers.HeldOutItem, *checks)


def sign(instruments: Mapping[str, Json]) -> dict[str, Json]:
    """The document, with a hash over what it says."""
    body = {"certificate": 1, "instruments": dict(instruments)}
    return {**body, "sha256": sha256_bytes(canonical_json(body).encode())}


def certified(
    request: PhaseRequest, metrics: Sequence[Metric], own: Mapping[str, Json] | None = None
) -> tuple[Metric, ...]:
    """The metrics, each marked by the state of the instruments that it was read with.

    One that is marked already stays as it is.

    Args:
        request: the certificates are among its inputs.
        metrics: those that no instrument reads stay as they are.
        own: entries that the step itself has just made, in place of the inputs'.
    """
    sources = {
        step: (own, "") if own is not None else _entries(request, step)
        for step in dict.fromkeys(map(_certifier, chain.from_iterable(READ_BY.values())))
    }
    found = []
    for metric in metrics:
        names = READ_BY.get(metric.name, ())
        states = [_state(request, name, *sources[_certifier(name)]) for name in names]
        wrong = next((s for s in states if s[0] is not Instrument.OK), None)
        if wrong and metric.instrument is Instrument.OK:
            found.append(replace(metric, instrument=wrong[0], note=wrong[1]))
        else:
            found.append(metric)
    return tuple(found)


def _certifier(name: str) -> str:
    """The step that certifies an instrument."""
    if name == SCORER:
        return "baseline"
    return "contamination" if name in SENTINELS else "calibration"


def _entries(request: PhaseRequest, step: str) -> tuple[Mapping[str, Json], str]:
    """What a step certified; where nothing can be read, why."""
    artifact = request.inputs.get(step, {}).get(ARTIFACT)
    if artifact is None:
        what = "no certificate among the step's inputs"
        return {}, f"{what}: put a step '{step}' before it, which writes one, and name it in inputs"
    path = request.workspace / artifact.path
    try:
        document = json.loads(path.read_text("utf-8"))
        entries = {name: dict(entry) for name, entry in document["instruments"].items()}
        sound = document == sign(entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, f"{artifact.path} cannot be read as a certificate; {_REDO}"
    return (entries, "") if sound else ({}, f"{artifact.path} was changed; {_REDO}")


def _state(
    request: PhaseRequest, name: str, entries: Mapping[str, Json], missing: str
) -> tuple[Instrument, str]:
    """Whether an instrument may be believed now, and if not, what to do."""
    if missing:
        return Instrument.UNCALIBRATED, f"{name}: {missing}"
    entry = entries.get(name)
    if entry is None:
        return Instrument.UNCALIBRATED, f"{name}: the certificate does not name it; {_REDO}"
    changed = [
        field
        for field, value in _identity_now(request, name, entry).items()
        if entry.get(field) != value
    ]
    if changed:
        told = ", ".join(_WORDS.get(field, field) for field in changed)
        return (
            Instrument.UNCALIBRATED,
            f"{name}: the certificate is stale: {told} changed since; {_REDO}",
        )
    if entry.get("within_bounds") is not True:
        return Instrument.BROKEN, f"{name}: below its bound: {_told(entry)}"
    return Instrument.OK, ""


_WORDS: Final = {
    "code_sha256": "its code",
    "probes_sha256": "its probes",
    "few_shot_sha256": "the few-shot file",
    "held_out_sha256": "the held-out file",
    "model": "the model",
    "cut_sha256": "its cut",
    "at_least": "its bounds",
}


def _identity_now(request: PhaseRequest, name: str, entry: Mapping[str, Json]) -> dict[str, Json]:
    if name in ALL:
        one = ALL[name]
        bounds = {"sensitivity": one.sensitivity, "specificity": one.specificity}
        return {**_detector_identity(name), "at_least": bounds}
    if name == SCORER:
        return scorer_identity(request.workspace / str(request.params["held_out"]))
    if entry.get("filter") not in READERS[name]:
        return {"filter": ""}
    few_shot = Path(str(request.params["few_shot"]))
    now = filter_identity(request, name, entry["filter"], few_shot)
    return {**now, "cut_sha256": _cut_now(request, name)}


def _cut_now(request: PhaseRequest, kind: str) -> str:
    """Of the filter that the step judges with; '' where there is none to be read."""
    artifact = request.inputs["calibration"].get("filters")
    try:
        text = (request.workspace / artifact.path).read_text("utf-8") if artifact else ""
        row = json.loads(text)["filters"][kind]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return sha256_bytes(canonical_json(row).encode())


def _told(entry: Mapping[str, Json]) -> str:
    told = []
    for side in ("sensitivity", "specificity"):
        rate, at_least = entry[side], entry.get("at_least", {}).get(side)
        wanted = f", its bound {rate['bound']:.2f} where {at_least} is declared" if at_least else ""
        told.append(f"{side} {rate['successes']} of {rate['n']}{wanted}")
        alone = entry.get("shipped", {}).get(side)
        told += (
            [f"of the shipped {alone['successes']} of {alone['n']}, {alone['bound']:.2f}"]
            if alone
            else []
        )
    if entry.get("kind") == SCORER:
        known = ("references_passing", "shuffled_references_failing")
        told += [f"{side} {entry[side]['successes']} of {entry[side]['n']}" for side in known]
        return f"{'; '.join(told)}; see the baseline's gate, and mend the scorer"
    return f"{'; '.join(told)}; see 'runbook gate calibrate', and mend the detector"
