"""The rows behind a metric: read, and held against the count that came with it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from runbook.artifacts import read_jsonl
from runbook.contract import Json, Metric
from runbook.errors import RunbookError

UNREADABLE: Final = (
    RunbookError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    OSError,
)
"""What any bytes in the place of the rows may raise on the way to a number."""


def rows_of(source: Metric, workspace: Path) -> list[dict[str, Json]]:
    """The rows of the metric's evidence.

    Raises one of ``UNREADABLE``; ValueError where ``source.n`` is not the number of rows.
    """
    rows = read(source, workspace)
    refuse_other_count(source, len(rows))
    return rows


def read(source: Metric, workspace: Path) -> list[dict[str, Json]]:
    """All rows of the metric's evidence, however many it tells of. Raises as ``rows_of``."""
    if not source.evidence:
        raise ValueError(source.note or "it names no file of rows")
    return read_jsonl(workspace / source.evidence)


def refuse_other_count(source: Metric, found: int) -> None:
    """Raise ValueError where the metric says that it rests on another number."""
    if source.n is not None and source.n != found:
        raise ValueError(f"{source.name} tells of {source.n}, its rows of {found}")


def refuse_other_outcomes(metrics: Sequence[Metric], side: str, outcomes: Sequence[bool]) -> None:
    """Raise ValueError where the side's rate, if it was reported, counts other outcomes."""
    rate = named(metrics, f"{side}_rate")
    if rate is None or rate.successes is None:
        return
    right = sum(outcomes)
    if (rate.successes, rate.n) != (right, len(outcomes)):
        told = f"{rate.successes} of {rate.n} right, the pairs of {right} of {len(outcomes)}"
        raise ValueError(f"{rate.name} tells of {told}")


def unread(names: Iterable[str], source: Metric, error: BaseException) -> tuple[Metric, ...]:
    """These metrics without a value, each saying why."""
    why = " ".join(str(error).split()) or type(error).__name__
    note = f"{source.name} cannot be read: {why}"
    return tuple(Metric(name, None, evidence=source.evidence, note=note) for name in names)


def named(metrics: Sequence[Metric], name: str) -> Metric | None:
    """The metric of this name; of two the first, which the gate refuses anyway."""
    return next((m for m in metrics if m.name == name), None)
