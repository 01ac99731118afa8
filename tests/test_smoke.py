"""The smoke: a few rows that show, before a full rerun, whether a declared change helps."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from runbook import events as ev
from runbook import machine as m
from runbook import state as st
from runbook.contract import Criterion, Gate, Json, Range
from runbook.errors import ConfigError
from runbook.fingerprint import plan_document, recorded_plan
from runbook.next_act import decide
from runbook.plan import Adjustment, Plan
from runbook.schema import load_plan
from runbook.testing import make_plan, make_step

SPECS = Path(__file__).parents[1] / "specs"
FEW = {"rows": 24, "draw.lists": 4}
CRITERIA = (
    Criterion("limit", "rate", below=0.10, min_n=100),
    Criterion("tokens", "statistic", below=40),
    Criterion("kept", "census", at_least=100),
)
LONGER = Adjustment("limit", {"max_new": {"add": 10}}, "longer")
COOLER = Adjustment("limit", {"temperature": {"add": -0.2}}, "cooler")
SHORTER = Adjustment("tokens", {"temperature": {"add": -0.1}}, "shorter")
MORE = Adjustment("kept", {"max_new": {"set": 80}}, "more")
READS: Mapping[str, float | None] = {"limit": 0.3, "tokens": 20.0, "kept": 120}


def planned(*rules: Adjustment, smoke: Mapping[str, Json] | None = FEW) -> Plan:
    """One step, whose gate declares a smoke."""
    step = make_step(
        "a",
        gate=Gate(CRITERIA, smoke=smoke),
        retries=9,
        review_after=9,
        params={"max_new": 40, "temperature": 0.7, "rows": 200, "draw": {"lists": 64}},
        adjustable={"max_new": Range(10, 100), "temperature": Range(0.1, 1.0)},
        adjustments=rules,
    )
    return make_plan(step)


class Session:
    """A step's attempts, one after the other, each with given readings."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.state = m.initial(plan)

    @property
    def next(self) -> st.Action:
        return decide(self.plan, self.state)

    def do(self, *facts: ev.Event) -> None:
        for fact in facts:
            self.state = m.apply(self.plan, self.state, fact)

    def attempt(
        self,
        verdict: str = "fail",
        n: int | None = 24,
        broken: str = "",
        *,
        sentinel: bool = False,
        **readings: float | None,
    ) -> st.Action:
        """Run and judge what comes next; the act that follows.

        ``broken`` names a reading of no sound instrument.
        """
        if isinstance(change := self.next, st.Adjust):
            before = self.state.steps["a"].attempt
            self.do(ev.Adjusted("a", before, change.changes, change.why, change.smoke))
        act = self.next
        assert isinstance(act, st.RunStep)
        criteria = tuple(
            judged(c, {**READS, **readings}[c.metric], n, broken=c.metric == broken)
            for c in CRITERIA
        )
        self.do(
            ev.StepStarted("a", act.attempt, act.look, act.params, f"out/{act.attempt}", ""),
            ev.StepFinished("a", act.attempt, act.look, (), (), 0, 1.0, {}, (), ()),
            ev.GateJudged("a", act.attempt, act.look, verdict, criteria, ("why",), sentinel),
        )
        return self.next


def judged(
    criterion: Criterion, value: float | None, n: int | None, *, broken: bool
) -> dict[str, Json]:
    """A criterion's result, as the journal holds it."""
    if value is None or broken:
        said = "invalid"
    elif criterion.below is not None:
        said = "pass" if value < criterion.below else "fail"
    else:
        said = "pass" if value >= (criterion.at_least or 0) else "fail"
    named = {"metric": criterion.metric, "kind": criterion.kind}
    return {**named, "verdict": said, "value": value, "n": n}


def test_a_change_is_tried_on_a_few_rows_first() -> None:
    """The next attempt is look 0, with the smoke's size and the change."""
    session = Session(planned(LONGER))
    act = session.attempt(limit=0.3)

    assert act == st.Adjust("a", {"max_new": 50}, "longer", FEW)
    session.do(ev.Adjusted("a", 1, act.changes, act.why, act.smoke))
    assert session.next == st.RunStep(
        "a", 2, 0, {"max_new": 50, "temperature": 0.7, "rows": 24, "draw": {"lists": 4}}
    )


def test_a_change_that_helps_is_run_in_full() -> None:
    """Under an attempt of its own, at full size; the smoke counts as no failure."""
    session = Session(planned(LONGER))
    session.attempt(limit=0.3)
    act = session.attempt(verdict="underpowered", limit=0.125, kept=8)

    assert act == st.Adjust("a", {}, "on a few rows, against attempt 1: limit 0.3 -> 0.125")
    session.do(ev.Adjusted("a", 2, act.changes, act.why, act.smoke))
    assert session.next == st.RunStep(
        "a", 3, 1, {"max_new": 50, "temperature": 0.7, "rows": 200, "draw": {"lists": 64}}
    )
    assert session.state.steps["a"].failures == 1


@pytest.mark.parametrize("value", [0.3, 0.4, None], ids=["as before", "worse", "not read"])
def test_a_change_that_does_not_help_is_dropped(value: float | None) -> None:
    """The next rule is tried, from where the failed attempt was; no full rerun is paid for."""
    session = Session(planned(LONGER))
    session.attempt(limit=0.3)
    act = session.attempt(limit=value)

    assert isinstance(act, st.AskReview)
    assert (act.reason, act.allowed) == ("smoke", st.ALLOWED["smoke"])
    assert session.state.steps["a"].failures == 1

    session.plan = planned(LONGER, COOLER)
    why = "cooler; from attempt 1, the best so far"
    assert session.next == st.Adjust("a", {"max_new": 40, "temperature": 0.5}, why, FEW)


def test_no_smoke_passes_a_step() -> None:
    """A verdict of pass on a few rows calls for the full rerun; no person may let it pass."""
    session = Session(planned(LONGER))
    session.attempt(limit=0.3)
    act = session.attempt(verdict="pass", limit=0.0, kept=120)

    assert isinstance(act, st.Adjust)
    assert act.smoke == {}
    assert session.state.steps["a"].status is st.Status.JUDGED


def decided(action: str, *, person: bool = True) -> ev.ReviewDecided:
    return ev.ReviewDecided("a-2", action, {}, "because", "me", person)


@pytest.mark.parametrize(("reason", "sentinel"), [("smoke", False), ("sentinel", True)])
def test_an_override_has_the_change_run_in_full(reason: str, *, sentinel: bool) -> None:
    """Whatever the smoke read, a person's word passes nothing that is made of a few rows."""
    session = Session(planned(LONGER))
    session.attempt(limit=0.3)
    act = session.attempt(limit=0.5, sentinel=sentinel)
    assert isinstance(act, st.AskReview)
    assert act.reason == reason
    session.do(ev.ReviewRequested("a-2", "a", 2, reason, "reviews/x"))
    refused = m.refuse_decision(session.plan, session.state, decided("override", person=False))
    assert refused == "only a person may override"

    session.do(decided("stop", person=False), decided("override"))

    assert session.next == st.RunStep("a", 3, 1, {**session.plan.step("a").params, "max_new": 50})
    assert not session.state.overrides


@pytest.mark.parametrize("status", ["pending", "running", "finished", "judged"])
def test_a_plan_without_the_smoke_begins_the_step_anew(status: str) -> None:
    """A gate or a smoke that was taken away leaves the few rows nothing to stand for."""
    session = Session(planned(LONGER))
    change = session.attempt(limit=0.3)
    assert isinstance(change, st.Adjust)
    session.do(ev.Adjusted("a", 1, change.changes, change.why, change.smoke))
    begun = ev.StepStarted("a", 2, 0, {}, "out/2", "")
    done = ev.StepFinished("a", 2, 0, (), (), 0, 1.0, {}, (), ())
    said = ev.GateJudged("a", 2, 0, "fail", (), ("why",), sentinel=False)
    so_far = {"pending": 0, "running": 1, "finished": 2, "judged": 3}[status]
    session.do(*(begun, done, said)[:so_far])
    step = session.plan.steps[0]
    for gate in (None, Gate(CRITERIA)):
        plan = replace(session.plan, steps=(replace(step, gate=gate),))
        accepted = ev.PlanAccepted(
            "why", "me", (), plan_document(plan), plan.fingerprint, "", (), (), rejudged=("a",)
        )
        act = decide(plan, m.apply(plan, session.state, accepted))
        assert isinstance(act, st.RunStep)
        assert (act.look, act.params["rows"]) == (1, 200)


def test_a_smoke_that_cannot_be_believed_says_nothing() -> None:
    """An instrument that is none neither drops the change nor has the full rerun paid for."""
    session = Session(planned(LONGER, COOLER))
    session.attempt(limit=0.3)
    act = session.attempt(verdict="invalid", limit=0.0, broken="tokens")

    assert isinstance(act, st.AskReview)
    assert act.reason == "instrument"
    session.do(ev.ReviewRequested("a-2", "a", 2, "instrument", "reviews/x"), decided("override"))
    assert isinstance(session.next, st.RunStep)
    assert [tried.attempt for tried in session.state.steps["a"].tried] == [1]


def test_a_handful_of_rows_shows_nothing() -> None:
    """None of nine is not better than three of ten; ten are the fewest."""
    for n, acts in ((9, st.AskReview), (10, st.Adjust)):
        session = Session(planned(LONGER))
        session.attempt(limit=0.3)
        assert isinstance(session.attempt(limit=0.0, n=n), acts)


def test_a_reading_within_its_bound_buys_off_no_harm() -> None:
    """Of two criteria the one gains a little, the other loses much: the change is dropped."""
    both = replace(LONGER, change={"max_new": {"add": 10}}), replace(SHORTER)
    session = Session(planned(*both))
    session.attempt(limit=0.12, tokens=41)

    assert isinstance(session.attempt(limit=0.0, tokens=75), st.AskReview)


def test_what_few_rows_cannot_show_is_run_in_full() -> None:
    """A count grows with the sample: a rule for it has no smoke."""
    session = Session(planned(MORE))

    assert session.attempt(limit=0.05, kept=60) == st.Adjust("a", {"max_new": 80}, "more")


def test_a_smoke_is_no_best_attempt() -> None:
    """Its readings, on few rows, are not what a later attempt is measured by."""
    session = Session(planned(LONGER))
    session.attempt(limit=0.3)
    session.attempt(limit=0.11)
    act = session.attempt(limit=0.25)

    assert act == st.Adjust("a", {"max_new": 60}, "longer", FEW)
    act = session.attempt(limit=0.26)
    assert isinstance(act, st.AskReview)
    assert act.reason == "smoke"
    assert session.state.steps["a"].failures == 2


def test_a_session_on_record_goes_on_in_its_smoke() -> None:
    """The plan's document holds the smoke; a plan without one is recorded as it always was."""
    plan = planned(LONGER)

    assert recorded_plan(plan_document(plan)).steps[0].gate == plan.steps[0].gate
    assert "smoke" not in plan_document(planned(LONGER, smoke=None))["steps"]["a"]["gate"]


@pytest.mark.parametrize(
    ("file", "old", "new", "what"),
    [
        ("pilot", "target_kept: 1,", "max_new_tokens: 9,", "the smoke sets 'max_new_tokens'"),
        ("evaluation", "gate:\n", "gate:\n  smoke: {aa_items: 9}\n", "a smoke is of one step"),
    ],
)
def test_a_smoke_that_can_show_nothing_is_refused(
    tmp_path: Path, file: str, old: str, new: str, what: str
) -> None:
    """One that sets what the change sets, and one of a step whose retry begins at another."""
    shutil.copytree(SPECS, tmp_path / "specs")
    spec = tmp_path / "specs" / "quickstart" / f"{file}.yaml"
    assert old in spec.read_text()
    spec.write_text(spec.read_text().replace(old, new, 1))

    with pytest.raises(ConfigError) as caught:
        load_plan(tmp_path / "specs" / "quickstart" / "runbook.yaml", environ={})

    assert what in str(caught.value)
