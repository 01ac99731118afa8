"""Metrics against declared criteria: the verdict and its reasons. Pure; reads no file.

Rule: nothing passes by default. A metric that is missing, empty, not finite, inconsistent or read
from an instrument that failed its own check is ``invalid``, and so is a control that does not hold:
it says that the measurement is wrong, not what was measured. A rate passes when its one-sided 95 %
Wilson bound clears the threshold, or, where the sample cannot grow any more, by the criterion's
declared rule, marked thin; judged by its point alone it is ``invalid``, and so is what is held
against a criterion that cannot be judged.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from gates.stats import wilson_bound
from runbook.contract import Criterion, CriterionResult, Instrument, Judgement, Metric, Verdict

_WORST_FIRST: Final = (Verdict.INVALID, Verdict.FAIL, Verdict.UNDERPOWERED)

_RANGES: Final[dict[str, Callable[[float], bool]]] = {
    "p_value": lambda v: 0 <= v <= 1,
    "rate": lambda v: 0 <= v <= 1,
    "instrument": lambda v: 0 <= v <= 1,
    "power": lambda v: 0 <= v <= 1,
    "census": lambda v: v >= 0 and v == math.floor(v),
}
KINDS: Final = (
    "census",
    "rate",
    "statistic",
    "p_value",
    "instrument",
    "control",
    "power",
    "sentinel",
)
_MOST: Final = 2**53
"""Up to here a float tells one count from the next."""


def judge(
    criteria: Sequence[Criterion],
    metrics: Sequence[Metric],
    *,
    final: bool,
    doubts_a_pass: Collection[str] = (),
) -> Judgement:
    """Judge every criterion.

    Args:
        criteria: the gate's.
        metrics: what was measured; a name that stands twice makes the gate invalid.
        final: the sample cannot be extended any more.
        doubts_a_pass: metrics that, read and not holding, make a pass invalid and leave a fail.

    Returns:
        A tripped sentinel makes the gate fail before anything else; then invalid, fail and
        underpowered in this order; pass only if every criterion passed.
    """
    named = {m.name: m for m in metrics}
    results = tuple(
        _judge_one(c, named[c.metric], final=final) if c.metric in named else _missing(c, named)
        for c in criteria
    )
    doubled = sorted(name for name, times in Counter(m.name for m in metrics).items() if times > 1)
    twice = "the metric was reported twice"
    results = tuple(_with(r, Verdict.INVALID, twice) if r.metric in doubled else r for r in results)
    reasons = tuple(
        f"{r.metric}: {r.reason}" for r in results if r.verdict is not Verdict.PASS or r.thin
    )
    asked = {r.metric for r in results}
    reasons += tuple(f"{name}: {twice}" for name in doubled if name not in asked)
    verdict = _overall(results, doubts_a_pass)
    if doubled and not (verdict is Verdict.FAIL and _tripped(results)):
        verdict = Verdict.INVALID
    return Judgement(verdict, results, reasons)


def _tripped(results: Sequence[CriterionResult]) -> bool:
    return any(r.kind == "sentinel" and r.verdict is Verdict.FAIL for r in results)


def _overall(results: Sequence[CriterionResult], doubts_a_pass: Collection[str]) -> Verdict:
    if not results:
        return Verdict.INVALID
    if _tripped(results):
        return Verdict.FAIL
    others = [r for r in results if r.value is None or r.metric not in doubts_a_pass]
    if _worst(others) is Verdict.FAIL:
        return Verdict.FAIL
    return _worst(results)


def _worst(results: Sequence[CriterionResult]) -> Verdict:
    for verdict in _WORST_FIRST:
        if any(r.verdict is verdict for r in results):
            return verdict
    return Verdict.PASS


def _missing(criterion: Criterion, named: Mapping[str, Metric]) -> CriterionResult:
    told = f"was not measured; the step measured {', '.join(sorted(named)) or 'nothing'}"
    return _with(_blank(criterion, None), Verdict.INVALID, told)


def _blank(criterion: Criterion, metric: Metric | None) -> CriterionResult:
    return CriterionResult(
        metric=criterion.metric,
        kind=criterion.kind,
        threshold="" if _unjudgeable(criterion) else criterion.threshold,
        verdict=Verdict.INVALID,
        value=metric.value if metric else None,
        n=metric.n if metric else None,
        bound=None,
        thin=False,
        reason="",
        evidence=metric.evidence if metric else "",
    )


def _judge_one(criterion: Criterion, metric: Metric, *, final: bool) -> CriterionResult:
    blank = _blank(criterion, metric)
    fault = _unjudgeable(criterion) or _fault(criterion, metric)
    if fault:
        return _with(blank, Verdict.INVALID, fault)
    assert metric.value is not None
    if criterion.kind == "instrument":
        return _judge_instrument(criterion, metric, blank)
    if criterion.kind == "control":
        return _judge_control(criterion, metric, blank)
    holds = _holds(criterion, metric.value)
    if metric.instrument is not Instrument.OK and not (criterion.kind == "sentinel" and not holds):
        told = f"read {metric.value:.4g} from an instrument that is {metric.instrument.value}"
        told = f"{told}: {metric.note}" if metric.note else told
        return _with(blank, Verdict.INVALID, told)
    if metric.n is not None and metric.n < criterion.min_n and criterion.kind != "sentinel":
        told = f"n is {metric.n}, the criterion asks for {criterion.min_n}"
        return _with(blank, Verdict.UNDERPOWERED, told)
    if not holds:
        told = f"{metric.value:.4g} does not satisfy {blank.threshold}"
        if criterion.kind == "power":
            told += f"; {metric.note}" if metric.note else ""
            return _with(blank, Verdict.UNDERPOWERED, told)
        return _with(blank, Verdict.FAIL, told)
    if criterion.kind == "rate":
        return _judge_rate(criterion, metric, blank, final=final)
    return _with(blank, Verdict.PASS, f"{metric.value:.4g} satisfies {blank.threshold}")


def _unjudgeable(criterion: Criterion) -> str:
    """Why nothing can be held against the criterion; '' where something can.

    What a file declares was checked as it was loaded; code may hand over anything.
    """
    ends = (criterion.below, criterion.above, criterion.at_most, criterion.at_least)
    declared = [end for end in ends if end is not None]
    if criterion.kind not in KINDS:
        return f"there is no kind of criterion {criterion.kind!r:.40}"
    if not declared:
        return "the criterion compares with nothing"
    if not all(_is_finite(end) for end in declared):
        return "the criterion compares with what is no finite number"
    if not _is_count(criterion.min_n) or criterion.min_n < 1:
        return "the min_n of the criterion is no count"
    if criterion.at_max_n not in {"rate", "bound"}:
        return f"there is no rule at_max_n {criterion.at_max_n!r:.40}"
    return ""


def _fault(criterion: Criterion, metric: Metric) -> str:
    """Why the reading cannot be believed at all; '' where it can."""
    if metric.value is None:
        return metric.note or "nothing could be measured"
    if not _is_finite(metric.value):
        told = str(metric.value) if isinstance(metric.value, float | bool) else "no finite number"
        return f"the value is {told}"
    if not all(_is_count(x) for x in (metric.n, metric.successes) if x is not None):
        return "n, or the count of successes, is no whole number that can be counted to"
    if metric.n is not None and metric.n <= 0:
        return f"measured on nothing (n is {metric.n})"
    if criterion.kind == "power" and metric.n is None:
        return "power is that of a sample, and nothing tells its n"
    if criterion.min_n > 1 and metric.n is None:
        return f"n is unknown, the criterion asks for {criterion.min_n}"
    if criterion.kind in _RANGES and not _RANGES[criterion.kind](metric.value):
        return f"{metric.value:.4g} is no {criterion.kind.replace('_', '-')}"
    if criterion.kind == "rate" or metric.successes is not None:
        return _rate_fault(criterion, metric, metric.value)
    return ""


def _rate_fault(criterion: Criterion, metric: Metric, value: float) -> str:
    if metric.n is None or metric.successes is None:
        return "a rate needs its numerator and denominator"
    consistent = math.isclose(value, metric.successes / metric.n, abs_tol=1e-9)
    if not 0 <= metric.successes <= metric.n or not consistent:
        return f"{metric.successes} of {metric.n} is not {value:.4g}"
    if criterion.kind in {"statistic", "census"}:
        return f"a rate, judged as a {criterion.kind}, that is without its bound; declare kind rate"
    return ""


def _is_finite(value: object) -> bool:
    """Whether it is a number that a float can hold; a whole number may be too large for one."""
    try:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(float(value))
        )
    except OverflowError:
        return False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST


def _judge_instrument(
    criterion: Criterion, metric: Metric, blank: CriterionResult
) -> CriterionResult:
    """An instrument's own check: what does not pass it cannot be believed, so never ``fail``."""
    assert metric.value is not None
    bound = metric.bound
    if metric.successes is not None and metric.n is not None:
        bound = wilson_bound(metric.successes, metric.n, side="lower")
    blank = replace(blank, bound=bound)
    if metric.instrument is not Instrument.OK:
        told = f"the instrument is {metric.instrument.value}"
        return _with(blank, Verdict.INVALID, f"{told}: {metric.note}" if metric.note else told)
    if bound is None or not math.isfinite(bound) or bound > metric.value:
        return _with(blank, Verdict.INVALID, f"read {metric.value:.4g} without a lower 95 % bound")
    if metric.n is None or metric.n < criterion.min_n:
        told = f"n is {metric.n}, the criterion asks for {criterion.min_n}"
        return _with(blank, Verdict.INVALID, told)
    told = f"{metric.value:.4g}, its lower 95 % bound {bound:.4g}"
    if not _holds(criterion, bound):
        advice = f"; {metric.note}" if metric.note else ""
        told = f"{told} does not satisfy {blank.threshold}{advice}"
        return _with(blank, Verdict.INVALID, told)
    return _with(blank, Verdict.PASS, f"{told} satisfies {blank.threshold}")


def _judge_control(criterion: Criterion, metric: Metric, blank: CriterionResult) -> CriterionResult:
    """What must hold for any reading to be believed, so never ``fail``; a rate by its bound.

    Where the rate holds and its bound does not, nothing was found wrong: ``underpowered``.
    """
    assert metric.value is not None
    if metric.instrument is not Instrument.OK:
        told = f"the instrument is {metric.instrument.value}"
        return _with(blank, Verdict.INVALID, f"{told}: {metric.note}" if metric.note else told)
    if metric.n is not None and metric.n < criterion.min_n:
        told = f"n is {metric.n}, the criterion asks for {criterion.min_n}"
        return _with(blank, Verdict.INVALID, told)
    told, holds = f"{metric.value:.4g}", _holds(criterion, metric.value)
    otherwise = Verdict.INVALID
    if metric.successes is not None and metric.n is not None:
        bounds = _bounds(criterion, metric.successes, metric.n)
        blank = replace(blank, bound=bounds[0][1])
        told = f"{metric.successes} of {metric.n} {metric.denominator}".rstrip()
        told = f"{told}; its 95 % bound {bounds[0][1]:.4g}"
        otherwise = Verdict.UNDERPOWERED if holds else Verdict.INVALID
        holds = all(_holds(side, bound) for side, bound in bounds)
    if holds:
        return _with(blank, Verdict.PASS, f"{told} satisfies {blank.threshold}")
    told = f"{told} does not satisfy {blank.threshold}"
    return _with(blank, otherwise, f"{told}; {metric.note}" if metric.note else told)


def _judge_rate(
    criterion: Criterion, metric: Metric, blank: CriterionResult, *, final: bool
) -> CriterionResult:
    assert metric.n is not None
    assert metric.successes is not None
    bounds = _bounds(criterion, metric.successes, metric.n)
    shown, bound = f"{metric.successes} of {metric.n} {metric.denominator}".rstrip(), bounds[0][1]
    blank = replace(blank, bound=bound)
    if all(_holds(side, end) for side, end in bounds):
        told = f"{shown}; its 95 % bound {bound:.4g} satisfies {blank.threshold}"
        return _with(blank, Verdict.PASS, told)
    told = f"{shown}; the rate satisfies {blank.threshold}, its 95 % bound {bound:.4g} does not"
    if not final:
        return _with(blank, Verdict.UNDERPOWERED, told)
    if not _can_clear(criterion, metric.n):
        told = f"{told}; no count of {metric.n} could"
        return _with(blank, Verdict.UNDERPOWERED, told)
    if criterion.at_max_n == "bound":
        return _with(blank, Verdict.FAIL, told)
    return _with(replace(blank, thin=True), Verdict.PASS, told + " (thin)")


def _can_clear(criterion: Criterion, n: int) -> bool:
    """Whether the best count of n would satisfy the criterion by its bounds."""
    low = max((x for x in (criterion.above, criterion.at_least) if x is not None), default=0.0)
    high = min((x for x in (criterion.below, criterion.at_most) if x is not None), default=1.0)
    # With two ends, the best count lies between them.
    best = {0 if low <= 0 else n, n if high >= 1 else 0, round(n * (low + high) / 2)}
    return any(all(_holds(side, end) for side, end in _bounds(criterion, k, n)) for k in best)


def _bounds(criterion: Criterion, successes: int, n: int) -> list[tuple[Criterion, float]]:
    """Each declared side of the criterion with the one-sided bound that it is held against."""
    found = []
    if criterion.below is not None or criterion.at_most is not None:
        upper = wilson_bound(successes, n, side="upper")
        found.append((replace(criterion, above=None, at_least=None), upper))
    if criterion.above is not None or criterion.at_least is not None:
        lower = wilson_bound(successes, n, side="lower")
        found.append((replace(criterion, below=None, at_most=None), lower))
    return found


def _holds(criterion: Criterion, value: float) -> bool:
    c = criterion
    return (
        (c.below is None or value < c.below)
        and (c.above is None or value > c.above)
        and (c.at_most is None or value <= c.at_most)
        and (c.at_least is None or value >= c.at_least)
    )


def _with(blank: CriterionResult, verdict: Verdict, reason: str) -> CriterionResult:
    return replace(blank, verdict=verdict, reason=reason)
