"""The system calls that make bytes durable, each in one place, so that a fault can be scripted at
every one of them (``runbook.faults``).

Rules: nothing else in this package writes, fsyncs or renames what must survive a crash; and nothing
new is made in a workspace whose volume was unmounted, since it would land on the bare folder.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runbook.contract import MARK

Data = memoryview
Fault = Callable[[str, Path, Data], Data]
"""Called before each call with its name, what it acts on, and the bytes of a write; it returns the
bytes to write, raises the OSError to fail with, or does not return at all."""

fault: Fault | None = None
"""None but in a test or in ``selftest --chaos``."""
_NOTHING = Data(b"")
_held: dict[Path, int] = {}
"""Workspaces that this process works on -> the device they are on."""
_fences: dict[Path, Callable[[], None]] = {}
"""Workspaces that this process writes -> raises where another process has taken over."""
_GONE = -1
"""The device of a workspace that was not there when this process first looked."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _before(call: str, path: Path, data: Data = _NOTHING) -> Data:
    return data if fault is None else fault(call, path, data)


@contextmanager
def holding(root: Path) -> Iterator[None]:
    """Within it nothing new is made below a folder that is no longer on the device it is on now."""
    _held[root] = root.stat().st_dev
    try:
        yield
    finally:
        _held.pop(root, None)


@contextmanager
def fenced(root: Path, check: Callable[[], None]) -> Iterator[None]:
    """Within it no file below a folder gets its name once this check raises."""
    _fences[root] = check
    try:
        yield
    finally:
        _fences.pop(root, None)


def _check_volume(path: Path) -> None:
    """Raises OSError: the volume of the workspace that a path is in was unmounted."""
    if not _held and MARK in os.environ:
        # A child is told by its environment which workspace it works on.
        root = Path(os.environ[MARK])
        _held[root] = root.stat().st_dev if root.is_dir() else _GONE
    for root, device in _held.items():
        if path.is_relative_to(root) and _device(root) != device:
            raise OSError(errno.ENODEV, "the workspace is gone from its volume", str(path))


def _device(root: Path) -> int | None:
    """None where nothing is there."""
    try:
        return root.stat().st_dev
    except FileNotFoundError:
        return None


def create(path: Path, mode: int = 0o666, *, append: bool = False) -> int:
    """A descriptor of a new file; FileExistsError where there is one, a link included."""
    _before("create", path)
    _check_volume(path)
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
    """Give what was written its name, unless another process has taken the workspace over.

    Whoever takes over after the check clears the source up before it writes, so that a writer that
    slept here finds nothing to rename.
    """
    for root, check in _fences.items():
        if target.is_relative_to(root):
            check()
    _before("rename", target)
    source.replace(target)


def make_directory(path: Path) -> None:
    """One folder; no error where it exists."""
    _before("mkdir", path)
    _check_volume(path)
    path.mkdir(exist_ok=True)
