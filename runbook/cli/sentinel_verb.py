"""The verb ``sentinel clear``: a person's word to go on past what a sentinel found."""

from typing import TYPE_CHECKING

from runbook.cli.options import WORKSPACE, AsJson, Folder, Overrides
from runbook.cli.review_verbs import Author, MovedSpec, Reason, record
from runbook.cli.showing import read_whole, view_of
from runbook.errors import ConfigError

if TYPE_CHECKING:
    from runbook.report.session import ReviewView, SessionView


def clear(
    *,
    reason: Reason,
    author: Author = "unnamed",
    workspace: Folder = WORKSPACE,
    spec: MovedSpec = None,
    overrides: Overrides,
    as_json: AsJson = False,
) -> None:
    """Clear the sentinel that stopped the session, on record; it then ends with exit 6."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    entries = read_whole(place)
    name = _tripped(view_of(entries, place)).review_id
    record(place, entries, name, "override", reason, author, {}, spec, overrides, as_json=as_json)


def _tripped(view: "SessionView") -> "ReviewView":
    """Raises ConfigError: the session does not stand before a sentinel."""
    step = view.current
    asked = [r for r in step.reviews if not r.superseded] if step else []
    if not asked or asked[-1].reason != "sentinel":
        raise ConfigError(
            "no sentinel stopped this session",
            where="runbook sentinel clear",
            fix="'runbook diagnose' says why it stands; --workspace names the session's folder",
        )
    return asked[-1]
