"""The durable append-only log, the only truth: everything shown is a projection of it.

A line is ``crc32 length json`` and a newline; the JSON holds its sequence number, the SHA-256 of
the line before, the wall time and the body. Acknowledged is durable: an append returns after
fsync. A last line shorter than it declares is what a crash leaves and is set aside; anything else
that does not fit is refused with its byte offset, never guessed. HEAD names a line that must be
there, so that a journal cut at a line's end is noticed too.
"""

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from runbook import artifacts
from runbook import events as ev
from runbook.contract import Committed, Json
from runbook.errors import CorruptError, RunbookError
from runbook.workspace import Workspace

MAX_LINE = 64 * 1024
GENESIS = "0" * 64
_HEADER = re.compile(rb"([0-9a-f]{8}) ([1-9][0-9]{0,5}) ")
_HEADER_START = re.compile(rb"[0-9a-f]{0,8}|[0-9a-f]{8} |[0-9a-f]{8} [1-9][0-9]{0,5}")

Clock = Callable[[], float]
"""Seconds since the epoch."""


@dataclass(frozen=True)
class Entry:
    seq: int
    wall: str
    """UTC, ISO 8601."""
    body: Mapping[str, Json]
    sha256: str
    """Of the line, newline included."""


def read_entries(workspace: Workspace) -> tuple[Entry, ...]:
    """The whole journal, verified; nothing where there is none. Needs no lock.

    Raises:
        CorruptError: bytes are not what was appended.
    """
    return _read(workspace)[0]


def _read(workspace: Workspace) -> tuple[tuple[Entry, ...], int, bytes]:
    """The entries, the length of the sound part, and the torn tail behind it."""
    head = _read_head(workspace)
    try:
        data = workspace.journal.read_bytes()
    except FileNotFoundError:
        data = b""
    entries: list[Entry] = []
    offset = 0
    while offset < len(data):
        line = _next_line(workspace, data, offset)
        if line is None:
            break
        previous = entries[-1].sha256 if entries else GENESIS
        entries.append(_parse(workspace, line, offset, len(entries), previous))
        offset += len(line)
    _check_head(workspace, head, entries, offset)
    return tuple(entries), offset, data[offset:]


def _next_line(workspace: Workspace, data: bytes, offset: int) -> bytes | None:
    """The line at this offset; None where it is a torn tail."""
    header = _HEADER.match(data, offset)
    rest = data[offset : offset + MAX_LINE]
    if header is None:
        if len(rest) < 16 and _HEADER_START.fullmatch(rest):
            return None
        raise _corrupt(workspace, offset, "this is not the start of a line")
    end = header.end() + int(header[2]) + 1
    if end > len(data):
        if b"\n" in data[offset:]:
            raise _corrupt(workspace, offset, "the line is longer than the file says")
        return None
    if data[end - 1 : end] != b"\n":
        raise _corrupt(workspace, offset, "the line does not end where it says")
    return data[offset:end]


def _parse(workspace: Workspace, line: bytes, offset: int, seq: int, previous: str) -> Entry:
    header = _HEADER.match(line)
    assert header is not None
    payload = line[header.end() : -1]
    if zlib.crc32(payload) != int(header[1], 16):
        raise _corrupt(workspace, offset, "the checksum does not match")
    record = json.loads(payload)
    if record["seq"] != seq:
        raise _corrupt(workspace, offset, f"line {record['seq']} stands in place of line {seq}")
    if record["prev"] != previous:
        raise _corrupt(workspace, offset, "the line before it is not the one it was written after")
    body = _resolve(workspace, record["body"], offset)
    return Entry(seq, record["wall"], body, artifacts.sha256_bytes(line))


def _resolve(workspace: Workspace, body: Json, offset: int) -> Mapping[str, Json]:
    """The body itself, or the one that a reference names."""
    if "blob" not in body:
        return dict(body)
    path = workspace.blobs / f"{body['blob']}.json"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise _corrupt(workspace, offset, f"its content {path} is missing") from None
    if artifacts.sha256_bytes(data) != body["blob"]:
        raise _corrupt(workspace, offset, f"its content {path} was changed")
    return dict(json.loads(data))


def _read_head(workspace: Workspace) -> Mapping[str, Json] | None:
    try:
        data = workspace.head.read_bytes()
    except FileNotFoundError:
        return None
    try:
        head = json.loads(data)
        return {"seq": int(head["seq"]), "sha256": str(head["sha256"])}
    except (ValueError, KeyError, TypeError):
        raise CorruptError(
            "HEAD cannot be read",
            where=str(workspace.head),
            fix="restore it from a copy; delete it only if the journal is known to be whole",
        ) from None


def _check_head(
    workspace: Workspace, head: Mapping[str, Json] | None, entries: list[Entry], offset: int
) -> None:
    if head is None:
        return
    if head["seq"] >= len(entries):
        raise _corrupt(workspace, offset, f"the journal ends before line {head['seq']}")
    if entries[head["seq"]].sha256 != head["sha256"]:
        raise _corrupt(workspace, offset, f"line {head['seq']} is not the one HEAD names")


def _corrupt(workspace: Workspace, offset: int, what: str) -> CorruptError:
    return CorruptError(
        what,
        where=f"{workspace.journal}, byte {offset}",
        fix="restore the journal from a copy; it is never mended by guessing",
    )


def facts(entries: Sequence[Entry]) -> tuple[ev.Event, ...]:
    """What happened, in order. Raises CorruptError for what this version does not know."""
    return tuple(ev.from_body(entry.body) for entry in entries)


def batches(entries: Sequence[Entry], step: str, attempt: int) -> dict[str, Committed]:
    """The committed batches of one attempt, by key, in the order of their commit."""
    found: dict[str, Committed] = {}
    for fact in facts(entries):
        match fact:
            case ev.BatchCommitted(step=s, attempt=a) as batch if (s, a) == (step, attempt):
                found[batch.key] = Committed(batch.key, batch.path, batch.sha256, batch.records)
            case _:
                pass
    return found


def seconds_spent(entries: Sequence[Entry]) -> float:
    """Wall time in which an executor was at work, up to the last line of each of its runs."""
    total = 0.0
    begin: datetime | None = None
    last: datetime | None = None
    for entry in entries:
        now = datetime.fromisoformat(entry.wall)
        if entry.body["type"] in ("SessionStarted", "SessionResumed"):
            total += _between(begin, last)
            begin = now
        if entry.body["type"] != "ReviewDecided":
            # A person decides while no executor runs.
            last = now
    return total + _between(begin, last)


def _between(begin: datetime | None, end: datetime | None) -> float:
    return max(0.0, (end - begin).total_seconds()) if begin and end else 0.0


class Journal:
    """The writer. Its caller holds the workspace's lock.

    Any failed append poisons it: after a failed fsync nobody knows what is on the disk, so the
    only way on is a new process that reads it again.
    """

    def __init__(self, workspace: Workspace, clock: Clock) -> None:
        self._workspace = workspace
        self._clock = clock
        self._poisoned = False
        self._fd = -1
        entries, sound, torn = _read(workspace)
        self.entries = list(entries)
        self._open(sound, torn)

    def _open(self, sound: int, torn: bytes) -> None:
        path = self._workspace.journal
        with artifacts.storage_errors(path):
            if torn:
                # The evidence first: the cut cannot be undone.
                name = f"{sound}_{artifacts.sha256_bytes(torn)[:12]}"
                artifacts.write_bytes(self._workspace.torn / name, torn)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o644)
            if torn:
                os.ftruncate(self._fd, sound)
            os.fsync(self._fd)
            artifacts.fsync_directory(path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, body: Mapping[str, Json], *, pin: bool = False) -> Entry:
        """Return once the body is durable; pinned, it can never go missing unnoticed.

        Raises:
            NeedsPersonError: the volume is full or failing.
            RunbookError: an earlier append failed.
        """
        if self._poisoned:
            raise RunbookError(
                "the journal refused an earlier line, so it takes no more",
                where=str(self._workspace.journal),
                fix="run the same command again; nothing committed is lost",
            )
        line, wall = self._line(body)
        try:
            with artifacts.storage_errors(self._workspace.journal):
                artifacts.write_all(self._fd, line)
                os.fsync(self._fd)
        except BaseException:
            self._poisoned = True
            raise
        entry = Entry(len(self.entries), wall, dict(body), artifacts.sha256_bytes(line))
        self.entries.append(entry)
        if pin:
            self._pin(entry)
        return entry

    def _pin(self, entry: Entry) -> None:
        try:
            artifacts.write_json(self._workspace.head, {"seq": entry.seq, "sha256": entry.sha256})
        except BaseException:
            # The line stands, and what it says must be the last word until it is read again.
            self._poisoned = True
            raise

    def _line(self, body: Mapping[str, Json]) -> tuple[bytes, str]:
        wall = datetime.fromtimestamp(self._clock(), UTC).isoformat()
        line = self._encode(body, wall)
        if len(line) > MAX_LINE:
            content = artifacts.canonical_json(dict(body)).encode()
            digest = artifacts.sha256_bytes(content)
            artifacts.write_bytes(self._workspace.blobs / f"{digest}.json", content)
            line = self._encode({"type": body.get("type"), "blob": digest}, wall)
        return line, wall

    def _encode(self, body: Mapping[str, Json], wall: str) -> bytes:
        record = {
            "seq": len(self.entries),
            "prev": self.entries[-1].sha256 if self.entries else GENESIS,
            "wall": wall,
            "body": dict(body),
        }
        payload = artifacts.canonical_json(record).encode()
        return b"%08x %d %s\n" % (zlib.crc32(payload), len(payload), payload)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
