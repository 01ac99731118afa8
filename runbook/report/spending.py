"""What a session spent and is estimated to spend, against the limits that its runbook sets."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from runbook.budget import Limits, Spent, dollars, review_left, seconds_by_limit, seconds_left
from runbook.contract import Json
from runbook.estimate import (
    Estimate,
    Interval,
    Projection,
    Run,
    at_pace,
    estimate_steps,
    project,
    total,
)
from runbook.report import figures as f
from runbook.report.session import SessionView, StepView
from runbook.state import Status

_HOUR = 3600.0
_SECOND = 1.0
"""As near as this to its end a limit counts as reached."""
_SKEW_S = 0.2
"""So far a limit may be off that the meter, another process, saw reached."""
_UNKNOWN = Interval(0.0, None)
_NOTHING_TOLD: Mapping[str, Json] = MappingProxyType({})


@dataclass(frozen=True)
class Outlook:
    """What is still to come of a session, retries left out."""

    steps: tuple[Estimate, ...]
    seconds: Interval
    limits: tuple[Projection, ...]
    lines: tuple[str, ...]
    """The same in words; none where nothing of it was measured on this machine."""


def outlook(
    view: SessionView, history: Iterable[Run], progress: Mapping[str, Json] = _NOTHING_TOLD
) -> Outlook:
    """Estimate the steps that are left from this machine's history, against the limits.

    ``progress`` is what the step at hand told last: a step that tells how far it is, is projected
    from its own pace.
    """
    steps = tuple(_rest(view, tuple(history), progress))
    more = total(steps)
    limits = tuple(project(view.limits, view.spent, more, ahead=view.ahead))
    if not any(step.runs or step.at_pace for step in steps):
        return Outlook(steps, more, limits, ())
    told = f"Still to come, without retries: {ahead(steps, more, view.limits)}."
    return Outlook(steps, more, limits, (told, *(f"Projected {p}." for p in projected(limits))))


def _rest(
    view: SessionView, history: tuple[Run, ...], progress: Mapping[str, Json]
) -> Iterator[Estimate]:
    """Of a step that has begun and does not tell how far it is, any part may be left."""
    documents = f.mapping(view.plan.get("steps"))
    made = (Status.FINISHED, Status.JUDGED, Status.PASSED, Status.SKIPPED)
    enabled = [s for s in view.steps if f.mapping(documents.get(s.name)).get("enabled")]
    left = [step for step in enabled if step.status not in made]
    for step, found in zip(
        left, estimate_steps(view.plan, [s.name for s in left], history), strict=True
    ):
        if step.status is Status.PENDING:
            yield found
        elif (told := _batches_told(step, progress)) and view.batch_s is not None:
            yield at_pace(found, *told, view.batch_s)
        else:
            yield replace(found, seconds=Interval(0.0, found.seconds.high))


def _batches_told(step: StepView, progress: Mapping[str, Json]) -> tuple[int, int] | None:
    """How many batches of how many, if this step tells it and its units are batches.

    Each batch is committed, so what tells more units than there are commits counts something else.
    """
    last, done, units = step.last, f.real(progress.get("done")), f.real(progress.get("total"))
    if last is None or done is None or units is None:
        return None
    is_mine = (step.name, last.number) == (progress.get("step"), progress.get("attempt"))
    is_batches = 0 < done <= min(last.batches, units)
    return (int(done), int(units)) if is_mine and is_batches else None


def reached(spent: Spent, limits: Limits) -> list[str]:
    """The limits that left the least time, as keys of ``budget:``; none where nothing limits it."""
    left = seconds_by_limit(limits, spent)
    least = min(left.values(), default=0.0)
    return [name for name, seconds in left.items() if seconds < least + _SECOND]


def reached_by_reviews(view: SessionView) -> list[str]:
    """The limits within which no further request to the reviewer fits, as keys of ``budget:``."""
    need = request_usd(view)
    parts = (
        ("review_usd", replace(view.limits, usd=None)),
        ("usd", replace(view.limits, review_usd=None)),
    )
    return [name for name, limits in parts if need and need > review_left(limits, view.spent)]


def request_usd(view: SessionView) -> float:
    """What one more request to the reviewer may cost, as far as that keeps it from being sent."""
    known = view.unanswered
    if known is None or not known.remedy:
        return view.request_usd
    return known.usd or 0.0


def is_left_over(view: SessionView) -> bool:
    """Whether the limits leave time, though too little for what was to be done."""
    return _SKEW_S < seconds_left(view.limits, view.spent, terminal=False) < math.inf


def allowance(names: Iterable[str], view: SessionView) -> tuple[str, list[str]]:
    """How to allow more under these limits: in words, and as ``--set`` arguments."""
    spent, limits = view.spent, view.limits
    reviews = f"{dollars(spent.review_usd)} on reviews"
    forms = {
        "wall_clock": (f"{f.duration(spent.seconds)} of wall clock", "DURATION", "e.g. 3h"),
        "gpu_hours": (f"{spent.gpu_hours(limits):.2f} GPU-hours", "HOURS", "e.g. 40"),
        "usd": (dollars(spent.usd(limits)), "AMOUNT", "in dollars, e.g. 12.50"),
        "review_usd": (reviews, "AMOUNT", "in dollars, e.g. 2.50"),
    }
    chosen = {name: forms[name] for name in names}
    used = " and ".join(used for used, _, _ in chosen.values())
    words = "; ".join(dict.fromkeys(f"{word} is {form}" for _, word, form in chosen.values()))
    sets = [f"budget.{name}={word}" for name, (_, word, _) in chosen.items()]
    return f"for the whole session, in which {used} were spent so far; {words}", sets


def raised(names: Iterable[str], view: SessionView) -> list[str]:
    """More under these limits, as ``--set`` arguments."""
    more = _more(view)
    told = {name: f"{value:g}" for name, value in more.items()}
    told["wall_clock"] = f"{more['wall_clock'] / 60:.0f}m"
    return [f"budget.{name}={told[name]}" for name in names]


def rise(names: Iterable[str], view: SessionView) -> str:
    """The same in words: ``budget.review_usd from $0.50 to $2.00``."""
    more, limits = _more(view), view.limits
    forms: Mapping[str, tuple[float | None, Callable[[float], str]]] = {
        "wall_clock": (limits.wall_clock_s, f.duration),
        "gpu_hours": (limits.gpu_hours, "{:g}".format),
        "usd": (limits.usd, dollars),
        "review_usd": (limits.review_usd, dollars),
    }
    told = []
    for name in names:
        limit, form = forms[name]
        was = "no limit" if limit is None else form(limit)
        told.append(f"budget.{name} from {was} to {form(more[name])}")
    return " and ".join(told)


def _more(view: SessionView) -> dict[str, float]:
    """By each limit half as much again, or what was used and a little to go on with."""
    spent, limits = view.spent, view.limits
    minutes = _half_more(limits.wall_clock_s, spent.seconds, 60.0) / 60
    more = {
        "gpu_hours": _half_more(limits.gpu_hours, spent.gpu_hours(limits), 1.0),
        "usd": _half_more(limits.usd, spent.usd(limits), 1.0),
        "review_usd": _half_more(limits.review_usd, spent.review_usd, 2 * request_usd(view)),
    }
    cents = {name: math.ceil(100 * value) / 100 for name, value in more.items()}
    return {**cents, "wall_clock": 60.0 * math.ceil(minutes)}


def _half_more(limit: float | None, used: float, least: float) -> float:
    return max(1.5 * (limit or 0.0), used + least)


def lines(spent: Spent, limits: Limits) -> list[str]:
    """One line for each limit, and for money where a price is known; none where nothing is."""
    told = []
    if limits.wall_clock_s is not None:
        told.append(f"{f.duration(spent.seconds)} of {f.duration(limits.wall_clock_s)} wall clock")
    if limits.gpu_hours is not None:
        told.append(f"{spent.gpu_hours(limits):.2f} of {limits.gpu_hours:g} GPU-hours")
    if limits.usd is not None or limits.usd_per_hour:
        told.append(f"{dollars(spent.usd(limits))}{_of(limits.usd)}")
    if limits.review_usd is not None or spent.review_usd:
        requests = f.counted(spent.requests, "request")
        told.append(f"{dollars(spent.review_usd)}{_of(limits.review_usd)} on reviews ({requests})")
    if limits.reserve_s and told:
        told.append(f"{f.duration(limits.reserve_s)} are held back for the end")
    return told


def ahead(estimates: Sequence[Estimate], more: Interval, limits: Limits) -> str:
    """How long the steps take that are still to come, and what that costs."""
    unknown = [e.step for e in estimates if not e.runs and not e.at_pace]
    told = interval(more, f.duration) if more != _UNKNOWN else "not known"
    if limits.usd_per_hour and more != _UNKNOWN:
        told += f", {interval(more.times(limits.usd_per_hour / _HOUR), dollars)}"
    for e in estimates:
        if e.at_pace:
            told += f"; {e.step} at its own pace"
        elif e.runs and not e.same_params:
            took = interval(e.seconds, f.duration)
            told += f"; measured with other parameters alone: {e.step} ({took})"
    return told + (f"; not measured: {', '.join(unknown)}" if unknown else "")


def projected(projections: Iterable[Projection]) -> list[str]:
    """One line for each limit: what will have been charged to it, and whether it fits."""
    return [_projected(p) for p in projections]


def _projected(projection: Projection) -> str:
    form = _FORMS[projection.limit]
    held = f", {form(projection.held)} of it held back for the end" if projection.held else ""
    used, cap = interval(projection.used, form), form(projection.cap)
    return f"{projection.limit}: {used} of {cap}{held}: {projection.fit.value}"


def interval(ends: Interval, form: Callable[[float], str]) -> str:
    """``3 min 00 s to 5 min 12 s``; ``at least 3 min 00 s`` where no upper end is known."""
    low = form(ends.low)
    if ends.high is None:
        return f"at least {low}"
    return low if form(ends.high) == low else f"{low} to {form(ends.high)}"


_FORMS: dict[str, Callable[[float], str]] = {
    "wall clock": f.duration,
    "GPU-hours": "{:.2f}".format,
    "money": dollars,
}


def _of(limit: float | None) -> str:
    return "" if limit is None else f" of {dollars(limit)}"
