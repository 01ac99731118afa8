"""Labelled probes: what a filter is measured on. One JSON object a line; see ``specs/probe/``.

Half of the rows are for tuning, the other half is never used for that. Rows that a model wrote
belong to neither.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import ClassVar, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from phases.jsonl import parse_row, read_lines
from phases.prompts import Text
from runbook.errors import ConfigError

MIN_OF_A_LABEL: Final = 10
"""Rows of each label that each half must hold."""


class _Labelled(BaseModel):
    """What every labelled row has."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: str = Field(min_length=1)
    good: bool


class ProbeInstruction(_Labelled):
    """A labelled instruction."""

    text: Text
    half: Literal["tune", "test"]
    difficulty: Literal["easy", "hard"]
    why: str
    """Why it is hard, or bad."""

    @property
    def group(self) -> str:
        return self.difficulty


class ProbePair(_Labelled):
    """A labelled pair; a bad one names what is wrong with it."""

    instruction: Text
    response: Text
    half: Literal["tune", "test"]
    negative: Literal[
        "",
        "mismatched",
        "cut_off",
        "rambling",
        "empty_of_sense",
        "other",
        "wrong_answer",
        "wrong_format",
    ]

    @property
    def group(self) -> str:
        if self.good:
            return "good"
        return "hard" if self.negative.startswith("wrong") else "easy"


class GeneratedPair(_Labelled):
    """A pair that a model wrote; ``good`` is of both together."""

    half: ClassVar[str] = "generated"
    group: ClassVar[str] = ""

    instruction: Text
    response: Text
    instruction_good: bool


Probe = ProbeInstruction | ProbePair | GeneratedPair
Row = TypeVar("Row", ProbeInstruction, ProbePair, GeneratedPair)


def load_probes(path: Path, model: type[Row], added: str | None = None) -> list[Row]:
    """The rows of a probe file, and of a user's own beside it.

    Raises:
        ConfigError: names the line and what is wrong with it; or an id stands twice, or a half
            has too few rows of one label. Generated rows need no number, since they judge nothing.
    """
    found = _rows(path, model)
    if added:
        found += _rows(Path(added), model)
    _refuse_doubles(Path(added) if added else path, found)
    if not issubclass(model, GeneratedPair):
        _check(path, found)
    return found


def _rows(path: Path, model: type[Row]) -> list[Row]:
    found: list[Row] = []
    for number, line in read_lines(path):
        try:
            found.append(parse_row(model, line))
        except ValueError as error:
            raise ConfigError(
                str(error),
                where=f"{path}:{number}",
                fix=f"give it the fields {', '.join(model.model_fields)}; see specs/probe/",
            ) from error
    return found


def _refuse_doubles(path: Path, probes: Sequence[Probe]) -> None:
    for name, times in Counter(probe.id for probe in probes).items():
        if times > 1:
            raise ConfigError(f"the id {name!r} stands twice", where=str(path), fix="rename one")


def _check(path: Path, probes: Sequence[Probe]) -> None:
    counts = Counter((probe.half, probe.good) for probe in probes)
    for half, good in product(("tune", "test"), (True, False)):
        there = counts[half, good]
        if there < MIN_OF_A_LABEL:
            label = "good" if good else "bad"
            raise ConfigError(
                f"{there} {label} rows of half {half}; fewer than {MIN_OF_A_LABEL} show nothing",
                where=str(path),
                fix="label more rows; about 50 of each label and half make a usable interval",
            )
