"""What a child prints, on its way to a log: read from a pipe, and filtered before it is written.

The parent moves it while it waits for the child, so nothing is lost when the child dies. A log
that cannot be written never stops a step.
"""

import os
from contextlib import suppress
from pathlib import Path

from runbook.redact import LineFilter, Redactor
from runbook.regular_files import open_to_append

_CHUNK = 1 << 16
_LAST_READS = 64
"""At the end: what a pipe holds, and no more from a process that escaped."""


class ChildLog:
    """A pipe whose one end is a child's stdout and stderr, and the file behind the other."""

    def __init__(self, path: Path, redactor: Redactor) -> None:
        """``path``: where it goes until ``go_on_in`` says otherwise."""
        self.fd, self.child_end = os.pipe()
        os.set_blocking(self.fd, False)
        self._filter = LineFilter(redactor)
        self._path = path

    def started(self) -> None:
        """The child has its end."""
        os.close(self.child_end)
        self.child_end = -1

    def go_on_in(self, path: Path) -> None:
        """What comes from now on goes there."""
        self.settle()
        self._path = path

    def move(self) -> bool:
        """Write what is there; whether anything was."""
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            # A child may close its streams and live on: the end of a pipe is always ready.
            os.close(self.fd)
            self.fd = -1
        self._write(self._filter.feed(data))
        return bool(data)

    def settle(self) -> None:
        """Write all that was printed so far, an unfinished line too."""
        for _ in range(_LAST_READS):
            if self.fd < 0 or not self.move():
                break
        self._write(self._filter.close())

    def close(self) -> None:
        """Write what the child left, and let go of the pipe."""
        self.settle()
        for fd in (self.fd, self.child_end):
            if fd >= 0:
                os.close(fd)
        self.fd = self.child_end = -1

    def _write(self, data: bytes) -> None:
        if not data:
            return
        with suppress(OSError), open_to_append(self._path) as log:
            log.write(data)
