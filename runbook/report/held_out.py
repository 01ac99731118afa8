"""How often each held-out set was scored: facts of the journal to counts. Pure.

Every scoring is one more look at the examination, so a gain that shows at the third is worth less
than at the first. An attempt of a scoring step counts as soon as it committed a batch, whether or
not it came to its end; resumed after a kill it is still the same scoring, since what is committed
is not scored again. The controls of an attempt belong to its scoring.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from runbook import events as ev
from runbook.contract import Json

SCORERS: Final = frozenset({"phases.baseline:run", "phases.evaluate:run"})
"""Step functions that score a model on the held-out set which their spec names."""


@dataclass(frozen=True)
class Scorings:
    """Of one held-out set."""

    sha256: str
    by_step: Mapping[str, int]
    """Step name -> its attempts that scored."""

    @property
    def total(self) -> int:
        return sum(self.by_step.values())


def count_scorings(known: Iterable[ev.Event]) -> tuple[Scorings, ...]:
    """Every held-out set that was scored, in the order of its first scoring."""
    plan: Mapping[str, Json] = {}
    seen: dict[str, set[tuple[str, int]]] = {}
    for fact in known:
        match fact:
            case ev.SessionStarted() | ev.PlanAccepted():
                plan = fact.plan
            case ev.BatchCommitted():
                sha256 = _scored(plan, fact.step)
                if sha256:
                    seen.setdefault(sha256, set()).add((fact.step, fact.attempt))
    return tuple(
        Scorings(sha256, dict(Counter(step for step, _ in sorted(scorings))))
        for sha256, scorings in seen.items()
    )


def _scored(plan: Mapping[str, Json], step: str) -> str:
    """Hash of the held-out set that a step scores; empty where it scores none."""
    declared = plan.get("steps", {}).get(step, {})
    if declared.get("function") not in SCORERS:
        return ""
    return str(declared.get("params", {}).get("held_out", {}).get("sha256", ""))


def told(scorings: Iterable[Scorings]) -> list[str]:
    """One sentence for each held-out set."""
    return [
        f"The held-out set {one.sha256[:12]} was scored {one.total} "
        f"{'time' if one.total == 1 else 'times'}: "
        + ", ".join(f"{step} {count}" for step, count in sorted(one.by_step.items()))
        for one in scorings
    ]
