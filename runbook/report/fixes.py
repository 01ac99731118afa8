"""What to do about a session that does not go on: the likeliest ways, each with its command.

Rule: the ways are a table by what the session came to; a stop that rests on a review has its own in
``runbook.report.review_fixes``.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from runbook.report import commands, reading, review_fixes, spending
from runbook.report.commands import NextStep
from runbook.report.evidence import Traces
from runbook.report.session import SessionView
from runbook.state import ALLOWED

_MOST = 3
_STORAGE = re.compile(r": (no space left while writing|the volume failed:)")
"""As ``runbook.artifacts.storage_stop`` words it, behind the path."""
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
    "decided": (("The decision is on record; the same command acts on it", "run"),),
    "paused": (("Go on: the same command continues", "run"), _DETACHED, _ELSEWHERE),
}
"""What a session came to -> why, and which command of ``_command``; the likeliest first."""


def likeliest(view: SessionView, root: Path, traces: Traces) -> tuple[NextStep, ...]:
    """Three at most, the likeliest first; none where nothing is wrong."""
    return tuple(islice(_fixes(view, root, traces), _MOST))


def _fixes(view: SessionView, root: Path, traces: Traces) -> Iterator[NextStep]:
    now = view.outcome
    match now.state:
        case "none" | "done":
            return
        case "running":
            yield from _ways(view, root, _not_stopped(traces))
        case _ if view.waiting:
            yield from review_fixes.waiting(view, root, view.waiting)
        case _ if now.decided and now.decided.action != "stop":
            yield from _ways(view, root, "decided")
        # A stop that a review decided has that review's reason.
        case _ if now.decided or now.reason in ALLOWED:
            yield from review_fixes.ended(view, root, reading.review_of(view))
        case _:
            yield from _ways(view, root, stopped_by(view))


def _not_stopped(traces: Traces) -> str:
    sight = traces.sight
    if sight.alive is None:
        return "elsewhere"
    if not sight.alive:
        return "storage" if traces.is_full else "gone"
    return "silent" if sight.silent else "at work"


def stopped_by(view: SessionView) -> str:
    """A stop's reason; of an error, what kind it was: ``storage``, ``error on disk``."""
    now = view.outcome
    if now.reason != "error":
        return now.reason
    if _STORAGE.search(now.detail):
        return "storage"
    return {2: "error in the runbook", 3: "error on disk"}.get(now.exit_code, "error")


def _ways(view: SessionView, root: Path, kind: str) -> Iterator[NextStep]:
    rise = spending.rise(_reached(view), view) if kind == "budget" else ""
    for why, name in _WAYS.get(kind, _WAYS["paused"]):
        yield NextStep(why.format(rise), _command(name, view, root))


def _command(name: str, view: SessionView, root: Path) -> str:
    """The command of a row of ``_WAYS``."""
    spec = (view.runbook, *view.options())
    match name:
        case "run":
            return view.command(root)
        case "accept":
            return commands.accept(view, root)
        case "anew":
            return commands.anew(view)
        case "more":
            return view.command(root, *spending.raised(_reached(view), view))
        case "launch" | "plan" | "doctor":
            return commands.in_workspace(root, name, *spec)
        case "validate":
            return shlex.join(["runbook", name, *spec])
        case "dry":
            return shlex.join(["runbook", "gate", "dry", "--spec", view.runbook])
        case _:
            return commands.in_workspace(root, *name.split())


def _reached(view: SessionView) -> list[str]:
    """The limits that the session stopped at."""
    return spending.reached(view.spent, view.limits) or ["wall_clock"]
