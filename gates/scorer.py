"""The evaluation's scorer against labelled responses: sensitivity and specificity. No torch.

Reads one JSONL row a labelled response: ``id, kind, length, success`` (the label) and ``scored``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from gates.evidence import UNREADABLE, named, rows_of, unread
from gates.stats import wilson, wilson_bound
from runbook.contract import Json, Metric

SCORED: Final = "scored_responses"
"""The metric whose evidence is the file of readings."""
SENSITIVITY: Final = "scorer_sensitivity"
SPECIFICITY: Final = "scorer_specificity"
DERIVES: Final = (SENSITIVITY, SPECIFICITY)

Row = dict[str, Json]


def derive(
    metrics: Sequence[Metric], workspace: Path
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The metrics with both rates of the scorer added, and a table by label and length.

    Where the rows cannot be read, or there are none, both are there without a value, which says
    why.
    """
    scored = named(metrics, SCORED)
    if scored is None:
        return tuple(metrics), {}
    try:
        rows = _checked(rows_of(scored, workspace))
        table = _table(rows)
    except UNREADABLE as error:
        return (*metrics, *unread(DERIVES, scored, error)), {}
    right = [row["scored"] for row in rows if row["success"]]
    wrong = [not row["scored"] for row in rows if not row["success"]]
    missed = [str(row["id"]) for row in rows if row["scored"] is not row["success"]]
    note = f"it contradicts the labels of {', '.join(missed[:8])}" if missed else ""
    return (
        *metrics,
        _metric(SENSITIVITY, right, "right responses", scored.evidence, note),
        _metric(SPECIFICITY, wrong, "wrong responses", scored.evidence, note),
    ), {"scorer": table}


def _checked(rows: Sequence[Row]) -> Sequence[Row]:
    if not rows:
        raise ValueError("no labelled response to an item of this held-out set was scored")
    if len({row["id"] for row in rows}) != len(rows):
        raise ValueError("a labelled response stands twice among the readings")
    for row in rows:
        if not isinstance(row["success"], bool) or not isinstance(row["scored"], bool):
            raise ValueError(f"the reading of {row['id']!r} is neither true nor false")  # noqa: TRY004 - one class per remedy
    return rows


def _metric(name: str, hits: Sequence[bool], denominator: str, evidence: str, note: str) -> Metric:
    n, right = len(hits), sum(hits)
    return Metric(
        name,
        right / n if n else None,
        n=n,
        successes=right,
        denominator=denominator,
        evidence=evidence,
        note=note,
        bound=wilson_bound(right, n, side="lower") if n else None,
    )


def _table(rows: Sequence[Row]) -> list[Mapping[str, Json]]:
    """How many the scorer read as labelled, by kind and by length, with Wilson's interval."""
    cells: list[tuple[str, str]] = sorted(
        {(name, str(row[name])) for row in rows for name in ("kind", "length")}
    )
    found: list[Mapping[str, Json]] = []
    for label in (True, False):
        for name, value in cells:
            part = [r for r in rows if r["success"] is label and str(r[name]) == value]
            hits = sum(r["scored"] is label for r in part)
            interval = list(wilson(hits, len(part)))
            found.append(
                {"label": label, name: value, "n": len(part), "hits": hits, "interval": interval}
            )
    return found
