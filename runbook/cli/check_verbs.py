"""Verbs that check what is promised: verify."""

import typer

from runbook.cli.options import WORKSPACE, AsJson, Folder, answer, say
from runbook.errors import CorruptError


def verify(*, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """Read every committed byte again: journal, manifests, data sets, adapters. 3: damage."""
    from runbook.report.figures import counted  # noqa: PLC0415 - start-up stays light
    from runbook.verify import verify as check  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    found = check(place)
    for finding in found.findings:
        say(f"{finding.where}: {finding.what}")
        if as_json:
            answer({"where": finding.where, "what": finding.what})
    for note in found.notes:
        say(f"note: {note}")
    damage = counted(len(found.findings), "finding")
    say(f"{place.root}: {counted(found.files, 'file')} compared, {damage}.")
    if as_json:
        answer({"files": found.files, "findings": len(found.findings), "notes": list(found.notes)})
    if found.findings:
        say("Restore what is named above from a copy; nothing is mended by guessing.")
        raise typer.Exit(CorruptError.code)
