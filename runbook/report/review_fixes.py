"""The fixes of a stop that rests on a review: an answer to it, or a change of what it found.

Rule: only what the review may be answered with is offered, the likeliest first. What lets a
reviewer answer that could not stands before what a person would answer in its place.
"""

from collections.abc import Iterator
from pathlib import Path

from runbook.report import commands, review_words, spending
from runbook.report.commands import NextStep
from runbook.report.session import ReviewView, SessionView

_LIKELIEST = {
    "gate failed": ("retry", "extend", "override", "stop"),
    "closing": ("override",),
    "instrument": ("recalibrate", "override", "stop"),
    "underpowered": ("override", "stop"),
    "smoke": ("retry", "override", "stop"),
    "question": ("proceed", "stop"),
    "sentinel": ("override", "stop"),
}
"""Reason of a review -> its answers, the likeliest first."""
_MEND_FIRST = frozenset({"underpowered", "sentinel"})
"""Where no answer cures what was found: the sample, or the model, has to change."""
_MEANS = {
    "retry": "Have it made again",
    "extend": "Have the sample grow and be judged again",
    "recalibrate": "Have the instruments certified anew, and the gate judged again",
    "proceed": "Let it go on",
    "stop": "End it here, on record",
    "override": "If you know better, pass the gate by; the session then ends with exit 6",
}
"""Answer -> what it does, as an instruction."""
_OVERRIDE = {
    "smoke": "If you know better, have the change run in full",
    "sentinel": "If you know better, clear the sentinel; the session then ends with exit 6",
}
"""Reason of a review -> what an override of it does, where that is not to pass a gate by."""
_MEND = {
    "underpowered": "Have a larger sample made: raise its size in the spec, and accept the change",
    "sentinel": "Mend the data or the model that it found at fault, and accept the change",
    "closing": "Mend what the attempts above show, and accept the change",
}
"""Reason of a review -> what to change."""


def waiting(view: SessionView, root: Path, review: ReviewView) -> Iterator[NextStep]:
    """While a person is to decide."""
    yield from _ask_again(view, root, review)
    if review.reason in _MEND_FIRST:
        yield NextStep(_MEND[review.reason], commands.accept(view, root))
    known = _LIKELIEST.get(review.reason, ())
    offered = review_words.options(review)
    for action in (*(a for a in known if a in offered), *(a for a in offered if a not in known)):
        yield _answer(view, root, review, action)


def _ask_again(view: SessionView, root: Path, review: ReviewView) -> Iterator[NextStep]:
    reached = spending.reached_by_reviews(view)
    remedy = view.unanswered.remedy if view.unanswered else ""
    if reached and not review.decisions:
        told = f"Raise {spending.rise(reached, view)}, and have the reviewer asked"
        yield NextStep(told, view.command(root, *spending.raised(reached, view)))
    elif remedy == "ask":
        told = "Mend what kept the reviewer from answering, and have it asked again"
        yield NextStep(told, view.command(root))
    elif remedy == "change" and review.reason not in _MEND_FIRST:
        told = "Mend the runbook as the error says, accept the change, and have the reviewer asked"
        yield NextStep(told, commands.accept(view, root))


def ended(view: SessionView, root: Path, review: ReviewView | None) -> Iterator[NextStep]:
    """Nothing here runs again by itself: a person mends it, overrides, or begins anew."""
    reason = review.reason if review else ""
    told = _MEND.get(reason, "Mend what the review found, and accept the change")
    mend = NextStep(told, commands.accept(view, root))
    override = []
    if review and "override" in review.allowed:
        override = [_answer(view, root, review, "override")]
    yield from (mend, *override) if reason in _MEND_FIRST else (*override, mend)
    yield NextStep("Else begin anew in another workspace", commands.anew(view))


def _answer(view: SessionView, root: Path, review: ReviewView, action: str) -> NextStep:
    told = _MEANS.get(action, f"Answer {action}")
    if action == "override":
        told = _OVERRIDE.get(review.reason, told)
    step = next((s for s in view.steps if s.name == review.step), None)
    if step and step.adjustable and action == "retry":
        ranges = review_words.ranges(step.adjustable)
        told = f"{told} with another parameter; NAME=NUMBER is one of {ranges}"
        return NextStep(told, _decide(view, root, review, action, "--change", "NAME=NUMBER"))
    return NextStep(told, _decide(view, root, review, action))


def _decide(view: SessionView, root: Path, review: ReviewView, action: str, *options: str) -> str:
    """The decision, and the run that acts on it; after a stop there is nothing to run."""
    command = commands.review_command("decide", review, root, action, *options)
    return command if action == "stop" else f"{command} && {view.command(root)}"
