"""Verbs that check what is promised: verify, selftest."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from runbook.cli.options import WORKSPACE, AsJson, Folder, answer, say
from runbook.cli.showing import reading_errors
from runbook.errors import ConfigError, CorruptError

SAMPLE_S = 20.0


def verify(*, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """Read every committed byte again: journal, manifests, data, adapters. Exit 3: damage."""
    from runbook.report.figures import counted  # noqa: PLC0415 - start-up stays light
    from runbook.verify import verify as check  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    with reading_errors(place):
        found = check(place)
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
    damage = counted(len(found.findings), "finding") if found.findings else "no damage found"
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
            help="Try faults at as many places as three minutes allow; keep a certificate that "
            "later reports show. Without it: a sample, in under a minute.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Crash a small session on the workspace's volume over and over. Exit 1: something was lost."""
    import gates.judge  # noqa: F401, PLC0415 - see runbook.cli.seams
    from runbook.artifacts import write_json  # noqa: PLC0415 - start-up stays light
    from runbook.cli.seams import gates_of  # noqa: PLC0415 - start-up stays light
    from runbook.codec import encode  # noqa: PLC0415 - start-up stays light
    from runbook.selftest import LIMIT_S  # noqa: PLC0415 - start-up stays light
    from runbook.selftest import selftest as check  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    place.create()
    wall = datetime.now(UTC).isoformat(timespec="seconds")
    limit_s = LIMIT_S if chaos else SAMPLE_S
    certificate = check(place.hidden, gates_of(place.root), say, wall, limit_s=limit_s)
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
