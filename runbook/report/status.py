"""A session on one screen of a terminal: how it stands, a line for each step, what to do next."""

from pathlib import Path

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


def render_status(view: SessionView, root: Path) -> str:
    """The screen, without a newline at its end.

    Args:
        view: the session.
        root: the workspace, for paths and commands.
    """
    if view.outcome.state == "none":
        return f"{one_line(str(root))}: no session yet; 'runbook run' starts one"
    lines = [f"{one_line(view.name)}: {one_line(outcome.title(view))}"]
    lines += [f"  {one_line(told)}" for told in outcome.sentences(view)]
    lines += ["", *columns([_row(step) for step in view.steps]), ""] if view.steps else [""]
    lines += [*_batches(view), f"  {outcome.cost(view)}"]
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


def _batches(view: SessionView) -> list[str]:
    """How far the step at hand has come."""
    step = view.current
    if step is None or step.last is None or not step.last.batches:
        return []
    last = step.last
    batches = f.counted(last.batches, "batch", "batches")
    told = f"{step.name}: {batches} committed, the last is {last.last_batch}"
    return [f"  {one_line(told)}"]
