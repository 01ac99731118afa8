"""The meter: a process of its own that holds the limits and stops the pod.

``decide`` is pure and says what is next; ``Keeper`` does it. Started by
``runbook.meter_client.Meter`` with JSON lines on stdin and answers on stdout.

Rules: it is told no path but that of its own record, which does not lie on the workspace's volume,
and imports nothing once it runs, so a volume that hangs cannot hold it up. It measures by one clock
that nobody sets; the wall clock is only shown. That a stop was asked for stands in the record
before the command runs. A command's arguments and the environment are never written down.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

DEADLINE = "a limit of the budget was reached"
RENTAL = "the rental ends"
ABANDONED = "the executor died and nobody resumed"

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_TICK_S = 0.2
_SAVE_EVERY_S = 1.0
_SCAN_S = 3.0
_STATE_ASKED = 5
_KEPT_BYTES = 1 << 16
_TAIL_CHARS = 2000
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_SECRET_CHARS = 8


def now() -> float:
    """Seconds since boot, sleep included: shared by all processes of a machine, set by nobody."""
    return time.clock_gettime(_CLOCK)


@dataclass(frozen=True)
class Terms:
    """What the meter holds; the first line on stdin. Points in time are those of ``now()``."""

    run_id: str
    executor_pid: int
    executor_start: int
    """Clock ticks since boot, see ``process_start``."""
    leads_session: bool
    """The session is the executor's own, so all of it may be killed."""
    mark: tuple[str, str]
    """Environment variable and value that a worker of this workspace carries."""
    deadline: float | None
    rental_end: float | None
    stop_pod: Sequence[str] | None
    pod_state: Sequence[str] | None
    grace_s: float
    abandoned_after_s: float | None
    stop_timeout_s: float
    stop_tries: int
    pause_s: float
    """Between two questions for the pod's state; before the second try of a stop, then doubled."""


@dataclass(frozen=True)
class End:
    """The executor's last word."""

    why: str
    stop_pod: bool


@dataclass(frozen=True)
class Situation:
    """All that the next action depends on. Points in time are those of ``now()``."""

    deadline: float | None = None
    rental_end: float | None = None
    grace_s: float = 60.0
    abandoned_after_s: float | None = None
    gone_since: float | None = None
    """When the executor was first seen dead."""
    warned_at: float | None = None
    warned_why: str = ""
    cleared: bool = False
    """The executor and what it started were killed."""
    ended: End | None = None
    dismissed: bool = False
    """SIGTERM: another meter takes over, or a person wants none."""


@dataclass(frozen=True)
class Wait:
    until: float | None
    """Nothing happens by itself before; None: ever."""


@dataclass(frozen=True)
class Warn:
    """Ask the executor to end."""

    why: str


@dataclass(frozen=True)
class Clear:
    """Kill the executor and all that it started."""

    why: str


@dataclass(frozen=True)
class Stop:
    """Stop the pod, then leave."""

    why: str


@dataclass(frozen=True)
class Leave:
    """Leave the pod running."""

    why: str


Action = Wait | Warn | Clear | Stop | Leave


def decide(situation: Situation, at: float) -> Action:
    """The next action. An end in order outranks all; a limit that was reached is never undone."""
    limit = situation.warned_why or _limit_reached(situation, at)
    if situation.ended is not None:
        if situation.ended.stop_pod or limit:
            return Stop(limit or situation.ended.why)
        return Leave(situation.ended.why)
    if situation.dismissed:
        return Leave("SIGTERM")
    if not limit and _is_past(_abandoned_at(situation), at):
        limit = ABANDONED
    if not limit:
        dates = (situation.deadline, situation.rental_end, _abandoned_at(situation))
        return Wait(min((date for date in dates if date is not None), default=None))
    if situation.gone_since is None:
        if situation.warned_at is None:
            return Warn(limit)
        if not _is_past(situation.warned_at + situation.grace_s, at):
            return Wait(situation.warned_at + situation.grace_s)
    return Stop(limit) if situation.cleared else Clear(limit)


def _limit_reached(situation: Situation, at: float) -> str:
    if _is_past(situation.rental_end, at):
        return RENTAL
    return DEADLINE if _is_past(situation.deadline, at) else ""


def _abandoned_at(situation: Situation) -> float | None:
    if situation.gone_since is None or situation.abandoned_after_s is None:
        return None
    return situation.gone_since + situation.abandoned_after_s


def _is_past(date: float | None, at: float) -> bool:
    return date is not None and at >= date


@dataclass(frozen=True)
class StopRecord:
    """What became of a stop. Wall times are ISO 8601 in UTC."""

    requested_at: str
    why: str
    command: str | None
    """The program's name alone; None: the runbook declares no command that stops the pod."""
    tries: int = 0
    last_rc: int | None = None
    """Exit code of the last try; None before it ended, or where it did not end by itself."""
    last_output: str = ""
    """Its last characters, secrets of the environment and the arguments hidden."""
    problem: str = ""
    """Why the last try has no exit code."""
    last_state: str | None = None
    """The last line that the command for the pod's state printed; None: not known."""
    finished: bool = False


@dataclass(frozen=True)
class MeterRecord:
    """What a meter shows of itself; written by that meter alone. Wall times as in a stop's."""

    pid: int
    start: int
    boot_id: str
    run_id: str
    deadline: str | None
    rental_end: str | None
    heartbeat: str | None
    """When the executor was last heard."""
    left: str | None = None
    """Why it left without stopping the pod."""
    stop: StopRecord | None = None
    former: "MeterRecord | None" = None
    """An earlier meter of the workspace that was asked to stop the pod; filled in by readers."""


def process_start(pid: int) -> int | None:
    """Clock ticks from boot to a process's start; None where it is dead, a zombie included.

    With the pid it names a process for good; unlike a wall time it does not move with the clock.
    """
    stat = _stat(pid)
    return None if stat is None or stat[0] in {"Z", "X"} else stat[1]


def _stat(pid: int) -> tuple[str, int] | None:
    """State and start."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def boot_id() -> str:
    """The name of the running kernel's boot; empty where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def end_processes(pid: int, start: int, mark: tuple[str, str], *, leader: bool) -> None:
    """Kill a process, its descendants, its session if it leads one, and what carries the mark."""
    found = _session(pid, start) if leader else []
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process_start(pid) == start:
            # Stopped first, so that it starts nothing between the look and the kill.
            process.suspend()
            found += [process, *process.children(recursive=True)]
    _kill(found)
    # The environment of a process that hangs in a page fault may be unreadable for ever.
    scan = threading.Thread(target=_kill_marked, args=mark, daemon=True)
    scan.start()
    scan.join(_SCAN_S)


def _session(leader: int, start: int) -> list[psutil.Process]:
    stat = _stat(leader)
    if stat is not None and stat[1] != start:
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


def _kill_marked(name: str, value: str) -> None:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(name) == value:
                _kill([process])


@dataclass(frozen=True)
class Ran:
    rc: int | None
    """None where it did not end by itself."""
    output: str
    problem: str = ""


def run_command(argv: Sequence[str], timeout_s: float) -> Ran:
    """Run a program without a shell, in a session of its own; never raises.

    Of its output the last 64 KiB are kept, with secrets hidden.
    """
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a NUL in its arguments"
        return Ran(None, "", f"cannot be started: {reason}")
    assert child.stdout is not None
    with child.stdout as pipe:
        kept = _read_until_end(child, pipe.fileno(), now() + timeout_s)
    output = hide_secrets(kept.decode(errors="replace"), argv, os.environ)
    if child.returncode is not None:
        return Ran(child.returncode, output)
    with suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_TICK_S)
    return Ran(None, output, f"killed: no end within {timeout_s:g} s")


def _read_until_end(child: subprocess.Popen[bytes], fd: int, limit: float) -> bytes:
    """The end of the output; returns with the child, whoever else still holds the pipe."""
    os.set_blocking(fd, False)
    kept = b""
    is_open = True
    while True:
        ended = child.poll() is not None
        with suppress(BlockingIOError):
            data = os.read(fd, _KEPT_BYTES)
            is_open = bool(data)
            kept = (kept + data)[-_KEPT_BYTES:]
        if ended or now() >= limit:
            return kept
        select.select([fd] if is_open else [], [], [], _TICK_S / 10)


def hide_secrets(output: str, argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """The output without control characters, secret variables and long arguments."""
    hidden = {value for name, value in environment.items() if _SECRET.search(name)}
    hidden |= {piece for argument in argv[1:] for piece in re.split(r"[\s=:]+", argument)}
    for value in sorted(hidden, key=len, reverse=True):
        if len(value) >= _SECRET_CHARS:
            output = output.replace(value, "[hidden]")
    return "".join(c for c in output if c.isprintable() or c == "\n")


def replace_file(path: Path, text: str, *, durable: bool) -> None:
    """Replace a file atomically; only its owner may read it. Raises OSError."""
    temporary = path.with_name(f"{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.replace(path)


class Inbox:
    """Lines from the executor, and a pipe that says that SIGTERM came."""

    def __init__(self, lines: int, dismissal: int) -> None:
        self._lines = lines
        self._dismissal = dismissal
        self._buffer = b""
        self.is_open = True
        self.dismissed = False

    def wait(self, seconds: float | None) -> list[bytes]:
        """Whole lines, as soon as there are some; none on SIGTERM, on EOF or in time."""
        sources = [self._lines, self._dismissal] if self.is_open else [self._dismissal]
        ready, _, _ = select.select(sources, [], [], seconds)
        self.dismissed = self.dismissed or self._dismissal in ready
        if self._lines in ready:
            data = os.read(self._lines, 1 << 16)
            self.is_open = bool(data)
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        return lines


class Keeper:
    """Does what ``decide`` says, one step after another."""

    def __init__(
        self,
        terms: Terms,
        record: Path,
        inbox: Inbox,
        answers: int,
        *,
        clock: Callable[[], float] = now,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``clock`` measures, ``wall`` is only shown; ``answers`` is the fd for the executor."""
        self._terms = terms
        self._path = record
        self._inbox = inbox
        self._answers = answers
        self._clock = clock
        self._wall = wall
        self._heard: str | None = None
        self._saved_at = clock()
        self._is_dirty = False
        self.situation = Situation(
            deadline=terms.deadline,
            rental_end=terms.rental_end,
            grace_s=terms.grace_s,
            abandoned_after_s=terms.abandoned_after_s,
        )
        self._pid, self._start = os.getpid(), process_start(os.getpid()) or 0
        self._boot_id = boot_id()

    def run(self) -> None:
        self._save()
        while not isinstance(self.step(), Stop | Leave):
            pass

    def hear(self, line: bytes) -> None:
        """Take one line of the executor; one that cannot be read is logged and passed over."""
        try:
            match json.loads(line):
                case {"beat": True}:
                    pass
                case {"deadline": float() | int() | None as deadline}:
                    self._change(deadline=deadline)
                case {"end": {"why": str(why), "stop_pod": bool(stop_pod)}}:
                    self._change(ended=End(why, stop_pod))
                case _:
                    log("a line of no known form was passed over")
                    return
        except ValueError:
            log("a line that is no JSON was passed over")
            return
        self._heard = self._wall().isoformat()
        self._is_dirty = True

    def step(self) -> Action:
        """Look, decide, act; the action done. After Stop and Leave there is no next step."""
        self._look()
        action = decide(self.situation, self._clock())
        match action:
            case Wait(until):
                self._wait(until)
            case Warn(why):
                self._warn(why)
            case Clear(why):
                log(f"{why}: the executor and what it started are killed")
                pid, start = self._terms.executor_pid, self._terms.executor_start
                leader = self._terms.leads_session
                end_processes(pid, start, self._terms.mark, leader=leader)
                self._change(cleared=True)
            case Stop(why):
                self._stop(why)
            case Leave(why):
                log(f"leaves the pod running: {why}")
                self._save(left=why)
        return action

    def _look(self) -> None:
        alive = process_start(self._terms.executor_pid) == self._terms.executor_start
        if not alive and self.situation.gone_since is None:
            log("the executor is gone")
            self._change(gone_since=self._clock())
        self._change(dismissed=self._inbox.dismissed)

    def _wait(self, until: float | None) -> None:
        if self._is_dirty and self._clock() >= self._saved_at + _SAVE_EVERY_S:
            self._save()
        limit = _TICK_S if until is None else min(_TICK_S, until - self._clock())
        for line in self._inbox.wait(max(0.0, limit)):
            self.hear(line)

    def _warn(self, why: str) -> None:
        log(f"{why}: the executor is asked to end")
        self._answer({"limit": why})
        if process_start(self._terms.executor_pid) == self._terms.executor_start:
            with suppress(OSError):
                os.kill(self._terms.executor_pid, signal.SIGTERM)
        self._change(warned_at=self._clock(), warned_why=why)

    def _stop(self, why: str) -> None:
        argv = self._terms.stop_pod
        requested = self._wall().isoformat()
        stop = StopRecord(requested, why, argv[0] if argv else None, finished=not argv)
        self._save(durable=True, stop=stop)
        log(f"{why}: {'stops the pod by ' + argv[0] if argv else 'no stop_pod is declared'}")
        if argv:
            stop = self._try_to_stop(argv, stop)
            stop = replace(self._ask_for_state(stop), finished=True)
            self._save(durable=True, stop=stop)
        self._answer({"stopped": asdict(stop)})

    def _try_to_stop(self, argv: Sequence[str], stop: StopRecord) -> StopRecord:
        for attempt in range(1, self._terms.stop_tries + 1):
            if attempt > 1:
                time.sleep(self._terms.pause_s * 2 ** (attempt - 2))
            ran = run_command(argv, self._terms.stop_timeout_s)
            stop = replace(
                stop,
                tries=attempt,
                last_rc=ran.rc,
                last_output=ran.output[-_TAIL_CHARS:],
                problem=ran.problem,
            )
            self._save(durable=True, stop=stop)
            log(f"try {attempt} to stop the pod: {ran.problem or f'exit code {ran.rc}'}")
            if ran.rc == 0:
                break
        return stop

    def _ask_for_state(self, stop: StopRecord) -> StopRecord:
        """Ask more than once: a pod takes a while to stop."""
        for i in range(_STATE_ASKED if self._terms.pod_state else 0):
            if i:
                time.sleep(self._terms.pause_s)
            ran = run_command(self._terms.pod_state or (), self._terms.stop_timeout_s)
            lines = [line for line in ran.output.splitlines() if line.strip()]
            if ran.rc == 0 and lines:
                stop = replace(stop, last_state=lines[-1][-_TAIL_CHARS:])
                self._save(durable=True, stop=stop)
        return stop

    def _answer(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):
            os.write(self._answers, json.dumps(message).encode() + b"\n")

    def _change(self, **changes: Any) -> None:
        self.situation = replace(self.situation, **changes)

    def _shown(self, at: float | None) -> str | None:
        if at is None:
            return None
        with suppress(OverflowError):  # a limit that is infinite
            return (self._wall() + timedelta(seconds=at - self._clock())).isoformat()
        return None

    def _save(
        self, *, durable: bool = False, stop: StopRecord | None = None, left: str | None = None
    ) -> None:
        """Without room for the record the limits are still held."""
        record = MeterRecord(
            pid=self._pid,
            start=self._start,
            boot_id=self._boot_id,
            run_id=self._terms.run_id,
            deadline=self._shown(self.situation.deadline),
            rental_end=self._shown(self.situation.rental_end),
            heartbeat=self._heard,
            left=left,
            stop=stop,
        )
        self._saved_at, self._is_dirty = self._clock(), False
        try:
            replace_file(self._path, json.dumps(asdict(record)), durable=durable)
        except OSError as error:
            log(f"the record cannot be written: {error.strerror}")


def log(text: str) -> None:
    """One line on stderr, which the parent gave a file of its own."""
    with suppress(OSError):
        os.write(2, f"{datetime.now(UTC).isoformat()} {os.getpid()} {text}\n".encode())


def protect() -> None:
    """Be among the last that the kernel kills for memory, where that is allowed."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-500")


def main() -> int:
    """``python -m runbook.meter RECORD``: terms, then further lines, on stdin; the exit code."""
    os.umask(0o077)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    dismissal, dismiss = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGTERM, lambda *_: os.write(dismiss, b"."))
    protect()
    inbox = Inbox(sys.stdin.fileno(), dismissal)
    lines: list[bytes] = []
    while not lines:
        if not inbox.is_open or inbox.dismissed:
            return 1
        lines = inbox.wait(None)
    try:
        keeper = Keeper(
            Terms(**json.loads(lines[0])), Path(sys.argv[1]), inbox, sys.stdout.fileno()
        )
        for line in lines[1:]:
            keeper.hear(line)
        keeper.run()
    except Exception as error:  # noqa: BLE001 - a traceback would read source files of the volume
        log(f"failed: {error!r}")
        return 1
    return 0


if __name__ == "__main__":
    # At once: a look at processes that hangs in a thread must not keep this one.
    os._exit(main())
