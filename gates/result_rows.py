"""What every reader of result files shares: the caller's choice, a row, bounded JSON.

Rule: a file comes from anywhere. Nothing of it is held that was not bounded first, and what cannot
be read exactly is refused with its place.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from runbook.errors import ConfigError

LONGEST = 256 * 2**20
"""Bytes of one JSON text, be it a line, a log or a member of an archive."""
MOST_ROWS = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What of the two files to compare, where the caller said so; None: what there is."""

    id_field: str | None = None
    success_field: str | None = None
    kind_field: str | None = None
    metric: str | None = None
    filter_name: str | None = None
    scorer: str | None = None
    epoch: str | None = None
    """A number, or `all`."""

    def options(self) -> dict[str, str]:
        """Those that were given, by their names on the command line."""
        named = {
            "--id": self.id_field,
            "--success": self.success_field,
            "--kind": self.kind_field,
            "--metric": self.metric,
            "--filter": self.filter_name,
            "--scorer": self.scorer,
            "--epoch": self.epoch,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Row:
    """One item's result as its file has it; nothing but its place is checked."""

    where: str
    id: Any
    score: Any
    kind: Any = None
    content: str | None = None
    """Equal for two rows of the same format only where they speak of the same item."""
    prompt: str | None = None
    """Equal for two rows of the same format where the model read the same text."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All rows of a file, and what they were read as."""

    format: str
    score_name: str
    uses: frozenset[str]
    """The options that mean something to this format."""
    rows: list[Row]
    notes: tuple[str, ...] = ()


def parse_json(data: bytes, where: str) -> Any:
    """The value of a UTF-8 JSON text; NaN and the infinities are numbers, as Python writes them.

    Raises:
        ConfigError: it is none, or an object in it names a field twice.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise bad_file("it is not UTF-8 text", where, "write the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        what = f"it cannot be read as JSON: {error}"
        raise bad_file(what, where, "write the file again; it may have been cut off") from error


def choose(found: list[str], wanted: str | None, what: str, option: str, where: str) -> str:
    """The one wanted, or the only one there is.

    Raises:
        ConfigError: there are several, or none, or not the one wanted.
    """
    if wanted in found or (wanted is None and len(found) == 1):
        return wanted or found[0]
    names = some(found)
    if not found:
        raise bad_file(f"no {what} is found in it", where, "give the log of a scored evaluation")
    if wanted is None:
        raise bad_file(f"it has several {what}s: {names}", where, f"choose one with {option}")
    raise bad_file(f"it has no {what} {wanted}", where, f"{option} can be {names}")


def some(names: list[str], most: int = 8) -> str:
    """The first few of a list, and how many more there are."""
    shown = ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def bad_file(what: str, where: str, fix: str) -> ConfigError:
    """The one error of every reader: exit code 2."""
    return ConfigError(what, where=where, fix=fix)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the field {counts.most_common(1)[0][0]!r} stands twice in one object")
    return made
