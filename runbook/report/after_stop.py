"""What to do after a stop, step by step: answer a review, override or begin anew, or just go on.

Rule: which of these a stop calls for is ``runbook.report.outcome``'s to say; here are the words.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

from runbook.report import commands, reading, review_words, spending
from runbook.report import figures as f
from runbook.report.commands import NextStep, review_command
from runbook.report.session import ReviewView, SessionView, StepView

_MEND = (
    "Read {log} and mend the cause. Where that changes the runbook, a file it names or a step's "
    "code, add --accept-changes REASON to the command that goes on:"
)
_GO_ON = {
    "rental": "On a machine that is rented until later, with that time in pod.rental_ends:",
    "error": _MEND,
    "no progress": _MEND,
    "changed input": "Restore what is named above, or add --accept-changes REASON to the command "
    "that goes on:",
    "missing manifest": "Restore what is named above; the same command then goes on:",
}
"""Reason of a stop -> when the same command gets over it; of any other, at once."""


def go_on(view: SessionView, root: Path) -> NextStep:
    """After a stop whose cause the same command, or one like it, gets over."""
    reason = view.outcome.reason
    if reason == "budget":
        limits = spending.reached(view.spent, view.limits) or ["wall_clock"]
        told, sets = spending.allowance(limits, view)
        return NextStep(f"Allow more {told}:", view.command(root, *sets))
    if reason == "stop requested":
        resume = commands.in_workspace(root, "resume")
        return NextStep("It waits for a person, who goes on with:", resume)
    why = _GO_ON.get(reason, "The same command goes on:")
    return NextStep(why.format(log=reading.log(view)), view.command(root))


def decide(view: SessionView, review: ReviewView, root: Path) -> Iterator[NextStep]:
    """While a review waits for a person."""
    yield from _answer(view, review, root)
    if limits := spending.reached_by_reviews(view):
        told, sets = spending.allowance(limits, view)
        why = f"Or allow the reviewer one more request, {told}:"
        yield NextStep(why, view.command(root, *sets))
    is_asked_again = view.unanswered and view.unanswered.remedy == "ask"
    told = "; without a decision it asks the reviewer again" if is_asked_again else ""
    yield NextStep(f"Then the same command goes on{told}:", view.command(root))


def _answer(view: SessionView, review: ReviewView, root: Path) -> Iterator[NextStep]:
    yield NextStep("Read the question:", review_command("show", review, root))
    told = f"Decide; ACTION is {f.listed(review_words.options(review))}, REASON is kept on record:"
    yield NextStep(told, review_command("decide", review, root, "ACTION"))
    bounds = next((s.adjustable for s in view.steps if s.name == review.step), {})
    if bounds and "retry" in review.allowed:
        ranges = review_words.ranges(bounds)
        told = f"Or retry with other parameters; NAME=NUMBER is one of {ranges}:"
        retry = review_command("decide", review, root, "retry", "--change", "NAME=NUMBER")
        yield NextStep(told, retry)


def override_or_begin_anew(view: SessionView, root: Path) -> Iterator[NextStep]:
    """After a stop that a review decided: nothing here runs again by itself."""
    step = view.current
    if step and step.reviews:
        review = step.reviews[-1]
        yield NextStep("Read the evidence:", review_command("show", review, root))
        if "override" in review.allowed:
            command = review_command("decide", review, root, "override")
            yield NextStep(_why_override(step, review), command)
            yield NextStep("After that the same command goes on:", view.command(root))
    show = ["runbook", "plan", view.runbook, "--workspace", str(root), *view.options()]
    told = "Or mend the runbook, see what of this session stays, and accept the change on record:"
    yield NextStep(told, shlex.join(show))
    yield NextStep("Else begin anew in another workspace:", commands.anew(view))


def _why_override(step: StepView, review: ReviewView) -> str:
    if review.reason == "sentinel":
        return "If you know better, clear it on record; the session then ends with exit 6:"
    if step.last and step.last.smoke:
        return "If you know better, have the change run in full, on record:"
    return "If you know better, override it on record; the session then ends with exit 6:"
