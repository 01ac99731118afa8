"""Processes that carry a mark in their environment, wherever they stand by now.

What a child starts inherits its mark, in another session and after its parent's death too. The
meter uses this as well, so only the standard library is imported here.
"""

import os
import signal
from collections.abc import Container, Iterator
from contextlib import suppress


def marked(name: str, value: str) -> Iterator[int]:
    """The pids of this machine's processes whose environment has that variable, this one's too.

    A process that may not be looked at is left out. One that hangs in a page fault may be
    unreadable for ever, and the reader then hangs with it.
    """
    mark = os.fsencode(f"{name}={value}")
    for entry in os.listdir("/proc"):  # noqa: PTH208 - fast
        if entry.isdigit():
            with suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:  # noqa: PTH123 - fast
                if mark in file.read().split(b"\0"):
                    yield int(entry)


def end_marked(name: str, value: str, spared: Container[int]) -> int:
    """Kill what carries the mark, but for the spared pids; return how many there were."""
    count = 0
    for pid in marked(name, value):
        if pid not in spared:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                count += 1
    return count
