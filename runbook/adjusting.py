"""The declared answer to a failed gate: what the next attempt changes, and from where. Pure.

Rule: the next attempt starts from the best one so far, and no change is made again that an attempt
worse than that one, or a smoke that did not show it to help, had made.

A smoke is a few rows made with the change. Too few for a verdict, they show whether the readings
that the change is for come nearer to their bounds than they were at the best attempt.
"""

from collections.abc import Iterable, Mapping, Sequence

from runbook import events as ev
from runbook.contract import Criterion, Json
from runbook.params import adjusted, find, is_number
from runbook.plan import Adjustment, PlannedStep
from runbook.state import SMOKE, Adjust, Tried

FEWEST = 10
"""Readings, of a criterion that says how many it rests on, from which a smoke shows anything."""
_SCALE_FREE = frozenset({"rate", "statistic"})
"""Kinds whose reading on a few rows is one on many, but for chance."""


def next_adjustment(
    step: PlannedStep, attempts: Sequence[Tried], params: Sequence[Mapping[str, Json]]
) -> Adjust | None:
    """What to change for the next attempt; None where nothing declared is left to try.

    Args:
        step: whose gate failed.
        attempts: each judged one that failed, each smoke that showed no help; the newest last.
        params: as declared, of each step that would run again.
    """
    now = attempts[-1]
    best = _best(step, attempts)
    worse = [a for a in attempts if _is_smoke(a) or _rank(step, a) > _rank(step, best)]
    failed = {c.get("metric") for c in best.judged.criteria if c.get("verdict") == "fail"}
    wanted = dict(best.changes)
    why = []
    for adjustment in step.adjustments:
        changes = _changed(step, adjustment, wanted, params)
        known = any(_values(a.changes, changes, params) == changes for a in worse)
        if adjustment.when in failed and changes and not known:
            wanted |= changes
            why.append(adjustment.why)
    if not why:
        return None
    names = wanted.keys() | now.changes.keys()
    before, after = _values(now.changes, names, params), _values(wanted, names, params)
    different = {name: after[name] for name in sorted(names) if after[name] != before[name]}
    if best is not now:
        why.append(f"from attempt {best.attempt}, the best so far")
    if not different:
        return None
    smoke = step.gate.smoke if step.gate and step.gate.smoke and _answered(step, best) else {}
    return Adjust(step.name, different, "; ".join(why), smoke)


def after_smoke(step: PlannedStep, tried: Sequence[Tried], smoke: ev.GateJudged) -> Adjust | None:
    """The full rerun that a judged smoke calls for; None where it does not show the change to help.

    Args:
        step: whose change was tried.
        tried: the attempts before.
        smoke: its judgement, none that ``is_unbelievable``.
    """
    best = _best(step, tried)
    told, gained = [], 0.0
    for criterion, before in _answered(step, best):
        now = _result(smoke, criterion)
        value, n = now.get("value"), now.get("n")
        if value is None or (n is not None and n < FEWEST):
            return None
        was, is_now = distance(criterion, before["value"]), distance(criterion, value)
        # What lies within its bound needs no more, unless it failed there, by its confidence.
        gained += was - (max(is_now, 0.0) if was > 0 else is_now)
        told.append(f"{criterion.metric} {before['value']:.3g} -> {value:.3g}")
    if not gained > 0:
        return None
    why = f"on a few rows, against attempt {best.attempt}: {', '.join(told)}"
    return Adjust(step.name, {}, why)


def is_unbelievable(smoke: ev.GateJudged) -> bool:
    """Whether something was read that cannot be believed, which says nothing of a change.

    What could not be read at all, as where no row was kept, is another matter.
    """
    return any(c.get("verdict") == "invalid" and c.get("value") is not None for c in smoke.criteria)


def _answered(step: PlannedStep, best: Tried) -> tuple[tuple[Criterion, Mapping[str, Json]], ...]:
    """The failed criteria that a declared rule is for and that a few rows can be read by."""
    answered = {adjustment.when for adjustment in step.adjustments}
    return tuple(
        (criterion, result)
        for criterion in (step.gate.criteria if step.gate else ())
        if criterion.metric in answered and criterion.kind in _SCALE_FREE
        if (result := _result(best.judged, criterion)).get("verdict") == "fail"
        if result.get("value") is not None
    )


def _result(judged: ev.GateJudged, criterion: Criterion) -> Mapping[str, Json]:
    wanted = (criterion.metric, criterion.kind)
    found = (c for c in judged.criteria if (c.get("metric"), c.get("kind")) == wanted)
    return next(found, {})


def _best(step: PlannedStep, attempts: Sequence[Tried]) -> Tried:
    """Of equals the newest: what changed nothing for the worse is kept."""
    return min((a for a in reversed(attempts) if not _is_smoke(a)), key=lambda a: _rank(step, a))


def _is_smoke(tried: Tried) -> bool:
    return tried.judged.look == SMOKE


def _rank(step: PlannedStep, tried: Tried) -> tuple[int, float]:
    """Less is better: how many criteria could not be read, then how far the others are off."""
    judged = tried.judged
    unread = sum(c.get("verdict") in ("underpowered", "invalid") for c in judged.criteria)
    return unread, shortfall(step, judged)


def shortfall(step: PlannedStep, judged: ev.GateJudged) -> float:
    """How far a failed gate is from passing: the sum over its criteria, in shares of the bound."""
    declared = step.gate.criteria if step.gate else ()
    failed = [c for c in judged.criteria if c.get("verdict") == "fail"]
    return sum(
        missing(criterion, result)
        for result in failed
        for criterion in declared
        if (criterion.metric, criterion.kind) == (result.get("metric"), result.get("kind"))
    )


def missing(criterion: Criterion, result: Mapping[str, Json]) -> float:
    """How far one reading is from holding, in shares of the bound.

    By its value; by its one-sided bound where that alone does not hold.
    """
    readings: list[Json] = [result.get("value"), result.get("bound")]
    for reading in readings:
        if is_number(reading) and (beyond := distance(criterion, reading)) > 0:
            return beyond
    return 0.0


def distance(criterion: Criterion, reading: float) -> float:
    """How far beyond its bound a reading lies, in shares of the bound; below 0: within."""
    return max(_beyond(criterion, reading), default=0.0)


def _beyond(criterion: Criterion, reading: float) -> Iterable[float]:
    for bound, sign in (
        (criterion.below, 1),
        (criterion.at_most, 1),
        (criterion.above, -1),
        (criterion.at_least, -1),
    ):
        if bound is not None:
            yield sign * (reading - bound) / (abs(bound) or 1.0)


def _changed(
    step: PlannedStep,
    adjustment: Adjustment,
    changes: Mapping[str, Json],
    params: Sequence[Mapping[str, Json]],
) -> dict[str, Json]:
    """The parameters that an adjustment would set to another value."""
    before = _values(changes, adjustment.change, params)
    after = {
        name: adjusted(value, adjustment.change[name], step.adjustable.get(name))
        for name, value in before.items()
    }
    return {name: value for name, value in after.items() if value != before[name]}


def _values(
    changes: Mapping[str, Json], names: Iterable[str], params: Sequence[Mapping[str, Json]]
) -> dict[str, Json]:
    """The value of each parameter under these changes, as the first step that has it ran with."""
    found = {}
    for name in names:
        owned = (value for p in params if (value := find(p, name)) is not None)
        value = changes.get(name, next(owned, None))
        if value is not None:
            found[name] = value
    return found
