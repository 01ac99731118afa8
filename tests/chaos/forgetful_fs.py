"""The process that serves a ``Volume`` by FUSE; ``forgetful.py`` starts and ends it.

It prints ``mounted``, then obeys lines on its standard input: ``changes`` answers how many
changing calls arrived, ``fail N`` lets every later one fail with errno N (0 mends it), ``off N``
cuts the power before the N-th from then on. At the end of its input, that is, when its owner is
gone, it unmounts and exits. Locks are the kernel's.
"""

import argparse
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from chaos.platter import Inode, Platter, Volume

CANNOT_MOUNT = 3
"""Exit code where this machine refuses the mount."""
_BLOCKS = 1 << 20


class ForgetfulFilesystem(pyfuse3.Operations):  # type: ignore[misc]  # untyped where not installed
    """Translates FUSE requests; a file's handle is its inode's number."""

    def __init__(self, volume: Volume, off_at: int | None) -> None:
        super().__init__()
        self.changes = 0
        self.failing = 0
        self.off_at = off_at
        self._volume = volume
        self._listings: dict[int, tuple[int, list[str]]] = {}
        self._next_listing = 1

    @contextmanager
    def _change(self) -> Iterator[Volume]:
        """Count a changing call; cut the power before it, or let it fail, as ordered."""
        self.changes += 1
        if self.changes == self.off_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.failing:
            raise pyfuse3.FUSEError(self.failing)
        try:
            yield self._volume
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None

    async def lookup(self, folder: int, name: bytes, _ctx: Any) -> Any:
        try:
            return _attributes(self._volume.lookup(folder, os.fsdecode(name)))
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None

    async def getattr(self, number: int, _ctx: Any) -> Any:
        return _attributes(self._volume.inode(number))

    async def setattr(self, number: int, new: Any, fields: Any, _fh: Any, _ctx: Any) -> Any:
        with self._change() as volume:
            inode = volume.inode(number)
            if fields.update_uid or fields.update_gid:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            if fields.update_size:
                volume.truncate(number, new.st_size)
            if fields.update_mode:
                inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(new.st_mode)
            if fields.update_mtime:
                inode.changed_ns = new.st_mtime_ns
            return _attributes(inode)

    async def mkdir(self, folder: int, name: bytes, mode: int, ctx: Any) -> Any:
        with self._change() as volume:
            kind = stat.S_IFDIR | stat.S_IMODE(mode & ~ctx.umask)
            return _attributes(volume.create(folder, os.fsdecode(name), kind))

    async def create(self, folder: int, name: bytes, mode: int, _flags: int, ctx: Any) -> Any:
        with self._change() as volume:
            kind = stat.S_IFREG | stat.S_IMODE(mode & ~ctx.umask)
            inode = volume.create(folder, os.fsdecode(name), kind)
            return pyfuse3.FileInfo(fh=inode.number), _attributes(inode)

    async def link(self, number: int, folder: int, name: bytes, _ctx: Any) -> Any:
        with self._change() as volume:
            return _attributes(volume.link(number, folder, os.fsdecode(name)))

    async def symlink(self, _folder: int, _name: bytes, _target: bytes, _ctx: Any) -> Any:
        raise pyfuse3.FUSEError(errno.EPERM)

    async def mknod(self, _folder: int, _name: bytes, _mode: int, _rdev: int, _ctx: Any) -> Any:
        raise pyfuse3.FUSEError(errno.EPERM)

    async def unlink(self, folder: int, name: bytes, _ctx: Any) -> None:
        with self._change() as volume:
            volume.remove(folder, os.fsdecode(name))

    async def rmdir(self, folder: int, name: bytes, _ctx: Any) -> None:
        with self._change() as volume:
            volume.remove(folder, os.fsdecode(name))

    async def rename(
        self, folder: int, name: bytes, new_folder: int, new_name: bytes, flags: int, _ctx: Any
    ) -> None:
        with self._change() as volume:
            if flags:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            volume.rename(folder, os.fsdecode(name), new_folder, os.fsdecode(new_name))

    async def open(self, number: int, flags: int, _ctx: Any) -> Any:
        if flags & os.O_TRUNC:
            with self._change() as volume:
                volume.truncate(number, 0)
        return pyfuse3.FileInfo(fh=number)

    async def read(self, number: int, offset: int, size: int) -> bytes:
        return bytes(self._volume.inode(number).data[offset : offset + size])

    async def write(self, number: int, offset: int, data: bytes) -> int:
        with self._change() as volume:
            volume.write(number, offset, data)
            return len(data)

    async def flush(self, _number: int) -> None:
        """Closing a file makes nothing durable."""

    async def release(self, _number: int) -> None:
        """An inode stays in memory until the power is cut; its number is never used again."""

    async def fsync(self, number: int, _datasync: bool) -> None:
        with self._change() as volume:
            volume.sync_file(number)

    async def opendir(self, number: int, _ctx: Any) -> int:
        self._next_listing += 1
        self._listings[self._next_listing] = (number, [])
        return self._next_listing

    async def readdir(self, handle: int, start: int, token: Any) -> None:
        number, names = self._listings[handle]
        entries = self._volume.inode(number).entries
        if start == 0:
            names[:] = sorted(entries)
        for position, name in enumerate(names[start:], start + 1):
            if name in entries:
                attributes = _attributes(self._volume.inode(entries[name]))
                if not pyfuse3.readdir_reply(token, os.fsencode(name), attributes, position):
                    return

    async def releasedir(self, handle: int) -> None:
        del self._listings[handle]

    async def fsyncdir(self, handle: int, _datasync: bool) -> None:
        with self._change() as volume:
            volume.sync_folder(self._listings[handle][0])

    async def statfs(self, _ctx: Any) -> Any:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = _BLOCKS
        data.f_files = data.f_ffree = data.f_favail = _BLOCKS
        data.f_namemax = 255
        return data


def _attributes(inode: Inode) -> Any:
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = inode.number
    attributes.st_mode = inode.mode
    attributes.st_nlink = 2 if inode.is_folder and inode.links else inode.links
    attributes.st_uid, attributes.st_gid = os.getuid(), os.getgid()
    attributes.st_size = len(inode.data)
    attributes.st_blocks = -(-len(inode.data) // 512)
    attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = inode.changed_ns
    return attributes


def _obey(filesystem: ForgetfulFilesystem, mountpoint: str) -> None:
    """Answer the owner's lines until the owner is gone."""
    for line in sys.stdin:
        order, _, argument = line.strip().partition(" ")
        if order == "fail":
            filesystem.failing = int(argument)
        elif order == "off":
            filesystem.off_at = filesystem.changes + int(argument)
        sys.stdout.write(f"{filesystem.changes}\n")
        sys.stdout.flush()
    subprocess.run(["fusermount3", "-uzq", mountpoint], check=False)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("platter", type=Path)
    parser.add_argument("--seed")
    parser.add_argument("--off-at", type=int)
    arguments = parser.parse_args()
    volume = Volume(Platter(arguments.platter), arguments.seed)
    filesystem = ForgetfulFilesystem(volume, arguments.off_at)
    options = {*pyfuse3.default_options, "fsname=forgetful"}
    try:
        pyfuse3.init(filesystem, arguments.mountpoint, options)
    except RuntimeError:  # libfuse has said why on standard error
        sys.exit(CANNOT_MOUNT)
    threading.Thread(target=_obey, args=(filesystem, arguments.mountpoint), daemon=True).start()
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    trio.run(pyfuse3.main)


if __name__ == "__main__":
    main()
