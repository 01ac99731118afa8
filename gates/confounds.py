"""Whether a lift survives the attempt to explain it away: the pairs, read in other ways. No torch.

Reads one JSONL row an item and variant: ``id, kind, variant, base, tuned, base_chars,
tuned_chars``. Confounded is a gain whose sign flips, or of which less than half remains, when both
responses are cut to the same length, by one stop rule, or when the scorer's own thresholds are
moved. Content and format alone, kinds and lengths are reported and never decide: an item may ask
for its format, and length is itself changed by the training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gates.evidence import UNREADABLE, named, read, refuse_other_count, rows_of, unread
from gates.significance import PAIRED
from gates.stats import PairedComparison, paired_comparison
from runbook.contract import Json, Metric

VARIANTS: Final = "variant_readings"
"""The metric whose evidence is the file of variants."""
DERIVES: Final = ("confounded",)
AS_SCORED: Final = "as_scored"
DECIDING: Final = ("equal_truncation", "one_stop_rule", "scorer_strict", "scorer_lenient")
REPORTED: Final = ("content", "format")
REMAINS: Final = 0.5
"""The share of the lift that a variant must leave."""
_QUARTERS: Final = 4

Row = dict[str, Json]


def derive(
    metrics: Sequence[Metric], workspace: Path
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The metrics with ``confounded`` added, and the variants' and strata's tables.

    ``confounded`` counts the deciding variants that explain the lift away; without a lift above 0
    there is nothing to explain, so it is 0. How sure the lift is, is the gate's own question: a
    confounded one that fails there anyway stays a fail. Where the rows cannot be read or do not
    fit the pairs, it has no value and says why.
    """
    source = named(metrics, VARIANTS)
    if source is None:
        return tuple(metrics), {}
    try:
        pairs = _paired(metrics, workspace)
        parts = _parts(read(source, workspace), pairs)
        refuse_other_count(source, len(pairs))
        compared = {name: _compare(rows) for name, rows in parts.items()}
        strata = _strata(parts[AS_SCORED])
    except UNREADABLE as error:
        return (*metrics, *unread(DERIVES, source, error)), {}
    whole = compared[AS_SCORED]
    told = {name: _explains(whole, compared[name]) for name in DECIDING}
    explained = [f"{name}: {why}" for name, why in told.items() if why and whole.lift > 0]
    table = [_entry(name, found, whole) for name, found in compared.items()]
    metric = Metric(
        "confounded",
        float(len(explained)),
        n=len(pairs),
        evidence=source.evidence,
        note="; ".join(explained),
    )
    return (*metrics, metric), {"confounds": {"variants": table, "strata": strata}}


def _paired(metrics: Sequence[Metric], workspace: Path) -> dict[str, tuple[bool, bool]]:
    source = named(metrics, PAIRED)
    if source is None:
        raise ValueError("there are no pairs to read in other ways")
    rows = rows_of(source, workspace)
    return {str(row["id"]): (row["base"], row["tuned"]) for row in rows}


def _parts(rows: Sequence[Row], pairs: dict[str, tuple[bool, bool]]) -> dict[str, list[Row]]:
    """The rows of each variant. Raises ValueError: not one row an item, or not of these pairs."""
    parts: dict[str, list[Row]] = {name: [] for name in (AS_SCORED, *DECIDING, *REPORTED)}
    for row in rows:
        if row["variant"] not in parts:
            raise ValueError(f"there is no variant {row['variant']!r}")
        parts[row["variant"]].append(row)
    for name, part in parts.items():
        if sorted(str(row["id"]) for row in part) != sorted(pairs):
            raise ValueError(f"the variant {name} does not hold each pair once")
    for row in parts[AS_SCORED]:
        if (row["base"], row["tuned"]) != pairs[str(row["id"])]:
            raise ValueError(f"the pair {row['id']!r} is not what was scored: pairs are mixed up")
    return parts


def _compare(rows: Sequence[Row]) -> PairedComparison:
    return paired_comparison(
        [row["base"] for row in rows],
        [row["tuned"] for row in rows],
        [str(row["kind"]) for row in rows],
    )


def _explains(whole: PairedComparison, variant: PairedComparison) -> str:
    """How the variant explains the lift away; '' where it does not."""
    if variant.lift > 0 and variant.lift >= REMAINS * whole.lift:
        return ""
    return f"of the lift {whole.lift:+.3f} there remains {variant.lift:+.3f}"


def _entry(name: str, found: PairedComparison, whole: PairedComparison) -> dict[str, Json]:
    return {
        "variant": name,
        "decides": name in DECIDING,
        "base_rate": found.base_rate,
        "tuned_rate": found.tuned_rate,
        "lift": found.lift,
        "lift_ci": list(found.lift_ci),
        "exact_p": found.exact_p,
        "remains": found.lift / whole.lift if whole.lift else None,
        "by_kind": {kind: part.lift for kind, part in found.by_kind.items()},
    }


def _strata(rows: Sequence[Row]) -> list[dict[str, Json]]:
    """The pairs as scored, by which response is longer and by quarters of the tuned length."""
    by_length = sorted(rows, key=lambda row: (_length(row, "tuned_chars"), str(row["id"])))
    size = -(-len(rows) // _QUARTERS)
    named: list[tuple[str, list[Row]]] = [
        ("tuned shorter", [r for r in rows if r["tuned_chars"] < r["base_chars"]]),
        ("equally long", [r for r in rows if r["tuned_chars"] == r["base_chars"]]),
        ("tuned longer", [r for r in rows if r["tuned_chars"] > r["base_chars"]]),
        *(
            (f"tuned length, quarter {at + 1}", by_length[at * size : (at + 1) * size])
            for at in range(_QUARTERS)
        ),
    ]
    return [
        {
            "stratum": name,
            **{
                f"{side}_median_chars": _median(part, f"{side}_chars") for side in ("base", "tuned")
            },
            **_figures(paired_comparison([r["base"] for r in part], [r["tuned"] for r in part])),
        }
        for name, part in named
        if part
    ]


def _figures(found: PairedComparison) -> dict[str, Json]:
    return {
        "n": found.n,
        "base_rate": found.base_rate,
        "tuned_rate": found.tuned_rate,
        "lift": found.lift,
        "lift_ci": list(found.lift_ci),
        "exact_p": found.exact_p,
    }


def _median(rows: Sequence[Row], column: str) -> int:
    lengths = sorted(_length(row, column) for row in rows)
    return lengths[len(lengths) // 2]


def _length(row: Row, column: str) -> int:
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{column} of {row['id']!r} is {value!r}, no number of characters")
    return value
