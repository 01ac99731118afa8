"""Metrics against declared criteria: the verdict and its reasons. Pure; reads no file.

Rule: nothing passes by default. A metric that is missing, empty, not finite, inconsistent or read
from an instrument that failed its own check is ``invalid``. A rate passes when its one-sided 95 %
Wilson bound clears the threshold, or, where the sample cannot grow any more, by the criterion's
declared rule, marked thin.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from gates.stats import wilson_bound
from runbook.contract import Criterion, CriterionResult, Instrument, Judgement, Metric, Verdict

_WORST_FIRST: Final = (Verdict.INVALID, Verdict.FAIL, Verdict.UNDERPOWERED)

_RANGES: Final[dict[str, Callable[[float], bool]]] = {
    "p_value": lambda v: 0 <= v <= 1,
    "rate": lambda v: 0 <= v <= 1,
    "instrument": lambda v: 0 <= v <= 1,
    "census": lambda v: v >= 0,
}


def judge(criteria: Sequence[Criterion], metrics: Sequence[Metric], *, final: bool) -> Judgement:
    """Judge every criterion.

    Args:
        criteria: the gate's.
        metrics: what was measured; names are unique.
        final: the sample cannot be extended any more.

    Returns:
        A tripped sentinel makes the gate fail before anything else; then invalid, fail and
        underpowered in this order; pass only if every criterion passed.
    """
    named = {m.name: m for m in metrics}
    results = tuple(
        _judge_one(c, named[c.metric], final=final) if c.metric in named else _missing(c, named)
        for c in criteria
    )
    doubled = sorted({m.name for m in metrics if sum(o.name == m.name for o in metrics) > 1})
    if doubled:
        results = tuple(
            _with(r, Verdict.INVALID, "the metric was reported twice") if r.metric in doubled else r
            for r in results
        )
    reasons = tuple(
        f"{r.metric}: {r.reason}" for r in results if r.verdict is not Verdict.PASS or r.thin
    )
    return Judgement(_overall(results), results, reasons)


def _overall(results: Sequence[CriterionResult]) -> Verdict:
    if not results:
        return Verdict.INVALID
    if any(r.kind == "sentinel" and r.verdict is Verdict.FAIL for r in results):
        return Verdict.FAIL
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
        threshold=criterion.threshold,
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
    fault = _fault(criterion, metric)
    if fault:
        return _with(blank, Verdict.INVALID, fault)
    assert metric.value is not None
    if criterion.kind == "instrument":
        return _judge_instrument(criterion, metric, blank)
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
        return _with(blank, Verdict.FAIL, told)
    if criterion.kind == "rate":
        return _judge_rate(criterion, metric, blank, final=final)
    return _with(blank, Verdict.PASS, f"{metric.value:.4g} satisfies {blank.threshold}")


def _fault(criterion: Criterion, metric: Metric) -> str:
    """Why the reading cannot be believed at all; '' where it can."""
    if metric.value is None:
        return metric.note or "nothing could be measured"
    if isinstance(metric.value, bool) or not math.isfinite(metric.value):
        return f"the value is {metric.value}"
    if metric.n == 0:
        return "measured on nothing (n is 0)"
    if criterion.min_n > 1 and metric.n is None:
        return f"n is unknown, the criterion asks for {criterion.min_n}"
    if criterion.kind in _RANGES and not _RANGES[criterion.kind](metric.value):
        return f"{metric.value:.4g} is no {criterion.kind.replace('_', '-')}"
    if criterion.kind == "rate":
        if metric.n is None or metric.successes is None:
            return "a rate needs its numerator and denominator"
        consistent = math.isclose(metric.value, metric.successes / metric.n, abs_tol=1e-9)
        if not 0 <= metric.successes <= metric.n or not consistent:
            return f"{metric.successes} of {metric.n} is not {metric.value:.4g}"
    return ""


def _judge_instrument(
    criterion: Criterion, metric: Metric, blank: CriterionResult
) -> CriterionResult:
    """An instrument's own check: what does not pass it cannot be believed, so never ``fail``."""
    assert metric.value is not None
    blank = replace(blank, bound=metric.bound)
    if metric.instrument is not Instrument.OK:
        told = f"the instrument is {metric.instrument.value}"
        return _with(blank, Verdict.INVALID, f"{told}: {metric.note}" if metric.note else told)
    if metric.bound is None or not math.isfinite(metric.bound) or metric.bound > metric.value:
        return _with(blank, Verdict.INVALID, f"read {metric.value:.4g} without a lower 95 % bound")
    if metric.n is None or metric.n < criterion.min_n:
        told = f"n is {metric.n}, the criterion asks for {criterion.min_n}"
        return _with(blank, Verdict.INVALID, told)
    told = f"{metric.value:.4g}, its lower 95 % bound {metric.bound:.4g}"
    if not _holds(criterion, metric.bound):
        advice = f"; {metric.note}" if metric.note else ""
        told = f"{told} does not satisfy {blank.threshold}{advice}"
        return _with(blank, Verdict.INVALID, told)
    return _with(blank, Verdict.PASS, f"{told} satisfies {blank.threshold}")


def _judge_rate(
    criterion: Criterion, metric: Metric, blank: CriterionResult, *, final: bool
) -> CriterionResult:
    assert metric.n is not None
    assert metric.successes is not None
    sides = []
    if criterion.below is not None or criterion.at_most is not None:
        sides.append(wilson_bound(metric.successes, metric.n, side="upper"))
    if criterion.above is not None or criterion.at_least is not None:
        sides.append(wilson_bound(metric.successes, metric.n, side="lower"))
    blank = replace(blank, bound=sides[0])
    shown = f"{metric.successes} of {metric.n} {metric.denominator}".rstrip()
    if all(
        _holds(_one_sided(criterion, upper=i == 0 and _has_upper(criterion)), bound)
        for i, bound in enumerate(sides)
    ):
        told = f"{shown}; its 95 % bound {sides[0]:.4g} satisfies {blank.threshold}"
        return _with(blank, Verdict.PASS, told)
    told = f"{shown}; the rate satisfies {blank.threshold}, its 95 % bound {sides[0]:.4g} does not"
    if not final:
        return _with(blank, Verdict.UNDERPOWERED, told)
    if criterion.at_max_n == "bound":
        return _with(blank, Verdict.FAIL, told)
    return _with(replace(blank, thin=True), Verdict.PASS, told + " (thin)")


def _has_upper(criterion: Criterion) -> bool:
    return criterion.below is not None or criterion.at_most is not None


def _one_sided(criterion: Criterion, *, upper: bool) -> Criterion:
    if upper:
        return replace(criterion, above=None, at_least=None)
    return replace(criterion, below=None, at_most=None)


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
