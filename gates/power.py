"""Whether the held-out items can show the lift that training is for, before it is paid. No torch.

From the base's outcomes and the declared effect and alpha. How many items training gains and how
many it loses is not known before; taken is what follows if outcomes with and without training were
independent, the most discordant pairs that an honest gain has, so the lowest power.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gates.evidence import UNREADABLE, rows_of, unread
from gates.stats import mcnemar_power
from runbook.contract import Json, Metric

EFFECT: Final = "declared_effect"
ALPHA: Final = "declared_alpha"
BASE: Final = "base_rate"
DERIVES: Final = ("power",)


def derive(
    metrics: Sequence[Metric], workspace: Path
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The metrics with ``power`` added, and what it rests on for the report.

    Where it cannot be computed, it is there without a value and says why.
    """
    named = {m.name: m for m in metrics}
    if EFFECT not in named:
        return tuple(metrics), {}
    try:
        effect, alpha = (_value(named[name]) for name in (EFFECT, ALPHA))
        rows = rows_of(named[BASE], workspace)
        right, n = _counted(rows)
        found = power_of(right / n, n, effect, alpha)
    except UNREADABLE as error:
        return (*metrics, *unread(DERIVES, named[EFFECT], error)), {}
    note = f"a lift of {effect:g} at p < {alpha:g} on {n} items, base rate {right / n:.3g}"
    return (*metrics, Metric("power", found, n=n, note=note, evidence=named[BASE].evidence)), {
        "power": {"effect": effect, "alpha": alpha, "n": n, "base_rate": right / n, "power": found}
    }


def power_of(base_rate: float, n: int, effect: float, alpha: float) -> float:
    """The chance that n items show a lift of ``effect``, in [0, 1]; 0 where there is no room."""
    tuned = base_rate + effect
    if tuned > 1:
        return 0.0
    return mcnemar_power(n, (1 - base_rate) * tuned, base_rate * (1 - tuned), alpha)


def _value(metric: Metric) -> float:
    if metric.value is None or not 0 < metric.value < 1:
        raise ValueError(f"{metric.name} is {metric.value}; declare a share between 0 and 1")
    return metric.value


def _counted(rows: Sequence[dict[str, Json]]) -> tuple[int, int]:
    if not rows:
        raise ValueError("there are no outcomes of the base")
    if not all(isinstance(row["success"], bool) for row in rows):
        raise ValueError("an outcome of the base is neither true nor false")
    return sum(row["success"] for row in rows), len(rows)
