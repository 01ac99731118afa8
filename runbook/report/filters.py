"""What the filters are worth, and what they cannot see, in sentences and rows of plain text.

What is read here is the table of ``gates.instruments`` as it stands in the journal.
"""

from collections.abc import Mapping, Sequence

from runbook.contract import Json
from runbook.report import figures as f

Row = tuple[str, ...]

HEADER: Row = (
    "judges",
    "filter",
    "in use",
    "AUC",
    "easy",
    "hard",
    "good ones kept",
    "bad ones dropped",
    "good before",
    "good after",
)
LEGEND = (
    "Measured on the probes' half that set no cut. AUC: how often a good one scores above a bad "
    "one, with its one-sided lower 95 % bound; 0.5 is chance. Easy: mismatched, cut off, rambling "
    "or empty; hard, of pairs: wrong answers of the right kind. The last two: the share of good "
    "ones among all, and among those kept."
)
GENERATED_HEADER: Row = ("judges", "filter", "in use", "AUC", "good before", "good after")


def table(found: Sequence[Mapping[str, Json]]) -> list[Row]:
    """A row for each filter that was measured; see ``HEADER``."""
    return [
        (
            *_name(entry),
            *(_area(entry.get(part)) for part in ("all", "easy", "hard")),
            *(
                _share(entry.get(part))
                for part in ("sensitivity", "specificity", "good_before", "good_after")
            ),
        )
        for entry in found
    ]


def generated(found: Sequence[Mapping[str, Json]]) -> list[Row]:
    """The same of rows that a model wrote, labelled by hand; see ``GENERATED_HEADER``."""
    written = [(entry, f.mapping(entry.get("generated"))) for entry in found]
    return [
        (*_name(entry), _area(on.get("all")), _share(on["good_before"]), _share(on["good_after"]))
        for entry, on in written
        if on
    ]


def blind_spots(found: Sequence[Mapping[str, Json]]) -> str:
    """What a reader must know before trusting a kept row; '' where no filter of pairs is in use."""
    pairs = [e for e in found if e.get("kind") == "pairs" and e.get("in_use") is True]
    if not pairs:
        return ""
    (entry, *_) = pairs
    told = (
        "What the filters cannot see: whether an answer is true. A wrong answer of the right kind "
        f"is told from a right one with an AUC of {_area(entry.get('hard'))}, where 0.5 is chance"
    )
    on = f.mapping(entry.get("generated"))
    if not on:
        return f"{told}."
    before, after = _share(on.get("good_before")), _share(on.get("good_after"))
    return (
        f"{told}; of pairs that a model wrote, labelled by hand, the good ones were {before} "
        f"before the filter and {after} after it."
    )


def _name(entry: Mapping[str, Json]) -> Row:
    return (
        str(entry.get("kind", "")),
        str(entry.get("filter", "")),
        "yes" if entry.get("in_use") is True else "no",
    )


def _area(part: Json) -> str:
    measured = f.mapping(part)
    return f"{f.fixed(measured.get('auc'))} (> {f.fixed(measured.get('bound'))})"


def _share(part: Json) -> str:
    counted = f.mapping(part)
    return f.share_of_counts(counted.get("successes"), counted.get("n"))
