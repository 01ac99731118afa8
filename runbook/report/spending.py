"""What a session spent and is estimated to spend, against the limits that its runbook sets."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from runbook.budget import Limits, Spent
from runbook.estimate import Estimate, Interval, Projection, Run, estimate_steps, project, total
from runbook.report import figures as f
from runbook.report.session import SessionView
from runbook.state import Status


@dataclass(frozen=True)
class Outlook:
    """What is still to come of a session, retries left out."""

    steps: tuple[Estimate, ...]
    seconds: Interval
    limits: tuple[Projection, ...]
    lines: tuple[str, ...]
    """The same in words; none where nothing of it was measured on this machine."""


def outlook(view: SessionView, history: Iterable[Run]) -> Outlook:
    """Estimate the steps that are left from this machine's history, against the limits."""
    steps = tuple(_rest(view, tuple(history)))
    more = total(steps)
    limits = tuple(project(view.limits, view.spent, more, ahead=view.ahead))
    if not any(step.runs for step in steps):
        return Outlook(steps, more, limits, ())
    told = f"Still to come, without retries: {ahead(steps, more, view.limits)}."
    return Outlook(steps, more, limits, (told, *(f"Projected {p}." for p in projected(limits))))


def _rest(view: SessionView, history: tuple[Run, ...]) -> Iterator[Estimate]:
    """Of a step that has begun, any part may be left."""
    documents = f.mapping(view.plan.get("steps"))
    made = (Status.FINISHED, Status.JUDGED, Status.PASSED, Status.SKIPPED)
    enabled = [s for s in view.steps if f.mapping(documents.get(s.name)).get("enabled")]
    left = [step for step in enabled if step.status not in made]
    for step, found in zip(
        left, estimate_steps(view.plan, [s.name for s in left], history), strict=True
    ):
        begun = step.status is not Status.PENDING
        yield replace(found, seconds=Interval(0.0, found.seconds.high)) if begun else found


def lines(spent: Spent, limits: Limits) -> list[str]:
    """One line for each limit, and for money where a price is known; none where nothing is."""
    told = []
    if limits.wall_clock_s is not None:
        told.append(f"{f.duration(spent.seconds)} of {f.duration(limits.wall_clock_s)} wall clock")
    if limits.gpu_hours is not None:
        told.append(f"{spent.gpu_hours(limits):.2f} of {limits.gpu_hours:g} GPU-hours")
    if limits.usd is not None or limits.usd_per_hour:
        told.append(f"${spent.usd(limits):.2f}{_of(limits.usd)}")
    if limits.review_usd is not None or spent.review_usd:
        requests = f.counted(spent.requests, "request")
        told.append(f"${spent.review_usd:.2f}{_of(limits.review_usd)} on reviews ({requests})")
    if limits.reserve_s and told:
        told.append(f"{f.duration(limits.reserve_s)} are held back for the end")
    return told


def ahead(estimates: Sequence[Estimate], more: Interval, limits: Limits) -> str:
    """How long the steps take that are still to come, and what that costs."""
    unknown = [e.step for e in estimates if not e.runs]
    other = [e.step for e in estimates if e.runs and not e.same_params]
    told = interval(more, f.duration)
    if limits.usd_per_hour:
        told += f", {interval(more.times(limits.usd_per_hour / 3600), _usd)}"
    if other:
        told += f"; measured with other parameters: {', '.join(other)}"
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


def _usd(amount: float) -> str:
    return f"${amount:.2f}"


_FORMS: dict[str, Callable[[float], str]] = {
    "wall clock": f.duration,
    "GPU-hours": "{:.2f}".format,
    "money": _usd,
}


def _of(limit: float | None) -> str:
    return "" if limit is None else f" of ${limit:.2f}"
