"""What lies in a review's folder beside the journal's word: why there is no answer, and the files.

Rule: what cannot be read is not there. Nothing of it is believed: it is only shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runbook import regular_files
from runbook.report.review_requests import Note, read_notes

_LONGEST = 1 << 14
_KNOWN = {
    "request.md": "the question, for people",
    "prompt.md": "the question, as a model was sent it",
    "requests.json": "each request to a model, and how it ended",
    "canaries.json": "dossiers with known answers, asked beside this one",
    "decision.json": "the answer that was taken",
    "error.txt": "why there was no answer",
    "draft.txt": "what was answered and could not be taken",
    "stderr.log": "what the reviewer's program said beside its answer",
}


@dataclass(frozen=True)
class Folder:
    """A review's folder, as far as it can be read."""

    error: str = ""
    """Why the reviewer gave no answer that could be used; empty where nothing says so."""
    files: tuple[tuple[str, str], ...] = ()
    """What it is, and the file's name."""
    requests: tuple[Note, ...] = ()
    """The requests to models, as far as they were noted; those of the canaries last."""

    @property
    def drafts(self) -> tuple[str, ...]:
        """What the reviewer sent back and could not be taken, as it was kept."""
        return tuple(n for _, n in self.files if n == "draft.txt" or n.startswith("response"))


def read_folder(path: Path) -> Folder:
    """Read what there is; an empty one where the folder is not there."""
    return Folder(read_text(path / "error.txt"), tuple(_files(path)), read_notes(path))


def read_text(path: Path, longest: int = _LONGEST) -> str:
    """The beginning of a file; empty where there is none that can be read."""
    try:
        with regular_files.open_to_read(path) as file:
            return file.read(longest).decode("utf-8", "backslashreplace").strip()
    except OSError:
        return ""


def _files(path: Path) -> Iterator[tuple[str, str]]:
    try:
        names = sorted(one.name for one in path.iterdir() if one.is_file())
    except OSError:
        return
    for name in [*(n for n in _KNOWN if n in names), *(n for n in names if n not in _KNOWN)]:
        if name in _KNOWN:
            yield _KNOWN[name], name
        elif name.startswith("response"):
            yield "what the reviewer sent back, as it came", name
