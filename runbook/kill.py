"""The meter's kill: an executor, and all that it started, wherever that stands by now."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress

import psutil

from runbook.marked import end_marked
from runbook.owner import process_start

_SCAN_S = 3.0


def end_processes(pid: int, start: int, mark: tuple[str, str], *, leader: bool) -> None:
    """Kill a process, its descendants, its session if it leads one, and what carries the mark.

    Args:
        pid: of the process; another one that got its number is spared.
        start: its ``runbook.owner.process_start``.
        mark: environment variable and value.
        leader: the session of that number is its own.
    """
    found = _session(pid, start) if leader else []
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process_start(pid) == start:
            # Stopped first, so that it starts nothing between the look and the kill.
            process.suspend()
            found += [process, *process.children(recursive=True)]
    _kill(found)
    # The environment of a process that hangs in a page fault may be unreadable for ever.
    scan = threading.Thread(target=end_marked, args=(*mark, {os.getpid()}), daemon=True)
    scan.start()
    scan.join(_SCAN_S)


def _session(leader: int, start: int) -> list[psutil.Process]:
    """The members of a dead leader's session too; none where the number is another's by now."""
    if process_start(leader, zombies=True) not in {start, None}:
        return []
    members = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if os.getsid(pid) == leader:
                members.append(psutil.Process(pid))
    return members


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            if process.pid != os.getpid():
                process.kill()
