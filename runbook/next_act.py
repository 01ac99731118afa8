"""The next act of a session, from its state: ``decide``. Pure.

Every run ends: attempts, looks, reviews and interruptions are all counted, and a stop is an act
like any other. What each act leads to is ``runbook.machine``'s.
"""

from collections.abc import Iterable

from runbook import events as ev
from runbook.adjusting import after_smoke, is_unbelievable, next_adjustment
from runbook.contract import Json
from runbook.params import overlay
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
    if not asks(mine) or _may_proceed(mine):
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


def asks(mine: StepState) -> bool:
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
    allowed = answers(state, step, reason)
    return AskReview(step.name, state.steps[step.name].attempt, reason, allowed)


def answers(state: State, step: PlannedStep, reason: str) -> tuple[str, ...]:
    """What a review asked for this reason may answer: of an act only where it can be done."""
    mine = state.steps[step.name]
    can = {
        "extend": mine.look == 1 and step.gate is not None and step.gate.extend is not None,
        "recalibrate": not mine.recalibrated and bool(certifiers(state, step)),
    }
    return tuple(action for action in ALLOWED[reason] if can.get(action, True))


def certifiers(state: State, step: PlannedStep) -> tuple[str, ...]:
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
    attempts = (*mine.tried, Tried(mine.attempt, changes_of(state, steps), mine.judged))
    return next_adjustment(step, attempts, [s.params for s in steps])


def changes_of(state: State, steps: Iterable[PlannedStep]) -> dict[str, Json]:
    """What these steps were made to differ by from the plan."""
    return {name: v for s in steps for name, v in state.steps[s.name].changes.items()}
