"""Scripted faults at the durable system calls of a process: for ``selftest --chaos`` and for tests.

A fault acts at the n-th call of ``runbook.durable`` in its process. An executor's is installed by
whoever runs it; a child's comes through the variable ``RUNBOOK_FAULT``.
"""

import errno
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from runbook import durable
from runbook.durable import Data
from runbook.worker import FAULT_VARIABLE as VARIABLE

KILL = "kill"
TEAR = "tear"
"""Write half of the bytes, then die; at a call that writes nothing, as ``KILL``."""
FULL = "full"
"""No space left from that call on: a write comes out short first, and creating still works."""
FAIL = "fail"
"""EIO at that call, once."""


@dataclass(frozen=True)
class Fault:
    at: int
    """The number of the call, from 1; 0: never."""
    do: str = KILL
    once: str = ""
    """A file made when the fault strikes; where it is there, nothing strikes. Empty: no such file.

    A child that was killed is started again with the same environment."""
    count_to: str = ""
    """A file that gets a line with each call's name; empty: none."""

    def environment(self) -> dict[str, str]:
        """What makes a child install it."""
        return {VARIABLE: json.dumps(asdict(self))}


class Injector:
    """The function that ``runbook.durable`` calls; it counts, and acts when it is time."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.calls = 0

    def __call__(self, call: str, path: Path, data: Data) -> Data:
        self.calls += 1
        if self.fault.count_to:
            with Path(self.fault.count_to).open("a", encoding="utf-8") as file:
                file.write(f"{call}\n")
        if self.fault.at == 0 or self.calls < self.fault.at:
            return data
        if self.fault.once and self.calls == self.fault.at:
            try:
                Path(self.fault.once).touch(exist_ok=False)
            except FileExistsError:
                self.fault = Fault(0)
                return data
        match self.fault.do:
            case "full":
                return self._full(call, path, data)
            case "fail" if self.calls == self.fault.at:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            case "fail":
                return data
            case "tear" if call == "write" and len(data) > 1:
                return self._torn(data)
            case _:
                return _die()

    def _full(self, call: str, path: Path, data: Data) -> Data:
        if call != "write":
            return data
        if self.calls == self.fault.at and len(data) > 1:
            return data[: len(data) // 2]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def _torn(self, data: Data) -> Data:
        # The rest of the bytes comes in a call of its own, which is the one that dies.
        self.fault = Fault(self.calls + 1, KILL)
        return data[: len(data) // 2]


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


def install(fault: Fault) -> Injector:
    """Make this process's durable calls subject to the fault."""
    injector = Injector(fault)
    durable.fault = injector
    return injector


def install_from_environment() -> None:
    """What a child does at its start."""
    text = os.environ.get(VARIABLE)
    if text:
        install(Fault(**json.loads(text)))
