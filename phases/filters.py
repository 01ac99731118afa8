"""What decides whether a text is kept: a declared filter with the cut that was measured for it.

A filter reads parts off the model and makes one score of them. Zero is where it tells good from
bad best; from its margin on, enough of what it calls good is good. Both come from
``phases.calibration`` and hold for one model and one few-shot file.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from phases import critic, likelihood, linear_probe
from phases.engines import Engine
from phases.linear_probe import Weights
from phases.prompts import FewShot
from runbook.artifacts import sha256_file
from runbook.contract import Json, PhaseRequest
from runbook.errors import ConfigError

Parts = Mapping[str, float]
Reader = Callable[[Engine, FewShot, Sequence[Any]], list[dict[str, Any]]]

READERS: Final[Mapping[str, Mapping[str, Reader]]] = {
    "instructions": {"critic": critic.judge_instructions, "linear_probe": linear_probe.read_states},
    "pairs": {"critic": critic.judge_pairs, "likelihood": likelihood.likelihood},
}
"""For what is judged, the filters by name. Instructions are texts, pairs are tuples of two."""
SCORED: Final[Mapping[str, tuple[str, ...]]] = {
    "critic": ("margin",),
    "linear_probe": ("probe",),
    "likelihood": ("fits", "gain", "ends"),
}
"""The parts that make a filter's score: one as it is, several standardised and averaged."""


@dataclass(frozen=True)
class Filter:
    """A filter and its cut."""

    kind: str
    """instructions or pairs."""
    name: str
    scale: Mapping[str, tuple[float, float]]
    """Mean and standard deviation of each scored part on the tuning half."""
    zero: float
    """The raw score that tells good from bad best on the tuning half."""
    margin: float | None
    """How far above zero a score must be to be confident; None: no cut was good enough."""
    weights: Weights | None = None
    """Of a linear probe."""

    def parts(self, reading: Mapping[str, Any]) -> Parts:
        """What is scored, from what was read off the model."""
        if self.weights is None:
            return reading
        return {"probe": self.weights.score(reading["state"])}

    def raw(self, parts: Parts) -> float:
        """The score before zero is taken off."""
        return fmean((parts[name] - mean) / sd for name, (mean, sd) in self.scale.items())

    def critique(self, parts: Parts) -> dict[str, Json]:
        """A reading turned into what a record says of it; on zero it is bad: when unsure, B."""
        score = self.raw(parts) - self.zero
        found: dict[str, Json] = {
            "by": self.name,
            "score": round(score, 6),
            "is_good": score > 0,
            "confident": self.margin is not None and abs(score) >= self.margin,
            **{name: round(value, 6) for name, value in parts.items()},
        }
        if self.name == "critic":
            found["predicted_label"] = critic.LABELS[0 if score > 0 else 1]
        return found

    def judge(self, engine: Engine, shots: FewShot, items: Sequence[Any]) -> list[dict[str, Json]]:
        """One critique an item, in order."""
        read = READERS[self.kind][self.name]
        return [self.critique(self.parts(reading)) for reading in read(engine, shots, items)]


def keeps(critique: Mapping[str, Json]) -> bool:
    """Good and confident."""
    return bool(critique["is_good"] and critique["confident"])


def to_document(found: Sequence[Filter], few_shot: Path) -> dict[str, Json]:
    """What ``filters.json`` holds."""
    return {
        "few_shot_sha256": sha256_file(few_shot),
        "filters": {one.kind: asdict(one) for one in found},
    }


def load_filters(request: PhaseRequest, few_shot: Path) -> tuple[Filter, Filter]:
    """The calibrated filters of instructions and of pairs.

    Raises:
        ConfigError: the step has no calibration among its inputs, or it was made with another
            few-shot file, or found no cut.
    """
    if "calibration" not in request.inputs:
        raise ConfigError(
            "the step judges with filters and was given no calibration of them",
            where=request.step,
            fix="put a step 'calibration' (phases.calibration:run) before it and name it in inputs",
        )
    path = request.workspace / request.inputs["calibration"]["filters"].path
    document = json.loads(path.read_text("utf-8"))
    if document["few_shot_sha256"] != sha256_file(few_shot):
        raise ConfigError(
            "the filters were calibrated with another few-shot file",
            where=str(few_shot),
            fix="name the same file in the spec of the calibration and in this step's",
        )
    found = {kind: _from_json(row) for kind, row in document["filters"].items()}
    unusable = [kind for kind, one in found.items() if one.margin is None]
    if unusable:
        raise ConfigError(
            f"no cut of the filter of {' and '.join(unusable)} keeps enough good ones",
            where=str(path),
            fix="name another filter in the calibration's spec, or lower its good_share",
        )
    return found["instructions"], found["pairs"]


def _from_json(row: Mapping[str, Json]) -> Filter:
    scale = {name: (float(mean), float(sd)) for name, (mean, sd) in row["scale"].items()}
    fitted = row["weights"]
    weights = Weights(tuple(fitted["slope"]), fitted["offset"]) if fitted else None
    return Filter(row["kind"], row["name"], scale, row["zero"], row["margin"], weights)
