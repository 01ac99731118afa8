"""Who writes a workspace's journal: one process, of one boot, of one machine; and is it gone?

A process number alone says nothing: numbers are given again, and mean nothing on another machine.
``boot_id`` and ``process_start`` make it a name. The meter uses them too, so only the standard
library is imported here.
"""

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.05


@dataclass(frozen=True)
class Owner:
    host: str
    machine: str
    """``/etc/machine-id``; empty where there is none, as in most containers."""
    boot: str
    """The kernel's boot id; empty where it cannot be read."""
    pid: int
    started: int
    """Clock ticks from boot to the start of the process; with ``pid`` it names one process."""

    @property
    def name(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine.

        A host's name alone says nothing: a pod that was moved to another node keeps its own. So a
        machine without an id is known by its boot.
        """
        here = this_process()
        known = bool(self.machine) or self.boot == here.boot
        return known and (self.host, self.machine) == (here.host, here.machine)

    @property
    def is_alive_here(self) -> bool:
        return self.is_here and self.boot == boot_id() and process_start(self.pid) == self.started

    def end(self, patience_s: float = 5.0) -> None:
        """End this process of this machine: asked first, so that it can stop at a commit."""
        for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, patience_s)):
            if not self.is_alive_here:
                return
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
            limit = time.monotonic() + wait_s
            while self.is_alive_here and time.monotonic() < limit:
                time.sleep(_POLL_S)


def this_process() -> Owner:
    pid = os.getpid()
    machine = _read(Path("/etc/machine-id"))
    return Owner(socket.gethostname(), machine, boot_id(), pid, process_start(pid) or 0)


def boot_id() -> str:
    """The running kernel's name for its boot; empty where it cannot be read."""
    return _read(Path("/proc/sys/kernel/random/boot_id"))


def process_start(pid: int, *, zombies: bool = False) -> int | None:
    """Clock ticks from boot to a process's start; None where no such process lives.

    With the pid it names a process for good; unlike a wall time it does not move with the clock.

    Args:
        pid: of this machine.
        zombies: whether a process counts that is dead, and that its parent has not yet waited for.
    """
    # The name stands in brackets and may hold anything, brackets and blanks too.
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if len(fields) < 20 or (fields[0] in "ZX" and not zombies):
        return None
    return int(fields[19])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
