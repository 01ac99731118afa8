"""Readings of a made dossier: criteria with another value, and the metrics and counts beside them.

Rule: names, kinds, thresholds, sample sizes and types are the real review's; a value agrees with
the verdict that is given for it, and both are worded as a gate words them. No text is taken over.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from runbook.artifacts import canonical_json
from runbook.contract import Attempt, Json, Metric

_SHARES = frozenset({"rate", "p_value", "power", "instrument"})
"""Kinds whose values lie between 0 and 1."""
_Z = 1.6448536269514722
"""Of the standard normal, one-sided 95 %."""
_SPREAD = 0.1
"""By so much a count differs from the real one at most, as a share of it."""
_DEEPEST = 40
"""As ``agent.escaping`` shows of a value."""
_HUGE = 1e300
_PLAIN_WORDS = ("plain", "usual", "first", "main")
"""In place of the texts that a step told."""


def shuffler(salt: str) -> Callable[[Json], bytes]:
    """A key by which values stand in an order that is the same for the same salt."""
    return lambda value: hashlib.sha256(f"{salt}/{canonical_json(value)}".encode()).digest()


def judged(criterion: Mapping[str, Json], far: float, denominator: str = "") -> dict[str, Json]:
    """The criterion with another reading: passing where ``far`` is 0, else so many times off."""
    if not far and criterion.get("verdict") == "pass":
        return dict(criterion)
    threshold = str(criterion.get("threshold", ""))
    sign, bound = _sides(threshold)
    kind, n = criterion.get("kind"), criterion.get("n")
    # Away from the threshold: a count that is rounded to its other side would belie the verdict.
    away = math.ceil if sign.startswith("<") == bool(far) else math.floor
    value = _violating(sign, bound, far) if far else _satisfying(sign, bound)
    if kind in _SHARES:
        value = min(1.0, max(0.0, value))
    if kind == "rate" and isinstance(n, int) and n > 0:
        hits = min(n, away(value * n))
        if not far:
            return _passing_rate(criterion, hits, n, denominator)
        value = hits / n
    elif kind == "census":
        value = float(away(value))
    told = f"{value:.4g} {'does not satisfy' if far else 'satisfies'} {threshold}"
    return _with(criterion, value, "fail" if far else "pass", told)


def too_few(criterion: Mapping[str, Json], n: int) -> dict[str, Json]:
    """The criterion with a reading that holds, of rows too few for a verdict."""
    value = judged({**criterion, "verdict": "fail"}, far=0.0)["value"]
    told = f"n is {n}, the criterion asks for {max(100, 2 * n)}"
    return _with(criterion, value, "underpowered", told)


def doubted(
    criterion: Mapping[str, Json], state: str, why: str, denominator: str = ""
) -> dict[str, Json]:
    """The criterion with a number where it could not be believed, and with this for the cause."""
    if criterion.get("verdict") != "invalid":
        return dict(criterion)
    value = judged(criterion, far=0.0, denominator=denominator)["value"]
    told = f"read {value:.4g} from an instrument that is {state}: {why}"
    return _with(criterion, value, "invalid", told)


def _with(
    criterion: Mapping[str, Json], value: float, verdict: str, reason: str
) -> dict[str, Json]:
    made = {"value": value, "verdict": verdict, "reason": reason, "bound": None, "thin": False}
    return {**criterion, **made}


def _passing_rate(
    criterion: Mapping[str, Json], hits: int, n: int, denominator: str
) -> dict[str, Json]:
    """By the bound that decides; of a sample that is too small for it by the rate, and thin."""
    threshold = str(criterion.get("threshold", ""))
    sign, limit = _sides(threshold)
    is_upper = sign.startswith("<")
    bound = score_bound(hits, n, is_upper=is_upper)
    said = f"{hits} of {n} {denominator}".rstrip()
    holds = bound < limit if is_upper else bound > limit
    clear = f"{said}; its 95 % bound {bound:.4g} satisfies {threshold}"
    thin = f"{said}; the rate satisfies {threshold}, its 95 % bound {bound:.4g} does not (thin)"
    made = _with(criterion, hits / n, "pass", clear if holds else thin)
    return {**made, "bound": bound, "thin": not holds}


def score_bound(hits: int, n: int, *, is_upper: bool) -> float:
    """The one-sided 95 % score bound of a rate (Wilson 1927)."""
    rate, weight = hits / n, _Z * _Z / n
    half = math.sqrt(rate * (1 - rate) * weight + weight * weight / 4)
    end = (rate + weight / 2 + (half if is_upper else -half)) / (1 + weight)
    return min(1.0, max(0.0, end))


def _sides(text: str) -> tuple[str, float]:
    """The first side of a declared comparison, as ``Criterion.threshold`` words it."""
    sign, _, rest = text.partition(" ")
    try:
        return sign, float(rest.partition(" ")[0])
    except ValueError:
        return "<", 1.0


def _violating(sign: str, bound: float, far: float) -> float:
    """A value on the wrong side, further off the greater ``far`` is."""
    if sign.startswith("<"):
        return bound + max(abs(bound), 1.0 if bound == 0 else 0.0) * (far - 0.9)
    return bound - abs(bound) * min(0.9, far / 6) if bound else -far


def _satisfying(sign: str, bound: float) -> float:
    """A value that clears the threshold well."""
    if sign.startswith("<"):
        return bound * 0.2 if bound >= 0 else bound * 1.5
    return bound * 1.5 if bound >= 0 else bound * 0.5


def reasons_of(criteria: Iterable[Mapping[str, Json]]) -> tuple[str, ...]:
    """As a gate gives them: of what did not pass, and of what passed thinly."""
    told = (c for c in criteria if c["verdict"] != "pass" or c.get("thin") is True)
    return tuple(f"{c['metric']}: {c['reason']}" for c in told)


def metrics_of(
    run: Attempt, criteria: Iterable[Mapping[str, Json]], salt: str
) -> tuple[Metric, ...]:
    """The attempt's metrics as these criteria read them; others near their real values."""
    read = {str(c["metric"]): c for c in reversed(tuple(criteria))}
    missing = {str(c["metric"]) for c in run.criteria or read.values() if c.get("value") is None}
    known = {m.name for m in run.metrics}
    added = [n for n in reversed(read) if n not in known and (n in missing or not known)]
    return (
        *(_read(m, read[m.name]) if m.name in read else _near(m, salt) for m in run.metrics),
        *(_read(Metric(name, None), read[name]) for name in added),
    )


def _read(metric: Metric, criterion: Mapping[str, Json]) -> Metric:
    value, n = criterion["value"], criterion.get("n")
    counts = criterion.get("kind") == "rate" and isinstance(n, int) and value is not None
    hits = round(value * n) if counts else None
    bound = criterion.get("bound") if metric.bound is not None else None
    return Metric(metric.name, value, n, hits, metric.denominator, bound=bound)


def _near(metric: Metric, salt: str) -> Metric:
    made = replace(
        Metric(metric.name, similar(metric.value, salt), metric.n, denominator=metric.denominator),
        bound=similar(metric.bound, salt),
    )
    if metric.n and metric.successes is not None:
        hits = min(metric.n, similar(metric.successes, salt))
        return replace(made, successes=hits, value=hits / metric.n)
    return made


def similar(
    value: Json, salt: str, known: Mapping[str, Json] | None = None, depth: int = 0
) -> Json:
    """A value of the same shape: keys and types stay, numbers move a little, texts are made.

    Args:
        value: any JSON; what no page shows, being too deep, is left out.
        salt: the same one moves all numbers by the same share.
        known: readings by their names, for keys of such a name.
        depth: of this value within the whole.
    """
    match value:
        case Mapping() | list() | tuple() if depth > _DEEPEST:
            return None
        case Mapping():
            read = {name: _as_read(inner, (known or {}).get(name)) for name, inner in value.items()}
            return {
                name: similar(inner, salt, known, depth + 1) if read[name] is None else read[name]
                for name, inner in value.items()
            }
        case list() | tuple():
            return [similar(item, salt, known, depth + 1) for item in value]
        case str():
            return _PLAIN_WORDS[_draw(f"{salt}/{value}")[0] % len(_PLAIN_WORDS)]
        case int() if not isinstance(value, bool) and abs(value) < _HUGE:
            return round(value * _factor(salt))
        case float() if abs(value) < _HUGE:
            moved = round(value * _factor(salt), _digits(value))
            return min(1.0, moved) if value <= 1 else moved
    return value


def _as_read(value: Json, reading: Json) -> float | None:
    """The reading where this is a number too, of its type; else None."""
    if type(value) not in (int, float) or type(reading) not in (int, float):
        return None
    return round(reading) if type(value) is int else float(reading)


def _digits(value: float) -> int:
    """Behind the point, as it is written; a whole number keeps none."""
    told = repr(value)
    return 16 if "e" in told else 0 if told.endswith(".0") else len(told.partition(".")[2])


def _factor(salt: str) -> float:
    """Between 0.9 and 1.1."""
    return 1 - _SPREAD + 2 * _SPREAD * int.from_bytes(_draw(salt)[:4]) / 2**32


def _draw(salt: str) -> bytes:
    return hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
