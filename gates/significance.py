"""Paired outcomes on disk to the numbers that the evaluation's gate judges. No torch.

Reads one JSONL row an item: ``id, kind, base, tuned`` and, for the split, ``base_format,
base_content, tuned_format, tuned_content``. Refuses pairs that are mixed up or incomplete.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gates.stats import PairedComparison, paired_comparison
from runbook.artifacts import read_jsonl
from runbook.contract import Json, Metric
from runbook.errors import RunbookError

PAIRED: Final = "paired_outcomes"
"""The metric whose evidence is the file of pairs."""


def derive(
    metrics: Sequence[Metric], workspace: Path
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The metrics with those of the paired comparison added, and the comparison for the report.

    Where the pairs cannot be read, nothing is added, so that the criteria find nothing measured.
    """
    pairs = next((m for m in metrics if m.name == PAIRED), None)
    if pairs is None:
        return tuple(metrics), {}
    try:
        rows = read_jsonl(workspace / pairs.evidence)
        whole = _compare(rows, "base", "tuned")
    except (RunbookError, ValueError, KeyError) as error:
        return tuple(metrics), {"error": str(error)}
    split = {
        aspect: _compare(rows, f"base_{aspect}", f"tuned_{aspect}").to_dict()
        for aspect in ("format", "content")
        if all(f"base_{aspect}" in row for row in rows)
    }
    return (*metrics, *_metrics(whole)), {"comparison": whole.to_dict(), "split": split}


def _compare(rows: Sequence[dict[str, Json]], base: str, tuned: str) -> PairedComparison:
    names = [str(row["id"]) for row in rows]
    if len(set(names)) != len(names):
        raise ValueError("an item stands twice among the pairs")
    return paired_comparison(
        [row[base] for row in rows],
        [row[tuned] for row in rows],
        [str(row["kind"]) for row in rows],
    )


def _metrics(whole: PairedComparison) -> tuple[Metric, ...]:
    n = whole.n
    worse = [name for name, kind in whole.by_kind.items() if _is_worse(kind)]
    return (
        Metric("mcnemar_p", whole.mcnemar_p, n=n),
        Metric("exact_p", whole.exact_p, n=n),
        Metric("lift", whole.lift, n=n),
        Metric("lift_ci_width", whole.lift_ci[1] - whole.lift_ci[0], n=n),
        Metric("base_ci_width", whole.base_ci[1] - whole.base_ci[0], n=n),
        Metric("tuned_ci_width", whole.tuned_ci[1] - whole.tuned_ci[0], n=n),
        Metric("kinds_worse", float(len(worse)), n=len(whole.by_kind), note=", ".join(worse)),
    )


def _is_worse(kind: PairedComparison) -> bool:
    """Worse beyond overlap: the tuned interval lies wholly below the base's."""
    return kind.tuned_ci[1] < kind.base_ci[0]
