"""Why the reviewer of the review that a stop rests on gave no answer, as its folder tells.

Rule: whoever wrote the folder is not believed. What is read is shown, escaped by whoever shows it,
and decides only which commands are offered.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from runbook.contract import Json
from runbook.report.figures import mapping, real
from runbook.report.review_folder import read_text
from runbook.report.session import SessionView, Unanswered
from runbook.workspace import Workspace

_REMEDIES = ("ask", "change", "decide")


def with_unanswered(view: SessionView, place: Workspace) -> SessionView:
    """The view, with why the review that its stop rests on has no answer, where that is told."""
    review = view.deciding
    if review is None or review.decisions:
        return view
    return replace(view, unanswered=read_unanswered(place.inside(review.path)))


def read_unanswered(folder: Path) -> Unanswered | None:
    """What a review's folder tells; None where it tells of no error."""
    first = read_text(folder / "error.txt").partition("\n")[0].strip()
    if not first:
        return None
    told = _document(folder / "remedy.json")
    remedy, usd = told.get("remedy"), real(told.get("usd"))
    known = str(remedy) if remedy in _REMEDIES else ""
    return Unanswered(first, known, usd if usd is not None and usd > 0 else None)


def _document(path: Path) -> Mapping[str, Json]:
    try:
        return mapping(json.loads(read_text(path)))
    except (ValueError, RecursionError):
        return {}
