"""The system calls that make bytes durable, each in one place, so that a fault can be scripted at
every one of them (``runbook.faults``).

Rule: nothing else in this package writes, fsyncs or renames what must survive a crash.
"""

import os
from collections.abc import Callable
from pathlib import Path

Data = memoryview
Fault = Callable[[str, Path, Data], Data]
"""Called before each call with its name, what it acts on, and the bytes of a write; it returns the
bytes to write, raises the OSError to fail with, or does not return at all."""

fault: Fault | None = None
"""None but in a test or in ``selftest --chaos``."""
_NOTHING = Data(b"")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _before(call: str, path: Path, data: Data = _NOTHING) -> Data:
    return data if fault is None else fault(call, path, data)


def create(path: Path, mode: int = 0o666, *, append: bool = False) -> int:
    """A descriptor of a new file; FileExistsError where there is one, a link included."""
    _before("create", path)
    return os.open(path, _CREATE | (os.O_APPEND if append else 0), mode)


def write_all(fd: int, data: bytes, path: Path) -> None:
    """Write every byte: a single write may be short."""
    view = Data(data)
    while view:
        view = view[os.write(fd, _before("write", path, view)) :]


def fsync(fd: int, path: Path) -> None:
    _before("fsync", path)
    os.fsync(fd)


def fsync_path(path: Path) -> None:
    """Make an existing file's or folder's content durable."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fsync(fd, path)
    finally:
        os.close(fd)


def replace(source: Path, target: Path) -> None:
    _before("rename", target)
    source.replace(target)


def make_directory(path: Path) -> None:
    """One folder; no error where it exists."""
    _before("mkdir", path)
    path.mkdir(exist_ok=True)
