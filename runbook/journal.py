"""The durable append-only log, the only truth: everything shown is a projection of it.

Each writer opens a file of its own, one per epoch, created exclusively: that is the claim to the
workspace. Its first line says how long the file of the epoch before was and what it hashed to, so
whatever a superseded writer adds to that later, and whatever a crash left half written, is
evidence and never state. Nothing is ever cut or mended.

HEAD names a line that must be there, so that a journal cut at a line's end is noticed too. Here it
is read; see ``runbook.journal_lines`` for the line and ``runbook.journal_writer`` for the writer.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from runbook import artifacts, journal_lines, regular_files
from runbook import events as ev
from runbook.codec import decode
from runbook.contract import Committed, Json
from runbook.errors import CorruptError
from runbook.journal_lines import DamageError, Line
from runbook.owner import Owner
from runbook.workspace import Workspace

GENESIS = "0" * 64
OPENED = "EpochOpened"
CLOSED = "EpochClosed"
_NAME = re.compile(r"(journal\.jsonl|HEAD)|(?:journal|HEAD)\.([1-9][0-9]{0,8})(?:\.jsonl)?")


@dataclass(frozen=True)
class Entry:
    """A line that says something of the session."""

    seq: int
    epoch: int
    wall: str
    """UTC, ISO 8601."""
    mono: float
    """Monotonic seconds; comparable within an epoch alone."""
    body: Mapping[str, Json]
    sha256: str
    """Of the line, newline included."""


@dataclass(frozen=True)
class Before:
    """What a writer found of the epoch before its own."""

    epoch: int
    length: int
    """Of its sound part, in bytes: what lies behind is not of the journal."""
    sha256: str
    """Of the sound part."""
    torn_length: int
    """Behind the sound part, when it was read: a line that a crash cut short."""
    torn_sha256: str


@dataclass(frozen=True)
class Epoch:
    """One writer's time."""

    number: int
    path: Path
    owner: Owner
    why: str
    """Why it opened: 'start', 'resume', or what a takeover rests on."""
    opened: str
    """UTC, ISO 8601."""
    before: Before | None
    closed: bool
    """Whether its writer ended it. One that did not was killed, or is still at work."""
    length: int
    """Of the sound part, in bytes."""
    behind: bytes
    """Behind the sound part: a torn line, or what a superseded writer added."""
    projections: Mapping[str, str]
    """What its writer showed last of the journal: path in the workspace -> SHA-256."""


@dataclass(frozen=True)
class Reading:
    entries: tuple[Entry, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    strays: tuple[Path, ...] = ()
    """Files of claims that came to nothing."""
    last_sha256: str = GENESIS
    lines: int = 0

    @property
    def holder(self) -> Owner | None:
        """The writer that did not end its epoch; None where the workspace is free."""
        newest = self.epochs[-1] if self.epochs else None
        return newest.owner if newest and not newest.closed else None


def read_journal(workspace: Workspace) -> Reading:
    """All of it, verified. Needs no lock: a writer at work is read up to its last whole line.

    Raises:
        CorruptError: bytes are not what was appended.
    """
    return _Reader(workspace).read()


def read_entries(workspace: Workspace) -> tuple[Entry, ...]:
    """What was said of the session; nothing where there is no journal. Raises CorruptError."""
    return read_journal(workspace).entries


class _Reader:
    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._data: dict[int, bytes] = {}
        self._heads: dict[int, bytes] = {}
        self._entries: list[Entry] = []
        self._epochs: list[Epoch] = []
        self._lines: list[str] = []
        """The hash of each line so far."""

    def read(self) -> Reading:
        self._find()
        chain = self._chain()
        for (number, opening), following in zip(chain, [*chain, None][1:], strict=True):
            before = _before(following[1]) if following else None
            self._read_epoch(number, opening, before)
        known = {number for number, _ in chain}
        if lost := sorted(self._heads.keys() - known):
            # A writer whose claim counted, since it pinned a line, and that no later one has seen.
            raise self._corrupt(lost[0], 0, f"epoch {lost[0]} is in no later epoch's past")
        strays = tuple(self._workspace.segment(n) for n in sorted(self._data) if n not in known)
        last = self._lines[-1] if self._lines else GENESIS
        return Reading(tuple(self._entries), tuple(self._epochs), strays, last, len(self._lines))

    def _find(self) -> None:
        try:
            names = [path.name for path in self._workspace.hidden.iterdir()]
        except FileNotFoundError:
            return
        numbers = {number for name in names if (number := epoch_of(name))}
        # First the heads: a writer at work adds lines meanwhile, and a head must find its own.
        for found, path_of in (
            (self._heads, self._workspace.head),
            (self._data, self._workspace.segment),
        ):
            for number in numbers:
                path = path_of(number)
                with suppress(FileNotFoundError), artifacts.storage_errors(path):
                    found[number] = regular_files.read(path)

    def _chain(self) -> list[tuple[int, Line]]:
        """The epochs that count, oldest first, each with its first line."""
        newest = max([*self._data, *self._heads], default=0)
        while newest and newest not in self._heads and not self._opening(newest):
            # A claim that was never opened: the file is empty, or its first line torn.
            newest -= 1
        chain: list[tuple[int, Line]] = []
        number: int | None = newest or None
        while number is not None:
            opening = self._opening(number)
            if opening is None:
                lost = "is missing" if number not in self._data else "has lost its first line"
                raise self._corrupt(number, 0, f"the journal of epoch {number} {lost}")
            chain.insert(0, (number, opening))
            before = _before(opening)
            number = before.epoch if before else None
        return chain

    def _opening(self, number: int) -> Line | None:
        try:
            line = journal_lines.first(self._data.get(number, b""))
        except DamageError as damage:
            raise self._corrupt(number, damage.offset, damage.what) from None
        if line and line.record["body"].get("type") != OPENED:
            raise self._corrupt(number, 0, "its first line does not open an epoch")
        return line

    def _read_epoch(self, number: int, opening: Line, cut: Before | None) -> None:
        data = self._data[number]
        sound = data if cut is None else data[: cut.length]
        lines, end = self._parse(number, sound)
        if cut is not None:
            self._check_cut(number, cut, data, end)
        for line in lines:
            self._take(number, line)
        self._check_head(number, lines, end)
        body, last = opening.record["body"], lines[-1].record["body"]
        self._epochs.append(
            Epoch(
                number,
                self._workspace.segment(number),
                decode(Owner, body["owner"]),
                body["why"],
                opening.record["wall"],
                _before(opening),
                closed=last.get("type") == CLOSED,
                length=end,
                behind=data[end:],
                projections=last.get("projections", {}),
            )
        )

    def _parse(self, number: int, data: bytes) -> tuple[list[Line], int]:
        try:
            return journal_lines.parse(data)
        except DamageError as damage:
            raise self._corrupt(number, damage.offset, damage.what) from None

    def _check_cut(self, number: int, cut: Before, data: bytes, end: int) -> None:
        if end < cut.length:
            what = f"{cut.length} bytes stood here when the next epoch opened"
            raise self._corrupt(number, end, what)
        if artifacts.sha256_bytes(data[:end]) != cut.sha256:
            raise self._corrupt(number, 0, "these are not the lines that the next epoch found")

    def _take(self, number: int, line: Line) -> None:
        """Check the line's place in the chain, and keep what it says of the session."""
        record, offset = line.record, line.offset
        previous = self._lines[-1] if self._lines else GENESIS
        if record["seq"] != len(self._lines):
            what = f"line {record['seq']} stands in place of line {len(self._lines)}"
            raise self._corrupt(number, offset, what)
        if record["prev"] != previous:
            what = "the line before it is not the one it was written after"
            raise self._corrupt(number, offset, what)
        if record["epoch"] != number:
            raise self._corrupt(number, offset, f"this line is of epoch {record['epoch']}")
        self._lines.append(line.sha256)
        if record["body"].get("type") in (OPENED, CLOSED):
            return
        body = self._resolve(record["body"], number, offset)
        entry = Entry(record["seq"], number, record["wall"], record["mono"], body, line.sha256)
        self._entries.append(entry)

    def _resolve(self, body: Mapping[str, Json], number: int, offset: int) -> Mapping[str, Json]:
        """The body itself, or the one that a reference names."""
        if "blob" not in body:
            return body
        path = self._workspace.blobs / f"{body['blob']}.json"
        try:
            data = regular_files.read(path)
        except FileNotFoundError:
            raise self._corrupt(number, offset, f"its content {path} is missing") from None
        if artifacts.sha256_bytes(data) != body["blob"]:
            raise self._corrupt(number, offset, f"its content {path} was changed")
        return dict(json.loads(data))

    def _check_head(self, number: int, lines: Sequence[Line], end: int) -> None:
        head = self._workspace.head(number)
        if number not in self._heads:
            # A writer that began a moment ago made it since.
            if len(lines) > 1 and not head.exists():
                raise CorruptError(
                    "HEAD is missing, so nothing vouches for the journal's end",
                    where=str(head),
                    fix="restore it from a copy",
                )
            return
        seq, sha256 = _parse_head(self._heads[number], head, number)
        if seq >= len(self._lines):
            what = f"the journal ends before line {seq}, which {head.name} names"
            raise self._corrupt(number, end, what)
        if seq < len(self._lines) - len(lines) or self._lines[seq] != sha256:
            raise self._corrupt(number, end, f"line {seq} is not the one {head.name} names")

    def _corrupt(self, number: int, offset: int, what: str) -> CorruptError:
        return CorruptError(
            what,
            where=f"{self._workspace.segment(number)}, byte {offset}",
            fix="restore the journal from a copy; it is never mended by guessing",
        )


def epoch_of(name: str) -> int | None:
    """Which epoch a file of this name in ``.runbook/`` belongs to; None: not the journal's."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found[2] or 1)


def _before(opening: Line) -> Before | None:
    before = opening.record["body"]["before"]
    return None if before is None else decode(Before, before)


def encode_head(epoch: int, seq: int, sha256: str) -> bytes:
    return artifacts.indented_json({"epoch": epoch, "seq": seq, "sha256": sha256}).encode()


def _parse_head(data: bytes, path: Path, epoch: int) -> tuple[int, str]:
    """Which line it names: number and hash. Raises CorruptError."""
    try:
        head = json.loads(data)
        found = int(head["epoch"]), int(head["seq"]), str(head["sha256"])
        whole = encode_head(*found) == data
    except (ValueError, KeyError, TypeError):
        found, whole = (0, 0, ""), False
    if found[0] != epoch or not whole:
        fix = "restore it from a copy"
        raise CorruptError("HEAD cannot be read", where=str(path), fix=fix)
    return found[1:]


def facts(entries: Sequence[Entry]) -> tuple[ev.Event, ...]:
    """What happened, in order. Raises CorruptError for what this version does not know."""
    return tuple(ev.from_body(entry.body) for entry in entries)


def batches(entries: Sequence[Entry], step: str, attempt: int) -> dict[str, Committed]:
    """The committed batches of one attempt, by key, in the order of their commit.

    Raises CorruptError for one that this version does not know.
    """
    mine = (
        entry.body
        for entry in entries
        if entry.body.get("type") == ev.BatchCommitted.__name__ and entry.body.get("step") == step
    )
    found: dict[str, Committed] = {}
    for batch in map(ev.from_body, mine):
        if isinstance(batch, ev.BatchCommitted) and batch.attempt == attempt:
            found[batch.key] = Committed(batch.key, batch.path, batch.sha256, batch.records)
    return found


def seconds_before(entries: Sequence[Entry], step: str, attempt: int, look: int) -> float:
    """Monotonic time that the earlier runs of this look took, each up to its last known line.

    The newest run is not counted: who asks has it at hand.
    """
    mine = (step, attempt, look)
    stretches: list[list[Entry]] = []
    for entry in entries:
        body = entry.body
        if body["type"] == ev.StepStarted.__name__:
            at_work = (body["step"], body["attempt"], body["look"]) == mine
            stretches.append([entry] if at_work else [])
        elif stretches and stretches[-1] and stretches[-1][-1].epoch == entry.epoch:
            stretches[-1].append(entry)
            if body["type"] == ev.StepInterrupted.__name__:
                stretches.append([])
    found = [stretch for stretch in stretches if stretch]
    return sum(stretch[-1].mono - stretch[0].mono for stretch in found[:-1])


def seconds_spent(entries: Sequence[Entry]) -> float:
    """Monotonic time in which an executor was at work, up to the last line of each of its runs."""
    return sum(last - first for first, last in _runs(entries))


def _runs(entries: Sequence[Entry]) -> Iterator[tuple[float, float]]:
    """Begin and end of each executor's time; a person decides while none is at work."""
    for _, epoch in groupby(entries, key=lambda entry: entry.epoch):
        mine = list(epoch)
        if any(e.body["type"] in ("SessionStarted", "SessionResumed") for e in mine):
            yield mine[0].mono, mine[-1].mono
