"""The detectors that gates believe, each with its labelled probes and its declared bounds.

A detector is pure: it reads a row's text and says yes or no. A bound is what the lower 95 % bound
of its rate on the test half must reach; it was set by what the detectors shipped here reached on
rows that no detector was mended by, rounded down. So it tells one that got worse, or lies, and does
not claim that a detector is good: read its figures.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from phases import chat_signs, clean, dedup, generation, leakage, qc
from phases.jsonl import parse_row, read_lines
from phases.records import Row
from runbook.errors import ConfigError
from runbook.text import fold

SHIPPED: Final = Path(__file__).resolve().parents[1] / "specs" / "probe" / "detectors"
MIN_OF_A_LABEL: Final = 10
"""Rows of each label that the test half must hold."""
NEAR: Final = 0.8
"""The bound from which on the shipped specs call two instructions near-duplicates."""


class DetectorProbe(BaseModel):
    """What every labelled row has; the texts are a subclass's."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: str = Field(min_length=1, max_length=200)
    label: bool
    """What a person says: yes, it is what the detector looks for."""
    difficulty: Literal["easy", "hard"] = "hard"
    half: Literal["tune", "test"] = "test"
    """Rows by which a detector was mended are for tuning and judge nothing."""
    why: str = ""


class RawProbe(DetectorProbe):
    raw: str


class ResponseProbe(DetectorProbe):
    response: str


class NearProbe(DetectorProbe):
    earlier: str
    instruction: str


class LeakProbe(DetectorProbe):
    instruction: str
    response: str
    held_out: str


class ContinuationProbe(DetectorProbe):
    prompt: str
    allowed: str
    """Words of which one must be said, apart by spaces."""
    text: str


class ReplyProbe(DetectorProbe):
    prompt: str
    text: str


class FedProbe(DetectorProbe):
    fed: str


@dataclass(frozen=True)
class Detector:
    """One detector, and what it is held to."""

    name: str
    probe: type[DetectorProbe]
    says: Callable[[Row], bool]
    question: str
    """Asked of a person who labels a row."""
    sensitivity: float
    """Lower bound, at least; of rows that a person says yes to, how many it finds."""
    specificity: float
    """Lower bound, at least; of rows that a person says no to, how many it lets be."""

    @property
    def shipped(self) -> Path:
        return SHIPPED / f"{self.name}.jsonl"

    @property
    def fields(self) -> tuple[str, ...]:
        """The texts of a row."""
        return tuple(name for name in self.probe.model_fields if name not in _COMMON)


_COMMON: Final = tuple(DetectorProbe.model_fields)


def _runaway(row: Row) -> bool:
    """As generation reads it of each raw text."""
    return bool(generation.read_raw(row["raw"])["runaway"])


def _residue(row: Row) -> bool:
    return qc.left_over(row["response"])


def _truncation(row: Row) -> bool:
    return clean.is_cut_off(row["response"])


def _near_duplicate(row: Row) -> bool:
    return dedup.leaders([row["earlier"], row["instruction"]], NEAR) == [0, 0]


def _leakage(row: Row) -> bool:
    """By any of the readings that the merge and the training take of a row."""
    return leakage.leaks(row, row["held_out"], NEAR)


def _completion(row: Row) -> bool:
    return chat_signs.is_right(row["text"], row["allowed"].split())


def _assistant(row: Row) -> bool:
    return chat_signs.is_assistant(row["text"])


def _chat_markup(row: Row) -> bool:
    return chat_signs.holds_markup(row["fed"])


DETECTORS: Final[Mapping[str, Detector]] = {
    one.name: one
    for one in (
        Detector(
            "runaway",
            RawProbe,
            _runaway,
            "Is it no answer, because it opens a new prompt or turn, or goes round in circles?",
            sensitivity=0.60,
            specificity=0.70,
        ),
        Detector(
            "residue",
            ResponseProbe,
            _residue,
            "Is a piece of a stop marker or a special token left in it?",
            sensitivity=0.80,
            specificity=0.80,
        ),
        Detector(
            "truncation",
            ResponseProbe,
            _truncation,
            "Does it break off before it is complete?",
            sensitivity=0.55,
            specificity=0.75,
        ),
        Detector(
            "near_duplicate",
            NearProbe,
            _near_duplicate,
            "Do the two ask the same, so that one of them adds nothing?",
            sensitivity=0.40,
            specificity=0.50,
        ),
        Detector(
            "leakage",
            LeakProbe,
            _leakage,
            "Does the row give the held-out item away?",
            sensitivity=0.60,
            specificity=0.75,
        ),
    )
}
"""Of data; the calibration measures them."""
SENTINELS: Final[Mapping[str, Detector]] = {
    one.name: one
    for one in (
        Detector(
            "completion",
            ContinuationProbe,
            _completion,
            "Is it a right way to go on, however long?",
            sensitivity=0.80,
            specificity=0.65,
        ),
        Detector(
            "assistant",
            ReplyProbe,
            _assistant,
            "Is it a chat assistant who speaks, or is a turn of a chat named in it?",
            sensitivity=0.80,
            specificity=0.75,
        ),
        Detector(
            "chat_markup",
            FedProbe,
            _chat_markup,
            "Does it hold a marker of a chat's turns, or another special token, as a whole?",
            sensitivity=0.80,
            specificity=0.80,
        ),
    )
}
"""Of what a base model says and is fed; the contamination step measures them itself."""
ALL: Final[Mapping[str, Detector]] = {**DETECTORS, **SENTINELS}


def load_detector_probes(detector: Detector, added: Path | None = None) -> list[DetectorProbe]:
    """The shipped rows and a user's own.

    Raises:
        ConfigError: names the line and what is wrong with it; or an id stands twice, a user's row
            says what another one says, or the test half has too few rows of one label.
    """
    rows: dict[str, DetectorProbe] = {}
    said: dict[tuple[str, ...], str] = {}
    for path in (detector.shipped, *([added] if added else [])):
        for where, row in read_probes(path, detector.probe):
            if row.id in rows:
                what = f"the id {row.id!a} stands twice"
                raise ConfigError(what, where=where, fix="rename one; shipped ids count too")
            rows[row.id] = row
            texts = tuple(_as_read(getattr(row, field)) for field in detector.fields)
            if texts in said and path == added:
                what = (
                    f"the row {row.id!a} says what {said[texts]!a} says: copies narrow the interval"
                )
                raise ConfigError(
                    what,
                    where=where,
                    fix="take it out; case and spacing make no other row, and shipped rows count",
                )
            said.setdefault(texts, row.id)
    found = list(rows.values())
    counts = Counter(row.label for row in found if row.half == "test")
    for label in (True, False):
        if counts[label] < MIN_OF_A_LABEL:
            raise ConfigError(
                f"{counts[label]} rows of half test are labelled {str(label).lower()}; "
                f"fewer than {MIN_OF_A_LABEL} show nothing",
                where=str(detector.shipped),
                fix="restore the shipped file, or label more rows",
            )
    return found


def _as_read(text: str) -> str:
    """Signs stay: by one of them a marker, or a cut, is told from what is none."""
    return " ".join(fold(text).casefold().split())


def read_probes(path: Path, model: type[DetectorProbe]) -> list[tuple[str, DetectorProbe]]:
    """Each row of one file, with its place. Raises ConfigError."""
    found = []
    for number, line in read_lines(path):
        try:
            found.append((f"{path}:{number}", parse_row(model, line)))
        except ValueError as error:
            raise ConfigError(
                str(error),
                where=f"{path}:{number}",
                fix=f"its fields are {', '.join(model.model_fields)}; see specs/probe/detectors",
            ) from error
    return found


def read(detector: Detector, probes: Sequence[DetectorProbe]) -> list[Row]:
    """What the detector says of each probe, beside what a person said; ``own``: not shipped."""
    shipped = {row.id for _, row in read_probes(detector.shipped, detector.probe)}
    return [
        {
            "instrument": detector.name,
            "id": probe.id,
            "half": probe.half,
            "difficulty": probe.difficulty,
            "label": probe.label,
            "said": bool(detector.says(probe.model_dump())),
            "own": probe.id not in shipped,
        }
        for probe in probes
    ]
