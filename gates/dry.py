"""The DRY sentinel: phase code that does a second time what has one canonical place. Static.

The rules stand in ``specs/dry``, over syntax trees; nothing is imported and nothing is run. It sees
what is written plainly: ``docs/dry.md`` says what escapes it.

It is asked before every step, so a file is read again only where it changed. One that cannot be
read, or that Python could not run, is a finding.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from stat import S_ISLNK
from typing import Final

from ast_grep_py import SgNode

from gates.dry_rules import Rule, rules
from gates.dry_source import check_syntax, decode, folded, is_torn, parse
from runbook.regular_files import open_to_read

UNREADABLE: Final = "unreadable"
_MEND: Final = "Python that can be read and parsed; what cannot is not trusted"
_LONGEST: Final = 60
"""Characters of code that a finding shows."""
_SETTLED_NS: Final = 1_000_000_000
"""A file written to twice within one tick of its volume's clock may keep its times."""


@dataclass(frozen=True)
class Finding:
    path: Path
    line: int
    rule: str
    """The rule's id."""
    found: str
    use: str
    """The canonical piece."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.found}; use {self.use}"


_Found = tuple[int, str, str, str]
"""Line, rule, what, use."""
_RealPath = Callable[[str], str]
_SEEN: Final[dict[tuple[str, str], tuple[tuple[int, ...], tuple[_Found, ...]]]] = {}
"""Path and its name at home -> the version that was read, and what was found in it."""


def find_violations(sources: Iterable[Path | str], home: Path) -> tuple[Finding, ...]:
    """Every finding in these files, in order of file and line.

    Args:
        sources: Python files; one that cannot be parsed is a finding of its own.
        home: the project's ``phases`` folder, whose canonical files are exempt by family.
    """
    real_folder = cache(os.path.realpath)
    place = real_folder(os.fspath(home))
    names = sorted({os.fspath(path) for path in sources})
    return tuple(
        Finding(Path(name), *found)
        for name in names
        for found in sorted(_in_file(name, place, real_folder))
    )


def _in_file(name: str, home: str, real_folder: _RealPath) -> tuple[_Found, ...]:
    try:
        # One look at the disk for a file that did not change: it is asked before each step.
        real, status = name, os.lstat(name)
        if S_ISLNK(status.st_mode):
            real, status = os.path.realpath(name), os.stat(name)  # noqa: PTH116 - as above
        own = _name_at_home(real, home, real_folder)
        known = _SEEN.get((name, own))
        if known and known[0] == _version(status):
            return known[1]
        with open_to_read(Path(name)) as file:
            status = os.fstat(file.fileno())
            found = tuple(_in_source(file.read(), own))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = f"cannot be read: {error or type(error).__name__}"
        return ((getattr(error, "lineno", None) or 1, UNREADABLE, what, _MEND),)
    if time.time_ns() - status.st_ctime_ns > _SETTLED_NS:
        _SEEN[name, own] = _version(status), found
    return found


def _name_at_home(real: str, home: str, real_folder: _RealPath) -> str:
    """What a file of the project's own phases is called there; '' for any other."""
    folder, own = os.path.split(real)
    return own if real_folder(folder) == home else ""


def _version(status: os.stat_result) -> tuple[int, ...]:
    """What differs once a file was written to or replaced."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _in_source(data: bytes, own: str) -> Iterator[_Found]:
    """Raises SyntaxError, ValueError, RecursionError or MemoryError for what is no Python.

    The project's own file is searched as it is spelled, and parsed only where its text could hold
    something: that no spelling hides anything there is tested, and its syntax with it.
    """
    text = decode(data)
    asked = [rule for rule in rules() if own not in rule.exempt]
    if own:
        asked = [rule for rule in asked if rule.could_match(text)]
        if not asked:
            return
    root = parse(text)
    if not own or is_torn(root):
        check_syntax(data)
    if not own:
        text, root = folded(text, root)
    yield from _in_tree(text, root, asked)


def _in_tree(text: str, root: SgNode, asked: list[Rule]) -> Iterator[_Found]:
    """One finding for a line and family."""
    told: set[tuple[int, str]] = set()
    known: dict[str, frozenset[str]] = {}
    for rule in asked:
        if not rule.could_match(text):
            continue
        for node in rule.found_in(root, known):
            line = node.range().start.line + 1
            if (line, rule.family) not in told:
                told.add((line, rule.family))
                yield line, rule.rule_id, f"{rule.message}: {_shown(node.text())}", rule.use


def _shown(text: str) -> str:
    """The beginning of the code, on one line."""
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 3]}..."
