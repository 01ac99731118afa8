"""Where the meters' records lie, and who reads them.

Rule: they lie in a folder of this machine that is not on the workspace's volume. Each meter has a
record of its own, numbered; the newest is the workspace's.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from runbook.codec import decode
from runbook.errors import ConfigError
from runbook.meter_record import MeterRecord
from runbook.regular_files import open_to_append

STATE_DIR = "RUNBOOK_STATE_DIR"
_PLACES = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a folder of our own there, checked
_MAX_LOG_BYTES = 1 << 20


@dataclass(frozen=True)
class MeterRecords:
    """The records of one workspace's meters. Another machine's meters are not seen."""

    folder: Path
    key: str
    """Names the workspace in the names of its files."""

    @classmethod
    def of(cls, workspace: Path) -> "MeterRecords":
        """Raises ConfigError as ``state_folder`` does."""
        return cls(state_folder(workspace), _key(workspace))

    @classmethod
    def find(cls, workspace: Path) -> "MeterRecords | None":
        """As ``of``, where there is such a folder already and it is ours; makes nothing."""
        try:
            folder = _place(workspace)
            _check_owner(folder)
        except (ConfigError, OSError):
            return None
        return cls(folder, _key(workspace))

    def all(self) -> Iterator[tuple[Path, MeterRecord | None]]:
        """Newest first; None where a file holds no record, as that of a meter that just started."""
        found = self.folder.glob(f"{self.key}.*.meter.json")
        numbered = [path for path in found if path.name.split(".")[1].isdecimal()]
        for path in sorted(numbered, key=_number, reverse=True):
            yield path, read_record(path)

    def newest(self) -> MeterRecord | None:
        """The record of the newest meter, dead or alive; None where there is none.

        ``former`` is the newest earlier one that was asked to stop the pod.
        """
        records = [record for _, record in self.all() if record]
        if not records:
            return None
        former = next((record for record in records[1:] if record.stop), None)
        return replace(records[0], former=former)

    def claim(self) -> Path:
        """A new record's file, empty; of the older the newest is kept, and the newest with a stop.

        Raises OSError.
        """
        older = list(self.all())
        newest = _number(older[0][0]) if older else 0
        path = self.folder / f"{self.key}.{newest + 1}.meter.json"
        path.open("xb").close()
        stops = [old for old, record in older if record and record.stop]
        kept = {old for old, _ in older[:1]} | set(stops[:1])
        for old, _ in older:
            if old not in kept:
                old.unlink(missing_ok=True)
        return path

    def open_log(self) -> BinaryIO:
        """The file for what the meters say, at its end; a long one begins anew. Raises OSError."""
        path = self.folder / f"{self.key}.meter.log"
        log = open_to_append(path, 0o600)
        if log.tell() > _MAX_LOG_BYTES:
            log.truncate(0)
        return log


def _key(workspace: Path) -> str:
    return hashlib.sha256(str(workspace.resolve()).encode()).hexdigest()[:16]


def _number(path: Path) -> int:
    return int(path.name.split(".")[1])


def read_record(path: Path) -> MeterRecord | None:
    """None where the file cannot be read or holds no record."""
    try:
        return decode(MeterRecord, json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def state_folder(workspace: Path) -> Path:
    """The folder for the meters' records, made where it is missing; for this user alone.

    RUNBOOK_STATE_DIR names it. Else it is the first of fixed places that is not on the workspace's
    volume: they depend on nothing that differs from login to login, so that a later executor finds
    the earlier one's meter.

    Raises:
        ConfigError: it lies in the workspace, is a link, is not ours or open to others.
    """
    folder = _place(workspace)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(folder)
    except OSError as error:
        raise ConfigError(
            f"the meter's folder cannot be made: {error.strerror}",
            where=str(folder),
            fix=f"set {STATE_DIR} to a folder on a disk of this machine",
        ) from error
    return folder


def _place(workspace: Path) -> Path:
    named = os.environ.get(STATE_DIR)
    if not named:
        return _default_folder(workspace)
    folder = Path(named)
    if not folder.is_absolute() or folder.resolve().is_relative_to(workspace.resolve()):
        raise ConfigError(
            "the meter's folder must be an absolute path outside the workspace",
            where=f"{STATE_DIR}={named}",
            fix="name a folder on a disk of this machine",
        )
    return folder


def _default_folder(workspace: Path) -> Path:
    volume = volume_of(workspace)
    for place in map(Path, _PLACES):
        if place.is_dir() and os.access(place, os.W_OK) and not is_within(place, volume):
            return place / f"runbook-{os.geteuid()}"
    raise ConfigError(
        f"none of {', '.join(_PLACES)} can hold the meter's record off the workspace's volume",
        where=str(volume),
        fix=f"set {STATE_DIR} to a folder on a disk of this machine",
    )


def _check_owner(folder: Path) -> None:
    """Raises ConfigError: others may write there; OSError: it cannot be looked at."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        what, fix = "is a link or no folder", "remove it"
    elif found.st_uid != os.geteuid():
        what, fix = "belongs to another user", f"set {STATE_DIR} to a folder of your own"
    elif found.st_mode & 0o077:
        what, fix = "is open to other users", f"chmod 700 {folder}"
    else:
        return
    raise ConfigError(f"the meter's folder {what}", where=str(folder), fix=fix)


def volume_of(workspace: Path) -> Path:
    """Mount point of the workspace; the workspace itself where that is the root."""
    root = workspace.resolve()
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        mounts = []
    points = (Path(_unescape(line.split(" ")[4])) for line in mounts)
    above = [point for point in points if root.is_relative_to(point)]
    point = max(above, key=lambda path: len(path.parts), default=Path("/"))
    return root if point == Path("/") else point


def _unescape(field: str) -> str:
    """A blank, tab, newline and backslash stand as octal numbers in the mount table."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def is_within(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) or path.resolve().is_relative_to(folder)
