"""The verb that adds rows to an instrument: it shows one after the other and takes a key."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import say
from runbook.errors import ConfigError

if TYPE_CHECKING:
    from phases.labelling import Kind

_SKIP, _QUIT = "s", "q"


def label(
    file: Annotated[
        Path,
        typer.Argument(
            envvar="RUNBOOK_FILE", help="Rows to label, JSONL; a pilot's candidates do."
        ),
    ],
    *,
    kind: Annotated[
        str,
        typer.Option(
            envvar="RUNBOOK_KIND",
            help="The instrument: runaway, instructions, pairs, scorer, assistant, ...",
        ),
    ],
    into: Annotated[
        Path | None,
        typer.Option(
            envvar="RUNBOOK_INTO",
            help="Your probe file; FILE's name with .<kind>.jsonl if not given.",
        ),
    ] = None,
) -> None:
    """Show one row after the other and keep what a person says of it: y, n, s to skip, q to quit.

    What is labelled is not asked again, so the same command goes on where it stopped.
    """
    from phases.labelling import (  # noqa: PLC0415 - start-up stays light
        known_ids,
        labelled,
        waiting,
    )
    from runbook.artifacts import canonical_json, write_bytes  # noqa: PLC0415 - start-up stays light

    one = _kind(kind)
    target = into or file.with_name(f"{file.stem}.{kind}.jsonl")
    known = known_ids(one, target)
    data = _whole(target)
    if not os.access(target.parent, os.W_OK):
        what, fix = "nothing can be written there", "name a file elsewhere with --into"
        raise ConfigError(what, where=str(target.parent), fix=fix)
    rows = [row for row in waiting(kind, one, file) if row["id"] not in known]
    done = 0
    for number, row in enumerate(rows, 1):
        say(f"\n{number} of {len(rows)}  {row['id']}")
        for field in one.fields:
            say(f"  {field}:")
            say("\n".join(f"    | {line}" for line in row[field].split("\n")))
        key = _ask(one)
        if key == _QUIT:
            break
        if key == _SKIP:
            continue
        data += f"{canonical_json(labelled(one, row, key))}\n".encode()
        write_bytes(target, data)
        done += 1
    say(f"\n{done} rows labelled now, {len(known) + done} in {target}.")
    say(f"Name it in the spec of the step '{one.step}': files: {{{one.named}: PATH}}")


def _kind(name: str) -> "Kind":
    from phases.labelling import KINDS  # noqa: PLC0415 - start-up stays light
    from runbook.problems import listing, quoted  # noqa: PLC0415 - start-up stays light

    if name in KINDS:
        return KINDS[name]
    raise ConfigError(
        f"there is no instrument {quoted(name)}",
        where="--kind",
        fix=f"one of: {listing([*KINDS])}",
    )


def _whole(target: Path) -> bytes:
    data = target.read_bytes() if target.exists() else b""
    return data if not data or data.endswith(b"\n") else data + b"\n"


def _ask(one: "Kind") -> str:
    """The key that was pressed; the end of what is piped in is a wish to quit."""
    while True:
        say(f"{one.question} [{one.told}, s skips, q quits]")
        if sys.stdin is None:
            return _QUIT
        if sys.stdin.isatty():
            try:
                key = typer.getchar()
            except EOFError:
                return _QUIT
        else:
            line = sys.stdin.readline()
            key = line.strip() if line else _QUIT
        if key.lower() in (*one.keys, _SKIP, _QUIT):
            return key.lower()
