"""The verb that asks the DRY sentinel: the same rules as before each step of a session."""

import os
from pathlib import Path
from typing import Annotated

import typer

from runbook.cli.options import AsJson, answer, say
from runbook.errors import ConfigError, SentinelError


def dry(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            envvar="RUNBOOK_PATHS",
            help="Python files, or folders of them. Without: the phases, and what --spec names.",
        ),
    ] = None,
    *,
    spec: Annotated[
        Path | None,
        typer.Option(envvar="RUNBOOK_SPEC", help="A runbook, whose steps' code is read too."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for phase code that does what has one canonical place; exit 5 where there is some."""
    from gates.dry import find_violations  # noqa: PLC0415 - start-up stays light
    from runbook.cli.seams import phase_sources, phases_home  # noqa: PLC0415 - start-up stays light
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light

    home = phases_home()
    if paths:
        sources = [source for path in paths for source in _sources(path)]
    else:
        sources = phase_sources(home, load_plan(spec) if spec else None)
    findings = find_violations(sources, home)
    for finding in findings:
        say(str(finding))
        if as_json:
            answer(
                {
                    "path": str(finding.path),
                    "line": finding.line,
                    "rule": finding.rule,
                    "found": finding.found,
                    "use": finding.use,
                }
            )
    count = len({os.path.realpath(source) for source in sources})
    say(f"{len(findings) or 'no'} finding{'' if len(findings) == 1 else 's'} in {count} files")
    if findings:
        raise typer.Exit(SentinelError.code)


def _sources(path: Path) -> list[str]:
    """Raises ConfigError: there is nothing to look at."""
    from runbook.cli.seams import python_files  # noqa: PLC0415 - start-up stays light

    if not path.exists():
        raise ConfigError("there is no such file", where=str(path), fix="name a file or a folder")
    found = python_files(str(path)) if path.is_dir() else [str(path)]
    if not found:
        raise ConfigError("no Python file lies there", where=str(path), fix="name another folder")
    return found
