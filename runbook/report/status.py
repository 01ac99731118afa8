"""A session on one screen of a terminal: how it stands, a line for each step, what to do next."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runbook.control import BEAT_EVERY_S, Heartbeat
from runbook.report import figures as f
from runbook.report import held_out, outcome, reading, step_words
from runbook.report.safe_text import columns, one_line
from runbook.report.session import SessionView, StepView
from runbook.report.summary import sentences
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

SILENT_S = 3 * BEAT_EVERY_S
"""An executor whose newest heartbeat is older than this is told to be silent."""


@dataclass(frozen=True)
class Sight:
    """What is seen of a session's executor beside the journal, which does not know its end."""

    alive: bool | None = None
    """Whether it is at work; None: it cannot be known here."""
    who: str = ""
    """In words, with whether it lives."""
    beat: Heartbeat | None = None
    """Its last sign of life."""
    now: float = 0.0
    """Seconds since the epoch, to tell how old that is."""
    progress: str = ""
    """What the step at hand told last, in words."""

    @property
    def silent(self) -> str:
        """For how long it was silent; empty where it was not, or not for long."""
        age = self.beat.age_s(self.now) if self.beat else 0.0
        return f.duration(age) if age > SILENT_S else ""


_NOTHING_SEEN = Sight()


def render_status(
    view: SessionView,
    root: Path,
    sight: Sight = _NOTHING_SEEN,
    projected: Sequence[str] = (),
) -> str:
    """The screen, without a newline at its end.

    Args:
        view: the session.
        root: the workspace, for paths and commands.
        sight: of the executor, where one should be at work.
        projected: what is still to come, against the limits.
    """
    if view.outcome.state == "none":
        return f"{one_line(str(root))}: no session yet; 'runbook run' starts one"
    head, view = headline(view, sight), as_seen(view, sight)
    lines = [f"{one_line(view.name)}: {one_line(head)}"]
    lines += [f"  {one_line(told)}" for told in sentences(view)]
    lines += ["", *columns([_row(step) for step in view.steps]), ""] if view.steps else [""]
    lines += [*_losses(view), *_batches(view), *_signs(sight)]
    lines += [f"  {one_line(told)}" for told in held_out.told(view.scorings)]
    lines += [f"  {one_line(sight.who)}"] if sight.who else []
    lines += _cost(view)
    lines += [f"  {one_line(told)}" for told in projected]
    found = [(label, str(root / path)) for label, path in reading.files(view)]
    if found:
        lines += ["", "Read:", *columns(found)]
    for step in outcome.next_steps(view, root, alive=sight.alive):
        lines += ["", one_line(step.why), f"  {one_line(step.command, longest=10_000)}"]
    return "\n".join(lines)


def headline(view: SessionView, sight: Sight) -> str:
    """How it stands in a few words, with what is seen of its executor."""
    return _at_work(sight) if view.outcome.state == "running" else outcome.title(view)


def as_seen(view: SessionView, sight: Sight) -> SessionView:
    """The session, with nothing at work that its executor left when it went."""
    return _left(view) if view.outcome.state == "running" and sight.alive is False else view


def _row(step: StepView) -> tuple[str, ...]:
    attempt = f"attempt {step.last.number}" if step.last else ""
    time = f.duration(step.seconds) if step.seconds else ""
    word = step_words.word(step)
    return (_MARKS[step.status], step.phase, step.name, word, attempt, time)


def _at_work(sight: Sight) -> str:
    """The headline of a session that was begun and that nothing has ended."""
    if sight.alive is False:
        return "not at work (its executor is gone); the same command goes on"
    return f"running, but no sign of life for {sight.silent}" if sight.silent else "running"


def _left(view: SessionView) -> SessionView:
    """As the next executor will find it: what was at work when the last one went was interrupted.

    The journal is told so only then.
    """
    steps = (
        replace(s, status=Status.INTERRUPTED) if s.status is Status.RUNNING else s
        for s in view.steps
    )
    return replace(view, steps=tuple(steps))


def _signs(sight: Sight) -> list[str]:
    """How old the executor's last sign of life is, and what the step told last."""
    beat = sight.beat
    if beat is None:
        return []
    age = f.duration(beat.age_s(sight.now))
    gpus = [
        f"  GPU {g.get('gpu')}: {g.get('utilization')} %, "
        f"{g.get('memory_mib')} of {g.get('memory_total_mib')} MiB"
        for g in beat.gpus
    ]
    hint = {None: "; it may hang, or be gone", True: "; it may hang", False: ""}[sight.alive]
    silent = hint if sight.silent else ""
    lines = [f"  progress {age} ago: {one_line(sight.progress)}"] if sight.progress else []
    return [*lines, *gpus, f"  heartbeat of process {beat.pid}: {age} ago{silent}"]


def _losses(view: SessionView) -> list[str]:
    """The steps of which a child was lost."""
    return [
        f"  {one_line(f'{step.name}: {step_words.losses(step)}')}"
        for step in view.steps
        if step.losses
    ]


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
