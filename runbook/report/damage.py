"""The diagnosis of a session whose journal is not what was appended: nothing else can be told."""

import shlex
from pathlib import Path

from runbook.errors import CorruptError
from runbook.report.commands import NextStep, in_workspace
from runbook.report.diagnosis import Diagnosis
from runbook.report.evidence import Evidence
from runbook.workspace import Workspace

_SHOWN = 10
HEADLINE = "the session's journal is damaged"


def diagnose_damage(workspace: Workspace, error: CorruptError) -> Diagnosis:
    """What is known where the journal cannot be believed: the place, and what lies beside it."""
    root = workspace.root
    manifests = sorted(str(path.relative_to(root)) for path in root.glob("*/**/manifest.json"))
    left = len(manifests) - _SHOWN
    more = (f"and {left} more",) if left > 0 else ()
    evidence = (
        Evidence("Where", (error.where,)),
        Evidence("The journal's files", tuple(_sizes(workspace.hidden))),
        Evidence("Steps that left a manifest", (*manifests[:_SHOWN], *more)),
    )
    return Diagnosis(
        headline=f"{root}: {HEADLINE}",
        cause=f"The journal is not what was appended to it: {error.what}.",
        evidence=tuple(part for part in evidence if part.lines),
        files=(("journal", str(workspace.hidden)),),
        safe="What steps made lies where it was; without the journal nothing vouches for it. "
        "No command writes here until the journal is whole again.",
        cost="not known: it stands in the journal",
        fixes=tuple(_fixes(workspace)),
    )


def _sizes(folder: Path) -> list[str]:
    ours = [p for p in folder.iterdir() if p.name.startswith(("journal", "HEAD"))]
    found = sorted(ours, key=lambda path: (len(path.name), path.name))
    return [f"{path.name}: {path.lstat().st_size} bytes" for path in found]


def _fixes(workspace: Workspace) -> list[NextStep]:
    hidden = workspace.hidden
    verify = in_workspace(workspace.root, "verify")
    kept = f"{hidden}.damaged"
    # The whole folder: newer files of the damaged one would not belong to an older copy.
    restore = f"{shlex.join(['mv', str(hidden), kept])} && "
    restore += shlex.join(["cp", "-a", f"COPY/{hidden.name}", str(hidden)])
    anew = "runbook run RUNBOOK --workspace NEW_WORKSPACE"
    return [
        NextStep(
            "Restore the journal from a copy or a snapshot of the volume", f"{restore} && {verify}"
        ),
        NextStep("If the volume was moved or failed, bring it back, and look again", verify),
        NextStep("Without a copy, begin anew in another workspace; keep this one", anew),
    ]
