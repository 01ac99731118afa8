"""Verbs before a session: init lays down a workspace, doctor says whether one can start."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import WORKSPACE, AsJson, Folder, Overrides, answer, say
from runbook.errors import ConfigError

if TYPE_CHECKING:
    from runbook.bootstrap import Check

_PROGRAMME = "quickstart"


def init(
    folder: Annotated[
        Path, typer.Argument(envvar="RUNBOOK_FOLDER", help="A new folder, or an empty one.")
    ],
    *,
    programme: Annotated[
        str,
        typer.Option("--from", envvar="RUNBOOK_FROM", help="The programme to begin with."),
    ] = _PROGRAMME,
    as_json: AsJson = False,
) -> None:
    """Lay down a commented workspace: a runbook, its specs, a pod's bootstrap, a managed job."""
    from runbook.template import lay_down  # noqa: PLC0415 - start-up stays light

    target, files = lay_down(folder, programme)
    following = "runbook doctor runbook.yaml --workspace ."
    say(f"{target}: {len(files)} files from {programme}. README.md there says what is what. Next:")
    say(f"  cd {shlex.quote(str(target))} && {following}")
    if as_json:
        answer({"workspace": str(target), "programme": programme, "files": list(files)})


def doctor(
    spec: Annotated[
        Path | None,
        typer.Argument(
            envvar="RUNBOOK_SPEC",
            help="The runbook's YAML file; that of the workspace's session if not given.",
        ),
    ] = None,
    *,
    workspace: Folder = WORKSPACE,
    overrides: Overrides,
    as_json: AsJson = False,
) -> None:
    """Check runbook, workspace and machine; say what mends each fault. 0: a session can start."""
    from runbook.bootstrap import State  # noqa: PLC0415 - start-up stays light
    from runbook.cli.reviewer_row import check_reviewer  # noqa: PLC0415 - start-up stays light
    from runbook.doctor import examine  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    checks = []
    place = Workspace.at(workspace)
    for check in examine(spec, place, overrides, check_reviewer=check_reviewer):
        checks.append(check)
        if as_json:
            row = {"check": check.name, "state": check.state.value, "found": check.found}
            answer({**row, "fix": check.fix})
    if not as_json:
        say(_table(checks))
    if any(check.state is State.FAILED for check in checks):
        raise typer.Exit(ConfigError.code)


def _table(checks: "list[Check]") -> str:
    from runbook.bootstrap import State  # noqa: PLC0415 - start-up stays light
    from runbook.report.safe_text import columns, one_line  # noqa: PLC0415 - start-up stays light

    rows = columns([(check.state.value, check.name, check.found) for check in checks])
    lines = []
    for check, row in zip(checks, rows, strict=True):
        lines.append(row)
        lines += [f"          fix: {one_line(part)}" for part in check.fix.splitlines()]
    failed = [check.name for check in checks if check.state is State.FAILED]
    return "\n".join([*lines, _sum(checks, failed)])


def _sum(checks: "list[Check]", failed: list[str]) -> str:
    from runbook.bootstrap import State  # noqa: PLC0415 - start-up stays light

    if failed:
        return f"A session cannot start yet: {', '.join(failed)}."
    if any(check.name == "runbook" and check.state is State.SKIPPED for check in checks):
        return "Nothing here is in the way of a session; which one, only a runbook says."
    return "A session can start."
