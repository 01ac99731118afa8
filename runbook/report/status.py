"""A session on one screen of a terminal: how it stands, a line for each step, what to do next."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from runbook.control import Heartbeat
from runbook.report import figures as f
from runbook.report import outcome
from runbook.report.safe_text import columns, one_line
from runbook.report.session import SessionView, StepView
from runbook.state import Status

_MARKS = {
    Status.PASSED: "+",
    Status.RUNNING: ">",
    Status.FINISHED: ">",
    Status.INTERRUPTED: "!",
    Status.FAILED: "x",
    Status.JUDGED: "x",
    Status.SKIPPED: "-",
    Status.PENDING: ".",
}

SILENT_S = 60.0
"""A heartbeat comes every five seconds; one as old as this is told as a warning."""


def render_status(
    view: SessionView,
    root: Path,
    beat: Heartbeat | None = None,
    now: float = 0.0,
    projected: Sequence[str] = (),
    executor: str = "",
) -> str:
    """The screen, without a newline at its end.

    Args:
        view: the session.
        root: the workspace, for paths and commands.
        beat: the executor's last sign of life.
        now: seconds since the epoch, to tell how old it is.
        projected: what is still to come, against the limits.
        executor: who is at work on it, where anybody should be.
    """
    if view.outcome.state == "none":
        return f"{one_line(str(root))}: no session yet; 'runbook run' starts one"
    lines = [f"{one_line(view.name)}: {one_line(outcome.title(view))}"]
    lines += [f"  {one_line(told)}" for told in outcome.sentences(view)]
    lines += ["", *columns([_row(step) for step in view.steps]), ""] if view.steps else [""]
    lines += [*_batches(view), *_alive(beat, now)]
    lines += [f"  {one_line(executor)}"] if executor else []
    lines += _cost(view)
    lines += [f"  {one_line(told)}" for told in projected]
    found = [(label, str(root / path)) for label, path in outcome.reading(view)]
    if found:
        lines += ["", "Read:", *columns(found)]
    for step in outcome.next_steps(view, root):
        lines += ["", one_line(step.why), f"  {one_line(step.command, longest=10_000)}"]
    return "\n".join(lines)


def _row(step: StepView) -> tuple[str, ...]:
    attempt = f"attempt {step.last.number}" if step.last else ""
    time = f.duration(step.seconds) if step.seconds else ""
    word = outcome.word(step)
    return (_MARKS[step.status], step.phase, step.name, word, attempt, time)


def _alive(beat: Heartbeat | None, now: float) -> list[str]:
    """How old the executor's last sign of life is, and what the step told last."""
    if beat is None:
        return []
    told = ", ".join(f"{name} {value}" for name, value in beat.progress.items() if name != "step")
    age = beat.age_s(now)
    gpus = [
        f"  GPU {g.get('gpu')}: {g.get('utilization')} %, "
        f"{g.get('memory_mib')} of {g.get('memory_total_mib')} MiB"
        for g in beat.gpus
    ]
    silent = "; it may hang, or be gone" if age > SILENT_S else ""
    lines = [f"  progress: {one_line(told)}"] if told else []
    return [*lines, *gpus, f"  heartbeat of process {beat.pid}: {f.duration(age)} ago{silent}"]


def _cost(view: SessionView) -> list[str]:
    told = outcome.cost(view)
    return textwrap.wrap(told, 98, initial_indent="  ", subsequent_indent="  ")


def _batches(view: SessionView) -> list[str]:
    """How far the step at hand has come."""
    step = view.current
    if step is None or step.last is None or not step.last.batches:
        return []
    last = step.last
    batches = f.counted(last.batches, "batch", "batches")
    told = f"{step.name}: {batches} committed, the last is {last.last_batch}"
    return [f"  {one_line(told)}"]
