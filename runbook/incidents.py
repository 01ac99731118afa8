"""What of a session people are told: facts -> incidents. Pure.

Rule: an incident's identity follows from facts alone, so a journal that is read again names the
same incidents, and a relaunch that only stops again at the same place is no new one. Words that
came out of a model, a sample or a step's own code never stand in one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from runbook import budget
from runbook import events as ev
from runbook.artifacts import canonical_json, sha256_bytes
from runbook.budget import Limits, Spent
from runbook.contract import Json
from runbook.control import STOP_REQUESTED
from runbook.errors import NeedsPersonError, PausedError, RunbookError, SentinelError
from runbook.plan import Plan
from runbook.process import GIVEN_UP
from runbook.state import NEEDS_HUMAN, SMOKE, State, Status, StepState

THRESHOLDS = (100, 80, 50)
"""Percent of a limit, the highest first."""
_DIGITS = 24
_MOST_CRITERIA = 5
_AT_THE_LIMIT_S = 1.0
_HOUSEKEEPING = (
    ev.SessionResumed,
    ev.SessionStopped,
    ev.TimeLeased,
    ev.RequestSent,
    ev.RequestSettled,
    ev.PodStopRequested,
    ev.ManifestWritten,
)
"""Facts that do not move a session: between two stops with nothing else, nothing happened."""
_ENDS_A_REQUEST = (ev.RequestSettled, ev.ReviewDecided, ev.SessionStopped, ev.SessionDone)
"""After one of these nobody waits for an answer any more; what it may have cost is spent."""
_NEED_A_PERSON = (RunbookError.code, NeedsPersonError.code, SentinelError.code)
_TOLD_IN_FULL = frozenset({"budget", "rental", "no progress", "missing manifest", "changed input"})
"""Stops whose cause is the executor's own words; others may quote a step's."""


@dataclass(frozen=True)
class Incident:
    kind: str
    """One of ``runbook.schema_models.NOTIFIED_EVENTS``."""
    key: tuple[str | int | float, ...]
    """What tells it from others of its kind within the session."""
    what: str
    """In a few words."""
    told: tuple[str, ...] = ()
    """Lines that say more."""
    level: str = "info"
    """info, success, warning or failure."""
    fact: int | None = None
    """Number of the fact that it is of; None where it is of the session as it stands."""
    review: str = ""
    """The review to be read next."""
    along: str = ""
    """Kind of another incident of the same fact: that one says what a person is to do."""
    is_news: bool = True
    """Otherwise it is passed over: one that says more is told in its place."""


def identity(run_id: str, incident: Incident) -> str:
    """Its name for good: hex digits, the same whenever the facts are the same."""
    named = [run_id, incident.kind, *incident.key]
    return sha256_bytes(canonical_json(named).encode("utf-8", "surrogatepass"))[:_DIGITS]


def all_incidents(plan: Plan, state: State, known: Sequence[ev.Event]) -> Iterator[Incident]:
    """Every incident so far, in order, those of the session as it stands at the end."""
    for number, fact in enumerate(known):
        if isinstance(fact, ev.SessionStopped) and fact.reason == STOP_REQUESTED:
            # Whoever asked for it knows; it is told at the moment or not at all.
            continue
        yield from of_fact(plan, known[: number + 1] if _ends(fact) else (), number, fact)
    yield from of_phases(plan, state)
    yield from of_budget(known)


def new_incidents(plan: Plan, state: State, known: Sequence[ev.Event]) -> Iterator[Incident]:
    """What the newest fact brought about; cheap where that is nothing."""
    if not known:
        return
    fact = known[-1]
    spends = ev.TimeLeased | ev.RequestSent | ev.RequestSettled | ev.SessionResumed
    if isinstance(fact, spends | ev.ReviewDecided | ev.SessionStopped):
        yield from of_budget(known)
    if isinstance(fact, ev.StepPassed | ev.GateJudged | ev.ReviewDecided | ev.StepSkipped):
        yield from of_phases(plan, state)
    yield from of_fact(plan, known, len(known) - 1, fact)


def of_fact(
    plan: Plan, known: Sequence[ev.Event], number: int, fact: ev.Event
) -> Iterator[Incident]:
    """The incidents of one fact.

    Args:
        plan: the session's.
        known: the facts up to this one; looked at only where the session ends.
        number: of the fact, from 0.
        fact: it.
    """
    match fact:
        case ev.GateJudged() if fact.look != SMOKE and _failed(fact):
            what = "sentinel tripped" if fact.sentinel else "gate failed"
            what = f"{what}: {fact.step}, attempt {fact.attempt}"
            told = (f"verdict: {fact.verdict}", *_violated(fact.criteria))
            yield Incident("gate_failed", (fact.step, number), what, told, "warning", number)
        case ev.ReviewRequested():
            who = str(plan.reviewer.get("provider", "human"))
            what = f"review asked: {fact.step}, attempt {fact.attempt}"
            told = (f"review {fact.review_id}, reason: {fact.reason}, reviewer: {who}",)
            key = (fact.review_id, number)
            yield Incident("review_asked", key, what, told, "info", number, fact.review_id)
        case ev.StepInterrupted() if fact.cause.partition(":")[0] in GIVEN_UP:
            what = f"stalled: {fact.step}, attempt {fact.attempt}"
            cause = (fact.cause,)
            yield Incident("stalled", (fact.step, number), what, cause, "warning", number)
        case ev.SessionStopped() if fact.exit_code != PausedError.code:
            yield from _of_stop(plan, known, number, fact)
        case ev.SessionDone():
            what = f"ended: done (exit {fact.exit_code})"
            told = (f"gates overridden: {fact.overrides}",) if fact.overrides else ()
            yield Incident("ended", (number,), what, told, "success", number)
        case ev.PodStopRequested():
            yield _of_pod(number, fact)


def unrecorded_end(known: Sequence[ev.Event]) -> Incident:
    """The end of a session whose journal takes no more, so that no fact tells it."""
    told = ("its volume is full, or gone; nothing that was committed is lost",)
    what = "ended: the journal takes no more"
    return Incident("ended", ("unrecorded", len(known)), what, told, "failure")


def of_phases(plan: Plan, state: State) -> Iterator[Incident]:
    """The phases that are done as the session stands: every step passed or skipped."""
    for phase in plan.phases:
        mine = [(name, state.steps[name]) for name in phase.steps if name in state.steps]
        passed = [(name, s) for name, s in mine if s.status is Status.PASSED]
        behind = len(passed) + sum(s.status is Status.SKIPPED for _, s in mine)
        if not passed or behind < len(mine):
            continue
        key = (phase.name, *(f"{name}/{s.attempt}" for name, s in passed))
        told = tuple(f"{name}, attempt {s.attempt}: {_standing(s)}" for name, s in passed)
        what = f"phase {phase.name} done" + (f": {phase.title}" if phase.title else "")
        yield Incident("phase_done", key, what, told, "success")


def of_budget(known: Sequence[ev.Event]) -> Iterator[Incident]:
    """Of each declared limit the highest threshold reached, and those below it, passed over.

    A raised limit is another one.
    """
    limits = _limits(known)
    if not limits.any:
        return
    now = budget.spent(_worked(known))
    shares = dict(_shares(limits, now))
    last = known[-1] if known else None
    at_end: set[str] = set()
    if isinstance(last, ev.SessionStopped) and last.reason == "budget":
        at_end = _stopped_by(limits, now, shares)
    for name, (share, cap) in shares.items():
        percent = 100.0 if name in at_end else 100 * share
        reached = [t for t in THRESHOLDS if percent >= t]
        for threshold in reached:
            what = f"{threshold} % of the budget's {name} is spent"
            told: tuple[str, ...] = ()
            if percent > 100 * share:
                what = f"the budget's {name} is reached"
                told = (f"{share:.0%} is spent; the rest is held back, or too little to go on",)
            level = "failure" if threshold == THRESHOLDS[0] else "warning"
            news = threshold == reached[0]
            key = (name, threshold, cap)
            yield Incident("budget", key, what, told, level, is_news=news)


def _ends(fact: ev.Event) -> bool:
    return isinstance(fact, ev.SessionStopped)


def _failed(judged: ev.GateJudged) -> bool:
    return judged.sentinel or judged.verdict in ("fail", "invalid")


def _violated(criteria: Iterable[Mapping[str, Json]]) -> Iterator[str]:
    """Numbers and declared names alone; what a gate says of them may quote a sample."""
    wrong = [c for c in criteria if c.get("verdict") != "pass"]
    for found in wrong[:_MOST_CRITERIA]:
        value, n = found.get("value"), found.get("n")
        shown = f"{value:g}" if isinstance(value, int | float) else "not measured"
        of_n = f" (n = {n})" if n is not None else ""
        yield f"{found.get('metric')} {shown}{of_n}, declared {found.get('threshold')}"
    if len(wrong) > _MOST_CRITERIA:
        yield f"and {len(wrong) - _MOST_CRITERIA} more criteria"


def _of_stop(
    plan: Plan, known: Sequence[ev.Event], number: int, stop: ev.SessionStopped
) -> Iterator[Incident]:
    moved = (i for i in range(number, -1, -1) if not isinstance(known[i], _HOUSEKEEPING))
    key = (stop.reason, stop.exit_code, next(moved, 0))
    told = tuple(_cause(known, stop))
    asked = _asked(known, stop)
    review = asked.review_id if asked and stop.reason == "review" else ""
    along = ""
    if stop.exit_code in _NEED_A_PERSON and stop.reason != STOP_REQUESTED:
        what, along = f"human needed: {stop.reason}", "human_needed"
        evidence = tuple(_evidence(plan, known, asked)) if asked else ()
        yield Incident(along, key, what, (*evidence, *told), "failure", number, review)
    what = f"ended: {stop.reason} (exit {stop.exit_code})"
    yield Incident("ended", key, what, told, "failure", number, review, along)


def _asked(known: Sequence[ev.Event], stop: ev.SessionStopped) -> ev.ReviewRequested | None:
    """The review that a stop waits for, or was decided by."""
    found = (fact for fact in reversed(known) if isinstance(fact, ev.ReviewRequested))
    newest = next(found, None)
    return newest if newest and stop.reason in ("review", newest.reason) else None


def _evidence(plan: Plan, known: Sequence[ev.Event], asked: ev.ReviewRequested) -> Iterator[str]:
    """The step, its verdict with numbers, and what the reviewer made of it, in our own words."""
    verdicts = (f for f in reversed(known) if isinstance(f, ev.GateJudged) and f.step == asked.step)
    judged = next(verdicts, None)
    name = f"{asked.step}, attempt {asked.attempt}"
    if judged and judged.attempt == asked.attempt:
        yield f"{name}, verdict: {judged.verdict}"
        yield from _violated(judged.criteria)
    else:
        yield f"{name}, no gate was judged"
    yield f"review {asked.review_id}, reason: {asked.reason}, {_answered(plan, known, asked)}"


def _answered(plan: Plan, known: Sequence[ev.Event], asked: ev.ReviewRequested) -> str:
    """What stands on record of an answer; whatever the reviewer wrote stays out of it."""
    decided = [
        fact
        for fact in known
        if isinstance(fact, ev.ReviewDecided) and fact.review_id == asked.review_id
    ]
    who = str(plan.reviewer.get("provider", "human"))
    if not decided:
        return "not decided" if who == "human" else f"and its reviewer, {who}, gave no answer"
    if decided[-1].action == NEEDS_HUMAN:
        return f"and its reviewer, {who}, wants a person to decide"
    by = "a person" if decided[-1].person else f"its reviewer, {who}"
    return f"decided by {by}: {decided[-1].action}"


def _cause(known: Sequence[ev.Event], stop: ev.SessionStopped) -> Iterator[str]:
    """The first line of a stop's cause, where no step, model or sample had a part in it."""
    failed = next((f for f in reversed(known) if not isinstance(f, _HOUSEKEEPING)), None)
    own = stop.reason == "error" and not isinstance(failed, ev.StepFailed)
    if isinstance(failed, ev.StepFailed):
        yield f"{failed.step}, attempt {failed.attempt}: its own code failed; its log says how"
    elif own or stop.reason in _TOLD_IN_FULL:
        yield from (stop.detail.splitlines() or [""])[:1]


def _of_pod(number: int, stop: ev.PodStopRequested) -> Incident:
    match stop.rc:
        case 0:
            told, level = "the command that stops the pod ended well", "success"
        case None:
            told, level = "the command that stops the pod did not end", "failure"
        case code:
            told, level = f"the command that stops the pod exited with {code}", "failure"
    seen = (f"last state: {stop.state}",) if stop.state else ()
    what = "the pod was asked to stop" if stop.rc == 0 else "the pod may still run and cost"
    return Incident("pod_stopped", (number,), what, (told, *seen), level, number)


def _standing(mine: StepState) -> str:
    verdict = mine.judged.verdict if mine.judged else "done"
    return f"{verdict}, overridden" if mine.overridden else verdict


def _limits(known: Sequence[ev.Event]) -> Limits:
    """As the newest start of an executor declared them."""
    for fact in reversed(known):
        if isinstance(fact, ev.SessionStarted | ev.SessionResumed):
            return Limits.of(fact.limits)
    return Limits()


def _worked(known: Sequence[ev.Event]) -> Iterator[ev.Event]:
    """The facts without what the executor at work holds: time ahead, a request under way."""
    mine = list(_of_newest(known))
    leased = next((i for i in mine if isinstance(known[i], ev.TimeLeased)), None)
    asked = next(
        (i for i in mine if isinstance(known[i], (ev.RequestSent, *_ENDS_A_REQUEST))), None
    )
    for number, fact in enumerate(known):
        if number == leased and isinstance(fact, ev.TimeLeased):
            yield replace(fact, ahead_s=0.0)
        elif number != asked or not isinstance(fact, ev.RequestSent):
            yield fact


def _of_newest(known: Sequence[ev.Event]) -> Iterator[int]:
    """The places of the newest executor's facts, the last one first."""
    for number in range(len(known) - 1, -1, -1):
        if isinstance(known[number], ev.SessionStarted | ev.SessionResumed):
            return
        yield number


def _shares(limits: Limits, now: Spent) -> Iterator[tuple[str, tuple[float, float]]]:
    """Each declared limit with the share of it that is spent, and the limit."""
    found = (
        ("usd", limits.usd, now.usd(limits)),
        ("wall_clock", limits.wall_clock_s, now.seconds),
        ("gpu_hours", limits.gpu_hours, now.gpu_hours(limits)),
        ("review_usd", limits.review_usd, now.review_usd),
    )
    for name, cap, used in found:
        if cap:
            yield name, (used / cap, cap)


def _stopped_by(limits: Limits, now: Spent, shares: Mapping[str, tuple[float, float]]) -> set[str]:
    """The limits that a stop by the budget is owed to; what is held back for the end counts."""
    left = budget.seconds_by_limit(limits, now)
    spent = {n for n, s in left.items() if s - limits.reserve_s <= _AT_THE_LIMIT_S}
    nearest = min(left, key=lambda name: left[name], default=None)
    return spent or ({nearest} if nearest else set(shares))
