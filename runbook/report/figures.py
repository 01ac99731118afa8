"""Numbers as people read them. A number that was not measured is shown as a dash, never as 0."""

from collections.abc import Mapping, Sequence

from runbook.contract import Json
from runbook.params import is_number

NOTHING = "-"
_HUGE = 1e300
_TINY = 1e-300


def real(value: Json) -> float | None:
    """The value as a float; None for what is no number, or one that no float holds."""
    return float(value) if is_number(value) and abs(value) < _HUGE else None


def number(value: Json) -> str:
    """Three digits that count, whole numbers in full: ``0.334``, ``-24.8``, ``45,123``."""
    found = real(value)
    if found is None:
        return NOTHING
    if abs(found) >= 1e15:
        return f"{found:.3g}"
    return f"{found:,.0f}" if found.is_integer() or abs(found) >= 1000 else f"{found:.3g}"


def rate(value: Json, n: Json, successes: Json) -> str:
    """A rate with its counts, ``0.113 (18/160)``; without counts the rate alone."""
    counted_out = real(value) is not None and real(n) is not None and real(successes) is not None
    return f"{fixed(value)} ({number(successes)}/{number(n)})" if counted_out else fixed(value)


def share_of(value: Json, n: Json) -> str:
    """A rate of n items with its counts, which follow from it."""
    share, items = real(value), real(n)
    return rate(value, n, None if share is None or items is None else round(share * items))


def share_of_counts(successes: Json, n: Json) -> str:
    """A rate from its counts alone, ``0.113 (18/160)``."""
    top, bottom = real(successes), real(n)
    return rate(top / bottom, n, successes) if top is not None and bottom else NOTHING


def percent(part: Json, whole: Json) -> str:
    """``24.7 %``."""
    top, bottom = real(part), real(whole)
    return f"{100 * top / bottom:.1f} %" if top is not None and bottom else NOTHING


def p_value(value: Json) -> str:
    """Two digits that count: ``7.3e-06``."""
    found = real(value)
    if found is None:
        return NOTHING
    return f"{found:.2g}" if found >= _TINY else f"below {_TINY:g}"


def fixed(value: Json) -> str:
    """Three decimals, for rates, their bounds and effect sizes."""
    found = real(value)
    return NOTHING if found is None else f"{found:.3f}"


def signed(value: Json) -> str:
    """Three decimals with the sign, for differences."""
    found = real(value)
    return NOTHING if found is None else f"{found:+.3f}"


def interval(ends: Json, *, difference: bool = False) -> str:
    """``0.072 to 0.171``; with signs for a difference."""
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return NOTHING
    low, high = map(signed if difference else fixed, ends)
    return f"{low} to {high}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``54 s``, ``3 min 12 s``, ``1 h 02 min``."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(iso: str) -> str:
    """``2026-11-21 14:28:09 UTC``; the journal's times are in UTC."""
    return f"{iso[:19].replace('T', ' ')} UTC"


def size(count: int) -> str:
    """``132 B``, ``3.8 KiB``, ``543.2 MiB``."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def counted(count: int, noun: str, nouns: str = "") -> str:
    """``1 step``, ``2 steps``; the plural is given where it is not formed with an s."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def listed(names: Sequence[str]) -> str:
    """``retry, stop or override``."""
    *most, last = names or (NOTHING,)
    return f"{', '.join(most)} or {last}" if most else last


def mapping(value: Json) -> Mapping[str, Json]:
    """The value if it is a mapping, else an empty one: a step's summary may hold anything."""
    return value if isinstance(value, Mapping) else {}
