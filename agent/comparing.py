"""Attempts side by side: what differed, and what came nearer to its threshold. Pure.

Rule: a reading is better or worse by its distance from the declared threshold, never by its size.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from agent.escaping import label
from runbook.contract import Attempt, Json, Metric

_BOUND: Final = re.compile(r"(<=|>=|<|>) (\S+)")
_HUGE: Final = 1e300
_Z: Final = 1.959963984540054
"""Of the standard normal, two-sided 95 %."""


def number(value: Json) -> str:
    """Four digits that count; a dash for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _HUGE:
        return "-"
    return f"{value:,.0f}" if abs(value) < 1e15 and float(value).is_integer() else f"{value:.4g}"


def wilson(metric: Metric) -> str:
    """The two-sided 95 % score interval of a rate (Wilson 1927), ``0.163 to 0.264``; else ''."""
    n, hits = metric.n, metric.successes
    if not n or n < 0 or hits is None or not 0 <= hits <= n:
        return ""
    rate, weight = hits / n, _Z * _Z / n
    centre = rate + weight / 2
    half = math.sqrt(rate * (1 - rate) * weight + weight * weight / 4)
    low, high = ((centre + sign * half) / (1 + weight) for sign in (-1, 1))
    return f"{max(0.0, low):.3f} to {min(1.0, high):.3f}"


def reading(metric: Metric) -> str:
    """A metric in a cell: value, interval, denominator."""
    if metric.value is None:
        return "not measured"
    told = [number(metric.value)]
    if interval := wilson(metric):
        told.append(f"({interval}, n {number(metric.n)})")
    elif metric.bound is not None:
        told.append(f"(bound {number(metric.bound)}, n {number(metric.n)})")
    return " ".join(told)


def title(attempt: Attempt) -> str:
    """``attempt 2``, with what kind of look it was."""
    kind = {0: ", a few rows only", 2: ", extended"}.get(attempt.look, "")
    return f"attempt {attempt.attempt}{kind}"


def leaves(attempt: Attempt) -> dict[str, Json]:
    """Its parameters and what was changed of other steps', by dotted name."""
    return {**dict(_flat(attempt.params, "")), **dict(attempt.changes)}


def _flat(value: Json, name: str) -> Iterator[tuple[str, Json]]:
    if isinstance(value, Mapping) and value and name.count(".") < 20:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def differing(attempts: Sequence[Attempt]) -> list[str]:
    """Parameters that did not have one and the same value in all of them."""
    found = [leaves(attempt) for attempt in attempts]
    names = dict.fromkeys(name for one in found for name in one)
    return [n for n in names if any(one.get(n) != found[0].get(n) for one in found)]


def is_plain(value: Json) -> bool:
    """Whether a parameter's value may stand in a table as it is."""
    if isinstance(value, str):
        return label(value) == value
    return value is None or isinstance(value, bool | int | float)


def shown(value: Json) -> str:
    """A parameter's value in a cell; a text or a list stands between fences instead."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if is_plain(value) else "(below)"
    return number(value) if isinstance(value, int | float) else "(below)"


def distance(threshold: str, value: float) -> float | None:
    """How far beyond its threshold a reading lies, in shares of it, 0 within; None: no threshold.

    ``threshold`` is as ``Criterion.threshold`` spells it.
    """
    found = [_beyond(sign, bound, value) for sign, bound in _BOUND.findall(threshold)]
    known = [one for one in found if one is not None]
    return max(0.0, *known) if known else None


def _beyond(sign: str, bound: str, value: float) -> float | None:
    try:
        limit = float(bound)
    except ValueError:
        return None
    return (1 if sign.startswith("<") else -1) * (value - limit) / (abs(limit) or 1.0)


def moves(before: Attempt, after: Attempt) -> tuple[list[str], list[str]]:
    """The criteria that came nearer to passing, and those that went further from it."""
    old = {(c.get("metric"), c.get("kind")): c for c in before.criteria}
    better: list[str] = []
    worse: list[str] = []
    for now in after.criteria:
        was = old.get((now.get("metric"), now.get("kind")), {})
        told = _move(was, now)
        if told:
            (better if told[0] else worse).append(told[1])
    return better, worse


def _move(was: Mapping[str, Json], now: Mapping[str, Json]) -> tuple[bool, str] | None:
    """Whether it came nearer, and in words; None where it did neither."""
    threshold = str(now.get("threshold", ""))
    ends: tuple[Json, Json] = was.get("value"), now.get("value")
    name = label(str(now.get("metric")))
    if any(number(end) == "-" for end in ends):
        return None if number(ends[0]) == number(ends[1]) else _lost(name, ends, threshold)
    first, second = (distance(threshold, float(end)) for end in ends)
    if first is None or second is None or abs(first - second) < 1e-9:
        return None
    return second < first, f"{name} {number(ends[0])} -> {number(ends[1])}{must(threshold)}"


def _lost(name: str, ends: Sequence[Json], threshold: str) -> tuple[bool, str]:
    """One of two readings is missing; to have one is nearer to passing than to have none."""
    told = " -> ".join("not measured" if number(end) == "-" else number(end) for end in ends)
    return number(ends[0]) == "-", f"{name} {told}{must(threshold)}"


def must(threshold: str) -> str:
    """`` (< 0.05)``, of what is a threshold."""
    parts = [f"{sign} {bound}" for sign, bound in _BOUND.findall(threshold) if _is_number(bound)]
    return f" ({' and '.join(parts)})" if parts else ""


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", text) is not None
