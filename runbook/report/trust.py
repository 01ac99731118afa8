"""What the session's reviewers are worth: canaries of this session, and the recorded situations.

Rule: who answered what is read from the files that were written when it was answered. A canary
without an answer counts neither way and is shown. What cannot be read is told, and never counted.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runbook import regular_files
from runbook.budget import dollars
from runbook.contract import Json
from runbook.report import figures as f
from runbook.report.safe_text import code, table
from runbook.workspace import Workspace

_CANARIES = "*/canaries.json"
_BENCHES = "*/bench.json"
_OUTCOMES = ("right", "false approval", "false alarm", "no answer", "refused")
_ASKED = ("reviewer", "known-bad approved", "known-good refused", "no answer", "not paid for")
_SCORED = (
    "reviewer",
    "right",
    "95 % interval",
    "false approvals",
    "false alarms",
    "no answer",
    "not asked",
    "cost",
)
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
_EXPLAINED = (
    "A canary is a dossier whose right answer is known, sent beside a real one. Known-bad ones "
    "can only be refused; known-good ones are what a retry, a recalibration or an answered "
    "question is for."
)


@dataclass(frozen=True)
class Canary:
    author: str
    """Empty where there was no answer."""
    kind: str
    """bad or good."""
    outcome: str


def trust_section(place: Workspace) -> list[str]:
    """The section's lines; none where nothing was measured."""
    canaries, torn = _read_all(sorted(place.reviews.glob(_CANARIES)), _canaries)
    benches, spoilt = _read_all(sorted(place.review_bench.glob(_BENCHES)), _bench)
    unread = [*torn, *spoilt]
    if not (canaries or benches or unread):
        return []
    return [
        "## Trust in the reviewer",
        "",
        *_asked(canaries),
        *_scored(benches),
        *_unread(place, unread),
    ]


def _asked(canaries: Sequence[Canary]) -> list[str]:
    if not canaries:
        return []
    authors = sorted({c.author for c in canaries})
    rows = [_row(author, [c for c in canaries if c.author == author]) for author in authors]
    return [_EXPLAINED, "", *table(_ASKED, rows)]


def _row(author: str, canaries: Sequence[Canary]) -> tuple[str, ...]:
    def share(kind: str, outcome: str) -> str:
        answered = [c for c in canaries if c.kind == kind and c.outcome in ("right", outcome)]
        return f.share_of_counts(sum(c.outcome == outcome for c in answered), len(answered))

    def count(outcome: str) -> str:
        return str(sum(c.outcome == outcome for c in canaries))

    shares = share("bad", "false approval"), share("good", "false alarm")
    return (author or "(nobody answered)", *shares, count("no answer"), count("refused"))


def _scored(benches: Sequence[tuple[str, ...]]) -> list[str]:
    if not benches:
        return []
    told = "By `runbook review bench`, on recorded situations with known right answers:"
    return [told, "", *table(_SCORED, benches)]


def _unread(place: Workspace, paths: Iterable[Path]) -> list[str]:
    lines = [
        f"- {code(path.relative_to(place.root).as_posix())} cannot be read; nothing of it is "
        "counted."
        for path in paths
    ]
    return [*lines, ""] if lines else []


def _read_all(
    paths: Iterable[Path], read: Callable[[Json], Iterable[Json]]
) -> tuple[list[Json], list[Path]]:
    """What the files hold, and the files that cannot be read."""
    found: list[Json] = []
    unread: list[Path] = []
    for path in paths:
        try:
            found += list(read(json.loads(regular_files.read(path))))
        except _UNREADABLE:
            unread.append(path)
    return found, unread


def _canaries(document: Json) -> Iterator[Canary]:
    for row in document["canaries"]:
        if row["outcome"] not in _OUTCOMES or row["kind"] not in ("bad", "good"):
            raise ValueError(row["outcome"])
        yield Canary(str(row["author"]), row["kind"], row["outcome"])


def _bench(document: Json) -> Iterator[tuple[str, ...]]:
    total = document["total"]
    rates = [total[name] for name in ("right", "false_approvals", "false_alarms")]
    right, approvals, alarms = (f.share_of_counts(r["hits"], r["of"]) for r in rates)
    cost = dollars(float(total["usd"]))
    unanswered = str(int(total["no_answer"])), str(int(total.get("not_asked", 0)))
    interval = f.interval(rates[0]["interval"])
    name = str(document["reviewer"])
    yield (name, right, interval, approvals, alarms, *unanswered, cost)
