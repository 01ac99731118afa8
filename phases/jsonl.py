"""Files of rows that a person hands in: one JSON object a line, read as data and within bounds.

Rule: what could hang, surprise or move a cursor is refused with its line: what is no regular file,
lines and files without end, bytes that are no UTF-8, a key twice in one object, numbers that are
not finite. What a row means is for whoever reads it.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from runbook.contract import Json
from runbook.errors import ConfigError

MAX_FILE: Final = 64 << 20
"""Bytes of a file: all of its rows are held in memory."""
MAX_LINE: Final = 1 << 20
"""Bytes of a line."""

Row = TypeVar("Row", bound=BaseModel)


def read_lines(path: Path, max_file: int = MAX_FILE) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1; without its end, and without a byte order mark.

    Args:
        path: the file.
        max_file: bytes that it may have.

    Raises:
        ConfigError: names the file or file:line.
    """
    try:
        # A pipe must not be waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            _check_file(path, os.fstat(fd), max_file)
            yield from _decoded(path, file)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        what = f"not readable as UTF-8 text ({said})"
        raise ConfigError(what, where=str(path), fix="check the path") from error


def parse_row(model: type[Row], line: str) -> Row:
    """One line as a row.

    Raises:
        ValueError: what is wrong with it, printable and on one line.
    """
    try:
        row = model.model_validate_json(line)
        _check_json(line)
    except ValidationError as error:
        told = (
            f"{'.'.join(map(str, e['loc'])) or 'the row'}: {e['msg']}"
            for e in error.errors(include_url=False)
        )
        raise ValueError(_printable("; ".join(told))) from error
    except RecursionError as error:
        raise ValueError("the row: nested too deeply") from error
    except ValueError as error:
        raise ValueError(_printable(f"the row: {error}")) from error
    return row


def _check_file(path: Path, found: os.stat_result, max_file: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = "not readable as UTF-8 text (it is no regular file)"
        raise ConfigError(what, where=str(path), fix="name a file on disk, not a folder or a pipe")
    if found.st_size > max_file:
        what = f"the file has {found.st_size} bytes, more than {max_file}"
        raise ConfigError(what, where=str(path), fix="take a sample of it")


def _decoded(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
        if len(line) > MAX_LINE:
            what = f"the line is longer than {MAX_LINE} bytes"
            raise ConfigError(what, where=f"{path}:{number}", fix="write one row a line")
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            odd = f"byte 0x{line[error.start]:02x} in line {number}"
            what = f"not readable as UTF-8 text ({odd})"
            raise ConfigError(what, where=str(path), fix="save the file as UTF-8") from error
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _check_json(line: str) -> None:
    """What a reader that takes the last of two keys, or NaN for a number, would pass over."""
    json.loads(
        line,
        object_pairs_hook=_refuse_doubles,
        parse_constant=_refuse_constant,
        parse_float=_finite,
    )


def _refuse_doubles(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no finite number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def _printable(text: str, longest: int = 500) -> str:
    """With nothing in it that a terminal acts on: keys and texts of a row are foreign."""
    cut = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
