"""What shows why a session does not go on: verdict, review, error, log, money, executor.

Rule: it is shown as it was recorded, the end of what is long, and once: a log that ends with the
traceback that is shown already is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from runbook.report import criteria, reading, review_words, spending, step_words
from runbook.report.review_folder import Folder
from runbook.report.safe_text import columns
from runbook.report.session import ReviewView, SessionView, StepView
from runbook.report.status import Sight
from runbook.state import Status

_LOG_LINES = 8
_TRACEBACK_LINES = 8
_NO_SIGHT = Sight()
_NO_FOLDER = Folder()


@dataclass(frozen=True)
class Traces:
    """What lies on disk beside the journal, as far as it can be read."""

    folder: Folder = _NO_FOLDER
    """Of the review that the stop rests on."""
    log: str = ""
    """The end of the log that ``reading.broken`` names."""
    sight: Sight = _NO_SIGHT
    is_full: bool = False
    """Whether the volume takes no more now."""


@dataclass(frozen=True)
class Evidence:
    """What shows the cause."""

    title: str
    lines: tuple[str, ...]


def gather(view: SessionView, traces: Traces) -> tuple[Evidence, ...]:
    """What there is, the judgement first; a part with nothing to show is left out."""
    return tuple(part for part in _parts(view, traces) if part.lines)


def _parts(view: SessionView, traces: Traces) -> Iterator[Evidence]:
    yield from _verdict(view)
    if review := reading.review_of(view):
        yield Evidence(f"Review {review.review_id}", tuple(_said(review, traces.folder)))
    if step := view.current:
        yield from _error(step)
        yield from _lost(step)
    if _wants_log(view, traces.sight) and not _is_told(view, traces.log):
        lines = tuple(traces.log.splitlines()[-_LOG_LINES:])
        yield Evidence(f"The end of {reading.log(view)}", lines)
    if view.outcome.reason in ("budget", "rental"):
        yield Evidence("Spent", tuple(spending.lines(view.spent, view.limits)))
    if traces.sight.who:
        yield Evidence("The executor", (traces.sight.who,))


def _verdict(view: SessionView) -> Iterator[Evidence]:
    """What the gate read of the newest attempt, where it did not let the session go on."""
    review = view.deciding if view.outcome.decided else None
    step = next((s for s in view.steps if review and s.name == review.step), view.current)
    if step is None or step.last is None or not (review or step.status is Status.JUDGED):
        return
    last = step.last
    word = last.verdict if review else step_words.word(step)
    header, *rows = criteria.rows(last.criteria)
    bad = [r for r, c in zip(rows, last.criteria, strict=True) if c.verdict != "pass"]
    title = f"{step.name}, attempt {last.number}, was judged {word}"
    lines = columns([header, *bad], indent="") if bad else list(last.reasons)
    yield Evidence(title, tuple(lines))


def _said(review: ReviewView, folder: Folder) -> Iterator[str]:
    yield f"asked because {review_words.why(review)}; it cost {review_words.cost(review)}"
    if review.question:
        yield f"the step asks: {' '.join(review.question.split())}"
    for decided in review.decisions:
        yield review_words.decision(decided)
    if folder.error and not review.is_answered:
        yield f"the reviewer gave no answer that could be used: {' '.join(folder.error.split())}"
    if folder.drafts and not review.is_answered:
        yield f"what it sent back is kept: {', '.join(folder.drafts)}"


def _error(step: StepView) -> Iterator[Evidence]:
    """The newest attempt's last one, where the step stands on it."""
    last = step.last
    if step.status is Status.FAILED and last and last.errors:
        failed = last.errors[-1]
        tail = failed.traceback_tail.splitlines()[-_TRACEBACK_LINES:]
        title = f"{step.name}, attempt {last.number}: the error and the end of its traceback"
        yield Evidence(title, (*failed.error.splitlines(), *tail))


def _lost(step: StepView) -> Iterator[Evidence]:
    if told := step_words.losses(step):
        yield Evidence(f"{step.name}: children that were lost", (told,))


def _wants_log(view: SessionView, sight: Sight) -> bool:
    now = view.outcome
    if now.state == "running":
        return sight.alive is not True or bool(sight.silent)
    return now.state == "stopped" and now.reason in ("error", "no progress", "paused")


def _is_told(view: SessionView, log: str) -> bool:
    """Whether the log ends with the traceback that is shown already."""
    step = view.current
    errors = step.last.errors if step and step.last else ()
    return bool(errors and log.strip()) and errors[-1].traceback_tail.rstrip().endswith(
        log.rstrip().splitlines()[-1].rstrip()
    )
