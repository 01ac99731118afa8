"""Base against base, tuned against a damaged copy: does the evaluation see what it must? No torch.

Reads one JSONL row an item and control: ``control: aa, first, again`` or ``control: damaged,
undamaged, damaged``, each with ``id``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from gates.evidence import UNREADABLE, named, read, refuse_other_count, unread
from gates.stats import mcnemar_exact
from runbook.contract import Json, Metric

FLIPS: Final = "aa_flips"
"""The metric whose evidence is the file of controls."""
DERIVES: Final = ("aa_p", "aa_flip_rate", "damaged_p", "damage_unseen")
SEEN: Final = 0.05
"""A damaged copy is seen below this one-sided p."""
_SHOWABLE: Final = 5
"""So many right answers, all lost, give p = 0.03; fewer cannot show a damage."""

Row = dict[str, Json]


def derive(
    metrics: Sequence[Metric], workspace: Path
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The metrics with those of ``DERIVES`` added, and their counts for the report.

    Where the rows cannot be read, they are there without a value, which says why.
    """
    source = named(metrics, FLIPS)
    if source is None:
        return tuple(metrics), {}
    try:
        rows = read(source, workspace)
        repeated = _pairs(rows, "aa", "first", "again")
        damaged = _pairs(rows, "damaged", "undamaged", "damaged")
        refuse_other_count(source, len(repeated))
    except UNREADABLE as error:
        return (*metrics, *unread(DERIVES, source, error)), {}
    found = (
        *_repeated(repeated, source.evidence),
        *_damaged(damaged, source.evidence),
    )
    right = sum(before for before, _ in damaged)
    counts = {"aa": _counts(repeated), "damaged": {**_counts(damaged), "right": right}}
    return (*metrics, *found), {"controls": counts}


def doubts_a_pass(details: Mapping[str, Json]) -> tuple[str, ...]:
    """``damage_unseen`` where hardly an answer was right: a training that failed looks like this.

    With right answers enough an unseen damage is a broken scorer, whatever the training did.
    """
    found = details.get("controls")
    return ("damage_unseen",) if found and found["damaged"]["right"] < _SHOWABLE else ()


def _pairs(rows: Sequence[Row], control: str, left: str, right: str) -> list[tuple[bool, bool]]:
    mine = [row for row in rows if row["control"] == control]
    if len({row["id"] for row in mine}) != len(mine):
        raise ValueError(f"an item stands twice among the rows of the control {control!r}")
    pairs = [(row[left], row[right]) for row in mine]
    if not all(isinstance(value, bool) for pair in pairs for value in pair):
        raise ValueError(f"an outcome of the control {control!r} is neither true nor false")
    return pairs


def _counts(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Json]:
    return {
        "n": len(pairs),
        "gained": sum(after and not before for before, after in pairs),
        "lost": sum(before and not after for before, after in pairs),
    }


def _repeated(pairs: Sequence[tuple[bool, bool]], evidence: str) -> tuple[Metric, Metric]:
    """Whether the flips go one way, and how many there are: those that cancel out are noise too."""
    counts, n = _counts(pairs), len(pairs)
    flips = counts["gained"] + counts["lost"]
    p = mcnemar_exact(counts["gained"], counts["lost"]) if pairs else None
    note = f"{counts['gained']} gained, {counts['lost']} lost without any training"
    rate, what = flips / n if n else None, "items asked again in another batch"
    return (
        Metric("aa_p", p, n=n, evidence=evidence, note=note),
        Metric("aa_flip_rate", rate, n, flips, what, evidence=evidence, note=note),
    )


def _damaged(pairs: Sequence[tuple[bool, bool]], evidence: str) -> tuple[Metric, Metric]:
    """The one-sided p of the loss, 1 where there is none, and whether a damage went unseen."""
    if not pairs:
        note = "no damaged copy was scored"
        return Metric("damaged_p", None, note=note), Metric("damage_unseen", None, note=note)
    counts, n = _counts(pairs), len(pairs)
    lost = counts["lost"] > counts["gained"]
    p = mcnemar_exact(counts["gained"], counts["lost"]) / 2 if lost else 1.0
    right = sum(before for before, _ in pairs)
    unseen = p >= SEEN
    note = f"of {right} right answers the damaged copy lost {counts['lost']}, one-sided p = {p:.2g}"
    return (
        Metric("damaged_p", p, n=n, evidence=evidence, note=note),
        Metric("damage_unseen", float(unseen), n=n, evidence=evidence, note=note),
    )
