"""The journal's one writer: it claims an epoch, appends to that file alone, and is fenced.

Rule: acknowledged is durable, so an append returns after fsync; and a writer that another one
superseded acknowledges nothing. Nothing that is there is ever changed.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Self

from runbook import artifacts, durable, journal_lines
from runbook.clock import SYSTEM, Clock
from runbook.codec import encode
from runbook.contract import Json
from runbook.errors import LockedError, NeedsPersonError, RunbookError
from runbook.journal import (
    CLOSED,
    OPENED,
    Before,
    Entry,
    Reading,
    encode_head,
    epoch_of,
    read_journal,
)
from runbook.journal_lines import MAX_LINE
from runbook.owner import this_process
from runbook.workspace import Workspace


def _settle(reading: Reading) -> Before | None:
    """What the last epoch left, made durable: its writer may have died before its fsync."""
    if not reading.epochs:
        return None
    last = reading.epochs[-1]
    durable.fsync_path(last.path)
    data = last.path.read_bytes()
    sound, torn = data[: last.length], data[last.length :]
    return Before(
        last.number,
        last.length,
        artifacts.sha256_bytes(sound),
        len(torn),
        artifacts.sha256_bytes(torn),
    )


class Journal:
    """The writer, for as long as no other one opens a later epoch.

    Any failed append poisons it: after a failed fsync nobody knows what is on the disk, so the
    only way on is a new process that reads it again.
    """

    def __init__(
        self,
        workspace: Workspace,
        clock: Clock = SYSTEM,
        *,
        why: str = "start",
        reading: Reading | None = None,
    ) -> None:
        """Claim the next epoch; see ``runbook.takeover`` for who may.

        Args:
            workspace: where; its folders exist.
            clock: of each line's times.
            why: what the claim rests on, for the record.
            reading: what is there, where it was just read.

        Raises:
            CorruptError: bytes are not what was appended.
            LockedError: another process claimed it at the same moment.
        """
        self._workspace = workspace
        self._clock = clock
        self._refusal = ""
        self.projections: Mapping[str, str] = {}
        """What to say at the end of the files that show the journal: path -> SHA-256."""
        reading = reading or read_journal(workspace)
        self._claim()
        try:
            with artifacts.storage_errors(workspace.hidden):
                found = self._found_since(reading)
                before = _settle(found)
            self.entries = list(found.entries)
            self._lines = found.lines
            self._last = found.last_sha256
            opened = {"owner": encode(this_process()), "why": why, "before": encode(before)}
            self._write({"type": OPENED, **opened}, pin=True)
        except BaseException:
            self._release()
            raise

    def _claim(self) -> None:
        """Take the next epoch's number: from now on no other writer acknowledges a line."""
        with artifacts.storage_errors(self._workspace.hidden):
            self.epoch = max(self._segments(), default=0) + 1
            self._path = self._workspace.segment(self.epoch)
            self._next = self._workspace.segment(self.epoch + 1)
            try:
                self._fd = durable.create(self._path, 0o644, append=True)
            except FileExistsError:
                raise self._superseded() from None

    def _segments(self) -> set[int]:
        return {epoch_of(path.name) or 0 for path in self._workspace.hidden.iterdir()} - {0}

    def _found_since(self, reading: Reading) -> Reading:
        """The journal as the claim found it: others may have written since it was read."""
        known = {epoch.number for epoch in reading.epochs}
        known |= {epoch_of(path.name) or 0 for path in reading.strays}
        if self._segments() - {self.epoch} == known:
            last = reading.epochs[-1] if reading.epochs else None
            if last is None or len(last.path.read_bytes()) == last.length + len(last.behind):
                return reading
        return read_journal(self._workspace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, body: Mapping[str, Json], *, pin: bool = False) -> Entry:
        """Return once the body is durable; pinned, it can never go missing unnoticed.

        Raises:
            NeedsPersonError: the volume is full or failing.
            LockedError: another executor has taken the workspace over.
            RunbookError: an earlier append failed.
        """
        entry = self._write(body, pin=pin)
        self.entries.append(entry)
        return entry

    def _write(self, body: Mapping[str, Json], *, pin: bool) -> Entry:
        if self._refusal:
            raise RunbookError(
                f"the journal takes no more: {self._refusal}",
                where=str(self._path),
                fix="run the same command again; nothing committed is lost",
            )
        self.check_fence()
        line, entry = self._line(body)
        try:
            with artifacts.storage_errors(self._path):
                durable.write_all(self._fd, line, self._path)
                durable.fsync(self._fd, self._path)
                if body.get("type") == OPENED:
                    durable.fsync_path(self._path.parent)
            # Whoever claimed the next epoch by now may have read without this line.
            self.check_fence()
            self._lines += 1
            self._last = entry.sha256
            if pin:
                # Should it fail, the line stands and must be the last word until it is read again.
                head = encode_head(self.epoch, entry.seq, entry.sha256)
                artifacts.write_bytes(self._workspace.head(self.epoch), head)
        except BaseException as error:
            self._refusal = self._refusal or "an earlier line of it failed"
            if isinstance(error, FileNotFoundError):
                # Whoever took over has cleared up what was half written.
                self.check_fence()
            raise
        return entry

    def check_fence(self) -> None:
        """Raises LockedError: superseded; NeedsPersonError: the volume failed or went away."""
        with artifacts.storage_errors(self._path):
            if self._next.exists():
                raise self._superseded()
            if not self._path.exists():
                # Unmounted under the open file, which would take lines that no path leads to.
                raise NeedsPersonError(
                    "the journal is gone from where it was: the volume was unmounted or moved",
                    where=str(self._path),
                    fix="bring the volume back and run the same command; nothing committed is lost",
                )

    def _superseded(self) -> LockedError:
        self._refusal = "another executor has taken the workspace over"
        return LockedError(
            self._refusal,
            where=str(self._workspace.root),
            fix="leave it to that one; 'runbook status' shows it",
        )

    def _line(self, body: Mapping[str, Json]) -> tuple[bytes, Entry]:
        wall = datetime.fromtimestamp(self._clock.wall(), UTC).isoformat()
        mono = float(self._clock.monotonic())
        line = self._encode(body, wall, mono)
        if len(line) > MAX_LINE:
            content = artifacts.canonical_json(dict(body)).encode()
            digest = artifacts.sha256_bytes(content)
            artifacts.write_bytes(self._workspace.blobs / f"{digest}.json", content)
            line = self._encode({"type": body.get("type"), "blob": digest}, wall, mono)
        sha256 = artifacts.sha256_bytes(line)
        return line, Entry(self._lines, self.epoch, wall, mono, dict(body), sha256)

    def _encode(self, body: Mapping[str, Json], wall: str, mono: float) -> bytes:
        return journal_lines.encode(
            {
                "epoch": self.epoch,
                "seq": self._lines,
                "prev": self._last,
                "wall": wall,
                "mono": mono,
                "body": dict(body),
            }
        )

    def close(self) -> None:
        """Say that the writer ended, so that the next one need not ask whether it is gone."""
        if self._fd < 0:
            return
        if not self._refusal:
            with suppress(OSError, RunbookError):
                self._write({"type": CLOSED, "projections": dict(self.projections)}, pin=True)
        self._release()

    def _release(self) -> None:
        """Every line was fsynced, so a volume that fails at the close takes nothing away."""
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1
