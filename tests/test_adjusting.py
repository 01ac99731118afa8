"""Adjustments: from the best attempt so far, and nothing again that made it worse."""

from dataclasses import replace

import pytest

from runbook import events as ev
from runbook import machine as m
from runbook import state as st
from runbook.adjusting import next_adjustment, shortfall
from runbook.contract import Criterion, Gate, Json, Range
from runbook.next_act import decide
from runbook.plan import Adjustment, Plan
from runbook.testing import make_plan, make_step

CRITERIA = (
    Criterion("limit", "rate", below=0.10),
    Criterion("tokens", "statistic", below=40.0),
    Criterion("yield", "rate", at_least=0.5),
)
LONGER = Adjustment("limit", {"max_new": {"add": 10}}, "longer")
SHORTER = Adjustment("tokens", {"max_new": {"set": 30}}, "shorter")
PLAN = make_plan(
    make_step(
        "a",
        gate=Gate(CRITERIA),
        retries=9,
        review_after=9,
        params={"max_new": 40, "temperature": 0.7},
        adjustable={"max_new": Range(10, 100), "temperature": Range(0.1, 1.0)},
        adjustments=(LONGER,),
    )
)
READS = {"limit": 0.05, "tokens": 20.0, "yield": 0.8}


def with_rules(*rules: Adjustment) -> Plan:
    return replace(PLAN, steps=(replace(PLAN.steps[0], adjustments=rules),))


def judged(attempt: int, **readings: float) -> ev.GateJudged:
    """What the gate found: what is not named holds."""
    criteria: list[dict[str, Json]] = []
    for criterion in CRITERIA:
        value = {**READS, **readings}[criterion.metric]
        holds = value < criterion.below if criterion.below else value >= (criterion.at_least or 0)
        said = "pass" if holds else "fail"
        named = {"metric": criterion.metric, "kind": criterion.kind}
        criteria.append({**named, "verdict": said, "value": value, "bound": None})
    return ev.GateJudged("a", attempt, 1, "fail", tuple(criteria), (), sentinel=False)


def after(plan: Plan, *readings: dict[str, float]) -> tuple[st.Action, dict[str, Json]]:
    """The act that follows these failed attempts, and the parameters of the newest."""
    state, params = m.initial(plan), {}
    for number, reading in enumerate(readings, 1):
        action = decide(plan, state)
        if isinstance(action, st.Adjust):
            before = state.steps["a"].attempt
            state = m.apply(plan, state, ev.Adjusted("a", before, action.changes, action.why))
            action = decide(plan, state)
        assert isinstance(action, st.RunStep)
        assert action.attempt == number
        params = dict(action.params)
        step = st.StepState(**{**vars(state.steps["a"]), "judged": judged(number, **reading)})
        step = replace(step, status=st.Status.JUDGED, failures=number)
        state = replace(state, steps={"a": step})
    return decide(plan, state), params


def test_a_change_that_helped_is_gone_on_with() -> None:
    """Nearer to the bound, though not there: the same rule again, from the newest attempt."""
    action, _ = after(PLAN, {"limit": 0.7}, {"limit": 0.3})

    assert action == st.Adjust("a", {"max_new": 60}, "longer")


def test_a_change_that_made_it_worse_is_not_made_again() -> None:
    """Where it is the only one declared, a reviewer is asked."""
    action, params = after(PLAN, {"limit": 0.3}, {"limit": 0.7})

    assert params["max_new"] == 50
    assert isinstance(action, st.AskReview)
    assert action.reason == "gate failed"


def test_rules_that_were_tried_together_are_not_made_again() -> None:
    """Which of the two made it worse nobody knows."""
    cooler = Adjustment("yield", {"temperature": {"add": -0.2}}, "cooler")
    action, params = after(
        with_rules(LONGER, cooler),
        {"limit": 0.9},
        {"limit": 0.2, "yield": 0.4},
        {"limit": 0.8, "yield": 0.4},
    )

    assert params == {"max_new": 60, "temperature": 0.5}
    assert isinstance(action, st.AskReview)


def test_one_failure_in_anothers_place_is_weighed() -> None:
    """Attempt 3 mends the limit at a higher price, so attempt 2 stays the best."""
    action, _ = after(
        with_rules(LONGER, SHORTER),
        {"limit": 0.3},
        {"limit": 0.2},
        {"limit": 0.05, "tokens": 90.0},
    )
    assert isinstance(action, st.AskReview)

    action, _ = after(
        with_rules(LONGER, SHORTER),
        {"limit": 0.3},
        {"limit": 0.2},
        {"limit": 0.05, "tokens": 60.0},
    )
    assert action == st.Adjust("a", {"max_new": 30}, "shorter")


def test_the_next_attempt_starts_from_the_best_one_so_far() -> None:
    """What made it worse is taken back, and a rule that was not tried yet is followed."""
    third = Adjustment("limit", {"temperature": {"set": 0.3}}, "coolest")
    plan = with_rules(LONGER)
    state_rules = with_rules(LONGER, third)
    _, params = after(plan, {"limit": 0.3}, {"limit": 0.7})
    assert params == {"max_new": 50, "temperature": 0.7}

    # The rule was declared later: the same two attempts, and a plan that knows one thing more.
    state = m.initial(plan)
    for number, value in ((1, 0.3), (2, 0.7)):
        facts = [
            ev.StepStarted("a", number, 1, {}, f"out/{number}", ""),
            judged(number, limit=value),
        ]
        if number == 2:
            facts.insert(0, ev.Adjusted("a", 1, {"max_new": 50}, "longer"))
        for fact in facts:
            state = m.apply(plan, state, fact)
    action = decide(state_rules, state)

    assert isinstance(action, st.Adjust)
    assert action.changes == {"max_new": 40, "temperature": 0.3}
    assert action.why == "coolest; from attempt 1, the best so far"


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        ({}, 0.0),
        ({"limit": 0.2}, 1.0),
        ({"yield": 0.25}, 0.5),
        ({"tokens": 60.0, "limit": 0.15}, 1.0),
    ],
)
def test_how_far_a_gate_is_from_passing(readings: dict[str, float], expected: float) -> None:
    """The sum over the criteria that failed, each in shares of its bound."""
    assert shortfall(PLAN.steps[0], judged(1, **readings)) == pytest.approx(expected)


def test_a_rate_that_failed_by_its_bound_alone_is_measured_by_it() -> None:
    """The rate holds, its one-sided bound does not: the bound's distance counts."""
    result = {"metric": "limit", "kind": "rate", "verdict": "fail", "value": 0.08, "bound": 0.12}
    verdict = replace(judged(1), criteria=(result,))

    assert shortfall(PLAN.steps[0], verdict) == pytest.approx(0.2)


def test_an_attempt_that_measured_little_is_not_the_best() -> None:
    """Two rates that were not read count for more than one that was read and failed."""
    unread = judged(2, tokens=41.0)
    for place in (0, 2):
        row = {**unread.criteria[place], "verdict": "underpowered"}
        unread = replace(
            unread, criteria=(*unread.criteria[:place], row, *unread.criteria[place + 1 :])
        )
    attempts = (st.Tried(1, {}, judged(1, limit=0.12)), st.Tried(2, {"max_new": 50}, unread))
    rules = with_rules(LONGER, Adjustment("limit", {"temperature": {"set": 0.3}}, "coolest"))

    action = next_adjustment(rules.steps[0], attempts, [rules.steps[0].params])

    assert action is not None
    assert action.changes == {"max_new": 40, "temperature": 0.3}
