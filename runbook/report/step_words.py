"""A step in a few words, the same ones in every place that names it. Plain text, not escaped."""

from collections import Counter

from runbook.report import figures as f
from runbook.report.session import AttemptView, StepView
from runbook.state import Status


def word(step: StepView) -> str:
    """A step's standing in a word or two."""
    last = step.last
    match step.status:
        case Status.PASSED if step.override:
            return f"{last.verdict if last else ''}, overridden"
        case Status.PASSED if last and last.verdict:
            return "pass (thin)" if last.thin else "pass"
        case Status.PASSED:
            return "done"
        case Status.JUDGED if last:
            return _judged(last)
        case Status.FINISHED if step.reviews and step.reviews[-1].reason == "question":
            return "a question is open"
        case Status.FAILED:
            return "error"
        case Status.FINISHED:
            return "not judged yet"
        case Status.PENDING if last and last.extension and last.verdict:
            return "sample to be extended"
        case Status.PENDING:
            return "to run again" if last else "not started"
        case _:
            return str(step.status.value)


def _judged(last: AttemptView) -> str:
    """Of an attempt whose gate did not let the session go on."""
    if last.smoke:
        return "smoke judged"
    if last.sentinel:
        return "sentinel tripped"
    return "pass, with a question" if last.verdict == "pass" else last.verdict


def losses(step: StepView) -> str:
    """How many of a step's children were lost, and of what; empty where none was."""
    if not step.losses:
        return ""
    kinds = Counter(cause.replace(", so it was killed", "") for cause in step.losses)
    told = [cause if len(kinds) == 1 else f"{n} x {cause}" for cause, n in kinds.items()]
    return f"{f.counted(len(step.losses), 'loss', 'losses')} ({'; '.join(told)})"
