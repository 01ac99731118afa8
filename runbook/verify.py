"""Whether a workspace still holds, byte for byte, what the journal says it does. Changes nothing.

Each file is held against the newest hash that the journal has of it. What no hash vouches for is
told as a note, never passed over: the last lines of a writer that was killed, bytes that a
superseded one added, files of a step that is being run.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runbook import artifacts, journal_lines
from runbook import events as ev
from runbook.contract import Artifact, Json
from runbook.errors import ConfigError, CorruptError
from runbook.evidence import holder
from runbook.journal import Before, Epoch, Reading, facts, read_journal
from runbook.journal_lines import DamageError
from runbook.workspace import Workspace

_LEADS_OUT = "replaced by a link out of the workspace"
_NONE = ""
"""Of a folder that had no marker when its step finished."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was committed."""

    where: str
    what: str
    """Begins with changed, missing or extra."""


@dataclass(frozen=True)
class Verification:
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    files: int
    """Compared with their hashes, the journal's own included."""


def verify(workspace: Workspace) -> Verification:
    """Read every committed byte again."""
    try:
        reading = read_journal(workspace)
    except CorruptError as error:
        return Verification((Finding(error.where, f"changed: {error.what}"),), (), 0)
    check = _Check(workspace, reading)
    findings = tuple(dict.fromkeys(check.run()))
    return Verification(findings, tuple(check.notes), check.files)


class _Check:
    def __init__(self, workspace: Workspace, reading: Reading) -> None:
        self._workspace = workspace
        self._reading = reading
        self._markers: Mapping[str, str | None] = {}
        self.notes: list[str] = []
        self.files = 0

    def run(self) -> Iterator[Finding]:
        yield from self._journal()
        known = facts(self._reading.entries)
        self._markers = _markers(known)
        yield from self._artifacts(known)
        hashes = {
            f.path: f.sha256
            for f in known
            if isinstance(f, ev.BatchCommitted | ev.ManifestWritten) and not _is_marker(f.path)
        }
        damaged = set()
        for path, sha256 in (hashes | self._projections()).items():
            for finding in self._file(path, sha256):
                damaged.add(path)
                yield finding
        for fact in known:
            if isinstance(fact, ev.ManifestWritten) and fact.path not in damaged:
                yield from self._judgement(fact)
        yield from self._folders(known)

    def _artifacts(self, known: tuple[ev.Event, ...]) -> Iterator[Finding]:
        """What steps declared; of a path that was made again, the newest."""
        running = _outputs_in_flux(known)
        self.notes += _unvouched(known)
        newest = {a.path: a for f in known if isinstance(f, ev.StepFinished) for a in f.artifacts}
        for path, artifact in newest.items():
            if any(Path(path).is_relative_to(folder) for folder in running):
                self.notes.append(f"{path}: its step is being run again, so it was not compared")
            else:
                yield from self._artifact(artifact)

    def _folders(self, known: tuple[ev.Event, ...]) -> Iterator[Finding]:
        """The ``COMPLETE.json`` of each folder that was declared complete, and all it lists."""
        running = _outputs_in_flux(known)
        for folder, recorded in self._markers.items():
            if any(Path(folder).is_relative_to(output) for output in running):
                continue
            path = self._inside(folder)
            if path is None:
                yield Finding(folder, _LEADS_OUT)
                continue
            there = (path / artifacts.COMPLETE).is_file()
            if there and recorded == _NONE:
                yield Finding(f"{folder}/{artifacts.COMPLETE}", "extra")
            elif there or recorded:
                self.files += 1
                inner = _inside(path, _files_of_executor(known, folder), recorded)
                yield from (Finding(f"{folder}/{name}", what) for name, what in inner)

    def _journal(self) -> Iterator[Finding]:
        """What stands behind the lines that count; the lines themselves were read."""
        epochs = self._reading.epochs
        # With each one's HEAD.
        self.files += 2 * len(epochs)
        for epoch, following in zip(epochs, [*epochs, None][1:], strict=True):
            yield from self._behind(epoch, following.before if following else None)
        for path in self._reading.strays:
            self.notes.append(f"{self._name(path)}: a claim to the workspace that came to nothing")
        if epochs and not epochs[-1].closed:
            self.notes.append(
                f"{self._name(epochs[-1].path)}: its writer did not end it, so lines behind the "
                "newest pinned one could be cut off unnoticed until the session is resumed"
            )

    def _behind(self, epoch: Epoch, found: Before | None) -> Iterator[Finding]:
        name = self._name(epoch.path)
        if found is None:
            if epoch.behind and epoch.closed:
                # Its writer ended it with a whole line, so no line of its own can be cut short.
                yield Finding(f"{name}, byte {epoch.length}", f"extra: {len(epoch.behind)} bytes")
            elif epoch.behind:
                self.notes.append(f"{name}: {len(epoch.behind)} bytes of a line cut short")
            return
        torn, late = epoch.behind[: found.torn_length], epoch.behind[found.torn_length :]
        if artifacts.sha256_bytes(torn) != found.torn_sha256:
            what = "changed: the torn line that was kept as evidence"
            yield Finding(f"{name}, byte {epoch.length}", what)
        elif torn:
            self.notes.append(f"{name}: {len(torn)} bytes of a line that a crash cut short")
        if not late:
            return
        if lines := _lines_in(late):
            told = f"{lines} line(s) that a superseded executor wrote; they count for nothing"
            self.notes.append(f"{name}: {told}")
        else:
            at = epoch.length + found.torn_length
            yield Finding(f"{name}, byte {at}", f"extra: {len(late)} bytes")

    def _projections(self) -> dict[str, str]:
        """The report and the session manifest, where nobody may have written them since."""
        for epoch in reversed(self._reading.epochs):
            if not epoch.closed:
                self.notes.append("report.md and the session manifest are written anew by a resume")
                return {}
            if epoch.projections:
                return dict(epoch.projections)
        return {}

    def _artifact(self, artifact: Artifact) -> Iterator[Finding]:
        path = self._inside(artifact.path)
        if path is None or not path.is_dir():
            yield from self._file(artifact.path, artifact.sha256)
            return
        self.files += 1
        if artifacts.sha256_tree(path) == artifact.sha256:
            return
        inner = list(_inside(path, frozenset(), self._markers.get(artifact.path)))
        self.files += len(inner)
        if not inner:
            yield Finding(artifact.path, "changed: the folder's files are not those committed")
        yield from (Finding(f"{artifact.path}/{name}", what) for name, what in inner)

    def _file(self, relative: str, sha256: str) -> Iterator[Finding]:
        self.files += 1
        path = self._inside(relative)
        if path is None:
            yield Finding(relative, _LEADS_OUT)
        elif not path.is_file():
            yield Finding(relative, "missing")
        elif artifacts.sha256_file(path) != sha256:
            yield Finding(relative, "changed")

    def _judgement(self, written: ev.ManifestWritten) -> Iterator[Finding]:
        """The hashes of the judgement stand in the manifest, whose own the journal has."""
        path = self._workspace.inside(written.path)
        if written.judged_path:
            judgement = json.loads(path.read_bytes())["judgement"]
            yield from self._file(judgement["path"], judgement["sha256"])
            if "text_sha256" in judgement:
                text = Path(judgement["path"]).with_suffix(".txt").as_posix()
                yield from self._file(text, judgement["text_sha256"])

    def _inside(self, relative: str) -> Path | None:
        """None where it leads out of the workspace by now."""
        try:
            return self._workspace.inside(relative)
        except ConfigError:
            return None

    def _name(self, path: Path) -> str:
        return self._workspace.relative(path)


def _unvouched(known: tuple[ev.Event, ...]) -> list[str]:
    """Evidence of metrics whose hash no step recorded, as an earlier release allowed."""
    ends = [fact for fact in known if isinstance(fact, ev.StepFinished)]
    told = {
        metric.evidence: f"{metric.evidence}: evidence of {end.step} with no hash on record"
        for end in ends
        for metric in end.metrics
        if metric.evidence and holder(ends, end, metric.evidence)[1] is None
    }
    return list(told.values())


def _outputs_in_flux(known: tuple[ev.Event, ...]) -> set[str]:
    """Folders of steps that were started and not finished since."""
    open_outputs: dict[str, str] = {}
    for fact in known:
        match fact:
            case ev.StepStarted():
                open_outputs[fact.step] = fact.output
            case ev.StepFinished():
                open_outputs.pop(fact.step, None)
    return set(open_outputs.values())


def _is_marker(path: str) -> bool:
    return PurePosixPath(path).name == artifacts.COMPLETE


def _markers(known: tuple[ev.Event, ...]) -> dict[str, str | None]:
    """Folder -> hash of its ``COMPLETE.json``; ``_NONE``: it had none. None: not on record."""
    found: dict[str, str | None] = {}
    outputs: dict[str, str] = {}
    for fact in known:
        match fact:
            case ev.StepStarted():
                outputs[fact.step] = fact.output
            case ev.StepFinished(markers=None):
                found[outputs[fact.step]] = None
            case ev.StepFinished(markers=dict() as markers):
                folders = [outputs[fact.step], *(a.path for a in fact.artifacts)]
                found |= {folder: markers.get(folder, _NONE) for folder in folders}
            case ev.BatchCommitted() if _is_marker(fact.path):
                found[str(PurePosixPath(fact.path).parent)] = fact.sha256
    return found


def _lines_in(data: bytes) -> int:
    """How many lines of a journal these bytes are, the last one perhaps torn; 0: none."""
    try:
        return len(journal_lines.parse(data)[0])
    except DamageError:
        return 0


def _files_of_executor(known: tuple[ev.Event, ...], output: str) -> frozenset[str]:
    """Names that the executor adds to a step's folder once the step declared it complete.

    The judgement is durable a moment before the line that says so.
    """
    started = [f for f in known if isinstance(f, ev.StepStarted) and f.output == output]
    here = {(f.step, f.attempt) for f in started}
    judged = {
        Path(f.judged_file)
        for f in known
        if isinstance(f, ev.StepFinished) and (f.step, f.attempt) in here
    }
    return frozenset(name for path in judged for name in (path.name, f"{path.stem}.txt"))


def _inside(folder: Path, added: frozenset[str], recorded: str | None) -> Iterator[tuple[str, str]]:
    """What is wrong in a folder, by its ``COMPLETE.json``.

    Args:
        folder: that was declared complete.
        added: names that may be there besides.
        recorded: the marker's hash; None where the journal does not have it.
    """
    marker = folder / artifacts.COMPLETE
    data = marker.read_bytes() if marker.is_file() else b""
    declared = _declared(data)
    if declared is None or (recorded and artifacts.sha256_bytes(data) != recorded):
        yield artifacts.COMPLETE, "changed" if marker.is_file() else "missing"
        return
    there = artifacts.names(folder)
    now = {}
    for name, entry in declared.items():
        if name not in there:
            yield name, "missing"
            continue
        now[name] = artifacts.measured(folder / name)
        if now[name] != entry:
            yield name, "changed" if recorded else f"changed, or {artifacts.COMPLETE} beside it"
    extra = sorted(there - declared.keys() - added)
    yield from ((name, "extra") for name in extra)
    if now == declared and artifacts.marker_of(now) != data:
        yield artifacts.COMPLETE, "changed"


def _declared(data: bytes) -> dict[str, Json] | None:
    """The files that a marker lists; None: it is none."""
    try:
        return dict(json.loads(data)["files"])
    except (ValueError, KeyError, TypeError):
        return None
