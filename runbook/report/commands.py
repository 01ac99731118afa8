"""The commands that a person goes on with, each quoted for a shell.

Rule: a command can be pasted as it stands, but for the words in capitals, which only a person can
fill in. The session's own command is ``SessionView.command``.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from runbook.report.session import ReviewView, SessionView


@dataclass(frozen=True)
class NextStep:
    """What to do, and the command that does it."""

    why: str
    command: str


def in_workspace(root: Path, *words: str) -> str:
    """``runbook WORDS --workspace ROOT``."""
    return shlex.join(["runbook", *words, "--workspace", str(root)])


def accept(view: SessionView, root: Path) -> str:
    """Goes on with what was changed; why is a person's to say."""
    return f"{view.command(root)} --accept-changes REASON"


def anew(view: SessionView) -> str:
    """Begins the same session in another workspace."""
    return view.command(Path("NEW_WORKSPACE"))


def review_command(
    verb: str, review: ReviewView, root: Path, action: str = "", *options: str
) -> str:
    """``runbook review VERB ID ...``; with an action, the reason is a person's to fill in.

    A sentinel is cleared by a command of its own.
    """
    if action == "override" and review.reason == "sentinel":
        return in_workspace(root, "sentinel", "clear", "--reason", "REASON")
    answer = ["--action", action, *options, "--reason", "REASON"] if action else []
    return in_workspace(root, "review", verb, review.review_id, *answer)
