"""The machine: every outcome leads where the rules say, and every run ends."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies

from runbook import events as ev
from runbook import machine as m
from runbook import state as st
from runbook.contract import Artifact, Criterion, Gate, Instrument, Metric, Range
from runbook.errors import CorruptError
from runbook.next_act import decide
from runbook.plan import Adjustment, Plan, PlannedPhase
from runbook.testing import make_plan, make_step

GATE = Gate((Criterion("yield", "rate", at_least=0.5),))
EXTENDABLE = replace(GATE, extend={"rows": 400})
SMOKED = replace(EXTENDABLE, smoke={"rows": 24})
TUNED = {
    "params": {"temperature": 0.7, "sampling": {"top_k": 40}},
    "adjustable": {"temperature": Range(0.1, 1.0), "sampling.top_k": Range(10, 50)},
    "adjustments": (Adjustment("yield", {"temperature": {"add": -0.2}}, "cooler is cleaner"),),
}
LIMIT = 400
CERTIFIED = "certified"
"""A step of this name has every step ask a question and leave a certificate, for once."""


def run(plan: Plan, *facts: ev.Event) -> st.State:
    return m.replay(plan, facts)


def started(step: str, attempt: int = 1, look: int = 1) -> ev.StepStarted:
    return ev.StepStarted(step, attempt, look, {}, f"artifacts/{step}", "2026-01-01T00:00:00+00:00")


def finished(
    step: str, attempt: int = 1, look: int = 1, question: str = "", *, certificate: bool = False
) -> ev.StepFinished:
    made = (Artifact("certificate", f"artifacts/{step}/c.json", "s", 1),) if certificate else ()
    return ev.StepFinished(step, attempt, look, (), made, 0, 0.0, {}, (), (), question=question)


def judged(
    step: str,
    verdict: str,
    attempt: int = 1,
    look: int = 1,
    *,
    sentinel: bool = False,
    value: float = 0.3,
) -> ev.GateJudged:
    criteria = ({"metric": "yield", "kind": "rate", "verdict": verdict, "value": value},)
    return ev.GateJudged(step, attempt, look, verdict, criteria, ("why",), sentinel)


def attempt(step: str, verdict: str, number: int = 1, look: int = 1) -> tuple[ev.Event, ...]:
    return (
        started(step, number, look),
        finished(step, number, look),
        judged(step, verdict, number, look),
    )


def asked(step: str, reason: str, number: int = 1) -> ev.ReviewRequested:
    return ev.ReviewRequested(f"{step}-{number}", step, number, reason, "reviews/x")


def decided(
    step: str, action: str, number: int = 1, *, person: bool = True, **changes: Any
) -> ev.ReviewDecided:
    return ev.ReviewDecided(f"{step}-{number}", action, changes, "because", "me", person)


def test_a_session_begins_with_its_first_step() -> None:
    """The first act is to run the first step with its own parameters."""
    plan = make_plan(make_step("a", params={"x": 1}), make_step("b"))

    assert decide(plan, m.initial(plan)) == st.RunStep("a", 1, 1, {"x": 1})


@pytest.mark.parametrize("how", ["step", "phase"])
def test_a_disabled_step_is_skipped(how: str) -> None:
    """A step is skipped where it or its phase is disabled."""
    plan = make_plan(make_step("a", enabled=how != "step"))
    if how == "phase":
        plan = replace(plan, phases=(PlannedPhase("A", "", enabled=False, steps=("a",)),))

    assert isinstance(decide(plan, m.initial(plan)), st.SkipStep)
    assert decide(plan, run(plan, ev.StepSkipped("a", "A", "disabled"))) == st.Finish(0)


def test_a_finished_step_is_judged_by_its_gate_or_passed() -> None:
    """Only a step without a gate passes by itself."""
    plan = make_plan(make_step("a", gate=GATE), make_step("b"))

    assert decide(plan, run(plan, started("a"), finished("a"))) == st.JudgeGate("a")
    state = run(plan, *attempt("a", "pass"), started("b"), finished("b"))
    assert decide(plan, state) == st.PassStep("b")


def test_all_passed_finishes_with_zero() -> None:
    """A session whose gates passed ends with exit 0."""
    plan = make_plan(make_step("a", gate=GATE))

    assert decide(plan, run(plan, *attempt("a", "pass"))) == st.Finish(0)


def test_the_first_failure_applies_the_declared_adjustment() -> None:
    """Failure 1 changes what the runbook declared, and the next attempt runs with it."""
    plan = make_plan(make_step("a", gate=GATE, **TUNED))
    facts = attempt("a", "fail")

    action = decide(plan, run(plan, *facts))

    assert action == st.Adjust("a", {"temperature": 0.5}, "cooler is cleaner")
    state = run(plan, *facts, ev.Adjusted("a", 1, {"temperature": 0.5}, ""))
    expected = {"temperature": 0.5, "sampling": {"top_k": 40}}
    assert decide(plan, state) == st.RunStep("a", 2, 1, expected)


def test_the_second_failure_asks_for_a_review() -> None:
    """Failure 2 is a reviewer's to answer, with retry, stop or override."""
    plan = make_plan(make_step("a", gate=GATE, **TUNED))
    adjusted = ev.Adjusted("a", 1, {"temperature": 0.5}, "")

    state = run(plan, *attempt("a", "fail"), adjusted, *attempt("a", "fail", 2))

    assert decide(plan, state) == st.AskReview(
        "a", 2, "gate failed", ("retry", "stop", "needs_human", "override")
    )


def test_review_after_one_asks_at_the_first_failure() -> None:
    """``review_after: 1`` puts a review in place of the adjustment."""
    plan = make_plan(make_step("a", gate=GATE, review_after=1, **TUNED))

    assert isinstance(decide(plan, run(plan, *attempt("a", "fail"))), st.AskReview)


def test_the_third_failure_is_closed_with_exit_three() -> None:
    """After the allotted retries a closing review is stored and the session stops."""
    plan = make_plan(make_step("a", gate=GATE, **TUNED))
    facts: list[ev.Event] = [
        *attempt("a", "fail"),
        ev.Adjusted("a", 1, {"temperature": 0.5}, ""),
        *attempt("a", "fail", 2),
        asked("a", "gate failed", 2),
        decided("a", "retry", 2),
        *attempt("a", "fail", 3),
    ]

    last = ("stop", "needs_human", "override")
    assert decide(plan, run(plan, *facts)) == st.AskReview("a", 3, "closing", last)
    stop = decide(plan, run(plan, *facts, asked("a", "closing", 3)))
    assert isinstance(stop, st.Stop)
    assert (stop.reason, stop.exit_code) == ("closing", 3)


@pytest.mark.parametrize(
    "change",
    [{"temperature": {"set": 0.1}}, {"missing": {"set": 1}}, {"temperature": {"multiply": 0.5}}],
)
def test_an_adjustment_that_changes_nothing_is_a_review(change: dict[str, Any]) -> None:
    """At its bound, or without such a parameter, an adjustment does not count."""
    step = make_step(
        "a",
        gate=GATE,
        params={"temperature": 0.1},
        adjustable={"temperature": Range(0.1, 1.0)},
        adjustments=(Adjustment("yield", change, "x"),),
    )
    plan = make_plan(step)

    assert isinstance(decide(plan, run(plan, *attempt("a", "fail"))), st.AskReview)


def test_an_adjustment_for_another_metric_does_not_apply() -> None:
    """Only the criteria that failed call for their adjustments."""
    step = make_step(
        "a", gate=GATE, params={"t": 1}, adjustments=(Adjustment("other", {"t": {"add": 1}}, ""),)
    )
    plan = make_plan(step)

    assert isinstance(decide(plan, run(plan, *attempt("a", "fail"))), st.AskReview)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"add": 100}, 50),
        ({"multiply": 0.5}, 20),
        ({"set": 12}, 12),
        ({"add": -100}, 10),
    ],
)
def test_adjustments_stay_in_range_and_keep_whole_numbers(
    operation: dict[str, Any], expected: int
) -> None:
    """A change is held within its range, and a whole number stays one."""
    step = make_step("a", gate=GATE, **TUNED)
    step = replace(step, adjustments=(Adjustment("yield", {"sampling.top_k": operation}, ""),))
    plan = make_plan(step)

    action = decide(plan, run(plan, *attempt("a", "fail")))

    assert isinstance(action, st.Adjust)
    assert action.changes == {"sampling.top_k": expected}
    assert isinstance(action.changes["sampling.top_k"], int)


def test_a_retry_begins_at_rerun_from_with_one_attempt_number() -> None:
    """The steps from rerun_from to the gate run again, and only they."""
    plan = make_plan(
        make_step("base"),
        make_step("sft", params={"lr": 1.0}),
        make_step(
            "eval",
            gate=GATE,
            rerun_from="sft",
            adjustable={"lr": Range(0.1, 1.0)},
            adjustments=(Adjustment("yield", {"lr": {"multiply": 0.5}}, "slower"),),
        ),
    )
    facts: list[ev.Event] = []
    for name in ("base", "sft"):
        facts += [started(name), finished(name), ev.StepPassed(name, 1)]
    facts += attempt("eval", "fail")

    assert decide(plan, run(plan, *facts)) == st.Adjust("eval", {"lr": 0.5}, "slower")
    state = run(plan, *facts, ev.Adjusted("eval", 1, {"lr": 0.5}, "slower"))

    assert decide(plan, state) == st.RunStep("sft", 2, 1, {"lr": 0.5})
    assert [s.attempt for s in state.steps.values()] == [1, 2, 2]
    assert state.steps["base"].status is st.Status.PASSED
    assert state.steps["eval"].failures == 1


def test_nested_retries_never_share_an_attempt_number() -> None:
    """A step that an inner gate ran again gets a fresh number from an outer gate too."""
    inner = make_step("inner", gate=GATE, params={"t": 1}, adjustable={"t": Range(0, 9)})
    plan = make_plan(inner, make_step("outer", gate=GATE, rerun_from="inner"))
    state = run(
        plan,
        *attempt("inner", "fail"),
        ev.Adjusted("inner", 1, {"t": 2}, ""),
        *attempt("inner", "pass", 2),
        *attempt("outer", "fail"),
        asked("outer", "gate failed"),
        decided("outer", "retry"),
    )

    assert [s.attempt for s in state.steps.values()] == [3, 3]
    assert decide(plan, state) == st.RunStep("inner", 3, 1, {"t": 2})


def test_an_underpowered_sample_is_extended_once() -> None:
    """The second look runs the same attempt with the extension's parameters; there is no third."""
    plan = make_plan(make_step("a", gate=EXTENDABLE, params={"rows": 200}))
    facts = attempt("a", "underpowered")

    assert decide(plan, run(plan, *facts)) == st.Extend("a", {"rows": 400})
    extended = ev.SampleExtended("a", 1, {"rows": 400})
    assert decide(plan, run(plan, *facts, extended)) == st.RunStep("a", 1, 2, {"rows": 400})
    state = run(plan, *facts, extended, *attempt("a", "underpowered", look=2))
    answers = ("stop", "needs_human", "override")
    assert decide(plan, state) == st.AskReview("a", 1, "underpowered", answers)


def test_underpowered_without_extension_is_a_review() -> None:
    """A fixed sample that is too small cannot be mended by running again."""
    plan = make_plan(make_step("a", gate=GATE))

    action = decide(plan, run(plan, *attempt("a", "underpowered")))

    assert isinstance(action, st.AskReview)
    assert action.reason == "underpowered"


@pytest.mark.parametrize("verdict", ["invalid", "no such verdict"])
def test_what_is_not_a_reading_never_passes(verdict: str) -> None:
    """An invalid or unknown verdict asks about the instrument and costs no retry."""
    plan = make_plan(make_step("a", gate=GATE))
    facts = attempt("a", verdict)
    state = run(plan, *facts)

    answers = ("stop", "needs_human", "override")
    assert decide(plan, state) == st.AskReview("a", 1, "instrument", answers)
    assert state.steps["a"].failures == 0
    stop = decide(plan, run(plan, *facts, asked("a", "instrument"), decided("a", "stop")))
    assert isinstance(stop, st.Stop)
    assert (stop.reason, stop.exit_code) == ("instrument", 3)


@pytest.mark.parametrize("verdict", ["pass", "fail", "underpowered", "invalid"])
def test_a_sentinel_stops_with_five_whatever_the_verdict(verdict: str) -> None:
    """One advisory review, then exit 5, whether anybody answers or not."""
    plan = make_plan(make_step("a", gate=EXTENDABLE, **TUNED))
    facts = [started("a"), finished("a"), judged("a", verdict, sentinel=True)]

    assert decide(plan, run(plan, *facts)) == st.AskReview(
        "a", 1, "sentinel", st.ALLOWED["sentinel"]
    )
    for answer in ([], [decided("a", "stop")], [decided("a", "override", person=False)]):
        stop = decide(plan, run(plan, *facts, asked("a", "sentinel"), *answer))
        assert isinstance(stop, st.Stop)
        assert (stop.reason, stop.exit_code) == ("sentinel", 5)


def test_a_person_overrides_even_after_a_stop_was_advised() -> None:
    """A person's override goes on, and the session then ends with exit 6."""
    plan = make_plan(make_step("a", gate=GATE))
    facts = [started("a"), finished("a"), judged("a", "fail", sentinel=True)]
    state = run(
        plan,
        *facts,
        asked("a", "sentinel"),
        decided("a", "stop", person=False),
        ev.SessionStopped("sentinel", 5, ""),
        decided("a", "override"),
    )

    assert decide(plan, state) == st.Finish(6)
    assert state.overrides == 1


def test_an_override_that_was_run_again_no_longer_stands() -> None:
    """A later retry judges the overridden gate anew."""
    plan = make_plan(
        make_step("a", gate=GATE), make_step("b", gate=GATE, rerun_from="a", review_after=1)
    )
    state = run(
        plan,
        *attempt("a", "invalid"),
        asked("a", "instrument"),
        decided("a", "override"),
        *attempt("b", "fail"),
        asked("b", "gate failed"),
        decided("b", "retry"),
        *attempt("a", "pass", 2),
        *attempt("b", "pass", 2),
    )

    assert decide(plan, state) == st.Finish(0)


def test_without_a_decision_the_session_waits_for_a_person() -> None:
    """An open review stops the session with exit 3 until its decision is appended."""
    plan = make_plan(make_step("a", gate=GATE, review_after=1))
    facts = [*attempt("a", "fail"), asked("a", "gate failed")]
    stop = decide(plan, run(plan, *facts))
    assert isinstance(stop, st.Stop)
    assert (stop.reason, stop.exit_code) == ("review", 3)

    stopped = ev.SessionStopped("review", 3, "")
    resumed = ev.SessionResumed()
    assert isinstance(decide(plan, run(plan, *facts, stopped, resumed)), st.Stop)
    state = run(plan, *facts, stopped, decided("a", "retry"), resumed)
    assert decide(plan, state) == st.RunStep("a", 2, 1, {})


@pytest.mark.parametrize(
    ("decision", "why"),
    [
        (decided("a", "proceed"), "not allowed"),
        (decided("b", "stop"), "no review"),
        (decided("a", "override", person=False), "only a person"),
        (replace(decided("a", "override"), reason=" "), "needs a reason"),
        (decided("a", "stop", temperature=0.5), "takes no changes"),
        (decided("a", "retry", temperature=2.0), "between 0.1 and 1.0"),
        (decided("a", "retry", temperature=float("nan")), "finite"),
        (decided("a", "retry", temperature=True), "finite"),
        (decided("a", "retry", seed=1), "not adjustable"),
        (decided("a", "retry", gone=1), "has a parameter"),
    ],
)
def test_a_decision_out_of_bounds_counts_as_none(decision: ev.ReviewDecided, why: str) -> None:
    """What a reviewer may not say is refused with its reason and changes nothing."""
    adjustable = {**TUNED["adjustable"], "gone": Range(0, 1)}  # type: ignore[dict-item]
    plan = make_plan(
        make_step("a", gate=GATE, review_after=1, **{**TUNED, "adjustable": adjustable})
    )
    state = run(plan, *attempt("a", "fail"), asked("a", "gate failed"))

    assert why in m.refuse_decision(plan, state, decision)
    assert m.apply(plan, state, decision) == state


def test_a_review_is_decided_once() -> None:
    """A second answer to a review changes nothing."""
    plan = make_plan(make_step("a", gate=GATE, review_after=1))
    state = run(plan, *attempt("a", "fail"), asked("a", "gate failed"), decided("a", "stop"))

    assert "decided already" in m.refuse_decision(plan, state, decided("a", "retry"))


@pytest.mark.parametrize("code", [1, 2, 3, 5])
def test_a_failed_step_stops_with_its_code_and_a_rerun_tries_it_again(code: int) -> None:
    """The step's error names the exit code; the same command runs the same attempt."""
    plan = make_plan(make_step("a"))
    facts = [started("a"), ev.StepFailed("a", 1, "boom", "", code)]
    stop = decide(plan, run(plan, *facts))
    assert isinstance(stop, st.Stop)
    assert (stop.reason, stop.exit_code) == ("error", code)

    again = [ev.SessionStopped("error", code, ""), ev.SessionResumed()]
    assert decide(plan, run(plan, *facts, *again)) == st.RunStep("a", 1, 1, {})
    assert decide(plan, run(plan, *facts, again[1])) == st.RunStep("a", 1, 1, {})


def test_interruptions_without_progress_end_and_a_person_begins_anew() -> None:
    """More than five interruptions in a row stop with exit 1; a rerun counts from zero."""
    plan = make_plan(make_step("a"))
    lost = [started("a"), ev.StepInterrupted("a", 1, "SIGKILL")]

    assert isinstance(decide(plan, run(plan, *lost * 5)), st.RunStep)
    stop = decide(plan, run(plan, *lost * 6))
    assert isinstance(stop, st.Stop)
    assert (stop.reason, stop.exit_code) == ("no progress", 1)
    rerun = [ev.SessionStopped("no progress", 1, ""), ev.SessionResumed()]
    assert run(plan, *lost * 6, *rerun).steps["a"].interruptions == 0


def test_a_committed_batch_forgives_the_interruptions_before_it() -> None:
    """A step that gets on may be interrupted any number of times."""
    plan = make_plan(make_step("a"))
    lost = [started("a"), ev.StepInterrupted("a", 1, "SIGKILL")]
    batch = ev.BatchCommitted("a", 1, "k", "p", "s", 1)

    state = run(plan, *lost * 5, started("a"), batch, *lost)

    assert state.steps["a"].interruptions == 1


def test_a_killed_executor_costs_its_step_an_interruption() -> None:
    """A step that was running when the session is resumed was interrupted."""
    plan = make_plan(make_step("a"))

    state = run(plan, started("a"), ev.SessionResumed())

    assert state.steps["a"].interruptions == 1
    assert state.steps["a"].status is st.Status.INTERRUPTED


def test_a_manifest_is_owed_from_the_verdict_until_it_is_written() -> None:
    """A kill between verdict and manifest leaves a debt that the next run pays."""
    plan = make_plan(make_step("a", gate=GATE))
    facts = attempt("a", "pass")
    written = ev.ManifestWritten("a", 1, "x/manifest.json", "sha")

    assert run(plan, *facts).steps["a"].manifest_owed
    assert not run(plan, *facts, written).steps["a"].manifest_owed


def test_a_strange_step_in_the_journal_is_refused() -> None:
    """Facts of another plan are corruption, not something to skip."""
    plan = make_plan(make_step("a"))

    with pytest.raises(CorruptError, match="the plan lacks"):
        run(plan, started("b"))


def judgements(step: str, number: int, look: int) -> Iterator[ev.GateJudged]:
    """Every verdict, and failures by little and by much."""
    for verdict in ("pass", "fail", "underpowered", "invalid"):
        yield judged(step, verdict, number, look)
    for value in (0.1, 0.4, 0.6):
        yield judged(step, "fail", number, look, value=value)
    yield judged(step, "fail", number, look, sentinel=True)


def outcomes(state: st.State, action: st.Action) -> Iterator[Sequence[ev.Event]]:
    """Every way in which the world may answer an act."""
    match action:
        case st.RunStep(step, number, look):
            begin = started(step, number, look)
            batch = ev.BatchCommitted(step, number, "k", "p", "s", 1)
            yield begin, batch, finished(step, number, look)
            if CERTIFIED in state.steps:
                asks = finished(step, number, look, "is it fair?", certificate=True)
                yield begin, batch, asks
            yield begin, ev.StepFailed(step, number, "boom", "", 1)
            yield begin, ev.StepInterrupted(step, number, "SIGKILL")
        case st.JudgeGate(step):
            mine = state.steps[step]
            yield from ((fact,) for fact in judgements(step, mine.attempt, mine.look))
        case st.PassStep(step):
            yield (ev.StepPassed(step, state.steps[step].attempt),)
        case st.SkipStep(step, phase, why):
            yield (ev.StepSkipped(step, phase, why),)
        case st.Extend(step, params):
            yield (ev.SampleExtended(step, state.steps[step].attempt, params),)
        case st.Adjust(step, changes, why, smoke):
            yield (ev.Adjusted(step, state.steps[step].attempt, changes, why, smoke),)
        case st.AskReview(step, number, reason, allowed):
            yield from answers(asked(step, reason, number), allowed)


def answers(question: ev.ReviewRequested, allowed: Sequence[str]) -> Iterator[Sequence[ev.Event]]:
    """None, and each by a person and a model; a person's needs_human leads where a model's does."""
    yield (question,)
    step, number = question.step, question.attempt
    for answer in (*allowed, "proceed"):
        if answer != st.NEEDS_HUMAN:
            yield question, decided(step, answer, number)
        yield question, decided(step, answer, number, person=False)


def walk(plan: Plan) -> tuple[int, set[tuple[str, int]]]:
    """Visit every reachable state; the longest run in acts, and the ends."""
    longest: dict[str, int] = {}
    ends: set[tuple[str, int]] = set()
    open_now: set[str] = set()

    def visit(state: st.State) -> int:
        key = repr(state)
        if key in longest:
            return longest[key]
        assert key not in open_now, "a run can come back to where it was"
        assert len(open_now) < LIMIT
        open_now.add(key)
        action = decide(plan, state)
        if isinstance(action, st.Stop | st.Finish):
            ends.add((getattr(action, "reason", "done"), action.exit_code))
            longest[key] = 0
        else:
            following = [follow(plan, state, f) for f in outcomes(state, action)]
            longest[key] = 1 + max(visit(after) for after in following)
        open_now.remove(key)
        return longest[key]

    return visit(m.initial(plan)), ends


def follow(plan: Plan, state: st.State, facts: Sequence[ev.Event]) -> st.State:
    for fact in facts:
        state = m.apply(plan, state, fact)
    return state


def test_every_run_of_a_small_plan_ends() -> None:
    """All sequences of outcomes lead to a stop or the end, and none comes back to where it was."""
    step = make_step("b", gate=EXTENDABLE, rerun_from="a", **TUNED)
    longest, ends = walk(make_plan(make_step("a"), step))

    assert 20 < longest < 80
    assert ends == {
        ("done", 0),
        ("done", 6),
        ("error", 1),
        ("no progress", 1),
        ("review", 3),
        ("gate failed", 3),
        ("closing", 3),
        ("instrument", 3),
        ("underpowered", 3),
        ("sentinel", 5),
    }


def test_every_run_of_a_plan_with_a_smoke_ends() -> None:
    """Smokes are bounded by the changes that are declared; none of them passes the step."""
    cooler = Adjustment("yield", {"temperature": {"set": 0.2}}, "coolest")
    step = make_step("b", gate=SMOKED, retries=2, **TUNED)
    step = replace(step, adjustments=(*step.adjustments, cooler))
    longest, ends = walk(make_plan(make_step("a"), step))

    assert 20 < longest < 120
    assert ends == {
        ("done", 0),
        ("done", 6),
        ("error", 1),
        ("no progress", 1),
        ("review", 3),
        ("gate failed", 3),
        ("closing", 3),
        ("instrument", 3),
        ("underpowered", 3),
        ("smoke", 3),
        ("sentinel", 5),
    }


def test_every_run_with_questions_and_certificates_ends() -> None:
    """A question leads on by proceed alone; instruments are certified anew once."""
    step = make_step(CERTIFIED, gate=EXTENDABLE, retries=1)
    longest, ends = walk(make_plan(step))

    assert 20 < longest < 80
    assert ends == {
        ("done", 0),
        ("done", 6),
        ("error", 1),
        ("no progress", 1),
        ("review", 3),
        ("gate failed", 3),
        ("closing", 3),
        ("instrument", 3),
        ("underpowered", 3),
        ("question", 3),
        ("sentinel", 5),
    }


@given(strategies.data())
def test_every_run_ends_with_resumes_in_between(data: strategies.DataObject) -> None:
    """Whatever happens, with a resume after any act, a session ends in bounded transitions."""
    inner = make_step("b", gate=EXTENDABLE, rerun_from="a", retries=1, **TUNED)
    plan = make_plan(make_step("a"), inner, make_step("c", gate=GATE, rerun_from="a"))
    state = m.initial(plan)
    resumes = 3
    for _ in range(LIMIT):
        action = decide(plan, state)
        if isinstance(action, st.Finish):
            return
        if isinstance(action, st.Stop):
            if resumes == 0:
                return
            resumes -= 1
            facts: Sequence[ev.Event] = (
                ev.SessionStopped(action.reason, action.exit_code, action.detail),
                ev.SessionResumed(),
            )
        else:
            facts = data.draw(strategies.sampled_from(list(outcomes(state, action))))
        state = follow(plan, state, facts)
    pytest.fail("the run did not end")


@given(strategies.data())
def test_every_run_ends_with_changes_accepted_in_between(data: strategies.DataObject) -> None:
    """Whatever is made or judged anew after any act, a session ends in bounded transitions."""
    inner = make_step("b", gate=EXTENDABLE, inputs=("a",), rerun_from="a", retries=1, **TUNED)
    plan = make_plan(make_step("a"), inner, make_step("c", gate=GATE, inputs=("b",)))
    state = m.initial(plan)
    acceptances = 3
    highest = dict.fromkeys("abc", 1)
    for _ in range(LIMIT):
        action = decide(plan, state)
        ended = isinstance(action, st.Finish | st.Stop)
        if acceptances and (ended or data.draw(strategies.booleans())):
            acceptances -= 1
            judgeable = [n for n, s in state.steps.items() if s.finished]
            rejudged = data.draw(strategies.sets(strategies.sampled_from(judgeable or [""])))
            anew = data.draw(strategies.sets(strategies.sampled_from("abc"))) - rejudged
            names = (tuple(sorted(anew)), tuple(sorted(rejudged - {""})))
            facts: Sequence[ev.Event] = (
                ev.PlanAccepted("r", "me", (), {}, "f", "", (), *names),
                ev.SessionResumed(),
            )
        elif ended:
            return
        else:
            facts = data.draw(strategies.sampled_from(list(outcomes(state, action))))
        state = follow(plan, state, facts)
        for name, mine in state.steps.items():
            assert mine.attempt >= highest[name]
            assert mine.failures >= 0
            highest[name] = mine.attempt
    pytest.fail("the run did not end")


def test_a_later_step_does_not_outlive_what_it_read() -> None:
    """Where a gate that is judged again fails, the steps that read its step begin anew with it."""
    plan = make_plan(make_step("a", gate=GATE, **TUNED), make_step("b", inputs=("a",)))
    done = (*attempt("a", "pass"), started("b"), finished("b"), ev.StepPassed("b", 1))
    accepted = ev.PlanAccepted("r", "me", (), {}, "f", "", (), (), ("a",))

    state = m.replay(plan, (*done, accepted, judged("a", "fail")))
    assert state.steps["b"].status is st.Status.PASSED
    state = m.apply(plan, state, ev.Adjusted("a", 1, {"temperature": 0.5}, "w"))

    assert [(s.status, s.attempt) for s in state.steps.values()] == [(st.Status.PENDING, 2)] * 2


def test_a_second_look_that_has_not_begun_is_taken_back_by_a_changed_gate() -> None:
    """The first look's bytes are judged by the new gate, which may want another extension."""
    plan = make_plan(make_step("a", gate=EXTENDABLE))
    accepted = ev.PlanAccepted("r", "me", (), {}, "f", "", (), (), ("a",))
    facts = (*attempt("a", "underpowered"), ev.SampleExtended("a", 1, {"rows": 400}), accepted)

    state = m.replay(plan, facts)

    assert (state.steps["a"].look, state.steps["a"].extension) == (1, {})
    assert decide(plan, state) == st.JudgeGate("a")


EVENTS: list[ev.Event] = [
    ev.SessionStarted("r", "/x", "n", "f", ("a=1",), {"steps": [1]}, {"python": "3.11"}),
    ev.SessionResumed(),
    ev.StepStarted("a", 1, 1, {"x": [1, {"y": None}]}, "o", "t"),
    ev.BatchCommitted("a", 1, "k", "p", "s", 3),
    ev.StepFinished(
        "a",
        1,
        2,
        (Metric("m", 0.5, 10, 5, "rows", Instrument.UNCALIBRATED, "e", "n"), Metric("z", None)),
        (Artifact("d", "p", "s", 3),),
        9,
        1.5,
        {"n": 1},
        ({"id": 1},),
        (),
    ),
    ev.StepFailed("a", 1, "e", "t", 2),
    ev.StepInterrupted("a", 1, "SIGKILL"),
    ev.PlanAccepted("r", "me", ("seed: 1 -> 2",), {"seed": 2}, "f", "/x", (), ("a",), ("b",)),
    ev.TimeLeased(1.5, 300.0),
    ev.RequestSent("a-1", "key", 1, 0.5),
    ev.RequestSettled("a-1", "key", 1, 0.25, 900, 40),
    ev.PodStopRequested("t", None, "RUNNING"),
    judged("a", "fail"),
    ev.StepPassed("a", 1),
    ev.ManifestWritten("a", 1, "p", "s"),
    ev.SampleExtended("a", 1, {"n": 2}),
    ev.Adjusted("a", 1, {"t": 0.5}, "w"),
    asked("a", "closing"),
    replace(decided("a", "retry", t=0.5), concerns=("c",), action_items=("i",), confidence=0.5),
    ev.StepSkipped("a", "A", "w"),
    ev.SessionStopped("budget", 4, "d"),
    ev.SessionDone(6, 1),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_every_event_survives_its_json_form(event: ev.Event) -> None:
    """An event read back from the journal equals the one appended."""
    assert ev.from_body(event.to_body()) == event


def test_the_round_trip_covers_every_event() -> None:
    """No event is left out of the test above."""
    assert {type(e).__name__ for e in EVENTS} == set(ev._REGISTRY)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"type": "Nonsense"}, "unknown event 'Nonsense'"),
        ({}, "unknown event None"),
        ({"type": "StepPassed", "step": "a"}, "attempt"),
        ({"type": "StepPassed", "step": "a", "attempt": "1"}, "expected int"),
        ({"type": "StepPassed", "step": "a", "attempt": 1, "new": 2}, "unknown field 'new'"),
        ({"type": "SessionDone", "exit_code": True, "overrides": 0}, "expected int"),
    ],
)
def test_a_body_that_is_no_event_is_refused(body: dict[str, Any], why: str) -> None:
    """A fact that cannot be read is never skipped."""
    with pytest.raises(CorruptError, match=why):
        ev.from_body(body)


def test_not_a_number_travels_as_not_measured() -> None:
    """A metric that is NaN or infinite reads as None after the journal."""
    event = replace(finished("a"), metrics=(Metric("m", float("nan")), Metric("i", float("inf"))))

    again = ev.from_body(event.to_body())

    assert isinstance(again, ev.StepFinished)
    assert [metric.value for metric in again.metrics] == [None, None]
