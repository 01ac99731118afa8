"""What a reviewer is told beside the verdict: read from facts, honest about the unknown."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from runbook import events as ev
from runbook import review_facts
from runbook.artifacts import canonical_json, describe, sha256_bytes, write_json
from runbook.contract import Artifact, Criterion, Gate, Json, Metric
from runbook.plan import Plan
from runbook.review_facts import (
    LOG_BYTES,
    LOG_LINES,
    attempts_of,
    budget_left,
    certificates,
    certifiers,
    costs,
    earlier_reviews,
    facts_before,
    log_tail,
)
from runbook.testing import make_plan, make_step
from runbook.workspace import Workspace

GATE = Gate(
    (
        Criterion("runaway_rate", "rate", below=0.05),
        Criterion("kept", "census", at_least=100, at_most=200),
    ),
    extend={"raw_rows": 150},
)
PARAMS: dict[str, Json] = {"temperature": 0.4, "raw_rows": 100, "stop": ["###"]}


@pytest.fixture
def plan() -> Plan:
    calibration = make_step("calibration")
    first = make_step("prepare", params={"epochs": 3})
    pilot = make_step(
        "pilot", gate=GATE, params=PARAMS, inputs=("calibration",), rerun_from="prepare"
    )
    budget = {"usd": 300.0, "usd_per_hour": 3.6, "review_usd": 5.0, "gpus": 1}
    return make_plan(calibration, first, pilot, budget=budget)


def started(step: str, attempt: int, look: int = 1, **params: Json) -> ev.StepStarted:
    return ev.StepStarted(step, attempt, look, params, "out", "2026-01-01T00:00:00Z")


def finished(
    step: str, attempt: int, seconds: float = 60.0, look: int = 1, *made: Artifact, value: float = 0
) -> ev.StepFinished:
    metrics = (Metric("runaway_rate", value, 43, 9),)
    return ev.StepFinished(step, attempt, look, metrics, made, 0, seconds, {}, (), ())


def judged(
    attempt: int, rate: float | None, kept: float, look: int = 1, **verdicts: str
) -> ev.GateJudged:
    """By runaway and kept; a verdict not given follows from the value."""
    told = {
        "runaway_rate": "fail" if rate is None or rate >= 0.05 else "pass",
        "kept": "pass" if 100 <= kept <= 200 else "fail",
        **verdicts,
    }
    criteria: tuple[dict[str, Json], ...] = (
        {"metric": "runaway_rate", "kind": "rate", "value": rate, "bound": None},
        {"metric": "kept", "kind": "census", "value": kept, "bound": None},
    )
    results = tuple({**c, "verdict": told[c["metric"]]} for c in criteria)
    found = set(told.values())
    verdict = next((v for v in ("invalid", "fail", "underpowered") if v in found), "pass")
    return ev.GateJudged("pilot", attempt, look, verdict, results, ("why",), sentinel=False)


def asked(attempt: int) -> ev.ReviewRequested:
    return ev.ReviewRequested(f"pilot-{attempt}", "pilot", attempt, "gate failed", "reviews/x")


def decided(attempt: int, action: str = "retry", **changes: Json) -> ev.ReviewDecided:
    return ev.ReviewDecided(f"pilot-{attempt}", action, changes, "too free", "a", person=False)


def outcome(plan: Plan, *facts: ev.Event) -> tuple[str, tuple[str, ...]]:
    (review,) = earlier_reviews(plan, facts)
    return review.outcome, review.effect


class TestAttempts:
    def test_each_tells_what_it_ran_with_and_what_differs_from_the_plan(self, plan: Plan) -> None:
        """Changes of every step that ran again, metrics and criteria of the same run."""
        facts = [
            started("prepare", 1, epochs=3),
            finished("prepare", 1),
            started("pilot", 1, **PARAMS),
            finished("pilot", 1, value=0.209),
            judged(1, 0.209, 43),
            started("prepare", 2, epochs=4),
            finished("prepare", 2),
            started("pilot", 2, **{**PARAMS, "temperature": 0.2}),
            finished("pilot", 2, value=0.538),
            judged(2, 0.538, 13),
        ]
        first, second = attempts_of(plan, facts, "pilot")
        assert (first.attempt, first.verdict, dict(first.changes)) == (1, "fail", {})
        assert [m.value for m in first.metrics] == [0.209]
        assert dict(second.changes) == {"epochs": 4, "temperature": 0.2}
        assert second.params["temperature"] == 0.2
        assert [m.value for m in second.metrics] == [0.538]
        assert second.criteria[1]["value"] == 13
        assert attempts_of(plan, facts, "prepare") == ()

    def test_a_smoke_and_an_extension_are_runs_of_their_own(self, plan: Plan) -> None:
        """One judged anew stands once, as it was judged last."""
        facts = [
            started("pilot", 1, look=0, **PARAMS),
            finished("pilot", 1, look=0),
            judged(1, 0.1, 9, look=0),
            started("pilot", 1, **PARAMS),
            finished("pilot", 1),
            judged(1, 0.2, 43),
            judged(1, 0.01, 120),
            started("pilot", 1, look=2, **{**PARAMS, "raw_rows": 150}),
            finished("pilot", 1, look=2),
            judged(1, 0.2, 80, look=2),
        ]
        found = [(a.look, a.verdict, dict(a.changes)) for a in attempts_of(plan, facts, "pilot")]
        assert found == [(0, "fail", {}), (1, "pass", {}), (2, "fail", {"raw_rows": 150})]


class TestEarlier:
    def test_advice_that_made_it_worse_says_so_with_figures(self, plan: Plan) -> None:
        """Seed 004: tighter sampling, from 0.209 and 43 kept to 0.538 and 13."""
        facts = (judged(1, 0.209, 43), asked(1), decided(1, temperature=0.2), judged(2, 0.538, 13))
        (review,) = earlier_reviews(plan, facts)
        assert (review.review_id, review.step, review.attempt) == ("pilot-1", "pilot", 1)
        assert (review.asked, review.action) == ("gate failed", "retry")
        assert dict(review.changes) == {"temperature": 0.2}
        assert (review.reason, review.author, review.outcome) == ("too free", "a", "worse")
        assert review.effect == (
            "runaway_rate 0.209 -> 0.538 (< 0.05)",
            "kept 43 -> 13 (>= 100 and <= 200)",
        )

    @pytest.mark.parametrize(
        ("after", "expected"),
        [
            ([judged(2, 0.04, 150)], "passed"),
            ([judged(2, 0.1, 80)], "better"),
            ([judged(2, 0.209, 43)], "unchanged"),
            ([judged(2, 0.209, 42)], "worse"),
            ([judged(2, None, 150, runaway_rate="invalid")], "worse"),
            ([judged(2, 0.04, 150, runaway_rate="underpowered")], "better"),
            ([], "pending"),
            ([judged(2, 0.3, 10, look=0), judged(2, 0.1, 80)], "better"),
            ([judged(2, 0.3, 10, look=0)], "worse"),
            ([judged(2, 0.04, 150, look=0)], "better"),
        ],
    )
    def test_the_outcome_is_how_far_the_next_attempt_was_off(
        self, plan: Plan, after: Sequence[ev.Event], expected: str
    ) -> None:
        """A smoke counts where nothing was judged in full, and never as passed."""
        told, effect = outcome(plan, judged(1, 0.209, 43), asked(1), decided(1), *after)
        assert told == expected
        assert bool(effect) == (expected not in ("pending", "unchanged"))

    def test_only_what_was_answered_is_told(self, plan: Plan) -> None:
        """The last word counts; a review that nobody answered gave no advice."""
        facts = [judged(1, 0.2, 43), asked(1)]
        assert earlier_reviews(plan, facts) == ()
        facts += [decided(1, "stop"), decided(1, "override")]
        (review,) = earlier_reviews(plan, facts)
        assert (review.action, review.outcome) == ("override", "none")

    @pytest.mark.parametrize("action", ["stop", "needs_human", "proceed", "override"])
    def test_what_had_nothing_run_takes_no_credit(self, plan: Plan, action: str) -> None:
        """A pass after it is somebody else's work."""
        facts = [judged(1, 0.2, 43), asked(1), decided(1, action), judged(2, 0.01, 120)]
        (review,) = earlier_reviews(plan, facts)
        assert (review.outcome, review.effect) == ("none", ())

    def test_an_attempt_counts_as_it_was_judged_last(self, plan: Plan) -> None:
        """A retry that was too small and was then extended is told by the second look."""
        first = judged(2, 0.06, 120)
        facts = [judged(1, 0.2, 43), asked(1), decided(1), first, judged(2, 0.01, 120, look=2)]
        (review,) = earlier_reviews(plan, facts)
        assert review.outcome == "passed"

    def test_another_steps_verdict_is_no_outcome(self, plan: Plan) -> None:
        """Nor is one from before the answer."""
        other = ev.GateJudged("prepare", 2, 1, "pass", (), (), sentinel=False)
        assert outcome(plan, judged(1, 0.2, 43), asked(1), decided(1), other) == ("pending", ())

    def test_a_review_is_told_what_was_known_when_it_was_asked(self) -> None:
        """So that it is the same question after a crash."""
        facts = [judged(1, 0.2, 43), asked(1), decided(1), judged(2, 0.3, 43), asked(2)]
        assert facts_before(facts, "pilot-1") == facts[:1]
        assert facts_before(facts, "pilot-2") == facts[:4]
        assert facts_before(facts, "other") == facts


class TestLog:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Workspace:
        workspace = Workspace.at(tmp_path)
        workspace.create()
        return workspace

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (b"", ""),
            (b"one\ntwo\n", "one\ntwo"),
            (b"bad \xff\x00 byte\n", "bad \\xff\x00 byte"),
            (b"0 %\r50 %\r100 %\ndone\r\n", "100 %\ndone"),
            ("\u2603\n".encode(), "\u2603"),
        ],
    )
    def test_the_end_is_text_whatever_the_bytes(
        self, place: Workspace, data: bytes, expected: str
    ) -> None:
        """What is no text is escaped; of a progress bar the last state is kept."""
        place.log("pilot").write_bytes(data)
        assert log_tail(place, "pilot") == expected

    def test_it_is_bounded_in_lines_and_bytes(self, place: Workspace) -> None:
        """The last lines, whole ones where lines are short."""
        lines = [f"line {i:06d}" for i in range(10_000)]
        place.log("pilot").write_text("\n".join(lines) + "\n")
        assert log_tail(place, "pilot").split("\n") == lines[-LOG_LINES:]
        place.log("pilot").write_bytes(b"x" * 10 * LOG_BYTES)
        assert log_tail(place, "pilot") == "x" * LOG_BYTES
        place.log("pilot").write_bytes(b"\n".join([b"y" * 1000] * 40))
        assert log_tail(place, "pilot") == "\n".join(["y" * 1000] * 16)

    def test_what_is_no_log_is_empty(self, place: Workspace) -> None:
        """A missing log, a folder and a pipe are not waited for."""
        assert log_tail(place, "pilot") == ""
        place.log("pilot").mkdir()
        assert log_tail(place, "pilot") == ""


def certificate(path: Path, instruments: Json) -> None:
    body = {"certificate": 1, "instruments": instruments}
    write_json(path, {**body, "sha256": sha256_bytes(canonical_json(body).encode())})


RATE = {"successes": 98, "n": 100, "interval": [0.93, 0.994], "bound": 0.943}
RUNAWAY = {"kind": "detector", "within_bounds": True, "sensitivity": RATE, "specificity": RATE}
PAIRS = {"kind": "filter", "within_bounds": False, "auc": 0.52}


class TestCertificates:
    @pytest.fixture
    def made(self, tmp_path: Path) -> Path:
        path = tmp_path / "certificate.json"
        certificate(path, {"runaway": RUNAWAY, "pairs": PAIRS})
        return path

    def told(self, plan: Plan, path: Path) -> tuple[dict[str, Json], ...]:
        artifact = describe("certificate", path, path.parent)
        facts = [finished("calibration", 1, 60, 1, artifact)]
        return certificates(plan, facts, Workspace.at(path.parent), "pilot")

    def test_each_instrument_is_told_with_its_bounds(self, plan: Plan, made: Path) -> None:
        """Nothing is made up where nothing was measured."""
        pairs, runaway = self.told(plan, made)
        assert runaway["name"] == "runaway"
        assert (runaway["state"], runaway["sensitivity"]) == ("ok", 0.98)
        assert (runaway["specificity_bound"], runaway["sensitivity_n"]) == (0.943, 100)
        assert (pairs["state"], pairs["auc"]) == ("below its bounds", 0.52)
        assert pairs["sensitivity"] is None

    @pytest.mark.parametrize(
        ("text", "state"),
        [
            ("", "cannot be read"),
            ("[]", "cannot be read"),
            ("null", "cannot be read"),
            ("[" * 100_000, "cannot be read"),
            ('{"instruments": 3}', "was changed"),
            ('{"certificate": 1, "instruments": {}, "sha256": ""}', "was changed"),
        ],
    )
    def test_what_is_no_certificate_vouches_for_nothing(
        self, plan: Plan, made: Path, text: str, state: str
    ) -> None:
        """It is named as what it is."""
        made.write_text(text)
        (entry,) = self.told(plan, made)
        assert entry == {"name": "calibration", "state": f"the certificate {state}"}

    @pytest.mark.parametrize("instruments", [{"a": 3}, {"a": {"sensitivity": 3}}, [1]])
    def test_odd_entries_are_refused(self, plan: Plan, made: Path, instruments: Json) -> None:
        """Though the hash over them is right."""
        certificate(made, instruments)
        (entry,) = self.told(plan, made)
        assert entry["state"] == "the certificate cannot be read"

    def test_other_bytes_than_those_committed_are_told(self, plan: Plan, made: Path) -> None:
        """As are a missing file and a path that leads out."""
        artifact = describe("certificate", made, made.parent)
        facts = [finished("calibration", 1, 60, 1, artifact)]
        place = Workspace.at(made.parent)
        certificate(made, {"runaway": {**RUNAWAY, "within_bounds": False}})
        assert "was changed" in certificates(plan, facts, place, "pilot")[0]["state"]
        made.unlink()
        assert "cannot be read" in certificates(plan, facts, place, "pilot")[0]["state"]
        out = Artifact("certificate", "../x.json", "0" * 64, 1)
        facts = [finished("calibration", 1, 60, 1, out)]
        assert "cannot be read" in certificates(plan, facts, place, "pilot")[0]["state"]

    def test_without_one_nothing_is_told(self, plan: Plan, tmp_path: Path) -> None:
        """A step that is no input does not vouch either."""
        made = Artifact("certificate", "x.json", "0" * 64, 1)
        facts = [finished("calibration", 1), finished("prepare", 1, 60, 1, made)]
        assert certificates(plan, facts, Workspace.at(tmp_path), "pilot") == ()
        assert certifiers(plan, facts, "pilot") == ()


class TestMoney:
    def test_each_limit_is_told_with_what_is_left(self, plan: Plan) -> None:
        """Reservations count as spent; a limit that is not declared is not told."""
        facts = [ev.TimeLeased(1000.0, 0.0), ev.RequestSent("r", "k", 1, 0.2)]
        found = budget_left(plan, facts)
        assert set(found) == {"usd", "review_usd"}
        assert found["review_usd"] == {"limit": 5.0, "spent": 0.2, "left": pytest.approx(4.8)}
        assert found["usd"]["spent"] == pytest.approx(1.2)
        assert found["usd"]["left"] == pytest.approx(298.8)

    def test_no_limit_is_no_row(self) -> None:
        """And nothing left is 0, not less."""
        assert budget_left(make_plan(), []) == {}
        over = make_plan(budget={"wall_clock_s": 10.0})
        assert budget_left(over, [ev.TimeLeased(60.0, 0.0)])["wall_clock_s"]["left"] == 0.0

    def test_an_answer_costs_what_its_steps_took(self, plan: Plan) -> None:
        """A retry the whole range, an extension its share, a recalibration its certifiers."""
        made = Artifact("certificate", "x.json", "0" * 64, 1)
        facts = [
            finished("calibration", 1, 100.0, 1, made),
            finished("prepare", 1, 50.0),
            finished("pilot", 1, 1000.0),
            finished("prepare", 2, 30.0),
            finished("pilot", 2, 5.0, 0),
            finished("pilot", 2, 400.0),
            finished("pilot", 2, 200.0, 2),
        ]
        allowed = ("retry", "extend", "recalibrate", "stop", "needs_human")
        found = costs(plan, facts, "pilot", allowed)
        assert tuple(found) == allowed
        assert found["retry"] == {"what": "prepare, pilot again", "seconds": 630.0, "usd": 0.63}
        assert found["extend"]["seconds"] == pytest.approx(300.0)
        assert found["recalibrate"]["seconds"] == 700.0
        assert found["stop"]["usd"] == 0.0
        assert found["needs_human"]["what"] == "a machine that waits costs 3.6 USD an hour"
        assert (found["needs_human"]["seconds"], found["needs_human"]["usd"]) == (None, None)

    def test_what_never_ran_has_no_known_cost(self) -> None:
        """Null, never 0; and without a price there are seconds alone."""
        step = make_step("pilot", gate=GATE, params=PARAMS)
        free = make_plan(step)
        never = costs(free, [], "pilot", ("retry", "extend", "proceed", "recalibrate"))
        assert all((c["seconds"], c["usd"]) == (None, None) for c in never.values())
        ran = costs(free, [finished("pilot", 1, 10.0)], "pilot", ("retry",))
        assert (ran["retry"]["seconds"], ran["retry"]["usd"]) == (10.0, None)

    @pytest.mark.parametrize(
        "extend", [None, {}, {"raw_rows": 50}, {"raw_rows": 200, "temperature": 1.0}, {"new": 3}]
    )
    def test_an_extension_of_unknown_size_has_no_known_cost(self, extend: Json) -> None:
        """Only one number that is raised says by how much."""
        plan = make_plan(make_step("pilot", gate=Gate((), extend=extend), params=PARAMS))
        found = costs(plan, [finished("pilot", 1, 10.0)], "pilot", ("extend",))
        assert found["extend"]["seconds"] is None


def test_all_of_it_is_json(plan: Plan) -> None:
    """It goes into a prompt and a file."""
    found = [costs(plan, [], "pilot", ("retry",)), budget_left(plan, [])]
    assert json.loads(json.dumps(found)) == found
    assert review_facts.LOG_LINES == 40
