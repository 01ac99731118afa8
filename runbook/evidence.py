"""Whether the rows behind a step's numbers are still those that the journal knows. Reads alone.

A file that is missing or has other bytes is damage. One that a later look or attempt wrote over, or
is writing over now, is none: it is only not there any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from runbook import artifacts
from runbook import events as ev
from runbook.contract import Artifact
from runbook.errors import ConfigError
from runbook.workspace import Workspace

_ROWS = frozenset({".json", ".jsonl"})
CHANGED = "was changed: its bytes are not those committed"
UNRECORDED = "has no hash on record"


@dataclass(frozen=True)
class Fault:
    """A file that cannot be read as what a decision rested on; ``str()`` says why."""

    path: str
    what: str
    damaged: bool

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def told(faults: Sequence[Fault]) -> str:
    """All of them in a sentence; what is damaged by name, of what is only gone the first."""
    named = [str(fault) for fault in faults if fault.damaged]
    gone: dict[str, list[str]] = {}
    for fault in faults:
        if not fault.damaged:
            gone.setdefault(fault.what, []).append(fault.path)
    for what, (first, *more) in gone.items():
        named.append(f"{first}{f' (and {len(more)} more)' if more else ''} {what}")
    return "; ".join(named)


class Evidence:
    """A session's files of rows; each is hashed once."""

    def __init__(self, place: Workspace, known: Sequence[ev.Event]) -> None:
        self._place = place
        self._ends = [fact for fact in known if isinstance(fact, ev.StepFinished)]
        self._outputs = {(f.step, f.output) for f in known if isinstance(f, ev.StepStarted)}
        self._running = _running(known)
        self._found: dict[str, tuple[str, str]] = {}

    def faults(self, finished: ev.StepFinished) -> tuple[Fault, ...]:
        """What is wrong with the files of rows that the end of a step speaks of.

        Looked at is what its metrics name as evidence, be it of an earlier step, and what it
        declared of JSON. A file whose hash nobody recorded cannot be read as evidence.
        """
        named = [metric.evidence for metric in finished.metrics if metric.evidence]
        named += [a.path for a in finished.artifacts if PurePosixPath(a.path).suffix in _ROWS]
        looked_at = (self._fault(finished, path) for path in dict.fromkeys(named))
        return tuple(fault for fault in looked_at if fault)

    def _fault(self, finished: ev.StepFinished, path: str) -> Fault | None:
        maker, owner = holder(self._ends, finished, path)
        sha256, missing = self._hash(owner.path if owner else path)
        if owner and sha256 == owner.sha256:
            return None
        later = self._ends[self._ends.index(finished) + 1 :]
        if writer := next((end for end in later if _writes_over(end, maker, owner, path)), None):
            told = f"was written over by look {writer.look} of attempt {writer.attempt}"
            return Fault(path, told, damaged=False)
        if self._is_made_again(maker.step, path):
            return Fault(path, "is being made again", damaged=False)
        if missing or owner:
            return Fault(path, missing or CHANGED, damaged=True)
        return Fault(path, UNRECORDED, damaged=False)

    def _hash(self, path: str) -> tuple[str, str]:
        """SHA-256 of a file or folder, and why there is none."""
        if path not in self._found:
            try:
                there = self._place.inside(path)
                tree = there.is_dir()
                sha256 = artifacts.sha256_tree(there) if tree else artifacts.sha256_file(there)
                self._found[path] = sha256, ""
            except FileNotFoundError:
                self._found[path] = "", "is missing"
            except ConfigError:
                self._found[path] = "", "leads out of the workspace"
            except (OSError, ValueError) as error:
                self._found[path] = "", f"cannot be read: {error}"
        return self._found[path]

    def _is_made_again(self, step: str, path: str) -> bool:
        """Whether a run that has not ended yet may have touched it."""
        if step not in self._running:
            return False
        own = [output for name, output in self._outputs if name == step and _within(path, output)]
        # What lies in no attempt's folder, such as a shard, is shared by all of them.
        return not own or self._running[step] in own


def holder(
    ends: Sequence[ev.StepFinished], finished: ev.StepFinished, path: str
) -> tuple[ev.StepFinished, Artifact | None]:
    """The artifact that a path was, or lay in, when a step finished, and the end that tells of it.

    The step's own, else the newest of those before it; None: nobody recorded a hash.
    """
    for end in (finished, *reversed(ends[: ends.index(finished)])):
        if found := _owner(end, path):
            return end, found
    return finished, None


def _running(known: Sequence[ev.Event]) -> dict[str, str]:
    """Steps that were started and have not finished since, with the folder they write to."""
    found: dict[str, str] = {}
    for fact in known:
        match fact:
            case ev.StepStarted():
                found[fact.step] = fact.output
            case ev.StepFinished():
                found.pop(fact.step, None)
    return found


def _owner(finished: ev.StepFinished, path: str) -> Artifact | None:
    """The artifact that a path is, or lies in."""
    return next((a for a in finished.artifacts if _within(path, a.path)), None)


def _writes_over(
    later: ev.StepFinished, maker: ev.StepFinished, before: Artifact | None, path: str
) -> bool:
    """Whether a later end left other bytes there; without hashes, whether it names the file too."""
    after = _owner(later, path)
    if before and after:
        return before.sha256 != after.sha256
    return later.step == maker.step and any(m.evidence == path for m in later.metrics)


def _within(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)
