"""What follows from what happened: ``apply`` folds facts into a state. Pure.

No clock and no I/O, so every path can be walked in a test. The next act is ``runbook.next_act``'s.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from runbook import events as ev
from runbook.adjusting import after_smoke, is_unbelievable
from runbook.contract import Json
from runbook.errors import CorruptError
from runbook.fingerprint import recorded_plan
from runbook.next_act import answers, asks, certifiers, changes_of, params_of, rerun_range
from runbook.params import find, refuse_changes
from runbook.plan import Plan, PlannedStep
from runbook.state import (
    NEEDS_HUMAN,
    SMOKE,
    Review,
    State,
    Status,
    StepState,
    Tried,
)

_OF_PLAN = ("plan", "fingerprint", "runbook", "overrides")
"""What a session has of its plan, and an acceptance changes."""


def initial(plan: Plan) -> State:
    return State({step.name: StepState() for step in plan.steps})


def replay(plan: Plan, facts: Iterable[ev.Event]) -> State:
    """The state that these facts lead to, each under the plan that held when it was appended.

    ``plan`` is the one that holds now.
    """
    known = tuple(facts)
    state = initial(plan)
    for fact, held in zip(known, _plans(plan, known), strict=True):
        state = apply(held, state, fact)
    return state


def _plans(plan: Plan, known: tuple[ev.Event, ...]) -> Iterator[Plan]:
    """The plan that each fact was appended under; ``plan`` from the last acceptance on."""
    accepted = sum(isinstance(fact, ev.PlanAccepted) for fact in known)
    held = plan
    for fact in known:
        accepted -= isinstance(fact, ev.PlanAccepted)
        if isinstance(fact, ev.SessionStarted | ev.PlanAccepted):
            held = recorded_plan(fact.plan) if accepted else plan
        yield held


def refuse_decision(plan: Plan, state: State, decided: ev.ReviewDecided) -> str:
    """Why this decision cannot stand; empty where it can. Asked before it is appended."""
    found = [
        (plan.step(name), mine, mine.review)
        for name, mine in state.steps.items()
        if mine.review and mine.review.review_id == decided.review_id
    ]
    if not found:
        return f"there is no review {decided.review_id!r}"
    step, _, review = found[0]
    override = decided.action == "override"
    if refusal := _refuse_again(review, decided):
        return refusal
    if decided.action not in review.allowed:
        return f"{decided.action!r} is not allowed here; allowed: {', '.join(review.allowed)}"
    if override and not decided.person:
        return "only a person may override"
    if decided.person and not decided.reason.strip():
        return f"a person's {decided.action} needs a reason"
    if decided.changes and decided.action != "retry":
        return f"{decided.action!r} takes no changes"
    params = [params_of(plan, state, s.name) for s in rerun_range(plan, step)]
    return refuse_changes(decided.changes, step.adjustable, params)


def _refuse_again(review: Review, decided: ev.ReviewDecided) -> str:
    """Why a review that was answered takes no other answer; a person may say more than a model."""
    if review.decision is None:
        return ""
    before = review.decision.action
    if before == NEEDS_HUMAN and decided.person and decided.action != NEEDS_HUMAN:
        return ""
    if before == "stop" and decided.action == "override":
        return ""
    return f"it is decided already: {before}"


def apply(plan: Plan, state: State, event: ev.Event) -> State:  # noqa: C901, PLR0912 - one case per fact
    """The state after this fact. A decision that cannot stand changes nothing."""
    match event:
        case ev.SessionStarted():
            return replace(state, session=event, stop=None)
        case ev.SessionResumed():
            return _resume(state)
        case ev.SessionStopped():
            return replace(state, stop=event)
        case ev.SessionDone():
            return replace(state, done=event, stop=None)
        case ev.ReviewDecided():
            return _decided(plan, state, event)
        case ev.Adjusted():
            gate = _planned(plan, event.step)
            return _rerun(plan, state, gate, event.changes, event.smoke)
        case ev.PlanAccepted():
            return _accept(plan, state, event)
        case ev.StepStarted():
            return _with(state, event.step, status=Status.RUNNING, started=event, failed=None)
        case ev.BatchCommitted():
            return _with(state, event.step, interruptions=0)
        case ev.StepFinished():
            return _with(state, event.step, status=Status.FINISHED, finished=event, interruptions=0)
        case ev.StepFailed():
            return _with(state, event.step, status=Status.FAILED, failed=event)
        case ev.StepInterrupted():
            return _interrupt(state, event.step)
        case ev.GateJudged():
            return _judge(state, event)
        case ev.StepPassed():
            return _with(state, event.step, status=Status.PASSED, manifest_owed=True)
        case ev.ManifestWritten():
            return _with(state, event.step, manifest=event, manifest_owed=False)
        case ev.SampleExtended():
            more = {"status": Status.PENDING, "look": 2, "extension": event.params}
            return _forget_readers(plan, _with(state, event.step, **more), {event.step})
        case ev.ReviewRequested():
            step = _planned(plan, event.step)
            allowed = event.allowed or answers(state, step, event.reason)
            review = Review(event.review_id, event.reason, event.path, allowed)
            return _with(state, event.step, review=review)
        case ev.StepSkipped():
            return _with(state, event.step, status=Status.SKIPPED)
        case ev.TimeLeased() | ev.RequestSent() | ev.RequestSettled() | ev.PodStopRequested():
            return state
        case _:
            raise TypeError(f"not a fact of the journal: {event!r}")


def _planned(plan: Plan, name: str) -> PlannedStep:
    try:
        return plan.step(name)
    except KeyError:
        raise _stranger(name) from None


def _stranger(name: str) -> CorruptError:
    fix = "run it with the runbook that the journal was started with"
    return CorruptError(f"the journal speaks of step {name!r}, which the plan lacks", fix=fix)


def _with(state: State, name: str, **changes: object) -> State:
    if name not in state.steps:
        raise _stranger(name)
    step = replace(state.steps[name], **changes)  # type: ignore[arg-type]  # checked by the callers
    return replace(state, steps={**state.steps, name: step})


def _interrupt(state: State, name: str) -> State:
    count = state.steps[name].interruptions + 1 if name in state.steps else 1
    return _with(state, name, status=Status.INTERRUPTED, interruptions=count)


def _resume(state: State) -> State:
    """A rerun cures an error and an interruption; what waits for a person stops it again."""
    forgive = state.stop is not None and state.stop.reason == "no progress"
    state = replace(state, stop=None)
    for name, step in state.steps.items():
        if step.status is Status.RUNNING:
            state = _interrupt(state, name)
        elif step.status is Status.FAILED:
            state = _with(state, name, status=Status.INTERRUPTED)
        if forgive:
            state = _with(state, name, interruptions=0)
    return state


def _judge(state: State, event: ev.GateJudged) -> State:
    passed = (
        event.verdict == "pass"
        and not event.sentinel
        and event.look != SMOKE
        and not asks(state.steps[event.step])
    )
    state = _with(
        state,
        event.step,
        status=Status.PASSED if passed else Status.JUDGED,
        judged=event,
        manifest_owed=True,
    )
    return _with(state, event.step, failures=state.steps[event.step].failures + _failed(event))


def _failed(judged: ev.GateJudged | None) -> bool:
    """Whether this verdict counts against the step's retries."""
    return (
        judged is not None
        and judged.verdict == "fail"
        and judged.look != SMOKE
        and not judged.sentinel
    )


def _helped_not(gate: PlannedStep, tried: Sequence[Tried], judged: ev.GateJudged) -> bool:
    """Whether this was a smoke that did not show its change to help; one not to be believed says
    neither.
    """
    if judged.look != SMOKE or is_unbelievable(judged):
        return False
    return after_smoke(gate, tried, judged) is None


def _accept(plan: Plan, state: State, event: ev.PlanAccepted) -> State:
    """What the changed plan reaches is made or judged anew; everything else stays."""
    changed = {name: getattr(event, name) for name in _OF_PLAN}
    session = replace(state.session, **changed) if state.session else None
    state = replace(state, session=session, done=None)
    # Where nothing holds a smoke back any more: its few rows are not the step's.
    loose = [
        step.name
        for step in plan.steps
        if (mine := state.steps.get(step.name))
        and mine.look == SMOKE
        and not (step.gate and step.gate.smoke)
    ]
    anew = dict.fromkeys([*event.invalidated, *loose])
    for name in anew:
        state = _begin_anew(state, name)
    for name in event.rejudged:
        if name not in anew:
            state = _judge_anew(state, name)
    return state


def _begin_anew(state: State, name: str) -> State:
    """An attempt that began keeps its number and its files: the next one has its own."""
    if name not in state.steps:
        raise _stranger(name)
    old = state.steps[name]
    fresh = StepState(attempt=old.attempt + (old.started is not None))
    return replace(state, steps={**state.steps, name: fresh})


def _judge_anew(state: State, name: str) -> State:
    """Back to the end of its newest finished look; the verdict that went counts no failure."""
    if name not in state.steps:
        raise _stranger(name)
    old = state.steps[name]
    look = old.finished.look if old.finished else 1
    return _with(
        state,
        name,
        status=Status.FINISHED,
        look=look,
        extension=old.extension if look == old.look else {},
        failures=old.failures - _failed(old.judged),
        failed=None,
        judged=None,
        review=None,
        overridden=False,
        manifest=None,
        manifest_owed=False,
    )


def _forget_readers(plan: Plan, state: State, made_anew: set[str]) -> State:
    """What was made of bytes that are to change begins anew as well.

    Later steps have begun by then only where a changed plan had an earlier gate judged again.
    """
    stale = set(made_anew)
    for step in plan.steps:
        if step.name not in stale and stale.intersection(step.inputs):
            stale.add(step.name)
            if state.steps[step.name].started:
                state = _begin_anew(state, step.name)
    return state


def _decided(plan: Plan, state: State, event: ev.ReviewDecided) -> State:
    if refuse_decision(plan, state, event):
        return state
    name, review = next(
        (name, step.review)
        for name, step in state.steps.items()
        if step.review and step.review.review_id == event.review_id
    )
    state = _with(state, name, review=replace(review, decision=event))
    match event.action:
        case "retry":
            return _rerun(plan, replace(state, stop=None), plan.step(name), event.changes)
        case "override" if state.steps[name].look == SMOKE:
            return _rerun(plan, replace(state, stop=None), plan.step(name), {})
        case "extend":
            return _extend(plan, replace(state, stop=None), plan.step(name))
        case "recalibrate":
            return _recalibrate(replace(state, stop=None), plan.step(name))
        case "proceed":
            state = replace(state, stop=None)
            if state.steps[name].judged is None:
                return state
            return _with(state, name, status=Status.PASSED, manifest_owed=True)
        case "override":
            return _with(
                replace(state, stop=None),
                name,
                status=Status.PASSED,
                overridden=True,
                manifest_owed=True,
            )
        case _:
            return state


def _extend(plan: Plan, state: State, step: PlannedStep) -> State:
    """The second look at the sample that failed, under the same attempt number."""
    assert step.gate is not None
    more = {
        "status": Status.PENDING,
        "look": 2,
        "extension": step.gate.extend or {},
        "review": None,
    }
    return _forget_readers(plan, _with(state, step.name, **more), {step.name})


def _recalibrate(state: State, step: PlannedStep) -> State:
    """Its certifiers and itself begin anew, once; what passed with the old certificate stays."""
    for name in dict.fromkeys((*certifiers(state, step), step.name)):
        old = state.steps[name]
        state = _begin_anew(state, name)
        kept = {"changes": old.changes, "failures": old.failures, "tried": old.tried}
        state = _with(state, name, **kept)
    return _with(state, step.name, recalibrated=True)


def _rerun(
    plan: Plan,
    state: State,
    gate: PlannedStep,
    changes: Mapping[str, Json],
    smoke: Mapping[str, Json] = MappingProxyType({}),
) -> State:
    """Back to the gate's ``rerun_from``, all under one new attempt number."""
    steps = [s for s in rerun_range(plan, gate) if state.steps[s.name].status is not Status.SKIPPED]
    attempt = max(state.steps[s.name].attempt for s in steps) + 1
    tried = state.steps[gate.name].tried
    judged = state.steps[gate.name].judged
    if judged is not None and (_failed(judged) or _helped_not(gate, tried, judged)):
        so_far = changes_of(state, rerun_range(plan, gate))
        tried = (*tried, Tried(state.steps[gate.name].attempt, so_far, judged))
    for step in steps:
        old = state.steps[step.name]
        mine = {
            name: value
            for name, value in changes.items()
            if find(params_of(plan, state, step.name), name) is not None
        }
        fresh = StepState(
            attempt=attempt,
            look=SMOKE if smoke else 1,
            extension=smoke,
            changes={**old.changes, **mine},
            failures=old.failures,
            tried=tried if step is gate else old.tried,
            recalibrated=old.recalibrated,
        )
        state = replace(state, steps={**state.steps, step.name: fresh})
    return _forget_readers(plan, state, {step.name for step in steps})
