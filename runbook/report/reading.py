"""What there is to read of a session: its files, and the log and the review that tell of a stop.

Rule: a path is relative to the workspace, wherever that is. Nothing is read here.
"""

from pathlib import Path

from runbook.report.session import ReviewView, SessionView
from runbook.state import Status
from runbook.workspace import Workspace

HERE = Workspace(Path())
"""Makes paths relative to the workspace, wherever it is."""


def files(view: SessionView) -> list[tuple[str, str]]:
    """What there is to read: a label, and a path relative to the workspace."""
    found = []
    if view.outcome.state in ("stopped", "done") or any(s.manifest for s in view.steps):
        found.append(("report", HERE.relative(HERE.report)))
    if review := view.deciding:
        found.append(("review", f"{review.path}/report.md"))
    stuck = view.current
    if stuck and stuck.judged and not stuck.comparison:
        found.append((f"verdict on {stuck.name}", stuck.judged))
    found += [("evaluation", step.judged) for step in view.evaluations if step.judged]
    datasets = [a for s in view.steps if (a := s.artifact("dataset"))]
    found += [("dataset", datasets[-1].path)] if datasets else []
    found += [("adapter", a.path) for s in view.steps if (a := s.artifact("adapter"))]
    return found


def review_of(view: SessionView) -> ReviewView | None:
    """The review that a stop rests on, or else the newest of the step at hand."""
    if view.outcome.state != "stopped":
        return None
    if review := view.deciding:
        return review
    step = view.current
    asked = [r for r in step.reviews if not r.superseded] if step else []
    return asked[-1] if asked else None


def broken(view: SessionView) -> str:
    """Whose log tells of an error: the step that failed, or else the executor itself."""
    steps = (s.name for s in view.steps if s.status in (Status.FAILED, Status.INTERRUPTED))
    return next(steps, "executor")


def log(view: SessionView) -> str:
    """The log that ``broken`` names."""
    return HERE.relative(HERE.log(broken(view)))
