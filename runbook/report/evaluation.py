"""The paired comparison of base and tuned model as rows of plain text, for Markdown and for text.

What is read here is ``gates.stats.PairedComparison.to_dict`` as it stands in the journal.
"""

from collections.abc import Mapping

from runbook.contract import Json
from runbook.report import figures as f

Row = tuple[str, ...]

KIND_HEADER: Row = (
    "kind",
    "n",
    "base",
    "tuned",
    "lift",
    "95 % interval",
    "n01",
    "n10",
    "exact p",
    "adjusted p",
    "significant",
)
SPLIT_HEADER: Row = ("kind", "format base", "format tuned", "content base", "content tuned")

LEGEND = (
    "n01: wrong before training, right after; n10: the other way. Intervals of a rate are "
    "Wilson's, of the lift a bootstrap's over items, all at 95 %. The kinds' exact p-values are "
    "adjusted after Benjamini and Hochberg."
)


def sentence(comparison: Mapping[str, Json]) -> str:
    """Rates, lift and p on one line."""
    c = comparison
    n = c.get("n")
    base, tuned = f.share_of(c.get("base_rate"), n), f.share_of(c.get("tuned_rate"), n)
    lift, ends = f.signed(c.get("lift")), f.interval(c.get("lift_ci"), difference=True)
    return (
        f"base {base} -> tuned {tuned} on the same items, lift {lift} (95 % interval {ends}), "
        f"McNemar p = {f.p_value(c.get('mcnemar_p'))}"
    )


def overall(comparison: Mapping[str, Json]) -> list[Row]:
    """Name and value of each number over all items."""
    c = comparison
    n = c.get("n")
    return [
        ("items", f.number(n)),
        ("base", f"{f.share_of(c.get('base_rate'), n)}, {f.interval(c.get('base_ci'))}"),
        ("tuned", f"{f.share_of(c.get('tuned_rate'), n)}, {f.interval(c.get('tuned_ci'))}"),
        ("lift", f"{f.signed(c.get('lift'))}, {f.interval(c.get('lift_ci'), difference=True)}"),
        ("n01 (gained), n10 (lost)", f"{f.number(c.get('n01'))}, {f.number(c.get('n10'))}"),
        (
            "McNemar, corrected",
            f"chi2 = {f.number(c.get('mcnemar_chi2'))}, p = {f.p_value(c.get('mcnemar_p'))}",
        ),
        ("McNemar, exact", f"p = {f.p_value(c.get('exact_p'))}"),
        ("Cohen's h", f.signed(c.get("cohens_h"))),
    ]


def by_kind(comparison: Mapping[str, Json]) -> list[Row]:
    """A row for each kind; see ``KIND_HEADER``."""
    kinds = f.mapping(comparison.get("by_kind"))
    return [_kind(name, f.mapping(part)) for name, part in sorted(kinds.items())]


def _kind(name: str, part: Mapping[str, Json]) -> Row:
    n = part.get("n")
    significant = part.get("significant")
    return (
        name,
        f.number(n),
        f.share_of(part.get("base_rate"), n),
        f.share_of(part.get("tuned_rate"), n),
        f.signed(part.get("lift")),
        f.interval(part.get("lift_ci"), difference=True),
        f.number(part.get("n01")),
        f.number(part.get("n10")),
        f.p_value(part.get("exact_p")),
        f.p_value(part.get("adjusted_p")),
        f.NOTHING if significant is None else "yes" if significant is True else "no",
    )


def split(document: Mapping[str, Json]) -> list[Row]:
    """Format and content apart, over all items and for each kind; see ``SPLIT_HEADER``."""
    aspects = [f.mapping(document.get(aspect)) for aspect in ("format", "content")]
    if not any(aspects):
        return []
    parts = [f.mapping(aspect.get("by_kind")) for aspect in aspects]
    kinds = sorted({name for part in parts for name in part})
    rows = [("all", *_rates(aspects))]
    return rows + [(name, *_rates([f.mapping(p.get(name)) for p in parts])) for name in kinds]


def _rates(aspects: list[Mapping[str, Json]]) -> Row:
    return tuple(
        f.share_of(aspect.get(side), aspect.get("n"))
        for aspect in aspects
        for side in ("base_rate", "tuned_rate")
    )


def not_in_tables(summary: Mapping[str, Json]) -> dict[str, Json]:
    """What an evaluation's summary tells beyond the tables made here."""
    return {name: fact for name, fact in summary.items() if name not in ("base", "tuned")}
