"""What an act of the loop does: run an attempt of a step, judge it, put a review to the reviewer.

Rule: what an act found out is on record before it returns; one that was cut off goes on from the
facts it left. Which act is next, ``runbook.next_act`` decides.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from runbook import artifacts, durable, estimate, manifest
from runbook import events as ev
from runbook import machine as m
from runbook import state as st
from runbook.codec import encode
from runbook.contract import Artifact
from runbook.decided import is_final
from runbook.errors import NeedsPersonError, RunbookError, SentinelError
from runbook.journal import batches, seconds_before
from runbook.plan import PlannedStep
from runbook.process import Failed, Lost, Paused
from runbook.review import make_request
from runbook.supervision import Halt
from runbook.worker import Job

if TYPE_CHECKING:
    from runbook.executor import Session


def consult(session: "Session", name: str) -> None:
    """Put a step's open review to the reviewer; an answer out of its bounds is not recorded."""
    mine = session.state.steps[name]
    assert mine.review is not None
    account = session.ledger.account(mine.review.review_id)
    request = make_request(
        session.plan, session.state, session.known, session.workspace, name, account
    )
    request = replace(request, stop=session.supervisor.reason)
    answer = session.seams.reviewer(request)
    if answer is None:
        return
    decided = ev.ReviewDecided(
        request.review_id,
        answer.action,
        dict(answer.changes),
        answer.reason,
        answer.author,
        answer.person,
        answer.concerns,
        answer.action_items,
        answer.confidence,
    )
    refusal = m.refuse_decision(session.plan, session.state, decided)
    if refusal:
        session.seams.on_progress({"review": request.review_id, "refused": refusal})
        folder = session.workspace.inside(request.path)
        artifacts.write_text(folder / "error.txt", f"the answer was refused: {refusal}\n")
    else:
        session.append(decided)


def judge(session: "Session", name: str) -> None:
    """Have a finished attempt judged by its gate.

    Raises:
        Halt: what it wrote is not there any more.
    """
    mine = session.state.steps[name]
    gate = session.plan.step(name).gate
    assert gate is not None
    assert mine.finished is not None
    if missing := manifest.missing_outputs(session.workspace, mine.finished):
        raise Halt("missing manifest", NeedsPersonError.code, f"{name}: {missing}; restore it")
    final = is_final(gate, mine.finished, _look_before(session, mine))
    judged = session.seams.gates(gate, mine.finished.metrics, final)
    session.append(
        ev.GateJudged(
            name,
            mine.attempt,
            mine.look,
            judged.verdict.value,
            tuple(encode(criterion) for criterion in judged.criteria),
            judged.reasons,
            judged.sentinel_tripped,
            encode(judged.details),
        )
    )


def _look_before(session: "Session", mine: st.StepState) -> ev.StepFinished | None:
    """The first look, where this is a second one."""
    now = mine.finished
    assert now is not None
    first = (now.step, now.attempt, now.look - 1)
    finished = (f for f in reversed(session.known) if isinstance(f, ev.StepFinished))
    return next((f for f in finished if (f.step, f.attempt, f.look) == first), None)


def run_step(session: "Session", run: st.RunStep) -> None:
    """Begin an attempt of a step or go on with it, until it ends, fails, is paused or is lost.

    Raises:
        Halt: it must not run: a finding forbids phase code, or what it reads is not what it was.
    """
    step = session.plan.step(run.step)
    whole = session.state.steps[run.step].started is None
    session.supervisor.begin(terminal=step.terminal)
    if findings := session.seams.dry():
        raise Halt("dry", SentinelError.code, "; ".join(findings))
    if edited := manifest.changed_since_planned(step, session.plan.runbook.parent):
        detail = f"{step.name}: {edited}; restore it, or accept the change on record"
        raise Halt("changed input", NeedsPersonError.code, detail)
    try:
        inputs = manifest.verified_inputs(session.state, session.workspace, step)
    except NeedsPersonError as error:
        raise Halt("missing manifest", error.code, str(error)) from error
    output, started_at = _place(session, step)
    job = _job(session, run, output, inputs)
    changed = artifacts.make_directories(job.work, job.output)
    if whole and run.attempt > 1:
        _disown(job.output)
    session.append(
        ev.StepStarted(run.step, run.attempt, run.look, run.params, output, started_at, step.code)
    )
    outcome = session.runner.run(job, changed)
    _finish_step(session, run, outcome)
    if whole and run.look != st.SMOKE and isinstance(outcome, ev.StepFinished):
        # One that went on from committed batches, or made a few rows, does not say how long
        # the step takes.
        estimate.remember(session.plan, step, run.params, outcome)


def _job(
    session: "Session", run: st.RunStep, output: str, inputs: Mapping[str, Mapping[str, Artifact]]
) -> Job:
    plan, workspace = session.plan, session.workspace
    step = plan.step(run.step)
    return Job(
        function=step.function,
        search=str(plan.runbook.parent),
        log=str(workspace.log(step.name)),
        step=run.step,
        attempt=run.attempt,
        look=run.look,
        seed=plan.seed,
        params=run.params,
        model=plan.model,
        engine=plan.engine,
        workspace=workspace.root,
        work=workspace.work(run.step, run.attempt),
        output=workspace.inside(output),
        inputs=inputs,
        provenance=manifest.provenance(plan),
        committed=tuple(batches(session.journal.entries, run.step, run.attempt).values()),
    )


def _finish_step(
    session: "Session", run: st.RunStep, outcome: ev.StepFinished | Failed | Paused | Lost
) -> None:
    match outcome:
        case ev.StepFinished():
            started = session.state.steps[run.step].started
            assert started is not None
            marked = manifest.markers(session.workspace, started.output, outcome.artifacts)
            before = seconds_before(session.journal.entries, run.step, run.attempt, run.look)
            session.append(replace(outcome, markers=marked, seconds=before + outcome.seconds))
            return
        case Failed(what, where, fix, code, tail):
            error = str(RunbookError(what, where=where, fix=fix))
            session.append(ev.StepFailed(run.step, run.attempt, error, tail, code))
            return
        case Lost(cause):
            trouble = session.supervisor.trouble()
            cause = f"{cause}; {trouble}" if trouble else cause
        case Paused():
            cause = "paused after a committed batch"
    reason = session.supervisor.reason()
    session.append(ev.StepInterrupted(run.step, run.attempt, reason or cause))
    if isinstance(outcome, Lost) and not reason:
        session.seams.on_progress({"step": run.step, "lost": cause})
    if isinstance(outcome, Paused) and not reason:
        session.supervisor.check_pause(run.step)


def _place(session: "Session", step: PlannedStep) -> tuple[str, str]:
    """The attempt's output folder and its start; an attempt that goes on keeps both."""
    mine = session.state.steps[step.name]
    if mine.started:
        return mine.started.output, mine.started.started_at
    moment = session.now()
    output = session.workspace.output(step.output, moment)
    while "{time}" in step.output and output.exists():
        # Two attempts within one second must not share a folder.
        moment += timedelta(seconds=1)
        output = session.workspace.output(step.output, moment)
    return session.workspace.relative(output), moment.isoformat()


def _disown(output: Path) -> None:
    """A folder that an earlier attempt completed is not complete for this one."""
    marker = output / artifacts.COMPLETE
    with artifacts.storage_errors(output):
        if marker.is_file():
            marker.unlink()
            durable.fsync_path(output)
