"""What passes between an executor and other commands beside the journal: heartbeat, stop request,
the volume's crash certificate.

All are small files that nothing of the session's truth rests on. What an executor writes here need
not survive a crash, so it is replaced atomically and not fsynced, and a failing volume does not
stop a heartbeat.
"""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from runbook import events as ev
from runbook import regular_files
from runbook.artifacts import TEMPORARY
from runbook.clock import SYSTEM, Clock
from runbook.contract import Json
from runbook.gpus import Gpus, describe
from runbook.regular_files import open_to_append
from runbook.takeover import open_journal
from runbook.workspace import Workspace

STOP_REQUESTED = "stop requested"
"""Reason of a stop after which only a person's ``resume`` goes on."""
BEAT_EVERY_S = 5.0
SAMPLE_EVERY_S = 30.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life of an executor."""

    pid: int
    wall: str
    """UTC, ISO 8601."""
    progress: Mapping[str, Json]
    """What the step at hand told last; empty between steps."""
    gpus: tuple[Mapping[str, Json], ...] = ()
    """``runbook.gpus.describe`` of each GPU."""

    def age_s(self, now: float) -> float:
        return max(0.0, now - datetime.fromisoformat(self.wall).timestamp())


def read_heartbeat(workspace: Workspace) -> Heartbeat | None:
    """None where there is none that can be read."""
    found = _read(workspace.heartbeat)
    try:
        gpus = tuple(dict(gpu) for gpu in found.get("gpus", ()))
        return Heartbeat(int(found["pid"]), str(found["wall"]), dict(found["progress"]), gpus)
    except (KeyError, TypeError, ValueError):
        return None


def read_certificate(workspace: Workspace) -> Mapping[str, Json]:
    """The summary of the volume's crash certificate; empty where there is none."""
    summary = _read(workspace.certificate).get("summary")
    return summary if isinstance(summary, dict) else {}


def request_stop(workspace: Workspace, reason: str, clock: Clock) -> None:
    """Ask the executor to finish its batch and end with exit code 3."""
    _replace(workspace.stop_request, {"reason": reason, "wall": _wall(clock)})


def stop_requested(workspace: Workspace) -> str:
    """Why a person wants the session to stop; empty where nobody does."""
    found = _read(workspace.stop_request)
    return str(found.get("reason") or "no reason given") if found else ""


def withdraw_stop(workspace: Workspace) -> None:
    workspace.stop_request.unlink(missing_ok=True)


def record_stop(workspace: Workspace, reason: str, clock: Clock = SYSTEM) -> str:
    """A person's stop of a session that no executor is at work on.

    Report and reviews' pages then tell of it. What keeps them from being written takes nothing from
    the stop, which is durable by then.

    Returns:
        Why the pages do not tell of it; empty where they do.

    Raises:
        LockedError: one is.
    """
    from runbook.projection import renew_pages  # noqa: PLC0415 - its imports lead back here

    with open_journal(workspace, clock) as journal:
        detail = f"a person asked for it: {reason}"
        journal.append(ev.SessionStopped(STOP_REQUESTED, 3, detail).to_body(), pin=True)
        return renew_pages(workspace, journal)


class Pulse:
    """The executor's side: shows that it lives, and hears of a wish to stop."""

    def __init__(self, workspace: Workspace, clock: Clock, gpus: Gpus | None = None) -> None:
        """``gpus`` are sampled every half minute, for the heartbeat and ``logs/gpu.jsonl``."""
        self._workspace = workspace
        self._clock = clock
        self._gpus = gpus
        self._sampled: list[dict[str, Json]] = []
        self._beaten = self._looked = self._sampled_at = -math.inf
        self._stop = ""
        self.progress: Mapping[str, Json] = {}

    def beat(self) -> None:
        """Cheap enough to call at every tick."""
        now = self._clock.monotonic()
        if now - self._beaten >= BEAT_EVERY_S:
            self._beaten = now
            told = {
                "pid": os.getpid(),
                "wall": _wall(self._clock),
                "progress": self.progress,
                "gpus": self._sample(now),
            }
            with suppress(OSError, ValueError):
                _replace(self._workspace.heartbeat, told)

    def _sample(self, now: float) -> list[dict[str, Json]]:
        if self._gpus is None or now - self._sampled_at < SAMPLE_EVERY_S:
            return self._sampled
        self._sampled_at = now
        self._sampled = [describe(sample) for sample in self._gpus.sample()]
        line = {"wall": _wall(self._clock), "gpus": self._sampled, "xids": self._gpus.xids}
        with suppress(OSError), open_to_append(self._workspace.gpu_log) as log:
            log.write(f"{json.dumps(line)}\n".encode())
        return self._sampled

    def trouble(self) -> str:
        """The newest error that a GPU reported, in words; empty where there was none."""
        return self._gpus.trouble() if self._gpus else ""

    def wish(self, *, fresh: bool = False) -> str:
        """Why a person wants a stop, or ''; looked up twice a second at most, unless ``fresh``."""
        now = self._clock.monotonic()
        if not self._stop and (fresh or now - self._looked >= _LOOK_EVERY_S):
            self._looked = now
            self._stop = stop_requested(self._workspace)
        return self._stop


def _wall(clock: Clock) -> str:
    return datetime.fromtimestamp(clock.wall(), UTC).isoformat()


def _read(path: Path) -> Mapping[str, Json]:
    try:
        value = json.loads(regular_files.read(path))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _replace(path: Path, value: Mapping[str, Json]) -> None:
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    temporary.write_text(json.dumps(value, allow_nan=False), "utf-8")
    temporary.replace(path)
