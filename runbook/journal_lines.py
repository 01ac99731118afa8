"""The journal's line: ``crc32 length json`` and a newline. Pure: bytes in, records out.

A last line shorter than it declares is what a crash leaves. Anything else that does not fit is
damage, named with its offset and never guessed at: a flipped newline between the last two lines
must not be taken for a torn tail.
"""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from runbook.artifacts import canonical_json, sha256_bytes
from runbook.contract import Json

MAX_LINE = 64 * 1024
_HEADER = re.compile(rb"([0-9a-f]{8}) ([1-9][0-9]{0,5}) ")
_HEADER_START = re.compile(rb"[0-9a-f]{0,8}|[0-9a-f]{8} |[0-9a-f]{8} [1-9][0-9]{0,5}")
_LONGEST_HEADER = 16
_FIELDS = {"epoch": int, "seq": int, "prev": str, "wall": str, "mono": float, "body": dict}


class DamageError(Exception):
    """Bytes that no writer of this journal left."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset
        self.what = what


@dataclass(frozen=True)
class Line:
    offset: int
    length: int
    record: Mapping[str, Json]
    """epoch, seq, prev, wall, mono, body."""
    sha256: str
    """Of the line, newline included."""


def encode(record: Mapping[str, Json]) -> bytes:
    """The record's line. Raises ValueError: it holds NaN or an infinity."""
    payload = canonical_json(dict(record)).encode()
    return b"%08x %d %s\n" % (zlib.crc32(payload), len(payload), payload)


def parse(data: bytes) -> tuple[list[Line], int]:
    """The whole lines of a file, and where they end; what lies behind is a torn tail.

    Raises:
        DamageError: something else than whole lines and one torn tail.
    """
    lines: list[Line] = []
    offset = 0
    while offset < len(data):
        line = _next(data, offset)
        if line is None:
            break
        lines.append(line)
        offset += line.length
    return lines, offset


def first(data: bytes) -> Line | None:
    """The first line; None where the file is empty or the line torn. Raises DamageError."""
    return _next(data, 0) if data else None


def _next(data: bytes, offset: int) -> Line | None:
    header = _HEADER.match(data, offset)
    rest = data[offset : offset + MAX_LINE]
    if header is None:
        if len(rest) < _LONGEST_HEADER and _HEADER_START.fullmatch(rest):
            return None
        raise DamageError(offset, "this is not the start of a line")
    end = header.end() + int(header[2]) + 1
    if end > len(data):
        if b"\n" in data[offset:]:
            raise DamageError(offset, "the line is longer than the file says")
        return None
    if data[end - 1 : end] != b"\n":
        raise DamageError(offset, "the line does not end where it says")
    payload = data[header.end() : end - 1]
    if zlib.crc32(payload) != int(header[1], 16):
        raise DamageError(offset, "the checksum does not match")
    return Line(offset, end - offset, _record(payload, offset), sha256_bytes(data[offset:end]))


def _record(payload: bytes, offset: int) -> Mapping[str, Json]:
    try:
        record = json.loads(payload)
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.keys() != _FIELDS.keys():
        raise DamageError(offset, f"a line has the fields {', '.join(_FIELDS)} and no others")
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(record[name], kind)]
    if wrong:
        raise DamageError(offset, f"the field {wrong[0]} is not a {_FIELDS[wrong[0]].__name__}")
    return record
