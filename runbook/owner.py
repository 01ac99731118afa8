"""Who writes a workspace's journal: one process, of one boot, of one machine; and is it gone?

A process number alone says nothing: numbers are given again, and mean nothing on another machine.
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
        """Whether it runs, or ran, on this machine."""
        here = this_process()
        return (self.host, self.machine) == (here.host, here.machine)

    @property
    def is_alive_here(self) -> bool:
        return self.is_here and self.boot == _boot() and _started(self.pid) == self.started

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
    return Owner(socket.gethostname(), machine, _boot(), pid, _started(pid) or 0)


def _boot() -> str:
    return _read(Path("/proc/sys/kernel/random/boot_id"))


def _started(pid: int) -> int | None:
    """The 22nd field of ``/proc/<pid>/stat``; None where no such process runs."""
    text = _read(Path(f"/proc/{pid}/stat"))
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return int(fields[19])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
