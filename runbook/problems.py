"""What is wrong with a configuration: collected, sorted by position, reported together.

Every bad value that is quoted goes through ``printable``, so that no file can move a terminal's
cursor. Nothing here reads files.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runbook.errors import ConfigError

_LONGEST_QUOTE = 80


@dataclass(frozen=True)
class Problem:
    """One thing to mend."""

    file: str
    """The file as the user named it, or ``--set ARG``."""
    line: int
    """From 1; 0 where there are no lines, as on the command line."""
    column: int
    what: str
    fix: str

    @property
    def where(self) -> str:
        """``file:line:column``, or the file alone."""
        name = printable(self.file, longest=1000)
        return f"{name}:{self.line}:{self.column}" if self.line else name


def from_error(error: ConfigError) -> Problem:
    """The problem of an error that ``to_error`` made of one with a line."""
    file, line, column = error.where.rsplit(":", 2)
    return Problem(file, int(line), int(column), error.what, error.fix)


def to_error(problems: Iterable[Problem]) -> ConfigError:
    """One error that lists all problems, file by file in the order the files came up.

    ``where`` and ``what`` are those of the first problem; the others follow its fix. At least
    one problem is needed.
    """
    unique = list(dict.fromkeys(problems))
    files = {name: i for i, name in enumerate(dict.fromkeys(p.file for p in unique))}
    ordered = sorted(unique, key=lambda p: (files[p.file], p.line, p.column))
    texts = [str(ConfigError(p.what, where=p.where, fix=p.fix)) for p in ordered]
    first = ordered[0]
    return ConfigError(first.what, where=first.where, fix="\n".join([first.fix, *texts[1:]]))


def printable(text: str, *, longest: int = _LONGEST_QUOTE) -> str:
    """The text with everything a terminal would act on escaped, cut to ``longest`` characters."""
    cut = text if len(text) <= longest else text[: longest - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def quoted(value: object) -> str:
    """A value as an error shows it: as YAML would write it, on one line, escaped, short."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f"'{printable(value)}'"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return printable(str(value))


def suggestion(word: str, known: Iterable[str]) -> str:
    """A fix for a word that is not among the known ones: the nearest, or the list of them."""
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(word[:_LONGEST_QUOTE], names, n=1)
    if near:
        return f"did you mean '{printable(near[0])}'?"
    if not names:
        return "take it away; nothing is known here"
    return f"use one of: {listing(names)}"


def listing(names: Sequence[str]) -> str:
    """Names in a row, the long tail left out."""
    shown = ", ".join(printable(n) for n in names[:20])
    return f"{shown}, ..." if len(names) > 20 else shown
