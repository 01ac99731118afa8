"""What a session may still spend: pure arithmetic over the journal's facts.

Rule: what was reserved and never settled counts as spent. A killed executor's lease of time, and a
request whose answer nobody saw, cost what they could have cost.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runbook import events as ev
from runbook.contract import Json

LEASE_S = 300.0
"""Time is reserved ahead in slices of this length; a killed executor costs one at most."""
_HOUR = 3600.0


@dataclass(frozen=True)
class Limits:
    """What the runbook allows; None where it sets no limit."""

    wall_clock_s: float | None = None
    gpu_hours: float | None = None
    usd: float | None = None
    """Of everything: the machine's time and the reviews."""
    review_usd: float | None = None
    usd_per_hour: float = 0.0
    """The machine's price, all its GPUs together."""
    gpus: int = 0
    reserve_s: float = 0.0
    """Held back from every step that is not terminal: for evaluation, report, stopping the pod."""

    @classmethod
    def of(cls, budget: Mapping[str, Json]) -> "Limits":
        """From ``Plan.budget`` or from what the journal recorded of it."""
        known = {name: budget[name] for name in cls.__dataclass_fields__ if name in budget}
        return cls(**known)

    @property
    def any(self) -> bool:
        caps = (self.wall_clock_s, self.gpu_hours, self.usd, self.review_usd)
        return any(cap is not None for cap in caps)


@dataclass(frozen=True)
class Spent:
    """Cumulative over every resume and machine, reservations included."""

    seconds: float = 0.0
    """Of an executor at work or on lease."""
    review_usd: float = 0.0
    requests: int = 0
    """Sent to a paid reviewer."""

    def usd(self, limits: Limits) -> float:
        return self.seconds / _HOUR * limits.usd_per_hour + self.review_usd

    def gpu_hours(self, limits: Limits) -> float:
        return self.seconds / _HOUR * limits.gpus


def spent(facts: Iterable[ev.Event]) -> Spent:
    """What these facts cost."""
    seconds = leased = 0.0
    requests: dict[tuple[str, int], float] = {}
    for fact in facts:
        match fact:
            case ev.SessionStarted() | ev.SessionResumed():
                # The lease of an executor that did not come back to settle it is spent whole.
                seconds, leased = seconds + leased, 0.0
            case ev.TimeLeased():
                leased = fact.used_s + fact.ahead_s
            case ev.RequestSent():
                requests[fact.key, fact.number] = fact.usd
            case ev.RequestSettled():
                requests[fact.key, fact.number] = fact.usd
    return Spent(seconds + leased, math.fsum(requests.values()), len(requests))


def up_to_the_limit(facts: Sequence[ev.Event]) -> ev.TimeLeased | None:
    """The fact that the last executor spent all that its limits left it, reserve included.

    It settles that executor's lease, so it belongs before the next one's ``SessionResumed``. None
    where nothing was left, or nothing limited it.
    """
    leased, limits = 0.0, Limits()
    for fact in facts:
        match fact:
            case ev.SessionStarted() | ev.SessionResumed():
                leased, limits = 0.0, Limits.of(fact.limits)
            case ev.TimeLeased():
                leased = fact.used_s + fact.ahead_s
    left = seconds_left(limits, spent(facts), terminal=True)
    return ev.TimeLeased(leased + left, 0.0) if 0.0 < left < math.inf else None


def seconds_left(limits: Limits, now: Spent, *, terminal: bool) -> float:
    """How much longer an executor may work; infinite where nothing limits it.

    Args:
        limits: the runbook's.
        now: what is spent.
        terminal: whether the reserve may be drawn upon.
    """
    least = min(seconds_by_limit(limits, now).values(), default=math.inf)
    return least - (0.0 if terminal else limits.reserve_s)


def seconds_by_limit(limits: Limits, now: Spent) -> dict[str, float]:
    """How much longer each limit of time lets an executor work, by its key in ``budget:``."""
    left = {}
    if limits.wall_clock_s is not None:
        left["wall_clock"] = limits.wall_clock_s - now.seconds
    if limits.gpu_hours is not None and limits.gpus:
        left["gpu_hours"] = limits.gpu_hours / limits.gpus * _HOUR - now.seconds
    if limits.usd is not None and limits.usd_per_hour:
        left["usd"] = (limits.usd - now.usd(limits)) / limits.usd_per_hour * _HOUR
    return left


def review_left(limits: Limits, now: Spent) -> float:
    """Dollars that a review may still cost, with the reserve's own price held back."""
    left = [math.inf]
    if limits.review_usd is not None:
        left.append(limits.review_usd - now.review_usd)
    if limits.usd is not None:
        reserve = limits.reserve_s / _HOUR * limits.usd_per_hour
        left.append(limits.usd - now.usd(limits) - reserve)
    return min(left)


def exhausted(limits: Limits, now: Spent, *, terminal: bool) -> str:
    """Which limit leaves no more time, in words, with what was spent against it.

    Where each leaves some, all of them.
    """
    caps = (
        (limits.wall_clock_s, now.seconds, "wall clock", "{:.0f} s".format),
        (limits.gpu_hours, now.gpu_hours(limits), "GPU-hours", "{:.2f}".format),
        (limits.usd, now.usd(limits), "money", dollars),
    )
    rates = (1.0, limits.gpus / _HOUR, limits.usd_per_hour / _HOUR)
    told, reached = [], []
    for (cap, used, name, form), rate in zip(caps, rates, strict=True):
        held = 0.0 if terminal else limits.reserve_s * rate
        if cap is not None:
            back = f", {form(held)} of it held back for the end" if held else ""
            told.append(f"{name}: {form(used)} of {form(cap)} spent{back}")
            reached += told[-1:] if used + held + rate >= cap else []
    return "; ".join(reached or told) or f"{now.seconds / _HOUR:.2f} hours were spent"


def dollars(amount: float) -> str:
    """``$12.50``; of less than a dollar with the digits that count, ``$0.0053``."""
    cents = f"{amount:.2f}"
    if abs(amount) >= 1 or float(cents) == round(amount, 9):
        return f"${cents}"
    return f"${amount:.{max(4, 1 - math.floor(math.log10(abs(amount))))}f}"
