"""Controls of the scorer that need no model: what must pass and must not, before money is spent.

The references dealt to other items and empty responses must be scored wrong; labelled responses,
long and short on both sides, as they are labelled. Pure but for the file of labels; what the
readings are worth is the gate's business.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from phases import verifiers
from phases.answers import normalise
from phases.jsonl import parse_row, read_lines
from phases.records import Row
from phases.verifiers import HeldOutItem
from runbook.contract import Metric
from runbook.errors import ConfigError

EMPTY: Final = ("", " \n\n ", ".")
"""Responses that say nothing."""


class LabelledResponse(BaseModel):
    """One line of ``probe/scoring.jsonl``: a response to a held-out item, judged by a person."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: str = Field(min_length=1)
    item: str = Field(min_length=1)
    """The id of the held-out item."""
    response: str
    success: bool
    """Whether it does what the item's instruction asks."""
    length: Literal["long", "short"]
    """Longer or shorter than most answers to such an item."""
    note: str = ""


def load_labelled(*paths: Path) -> tuple[LabelledResponse, ...]:
    """Read labelled responses, one JSON object a line.

    Raises:
        ConfigError: a row that does not parse or an id that stood before, with file:line.
    """
    rows: list[LabelledResponse] = []
    first_seen: dict[str, str] = {}
    for where, line in ((f"{path}:{n}", line) for path in paths for n, line in read_lines(path)):
        if not line.strip():
            continue
        try:
            row = parse_row(LabelledResponse, line)
        except ValueError as error:
            raise ConfigError(
                f"not a labelled response: {error}", where=where, fix="correct this row"
            ) from error
        before = first_seen.setdefault(row.id, where)
        if before != where:
            what = f"id {row.id!r} stands in {before} too"
            raise ConfigError(what, where=where, fix="remove one of them")
        rows.append(row)
    return tuple(rows)


def labelled_readings(rows: Sequence[LabelledResponse], items: Sequence[HeldOutItem]) -> list[Row]:
    """What the scorer says of each labelled response; those to items not given are left out."""
    known = {item.id: item for item in items}
    return [
        {
            **row.model_dump(exclude={"note"}),
            "kind": known[row.item].kind,
            "scored": verifiers.score(known[row.item], row.response).success,
        }
        for row in rows
        if row.item in known
    ]


def shuffled_readings(items: Sequence[HeldOutItem]) -> list[Row]:
    """Each item with the reference of another of its kind, and with that of another kind.

    A reference that says the same as the item's own is not dealt to it; of the others, that which
    was dealt least often so far. Where none is left, the item is passed over, and so is an item
    without a content check, which any response of its form answers. The deal is the same for every
    session, whatever the order of the items: a held-out set is sound or not.
    """
    order = sorted(items, key=lambda item: item.id)
    random.Random(0).shuffle(order)  # noqa: S311 - not secret
    said = {item.id: normalise(item.reference) for item in order}
    deals: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
        ("same kind", lambda mine, other: mine == other),
        ("other kind", lambda mine, other: mine != other),
    )
    found = []
    for dealt, fits in deals:
        times: Counter[str] = Counter()
        for place, item in enumerate(order):
            others = [*order[place + 1 :], *order[:place]]
            fitting = [o for o in others if fits(item.kind, o.kind) and said[o.id] != said[item.id]]
            if not has_content_check(item) or not fitting:
                continue
            donor = min(fitting, key=lambda other: times[said[other.id]])
            times[said[donor.id]] += 1
            scored = verifiers.score(item, donor.reference).success
            row = {"id": item.id, "kind": item.kind, "dealt": dealt, "from": donor.id}
            found.append({**row, "response": donor.reference, "scored": scored})
    return found


def has_content_check(item: HeldOutItem) -> bool:
    """Whether a check of the item asks what is said, and not only in which form."""
    return any(check.aspect == "content" for check in item.checks)


def shuffled_metric(items: Sequence[HeldOutItem], dealt: Sequence[Row], evidence: str) -> Metric:
    """``shuffled_references_passing`` of the deal; its note tells what the share rests on."""
    n, passed = len(dealt), sum(row["scored"] for row in dealt)
    spoken = len({normalise(row["response"]) for row in dealt})
    left = sum(not has_content_check(item) for item in items)
    note = f"{spoken} different references dealt"
    if left:
        note += f"; {left} of {len(items)} items left out, which have no content check"
    return Metric(
        "shuffled_references_passing",
        passed / n if n else None,
        n=n,
        successes=passed,
        denominator="references dealt",
        evidence=evidence,
        note=note,
    )


def reference_readings(items: Sequence[HeldOutItem]) -> list[Row]:
    """What the scorer says of each item's own reference, and of responses that say nothing."""
    return [
        {
            "id": item.id,
            "kind": item.kind,
            "response": item.reference,
            "scored": (own := verifiers.score(item, item.reference)).success,
            "failures": list(own.failures),
            "empty_passing": sum(verifiers.score(item, text).success for text in EMPTY),
        }
        for item in items
    ]


def reference_metrics(rows: Sequence[Row], evidence: str) -> tuple[Metric, ...]:
    """How many references are scored wrong, and how often saying nothing is scored right."""
    failing = sum(not row["scored"] for row in rows)
    empty = sum(row["empty_passing"] for row in rows)
    return (
        Metric("references_failing", float(failing), n=len(rows), evidence=evidence),
        Metric("empty_passing", float(empty), n=len(rows), evidence=evidence),
    )
