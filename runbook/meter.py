"""The meter: a process of its own that holds the limits and stops the pod.

``runbook.meter_decision`` says what is next; ``Keeper`` does it. Started by
``runbook.meter_client.Meter`` with JSON lines on stdin and answers on stdout.

Rules: it is told no path but that of its own record, which does not lie on the workspace's volume,
and imports nothing once it runs, so a volume that hangs cannot hold it up. It measures by one clock
that nobody sets; the wall clock is only shown. That a stop was asked for stands in the record
before the command runs. A command's arguments and the environment are never written down.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from runbook.kill import end_processes
from runbook.meter_decision import (
    Action,
    Clear,
    End,
    Leave,
    Situation,
    Stop,
    Wait,
    Warn,
    decide,
)
from runbook.meter_record import MeterRecord, StopRecord, write_record
from runbook.owner import boot_id, process_start
from runbook.pod_command import run_command

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_TICK_S = 0.2
_SAVE_EVERY_S = 1.0
_STATE_ASKED = 5
_TAIL_CHARS = 2000
_NOTICE_S = 5.0


def now() -> float:
    """Seconds since boot, sleep included: shared by all processes of a machine, set by nobody."""
    return time.clock_gettime(_CLOCK)


@dataclass(frozen=True)
class Terms:
    """What the meter holds; the first line on stdin. Points in time are those of ``now()``."""

    run_id: str
    executor_pid: int
    executor_start: int
    """Clock ticks since boot, see ``runbook.owner``."""
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
    notice: Sequence[str] | None = None
    """Tells people that a session ended without its executor; why is one more argument."""


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
                case {"paused": str(why)}:
                    log(f"{why}: the executor has ended, and the pod is kept for the next one")
                    # What it started ended with it, and its process may be at other work by now.
                    self._change(gone_since=self._clock(), cleared=True)
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
        if not self._executor_lives() and self.situation.gone_since is None:
            log("the executor is gone")
            self._change(gone_since=self._clock())
        self._change(dismissed=self._inbox.dismissed)

    def _executor_lives(self) -> bool:
        return process_start(self._terms.executor_pid) == self._terms.executor_start

    def _wait(self, until: float | None) -> None:
        if self._is_dirty and self._clock() >= self._saved_at + _SAVE_EVERY_S:
            self._save()
        limit = _TICK_S if until is None else min(_TICK_S, until - self._clock())
        for line in self._inbox.wait(max(0.0, limit)):
            self.hear(line)

    def _warn(self, why: str) -> None:
        log(f"{why}: the executor is asked to end")
        self._answer({"limit": why})
        if self._executor_lives():
            with suppress(OSError):
                os.kill(self._terms.executor_pid, signal.SIGTERM)
        self._change(warned_at=self._clock(), warned_why=why)
        self._save()

    def _stop(self, why: str) -> None:
        argv = self._terms.stop_pod
        requested = self._wall().isoformat()
        stop = StopRecord(requested, why, argv[0] if argv else None, finished=not argv)
        self._save(durable=True, stop=stop)
        self._notify(why)
        log(f"{why}: {'stops the pod by ' + argv[0] if argv else 'no stop_pod is declared'}")
        if argv:
            stop = self._try_to_stop(argv, stop)
            stop = replace(self._ask_for_state(stop), finished=True)
            self._save(durable=True, stop=stop)
        self._answer({"stopped": asdict(stop)})

    def _notify(self, why: str) -> None:
        """Tell people, once and for a bounded time, where no executor is left that could."""
        if self._terms.notice and self.situation.ended is None:
            told = f"{why}: the executor is gone or hangs, so its meter ends what is left."
            ran = run_command([*self._terms.notice, told], _NOTICE_S)
            log(f"notification: {ran.problem or f'exit code {ran.rc}'}")

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
            limit=self.situation.warned_why,
            executor_pid=self._terms.executor_pid,
            executor_start=self._terms.executor_start,
        )
        self._saved_at, self._is_dirty = self._clock(), False
        try:
            write_record(self._path, record, durable=durable)
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
