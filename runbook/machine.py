"""What follows from what happened: ``apply`` folds facts, ``decide`` names the next act. Pure.

No clock and no I/O, so every path can be walked in a test. Every run ends: attempts, looks,
reviews and interruptions are all counted, and a stop is an act like any other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from runbook import events as ev
from runbook.adjusting import after_smoke, is_unbelievable, next_adjustment
from runbook.contract import Json
from runbook.errors import CorruptError
from runbook.fingerprint import recorded_plan
from runbook.params import find, overlay, refuse_changes
from runbook.plan import Plan, PlannedStep
from runbook.state import (
    ADVISORY,
    ALLOWED,
    CERTIFICATE,
    NEEDS_HUMAN,
    SMOKE,
    Action,
    Adjust,
    AskReview,
    Extend,
    Finish,
    JudgeGate,
    PassStep,
    Review,
    RunStep,
    SkipStep,
    State,
    Status,
    StepState,
    Stop,
    Tried,
)

MAX_INTERRUPTIONS = 5
"""In a row, without one batch committed in between."""
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


def params_of(plan: Plan, state: State, step: str) -> dict[str, Json]:
    """A step's parameters with every change so far."""
    mine = state.steps[step]
    return overlay(overlay(plan.step(step).params, mine.changes), mine.extension)


def rerun_range(plan: Plan, step: PlannedStep) -> tuple[PlannedStep, ...]:
    """The steps that a retry of this step's gate runs again."""
    names = [s.name for s in plan.steps]
    first = names.index(step.rerun_from) if step.rerun_from else names.index(step.name)
    return plan.steps[first : names.index(step.name) + 1]


def decide(plan: Plan, state: State) -> Action:
    """The one next act."""
    if state.done:
        return Finish(state.done.exit_code)
    if state.stop:
        return Stop(state.stop.reason, state.stop.exit_code, state.stop.detail)
    for step in plan.steps:
        mine = state.steps[step.name]
        if mine.status not in (Status.PASSED, Status.SKIPPED):
            return _decide_step(plan, state, step, mine)
    return Finish(6 if state.overrides else 0)


def _decide_step(plan: Plan, state: State, step: PlannedStep, mine: StepState) -> Action:
    phase = next((p for p in plan.phases if p.name == step.phase), None)
    match mine.status:
        case Status.FINISHED:
            return _decide_finished(state, step, mine)
        case Status.JUDGED:
            return _decide_judged(plan, state, step, mine)
        case Status.FAILED if mine.failed:
            return Stop("error", mine.failed.exit_code, f"{step.name}: {mine.failed.error}")
        case _ if not step.enabled or (phase and not phase.enabled):
            return SkipStep(step.name, step.phase, "disabled in the runbook")
        case _ if mine.interruptions > MAX_INTERRUPTIONS:
            detail = f"{step.name} was interrupted {mine.interruptions} times without a new batch"
            return Stop("no progress", 1, detail)
        case _:
            params = params_of(plan, state, step.name)
            return RunStep(step.name, mine.attempt, mine.look, params)


def _decide_finished(state: State, step: PlannedStep, mine: StepState) -> Action:
    if step.gate:
        return JudgeGate(step.name)
    if not _asks(mine) or _may_proceed(mine):
        return PassStep(step.name)
    return _after_review(step, mine, mine.review) if mine.review else _question(state, step)


def _decide_judged(plan: Plan, state: State, step: PlannedStep, mine: StepState) -> Action:
    assert mine.judged is not None
    if mine.review:
        return _after_review(step, mine, mine.review)
    match mine.judged:
        case ev.GateJudged(sentinel=True):
            return _ask(state, step, "sentinel")
        case ev.GateJudged(look=look) as smoke if look == SMOKE:
            if is_unbelievable(smoke):
                return _ask(state, step, "instrument")
            full = after_smoke(step, mine.tried, smoke)
            other = full or _adjustment(plan, state, step, mine)
            return other or _ask(state, step, "smoke")
        case ev.GateJudged(verdict="pass"):
            return _question(state, step)
        case ev.GateJudged(verdict="fail"):
            return _decide_failure(plan, state, step, mine)
        case ev.GateJudged(verdict="underpowered"):
            if mine.look == 1 and step.gate and step.gate.extend is not None:
                return Extend(step.name, step.gate.extend)
            return _ask(state, step, "underpowered")
        case _:
            return _ask(state, step, "instrument")


def _asks(mine: StepState) -> bool:
    """Whether the step left a question of its own, which only a review answers."""
    return bool(mine.finished and mine.finished.question.strip())


def _may_proceed(mine: StepState) -> bool:
    decision = mine.review.decision if mine.review else None
    return decision is not None and decision.action == "proceed"


def _question(state: State, step: PlannedStep) -> AskReview:
    return _ask(state, step, "question")


def _decide_failure(plan: Plan, state: State, step: PlannedStep, mine: StepState) -> Action:
    if mine.failures > step.retries:
        return _ask(state, step, "closing")
    if mine.failures < step.review_after:
        adjustment = _adjustment(plan, state, step, mine)
        if adjustment:
            return adjustment
    return _ask(state, step, "gate failed")


def _ask(state: State, step: PlannedStep, reason: str) -> AskReview:
    allowed = _answers(state, step, reason)
    return AskReview(step.name, state.steps[step.name].attempt, reason, allowed)


def _answers(state: State, step: PlannedStep, reason: str) -> tuple[str, ...]:
    """What a review asked for this reason may answer: of an act only where it can be done."""
    mine = state.steps[step.name]
    can = {
        "extend": mine.look == 1 and step.gate is not None and step.gate.extend is not None,
        "recalibrate": not mine.recalibrated and bool(_certifiers(state, step)),
    }
    return tuple(action for action in ALLOWED[reason] if can.get(action, True))


def _certifiers(state: State, step: PlannedStep) -> tuple[str, ...]:
    """The steps, of its inputs and itself, that vouch for instruments by a certificate."""
    return tuple(
        name
        for name in (*step.inputs, step.name)
        if (made := state.steps[name].finished)
        and any(artifact.name == CERTIFICATE for artifact in made.artifacts)
    )


def _after_review(step: PlannedStep, mine: StepState, review: Review) -> Stop:
    judged, finished = mine.judged, mine.finished
    reasons = judged.reasons if judged else ()
    if review.reason == "question" and finished:
        reasons = (f"the step asks: {' '.join(finished.question.split())}",)
    verdict = judged.verdict if judged else ""
    detail = f"{step.name}, attempt {mine.attempt}: {'; '.join(reasons) or verdict}"
    if review.reason == "sentinel":
        return Stop("sentinel", 5, detail)
    if review.reason not in ADVISORY and _awaits_person(review):
        return Stop("review", 3, f"{detail} (review {review.review_id} awaits a person's decision)")
    return Stop(review.reason, 3, detail)


def _awaits_person(review: Review) -> bool:
    return review.decision is None or review.decision.action == NEEDS_HUMAN


def _adjustment(plan: Plan, state: State, step: PlannedStep, mine: StepState) -> Adjust | None:
    assert mine.judged is not None
    steps = rerun_range(plan, step)
    attempts = (*mine.tried, Tried(mine.attempt, _changes(state, steps), mine.judged))
    return next_adjustment(step, attempts, [s.params for s in steps])


def _changes(state: State, steps: Iterable[PlannedStep]) -> dict[str, Json]:
    """What these steps were made to differ by from the plan."""
    return {name: v for s in steps for name, v in state.steps[s.name].changes.items()}


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
    return f"review {decided.review_id} is decided already: {before}"


def apply(plan: Plan, state: State, event: ev.Event) -> State:  # noqa: C901, PLR0912 - one case per fact
    """The state after this fact. A decision that cannot stand changes nothing."""
    match event:
        case ev.SessionStarted():
            return replace(state, session=event)
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
            allowed = event.allowed or _answers(state, step, event.reason)
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
        and not _asks(state.steps[event.step])
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
    for name in dict.fromkeys((*_certifiers(state, step), step.name)):
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
        so_far = _changes(state, rerun_range(plan, gate))
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
