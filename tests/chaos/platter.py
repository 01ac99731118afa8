"""A volume held twice: live, as processes see it, and durable, as a power cut leaves it.

The rule is as strict as POSIX allows. A file's bytes become durable when the file is fsynced, a
folder's entries when the folder is fsynced, and nothing else becomes durable by the way. The
durable half, the platter, is a folder of the real disk with one record per inode; the live half is
memory. So the end of the process that holds a ``Volume`` is the power cut.

With a seed, changes that nobody fsynced also reach the platter at random, sector by sector and
entry by entry, as a real disk may let them. A renamed file may then be left with both names, never
with neither. A folder has one durable name at any time: no disk has it under two.
"""

import errno
import json
import os
import random
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
ROOT = 1


@dataclass
class Inode:
    """A file or a folder as processes see it."""

    number: int
    mode: int
    """File type and permission bits."""
    data: bytearray = field(default_factory=bytearray)
    entries: dict[str, int] = field(default_factory=dict)
    """A folder's names and the inodes they lead to."""
    links: int = 0
    """How many names lead here."""
    changed_ns: int = field(default_factory=time.time_ns)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Platter:
    """The durable half: a record per inode, each replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def holds(self, number: int) -> bool:
        return self._record(number).exists()

    def store(self, inode: Inode, data: bytes | bytearray, entries: dict[str, int]) -> None:
        head = json.dumps({"mode": inode.mode, "entries": entries})
        temporary = self._record(inode.number).with_suffix(".new")
        temporary.write_bytes(head.encode() + b"\n" + data)
        temporary.replace(self._record(inode.number))

    def load(self, number: int) -> Inode:
        head, _, data = self._record(number).read_bytes().partition(b"\n")
        fields = json.loads(head)
        return Inode(number, fields["mode"], bytearray(data), fields["entries"])

    def numbers(self) -> list[int]:
        return [int(record.stem) for record in self._folder.glob("*.inode")]

    def forget(self, number: int) -> None:
        self._record(number).unlink()

    def _record(self, number: int) -> Path:
        return self._folder / f"{number}.inode"


class Volume:
    """What processes see, begun from what the platter holds.

    Methods raise OSError as the system calls of their names do.
    """

    def __init__(self, platter: Platter, seed: str | None = None) -> None:
        self._platter = platter
        self._random = None if seed is None else random.Random(seed)
        self._inodes: dict[int, Inode] = {}
        if not platter.holds(ROOT):
            platter.store(Inode(ROOT, stat.S_IFDIR | 0o755), b"", {})
        self._next = 1 + max(platter.numbers())
        self._mount(ROOT)
        for lost in set(platter.numbers()) - set(self._inodes):
            platter.forget(lost)

    def _mount(self, number: int) -> None:
        """Load what can be reached by durable names."""
        if number not in self._inodes:
            self._inodes[number] = self._platter.load(number)
            for child in self._inodes[number].entries.values():
                self._mount(child)
        self._inodes[number].links += 1

    def inode(self, number: int) -> Inode:
        return self._inodes[number]

    def lookup(self, folder: int, name: str) -> Inode:
        number = self._inodes[folder].entries.get(name)
        if number is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self._inodes[number]

    def create(self, folder: int, name: str, mode: int) -> Inode:
        """Make an empty file or folder, by the type in ``mode``."""
        inode = Inode(self._next, mode)
        self._next += 1
        self._inodes[inode.number] = inode
        self.link(inode.number, folder, name)
        return inode

    def link(self, number: int, folder: int, name: str) -> Inode:
        if name in self._inodes[folder].entries:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self._enter(folder, name, number)
        return self._inodes[number]

    def remove(self, folder: int, name: str) -> None:
        """Remove a file's name or an empty folder."""
        inode = self.lookup(folder, name)
        _refuse_full(inode)
        self._drop(folder, name, may_leak=True)

    def rename(self, folder: int, name: str, new_folder: int, new_name: str) -> None:
        inode = self.lookup(folder, name)
        replaced = self._inodes[new_folder].entries.get(new_name)
        if replaced is not None:
            _refuse_full(self._inodes[replaced])
            self._inodes[replaced].links -= 1
        leaked = self._enter(new_folder, new_name, inode.number)
        self._drop(folder, name, may_leak=leaked)

    def write(self, number: int, offset: int, data: bytes) -> None:
        inode = self._inodes[number]
        _put(inode.data, offset, data)
        inode.changed_ns = time.time_ns()
        for sector in self._leaking(offset, offset + len(data)):
            durable = self._durable(inode)
            _put(durable.data, sector, inode.data[sector : sector + SECTOR])
            self._platter.store(inode, durable.data, {})

    def truncate(self, number: int, size: int) -> None:
        inode = self._inodes[number]
        _resize(inode.data, size)
        inode.changed_ns = time.time_ns()
        if self._leaks():
            durable = self._durable(inode)
            _resize(durable.data, size)
            self._platter.store(inode, durable.data, {})

    def sync_file(self, number: int) -> None:
        """Make a file's bytes durable; its name is not."""
        inode = self._inodes[number]
        self._platter.store(inode, inode.data, {})

    def sync_folder(self, number: int) -> None:
        """Make a folder's entries durable; the bytes of what they lead to are not."""
        inode = self._inodes[number]
        for child in inode.entries.values():
            self._allot(child)
        self._store_entries(inode, inode.entries)

    def _enter(self, folder: int, name: str, number: int) -> bool:
        """Set a name, live; whether it reached the platter too."""
        inode = self._inodes[folder]
        inode.entries[name] = number
        inode.changed_ns = time.time_ns()
        self._inodes[number].links += 1
        leaked = self._leaks()
        if leaked:
            self._allot(number)
            names = self._durable(inode).entries
            if self._inodes[number].is_folder:
                names = {former: to for former, to in names.items() if to != number}
            self._store_entries(inode, {**names, name: number})
        return leaked

    def _drop(self, folder: int, name: str, *, may_leak: bool) -> None:
        inode = self._inodes[folder]
        self._inodes[inode.entries.pop(name)].links -= 1
        inode.changed_ns = time.time_ns()
        if may_leak and self._leaks():
            entries = self._durable(inode).entries
            entries.pop(name, None)
            self._platter.store(inode, b"", entries)

    def _store_entries(self, inode: Inode, entries: dict[str, int]) -> None:
        """Make names durable; a folder that one of them leads to loses its name elsewhere."""
        self._platter.store(inode, b"", entries)
        folders = {number for number in entries.values() if self._inodes[number].is_folder}
        for other in self._inodes.values():
            if other.is_folder and other is not inode and self._platter.holds(other.number):
                names = self._platter.load(other.number).entries
                kept = {name: number for name, number in names.items() if number not in folders}
                if kept != names:
                    self._platter.store(other, b"", kept)

    def _allot(self, number: int) -> None:
        """Give an inode an empty record, so that a durable name leads somewhere."""
        if not self._platter.holds(number):
            self._platter.store(self._inodes[number], b"", {})

    def _durable(self, inode: Inode) -> Inode:
        self._allot(inode.number)
        return self._platter.load(inode.number)

    def _leaks(self) -> bool:
        return self._random is not None and self._random.random() < 0.5

    def _leaking(self, start: int, end: int) -> Iterator[int]:
        """Offsets of those sectors of a range that reach the platter by themselves."""
        sectors = range(start - start % SECTOR, end, SECTOR)
        return (sector for sector in sectors if self._leaks())


def _refuse_full(inode: Inode) -> None:
    if inode.entries:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def _put(data: bytearray, offset: int, piece: bytes | bytearray) -> None:
    if len(data) < offset:
        _resize(data, offset)
    data[offset : offset + len(piece)] = piece


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))
