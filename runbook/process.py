"""Parent side of a step: one child in its own process group, and how its run ended.

The child is never trusted to end well: it may be killed, hang or close its pipe, and each of these
is an outcome, not an exception.
"""

import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import runbook
from runbook.child_log import ChildLog
from runbook.codec import decode, encode
from runbook.contract import MARK, Committed, Json, PhaseResult
from runbook.marked import end_marked, marked
from runbook.redact import Redactor
from runbook.worker import Job

_TICK_S = 0.1
_CLOSE_S = 2.0
_REAP_S = 1.0
"""So long a killed child is waited for: the kernel may take its time with what it held."""
_POLL_S = 0.001


@dataclass(frozen=True)
class Finished:
    result: PhaseResult


@dataclass(frozen=True)
class Failed:
    """The step raised, or could not be imported."""

    what: str
    where: str
    fix: str
    code: int
    traceback: str


@dataclass(frozen=True)
class Paused:
    """The step ended after a committed batch, as it was asked to."""


@dataclass(frozen=True)
class Lost:
    """The child is gone without an answer."""

    cause: str


Outcome = Finished | Failed | Paused | Lost


@dataclass(frozen=True)
class Patience:
    """After which silence a child is given up."""

    heartbeat_s: float = math.inf
    """Without any sign: it hangs, or its machine does."""
    stall_s: float = math.inf
    """Without a batch or progress, though it is alive."""


HUNG, STALLED = GIVEN_UP = ("hung", "stalled")
"""How the cause of a ``Lost`` begins where the child was given up."""
PATIENT = Patience()
NOTHING_SECRET = Redactor({})


class Worker:
    """One child process, good for many jobs that share ``key``."""

    def __init__(
        self,
        key: str,
        workspace: Path,
        log: Path,
        environment: Mapping[str, str],
        redactor: Redactor = NOTHING_SECRET,
    ) -> None:
        """``key`` names what is loaded; ``environment`` is set before anything is imported.

        ``redactor`` takes secrets out of what the child prints and answers.
        """
        self.key = key
        self._workspace = workspace
        self._redactor = redactor
        self._log = ChildLog(log, redactor)
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._to_child = -1
        self._from_child = -1
        self._buffer = b""
        self._unsent = bytearray()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        child_in, self._to_child = os.pipe()
        os.set_blocking(self._to_child, False)
        self._from_child, child_out = os.pipe()
        own = str(Path(runbook.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH", "")]))
        environment = {
            **os.environ,
            **self._environment,
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            MARK: str(self._workspace),
        }
        arguments = [str(child_in), str(child_out), str(os.getpid())]
        # -P: the folder the command was typed in must not shadow a library.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "runbook.worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log.child_end,
            stderr=self._log.child_end,
            close_fds=True,
            pass_fds=(child_in, child_out),
            start_new_session=True,
            env=environment,
        )
        self._log.started()
        os.close(child_in)
        os.close(child_out)

    def run(
        self,
        job: Job,
        *,
        on_commit: Callable[[Committed], bool],
        on_progress: Callable[[Mapping[str, Json]], None],
        meanwhile: Callable[[], None] = lambda: None,
        watch: Callable[[], float] = lambda: math.inf,
        patience: Patience = PATIENT,
    ) -> Outcome:
        """Run one job to its end.

        Args:
            job: what to do.
            on_commit: makes a batch durable and says whether the step is to pause there; an
                exception of its own kills the child and passes.
            on_progress: hears what the step tells.
            meanwhile: called once, before the child is listened to; it was told by then what its
                pipe takes at once, which is the whole of a job of up to 64 KiB.
            watch: asked at every tick; the seconds that the child still has.
            patience: after which silence the child is given up.
        """
        try:
            self._log.go_on_in(Path(job.log))
            self._tell({"request": encode(job)})
            meanwhile()
            return self._listen(on_commit, on_progress, watch, patience)
        except BaseException:
            self.kill()
            raise

    def _listen(
        self,
        on_commit: Callable[[Committed], bool],
        on_progress: Callable[[Mapping[str, Json]], None],
        watch: Callable[[], float],
        patience: Patience,
    ) -> Outcome:
        heard = moved = time.monotonic()
        while True:
            now = time.monotonic()
            if cause := _given_up(now, watch(), heard, moved, patience):
                self.kill()
                return Lost(cause)
            line = self._read_line()
            if line is None:
                continue
            if not line:
                return self._lost(watch)
            heard = time.monotonic()
            match json.loads(line):
                case {"beat": _}:
                    pass
                case {"progress": fields}:
                    moved = heard
                    on_progress(self._redactor.value(fields))
                case {"commit": batch}:
                    pause = on_commit(decode(Committed, batch))
                    moved = heard = time.monotonic()
                    self._tell({"committed": batch["key"], "pause": pause})
                case last:
                    self._log.settle()
                    return _outcome(self._redactor.value(last))

    def _tell(self, message: Mapping[str, Json]) -> None:
        """Send what the pipe takes at once; the rest follows while the child is listened to."""
        self._unsent += json.dumps(message, allow_nan=False).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._to_child, self._unsent)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            # Listening tells how it ended, and what it still answered.
            self._unsent.clear()

    def _read_line(self) -> bytes | None:
        """The next whole line; None where there is none yet, empty where there will be none.

        While it waits, a tick at most, the child is sent what is due and its log is moved.
        """
        if b"\n" not in self._buffer:
            open_fds = [fd for fd in (self._from_child, self._log.fd) if fd >= 0]
            due = [self._to_child] if self._unsent else []
            ready, room, _ = select.select(open_fds, due, [], _TICK_S)
            if room:
                self._send()
            if self._log.fd in ready:
                self._log.move()
            if self._from_child in ready:
                data = os.read(self._from_child, 1 << 16)
                if not data:
                    return b""
                self._buffer += data
            elif not ready and not room and self._is_dead():
                return b""
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        return line

    def _is_dead(self) -> bool:
        """Without reaping it: its process group must keep its number until it is killed."""
        assert self._process is not None
        if self._process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def _lost(self, watch: Callable[[], float]) -> Lost:
        assert self._process is not None
        self._await_end(lambda: watch() <= 0)
        self.kill()
        return Lost(_cause(self._process.returncode))

    def kill(self) -> None:
        """End the child and all that it started, at once."""
        if self._process is None:
            return
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAP_S)
        for fd in (self._to_child, self._from_child):
            if fd >= 0:
                os.close(fd)
        self._to_child = self._from_child = -1
        self._log.close()

    def dismiss(self) -> None:
        """Tell the child that no further job comes; it then ends by itself."""
        if self._to_child >= 0:
            os.close(self._to_child)
            self._to_child = -1

    def close(self, hurried: Callable[[], bool] = lambda: False) -> None:
        """Let the child end by itself, then make sure of it; at once where ``hurried`` says so."""
        if self._process is None or self._from_child < 0:
            return
        self.dismiss()
        self._await_end(hurried)
        self.kill()

    def _await_end(self, hurried: Callable[[], bool]) -> None:
        limit = time.monotonic() + _CLOSE_S
        while not self._is_dead() and not hurried() and time.monotonic() < limit:
            time.sleep(_POLL_S)


def _given_up(now: float, left_s: float, heard: float, moved: float, patience: Patience) -> str:
    """Why the child must be killed at this monotonic time; empty where it may go on."""
    if left_s <= 0:
        return "it did not reach a commit in the time it was given, so it was killed"
    if now - heard > patience.heartbeat_s:
        return f"{HUNG}: no heartbeat for {patience.heartbeat_s:g} s, so it was killed"
    if now - moved > patience.stall_s:
        return f"{STALLED}: no progress for {patience.stall_s:g} s, so it was killed"
    return ""


def _outcome(message: Mapping[str, Json]) -> Outcome:
    match message:
        case {"result": result}:
            return Finished(decode(PhaseResult, result))
        case {"error": error}:
            return Failed(**error)
        case _:
            return Paused()


def _cause(code: int | None) -> str:
    if code is None:
        return "the child closed its pipe, and does not die of SIGKILL"
    if code >= 0:
        return f"the child exited with code {code} and no answer"
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return "SIGKILL: killed from outside, or the machine ran out of memory"
    return f"the child died of {name}"


def end_orphans(workspace: Path) -> int:
    """Kill what an earlier executor's children left running; return how many there were.

    The caller holds the workspace's lock, so whatever carries its mark has no executor any more.
    That is asked in a new workspace too: another one may have stood in its place.
    """
    if not any(marked(MARK, str(workspace))):
        return 0
    import psutil  # noqa: PLC0415 - slow, and seldom anything is left

    me = psutil.Process()
    spared = {me.pid, *(parent.pid for parent in me.parents())}
    return end_marked(MARK, str(workspace), spared)


@contextmanager
def signals() -> Iterator[Callable[[], str]]:
    """Note SIGTERM, SIGINT and SIGHUP, and do not die of them; yields the name of the first, or "".

    A terminal that closes sends SIGHUP; under nohup it stays ignored. Only the main thread may set
    handlers; elsewhere this notes nothing.
    """
    caught: list[str] = []

    def note(number: int, _: FrameType | None) -> None:
        caught.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        wanted.remove(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield lambda: caught[0] if caught else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
