"""The executor's side of the meter: start it, feed it, hear what became of the pod.

Rules: nothing here waits for the meter, except ``Meter.end`` for the pod's state; a meter that died
is an answer and not an exception, and ``Meter.ensure`` starts another.
"""

import json
import math
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import runbook
from runbook.codec import decode
from runbook.contract import MARK, Json
from runbook.meter import Terms, now
from runbook.meter_folder import MeterRecords, is_within, volume_of
from runbook.meter_handover import end_former_meters
from runbook.meter_record import StopRecord
from runbook.owner import process_start

_SEARCH_PATHS = ("PATH", "LD_LIBRARY_PATH")
_LEAVE_S = 1.0
_ANSWER_S = 0.05
_RESTART_EVERY_S = 1.0
_BEAT_EVERY_S = 0.5


@dataclass(frozen=True)
class MeterConfig:
    """What a meter is to hold. Seconds count from ``Meter.start``."""

    run_id: str
    workspace: Path
    deadline_s: float | None = None
    """To the nearest limit of the budget."""
    rental_ends_s: float | None = None
    stop_pod: tuple[str, ...] | None = None
    """Program and arguments, no shell; a program is named by an absolute path or found on PATH."""
    pod_state: tuple[str, ...] | None = None
    grace_s: float = 60.0
    """From the SIGTERM at a limit to the SIGKILL."""
    abandoned_after_s: float | None = 1800.0
    """From an executor's death to the stop of the pod; None: only a limit stops it."""
    stop_timeout_s: float = 60.0
    stop_tries: int = 5
    pause_s: float = 2.0
    """Between two questions for the pod's state; before the second try of a stop, then doubled."""
    notice: tuple[str, ...] | None = None
    """See ``runbook.meter.Terms``."""


class Meter:
    """A running meter. For one thread."""

    def __init__(self, config: MeterConfig) -> None:
        """See ``start``."""
        self._config = config
        self._records = MeterRecords.of(config.workspace)
        self._deadline = _point(config.deadline_s)
        self._rental_end = _point(config.rental_ends_s)
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent = b""
        self._deadline_is_due = False
        self._heard = b""
        self._limit = ""
        self._stopped: StopRecord | None = None
        self._beaten_at = -_BEAT_EVERY_S
        self._restarted_at = -_RESTART_EVERY_S

    @classmethod
    def start(cls, config: MeterConfig) -> "Meter":
        """End the workspace's former meter and start one; the caller holds the workspace's lock.

        A former meter that was asked to stop the pod is left to it. Waits for the former to leave,
        2 s at most, and not for the new one. Raises ConfigError as ``state_folder`` does.
        """
        meter = cls(config)
        end_former_meters(meter._records)
        meter._spawn()
        return meter

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def beat(self) -> None:
        """Say that the executor lives. Dropped where the pipe is full or the last is fresh."""
        if now() >= self._beaten_at + _BEAT_EVERY_S and self._flush():
            self._beaten_at = now()
            self._unsent = _line({"beat": True})
            self._flush()

    def arm(self, deadline_s: float | None) -> None:
        """Move the budget's limit to that many seconds from now, or take it away.

        Raises ValueError for NaN.
        """
        self._deadline = _point(deadline_s)
        self._deadline_is_due = True
        self._flush()

    def limit_reached(self) -> str | None:
        """Why the meter asked this executor to end; None as long as it did not."""
        self._hear(0)
        return self._limit or None

    def ensure(self) -> bool:
        """Start the meter again where it died; whether it had. At most once a second."""
        if self.alive():
            return False
        if now() >= self._restarted_at + _RESTART_EVERY_S:
            self._restarted_at = now()
            self._spawn()
        return True

    def end(self, why: str, *, stop_pod: bool, wait_s: float = 120.0) -> StopRecord | None:
        """End the meter in order; where it stops the pod, what became of that.

        It stops the pod where it is asked to and where a limit was reached. Waits up to ``wait_s``
        for the pod's state; the meter goes on by itself after that, and the record so far is
        returned. None where the pod is not stopped, or where no meter could be brought to it.
        """
        waits = stop_pod or self.limit_reached() is not None
        limit = now() + (wait_s if waits else _LEAVE_S)
        stop = None
        for _ in range(2):
            if waits and not self.alive():
                self._spawn()
            stop = self._end_once(why, limit, stop_pod=stop_pod)
            if stop is not None or self.alive() or not waits:
                break
        self._close()
        return stop

    def leave(self, why: str) -> None:
        """Have the meter watch on as after this executor's death, and do not wait for it.

        It stops the pod at a limit or when nobody resumed in time; the next executor's meter ends
        it.
        """
        if not self.alive():
            self._spawn()
        self._unsent += _line({"paused": why})
        self._flush()
        self._close()

    def let_go(self) -> None:
        """As ``leave``, where another executor has taken over: a meter that died stays dead."""
        if self.alive():
            self.leave("another executor has taken over")

    def _end_once(self, why: str, limit: float, *, stop_pod: bool) -> StopRecord | None:
        self._flush()
        self._unsent += _line({"end": {"why": why, "stop_pod": stop_pod}})
        while now() < limit and self._stopped is None and self.alive():
            self._flush()
            self._hear(min(_ANSWER_S, max(0.0, limit - now())))
        if self._stopped is not None:
            self._wait_for_exit()
            return self._stopped
        record = self._records.newest()
        if record is None or self._process is None or record.pid != self._process.pid:
            return None
        # A meter that died in the middle of a stop has not done it.
        is_valid = record.stop is not None and (record.stop.finished or self.alive())
        return record.stop if is_valid else None

    def _spawn(self) -> None:
        """Start the process; where that cannot be done, ``alive`` says so."""
        self._close()
        self._process = None
        self._heard = b""
        self._unsent = _line(asdict(self._terms()))
        self._deadline_is_due = False
        try:
            record = self._records.claim()
            with self._records.open_log() as log:
                # -P: the folder the command was typed in must not shadow a library.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "runbook.meter", str(record)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,
                    cwd="/",
                    close_fds=True,
                    start_new_session=True,
                    env=_environment(self._config.workspace),
                )
        except OSError:
            return
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._flush()

    def _terms(self) -> Terms:
        config = self._config
        return Terms(
            run_id=config.run_id,
            executor_pid=os.getpid(),
            executor_start=process_start(os.getpid()) or 0,
            leads_session=os.getsid(0) == os.getpid(),
            mark=(MARK, str(config.workspace)),
            deadline=self._deadline,
            rental_end=self._rental_end,
            stop_pod=config.stop_pod,
            pod_state=config.pod_state,
            grace_s=config.grace_s,
            abandoned_after_s=config.abandoned_after_s,
            stop_timeout_s=config.stop_timeout_s,
            stop_tries=config.stop_tries,
            pause_s=config.pause_s,
            notice=config.notice,
        )

    def _flush(self) -> bool:
        """Send what is due, without waiting; whether nothing is left."""
        if self._process is None or self._process.stdin is None or self._process.stdin.closed:
            return False
        while self._unsent or self._deadline_is_due:
            if not self._unsent:
                self._unsent = _line({"deadline": self._deadline})
                self._deadline_is_due = False
            try:
                self._unsent = self._unsent[os.write(self._process.stdin.fileno(), self._unsent) :]
            except OSError:
                return False
        return True

    def _hear(self, seconds: float) -> None:
        """Take what the meter said, waiting that long for the first word."""
        process = self._process
        if process is None or process.stdout is None or process.stdout.closed:
            return
        if not select.select([process.stdout], [], [], seconds)[0]:
            return
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            self._wait_for_exit()
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"limit": why}:
                    self._limit = why
                case {"stopped": stop}:
                    self._stopped = decode(StopRecord, stop)

    def _wait_for_exit(self) -> None:
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_LEAVE_S)

    def _close(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        if self._process is not None and self.alive():
            # Reaped where this process lives on until then.
            threading.Thread(target=self._process.wait, daemon=True).start()


def _environment(workspace: Path) -> dict[str, str]:
    """The executor's, without a worker's mark; programs of the volume are searched last."""
    own = str(Path(runbook.__file__).parent.parent)
    volume = volume_of(workspace)
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    for name in _SEARCH_PATHS:
        if name in environment:
            folders = environment[name].split(os.pathsep)
            folders.sort(key=lambda folder: bool(folder) and is_within(Path(folder), volume))
            environment[name] = os.pathsep.join(folders)
    modules = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    outside = [path for path in modules if not is_within(Path(path), workspace.resolve())]
    environment["PYTHONPATH"] = os.pathsep.join([own, *outside])
    return environment


def _point(seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if math.isnan(seconds):
        raise ValueError("a limit that is not a number would never be reached")
    return now() + seconds


def _line(message: Mapping[str, Json]) -> bytes:
    return json.dumps(message).encode() + b"\n"
