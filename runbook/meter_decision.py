"""What the meter does next, and why. Pure: no clock, no I/O."""

from dataclasses import dataclass

DEADLINE = "a limit of the budget was reached"
RENTAL = "the rental ends"
ABANDONED = "the executor is gone and nobody resumed"


@dataclass(frozen=True)
class End:
    """The executor's last word."""

    why: str
    stop_pod: bool


@dataclass(frozen=True)
class Situation:
    """All that the next action depends on. Points in time are those of ``runbook.meter.now``."""

    deadline: float | None = None
    rental_end: float | None = None
    grace_s: float = 60.0
    abandoned_after_s: float | None = None
    gone_since: float | None = None
    """When the executor was first seen dead, or said that it paused."""
    warned_at: float | None = None
    warned_why: str = ""
    cleared: bool = False
    """The executor and what it started are no more."""
    ended: End | None = None
    dismissed: bool = False
    """SIGTERM: another meter takes over, or a person wants none."""


@dataclass(frozen=True)
class Wait:
    until: float | None
    """Nothing happens by itself before; None: ever."""


@dataclass(frozen=True)
class Warn:
    """Ask the executor to end."""

    why: str


@dataclass(frozen=True)
class Clear:
    """Kill the executor and all that it started."""

    why: str


@dataclass(frozen=True)
class Stop:
    """Stop the pod, then leave."""

    why: str


@dataclass(frozen=True)
class Leave:
    """Leave the pod running."""

    why: str


Action = Wait | Warn | Clear | Stop | Leave


def decide(situation: Situation, at: float) -> Action:
    """The next action. An end in order outranks all; a limit that was reached is never undone."""
    limit = situation.warned_why or _limit_reached(situation, at)
    if situation.ended is not None:
        if situation.ended.stop_pod or limit:
            return Stop(limit or situation.ended.why)
        return Leave(situation.ended.why)
    if situation.dismissed:
        return Leave("SIGTERM")
    if not limit and _is_past(_abandoned_at(situation), at):
        limit = ABANDONED
    if not limit:
        dates = (situation.deadline, situation.rental_end, _abandoned_at(situation))
        return Wait(min((date for date in dates if date is not None), default=None))
    if situation.gone_since is None:
        if situation.warned_at is None:
            return Warn(limit)
        if not _is_past(situation.warned_at + situation.grace_s, at):
            return Wait(situation.warned_at + situation.grace_s)
    return Stop(limit) if situation.cleared else Clear(limit)


def _limit_reached(situation: Situation, at: float) -> str:
    if _is_past(situation.rental_end, at):
        return RENTAL
    return DEADLINE if _is_past(situation.deadline, at) else ""


def _abandoned_at(situation: Situation) -> float | None:
    if situation.gone_since is None or situation.abandoned_after_s is None:
        return None
    return situation.gone_since + situation.abandoned_after_s


def _is_past(date: float | None, at: float) -> bool:
    return date is not None and at >= date
