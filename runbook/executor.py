"""The loop: decide -> do -> append -> apply. The journal's one writer, and the child's one parent.

Whatever it does is repeated safely after a kill: each act either left its line in the journal or
is done again from the same state.
"""

import os
import shlex
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from runbook import acts, artifacts, manifest
from runbook import events as ev
from runbook import machine as m
from runbook import state as st
from runbook.bootstrap import check_machine
from runbook.budget import Limits
from runbook.changes import Acceptance, agree
from runbook.clock import SYSTEM, Clock
from runbook.contract import (
    Gate,
    Json,
    Judgement,
    Metric,
    Reviewer,
)
from runbook.control import STOP_REQUESTED, Pulse, read_certificate, withdraw_stop
from runbook.errors import (
    LockedError,
    NeedsPersonError,
    PausedError,
    RunbookError,
)
from runbook.fingerprint import plan_document
from runbook.gpus import Gpus
from runbook.journal import facts, read_entries, read_journal
from runbook.journal_writer import Journal
from runbook.ledger import Ledger
from runbook.metering import Metering, owes_stop
from runbook.next_act import decide
from runbook.notify import Notifier, notice_command
from runbook.owner import Owner
from runbook.plan import Plan
from runbook.prerequisites import check_plan
from runbook.process import end_orphans, signals
from runbook.redact import Redactor, session_secrets
from runbook.review import review_name
from runbook.step_runner import Progress, StepRunner
from runbook.supervision import Halt, Supervisor
from runbook.takeover import Takeover, open_journal
from runbook.workspace import Workspace, stamp

if TYPE_CHECKING:
    from runbook.projection import Projector

Gates = Callable[[Gate, tuple[Metric, ...], bool], Judgement]
"""The gate, the readings, and whether the sample cannot grow any more."""

_PINNED = (
    ev.GateJudged,
    ev.StepPassed,
    ev.RequestSent,
    ev.ReviewDecided,
    ev.SessionDone,
)
"""Facts that must never go missing unnoticed."""
_DONE = "the session is done"


@dataclass(frozen=True)
class Seams:
    """What an executor is given rather than makes: the other folders' parts, and the clock."""

    gates: Gates
    reviewer: Reviewer
    dry: Callable[[], Sequence[str]] = tuple
    """Names what forbids running phase code; asked before each step."""
    on_progress: Progress = lambda _: None
    clock: Clock = SYSTEM


def run_session(
    plan: Plan,
    workspace: Workspace,
    seams: Seams,
    *,
    by_person: bool = False,
    takeover: Takeover | None = None,
    acceptance: Acceptance | None = None,
) -> int:
    """Run the session, or go on with it, to its end or its stop; return the exit code.

    Args:
        plan: what to run.
        workspace: where.
        seams: the parts that are given.
        by_person: a person asks for it, so a session that a person stopped goes on; otherwise a
            stop that is still pending is put on record, and the exit code is 3.
        takeover: why another executor's workspace may be taken over, where that is wanted.
        acceptance: why the session goes on with a plan that changed, where that is wanted.

    Raises:
        ConfigError: the plan is not the one on record and that was not accepted, or asks for GPUs
            that are not there.
        LockedError: another executor holds the workspace.
        CorruptError: the journal is not what was appended.
        NeedsPersonError: the journal cannot be written, or a person stopped the session.
    """
    is_there = os.access(workspace.segment(1), os.R_OK)
    if not is_there:
        workspace.create()
    known = facts(read_entries(workspace))
    accepted = agree(plan, known, workspace.root, acceptance)
    state = m.replay(plan, (*known, accepted) if accepted else known)
    if (
        state.done
        and manifest.is_projected(workspace, state)
        and not owes_stop(plan.pod, workspace, known)
    ):
        return state.done.exit_code
    if is_there:
        # Not before: of one that is done nothing is written, so it may lie on a read-only mount.
        workspace.create()
    if not by_person:
        _check_stop(state, workspace)
    check_machine(plan.preflight, workspace.root, resumed=state.session is not None)
    if state.session is None:
        check_plan(plan, workspace)
    with signals() as signal, open_journal(workspace, seams.clock, takeover=takeover) as journal:
        end_orphans(workspace.root)
        artifacts.settle(workspace.root)
        if by_person:
            withdraw_stop(workspace)
        if accepted := agree(plan, facts(journal.entries), workspace.root, acceptance):
            journal.append(accepted.to_body(), pin=True)
        session = Session(plan, workspace, journal, seams, signal)
        if not by_person:
            # It may have been put on record since, while nobody held the workspace.
            _check_stop(session.state, workspace)
        try:
            code = session.run()
        finally:
            session.runner.close()
            session.notifier.close()
        with suppress(RunbookError):
            # What a step left running would go on using the machine; not where another took over.
            journal.check_fence()
            end_orphans(workspace.root)
        return code


def _check_stop(state: st.State, workspace: Workspace) -> None:
    """Raises NeedsPersonError: a person stopped the session, and only a person goes on."""
    if state.stop and state.stop.reason == STOP_REQUESTED:
        raise NeedsPersonError(
            f"the session was stopped: {state.stop.detail}",
            where=str(workspace.root),
            fix=f"runbook resume --workspace {shlex.quote(str(workspace.root))}",
        )


class Session:
    """The parts of one executor, and what it knows; the acts are in ``runbook.acts``."""

    def __init__(
        self,
        plan: Plan,
        workspace: Workspace,
        journal: Journal,
        seams: Seams,
        signal: Callable[[], str],
    ) -> None:
        self.plan = plan
        self.workspace = workspace
        self.journal = journal
        self.seams = seams
        self.known = list(facts(journal.entries))
        self.state = m.replay(plan, self.known)
        budget = plan.budget
        self.ledger = Ledger(
            Limits.of(budget),
            seams.clock,
            lambda: self.known,
            self.append,
            request_usd=budget.get("request_usd", 0.0),
            unknown_requests=budget.get("unknown_requests", 1),
        )
        pulse = Pulse(workspace, seams.clock, Gpus() if plan.preflight.get("gpus") else None)
        notice = notice_command(plan, workspace, os.environ)
        self.metering = Metering(plan, workspace, self.ledger, seams.clock, notice)
        self.supervisor = Supervisor(
            seams.clock, signal, pulse, self.ledger, self.metering, journal.check_fence
        )
        self.runner = StepRunner(
            plan,
            workspace,
            self.append,
            self._tell,
            seams.clock,
            self.supervisor.watch,
            self.supervisor.pause,
            self.supervisor.hurried,
        )
        self.notifier = Notifier(
            plan,
            workspace,
            lambda: journal.entries,
            self.known,
            warn=lambda why: seams.on_progress({"unnotified": why}),
            hurried=self.supervisor.hurried,
        )
        self.consulted: set[str] = set()

    @cached_property
    def projector(self) -> "Projector":
        """Made while the first child starts: what it imports takes as long."""
        from runbook.projection import Projector  # noqa: PLC0415 - see above

        return Projector(self.plan, self.workspace, self.journal, self.known, self.seams.clock)

    def append(self, event: ev.Event) -> None:
        """Put a fact on record, then know it."""
        self.journal.append(event.to_body(), pin=isinstance(event, _PINNED))
        self.known.append(event)
        self.state = m.apply(self.plan, self.state, event)
        self.notifier.note(self.state)

    def _tell(self, fields: Mapping[str, Json]) -> None:
        self.supervisor.tell(fields)
        self.seams.on_progress(fields)

    def run(self) -> int:
        self.notifier.start(self.state)
        if self.state.done:
            return self._make_up(self.state.done.exit_code)
        begun = self.state.session
        try:
            self.metering.take_over(begun.run_id if begun else None)
            self._prepare()
            self._open()
            assert self.state.session is not None
            self.metering.start(self.state.session.run_id)
            while (code := self._advance()) is None:
                pass
        except Halt as halt:
            return self._stop(halt.reason, halt.exit_code, halt.detail)
        except Exception as error:
            redact = Redactor(session_secrets(os.environ, self.plan.environment))
            detail = redact.text(str(error) if isinstance(error, RunbookError) else repr(error))
            with suppress(OSError, RunbookError):
                told = redact.text(traceback.format_exc())
                artifacts.write_text(self.workspace.log("executor"), told)
            if isinstance(error, LockedError):
                self.metering.let_go()
            if self.state.done or self.state.session is None:
                # The next run shows it; no stop follows on a session that is done, or never began.
                raise
            with suppress(OSError, RunbookError):
                # A poisoned journal takes no more; the error itself then says why it ended.
                return self._stop("error", getattr(error, "code", 1), detail)
            raise
        return code

    def _prepare(self) -> None:
        """What takes a while and can go on beside the executor's own start."""
        manifest.look_up()
        match decide(self.plan, self.state):
            case st.RunStep() as run:
                self.runner.prepare(run.params)
        assert self.projector

    def _open(self) -> None:
        if self.state.session:
            if self.metering.saw_limit and self._is_of_the_last(self.metering.watched):
                self.ledger.charge_to_the_limit()
            self.append(ev.SessionResumed(self.plan.budget, read_certificate(self.workspace)))
            return
        self.append(
            ev.SessionStarted(
                run_id=stamp(self.now()),
                runbook=str(self.plan.runbook),
                name=self.plan.name,
                fingerprint=self.plan.fingerprint,
                overrides=self.plan.overrides,
                plan=plan_document(self.plan),
                versions=manifest.provenance(self.plan),
                limits=self.plan.budget,
                certificate=read_certificate(self.workspace),
            )
        )

    def _make_up(self, exit_code: int) -> int:
        """What a kill after the session's last line kept from being done: report, pod's stop."""
        assert self.state.session is not None
        is_owed = owes_stop(self.plan.pod, self.workspace, self.known)
        try:
            self.projector.session(self.state)
        finally:
            if is_owed:
                self.metering.start(self.state.session.run_id)
                self._end_meter(_DONE, exit_code)
        return exit_code

    def _is_of_the_last(self, watched: Callable[[Owner], bool]) -> bool:
        """Whether the executor that went on with the session last, and did not end, was watched."""
        number = max(
            entry.epoch
            for entry, fact in zip(self.journal.entries, self.known, strict=True)
            if isinstance(fact, ev.SessionStarted | ev.SessionResumed)
        )
        epochs = read_journal(self.workspace).epochs
        return any(e.number == number and not e.closed and watched(e.owner) for e in epochs)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seams.clock.wall(), UTC)

    def _advance(self) -> int | None:
        """Do the next act; the exit code where there is none left."""
        self.supervisor.check()
        self._settle()
        # A reviewer gives up when a stop is asked for; that is no answer a person must give.
        self.supervisor.check()
        match decide(self.plan, self.state):
            case st.RunStep() as run:
                acts.run_step(self, run)
            case st.JudgeGate(step):
                acts.judge(self, step)
            case st.PassStep(step):
                self.append(ev.StepPassed(step, self.state.steps[step].attempt))
            case st.SkipStep(step, phase, why):
                self.append(ev.StepSkipped(step, phase, why))
            case st.Extend(step, params):
                self.append(ev.SampleExtended(step, self.state.steps[step].attempt, params))
            case st.Adjust(step, changes, why, smoke):
                attempt = self.state.steps[step].attempt
                self.append(ev.Adjusted(step, attempt, changes, why, smoke))
            case st.AskReview(step, attempt, reason, allowed):
                name = review_name(self.known, step, attempt)
                path = self.workspace.review(self.now(), f"{name.replace('-', '_')}_{reason}")
                where = self.workspace.relative(path).replace(" ", "_")
                self.append(ev.ReviewRequested(name, step, attempt, reason, where, allowed))
            case st.Stop(reason, exit_code, detail):
                return self._stop(reason, exit_code, detail)
            case st.Finish(exit_code):
                self.runner.dismiss()
                self._check_outputs()
                self.ledger.settle()
                self.append(ev.SessionDone(exit_code, self.state.overrides))
                try:
                    self.projector.session(self.state)
                finally:
                    self._end_meter(_DONE, exit_code)
                return exit_code
        return None

    def _check_outputs(self) -> None:
        """Nothing is called done whose results are gone."""
        for name, mine in self.state.steps.items():
            if mine.status is not st.Status.PASSED or mine.finished is None:
                continue
            if missing := manifest.missing_outputs(self.workspace, mine.finished):
                code = NeedsPersonError.code
                raise Halt("missing manifest", code, f"{name}: {missing}; restore it")

    def _stop(self, reason: str, exit_code: int, detail: str) -> int:
        try:
            self.ledger.settle()
            self.append(ev.SessionStopped(reason, exit_code, detail))
            with suppress(OSError, RunbookError):
                # A disk too full for the report must not hide the cause; the next run writes it.
                self.projector.session(self.state)
        except LockedError:
            self.metering.let_go()
            raise
        finally:
            # A journal that takes no more must not keep the pod running.
            with suppress(OSError, RunbookError):
                self._end_meter(f"{reason}: {detail}", exit_code)
        return exit_code

    def _end_meter(self, why: str, exit_code: int) -> None:
        """Last of all, since the machine may go with it: the report stands already.

        After a pause the meter watches on: a relaunch ends it, or nobody comes.
        """
        self.notifier.end(self.state)
        if exit_code == PausedError.code:
            stopped = self.metering.leave(why)
        else:
            stopped = self.metering.end(why, stop_pod=True)
        if stopped:
            self.append(stopped)
            self.projector.session(self.state)

    def _settle(self) -> None:
        """Pay what an earlier act, perhaps of a killed process, still owes."""
        for name, mine in self.state.steps.items():
            if mine.manifest_owed:
                self.projector.step(self.state, self.plan.step(name), self.append)
                self.projector.refresh(self.state)
        waiting = self.state.open_review
        review = self.state.steps[waiting].review if waiting else None
        if waiting and review and review.review_id not in self.consulted:
            self.consulted.add(review.review_id)
            self.projector.reviews()
            acts.consult(self, waiting)
            self.projector.reviews()
