"""The lift read in other ways, and by length, as rows of plain text; from an evaluation's details.

What is read here is ``gates.confounds`` as it stands in the journal.
"""

from collections.abc import Mapping

from runbook.contract import Json
from runbook.report import figures as f
from runbook.report.facts import Table

Row = tuple[str, ...]

VARIANTS = "The lift read in other ways"
STRATA = "By length; reported, and never deciding alone"
_VARIANT_HEADER: Row = ("read as", "base", "tuned", "lift", "95 % interval", "remains", "decides")
_STRATUM_HEADER: Row = ("pairs", "n", "base", "tuned", "lift", "95 % interval", "exact p")
LEGEND = (
    "A gain of which less than half remains in a reading that decides is confounded, and the gate "
    "invalid. equal_truncation: the longer response cut to the other's words; one_stop_rule: the "
    "first line of both raw texts; scorer_strict, scorer_lenient: the scorer's own thresholds "
    "moved by 20 %."
)


def tables(details: Mapping[str, Json]) -> list[Table]:
    """The variants, then the strata; none where the gate derived none."""
    found = f.mapping(details.get("confounds"))
    variants, strata = (_rows(found.get(name)) for name in ("variants", "strata"))
    made = (
        Table(VARIANTS, _VARIANT_HEADER, tuple(_variant(v) for v in variants)),
        Table(STRATA, _STRATUM_HEADER, tuple(_stratum(s) for s in strata)),
    )
    return [table for table in made if table.rows]


def _rows(value: Json) -> list[Mapping[str, Json]]:
    return [f.mapping(entry) for entry in value] if isinstance(value, list) else []


def _variant(entry: Mapping[str, Json]) -> Row:
    return (
        str(entry.get("variant")),
        *_rates(entry),
        f.number(entry.get("remains")),
        "yes" if entry.get("decides") is True else "no",
    )


def _stratum(entry: Mapping[str, Json]) -> Row:
    name, n = str(entry.get("stratum")), f.number(entry.get("n"))
    return (name, n, *_rates(entry), f.p_value(entry.get("exact_p")))


def _rates(entry: Mapping[str, Json]) -> Row:
    return (
        f.fixed(entry.get("base_rate")),
        f.fixed(entry.get("tuned_rate")),
        f.signed(entry.get("lift")),
        f.interval(entry.get("lift_ci"), difference=True),
    )
