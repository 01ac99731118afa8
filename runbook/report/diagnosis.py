"""Why a session does not go on, what shows it, and the three likeliest ways on. Pure.

Rule: the cause is what the journal says, never a guess from a log. A fix comes with the command
that does it, quoted for a shell; but for the words in capitals, which only a person can fill in, it
can be pasted as it stands.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runbook.problems import printable
from runbook.report import criteria, outcome, review_words, spending
from runbook.report.outcome import NextStep
from runbook.report.review_folder import Folder
from runbook.report.safe_text import columns, cut, one_line
from runbook.report.session import ReviewView, SessionView
from runbook.report.status import Sight
from runbook.state import Status

_MOST = 3
_LOG_LINES = 8
_TRACEBACK_LINES = 8
_NO_SIGHT = Sight()
_NO_FOLDER = Folder()
_STORAGE = re.compile(r": (no space left while writing|the volume failed:)")
"""As ``runbook.artifacts.storage_stop`` words it, behind the path."""
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
_MEND = {
    "underpowered": "Have a larger sample made: raise its size in the spec, and accept the change",
    "sentinel": "Mend the data or the model that it found at fault, and accept the change",
    "closing": "Mend what the attempts above show, and accept the change",
}


_LEAVE = ("Or leave it at that, and read what there is", "report")
_ELSEWHERE = (
    "Or go on from another machine that has the volume",
    "resume --takeover=if-owner-gone",
)
_DETACHED = ("Or go on detached from this terminal", "launch")
_ANEW = ("Without a copy, begin anew in another workspace", "anew")
_DOCTOR = ("Check machine, memory and volume", "doctor")
_WAYS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "gone": (
        ("Go on: what was committed is not made again", "run"),
        _DETACHED,
        ("If you doubt the disk, have every byte compared first", "verify"),
    ),
    "elsewhere": (
        (
            "Take it over, if its pod is said to be gone",
            "resume --takeover=if-owner-gone",
        ),
        ("Take it over, if you know that it is gone", "resume --takeover=yes"),
        ("Or watch whether it still works", "watch"),
    ),
    "silent": (
        ("See what it prints", "logs -f"),
        ("Ask it to end at its next batch", "stop"),
        (
            "If it does not, end it and go on; what was committed is not made again",
            "resume --takeover=yes",
        ),
    ),
    "at work": (),
    "error": (
        ("Mend the step's code, and accept the change", "accept"),
        ("Or go on as it is, if what failed lay outside: network, memory, a file", "run"),
        _DOCTOR,
    ),
    "error in the runbook": (
        ("Mend the runbook as the error says, and accept the change", "accept"),
        ("See first whether it is well-formed now", "validate"),
        ("Or go on as it is, if the machine was at fault", "run"),
    ),
    "error on disk": (
        ("See all that is not as it was committed", "verify"),
        ("Mend or restore it as the error says, and go on", "run"),
        _ANEW,
    ),
    "storage": (
        ("Free space or bring the volume back, and go on", "run"),
        _DOCTOR,
        ("Or copy the workspace to a larger volume, and go on there", "anew"),
    ),
    "budget": (
        ("Raise {}, for the whole session, and go on", "more"),
        ("See first what is left to do and what that costs", "status"),
        _LEAVE,
    ),
    "rental": (
        ("Go on, on a machine that is rented until later, see pod.rental_ends", "run"),
        _ELSEWHERE,
        _LEAVE,
    ),
    "stop requested": (
        ("Go on; only a person does", "resume"),
        (
            "If it was to change something, accept the change",
            "resume --accept-changes REASON",
        ),
        _LEAVE,
    ),
    "no progress": (
        ("Read the end of the log, mend the step, and accept the change", "accept"),
        _DOCTOR,
        ("Or go on as it is, if the machine was at fault", "run"),
    ),
    "missing manifest": (
        ("See all that is missing or changed", "verify"),
        ("Restore it from a copy, and go on", "run"),
        _ANEW,
    ),
    "changed input": (
        ("Accept the change, if it was meant", "accept"),
        ("Or restore what was changed, and go on", "run"),
        ("See first what the change would redo", "plan"),
    ),
    "dry": (
        ("See every finding, and have the code use what is there already", "dry"),
        ("Then accept the changed code, and go on", "accept"),
        ("Or go on as it is, if the code was restored", "run"),
    ),
    "paused": (("Go on: the same command continues", "run"), _DETACHED, _ELSEWHERE),
}
"""What a session came to -> why, and which command of ``_Commands.named``; the likeliest first."""


@dataclass(frozen=True)
class Traces:
    """What lies on disk beside the journal, as far as it can be read."""

    folder: Folder = _NO_FOLDER
    """Of the review that the stop rests on."""
    log: str = ""
    """The end of the log that ``outcome.broken`` names."""
    sight: Sight = _NO_SIGHT


@dataclass(frozen=True)
class Evidence:
    """What shows the cause."""

    title: str
    lines: tuple[str, ...]


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
        evidence=tuple(e for e in _evidence(view, traces) if e.lines),
        files=tuple((label, str(root / path)) for label, path in _files(view)),
        safe=outcome.safe(view),
        cost=outcome.cost(view),
        fixes=tuple(_fixes(view, root, traces))[:_MOST],
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
    if now.reason == "error" and _STORAGE.search(now.detail):
        told = "the volume takes no more, or is gone"
    first = now.detail.split("\n", 1)[0]
    if now.decided and review:
        return f"It had stopped for {review_words.asked(review)}; a person decided since."
    if view.unanswered:
        return f"{told}; its reviewer gave no answer ({view.unanswered.cause}): {first}"
    return f"{told}: {first}" if first else f"{told}."


def _evidence(view: SessionView, traces: Traces) -> Iterator[Evidence]:
    review = _review(view)
    yield from _verdict(view)
    if review and view.outcome.state == "stopped":
        yield Evidence(f"Review {review.review_id}", tuple(_said(review, traces.folder)))
    step = view.current
    last = step.last if step else None
    if step and last and last.errors and step.status is Status.FAILED:
        tail = last.errors[-1].traceback_tail.splitlines()[-_TRACEBACK_LINES:]
        title = f"{step.name}, attempt {last.number}: the error and the end of its traceback"
        yield Evidence(title, (*last.errors[-1].error.splitlines(), *tail))
    if step and step.losses:
        yield Evidence(f"{step.name}: children that were lost", (outcome.losses(step),))
    if _wants_log(view, traces.sight) and not _is_told(view, traces.log):
        lines = tuple(traces.log.splitlines()[-_LOG_LINES:])
        yield Evidence(f"The end of logs/{outcome.broken(view)}.log", lines)
    if view.outcome.reason in ("budget", "rental"):
        yield Evidence("Spent", tuple(spending.lines(view.spent, view.limits)))
    if traces.sight.who:
        yield Evidence("The executor", (traces.sight.who,))


def _is_told(view: SessionView, log: str) -> bool:
    """Whether the log ends with the traceback that is shown already."""
    step = view.current
    errors = step.last.errors if step and step.last else ()
    return bool(errors and log.strip()) and errors[-1].traceback_tail.rstrip().endswith(
        log.rstrip().splitlines()[-1].rstrip()
    )


def _wants_log(view: SessionView, sight: Sight) -> bool:
    now = view.outcome
    if now.state == "running":
        return sight.alive is not True or bool(sight.silent)
    return now.state == "stopped" and now.reason in ("error", "no progress", "paused")


def _verdict(view: SessionView) -> Iterator[Evidence]:
    """What the gate read of the newest attempt, where it did not let the session go on."""
    review = view.deciding if view.outcome.decided else None
    step = next((s for s in view.steps if review and s.name == review.step), view.current)
    if step is None or step.last is None or not (review or step.status is Status.JUDGED):
        return
    last = step.last
    word = last.verdict if review else outcome.word(step)
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


def _review(view: SessionView) -> ReviewView | None:
    """The one that the stop rests on, or else the newest of the step at hand."""
    if review := view.deciding:
        return review
    step = view.current
    asked = [r for r in step.reviews if not r.superseded] if step else []
    return asked[-1] if asked else None


def review_of(view: SessionView) -> ReviewView | None:
    """The review whose folder belongs into ``Traces``."""
    return _review(view) if view.outcome.state == "stopped" else None


def _files(view: SessionView) -> list[tuple[str, str]]:
    found = outcome.reading(view)
    review = review_of(view)
    if review and review is not view.deciding:
        found.append(("review", f"{review.path}/report.md"))
    if view.outcome.reason in ("error", "no progress"):
        found.append(("log", outcome.HERE.relative(outcome.HERE.log(outcome.broken(view)))))
    return found


def _fixes(view: SessionView, root: Path, traces: Traces) -> Iterator[NextStep]:
    now = view.outcome
    commands = _Commands(view, root)
    match now.state:
        case "none" | "done":
            return
        case "running":
            yield from _ways(commands, _not_stopped(traces.sight))
        case _ if view.waiting:
            yield from _waiting(commands, view.waiting)
        case _ if now.decided and now.decided.action != "stop":
            steps = outcome.next_steps(view, root)
            yield from (NextStep(s.why.removesuffix(":"), s.command) for s in steps)
        case _ if now.reason in _LIKELIEST or now.decided:
            yield from _after_the_end(commands, _review(view))
        case _:
            yield from _ways(commands, _stopped(view))


class _Commands:
    """The commands of one session, each quoted for a shell."""

    def __init__(self, view: SessionView, root: Path) -> None:
        self.view = view
        self.root = root
        self.run = view.command(root)
        self.accept = f"{self.run} --accept-changes REASON"

    def named(self, name: str) -> str:
        """The command of a row of ``_WAYS``."""
        spec = (self.view.runbook, *self.view.options())
        match name:
            case "run":
                return self.run
            case "accept":
                return self.accept
            case "anew":
                return self.view.command(Path("NEW_WORKSPACE"))
            case "more":
                return self.more(self.reached())
            case "launch" | "plan" | "doctor":
                return self.of(name, *spec)
            case "validate":
                return shlex.join(["runbook", name, *spec])
            case "dry":
                return shlex.join(["runbook", "gate", "dry", "--spec", self.view.runbook])
            case _:
                return self.of(*name.split())

    def of(self, *words: str) -> str:
        """``runbook WORDS --workspace ROOT``."""
        return shlex.join(["runbook", *words, "--workspace", str(self.root)])

    def decide(self, review: ReviewView, action: str, *options: str) -> str:
        """The decision, and the run that acts on it; after a stop there is nothing to run."""
        command = outcome.review_command("decide", review, self.root, action, *options)
        return command if action == "stop" else f"{command} && {self.run}"

    def reached(self) -> list[str]:
        """The limits that the session stopped at."""
        return spending.reached(self.view.spent, self.view.limits) or ["wall_clock"]

    def more(self, limits: Sequence[str]) -> str:
        return self.view.command(self.root, *spending.raised(limits, self.view))


def _ways(commands: _Commands, kind: str) -> Iterator[NextStep]:
    for why, name in _WAYS.get(kind, _WAYS["paused"]):
        rise = spending.rise(commands.reached(), commands.view) if name == "more" else ""
        yield NextStep(why.format(rise), commands.named(name))


def _not_stopped(sight: Sight) -> str:
    if sight.alive is None:
        return "elsewhere"
    if not sight.alive:
        return "gone"
    return "silent" if sight.silent else "at work"


def _stopped(view: SessionView) -> str:
    """Which of the ways a stop leaves: its reason, and of an error what kind it was."""
    now = view.outcome
    if now.reason != "error":
        return now.reason
    if _STORAGE.search(now.detail):
        return "storage"
    return {2: "error in the runbook", 3: "error on disk"}.get(now.exit_code, "error")


def _waiting(commands: _Commands, review: ReviewView) -> Iterator[NextStep]:
    """First what lets the reviewer answer, where it could not; then what a person would answer."""
    reached = spending.reached_by_reviews(commands.view)
    unanswered = commands.view.unanswered
    if reached and not review.decisions:
        told = f"Raise {spending.rise(reached, commands.view)}, and have the reviewer asked"
        yield NextStep(told, commands.more(reached))
    elif unanswered and unanswered.remedy == "ask":
        told = "Mend what kept the reviewer from answering, and have it asked again"
        yield NextStep(told, commands.run)
    elif unanswered and unanswered.remedy == "change" and review.reason not in _MEND_FIRST:
        told = "Mend the runbook as the error says, accept the change, and have the reviewer asked"
        yield NextStep(told, commands.accept)
    yield from _answers(commands, review)


def _answers(commands: _Commands, review: ReviewView) -> Iterator[NextStep]:
    if review.reason in _MEND_FIRST:
        yield NextStep(_MEND[review.reason], commands.accept)
    known = _LIKELIEST.get(review.reason, ())
    offered = review_words.options(review)
    for action in (*(a for a in known if a in offered), *(a for a in offered if a not in known)):
        yield from _answer(commands, review, action)


def _answer(commands: _Commands, review: ReviewView, action: str) -> Iterator[NextStep]:
    told = _MEANS.get(action, f"Answer {action}")
    step = next((s for s in commands.view.steps if s.name == review.step), None)
    if action == "override" and review.reason == "smoke":
        told = "If you know better, have the change run in full"
    if action == "override" and review.reason == "sentinel":
        told = "If you know better, clear the sentinel; the session then ends with exit 6"
    ranges = outcome.ranges(step.adjustable) if step and action == "retry" else ""
    if ranges:
        told = f"{told} with another parameter; NAME=NUMBER is one of {ranges}"
        yield NextStep(told, commands.decide(review, action, "--change", "NAME=NUMBER"))
    else:
        yield NextStep(told, commands.decide(review, action))


def _after_the_end(commands: _Commands, review: ReviewView | None) -> Iterator[NextStep]:
    """Nothing here runs again by itself: a person mends it, overrides, or begins anew."""
    reason = review.reason if review else ""
    override = [
        step
        for step in (_answer(commands, review, "override") if review else ())
        if review and "override" in review.allowed
    ]
    told = _MEND.get(reason, "Mend what the review found, and accept the change")
    mend = [NextStep(told, commands.accept)]
    yield from (*override, *mend) if reason not in _MEND_FIRST else (*mend, *override)
    yield NextStep("Else begin anew in another workspace", commands.named("anew"))


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
