"""The loop: decide -> do -> append -> apply. The journal's one writer, and the child's one parent.

Whatever it does is repeated safely after a kill: each act either left its line in the journal or
is done again from the same state.
"""

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from runbook import artifacts, manifest
from runbook import events as ev
from runbook import machine as m
from runbook import state as st
from runbook.bootstrap import check_machine
from runbook.clock import SYSTEM, Clock
from runbook.contract import (
    Gate,
    Judgement,
    Metric,
    Reviewer,
)
from runbook.errors import NeedsPersonError, PausedError, RunbookError, SentinelError
from runbook.fingerprint import plan_document
from runbook.journal import Entry, Journal, batches, facts, read_entries, seconds_spent
from runbook.plan import Plan, PlannedStep
from runbook.process import Failed, Lost, Paused, end_orphans, signals
from runbook.report.judgement import judgement_document, judgement_text
from runbook.report.markdown import render_report
from runbook.report.view import build_view
from runbook.review import make_request
from runbook.step_runner import Progress, StepRunner
from runbook.takeover import Takeover, open_journal
from runbook.worker import Job
from runbook.workspace import Workspace, stamp

Gates = Callable[[Gate, tuple[Metric, ...], bool], Judgement]
"""The gate, the readings, and whether the sample cannot grow any more."""

_PINNED = (ev.StepFinished, ev.GateJudged, ev.StepPassed, ev.ReviewDecided, ev.SessionDone)
"""Facts that must never go missing unnoticed."""


def run_session(
    plan: Plan,
    workspace: Workspace,
    *,
    gates: Gates,
    reviewer: Reviewer,
    dry: Callable[[], Sequence[str]] = tuple,
    on_progress: Progress = lambda _: None,
    clock: Clock = SYSTEM,
    takeover: Takeover | None = None,
) -> int:
    """Run the session, or go on with it, to its end or its stop; return the exit code.

    ``dry`` names what forbids running phase code; it is asked before each step.

    Raises:
        ConfigError: the plan is not the one the journal was started with, or asks for GPUs that
            are not there.
        LockedError: another executor holds the workspace.
        CorruptError: the journal is not what was appended.
        NeedsPersonError: the journal cannot be written.
    """
    workspace.create()
    state = _same_session(plan, read_entries(workspace))
    if state.done and manifest.is_projected(workspace, state):
        return state.done.exit_code
    if state.session is None:
        check_machine(plan.preflight, workspace.root)
    with open_journal(workspace, clock, takeover=takeover) as journal, signals() as stop:
        end_orphans(workspace.root)
        artifacts.settle(workspace.root)
        session = _Session(plan, workspace, journal, gates, reviewer, dry, on_progress, clock, stop)
        try:
            return session.run()
        finally:
            session.runner.close()


def _same_session(
    plan: Plan,
    entries: Sequence[Entry],
) -> st.State:
    """The state of the journal; refuses one that was begun with another plan."""
    known = facts(entries)
    started = next((fact for fact in known if isinstance(fact, ev.SessionStarted)), None)
    manifest.check_same_plan(plan, started)
    return m.replay(plan, known)


class Halt(Exception):  # noqa: N818 - a stop is not an error
    """A stop whose cause is not in the journal: a signal, the clock, the disk."""

    def __init__(self, reason: str, exit_code: int, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.exit_code = exit_code
        self.detail = detail


class _Session:
    def __init__(
        self,
        plan: Plan,
        workspace: Workspace,
        journal: Journal,
        gates: Gates,
        reviewer: Reviewer,
        dry: Callable[[], Sequence[str]],
        on_progress: Progress,
        clock: Clock,
        stop: Callable[[], str],
    ) -> None:
        self.plan = plan
        self.workspace = workspace
        self.journal = journal
        self.gates = gates
        self.reviewer = reviewer
        self.dry = dry
        self.on_progress = on_progress
        self.clock = clock
        self.stop = stop
        self.state = m.replay(plan, facts(journal.entries))
        self.runner = StepRunner(
            plan, workspace, self.append, on_progress, clock, stop, self._budget_left
        )
        self.consulted: set[str] = set()
        self.spent_before = seconds_spent(journal.entries)
        self.began = clock.monotonic()

    def append(self, event: ev.Event) -> None:
        self.journal.append(event.to_body(), pin=isinstance(event, _PINNED))
        self.state = m.apply(self.plan, self.state, event)

    def run(self) -> int:
        if self.state.done:
            # Killed after its last line, before the manifest and the report told of it.
            self._project()
            return self.state.done.exit_code
        try:
            self._open()
            while (code := self._advance()) is None:
                pass
        except Halt as halt:
            return self._stop(halt.reason, halt.exit_code, halt.detail)
        except Exception as error:
            detail = str(error) if isinstance(error, RunbookError) else repr(error)
            with suppress(OSError, RunbookError):
                artifacts.write_text(self.workspace.log("executor"), traceback.format_exc())
            with suppress(OSError, RunbookError):
                # A poisoned journal takes no more; the error itself then says why it ended.
                return self._stop("error", getattr(error, "code", 1), detail)
            raise
        return code

    def _open(self) -> None:
        if self.state.session:
            self.append(ev.SessionResumed())
            return
        self.append(
            ev.SessionStarted(
                run_id=stamp(self._now()),
                runbook=str(self.plan.runbook),
                name=self.plan.name,
                fingerprint=self.plan.fingerprint,
                overrides=self.plan.overrides,
                plan=plan_document(self.plan),
                versions=manifest.provenance(self.plan),
            )
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.wall(), UTC)

    def _advance(self) -> int | None:
        """Do the next act; the exit code where there is none left."""
        self._heed_stop()
        self._settle()
        # A reviewer gives up when a stop is asked for; that is no answer a person must give.
        self._heed_stop()
        match m.decide(self.plan, self.state):
            case st.RunStep() as run:
                self._run_step(run)
            case st.JudgeGate(step):
                self._judge(step)
            case st.PassStep(step):
                self.append(ev.StepPassed(step, self.state.steps[step].attempt))
            case st.SkipStep(step, phase, why):
                self.append(ev.StepSkipped(step, phase, why))
            case st.Extend(step, params):
                self.append(ev.SampleExtended(step, self.state.steps[step].attempt, params))
            case st.Adjust(step, changes, why):
                self.append(ev.Adjusted(step, self.state.steps[step].attempt, changes, why))
            case st.AskReview(step, attempt, reason):
                path = self.workspace.review(self._now(), f"{step}_{attempt}_{reason}")
                where = self.workspace.relative(path).replace(" ", "_")
                self.append(ev.ReviewRequested(f"{step}-{attempt}", step, attempt, reason, where))
            case st.Stop(reason, exit_code, detail):
                return self._stop(reason, exit_code, detail)
            case st.Finish(exit_code):
                self._check_outputs()
                self.append(ev.SessionDone(exit_code, self.state.overrides))
                self._project()
                return exit_code
        return None

    def _heed_stop(self) -> None:
        if self.stop():
            raise Halt("paused", PausedError.code, f"{self.stop()}; the same command goes on")

    def _check_outputs(self) -> None:
        """Nothing is called done whose results are gone."""
        for name, mine in self.state.steps.items():
            if mine.status is not st.Status.PASSED or mine.finished is None:
                continue
            if missing := manifest.missing_outputs(self.workspace, mine.finished):
                code = NeedsPersonError.code
                raise Halt("missing manifest", code, f"{name}: {missing}; restore it")

    def _stop(self, reason: str, exit_code: int, detail: str) -> int:
        self.append(ev.SessionStopped(reason, exit_code, detail))
        with suppress(OSError, RunbookError):
            # A disk too full for the report must not hide the cause; the next run writes it.
            self._project()
        return exit_code

    def _settle(self) -> None:
        """Pay what an earlier act, perhaps of a killed process, still owes."""
        for name, mine in self.state.steps.items():
            if mine.manifest_owed:
                self._write_manifest(self.plan.step(name))
        waiting = self.state.open_review
        review = self.state.steps[waiting].review if waiting else None
        if waiting and review and review.review_id not in self.consulted:
            self.consulted.add(review.review_id)
            self._consult(waiting)

    def _write_manifest(self, step: PlannedStep) -> None:
        mine = self.state.steps[step.name]
        assert mine.started is not None
        output = self.workspace.inside(mine.started.output)
        judgement = self._write_judgement(output, mine)
        path = self.workspace.manifest(output)
        sha = artifacts.write_json(
            path, manifest.step_manifest(self.plan, self.state, step, judgement)
        )
        where = self.workspace.relative(path)
        judged_path = judgement["path"] if judgement else ""
        self.append(ev.ManifestWritten(step.name, mine.attempt, where, sha, judged_path))
        self._project()

    def _write_judgement(self, output: Path, mine: st.StepState) -> dict[str, str]:
        """Path and hash of the judgement laid down beside what it judges; empty without a gate."""
        if mine.started is None or mine.finished is None or mine.judged is None:
            return {}
        document = judgement_document(mine.started, mine.finished, mine.judged)
        path = output / mine.finished.judged_file
        artifacts.write_text(path.with_suffix(".txt"), judgement_text(document))
        sha = artifacts.write_json(path, document)
        return {"path": self.workspace.relative(path), "sha256": sha}

    def _project(self) -> None:
        if self.state.session is None:
            return
        report = render_report(build_view(self.journal.entries), self.workspace.root)
        shown = {self.workspace.report: artifacts.write_text(self.workspace.report, report)}
        known = facts(self.journal.entries)
        written = [fact for fact in known if isinstance(fact, ev.ManifestWritten)]
        path = self.workspace.session_manifest(self.state.session.run_id)
        document = manifest.session_manifest(self.plan, self.state, written)
        shown[path] = artifacts.write_json(path, document)
        self.journal.projections = {self.workspace.relative(p): sha for p, sha in shown.items()}

    def _consult(self, name: str) -> None:
        request = make_request(
            self.plan, self.state, facts(self.journal.entries), self.workspace, name
        )
        answer = self.reviewer(replace(request, stop=self.stop))
        if answer is None:
            return
        decided = ev.ReviewDecided(
            request.review_id,
            answer.action,
            dict(answer.changes),
            answer.reason,
            answer.author,
            answer.person,
        )
        refusal = m.refuse_decision(self.plan, self.state, decided)
        if refusal:
            self.on_progress({"review": request.review_id, "refused": refusal})
            folder = self.workspace.inside(request.path)
            artifacts.write_text(folder / "error.txt", f"the answer was refused: {refusal}\n")
        else:
            self.append(decided)

    def _judge(self, name: str) -> None:
        mine = self.state.steps[name]
        gate = self.plan.step(name).gate
        assert gate is not None
        assert mine.finished is not None
        if missing := manifest.missing_outputs(self.workspace, mine.finished):
            raise Halt("missing manifest", NeedsPersonError.code, f"{name}: {missing}; restore it")
        final = gate.extend is None or self._has_grown(name, mine)
        judged = self.gates(gate, mine.finished.metrics, final)
        self.append(
            ev.GateJudged(
                name,
                mine.attempt,
                mine.look,
                judged.verdict.value,
                tuple(ev.encode(criterion) for criterion in judged.criteria),
                judged.reasons,
                judged.sentinel_tripped,
                ev.encode(judged.details),
            )
        )

    def _has_grown(self, name: str, mine: st.StepState) -> bool:
        """Whether a second look rests on more than the first; one that does not decides nothing."""
        assert mine.finished is not None
        looks = [
            {metric.name: metric.n or 0 for metric in fact.metrics}
            for fact in facts(self.journal.entries)
            if isinstance(fact, ev.StepFinished)
            and (fact.step, fact.attempt, fact.look) == (name, mine.attempt, mine.look - 1)
        ]
        now = {metric.name: metric.n or 0 for metric in mine.finished.metrics}
        return bool(looks) and any(n > looks[-1].get(metric, 0) for metric, n in now.items())

    def _budget_left(self) -> bool:
        limit = self.plan.budget.get("wall_clock_s")
        spent = self.spent_before + self.clock.monotonic() - self.began
        return limit is None or spent < float(limit)

    def _halt_for_budget(self) -> Halt:
        limit = self.plan.budget.get("wall_clock_s")
        return Halt("budget", 4, f"the session's wall clock budget of {limit} s is spent")

    def _run_step(self, run: st.RunStep) -> None:
        if not self._budget_left():
            raise self._halt_for_budget()
        if findings := self.dry():
            raise Halt("dry", SentinelError.code, "; ".join(findings))
        step = self.plan.step(run.step)
        try:
            inputs = manifest.verified_inputs(self.state, self.workspace, step)
        except NeedsPersonError as error:
            raise Halt("missing manifest", error.code, str(error)) from error
        output, started_at = self._place(step)
        known = batches(self.journal.entries, run.step, run.attempt)
        work = self.workspace.work(run.step, run.attempt)
        artifacts.make_directory(work)
        artifacts.make_directory(self.workspace.inside(output))
        self.append(ev.StepStarted(run.step, run.attempt, run.look, run.params, output, started_at))
        job = Job(
            function=step.function,
            search=str(self.plan.runbook.parent),
            log=str(self.workspace.log(step.name)),
            step=run.step,
            attempt=run.attempt,
            look=run.look,
            seed=self.plan.seed,
            params=run.params,
            model=self.plan.model,
            engine=self.plan.engine,
            workspace=self.workspace.root,
            work=work,
            output=self.workspace.inside(output),
            inputs=inputs,
            provenance=manifest.provenance(self.plan),
            committed=tuple(known.values()),
        )
        self._finish_step(run, self.runner.run(job))

    def _finish_step(
        self, run: st.RunStep, outcome: ev.StepFinished | Failed | Paused | Lost
    ) -> None:
        match outcome:
            case ev.StepFinished():
                self.append(outcome)
                return
            case Failed(what, where, fix, code, tail):
                error = str(RunbookError(what, where=where, fix=fix))
                self.append(ev.StepFailed(run.step, run.attempt, error, tail, code))
                return
            case Lost(cause):
                pass
            case Paused():
                cause = "paused after a committed batch"
        self.append(ev.StepInterrupted(run.step, run.attempt, self.stop() or cause))
        if isinstance(outcome, Paused) and not self.stop():
            if not self._budget_left():
                raise self._halt_for_budget()
            raise Halt("paused", PausedError.code, f"{run.step} paused itself")

    def _place(self, step: PlannedStep) -> tuple[str, str]:
        """The attempt's output folder and its start; an attempt that goes on keeps both."""
        mine = self.state.steps[step.name]
        if mine.started:
            return mine.started.output, mine.started.started_at
        moment = self._now()
        output = self.workspace.output(step.output, moment)
        while "{time}" in step.output and output.exists():
            # Two attempts within one second must not share a folder.
            moment += timedelta(seconds=1)
            output = self.workspace.output(step.output, moment)
        return self.workspace.relative(output), moment.isoformat()
