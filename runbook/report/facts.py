"""A step's summary as sentences and tables: it may hold anything that JSON can."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from runbook.contract import Json
from runbook.params import is_number
from runbook.report import figures as f
from runbook.report.safe_text import json_line

Row = tuple[str, ...]
_SHOWN_APART = frozenset({"qc"})


@dataclass(frozen=True)
class Table:
    """A fact with two names for each value."""

    title: str
    header: Row
    rows: tuple[Row, ...]


def sentences(summary: Mapping[str, Json], known: Mapping[str, Json]) -> list[str]:
    """One sentence for each fact on one level, those of ``qc`` included.

    ``known`` are readings shown elsewhere: a fact that only repeats them is left out.
    """
    found = []
    for name, value in _flat(summary):
        repeats = isinstance(value, Mapping) and value and value.items() <= known.items()
        if not _is_table(value) and not repeats:
            found.append(f"{name}: {_told(value)}")
    return found


def tables(summary: Mapping[str, Json]) -> list[Table]:
    """The facts on two levels."""
    return [_table(name, value) for name, value in _flat(summary) if _is_table(value)]


def _flat(summary: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    for name, value in sorted(summary.items()):
        if name not in _SHOWN_APART:
            yield name, value
    for name, value in sorted(f.mapping(summary.get("qc")).items()):
        if name != "yield":
            yield name, value


def _is_table(value: Json) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    parts = value.values()
    return all(isinstance(part, Mapping) and part for part in parts) and all(
        is_number(v) for part in parts for v in part.values()
    )


def _told(value: Json) -> str:
    match value:
        case bool() | None:
            return json_line(value)
        case int() | float():
            return f.number(value)
        case str():
            return value
        case list() if value and all(map(is_number, value)):
            ends = f"first {f.number(value[0])}, last {f.number(value[-1])}"
            return f"{f.counted(len(value), 'value')}, {ends}"
        case Mapping() if value:
            return ", ".join(
                f"{name or '(none)'} ({_told(v)})"
                if isinstance(v, Mapping)
                else f"{name or '(none)'} {_told(v)}"
                for name, v in _in_order(value)
            )
        case _:
            return json_line(value)


def _table(title: str, value: Mapping[str, Mapping[str, Json]]) -> Table:
    """Few and named go across; a histogram's many edges go down."""
    inner = {name: None for part in value.values() for name, _ in _in_order(part)}
    names = [name for name, _ in _in_order(inner)]
    if all(_as_number(name) is not None for name in names):
        rows = [(n, *(f.number(part.get(n)) for part in value.values())) for n in names]
        return Table(title, ("from", *value), tuple(rows))
    style = {n: _style(part.get(n) for part in value.values()) for n in names}
    across = [(k, *(style[n](part.get(n)) for n in names)) for k, part in value.items()]
    return Table(title, ("", *names), tuple(across))


def _style(column: Iterable[Json]) -> Callable[[Json], str]:
    """One way to write a column's numbers: counts as counts, shares with three decimals."""
    found = [v for v in map(f.real, column) if v is not None]
    shares = any(not v.is_integer() for v in found) and all(abs(v) <= 1 for v in found)
    return f.fixed if shares else f.number


def _in_order(value: Mapping[str, Json]) -> list[tuple[str, Json]]:
    """Sorted by number where the names are numbers, else by name."""
    numbers = {name: _as_number(name) for name in value}
    if all(number is not None for number in numbers.values()):
        return sorted(value.items(), key=lambda item: (numbers[item[0]] or 0.0, item[0]))
    return sorted(value.items())


def _as_number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None
