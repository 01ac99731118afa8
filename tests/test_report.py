"""Reports: the outcome first, every number from the journal, foreign text only ever data."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from gates.stats import paired_comparison
from runbook import events as ev
from runbook.budget import dollars
from runbook.codec import encode
from runbook.contract import (
    Artifact,
    Criterion,
    CriterionResult,
    Gate,
    Instrument,
    Json,
    Metric,
    Range,
    Verdict,
)
from runbook.control import Heartbeat
from runbook.executor import Seams, run_session
from runbook.fingerprint import plan_document
from runbook.journal import Entry, read_entries
from runbook.plan import Adjustment, Plan, PlannedStep
from runbook.report import figures
from runbook.report.judgement import judgement_document, judgement_text
from runbook.report.markdown import render_report
from runbook.report.safe_text import Code, code, table
from runbook.report.session import Unanswered
from runbook.report.status import Sight, render_status
from runbook.report.unanswered import read_unanswered, with_unanswered
from runbook.report.view import SessionView, build_view
from runbook.review import record_decision
from runbook.state import Status
from runbook.testing import make_plan, make_step, simple_gates
from runbook.workspace import Workspace

GATE = Gate((Criterion("m", "rate", at_least=0.5),))
SENTINEL = Gate((Criterion("m", "sentinel", at_least=0.5),))
BASE = [True] * 6 + [False] * 34
TUNED = [True] * 4 + [False] * 2 + [True] * 16 + [False] * 18
KINDS = ["number", "list"] * 20
RUN = "runbook run /nowhere/runbook.yaml --workspace /ws"
HOSTILE = "`a`|b|<script>x</script>\n# heading\n\x1b[31mred\u202egnp"


def execute(plan: Plan, root: Path, **seams: Any) -> SessionView:
    """Run a session without a reviewer; the view of its journal."""
    workspace = Workspace.at(root)
    run_session(plan, workspace, Seams(simple_gates, lambda _: None, **seams))
    return build_view(read_entries(workspace))


def entries_of(*facts: ev.Event) -> tuple[Entry, ...]:
    """A journal of these facts, a minute apart."""
    times = (f"2026-01-01T{i // 60:02d}:{i % 60:02d}:00+00:00" for i in range(len(facts)))
    return tuple(
        Entry(i, 1, wall, 60.0 * i, fact.to_body(), "0" * 64)
        for i, (wall, fact) in enumerate(zip(times, facts, strict=True))
    )


def started(*steps: PlannedStep, **fields: Json) -> ev.SessionStarted:
    plan = make_plan(*steps, model={"name": "tiny-1b"}, **fields)
    versions = {"git_sha": "abc123", "versions": {"python": "3.11"}}
    known = ("20260101_000000", str(plan.runbook), plan.name, plan.fingerprint, plan.overrides)
    return ev.SessionStarted(*known, plan_document(plan), versions)


def ran(step: str, attempt: int = 1, **fields: Any) -> tuple[ev.StepStarted, ev.StepFinished]:
    """Start and end of one run of a step."""
    begun = ev.StepStarted(step, attempt, fields.pop("look", 1), fields.pop("params", {}), "o", "")
    defaults: dict[str, Any] = {
        "metrics": (),
        "artifacts": (),
        "tokens": 0,
        "seconds": 192.0,
        "summary": {},
        "flagged": (),
        "samples": (),
    }
    return begun, ev.StepFinished(step, attempt, begun.look, **{**defaults, **fields})


def judged(
    step: str, *results: CriterionResult, attempt: int = 1, verdict: str = "pass", **fields: Any
) -> ev.GateJudged:
    criteria = tuple(encode(result) for result in results)
    reasons = tuple(f"{r.metric}: {r.reason}" for r in results if r.reason)
    return ev.GateJudged(step, attempt, 1, verdict, criteria, reasons, False, **fields)


def result(metric: str = "m", verdict: Verdict = Verdict.PASS, **fields: Any) -> CriterionResult:
    defaults = {
        "metric": metric,
        "kind": "statistic",
        "threshold": "> 0",
        "verdict": verdict,
        "value": 0.5,
        "n": 10,
        "bound": None,
        "thin": False,
        "reason": "",
    }
    return CriterionResult(**{**defaults, **fields})


def manifest(step: str, judged_path: str = "") -> ev.ManifestWritten:
    return ev.ManifestWritten(step, 1, f"results/{step}/manifest.json", "f" * 64, judged_path)


def details() -> dict[str, Json]:
    whole = paired_comparison(BASE, TUNED, KINDS).to_dict()
    return {"comparison": whole, "split": {"format": whole, "content": whole}}


def evaluated(train: str = "sft", test: str = "evaluate") -> tuple[ev.Event, ...]:
    """A training step and its evaluation, both passed."""
    adapter = Artifact("adapter", f"checkpoints/{train}", "a" * 64, 7_633_408)
    trained = ran(train, artifacts=(adapter,), tokens=900)
    return (
        *trained,
        ev.StepPassed(train, 1),
        manifest(train),
        *ran(test),
        judged(test, result("mcnemar_p", kind="p_value", value=7.34e-06), details=details()),
        manifest(test, f"results/{test}/evaluation.json"),
    )


def trained_session(**fields: Json) -> SessionView:
    steps = (make_step("sft"), make_step("evaluate", inputs=("sft",), gate=GATE))
    whole = (started(*steps, **fields), *evaluated(), ev.SessionDone(0, 0))
    return build_view(entries_of(*whole))


def shape(report: str) -> list[str]:
    """The report's blocks and what markup stands within them, as a Markdown reader sees it."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    found = []
    for token in reader.parse(report):
        found.append(f"{token.type} {token.tag}")
        plain = ("text", "code_inline", "text_special", "softbreak")
        found += [child.type for child in token.children or () if child.type not in plain]
    return found


def test_a_finished_session_leads_with_what_training_gave() -> None:
    """Title, then rates with counts, lift with interval and p, then where the results lie."""
    report = render_report(trained_session())

    title, _, first = report.split("\n")[:3]
    assert title == "# test: all done (exit 0)"
    assert first == (
        "tiny-1b trained by sft: base 0.150 (6/40) -> tuned 0.500 (20/40) on the same items, "
        "lift +0.350 (95 % interval +0.175 to +0.525), McNemar p = 0.0022."
    )
    head = report.partition("## Steps")[0]
    assert "`results/evaluate/evaluation.json`" in head
    assert "`checkpoints/sft`" in head
    assert "1 of 1 gate passed." in head
    assert "Nothing is left to run." in head


def test_an_evaluation_shows_every_number_of_the_comparison() -> None:
    """Over all items, for each kind, and with format and content apart."""
    report = render_report(trained_session())
    whole = paired_comparison(BASE, TUNED, KINDS)

    section = report.partition("## Evaluation: evaluate, pass")[2].partition("## Step by step")[0]
    assert f"| {whole.n01}, {whole.n10} |" in section
    assert f"chi2 = {whole.mcnemar_chi2:.3g}, p = {whole.mcnemar_p:.2g}" in section
    assert f"p = {whole.exact_p:.2g} |" in section
    assert f"| {whole.cohens_h:+.3f} |" in section
    assert f"0.150 (6/40), {whole.base_ci[0]:.3f} to {whole.base_ci[1]:.3f}" in section
    for kind, part in whole.by_kind.items():
        rows = [line for line in section.splitlines() if line.startswith(f"| {kind} ")]
        assert f" {part.adjusted_p:.2g} " in rows[0]
        assert rows[1].count(figures.share_of(part.tuned_rate, part.n)) == 2


def test_each_evaluation_of_a_session_is_told() -> None:
    """Where DPO follows SFT, the outcome names both and what trained them."""
    steps = [make_step("sft"), make_step("evaluate", inputs=("sft",))]
    steps += [make_step("dpo"), make_step("evaluate_dpo", inputs=("dpo",))]
    facts = (*evaluated(), *evaluated("dpo", "evaluate_dpo"))

    report = render_report(build_view(entries_of(started(*steps), *facts, ev.SessionDone(0, 0))))

    head = report.partition("## Steps")[0]
    assert "tiny-1b trained by sft: base" in head
    assert "tiny-1b trained by dpo: base" in head
    assert "## Evaluation: evaluate_dpo, pass" in report


def test_pairs_that_could_not_be_compared_are_told() -> None:
    """The gate's own fault stands in the report."""
    broken = judged("e", result(verdict=Verdict.INVALID), verdict="invalid", details={"error": "x"})
    view = build_view(entries_of(started(make_step("e", gate=GATE)), *ran("e"), broken))

    assert "- e: no comparison could be made: x" in render_report(view)


@pytest.mark.parametrize(
    ("step", "plan", "code", "cause", "command"),
    [
        (
            {"gate": GATE, "review_after": 1, "params": {"metrics": {"m": 0.1}}},
            {},
            3,
            "a review waits for a person's decision",
            "runbook review decide a-1 --action ACTION --reason REASON --workspace /ws",
        ),
        (
            {"gate": GATE, "retries": 0, "params": {"metrics": {"m": 0.1}}},
            {},
            3,
            "a gate failed, and its retries are used up",
            "runbook review decide a-1 --action override --reason REASON --workspace /ws",
        ),
        (
            {"gate": SENTINEL, "params": {"metrics": {"m": 0}}},
            {},
            5,
            "a sentinel tripped",
            "runbook sentinel clear --reason REASON --workspace /ws",
        ),
        (
            {"params": {"trouble": {"kind": "raise", "at": 1}}},
            {},
            1,
            "an error",
            RUN,
        ),
        (
            {"params": {"trouble": {"kind": "pause", "at": 1}}},
            {},
            75,
            "paused, nothing is wrong",
            RUN,
        ),
        (
            {},
            {"budget": {"wall_clock_s": 0}, "overrides": ("budget.wall_clock=0s", "a.rows=2")},
            4,
            "the budget is spent",
            f"{RUN} --set a.rows=2 --set budget.wall_clock=DURATION",
        ),
    ],
)
def test_a_stop_leads_with_cause_and_command(
    tmp_path: Path,
    step: dict[str, Json],
    plan: dict[str, Json],
    code: int,
    cause: str,
    command: str,
) -> None:
    """Report and status open with why it stopped; what is safe and the exact command follow."""
    view = execute(make_plan(make_step("a", **step), **plan), tmp_path / "ws")
    report, status = render_report(view, Path("/ws")), render_status(view, Path("/ws"))

    assert report.split("\n")[0] == f"# test: stopped: {cause} (exit {code})"
    assert status.split("\n")[0] == f"test: stopped: {cause} (exit {code})"
    head = report.partition("## Steps")[0]
    assert "Safe on disk: 0 of 1 step done" in head
    assert f"    {command}" in head.split("\n")
    assert f"  {command}" in status.split("\n")
    assert view.outcome.detail.split("\n")[0] in head


def test_an_error_shows_its_fix_and_its_log(tmp_path: Path) -> None:
    """What a step raised stands in the report with the remedy, and the log is named."""
    step = make_step("a", params={"trouble": {"kind": "raise", "at": 1}})
    view = execute(make_plan(step), tmp_path / "ws")

    report = render_report(view)
    assert "Fix: tell it not to" in report.partition("## Steps")[0]
    assert "Read logs/a.log and mend the cause" in report
    assert "    runbook.errors.PhaseError: a: the fake step was told to fail" in report
    assert "Attempt 1 has not finished; 1 batch is committed (2 records)." in report


@pytest.fixture
def retried(tmp_path: Path) -> tuple[Plan, Workspace]:
    """A gate that failed twice: adjusted, then a review waits."""
    step = make_step(
        "pilot",
        gate=GATE,
        params={"t": 0.7, "metrics": {"m": [0.1, 0.2, 0.9]}},
        adjustable={"t": Range(0.1, 1.0)},
        adjustments=(Adjustment("m", {"t": {"add": -0.2}}, "cooler"),),
    )
    plan = make_plan(step, make_step("extra", enabled=False))
    execute(plan, tmp_path / "ws")
    return plan, Workspace.at(tmp_path / "ws")


def test_adjustments_and_decisions_are_shown(retried: tuple[Plan, Workspace]) -> None:
    """Each attempt with its verdict, what was changed, why, and by whom."""
    plan, workspace = retried
    decision = ev.ReviewDecided("pilot-2", "retry", {"t": 0.3}, "cooler still", "Ann", person=True)
    record_decision(plan, workspace, decision)

    view = execute(plan, workspace.root)
    report = render_report(view)

    assert "- Attempt 1: **fail**. m is 0.1: fail" in report
    assert "- Adjusted after attempt 1: `t` = 0.5. Why: cooler" in report
    assert "- Attempt 2 ran with `t` 0.5 (before: 0.7)." in report
    assert "**retry** with `t` = 0.3 by Ann (a person): cooler still" in report
    assert "- Attempt 3 ran with `t` 0.3 (before: 0.5)." in report
    assert [a.verdict for a in view.steps[0].attempts] == ["fail", "fail", "pass"]
    assert report.startswith("# test: all done (exit 0)\n")


def test_a_waiting_review_names_what_a_retry_may_change(retried: tuple[Plan, Workspace]) -> None:
    """The command to see the question, and the bounds of the answer."""
    view = build_view(read_entries(retried[1]))

    status = render_status(view, Path("/ws"))
    assert "runbook review show pilot-2 --workspace /ws" in status
    assert "NAME=NUMBER is one of t (0.1 to 1)" in status
    assert "ACTION is retry, stop or override" in status


def test_a_decision_since_the_stop_leads_on(retried: tuple[Plan, Workspace]) -> None:
    """Once decided, no decision is asked for any more: the run command is next."""
    plan, workspace = retried
    decision = ev.ReviewDecided("pilot-2", "retry", {}, "again", "Ann", person=True)
    record_decision(plan, workspace, decision)

    status = render_status(build_view(read_entries(workspace)), Path("/ws"))
    assert status.startswith("test: stopped, and decided since: retry (exit 3)\n")
    assert "review decide" not in status
    assert "pilot  to run again" in status
    assert "It stopped for review pilot-2, asked because the gate failed" in status
    assert "Decided: retry by Ann (a person): again" in status
    assert "awaits" not in status
    assert "waits for a person" not in status


@pytest.mark.parametrize(
    ("remedy", "told", "again"),
    [
        ("ask", "The same command asks it again.", True),
        ("change", "once that is changed in the runbook and accepted", False),
        ("decide", "", False),
        ("", "", False),
    ],
)
def test_why_the_reviewer_gave_no_answer_stands_at_the_top(
    retried: tuple[Plan, Workspace], remedy: str, told: str, *, again: bool
) -> None:
    """Its error on one line, made harmless; whether it is asked again; and its page, linked."""
    view = build_view(read_entries(retried[1]))
    folder = retried[1].inside(view.reviews[0].path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").write_text(f"HTTP 401: \x1b[2J[bad](http://x) key\nmore {HOSTILE}")
    (folder / "remedy.json").write_text(json.dumps({"remedy": remedy, "usd": None}))
    view = with_unanswered(view, retried[1])

    status = render_status(view, Path("/ws"))
    head = render_report(view).partition("## Steps")[0]

    assert "  Its reviewer gave no answer: HTTP 401: \\x1b[2J[bad](http://x) key\n" in status
    assert "\nIts reviewer gave no answer: HTTP 401: " in head
    assert r"\[bad\](http:\//x) key" in head
    assert "more" not in head
    page = f"{view.reviews[0].path}/report.md"
    assert f"- Review: [{page}](./{page})" in head.split("\n")
    assert f"/ws/{page}" in status
    assert told in status
    assert ("asks it again" in status) is bool(told)
    assert ("without a decision it asks the reviewer again" in status) is again


@pytest.mark.parametrize("remedy", ["[]", "{", '{"remedy": ["ask"], "usd": "1"}', '{"usd": -1}'])
def test_a_remedy_that_is_none_is_not_told(tmp_path: Path, remedy: str) -> None:
    """What the folder holds may be anything; only the error is then shown."""
    (tmp_path / "error.txt").write_text("no answer came\n")
    (tmp_path / "remedy.json").write_text(remedy)

    assert read_unanswered(tmp_path) == Unanswered("no answer came")
    assert read_unanswered(tmp_path / "none") is None


def test_a_stop_by_a_reviewer_leads_with_its_reason_and_its_page() -> None:
    """Who decided what and why, on one line, with a link to the evidence."""
    word = ev.ReviewDecided("a-1", "stop", {}, "no use\n  fix: paste", "command x", person=False)
    asked = ev.ReviewRequested("a-1", "a", 1, "gate failed", "reviews/x y")
    low = result("m", Verdict.FAIL, value=0.1)
    facts = (*ran("a"), judged("a", low, verdict="fail"), asked, word)
    view = build_view(entries_of(started(), *facts, ev.SessionStopped("gate failed", 3, "a: low")))

    status = render_status(view, Path("/ws")).split("\n")
    head = render_report(view).partition("## Steps")[0].split("\n")

    assert "  Decided: stop by command x (a program): no use fix: paste" in status
    assert "Decided: stop by command x (a program): no use fix: paste" in head
    assert [line for line in status if line.endswith("/ws/reviews/x y/report.md")]
    assert "- Review: [reviews/x y/report.md](./reviews/x%20y/report.md)" in head


def test_a_skipped_step_says_why(retried: tuple[Plan, Workspace]) -> None:
    """A step that will not run is neither missing nor counted as open."""
    plan, workspace = retried
    override = ev.ReviewDecided("pilot-2", "override", {}, "good enough", "Ann", person=True)
    record_decision(plan, workspace, override)

    report = render_report(execute(plan, workspace.root))
    assert "### A: extra, skipped\n\nSkipped: disabled in the runbook.\n" in report
    assert "1 of 1 step done" in report


def test_an_override_stands_at_the_top(retried: tuple[Plan, Workspace]) -> None:
    """Who overrode what and why is told with the outcome, and the gate is not called passed."""
    plan, workspace = retried
    override = ev.ReviewDecided("pilot-2", "override", {}, "good enough", "Ann", person=True)
    record_decision(plan, workspace, override)

    report = render_report(execute(plan, workspace.root))
    assert report.split("\n")[0] == "# test: all done, with 1 override (exit 6)"
    told = report.split("\n")[2]
    assert told.startswith("pilot did not pass (fail), and Ann overrode it: good enough (20")
    assert told.endswith(" UTC)")
    assert "0 of 1 gate passed, 1 overridden." in report
    assert "### A: pilot, fail, overridden" in report


def test_status_needs_no_runbook_file(tmp_path: Path) -> None:
    """The runbook of this plan does not exist; the journal is enough."""
    plan = make_plan(make_step("a"), make_step("b"))
    execute(plan, tmp_path / "ws")
    assert not plan.runbook.exists()

    status = render_status(build_view(read_entries(Workspace.at(tmp_path / "ws"))), Path("/ws"))
    assert status.split("\n")[0] == "test: all done (exit 0)"
    assert "/ws/report.md" in status


def test_status_tells_how_far_a_running_step_is() -> None:
    """Batches committed in this attempt, and what to do should it have been killed."""
    batch = ev.BatchCommitted("a", 1, "shard-1/0000", "x", "0" * 64, 32)
    view = build_view(entries_of(started(make_step("a"), make_step("b")), ran("a")[0], batch))

    status = render_status(view, Path("/ws"))
    assert status.split("\n")[:2] == ["test: running", "  At a, attempt 1: running."]
    assert "a: 1 batch committed, the last is shard-1/0000" in status
    assert "If it was killed, the same command goes on:" in status
    assert ".  A  b  not started" in status


HOLDER = "process 7 on pod"


def at_work(view: SessionView, alive: bool | None, age_s: float | None = None) -> str:
    """The status of a session, its executor's newest heartbeat so many seconds old."""
    beat = Heartbeat(7, "2026-01-01T00:00:00+00:00", {}) if age_s is not None else None
    now = datetime(2026, 1, 1, tzinfo=UTC).timestamp() + (age_s or 0.0)
    return render_status(view, Path("/ws"), Sight(alive, HOLDER, beat, now))


def test_a_session_whose_executor_is_gone_is_not_called_running() -> None:
    """The headline says so and what to do, and no step counts as at work."""
    view = build_view(entries_of(started(make_step("a")), ran("a")[0]))

    status = at_work(view, False, 700.0)

    lines = status.split("\n")
    assert lines[0] == "test: not at work (its executor is gone); the same command goes on"
    assert lines[1] == "  At a, attempt 1: interrupted."
    assert "running" not in status
    assert "it may hang" not in status
    assert lines[-2:] == ["The same command goes on:", f"  {RUN}"]


@pytest.mark.parametrize(
    ("alive", "age_s", "head", "hint"),
    [
        (True, 4.0, "test: running", None),
        (True, 19.0, "test: running, but no sign of life for 19 s", None),
        (None, 4.0, "test: running", "If it was killed, the same command goes on:"),
        (None, 19.0, "test: running, but no sign of life for 19 s", "If it was killed, the same "),
        (True, None, "test: running", None),
    ],
)
def test_silence_is_told_and_a_restart_only_where_it_may_help(
    alive: bool | None, age_s: float | None, head: str, hint: str | None
) -> None:
    """Three beats missed are in the headline; one known to be alive is not to be started again."""
    view = build_view(entries_of(started(make_step("a")), ran("a")[0]))

    status = at_work(view, alive, age_s)

    assert status.split("\n")[0] == head
    assert (RUN in status) is (hint is not None)
    assert hint is None or hint in status


def test_a_lost_child_is_counted_with_its_cause() -> None:
    """Report, status and view tell each loss of a child; what was asked for is none."""
    hung = "hung: no heartbeat for 5 s, so it was killed"
    asked = (
        "SIGTERM",
        "SIGINT",
        "SIGHUP",
        "a person asked for it: lunch",
        "paused after a committed batch",
    )
    causes = (hung, *asked, hung, "SIGKILL: killed from outside")
    facts = [fact for why in causes for fact in (ran("a")[0], ev.StepInterrupted("a", 1, why))]
    once = build_view(entries_of(started(make_step("a")), *facts[:2]))
    often = build_view(entries_of(started(make_step("a"), make_step("b")), *facts))

    told = "2 x hung: no heartbeat for 5 s; 1 x SIGKILL: killed from outside"
    assert "  a: 1 loss (hung: no heartbeat for 5 s)\n" in render_status(once, Path("/ws"))
    assert f"  a: 3 losses ({told})\n" in render_status(often, Path("/ws"))
    assert f"- Its child was replaced after 3 losses ({told}).\n" in render_report(often)
    assert "loss" not in render_report(build_view(entries_of(started(make_step("a")), *ran("a"))))
    assert [encode(often)["steps"][i]["losses"] for i in (0, 1)] == [[hung, hung, causes[-1]], []]


def out_of_money(limits: dict[str, Json], *facts: ev.Event, reason: str = "budget") -> SessionView:
    first = replace(started(make_step("a"), overrides=("a.rows=2",)), limits=limits)
    return build_view(entries_of(first, *facts, ev.SessionStopped(reason, 4, "why")))


@pytest.mark.parametrize(
    ("limits", "told", "sets"),
    [
        (
            {"wall_clock_s": 3600, "usd": 9, "usd_per_hour": 2.0},
            "1 h 00 min of wall clock were spent so far; DURATION is e.g. 3h:",
            ["budget.wall_clock=DURATION"],
        ),
        (
            {"wall_clock_s": 9999, "usd": 2.5, "usd_per_hour": 2.0},
            "$2.50 were spent so far; AMOUNT is in dollars, e.g. 12.50:",
            ["budget.usd=AMOUNT"],
        ),
        (
            {"gpu_hours": 4, "gpus": 4, "usd": 9, "usd_per_hour": 2.0},
            "4.00 GPU-hours were spent so far; HOURS is e.g. 40:",
            ["budget.gpu_hours=HOURS"],
        ),
        (
            {"wall_clock_s": 3600, "usd": 2.5, "usd_per_hour": 2.0},
            "1 h 00 min of wall clock and $2.50 were spent so far; ",
            ["budget.wall_clock=DURATION", "budget.usd=AMOUNT"],
        ),
    ],
)
def test_more_is_asked_of_the_limit_that_was_reached(
    limits: dict[str, Json], told: str, sets: list[str]
) -> None:
    """An hour and half a dollar of reviews: only a higher limit of that kind goes on."""
    paid = (ev.RequestSent("a-1", "k", 1, 0.5), ev.RequestSettled("a-1", "k", 1, 0.5))
    view = out_of_money(limits, *paid, ev.TimeLeased(3600.0, 0.0))

    *_, why, command = render_status(view, Path("/ws")).split("\n")

    assert why.startswith("Allow more for the whole session, in which ")
    assert told in why
    assert command == f"  {RUN} --set a.rows=2 {' '.join(f'--set {s}' for s in sets)}"


@pytest.mark.parametrize(
    ("limits", "sets"),
    [
        ({"review_usd": 0.6, "usd": 9}, "--set budget.review_usd=AMOUNT"),
        ({"review_usd": 9, "usd": 0.6}, "--set budget.usd=AMOUNT"),
        ({"review_usd": 9, "usd": 9}, ""),
    ],
)
def test_a_review_that_waits_for_want_of_money_names_the_limit(
    limits: dict[str, Json], sets: str
) -> None:
    """Besides deciding, a person may allow the reviewer one more request."""
    facts = (
        *ran("a"),
        judged("a", result(verdict=Verdict.INVALID), verdict="invalid"),
        ev.ReviewRequested("a-1", "a", 1, "instrument", "reviews/x"),
        ev.RequestSent("a-1", "k", 1, 0.5),
    )
    view = out_of_money({**limits, "request_usd": 0.25}, *facts, reason="review")

    status = render_status(view, Path("/ws"))

    assert "runbook review decide a-1" in status
    assert ("allow the reviewer one more request" in status) is bool(sets)
    assert status.count("budget.") == bool(sets)
    assert (f"  {RUN} --set a.rows=2 {sets}" in status.split("\n")) is bool(sets)


def test_a_budget_that_is_not_spent_is_not_called_spent() -> None:
    """Where only the next batch does not fit, the headline says that."""
    short = out_of_money({"wall_clock_s": 6}, ev.TimeLeased(5.3, 0.0))
    gone = out_of_money({"wall_clock_s": 6}, ev.TimeLeased(5.9, 0.0))

    head = "test: stopped: the budget's rest does not last for the next batch (exit 4)"
    assert render_status(short, Path("/ws")).split("\n")[0] == head
    assert render_status(gone, Path("/ws")).startswith("test: stopped: the budget is spent (exit")


def test_cents_are_told_where_they_count() -> None:
    """Half a cent spent of one is not a cent of a cent."""
    limits = {"usd": 0.01, "usd_per_hour": 3.6}
    view = out_of_money(limits, ev.TimeLeased(5.3, 0.0))

    assert "$0.0053 of $0.01;" in render_status(view, Path("/ws")).replace(".\n", ";")


def test_without_a_session_there_is_nothing_to_show() -> None:
    """An empty journal is no error."""
    view = build_view(())
    assert render_report(view) == "# No session yet\n"
    assert render_status(view, Path("/ws")) == "/ws: no session yet; 'runbook run' starts one"


def test_an_acceptance_without_a_calibration_says_so() -> None:
    """The rates stand beside the word that no filter was calibrated, and only where any judged."""
    metrics = (
        Metric("instruction_acceptance", 0.55, 442, 243),
        Metric("pair_acceptance", 0.25, 8, 2),
    )
    begun, ended = ran("pilot", metrics=metrics)
    view = build_view(entries_of(started(make_step("pilot")), begun, ended))

    report = render_report(view)
    told = report.partition("## What the filters are worth")[2].partition("## Steps")[0]
    assert "No filter was calibrated" in told
    assert "| `instruction_acceptance` | 0.550 (243/442) |" in told
    assert "| `pair_acceptance`        | 0.250 (2/8) |" in told
    assert "What the filters are worth" not in render_report(trained_session())


def counts(successes: int, n: int) -> dict[str, Json]:
    return {"successes": successes, "n": n, "interval": [0.0, 1.0]}


def filter_entry(name: str, *, in_use: bool) -> dict[str, Json]:
    area = {"auc": 0.48, "bound": 0.37, "n": 80}
    kept = {
        "sensitivity": counts(18, 56),
        "specificity": counts(47, 56),
        "good_before": counts(20, 150),
        "good_after": counts(9, 43),
    }
    head = {"kind": "pairs", "filter": name, "in_use": in_use}
    return {**head, "all": area, "easy": area, "hard": area, **kept, "generated": {**kept}}


def test_the_first_lines_say_what_the_filters_cannot_see() -> None:
    """Before anything else that a reader could trust: the filter in use, hard cases, real rows."""
    table = [filter_entry("critic", in_use=False), filter_entry("likelihood", in_use=True)]
    verdict = replace(judged("a", result("m")), details={"filters": table})
    view = build_view(entries_of(started(make_step("a", gate=GATE)), *ran("a"), verdict))

    report = render_report(view)
    top = report.partition("- Safe on disk")[0]
    assert "cannot see: whether an answer is true" in top
    assert "AUC of 0.480 (> 0.370), where 0.5 is chance" in top.replace("\\>", ">")
    assert "0.133 (20/150) before the filter and 0.209 (9/43) after it" in top
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in report.split("\n")]
    assert [row[:3] for row in rows if row[:1] == ["pairs"]][:2] == [
        ["pairs", "critic", "no"],
        ["pairs", "likelihood", "yes"],
    ]


def test_criteria_show_value_bound_and_threshold() -> None:
    """A thin pass is marked and explained; what was not measured is no zero."""
    thin = result(
        "rate",
        kind="rate",
        value=0.52,
        n=100,
        bound=0.44,
        threshold=">= 0.5",
        thin=True,
        reason="r",
    )
    lost = result("lost", Verdict.INVALID, value=None, n=None, reason="was not measured")
    metrics = (Metric("rate", 0.52, 100, 52), Metric("other", 0.25, 8, 2, instrument=Instrument.OK))
    facts = (
        started(make_step("a", gate=GATE)),
        *ran("a", metrics=metrics),
        judged("a", thin, lost, verdict="invalid"),
    )

    report = render_report(build_view(entries_of(*facts)))
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in report.split("\n")]
    assert ["`rate`", "0.520 (52/100)", "100", "0.440", ">= 0.5", "pass (thin)", "r"] in rows
    assert ["`lost`", "not measured", "-", "-", "> 0", "invalid", "was not measured"] in rows
    assert "Also measured: other 0.250 (2/8)." in report


def test_yields_show_each_stages_share() -> None:
    """Of all candidates and of the stage before, in the order of making."""
    counts = {"in the dataset": 20, "candidates": 80, "accepted pairs": 40}
    qc = {"qc": {"yield": counts, "scores": {"critic": {"+0.25": 3, "-0.50": 2}}}}
    view = build_view(entries_of(started(make_step("a")), *ran("a", summary=qc)))

    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in render_report(view).split("\n")]
    at = rows.index(["candidates", "80", "100.0 %", "100.0 %"])
    assert rows[at + 1] == ["accepted pairs", "40", "50.0 %", "50.0 %"]
    assert rows[at + 2] == ["in the dataset", "20", "25.0 %", "50.0 %"]
    assert rows.index(["-0.50", "2"]) + 1 == rows.index(["+0.25", "3"])


def test_a_summary_is_shown_by_its_form() -> None:
    """Flat facts as sentences, two levels as a table; what only repeats a metric is left out."""
    summary = {
        "loss": [5.923, 1.0, 0.334],
        "merge": {"shards": 108, "dropped": {"beyond_target": 18}},
        "by kind": {"list": {"n": 32, "success": 0.0625}, "number": {"n": 32, "success": 1}},
        "readings": {"end_of_turn_logp": -24.8},
    }
    metrics = (Metric("end_of_turn_logp", -24.8, 1),)
    view = build_view(
        entries_of(started(make_step("a")), *ran("a", summary=summary, metrics=metrics))
    )

    report = render_report(view)
    assert "- loss: 3 values, first 5.92, last 0.334\n" in report
    assert "- merge: dropped (beyond_target 18), shards 108\n" in report
    assert "by kind:\n\n|        | n   | success |\n" in report
    assert "| list   | 32  | 0.062 |\n| number | 32  | 1.000 |\n" in report
    assert "readings" not in report


def test_names_stand_whole_in_a_table() -> None:
    """What would end a code span or a cell is spelled out."""
    assert code("a|b`c<d") == r"`a\x7cb\x60c\x3cd`"
    assert table(("name",), [(Code("a|b"),), ("a|b",)])[2:4] == [r"| `a\x7cb` |", r"| a\|b |"]


def test_an_extended_attempt_counts_its_tokens_once() -> None:
    """The second look's count holds the first's; its time does not, and attempts add up."""
    facts = (
        started(make_step("a", gate=GATE)),
        *ran("a", tokens=10, seconds=5.0),
        judged("a", result(verdict=Verdict.UNDERPOWERED), verdict="underpowered"),
        ev.SampleExtended("a", 1, {"raw_rows": 400}),
        *ran("a", look=2, tokens=30, seconds=7.0),
        judged("a", result(verdict=Verdict.FAIL), verdict="fail"),
        ev.Adjusted("a", 1, {"t": 1}, "w"),
        *ran("a", 2, tokens=100, seconds=1.0),
    )

    view = build_view(entries_of(*facts))
    assert (view.steps[0].tokens, view.steps[0].seconds) == (130, 13.0)
    assert "Attempt 1: the sample was too small and was extended: raw_rows = 400" in (
        render_report(view)
    )


@pytest.mark.parametrize("helped", [True, False])
def test_a_smoke_tells_what_it_showed_and_no_verdict(*, helped: bool) -> None:
    """What was read on a few rows, and the full rerun where the change helps."""
    limit = partial(result, "limit", kind="rate", threshold="< 0.1", verdict=Verdict.FAIL)
    smoke = judged("a", limit(value=0.15 if helped else 0.5), attempt=2, verdict="fail")
    then = [ev.Adjusted("a", 2, {}, "limit 0.5 -> 0.15"), *ran("a", 3, params={"t": 2, "rows": 9})]
    facts = (
        started(make_step("a", gate=GATE, params={"t": 1, "rows": 9})),
        *ran("a", params={"t": 1, "rows": 9}),
        judged("a", limit(value=0.5), verdict="fail"),
        ev.Adjusted("a", 1, {"t": 2}, "w", {"rows": 3}),
        *ran("a", 2, look=0, params={"t": 2, "rows": 3}),
        replace(smoke, look=0),
        *(then if helped else ()),
    )

    report = render_report(build_view(entries_of(*facts)))

    assert "Adjusted after attempt 1: `t` = 2. Why: w. First on a few rows alone." in report
    assert "a smoke of a few rows, ran with `rows` 3 (before: 9), `t` 2 (before: 1)." in report
    assert "Attempt 2: **fail**" not in report
    if helped:
        assert "Attempt 2: the change helps (`limit` 0.15)." in report
        assert "Then in full. Why: limit 0.5 -> 0.15" in report
        assert "Attempt 3 ran with `t` 2 (before: 1)." in report
    else:
        assert "Attempt 2: not shown that the change helps (`limit` 0.5)." in report


def test_a_retry_sets_the_steps_it_runs_again_back() -> None:
    """From ``rerun_from`` to the gate's own step, and not what was skipped."""
    steps = [make_step(name) for name in ("data", "sft", "off")]
    steps += [make_step("e", gate=GATE, rerun_from="sft")]
    facts = [ev.StepPassed("data", 1), ev.StepPassed("sft", 1), ev.StepSkipped("off", "A", "off")]
    view = build_view(
        entries_of(
            started(*steps),
            *facts,
            *ran("e"),
            judged("e", result(verdict=Verdict.FAIL), verdict="fail"),
            ev.Adjusted("e", 1, {"t": 1}, "w"),
        )
    )

    now = [step.status.value for step in view.steps]
    assert now == ["passed", "pending", "skipped", "pending"]


def test_a_step_that_a_resume_found_half_done_was_interrupted() -> None:
    """A view stands as the machine does, between a resume and the step's next start as well."""
    facts = (started(make_step("a")), ran("a")[0], ev.SessionResumed({}))

    assert [s.status for s in build_view(entries_of(*facts[:2])).steps] == [Status.RUNNING]
    assert [s.status for s in build_view(entries_of(*facts)).steps] == [Status.INTERRUPTED]


@pytest.mark.parametrize("strange", ["plan", "step", "reason"])
def test_a_journal_that_the_machine_cannot_follow_is_shown(strange: str) -> None:
    """Of another version's plan, step or reason, the last that each step told stands in it."""
    begun = started(*(make_step(name, gate=GATE, review_after=1) for name in "abcdefg"))
    if strange == "plan":
        del begun.plan["steps"]["a"]["retries"]
    low = result(verdict=Verdict.FAIL)
    facts = [
        *(*ran("a"), judged("a", result()), manifest("a")),
        *(*ran("b"), judged("b", low, verdict="fail")),
        ev.ReviewRequested("b-1", "b", 1, "a new one" if strange == "reason" else "closing", "r"),
        ev.ReviewDecided("b-1", "override", {}, "good enough", "Ann", person=True),
        *(*ran("c"), judged("c", low, verdict="fail")),
        *ran("d"),
        *(ran("e")[0], ev.StepFailed("e", 1, "why", "", 1)),
        *(ran("f")[0], ev.StepInterrupted("f", 1, "killed")),
        ev.StepSkipped("g", "A", "off"),
        *([ran("new")[0]] if strange == "step" else []),
        ev.SessionStopped("error", 1, "why"),
    ]

    view = build_view(entries_of(begun, *facts))

    now = [step.status.value for step in view.steps]
    known = ["passed", "passed", "judged", "finished", "failed", "interrupted", "skipped"]
    assert now == [*known, *(["running"] if strange == "step" else [])]
    assert render_report(view).startswith("# test: stopped: an error (exit 1)\n")
    assert "test: stopped" in render_status(view, Path("/ws"))


def hostile_session(text: str) -> SessionView:
    """A session in which everything that a step, a model or a person can write is this text."""
    step = make_step("a", gate=GATE, phase="A")
    bad = result(text, Verdict.FAIL, reason=text, threshold=text)
    begun, ended = ran(
        "a",
        params={"p": text},
        metrics=(Metric(text, 0.5, 2, 1, note=text), Metric("pair_acceptance", 0.5, 2, 1)),
        artifacts=(Artifact(text, text, text, 1),),
        summary={"fact": text, "table": {text: {text: 1}}, "qc": {"yield": {text: 1}}},
        samples=({"instruction": text, text + "k": text},),
    )
    comparison = {"n": 1, "by_kind": {text: {"n": 1}}}
    parts = {"comparison": comparison, "split": {"format": comparison}}
    first = started(step, name=text, overrides=(text,))
    facts = (
        first,
        begun,
        ended,
        judged("a", bad, verdict="fail", details=parts),
        ev.ReviewRequested("a-1", "a", 1, text, text),
        ev.ReviewDecided("a-1", "retry", {"p": text}, text, text, person=False),
        ev.Adjusted("a", 1, {"p": text}, text),
        ev.PlanAccepted(text, text, (text,), first.plan, text, text, (text,), ("a",), ()),
        ev.StepStarted("a", 2, 1, {"p": text + "2"}, text, text),
        ev.StepFailed("a", 2, text, text, 1),
        ev.SessionStopped("error", 1, text),
    )
    return build_view(entries_of(*facts))


def test_hostile_text_stays_data() -> None:
    """No heading, row or tag of its own, and nothing that a terminal would act on."""
    view = hostile_session(HOSTILE)
    report, status = render_report(view), render_status(view, Path("/ws"))

    assert all(c.isprintable() or c == "\n" for c in report + status)
    assert not [x for x in report.split("\n") if "<script" in x and not x.startswith("    ")]
    assert not [line for line in report.split("\n") if line.startswith("# heading")]
    assert "\\u202egnp" in report
    assert shape(report) == shape(render_report(hostile_session("plain\n" * 3)))


@settings(max_examples=150, deadline=None)
@given(
    st.text(min_size=1).map(lambda text: f"x{text}"),
    st.sampled_from(["", "# ", "- ", "1. ", "> ", "```", "    ", "~~~", "---\n", "| a |\n|---|\n"]),
)
def test_no_text_changes_the_shape_of_a_report(text: str, opening: str) -> None:
    """Whatever is written, a Markdown reader sees the blocks that plain text would give."""
    lines = (opening + text).splitlines()
    plain = "\n".join("plain" if line.strip() else "" for line in lines)
    report = render_report(hostile_session(opening + text))

    assert all(c.isprintable() or c == "\n" for c in report)
    assert shape(report) == shape(render_report(hostile_session(plain)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["qc", "loss", "by kind", "x"]), JSON), JSON)
def test_a_report_can_be_made_of_anything_a_step_tells(
    summary: dict[str, Json], told: Json
) -> None:
    """A strange summary must never be what stops a session."""
    broken = {"comparison": {"n": told, "by_kind": {"k": told}, "lift": told}, "split": told}
    begun, ended = ran("a", summary={**summary, "huge": 10**400}, samples=({"a": told},))
    verdict = judged("a", result(), details=broken)
    view = build_view(entries_of(started(make_step("a", gate=GATE)), begun, ended, verdict))

    assert "### A: a, pass" in render_report(view)
    assert "a, attempt 1: pass" in judgement_text(judgement_document(begun, ended, verdict))


def test_samples_are_those_of_the_last_step_that_has_any() -> None:
    """Escaped JSON on one line a field, long text cut and told so."""
    row = {"instruction": "Say \u201chi\u201d", "response": "y" * 700}
    facts = (
        started(make_step("a"), make_step("b"), make_step("c")),
        *ran("a", samples=({"instruction": "old"},)),
        *ran("b", samples=(row,)),
        *ran("c"),
    )

    report = render_report(build_view(entries_of(*facts)))
    rows = report.partition("## 1 kept row drawn at random")[2].partition("## Environment")[0]
    assert '    1.  "instruction"  "Say \\u201chi\\u201d"\n' in rows
    assert f'        "response"     "{"y" * 600}... (700 characters)"\n' in rows
    assert "old" not in rows


def reordered(value: Json) -> Json:
    """The same JSON with its keys the other way round."""
    if isinstance(value, Mapping):
        return {key: reordered(value[key]) for key in reversed(list(value))}
    return [reordered(item) for item in value] if isinstance(value, list | tuple) else value


def test_a_report_does_not_depend_on_the_order_of_keys() -> None:
    """A resumed session, which reads its journal from disk, writes the same page."""
    facts = (started(make_step("sft"), make_step("evaluate", inputs=("sft",))), *evaluated())
    kinds = {"v": {"q": 2, "p": 1}, "u": {"q": 1, "p": 1}}
    summary = {"b": 1, "a": kinds, "c": {"z": 1, "y": {"q": 2}}, "qc": {"yield": {"n": 2, "m": 1}}}
    changed = ev.Adjusted("evaluate", 1, {"s": 1, "r": 2}, "why")
    here = entries_of(*facts, changed, *ran("sft", 2, summary=summary))
    there = [replace(e, body=reordered(e.body)) for e in here]

    assert render_report(build_view(there)) == render_report(build_view(here))


def test_a_judgement_is_the_same_for_every_run() -> None:
    """The document holds no time, and its bytes do not depend on the order of keys."""
    metrics = (Metric("rate", 0.5, 4, 2, evidence="data/x.jsonl"),)
    begun, ended = ran("a", metrics=metrics, seconds=1.0, summary={"b": 1, "a": 2})
    _, later = ran("a", metrics=metrics, seconds=2.0, summary={"a": 2, "b": 1})
    verdict = judged("a", result("rate", kind="rate"), details=details())
    document = judgement_document(begun, ended, verdict)

    assert json.dumps(document) == json.dumps(judgement_document(begun, later, verdict))
    assert document["criteria"][0]["threshold"] == "> 0"
    assert document["metrics"][0]["evidence"] == "data/x.jsonl"
    assert document["details"]["comparison"]["n01"] == 16
    assert (document["step"], document["attempt"], document["verdict"]) == ("a", 1, "pass")


def test_a_judgement_reads_as_plain_text() -> None:
    """Verdict first, then criteria, the comparison by kind, and the reasons."""
    begun, ended = ran("evaluate", metrics=(Metric("tuned_rate", 0.5, 40, 20),))
    bad = result("mcnemar_p", Verdict.FAIL, kind="p_value", value=0.2, reason="0.2 is not < 0.01")
    verdict = judged("evaluate", bad, verdict="fail", details=details())

    text = judgement_text(judgement_document(begun, ended, verdict))
    assert text.startswith("evaluate, attempt 1: fail\n")
    assert "  mcnemar_p: 0.2 is not < 0.01\n" in text
    assert "  tuned_rate 0.500 (20/40)\n" in text
    assert "0.150 (6/40)" in text
    assert text.index("Criteria") < text.index("Over all items") < text.index("By kind")


def test_a_session_leaves_a_report_and_its_judgements(tmp_path: Path) -> None:
    """The files that the report names are there, and the judgement says what the gate said."""
    step = make_step("a", gate=GATE, params={"metrics": {"m": 0.9}})
    view = execute(make_plan(step), tmp_path / "ws")

    document = json.loads((tmp_path / "ws" / view.steps[0].judged).read_bytes())
    assert document["verdict"] == "pass"
    assert (tmp_path / "ws" / "report.md").read_text().startswith("# test: all done (exit 0)")


def test_commands_are_quoted_for_a_shell() -> None:
    """A path with a space and an override with quotes survive a paste."""
    view = trained_session(overrides=("a.b='x y'",), runbook=Path("/my specs/runbook.yaml"))

    assert view.command(Path("/w s")) == (
        "runbook run '/my specs/runbook.yaml' --workspace '/w s' --set 'a.b='\"'\"'x y'\"'\"''"
    )


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (dollars(12.5), "$12.50"),
        (dollars(0.5), "$0.50"),
        (dollars(0.0053), "$0.0053"),
        (dollars(0.0000123), "$0.000012"),
        (dollars(0.0), "$0.00"),
        (figures.duration(0.42), "0.4 s"),
        (figures.duration(59.6), "1 min 00 s"),
        (figures.duration(192), "3 min 12 s"),
        (figures.duration(3599.7), "1 h 00 min"),
        (figures.duration(7325), "2 h 02 min"),
        (figures.p_value(7.34e-06), "7.3e-06"),
        (figures.p_value(0), "below 1e-300"),
        (figures.p_value(None), "-"),
        (figures.rate(0.1125, 160, 18), "0.113 (18/160)"),
        (figures.rate(None, 0, 0), "-"),
        (figures.number(-24.778), "-24.8"),
        (figures.number(45123), "45,123"),
        (figures.number(True), "-"),
        (figures.number(10**400), "-"),
        (figures.size(132), "132 B"),
        (figures.size(569_596_537), "543.2 MiB"),
        (figures.interval([-0.1, 0.2], difference=True), "-0.100 to +0.200"),
        (figures.percent(1, 0), "-"),
        (figures.counted(1, "batch", "batches"), "1 batch"),
        (figures.counted(1200, "batch", "batches"), "1,200 batches"),
        (figures.listed(("retry", "stop", "override")), "retry, stop or override"),
        (figures.moment("2026-11-21T14:28:09.553794+00:00"), "2026-11-21 14:28:09 UTC"),
    ],
)
def test_figures_read_as_people_write_them(shown: str, expected: str) -> None:
    """Few digits, units in words, and a dash for what is not known."""
    assert shown == expected


def test_reports_import_nothing_heavy() -> None:
    """Status answers at once: no statistics, no terminal library, no runbook schema."""
    code = (
        "import sys\n"
        "import runbook.report.markdown, runbook.report.status, runbook.report.view\n"
        "import runbook.report.judgement\n"
        "heavy = {'torch', 'scipy', 'numpy', 'rich', 'jinja2', 'pydantic', 'runbook.schema'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
