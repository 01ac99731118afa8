"""Paired outcomes on disk to the numbers that the evaluation's gate judges. No torch.

Reads one JSONL row an item: ``id, kind, base, tuned`` and, for the split, ``base_format,
base_content, tuned_format, tuned_content``. Refuses pairs that are mixed up or incomplete.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from gates.evidence import UNREADABLE, named, refuse_other_outcomes, rows_of, unread
from gates.stats import PairedComparison, paired_comparison
from runbook.contract import Instrument, Json, Metric

PAIRED: Final = "paired_outcomes"
"""The metric whose evidence is the file of pairs."""
DERIVES: Final = (
    "mcnemar_p",
    "exact_p",
    "lift",
    "lift_ci_width",
    "base_ci_width",
    "tuned_ci_width",
    "kinds_worse",
)


def derive(
    metrics: Sequence[Metric], workspace: Path
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The metrics with those of the paired comparison added, and the comparison for the report.

    Where the pairs cannot be read, they are there without a value, which says why. They are worth
    what the scorer of the pairs is worth, so its mark is theirs.
    """
    pairs = named(metrics, PAIRED)
    if pairs is None:
        return tuple(metrics), {}
    try:
        rows = rows_of(pairs, workspace)
        whole = _compare(rows, "base", "tuned")
        for side in ("base", "tuned"):
            refuse_other_outcomes(metrics, side, [row[side] for row in rows])
        split = {
            aspect: _compare(rows, f"base_{aspect}", f"tuned_{aspect}").to_dict()
            for aspect in ("format", "content")
            if all(f"base_{aspect}" in row for row in rows)
        }
    except UNREADABLE as error:
        return (*metrics, *unread(DERIVES, pairs, error)), {"error": str(error)}
    found = _metrics(whole, pairs.evidence)
    if pairs.instrument is not Instrument.OK:
        found = tuple(replace(m, instrument=pairs.instrument, note=pairs.note) for m in found)
    return (*metrics, *found), {"comparison": whole.to_dict(), "split": split}


def _compare(rows: Sequence[dict[str, Json]], base: str, tuned: str) -> PairedComparison:
    names = [str(row["id"]) for row in rows]
    if len(set(names)) != len(names):
        raise ValueError("an item stands twice among the pairs")
    return paired_comparison(
        [row[base] for row in rows],
        [row[tuned] for row in rows],
        [str(row["kind"]) for row in rows],
    )


def _metrics(whole: PairedComparison, evidence: str) -> tuple[Metric, ...]:
    worse = [name for name, kind in whole.by_kind.items() if _is_worse(kind)]
    values = {
        "mcnemar_p": whole.mcnemar_p,
        "exact_p": whole.exact_p,
        "lift": whole.lift,
        "lift_ci_width": whole.lift_ci[1] - whole.lift_ci[0],
        "base_ci_width": whole.base_ci[1] - whole.base_ci[0],
        "tuned_ci_width": whole.tuned_ci[1] - whole.tuned_ci[0],
    }
    return (
        *(Metric(name, value, n=whole.n, evidence=evidence) for name, value in values.items()),
        Metric(
            "kinds_worse",
            float(len(worse)),
            n=len(whole.by_kind),
            evidence=evidence,
            note=", ".join(worse),
        ),
    )


def _is_worse(kind: PairedComparison) -> bool:
    """Worse beyond overlap: the tuned interval lies wholly below the base's."""
    return kind.tuned_ci[1] < kind.base_ci[0]
