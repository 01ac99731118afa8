"""What the verbs share: arguments, each with its ``RUNBOOK_*`` twin, and the two streams.

Rule: what people read goes to stderr, what programs read to stdout, one JSON object a line. A
twin of an argument that can be given many times holds one value a line.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from runbook.contract import Json
from runbook.errors import ConfigError, OutputError
from runbook.problems import printable


@dataclass
class Answers:
    """How the caller wants to be answered; known once the arguments are read."""

    as_json: bool = False


def env_lines(name: str) -> list[str]:
    """The lines of an environment variable, empty ones left out."""
    return [line for line in os.environ.get(name, "").splitlines() if line.strip()]


def _note_json(context: typer.Context, value: bool) -> bool:  # noqa: FBT001 - typer's signature
    """Remember the wish where ``main`` finds it, should the verb fail."""
    answers = context.find_root().obj
    if isinstance(answers, Answers):
        answers.as_json = value
    return value


_WORKSPACE = "RUNBOOK_WORKSPACE"
Spec = Annotated[Path, typer.Argument(envvar="RUNBOOK_SPEC", help="The runbook's YAML file.")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        default_factory=lambda: env_lines("RUNBOOK_SET"),
        show_default=False,
        metavar="STEP.PARAM=VALUE",
        help="Change a parameter; recorded. In the environment: RUNBOOK_SET, one a line.",
    ),
]


def _folder(named: str | Path) -> Path:
    """Raises ConfigError: an empty name, as of a variable that is not set, is no folder."""
    # typer takes an empty twin for none, and gives the default, which is no text.
    twin = None if isinstance(named, str) else os.environ.get(_WORKSPACE)
    if named == "" or twin == "":
        what = f"{'--workspace' if twin is None else _WORKSPACE} is empty"
        raise ConfigError(what, where="command line", fix="write . for this folder")
    return Path(named)


Folder = Annotated[
    Path,
    typer.Option(
        envvar=_WORKSPACE,
        parser=_folder,
        metavar="FOLDER",
        help="Where everything is written.",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        envvar="RUNBOOK_JSON",
        callback=_note_json,
        help="Answer on stdout, one JSON object a line.",
    ),
]
AcceptChanges = Annotated[
    str | None,
    typer.Option(
        "--accept-changes",
        envvar="RUNBOOK_ACCEPT_CHANGES",
        metavar="REASON",
        help="Go on with a runbook, a file it names or a step's code that changed since; kept on "
        "record. 'runbook plan' shows what it redoes.",
    ),
]
Author = Annotated[
    str,
    typer.Option(envvar=["RUNBOOK_AUTHOR", "USER"], help="Who accepts changes; kept on record."),
]
WORKSPACE = Path("workspace")
_PLACEHOLDERS = ("REASON", "TEXT")
"""What stands for the reason in a command that is shown."""


def check_reason(reason: str, of: str, flag: str) -> None:
    """Whoever goes past something on record says why.

    Args:
        reason: what they gave.
        of: what it is the reason of, with its article.
        flag: where it was given.

    Raises:
        ConfigError: it is blank, or the word that stands for it in a command.
    """
    word = reason.strip()
    if not word:
        fix = "say why, in a few words; it is kept on record"
        raise ConfigError(f"{of} needs a reason", where=flag, fix=fix)
    if word in _PLACEHOLDERS:
        what = f"{word} stands in the command for a person's own words"
        raise ConfigError(what, where=flag, fix="say why, in place of that word")


def say(text: str) -> None:
    """Tell a person; where nobody can read any more, the exit code still has to be right."""
    # The last door before the terminal: what a model or a file says may stand in any error.
    shown = "\n".join(printable(line, longest=len(line)) for line in text.split("\n"))
    with suppress(OSError):
        sys.stderr.write(f"{shown}\n")
        sys.stderr.flush()


def answer(value: Mapping[str, Json]) -> None:
    """Tell a program. Raises OutputError as ``write_lines`` does."""
    write_lines([json.dumps(value)])


def write_lines(lines: Iterable[str]) -> None:
    """Put lines on stdout, and see them written.

    Raises:
        OutputError: they could not be; that nobody reads any more is no error.
    """
    if sys.stdout is None:
        fix = "open it, or send it to a file"
        raise OutputError("the answer cannot be written: it is closed", where="stdout", fix=fix)
    try:
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"the answer cannot be written: {error.strerror}"
        fix = "make room where it is sent, or send it elsewhere, and ask again"
        raise OutputError(what, where="stdout", fix=fix) from error
