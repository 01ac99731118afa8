"""What a review's folder tells of its requests: which model was asked what, and how it ended.

Rule: the reviewer wrote it, so it may be anything; what has not its form is not there. Whether a
request ended, and what it cost, is the journal's word alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runbook import regular_files
from runbook.contract import Json
from runbook.report.figures import mapping

SENT = "sent"
"""Its end was not known to who wrote it."""
ANSWERED = "answered"
FAILED = "failed"
_REQUESTS = "requests.json"
_DECISION = "decision.json"
_CANARIES = ("canaries/a", "canaries/b")
"""Folders of the dossiers with known answers that were asked beside the review."""
_LARGEST = 1 << 20
_REVIEW = "the review"
_CANARY = "a canary"


@dataclass(frozen=True)
class Note:
    """One request to a model, as whoever sent it noted it."""

    key: str
    """Of the journal's facts of it; empty for a canary of which nothing is noted."""
    asks: str = ""
    """What it was sent for; empty where that is not known."""
    model: str = ""
    """Provider and model; empty for a program."""
    outcome: str = ""
    """sent, answered or failed; empty where nothing but the key is known."""
    cause: str = ""
    """Why it failed, or why its end is not known."""


def read_notes(folder: Path) -> tuple[Note, ...]:
    """The notes of a review and of its canaries; none where nothing can be read."""
    asked = [path for name in _CANARIES if _is_folder(path := folder / name)]
    canaries = [note for path in asked for note in [*_notes(path, _CANARY)] or [Note("", _CANARY)]]
    return (*_notes(folder, _REVIEW), *canaries)


def paired(keys: Sequence[str], settled: Sequence[bool], notes: Sequence[Note]) -> list[Note]:
    """A note for each request of the journal, in its order; without an outcome where none is sure.

    Args:
        keys: under which the requests were sent.
        settled: whether the end of each is on record.
        notes: of the folder.
    """
    # A request of which nothing is noted may be of a canary of which nothing is.
    rest = _REVIEW if all(note.key for note in notes) else ""
    left = {}
    for key in dict.fromkeys(keys):
        ends = [end for k, end in zip(keys, settled, strict=True) if k == key]
        left[key] = iter(_of_key(ends, [n for n in notes if n.key == key] or [Note(key, rest)]))
    return [next(left[key]) for key in keys]


def _of_key(settled: Sequence[bool], notes: Sequence[Note]) -> list[Note]:
    """As ``paired``, for the requests under one key; at least one note.

    A request that was reserved and killed before it left has no note, and one whose writer was
    killed after it ended has a stale one; which is which cannot always be told.
    """
    if len(notes) == len(settled):
        return list(notes)
    bare = replace(notes[0], outcome="", cause="")
    ended = [note for note in notes if note.outcome in (ANSWERED, FAILED)]
    if len(ended) != sum(settled):
        return [bare] * len(settled)
    found = iter(ended)
    return [next(found) if is_settled else bare for is_settled in settled]


def _notes(folder: Path, asks: str) -> Iterator[Note]:
    """Of a model each request; of a program no more than the key of the answer that was taken."""
    entries = _document(folder / _REQUESTS).get("requests")
    if not isinstance(entries, list):
        key = _text(_document(folder / _DECISION), "key")
        if key:
            yield Note(key, asks)
        return
    for entry in map(mapping, entries):
        key = _text(entry, "key")
        if key:
            model = f"{_text(entry, 'provider')} {_text(entry, 'model')}".strip()
            mends = ", to mend a reply" if _text(entry, "review_key") not in ("", key) else ""
            yield Note(key, f"{asks}{mends}", model, _text(entry, "outcome"), _text(entry, "cause"))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _text(document: Mapping[str, Json], name: str) -> str:
    value = document.get(name)
    return value if isinstance(value, str) else ""


def _document(path: Path) -> Mapping[str, Json]:
    """The file as a mapping; empty where it is none, or larger than such a file is."""
    try:
        with regular_files.open_to_read(path) as file:
            return mapping(json.loads(file.read(_LARGEST)))
    except (OSError, ValueError, RecursionError):
        return {}
