"""Verbs that check what is promised: verify, selftest."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import WORKSPACE, AsJson, Folder, answer, say
from runbook.errors import ConfigError, CorruptError

if TYPE_CHECKING:
    from runbook.contract import Gate, Judgement, Metric
    from runbook.executor import Gates
    from runbook.workspace import Workspace

SAMPLE_S = 20.0


def verify(*, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """Read every committed byte again: journal, manifests, data sets, adapters. 3: damage."""
    from runbook.report.figures import counted  # noqa: PLC0415 - start-up stays light
    from runbook.verify import verify as check  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    try:
        found = check(place)
    except OSError as error:
        raise ConfigError(
            f"the workspace cannot be read: {error.strerror}",
            where=str(error.filename or place.root),
            fix="name the folder of a session with --workspace, or change its permissions",
        ) from error
    if not found.files and not found.findings:
        raise ConfigError(
            "there is nothing to verify: no session was begun here",
            where=str(place.root),
            fix="name the folder of a session with --workspace",
        )
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


def selftest(
    *,
    workspace: Folder = WORKSPACE,
    chaos: Annotated[
        bool,
        typer.Option(
            "--chaos",
            envvar="RUNBOOK_CHAOS",
            help="Every fault at every place, in three minutes, and a certificate; else a sample.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Kill, tear, fill and flip a small session on the workspace's volume; 1: it lost something."""
    from runbook.artifacts import write_json  # noqa: PLC0415 - start-up stays light
    from runbook.events import encode  # noqa: PLC0415 - start-up stays light
    from runbook.selftest import LIMIT_S  # noqa: PLC0415 - start-up stays light
    from runbook.selftest import selftest as check  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    place.create()
    wall = datetime.now(UTC).isoformat(timespec="seconds")
    limit_s = LIMIT_S if chaos else SAMPLE_S
    certificate = check(place.hidden, _gates(place), say, wall, limit_s=limit_s)
    told = {**encode(certificate), "summary": encode(certificate.summary)}
    if chaos:
        write_json(place.certificate, told)
        say(f"certificate: {place.certificate}")
    verdict = "nothing was lost, nothing was done twice" if certificate.passed else "FAILED"
    say(f"{verdict}, in {certificate.seconds:.0f} s")
    if as_json:
        answer(told)
    if not certificate.passed:
        raise typer.Exit(1)


def _gates(place: "Workspace") -> "Gates":
    """The real judge, imported before the sessions are forked."""
    from gates.judge import judge_gate  # noqa: PLC0415 - start-up stays light

    def judge(gate: "Gate", metrics: "tuple[Metric, ...]", final: bool) -> "Judgement":  # noqa: FBT001 - the seam's shape
        return judge_gate(gate, metrics, place.root, final=final)

    return judge
