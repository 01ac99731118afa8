"""What was decided at a session's gates, as its journal tells it: each verdict with its grounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from runbook import events as ev
from runbook.codec import decode
from runbook.contract import Gate, Json
from runbook.errors import CorruptError
from runbook.journal import Entry, facts
from runbook.state import SMOKE


@dataclass(frozen=True)
class Decided:
    """One verdict of a session's journal, with all that it rested on."""

    judged: ev.GateJudged
    wall: str
    """UTC, ISO 8601."""
    finished: ev.StepFinished | None
    look_before: ev.StepFinished | None
    """The first look, where this is the verdict on the second."""
    params: Mapping[str, Json]
    """As the look ran with them."""
    document: Mapping[str, Json]
    """The step in the plan that held then; empty where it is not on record."""
    inputs: Mapping[str, ev.StepFinished]
    """The newest end of each step, up to this verdict."""
    override: ev.ReviewDecided | None = None
    """By which a person let it pass."""
    again: bool = False
    """Whether the same look was judged once more, under an accepted change of the plan."""

    @property
    def name(self) -> str:
        """``pilot, attempt 2, look 1``."""
        return f"{self.judged.step}, attempt {self.judged.attempt}, {self.look}"

    @property
    def look(self) -> str:
        """``look 2``, or ``smoke``."""
        return "smoke" if self.judged.look == SMOKE else f"look {self.judged.look}"

    @property
    def verdict(self) -> str:
        """As people read it; thin where a criterion passed on its rate alone."""
        thin = any(c.get("thin") for c in self.judged.criteria)
        return shown_verdict(self.judged.verdict, sentinel=self.judged.sentinel, thin=thin)

    @property
    def recorded_gate(self) -> Gate | None:
        """The gate that it was judged by. Raises CorruptError: it cannot be read."""
        try:
            gate = self.document.get("gate")
            return decode(Gate, gate) if gate else None
        except (TypeError, ValueError) as error:
            raise CorruptError(
                f"the gate on record cannot be read: {error}",
                where=self.name,
                fix="replay it under a runbook: --spec",
            ) from None


def is_final(gate: Gate, now: ev.StepFinished, before: ev.StepFinished | None) -> bool:
    """Whether the sample cannot grow any more.

    A second look that rests on no more than the first, ``before``, decides nothing.
    """
    if gate.extend is None:
        return True
    if before is None:
        return False
    sizes = {metric.name: metric.n or 0 for metric in before.metrics}
    return any((m.n or 0) > sizes.get(m.name, 0) for m in now.metrics)


def shown_verdict(verdict: str, *, sentinel: bool, thin: bool) -> str:
    """``pass (thin)``, ``fail (sentinel)``."""
    mark = " (sentinel)" if sentinel else " (thin)" if thin else ""
    return f"{verdict}{mark}"


def decisions(entries: Sequence[Entry]) -> tuple[Decided, ...]:
    """Every verdict of a session, in order. Raises CorruptError for an event it does not know."""
    found: list[Decided] = []
    plan: Mapping[str, Json] = {}
    params: dict[tuple[str, int, int], Mapping[str, Json]] = {}
    ends: dict[tuple[str, int, int], ev.StepFinished] = {}
    newest: dict[str, ev.StepFinished] = {}
    asked: dict[str, ev.ReviewRequested] = {}
    for entry, fact in zip(entries, facts(entries), strict=True):
        match fact:
            case ev.SessionStarted() | ev.PlanAccepted():
                plan = fact.plan
            case ev.StepStarted():
                params[fact.step, fact.attempt, fact.look] = fact.params
            case ev.StepFinished():
                ends[fact.step, fact.attempt, fact.look] = newest[fact.step] = fact
            case ev.GateJudged():
                key = (fact.step, fact.attempt, fact.look)
                found = [replace(d, again=True) if _key(d) == key else d for d in found]
                found.append(
                    Decided(
                        judged=fact,
                        wall=entry.wall,
                        finished=ends.get(key),
                        look_before=ends.get((fact.step, fact.attempt, fact.look - 1)),
                        params=params.get(key, {}),
                        document=_step_document(plan, fact.step),
                        inputs=dict(newest),
                    )
                )
            case ev.ReviewRequested():
                asked[fact.review_id] = fact
            case ev.ReviewDecided(action="override", person=True) if fact.review_id in asked:
                _mark_override(found, asked[fact.review_id], fact)
    return tuple(found)


def _key(decided: Decided) -> tuple[str, int, int]:
    return decided.judged.step, decided.judged.attempt, decided.judged.look


def _step_document(plan: Json, step: str) -> Mapping[str, Json]:
    steps = plan.get("steps") if isinstance(plan, Mapping) else None
    found = steps.get(step) if isinstance(steps, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _mark_override(
    found: list[Decided], asked: ev.ReviewRequested, decided: ev.ReviewDecided
) -> None:
    """A person's word is on the newest verdict of the attempt that was asked about."""
    for at in reversed(range(len(found))):
        if _key(found[at])[:2] == (asked.step, asked.attempt):
            found[at] = replace(found[at], override=decided)
            return
