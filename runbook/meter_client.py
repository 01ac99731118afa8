"""The executor's side of the meter: start it, feed it, hear what became of the pod.

Rules: nothing here waits for the meter, except ``Meter.end`` for the pod's state; a meter that died
is an answer and not an exception, and ``Meter.ensure`` starts another. Each meter writes a record
of its own, numbered, in a folder of this machine that is not on the workspace's volume; the newest
record is the workspace's.
"""

import hashlib
import json
import math
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import psutil

import runbook
from runbook.contract import MARK, Json
from runbook.errors import ConfigError
from runbook.events import decode
from runbook.meter import MeterRecord, StopRecord, Terms, boot_id, now, process_start

__all__ = ["Meter", "MeterConfig", "MeterRecord", "StopRecord", "read_record"]

STATE_DIR = "RUNBOOK_STATE_DIR"
_PLACES = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a folder of our own there, checked
_SEARCH_PATHS = ("PATH", "LD_LIBRARY_PATH")
_DISMISS_S = 2.0
_LEAVE_S = 1.0
_ANSWER_S = 0.05
_RESTART_EVERY_S = 1.0
_BEAT_EVERY_S = 0.5
_POLL_S = 0.002
_MAX_LOG_BYTES = 1 << 20


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


def read_record(workspace: Path) -> MeterRecord | None:
    """The record of the workspace's newest meter, dead or alive; None where there is none.

    ``former`` is the newest earlier one that was asked to stop the pod. Another machine's meters
    are not seen. Raises ConfigError as ``state_folder`` does.
    """
    return _newest(state_folder(workspace), _key(workspace))


def _newest(folder: Path, key: str) -> MeterRecord | None:
    records = [record for _, record in _records(folder, key) if record]
    if not records:
        return None
    former = next((record for record in records[1:] if record.stop), None)
    return replace(records[0], former=former)


def is_running(record: MeterRecord) -> bool:
    """Whether the meter that wrote a record is alive on this machine."""
    return record.boot_id == boot_id() and process_start(record.pid) == record.start


def state_folder(workspace: Path) -> Path:
    """The folder for the meters' records, made where it is missing; for this user alone.

    RUNBOOK_STATE_DIR names it. Else it is the first of fixed places that is not on the workspace's
    volume: they depend on nothing that differs from login to login, so that a later executor finds
    the earlier one's meter.

    Raises:
        ConfigError: it lies in the workspace, is a link, is not ours or open to others.
    """
    named = os.environ.get(STATE_DIR)
    if named:
        folder = Path(named)
        if not folder.is_absolute() or folder.resolve().is_relative_to(workspace.resolve()):
            raise ConfigError(
                "the meter's folder must be an absolute path outside the workspace",
                where=f"{STATE_DIR}={named}",
                fix="name a folder on a disk of this machine",
            )
    else:
        folder = _default_folder(workspace)
    _check_folder(folder)
    return folder


def _default_folder(workspace: Path) -> Path:
    volume = _volume(workspace)
    for place in map(Path, _PLACES):
        if place.is_dir() and os.access(place, os.W_OK) and not _is_within(place, volume):
            return place / f"runbook-{os.geteuid()}"
    raise ConfigError(
        f"none of {', '.join(_PLACES)} can hold the meter's record off the workspace's volume",
        where=str(volume),
        fix=f"set {STATE_DIR} to a folder on a disk of this machine",
    )


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigError(
            f"the meter's folder cannot be made: {error.strerror}",
            where=str(folder),
            fix=f"set {STATE_DIR} to a folder on a disk of this machine",
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        what, fix = "is a link or no folder", "remove it"
    elif found.st_uid != os.geteuid():
        what, fix = "belongs to another user", f"set {STATE_DIR} to a folder of your own"
    elif found.st_mode & 0o077:
        what, fix = "is open to other users", f"chmod 700 {folder}"
    else:
        return
    raise ConfigError(f"the meter's folder {what}", where=str(folder), fix=fix)


def _volume(workspace: Path) -> Path:
    """Mount point of the workspace; the workspace itself where that is the root."""
    root = workspace.resolve()
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        mounts = []
    points = (Path(_unescape(line.split(" ")[4])) for line in mounts)
    above = [point for point in points if root.is_relative_to(point)]
    point = max(above, key=lambda path: len(path.parts), default=Path("/"))
    return root if point == Path("/") else point


def _unescape(field: str) -> str:
    """A blank, tab, newline and backslash stand as octal numbers in the mount table."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _is_within(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) or path.resolve().is_relative_to(folder)


def _key(workspace: Path) -> str:
    return hashlib.sha256(str(workspace.resolve()).encode()).hexdigest()[:16]


def _records(folder: Path, key: str) -> Iterator[tuple[Path, MeterRecord | None]]:
    """Newest first; None where a file holds no record, as that of a meter that just started."""
    numbered = []
    for path in folder.glob(f"{key}.*.meter.json"):
        number = path.name.split(".")[1]
        if number.isdecimal():
            numbered.append((int(number), path))
    for _, path in sorted(numbered, reverse=True):
        try:
            yield path, decode(MeterRecord, json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            yield path, None


class Meter:
    """A running meter. For one thread."""

    def __init__(self, config: MeterConfig) -> None:
        """See ``start``."""
        self._config = config
        self._folder = state_folder(config.workspace)
        self._deadline = _point(config.deadline_s)
        self._rental_end = _point(config.rental_ends_s)
        self._key = _key(config.workspace)
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
        meter._end_former()
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

    def _end_once(self, why: str, limit: float, *, stop_pod: bool) -> StopRecord | None:
        self._flush()
        self._unsent += _line({"end": {"why": why, "stop_pod": stop_pod}})
        while now() < limit and self._stopped is None and self.alive():
            self._flush()
            self._hear(min(_ANSWER_S, max(0.0, limit - now())))
        if self._stopped is not None:
            self._wait_for_exit()
            return self._stopped
        record = _newest(self._folder, self._key)
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
            record = self._claim_record()
            with self._open_log() as log:
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
        )

    def _claim_record(self) -> Path:
        """A new number; of the older records the newest is kept, and the newest with a stop."""
        older = list(_records(self._folder, self._key))
        newest = int(older[0][0].name.split(".")[1]) if older else 0
        path = self._folder / f"{self._key}.{newest + 1}.meter.json"
        path.open("xb").close()
        stops = [old for old, record in older if record and record.stop]
        kept = {old for old, _ in older[:1]} | set(stops[:1])
        for old, _ in older:
            if old not in kept:
                old.unlink(missing_ok=True)
        return path

    def _open_log(self) -> BinaryIO:
        path = self._folder / f"{self._key}.meter.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        log = os.fdopen(os.open(path, flags, 0o600), "ab")
        if log.tell() > _MAX_LOG_BYTES:
            log.truncate(0)
        return log

    def _end_former(self) -> None:
        for path, record in _records(self._folder, self._key):
            if record is None:
                for pid, start in _meters_of(path):
                    _dismiss(pid, start, path)
            elif record.stop is None and is_running(record):
                _dismiss(record.pid, record.start, path)

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


def _dismiss(pid: int, start: int, path: Path) -> None:
    """End a meter, unless it was asked to stop the pod in the meantime."""
    with suppress(OSError):
        os.kill(pid, signal.SIGTERM)
        limit = now() + _DISMISS_S
        while process_start(pid) == start and now() < limit:
            time.sleep(_POLL_S)
        if process_start(pid) == start and not _is_stopping(path):
            os.kill(pid, signal.SIGKILL)


def _is_stopping(path: Path) -> bool:
    try:
        return decode(MeterRecord, json.loads(path.read_bytes())).stop is not None
    except (OSError, ValueError, TypeError):
        return False


def _meters_of(record: Path) -> list[tuple[int, int]]:
    """Pid and start of the processes that were started to write a record."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            start = process_start(process.pid)
            if start is not None and process.cmdline()[-3:] == ["-m", "runbook.meter", str(record)]:
                found.append((process.pid, start))
    return found


def _environment(workspace: Path) -> dict[str, str]:
    """The executor's, without a worker's mark; programs of the volume are searched last."""
    own = str(Path(runbook.__file__).parent.parent)
    volume = _volume(workspace)
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    for name in _SEARCH_PATHS:
        if name in environment:
            folders = environment[name].split(os.pathsep)
            folders.sort(key=lambda folder: bool(folder) and _is_within(Path(folder), volume))
            environment[name] = os.pathsep.join(folders)
    modules = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    outside = [path for path in modules if not _is_within(Path(path), workspace.resolve())]
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
