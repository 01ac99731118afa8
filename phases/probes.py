"""Labelled probes: what a filter is measured on. One JSON object a line; see ``specs/probe/``.

Half of the rows are for tuning, the other half is never used for that.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phases.prompts import Text
from runbook.errors import ConfigError

MIN_OF_A_LABEL: Final = 10
"""Rows of each label that each half must hold."""


class Probe(BaseModel):
    """What every labelled row has."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: str = Field(min_length=1)
    good: bool


Row = TypeVar("Row", bound=Probe)


class ProbeInstruction(Probe):
    """A labelled instruction."""

    text: Text
    half: Literal["tune", "test"]
    difficulty: Literal["easy", "hard"]
    why: str
    """Why it is hard, or bad."""

    @property
    def group(self) -> str:
        return self.difficulty


class ProbePair(Probe):
    """A labelled pair; a bad one names what is wrong with it."""

    instruction: Text
    response: Text
    half: Literal["tune", "test"]
    negative: Literal[
        "", "mismatched", "cut_off", "rambling", "empty_of_sense", "wrong_answer", "wrong_format"
    ]

    @property
    def group(self) -> str:
        if self.good:
            return "good"
        return "hard" if self.negative.startswith("wrong") else "easy"


class GeneratedPair(Probe):
    """A pair that a model wrote; ``good`` is of both together."""

    instruction: Text
    response: Text
    instruction_good: bool


def load_probes(path: Path, model: type[Row]) -> list[Row]:
    """The rows of a probe file.

    Raises:
        ConfigError: names the line and what is wrong with it; or there are too few rows of one
            label.
    """
    found: list[Row] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the probe file cannot be read: {error}", where=str(path), fix="give a JSONL file"
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            found.append(model.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the row"
            raise ConfigError(
                f"{place}: {first['msg']}",
                where=f"{path}:{number}",
                fix=f"give it the fields {', '.join(model.model_fields)}; see specs/probe/",
            ) from error
    _check(path, found)
    return found


def _check(path: Path, probes: Sequence[Probe]) -> None:
    names = [probe.id for probe in probes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"the id {twice!r} stands twice", where=str(path), fix="rename one")
    written = any(isinstance(probe, GeneratedPair) for probe in probes)
    for half in ("all",) if written else ("tune", "test"):
        for label in (True, False):
            there = [p for p in probes if p.good is label and getattr(p, "half", "all") == half]
            if len(there) < MIN_OF_A_LABEL:
                rows = f"{'good' if label else 'bad'} rows" + (
                    "" if written else f" of half {half}"
                )
                raise ConfigError(
                    f"{len(there)} {rows}, and fewer than {MIN_OF_A_LABEL} show nothing",
                    where=str(path),
                    fix="label more rows; about 50 of each label and half make a usable interval",
                )
