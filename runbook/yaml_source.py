"""Reads one YAML file as plain JSON values, and remembers where each of them stands.

Refuses what is not a plain UTF-8 file of bounded size. Knows nothing of what the values mean.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from runbook.contract import Json
from runbook.errors import ConfigError
from runbook.problems import Problem, printable, to_error
from runbook.regular_files import open_to_read
from runbook.yaml_tree import Node, Position, TreeBuilder

MAX_BYTES = 1024 * 1024

ValuePath = tuple[str | int, ...]
"""Keys and list indexes that lead to a value, outermost first."""


@dataclass(frozen=True)
class Source:
    """A document and the name under which errors speak of it."""

    name: str
    root: Node

    def value(self) -> Json:
        """The whole document as JSON values."""
        return self.root.plain()

    def problem(self, path: ValuePath, what: str, fix: str, *, key: bool = False) -> Problem:
        """A problem with the value at the path, or with its key.

        Where the path leads nowhere, the nearest value above is meant.
        """
        at = self._key_at(path) if key else None
        return Problem(self.name, *(at or self._value_at(path)), what, fix)

    def _value_at(self, path: ValuePath) -> Position:
        return list(self._walk(path))[-1].at

    def _key_at(self, path: ValuePath) -> Position | None:
        nodes = list(self._walk(path[:-1]))
        if len(nodes) < len(path) or not path:
            return None
        return nodes[-1].keys.get(str(path[-1]))

    def _walk(self, path: ValuePath) -> Iterator[Node]:
        node = self.root
        yield node
        for part in path:
            if isinstance(node.value, str):
                # An override may have put a list where the file has a text.
                return
            try:
                node = node.value[part]
            except (KeyError, IndexError, TypeError):
                return
            yield node


def read_yaml(path: Path) -> Source:
    """Read and parse a file.

    Raises:
        ConfigError: with ``where`` as ``file:line:column``; file-level troubles stand at 1:1.
    """
    name = str(path)
    wrong = unreadable(path)
    if wrong:
        raise to_error([Problem(name, 1, 1, *wrong)])
    try:
        with open_to_read(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise to_error([Problem(name, 1, 1, *_os_trouble(error))]) from error
    if len(data) > MAX_BYTES:
        what = f"the file is larger than {MAX_BYTES} bytes"
        fix = "keep data in a file of its own and name it under files:"
        raise to_error([Problem(name, 1, 1, what, fix)])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        what = f"byte 0x{data[error.start]:02x} is not UTF-8"
        fix = "save the file as UTF-8"
        raise to_error([Problem(name, *_position_in(before), what, fix)]) from error
    return parse_yaml(text.removeprefix("\ufeff"), name)


def unreadable(path: Path) -> tuple[str, str] | None:
    """Why the path is not a file that can be read, as (what, fix); None if it is one."""
    shown = printable(str(path), longest=1000)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        return _os_trouble(error, shown)
    if stat.S_ISDIR(mode):
        return f"{shown} is a directory", "name a file"
    if not stat.S_ISREG(mode):
        return f"{shown} is not a regular file", "name a file on disk, not a pipe or a device"
    if not os.access(path, os.R_OK):
        return f"{shown} may not be read", "change its permissions (chmod u+r)"
    return None


def parse_yaml(text: str, name: str) -> Source:
    """Parse text that is already at hand; ``name`` is what errors call it.

    Raises:
        ConfigError: at the first thing that is wrong.
    """
    try:
        return Source(name, TreeBuilder(name).build(text))
    except ReaderError as error:
        at = _position_in(text[: error.position])
        what = f"character U+{ord(text[error.position]):04X} is not allowed in YAML"
        fix = "take it away, or write it as an escape in double quotes"
        raise to_error([Problem(name, *at, what, fix)]) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
        said = ", ".join(s for s in (error.context, error.problem) if s)
        what = f"not valid YAML: {printable(said, longest=200)}"
        fix = "check indentation, quotes and brackets here and on the line above"
        raise to_error([Problem(name, *at, what, fix)]) from error
    except ConfigError:
        raise
    except (YAMLError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        # ruamel.yaml lets bare errors escape, e.g. for the escape \UFFFFFFFF
        what = f"not valid YAML: {printable(str(error), longest=200)}"
        fix = "look for an escape in double quotes that stands for no character"
        raise to_error([Problem(name, 1, 1, what, fix)]) from error


def _position_in(before: str) -> Position:
    lines = before.split("\n")
    return Position(len(lines), len(lines[-1]) + 1)


def _os_trouble(error: OSError | ValueError, shown: str = "the file") -> tuple[str, str]:
    if isinstance(error, FileNotFoundError):
        return f"{shown} does not exist", "check the path's spelling and the folder it starts from"
    said = error.strerror if isinstance(error, OSError) else str(error)
    return f"{shown} cannot be read: {said}", "check the path and its permissions"
