"""The verb ``diagnose``: why a session does not go on, and what to do. It changes nothing."""

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from runbook.cli.options import WORKSPACE, AsJson, Folder, answer, say
from runbook.cli.showing import look
from runbook.errors import CorruptError

if TYPE_CHECKING:
    from runbook.report.diagnosis import Diagnosis
    from runbook.report.evidence import Traces
    from runbook.report.session import SessionView
    from runbook.report.status import Sight
    from runbook.workspace import Workspace

_LEAST_ROOM = 1 << 16
"""Bytes without which a journal takes hardly a line."""


def diagnose(*, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """Say why the session does not go on, what shows it, and the three likeliest ways on."""
    from runbook.codec import encode  # noqa: PLC0415 - start-up stays light
    from runbook.report.diagnosis import render  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    try:
        view, sight = look(place)
    except CorruptError as error:
        _say_damage(place, error, as_json=as_json)
        return
    if not view.run_id:
        say(f"{place.root}: no session yet; 'runbook run' starts one")
        if as_json:
            answer({"workspace": str(place.root), "state": "none"})
        return
    found = examine(place, view, sight)
    if as_json:
        state = {"workspace": str(place.root), "state": view.outcome.state}
        answer({**state, "reason": view.outcome.reason, **encode(found)})
    else:
        say(render(found))


def _say_damage(place: "Workspace", error: CorruptError, *, as_json: bool) -> None:
    from runbook.codec import encode  # noqa: PLC0415 - start-up stays light
    from runbook.report.damage import diagnose_damage  # noqa: PLC0415 - start-up stays light
    from runbook.report.diagnosis import render  # noqa: PLC0415 - start-up stays light

    found = diagnose_damage(place, error)
    if as_json:
        told = {"workspace": str(place.root), "state": "damaged", "reason": error.what}
        answer({**told, **encode(found)})
    else:
        say(render(found))


def examine(place: "Workspace", view: "SessionView", sight: "Sight") -> "Diagnosis":
    """The diagnosis of a session, with what lies on disk beside its journal."""
    from runbook.report.diagnosis import diagnose as find  # noqa: PLC0415 - start-up stays light

    return find(view, place.root, _traces(place, view, sight))


def _traces(place: "Workspace", view: "SessionView", sight: "Sight") -> "Traces":
    from runbook.report.evidence import Traces  # noqa: PLC0415 - start-up stays light
    from runbook.report.reading import broken, review_of  # noqa: PLC0415 - start-up stays light
    from runbook.report.review_folder import Folder, read_folder  # noqa: PLC0415 - as above
    from runbook.review_facts import log_tail  # noqa: PLC0415 - start-up stays light

    review = review_of(view)
    folder = read_folder(place.inside(review.path)) if review else Folder()
    is_full = False
    with suppress(OSError):
        is_full = shutil.disk_usage(place.root).free < _LEAST_ROOM
    return Traces(folder, log_tail(place, broken(view)), sight, is_full)
