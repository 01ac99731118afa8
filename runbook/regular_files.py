"""Opening a file that may have been replaced by something else.

Rule: a pipe, a device or a folder in a file's place is an OSError at once, and never waited for.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW


def open_to_read(path: Path) -> BinaryIO:
    """The file's bytes from its beginning. Raises OSError: it is missing, or no regular file."""
    return _opened(path, os.O_RDONLY, "rb", 0)


def open_to_append(path: Path, mode: int = 0o666) -> BinaryIO:
    """The file's end, of a new file where there is none; unbuffered, so a write is a line whole.

    Raises OSError: it is a link, or no regular file.
    """
    return _opened(path, _APPEND, "ab", mode)


def read(path: Path) -> bytes:
    """All of it. Raises OSError as ``open_to_read``."""
    with open_to_read(path) as file:
        return file.read()


def _opened(path: Path, flags: int, kind: str, mode: int) -> BinaryIO:
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file; move it away", str(path))
    file: BinaryIO = os.fdopen(fd, kind, buffering=0)  # type: ignore[assignment]  # a raw file reads alike
    return file
