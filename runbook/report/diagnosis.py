"""Why a session does not go on, what shows it, and the three likeliest ways on. Pure.

Rule: the cause is what the journal says, never a guess from a log. A fix comes with the command
that does it, quoted for a shell; but for the words in capitals, which only a person can fill in, it
can be pasted as it stands.
"""

from dataclasses import dataclass
from pathlib import Path

from runbook.problems import printable
from runbook.report import fixes, outcome, reading, review_words
from runbook.report.commands import NextStep
from runbook.report.evidence import Evidence, Traces, gather
from runbook.report.safe_text import columns, cut, one_line
from runbook.report.session import SessionView
from runbook.report.status import Sight


@dataclass(frozen=True)
class Diagnosis:
    """Answers to a person who finds a session that does not go on."""

    headline: str
    cause: str
    evidence: tuple[Evidence, ...]
    files: tuple[tuple[str, str], ...]
    """What to read: a label and a path."""
    safe: str
    cost: str
    fixes: tuple[NextStep, ...]
    """The likeliest first, three at most; none where nothing is wrong."""


def diagnose(view: SessionView, root: Path, traces: Traces) -> Diagnosis:
    """What is known of a session that stopped, or of one that did not."""
    return Diagnosis(
        headline=f"{view.name}: {_headline(view, traces.sight)}",
        cause=_cause(view, traces),
        evidence=gather(view, traces),
        files=tuple((label, str(root / path)) for label, path in _files(view)),
        safe=outcome.safe(view),
        cost=outcome.cost(view),
        fixes=fixes.likeliest(view, root, traces),
    )


def _headline(view: SessionView, sight: Sight) -> str:
    if view.outcome.state != "running":
        return outcome.title(view)
    if sight.alive is False:
        return "not at work: its executor is gone"
    return f"running, but no sign of life for {sight.silent}" if sight.silent else "running"


def _cause(view: SessionView, traces: Traces) -> str:
    now, sight, review = view.outcome, traces.sight, view.deciding
    match now.state:
        case "running" if sight.alive is False and traces.is_full:
            return "The volume is full: the executor ended, and its last word found no room."
        case "running" if sight.alive is False:
            return "The executor ended without a word, as after a kill or a loss of power."
        case "running" if sight.alive is None:
            return "An executor of another machine holds it; from here nobody knows if it lives."
        case "running" if sight.silent:
            return "The executor is there and gives no sign of life: it may hang."
        case "running":
            return "Nothing stopped it: it is at work."
        case "done":
            return "Nothing stopped it: it ran to its end."
    told = outcome.cause(view)
    if fixes.stopped_by(view) == "storage":
        told = "the volume takes no more, or is gone"
    first = now.detail.split("\n", 1)[0]
    if now.decided and review:
        return f"It had stopped for {review_words.asked(review)}; a person decided since."
    if view.unanswered:
        told = f"{told}; its reviewer gave no answer ({view.unanswered.cause})"
    told = f"{told}: {first}" if first else f"{told}."
    return f"{told} It had stopped already when {now.asked}." if now.asked else told


def _files(view: SessionView) -> list[tuple[str, str]]:
    found = reading.files(view)
    review = reading.review_of(view)
    if review and review is not view.deciding:
        found.append(("review", f"{review.path}/report.md"))
    if view.outcome.reason in ("error", "no progress"):
        found.append(("log", reading.log(view)))
    return found


def render(found: Diagnosis) -> str:
    """The diagnosis as plain text, without a newline at its end."""
    lines = [one_line(found.headline), "", "Cause", f"  {one_line(found.cause)}"]
    for evidence in found.evidence:
        lines += ["", one_line(evidence.title), *(f"  {_whole(line)}" for line in evidence.lines)]
    if found.files:
        lines += ["", "Read", *columns(found.files)]
    lines += ["", "Safe on disk", f"  {one_line(found.safe)}"]
    lines += ["", "Cost so far", f"  {one_line(found.cost)}"]
    if not found.fixes:
        return "\n".join([*lines, "", "Nothing is to be mended."])
    lines += ["", "What to do, the likeliest first"]
    for number, fix in enumerate(found.fixes, 1):
        lines += [f"  {number}. {one_line(fix.why)}:", f"       {_whole(fix.command)}"]
    return "\n".join(lines)


def _whole(line: str) -> str:
    """A line with all its blanks, and nothing in it that a terminal acts on."""
    return printable(cut(line, 10_000), longest=20_000)
