"""Runs one program to its end: bytes in, bytes out, a time limit, nothing left running.

Rule: no shell; the program leads its own process group, and the whole group is killed when the
program has ended, whether by itself, by a limit or by a stop. What it says is only read. A process
that leaves the group escapes the kill; it carries the workspace's mark, by which the next executor
ends it.
"""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

STDOUT_LIMIT = 1 << 20
"""Bytes of stdout; a program that says more has not answered."""
STDERR_LIMIT = 1 << 16
"""Bytes of stderr that are kept, the last ones."""
_TICK_S = 0.1
_CHUNK = 1 << 16
_LAST_READS = 64
"""After the kill: what a pipe holds, and no more from a process that escaped."""


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it said."""

    cause: str
    """Why its output does not count; empty where it exited with 0, in time and within limits."""
    stdout: bytes = b""
    stderr: bytes = b""
    stopped: bool = False
    """Killed because the session was asked to stop, not for a fault of its own."""
    started: bool = True


def run_program(
    command: Sequence[str],
    text: bytes,
    *,
    folder: Path,
    environment: Mapping[str, str],
    timeout_s: float,
    stop: Callable[[], str] = str,
) -> Ended:
    """Start a program in ``folder`` with ``text`` on its stdin; return once it is gone."""
    try:
        process = subprocess.Popen(
            list(command),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        what = f"the program cannot be started: {error}; mend it, or reviewer.command"
        return Ended(what, started=False)
    with process:
        pipes = _Pipes(process, text)
        try:
            cause = _wait(process, pipes, timeout_s, stop)
        finally:
            _kill_group(process)
            pipes.drain()
    stopped = bool(cause) and cause == _stopped(stop())
    cause = cause or _too_much(pipes) or _bad_exit(process.returncode)
    return Ended(cause, bytes(pipes.stdout[:STDOUT_LIMIT]), bytes(pipes.stderr), stopped)


def _wait(
    process: "subprocess.Popen[bytes]", pipes: "_Pipes", timeout_s: float, stop: Callable[[], str]
) -> str:
    """Until the program has ended; why it must not go on, or ''."""
    deadline = time.monotonic() + timeout_s
    while not _is_dead(process):
        pipes.move(_TICK_S)
        if reason := stop():
            return _stopped(reason)
        if too_much := _too_much(pipes):
            return too_much
        if time.monotonic() > deadline:
            return f"the program did not end within {timeout_s:g} s"
    return ""


def _stopped(reason: str) -> str:
    return f"the session was asked to stop: {reason}"


def _too_much(pipes: "_Pipes") -> str:
    if len(pipes.stdout) <= STDOUT_LIMIT:
        return ""
    return f"the program wrote more than {STDOUT_LIMIT} bytes on stdout"


def _bad_exit(code: int) -> str:
    if code >= 0:
        return f"the program exited with code {code}" if code else ""
    return f"the program died of signal {-code}"


def _is_dead(process: "subprocess.Popen[bytes]") -> bool:
    """Without reaping it: its process group must keep its number until it is killed."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Pipes:
    """The program's three streams, moved without waiting for any one of them."""

    def __init__(self, process: "subprocess.Popen[bytes]", text: bytes) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._unsent = memoryview(text)
        self._selector = selectors.DefaultSelector()
        self._add(process.stdin, selectors.EVENT_WRITE, self._send)
        self._add(process.stdout, selectors.EVENT_READ, self._hear)
        self._add(process.stderr, selectors.EVENT_READ, self._overhear)

    def _add(self, pipe: IO[bytes] | None, events: int, act: Callable[[int], bool]) -> None:
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
        self._selector.register(pipe, events, act)

    def move(self, wait_s: float) -> bool:
        """Move what is ready, once each; whether anything was."""
        ready = self._selector.select(wait_s)
        for key, _ in ready:
            if not key.data(key.fd):
                self._selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]  # registered as a file
        return bool(ready)

    def drain(self) -> None:
        """Read what the dead program left in its pipes."""
        for _ in range(_LAST_READS):
            if not self.move(0):
                break
        self._selector.close()

    def _send(self, fd: int) -> bool:
        try:
            self._unsent = self._unsent[os.write(fd, self._unsent[:_CHUNK]) :]
        except BrokenPipeError:
            # Reading the request is the program's own affair.
            return False
        return bool(self._unsent)

    def _hear(self, fd: int) -> bool:
        data = os.read(fd, _CHUNK)
        if len(self.stdout) <= STDOUT_LIMIT:
            self.stdout += data
        return bool(data)

    def _overhear(self, fd: int) -> bool:
        data = os.read(fd, _CHUNK)
        self.stderr = (self.stderr + data)[-STDERR_LIMIT:]
        return bool(data)
