"""Every path of a workspace as a property of one object.

One workspace holds one session. No other module joins paths below it, and none outside it is
ever written.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from runbook import artifacts
from runbook.errors import ConfigError


@dataclass(frozen=True)
class Workspace:
    """A session's folder."""

    root: Path
    """Absolute."""

    @classmethod
    def at(cls, root: Path) -> "Workspace":
        """Raises ConfigError: the path is a loop of links, or begins at a home that is unknown."""
        try:
            home = root.expanduser()
        except RuntimeError as error:
            what = f"no home folder of {root.parts[0]!r} is known"
            fix = f"write the whole path, or ./{root} for a folder of that name here"
            raise ConfigError(what, where=str(root), fix=fix) from error
        try:
            return cls(home.resolve())
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"the workspace's path cannot be followed: {error}",
                where=str(root),
                fix="name a folder that is no loop of links",
            ) from error

    @property
    def hidden(self) -> Path:
        return self.root / ".runbook"

    def segment(self, epoch: int) -> Path:
        """The journal's file of one writer; the first one's has no number."""
        return self.hidden / ("journal.jsonl" if epoch == 1 else f"journal.{epoch}.jsonl")

    def head(self, epoch: int) -> Path:
        """Names the newest line of that file that must never be missing."""
        return self.hidden / ("HEAD" if epoch == 1 else f"HEAD.{epoch}")

    @property
    def blobs(self) -> Path:
        return self.hidden / "blobs"

    @property
    def lock_file(self) -> Path:
        return self.hidden / "lock"

    @property
    def certificate(self) -> Path:
        """What ``selftest --chaos`` found on this volume."""
        return self.hidden / "certificate.json"

    @property
    def heartbeat(self) -> Path:
        """The executor's last sign of life."""
        return self.hidden / "heartbeat.json"

    @property
    def stop_request(self) -> Path:
        """There while a person wants the session to stop."""
        return self.hidden / "stop.json"

    @property
    def notified(self) -> Path:
        """A file for each incident that people were told of, or were about to be."""
        return self.hidden / "notified"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def review_bench(self) -> Path:
        """A folder for each reviewer that was scored on the recorded situations."""
        return self.results / "review_bench"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def reviews(self) -> Path:
        return self.root / "reviews"

    @property
    def report(self) -> Path:
        return self.root / "report.md"

    def log(self, step: str) -> Path:
        return self.logs / f"{step}.log"

    @property
    def gpu_log(self) -> Path:
        """A sample of every GPU each half minute."""
        return self.logs / "gpu.jsonl"

    def session_manifest(self, run_id: str) -> Path:
        return self.artifacts / f"session_manifest_{run_id}.json"

    def work(self, step: str, attempt: int) -> Path:
        """The private folder of one attempt, for batches and checkpoints."""
        return self.artifacts / "work" / step / f"attempt_{attempt}"

    def output(self, template: str, started: datetime) -> Path:
        """The folder of a step's final files; ``{time}`` is the start of the attempt."""
        return self.inside(template.replace("{time}", stamp(started)))

    def review(self, opened: datetime, topic: str) -> Path:
        return self.reviews / f"{stamp(opened)}_{topic}"

    def manifest(self, output: Path) -> Path:
        """Where the manifest of the step that made a folder stands; no two steps share one."""
        if self.relative(output).startswith("artifacts/data_gen_pilot_"):
            return output / "session_manifest.json"
        return output / "manifest.json"

    @cached_property
    def _resolved(self) -> Path:
        return self.root.resolve()

    def inside(self, relative: str) -> Path:
        """A path of this workspace. Raises ConfigError for one that leads out of it."""
        path = self.root / relative
        if not path.resolve().is_relative_to(self._resolved):
            raise ConfigError(
                f"{relative!r} leads out of the workspace",
                where=str(self.root),
                fix="give a path relative to the workspace, without '..' or links out of it",
            )
        return path

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def create(self) -> None:
        """Make the folders. Raises ConfigError where that is not possible."""
        own = (self.hidden, self.blobs, self.logs, self.artifacts, self.results, self.data)
        folders = (*own, self.checkpoints, self.models, self.reviews)
        try:
            artifacts.make_durable(artifacts.make_directories(*folders))
        except OSError as error:
            raise ConfigError(
                f"the workspace cannot be made: {error.strerror}",
                where=str(error.filename or self.root),
                fix="choose a folder that can be written to, or move what stands in its place",
            ) from error
        for folder in folders:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ConfigError(
                    "the folder cannot be written to",
                    where=str(folder),
                    fix="change its permissions, or choose another workspace",
                )


def stamp(moment: datetime) -> str:
    """``YYYYMMDD_HHMMSS`` in UTC, as folders are named."""
    return moment.astimezone(UTC).strftime("%Y%m%d_%H%M%S")
