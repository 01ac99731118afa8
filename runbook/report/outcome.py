"""How a session stands: what it came to, what is safe on disk, what it cost, what to do next.

Plain text, escaped by whoever shows it.
"""

from collections.abc import Iterator
from pathlib import Path

from runbook.report import after_stop, spending
from runbook.report import figures as f
from runbook.report.commands import NextStep
from runbook.report.session import SessionView
from runbook.state import ALLOWED, Status

_CURABLE = {
    "error": "an error",
    "budget": "the budget is spent",
    "rental": "the machine's rental ends",
    "stop requested": "a person asked for it",
    "paused": "paused, nothing is wrong",
    "no progress": "a step was interrupted again and again",
    "missing manifest": "an input is missing or was changed",
    "changed input": "a file that a step reads or runs is not the one that was planned with",
    "dry": "phase code does a second time what has one canonical place",
}
"""Reason of a ``SessionStopped`` after which the same command goes on -> what it means."""
_OF_A_REVIEW = {
    "review": "a review waits for a person's decision",
    "gate failed": "a gate failed, and its review decided to stop",
    "closing": "a gate failed, and its retries are used up",
    "instrument": "a reading cannot be believed, and its review decided to stop",
    "underpowered": "the sample is too small to decide, and its review decided to stop",
    "smoke": "a smoke did not show the change to help, and its review decided to stop",
    "question": "a step asked a question, and its review decided to stop",
    "sentinel": "a sentinel tripped",
}
"""The same of a stop that only a person's decision, or a change, gets over."""
_TOO_LITTLE = "the budget's rest does not last for the next batch"


def title(view: SessionView) -> str:
    """How it stands, in a few words."""
    now = view.outcome
    match now.state:
        case "none":
            return "no session yet"
        case "running":
            return "running"
        case "done" if now.overrides:
            return f"all done, with {f.counted(now.overrides, 'override')} (exit {now.exit_code})"
        case "done":
            return f"all done (exit {now.exit_code})"
        case _ if now.decided:
            return f"stopped, and decided since: {now.decided.action} (exit {now.exit_code})"
        case _:
            return f"stopped: {cause(view)} (exit {now.exit_code})"


def cause(view: SessionView) -> str:
    """What a stop's reason means, in a clause; empty where nothing was stopped."""
    if view.outcome.reason == "budget" and spending.is_left_over(view):
        return _TOO_LITTLE
    reason = view.outcome.reason
    return _CURABLE.get(reason) or _OF_A_REVIEW.get(reason, reason)


def safe(view: SessionView) -> str:
    """What stands on disk, and whether the same command makes any of it again."""
    told = _finished(view)
    step = view.current
    if step and step.last and step.last.batches:
        batches = f.counted(step.last.batches, "committed batch", "committed batches")
        records = f.counted(step.last.records, "record")
        told += f"; of {step.name}, attempt {step.last.number}, {batches} ({records})"
    now = view.outcome
    if now.state == "done":
        return f"{told}."
    kept = now.state == "running" or now.reason in _CURABLE
    if not kept:
        return f"{told}. All of it stays."
    mended = now.reason == "error" and step and step.last
    unless = f", unless the code of {step.name} is changed" if step and mended else ""
    return f"{told}. The same command makes none of it again{unless}."


def _finished(view: SessionView) -> str:
    planned = [s for s in view.steps if s.status is not Status.SKIPPED]
    done = [s for s in planned if s.status is Status.PASSED and s.manifest]
    return f"{len(done)} of {f.counted(len(planned), 'step')} done, with manifests"


def cost(view: SessionView) -> str:
    """Time and tokens, and what was spent of each limit."""
    told = [f"{f.duration(view.seconds)} of work", f.counted(view.tokens, "token")]
    limits = spending.lines(view.spent, view.limits)
    spent = f" Spent, with what is reserved: {'; '.join(limits)}." if limits else ""
    return f"{', '.join(told)}.{spent}"


def next_steps(view: SessionView, root: Path, *, alive: bool | None = None) -> tuple[NextStep, ...]:
    """What to do now, in order; empty where nothing is left.

    ``alive`` says whether the executor of a running session is at work; None: nobody knows.
    """
    return tuple(_next_steps(view, root, alive=alive))


def _next_steps(view: SessionView, root: Path, *, alive: bool | None) -> Iterator[NextStep]:
    now = view.outcome
    run = view.command(root)
    if now.state in ("none", "done") or (now.state == "running" and alive):
        return
    if now.state == "running":
        told = "If it was killed, the" if alive is None else "The"
        yield NextStep(f"{told} same command goes on:", run)
    elif view.waiting:
        yield from after_stop.decide(view, view.waiting, root)
    elif now.decided and now.decided.action != "stop":
        yield NextStep("The decision is on record; the same command acts on it:", run)
    # A stop that a review decided has that review's reason.
    elif now.decided or now.reason in ALLOWED:
        yield from after_stop.override_or_begin_anew(view, root)
    else:
        yield after_stop.go_on(view, root)
