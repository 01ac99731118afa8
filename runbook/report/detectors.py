"""What the detectors are worth, in rows of plain text; read from the table of a judgement."""

from collections.abc import Mapping, Sequence

from runbook.contract import Json
from runbook.report import figures as f

HEADER = ("detector", "finds", "of hard ones", "lets be", "of hard ones", "wrong on")
LEGEND = (
    "On labelled rows by which no detector was mended. Finds: of the rows that a person says yes "
    "to; lets be: of those that a person says no to; both with Wilson's 95 % interval."
)
_SHOWN = 6


def table(found: Sequence[Mapping[str, Json]]) -> list[tuple[str, ...]]:
    """A row for each detector; see ``HEADER``."""
    return [
        (
            str(entry.get("instrument")),
            *(
                _share(f.mapping(f.mapping(entry.get(part)).get(side)))
                for side in ("sensitivity", "specificity")
                for part in ("all", "hard")
            ),
            _listed(entry.get("wrong")),
        )
        for entry in found
    ]


def _share(rate: Mapping[str, Json]) -> str:
    if not rate.get("n"):
        return f.NOTHING
    low, high = rate["interval"]
    return f"{rate['successes']} of {rate['n']} [{low:.2f}, {high:.2f}]"


def _listed(ids: Json) -> str:
    if not isinstance(ids, list) or not ids:
        return f.NOTHING
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"{', '.join(map(str, ids[:_SHOWN]))}{more}"
