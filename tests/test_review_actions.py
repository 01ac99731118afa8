"""What follows on a review's answer: each action leads where the rules say, and nowhere else."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_executor import execute, history, last_stop

from agent.answer import UnusableError, answer_schema, instruction, read_answer
from runbook import events as ev
from runbook.contract import Criterion, Decision, Gate, Json, Range, ReviewRequest
from runbook.errors import ConfigError
from runbook.journal import facts, read_entries
from runbook.plan import Plan
from runbook.review import record_decision
from runbook.testing import make_plan, make_step
from runbook.workspace import Workspace

GATE = Gate((Criterion("m", "rate", at_least=0.5),))
EXTENDABLE = replace(GATE, extend={"batches": 4})
CERTIFYING = {"certificate": True, "metrics": {"m": 0.9}}
BROKEN = {"value": 0.9, "instrument": "broken"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "ws")


class Scripted:
    """A model's answers, one a review, and the questions it was put."""

    def __init__(self, *answers: str | Decision | None) -> None:
        self.answers: Iterator[str | Decision | None] = iter(answers)
        self.asked: list[ReviewRequest] = []

    def __call__(self, request: ReviewRequest) -> Decision | None:
        self.asked.append(request)
        answer = next(self.answers)
        if isinstance(answer, str):
            return Decision(answer, "the rows say so", "scripted", person=False)
        return answer


def plan_of(gate: Gate | None = GATE, **params: Json) -> Plan:
    """One step, reviewed at its first failure."""
    step = make_step("a", gate=gate, review_after=1, params=params, adjustable={"x": Range(0, 9)})
    return make_plan(step)


def known(workspace: Workspace) -> Sequence[ev.Event]:
    return facts(read_entries(workspace))


def by_person(action: str, review_id: str = "a-1") -> ev.ReviewDecided:
    return ev.ReviewDecided(review_id, action, {}, "I read the rows", "me", person=True)


def test_extend_looks_at_more_of_the_sample_that_failed(workspace: Workspace) -> None:
    """The second look keeps the attempt's number and its batches, and may pass."""
    reviewer = Scripted("extend")
    low_then_high = {"value": 0.9, "n_per_batch": 10}
    gate = replace(EXTENDABLE, criteria=(Criterion("m", "rate", at_least=0.5),))

    def judge(gate: Gate, metrics: Sequence[Json], final: bool) -> Json:
        from runbook.testing import simple_gates  # noqa: PLC0415 - the fake that is bent here

        read = tuple(replace(m, value=0.9 if (m.n or 0) > 20 else 0.1) for m in metrics)
        return simple_gates(gate, read, final)

    code = execute(plan_of(gate, metrics={"m": low_then_high}), workspace, reviewer, gates=judge)

    assert code == 0
    assert "extend" in reviewer.asked[0].allowed
    looks = [(f.attempt, f.look) for f in known(workspace) if isinstance(f, ev.StepStarted)]
    assert looks == [(1, 1), (1, 2)]
    assert sum(isinstance(f, ev.BatchCommitted) for f in known(workspace)) == 4


@pytest.mark.parametrize("case", ["no extension declared", "the second look"])
def test_extend_is_offered_only_where_there_is_more_to_see(workspace: Workspace, case: str) -> None:
    """Without a declared extension, or at the second look, it is no answer."""
    gate = GATE if case == "no extension declared" else EXTENDABLE
    reviewer = Scripted(*["extend"] * 3)

    assert execute(plan_of(gate, metrics={"m": 0.1}), workspace, reviewer) == 3

    assert "extend" not in reviewer.asked[-1].allowed
    refused = sorted(workspace.root.glob("reviews/*/error.txt"))
    assert "'extend' is not allowed here" in refused[-1].read_text()


def test_recalibrate_certifies_the_instruments_anew_and_once(workspace: Workspace) -> None:
    """The certifying step and the step in question run again; what passed between them stays."""
    certifying = make_step("c", gate=GATE, params=CERTIFYING)
    between = make_step("b", gate=GATE, inputs=("c",), params={"metrics": {"m": 0.9}})
    last = make_step("a", gate=GATE, inputs=("c", "b"), params={"metrics": {"m": BROKEN}})
    reviewer = Scripted("recalibrate", "recalibrate")

    assert execute(make_plan(certifying, between, last), workspace, reviewer) == 3

    ran = [(f.step, f.attempt) for f in known(workspace) if isinstance(f, ev.StepStarted)]
    assert ran == [("c", 1), ("b", 1), ("a", 1), ("c", 2), ("a", 2)]
    assert ["recalibrate" in request.allowed for request in reviewer.asked] == [True, False]
    assert last_stop(workspace).reason == "review"


def test_recalibrate_can_lead_to_a_pass(workspace: Workspace) -> None:
    """Instruments that work at the second certification let the gate be read."""
    certifying = make_step("c", gate=GATE, params=CERTIFYING)
    last = make_step("a", gate=GATE, inputs=("c",), params={"metrics": {"m": [None, 0.9]}})

    assert execute(make_plan(certifying, last), workspace, Scripted("recalibrate")) == 0


def test_recalibrate_is_not_offered_where_nothing_certifies(workspace: Workspace) -> None:
    """A broken reading without a certificate behind it is a person's to mend."""
    reviewer = Scripted("stop")

    assert execute(plan_of(metrics={"m": BROKEN}), workspace, reviewer) == 3

    assert reviewer.asked[0].allowed == ("stop", "needs_human", "override")
    assert last_stop(workspace).reason == "instrument"


def test_needs_human_leaves_the_whole_list_to_a_person(workspace: Workspace) -> None:
    """It is on record, the session waits, and a person's retry then goes on."""
    plan = plan_of(metrics={"m": [0.1, 0.9]})
    reviewer = Scripted("needs_human")

    assert execute(plan, workspace, reviewer) == 3
    assert last_stop(workspace).reason == "review"
    assert execute(plan, workspace, reviewer) == 3
    assert len(reviewer.asked) == 1

    with pytest.raises(ConfigError, match="decided already: needs_human"):
        record_decision(plan, workspace, by_person("needs_human"))
    record_decision(plan, workspace, by_person("retry"))
    assert execute(plan, workspace, reviewer) == 0
    actions = [f.action for f in known(workspace) if isinstance(f, ev.ReviewDecided)]
    assert actions == ["needs_human", "retry"]


def test_a_second_model_does_not_answer_what_was_left_to_a_person(workspace: Workspace) -> None:
    """After needs_human no model's word counts any more."""
    plan = plan_of(metrics={"m": 0.1})
    execute(plan, workspace, Scripted("needs_human"))

    again = replace(by_person("retry"), person=False)

    with pytest.raises(ConfigError, match="decided already"):
        record_decision(plan, workspace, again)


@pytest.mark.parametrize("gate", [GATE, None], ids=["with a gate", "without a gate"])
@pytest.mark.parametrize("answer", ["proceed", "stop", "needs_human", None])
def test_a_steps_own_question_is_answered_before_the_session_goes_on(
    workspace: Workspace, gate: Gate | None, answer: str | None
) -> None:
    """Only proceed leads on, with exit 0, since no criterion failed."""
    plan = make_plan(
        make_step("a", gate=gate, params={"metrics": {"m": 0.9}, "question": " fair\x07? "}),
        make_step("b"),
    )
    reviewer = Scripted(answer)

    code = execute(plan, workspace, reviewer)

    (request,) = reviewer.asked
    assert (request.reason, request.question) == ("question", "fair\x07?")
    assert request.allowed == ("proceed", "stop", "needs_human")
    assert code == (0 if answer == "proceed" else 3)
    started = [f.step for f in known(workspace) if isinstance(f, ev.StepStarted)]
    assert started == (["a", "b"] if answer == "proceed" else ["a"])
    if answer != "proceed":
        assert last_stop(workspace).reason == ("question" if answer == "stop" else "review")


def test_a_question_beside_a_failure_is_part_of_the_gates_review(workspace: Workspace) -> None:
    """Where a criterion failed, proceed is no answer."""
    reviewer = Scripted("proceed")

    assert execute(plan_of(metrics={"m": 0.1}, question="fair?"), workspace, reviewer) == 3

    assert reviewer.asked[0].question == "fair?"
    assert "proceed" not in reviewer.asked[0].allowed
    assert "StepPassed" not in history(workspace)


def test_a_person_answers_a_question_and_the_session_ends_with_zero(workspace: Workspace) -> None:
    """Proceeding is no override: nothing failed."""
    plan = plan_of(metrics={"m": 0.9}, question="fair?")
    assert execute(plan, workspace, Scripted(None, None)) == 3

    record_decision(plan, workspace, by_person("proceed"))

    assert execute(plan, workspace, Scripted()) == 0


@pytest.mark.parametrize("action", ["proceed", "override", "clear", "Retry", "", "retry "])
def test_what_stands_in_no_list_is_no_answer(workspace: Workspace, action: str) -> None:
    """A model's word outside the review's list changes nothing, and a person is asked."""
    assert execute(plan_of(metrics={"m": 0.1}), workspace, Scripted(action)) == 3

    assert last_stop(workspace).reason == "review"
    assert "ReviewDecided" not in history(workspace)


def test_a_closing_review_is_stored_and_not_acted_on(workspace: Workspace) -> None:
    """After the last failure the reviewer's words are kept for the reader; the session is over."""
    step = make_step("a", gate=GATE, review_after=1, retries=0, params={"metrics": {"m": 0.1}})
    words = Decision(
        "needs_human", "look at the rows", "scripted", person=False, concerns=("few rows",)
    )

    assert execute(make_plan(step), workspace, Scripted(words)) == 3

    (decided,) = [f for f in known(workspace) if isinstance(f, ev.ReviewDecided)]
    assert (decided.action, decided.concerns) == ("needs_human", ("few rows",))
    assert last_stop(workspace).reason == "closing"


def test_all_that_a_model_said_is_on_record(workspace: Workspace) -> None:
    """Concerns, action items and confidence stand in the journal beside the action."""
    said = Decision(
        "stop", "r", "scripted", person=False, concerns=("c",), action_items=("i",), confidence=0.4
    )

    execute(plan_of(metrics={"m": 0.1}), workspace, Scripted(said))

    (decided,) = [f for f in known(workspace) if isinstance(f, ev.ReviewDecided)]
    assert (decided.concerns, decided.action_items, decided.confidence) == (("c",), ("i",), 0.4)


@pytest.mark.parametrize("first", [1, 1.0])
def test_a_parameter_stays_of_its_kind(workspace: Workspace, first: float) -> None:
    """Set to 1, a fraction can still be set to 0.5 by the next review."""
    step = make_step(
        "a",
        gate=GATE,
        review_after=1,
        retries=3,
        params={"t": 0.7, "metrics": {"m": 0.1}},
        adjustable={"t": Range(0.1, 1.0)},
    )
    retry = Decision("retry", "cooler", "scripted", person=False)
    answers = [replace(retry, changes={"t": t}) for t in (first, 0.5)]
    ask = Scripted(*answers, "stop")

    assert execute(make_plan(step), workspace, ask) == 3

    assert [type(a.params["t"]) for a in ask.asked[-1].attempts] == [float] * 3
    assert [a.params["t"] for a in ask.asked[-1].attempts] == [0.7, 1.0, 0.5]


def test_what_takes_whole_numbers_alone_is_told(workspace: Workspace) -> None:
    """By the plan's own value; a fraction for it is no answer, and a whole one counts."""
    step = make_step(
        "a",
        gate=GATE,
        review_after=1,
        retries=3,
        params={"t": 0.7, "batches": 2, "metrics": {"m": 0.1}},
        adjustable={"t": Range(0.1, 1.0), "batches": Range(1, 4)},
    )
    ask = Scripted("stop")
    assert execute(make_plan(step), workspace, ask) == 3
    (asked,) = ask.asked
    assert asked.whole == ("batches",)
    offered = answer_schema(asked)["properties"]["changes"]["properties"]
    assert offered["batches"]["anyOf"][0] == {"type": "integer"}
    assert offered["t"]["anyOf"][0] == {"type": "number"}
    assert '"batches": {"min": 1, "max": 4, "whole": true}' in instruction(asked)

    def reply(value: float) -> bytes:
        told = {"action": "retry", "reason": "why", "changes": {"batches": value}}
        return json.dumps(told).encode()

    with pytest.raises(UnusableError, match="must be a whole number"):
        read_answer(reply(2.5), asked)
    assert read_answer(reply(3.0), asked).decision("m").changes == {"batches": 3}
