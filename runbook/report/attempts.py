"""What each attempt of a step ran with, read and was judged, from the facts about the step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from runbook import events as ev
from runbook.contract import Json
from runbook.params import all_params
from runbook.report.criteria import criterion_view
from runbook.report.session import AttemptView, Change
from runbook.state import SMOKE

T = TypeVar("T")


def attempts_of(mine: Sequence[ev.Event]) -> tuple[AttemptView, ...]:
    """The attempts that facts about one step tell of, the newest last."""
    found: list[AttemptView] = []
    for number in dict.fromkeys(s.attempt for s in _all(mine, ev.StepStarted)):
        facts = [f for f in mine if getattr(f, "attempt", None) == number]
        full = next((a.params for a in reversed(found) if not a.smoke), None)
        found.append(_attempt(number, facts, full))
    return tuple(found)


def _attempt(number: int, facts: list[ev.Event], before: Mapping[str, Json] | None) -> AttemptView:
    started = _all(facts, ev.StepStarted)[0]
    params = started.params
    finished = _all(facts, ev.StepFinished)
    judged = _all(facts, ev.GateJudged)
    extended = _all(facts, ev.SampleExtended)
    batches = _all(facts, ev.BatchCommitted)
    metrics = finished[-1].metrics if finished else ()
    verdict = judged[-1] if judged else None
    return AttemptView(
        number=number,
        params=params,
        changes=_changes(before, params) if before is not None else (),
        extension=extended[-1].params if extended else {},
        smoke=started.look == SMOKE,
        finished=bool(finished),
        verdict=verdict.verdict if verdict else "",
        sentinel=bool(verdict and verdict.sentinel),
        criteria=tuple(criterion_view(c, metrics) for c in verdict.criteria) if verdict else (),
        reasons=verdict.reasons if verdict else (),
        details=verdict.details if verdict else {},
        metrics=metrics,
        errors=tuple(_all(facts, ev.StepFailed)),
        batches=len(batches),
        records=sum(b.records for b in batches),
        last_batch=batches[-1].key if batches else "",
    )


def _changes(before: Mapping[str, Json], after: Mapping[str, Json]) -> tuple[Change, ...]:
    old, new = dict(all_params(dict(before))), dict(all_params(dict(after)))
    return tuple(
        Change(name, old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    )


def _all(known: Iterable[ev.Event], kind: type[T]) -> list[T]:
    return [fact for fact in known if isinstance(fact, kind)]
