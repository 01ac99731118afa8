"""Statistics for gates: intervals for a rate or an AUC, tests for two rates on the same items.

Rule: a number that enters a verdict is computed here and nowhere else, from counts of successes,
never from rates that were rounded before. Degenerate input has a stated answer (no items, no
discordant pair) or is refused; nothing is dropped silently. scipy and numpy are slow to import, so
a function that needs them imports them: a gate of counts, rates and plain statistics does without.
Not here: which numbers pass. Thresholds belong to the gate that declares them.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral
from statistics import NormalDist
from typing import Any, Literal

CONFIDENCE = 0.95
"""Of every interval in a `PairedComparison`."""


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Base and tuned model on the same items; every difference is tuned minus base."""

    n: int
    base_rate: float
    tuned_rate: float
    base_ci: tuple[float, float]
    """Wilson, 95 %, two-sided."""
    tuned_ci: tuple[float, float]
    n01: int
    """Items that the base got wrong and the tuned model right."""
    n10: int
    """Items that the base got right and the tuned model wrong."""
    mcnemar_chi2: float
    """Continuity-corrected, one degree of freedom."""
    mcnemar_p: float
    exact_p: float
    """Two-sided exact binomial over the discordant items."""
    cohens_h: float
    lift: float
    lift_ci: tuple[float, float]
    """Percentile bootstrap over items, 95 %."""
    adjusted_p: float | None = None
    """Benjamini-Hochberg over the kinds' exact p-values; None for the comparison of all items."""
    significant: bool | None = None
    """Whether `adjusted_p` is within the false discovery rate; None for all items."""
    by_kind: dict[str, "PairedComparison"] = field(default_factory=dict)
    """In the order in which the kinds first appear; empty where no kinds were given."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars that survive a round trip through JSON."""
        values = asdict(self)
        for name in ("base_ci", "tuned_ci", "lift_ci"):
            values[name] = list(values[name])
        values["by_kind"] = {kind: part.to_dict() for kind, part in self.by_kind.items()}
        return values


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the two-sided score interval of a rate (Wilson 1927), no continuity correction.

    n = 0 gives (0, 1): nothing is known. Raises ValueError for counts that cannot be.
    """
    z = _normal_quantile(confidence, tails=2)
    return _score_interval(successes, n, z)


def wilson_bound(
    successes: int,
    n: int,
    *,
    side: Literal["lower", "upper"],
    confidence: float = CONFIDENCE,
) -> float:
    """Return the one-sided score bound of a rate: at 95 % its z is 1.645, not 1.960."""
    if side not in ("lower", "upper"):
        raise ValueError(f"wilson_bound: side is {side!r}; give 'lower' or 'upper'.")
    low, high = _score_interval(successes, n, _normal_quantile(confidence, tails=1))
    return low if side == "lower" else high


def auc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Return how often a good item scores higher than a bad one, a tie counted half.

    The area under the ROC curve, by the Mann-Whitney statistic. Raises ValueError where either is
    empty or a score is not finite.
    """
    from scipy import stats  # noqa: PLC0415 - slow, and few gates need it

    _check_scores(good=good, bad=bad)
    found = stats.mannwhitneyu(list(good), list(bad)).statistic
    return float(found) / (len(good) * len(bad))


def auc_bound(area: float, good: int, bad: int, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided lower bound of an AUC by Newcombe's method 5 (2006).

    The area at which the measured one is just as far off as the confidence allows, with Hanley
    and McNeil's variance taken there. So an AUC of 1 has a bound below 1, as a rate of 1 has.
    Raises ValueError for an area outside [0, 1] or no items.
    """
    from scipy import optimize  # noqa: PLC0415 - slow, and few gates need it

    if not 0 <= area <= 1:
        raise ValueError(f"auc_bound: the area is {area!r}; give a share between 0 and 1.")
    _check_counts(good=good, bad=bad)
    if not good or not bad:
        raise ValueError("auc_bound: no items of one label; score both.")
    z = _normal_quantile(confidence, tails=1)
    weight = (good + bad) / 2 - 1

    def gap(theta: float) -> float:
        spread = weight * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return area - theta - z * math.sqrt(theta * (1 - theta) * (1 + spread) / (good * bad))

    # At 0 the gap is the area itself, just below the area it is negative: the root lies between.
    # At an area of 1 the variance vanishes, so that 1 itself would be a root, and no bound.
    return float(optimize.brentq(gap, 0.0, area * (1 - 1e-9))) if area > 0 else 0.0


def mcnemar_chi2(n01: int, n10: int) -> tuple[float, float]:
    """Return McNemar's chi-square with Edwards' continuity correction, and its p-value.

    chi2 = max(|n01 - n10| - 1, 0)^2 / (n01 + n10). The max keeps the correction from turning
    no difference into one: equal counts give (0, 1), and so does no discordant pair.
    """
    from scipy import stats  # noqa: PLC0415 - slow, and few gates need it

    _check_counts(n01=n01, n10=n10)
    if n01 + n10 == 0:
        return 0.0, 1.0
    chi2 = max(abs(n01 - n10) - 1, 0) ** 2 / (n01 + n10)
    return chi2, float(stats.chi2.sf(chi2, df=1))


def mcnemar_exact(n01: int, n10: int) -> float:
    """Return the two-sided exact p-value: n01 is Binomial(n01 + n10, 1/2) if nothing changed."""
    from scipy import stats  # noqa: PLC0415 - slow, and few gates need it

    _check_counts(n01=n01, n10=n10)
    if n01 + n10 == 0:
        return 1.0
    return float(stats.binomtest(int(n01), int(n01 + n10), 0.5).pvalue)


def mcnemar_power(n: int, p01: float, p10: float, alpha: float = 0.01) -> float:
    """Return the chance that `mcnemar_exact` of n items is at most alpha, in [0, 1].

    An item is gained with chance p01 and lost with p10. Exact and unconditional (Schork and
    Williams 1980): over the discordant count, Binomial(n, p01 + p10), the chance that the fair
    binomial test of so many rejects. Connor's formula (1987) is its normal approximation.
    Raises ValueError for rates that cannot be, or an alpha outside (0, 1).
    """
    import numpy as np  # noqa: PLC0415 - slow, and few gates need it
    from scipy.stats import binom  # noqa: PLC0415 - slow, and few gates need it

    _check_counts(n=n)
    discordant = p01 + p10
    if not (p01 >= 0 and p10 >= 0 and discordant <= 1 + 1e-12):
        raise ValueError(f"mcnemar_power: p01 {p01!r} and p10 {p10!r} are no rates of one set.")
    if not 0 < alpha < 1:
        raise ValueError(f"mcnemar_power: alpha is {alpha!r}; give a share such as 0.01.")
    if n * discordant < 1e-15:
        return 0.0  # hardly ever is any item discordant, and scipy overflows on such rates
    discordant = min(discordant, 1.0)
    # Counts further from the mean weigh less than 1e-13 together, by Bernstein's inequality.
    mean = n * discordant
    reach = 8 * math.sqrt(mean * (1 - discordant)) + 40
    count = np.arange(max(1, math.floor(mean - reach)), min(n, math.ceil(mean + reach)) + 1)
    reached = binom.ppf(alpha / 2, count, 0.5)
    critical = np.where(2 * binom.cdf(reached, count, 0.5) <= alpha, reached, reached - 1)
    gain = round(p01 / discordant, 15)
    tails = binom.cdf(critical, count, gain) + binom.cdf(critical, count, 1 - gain)
    return min(1.0, float(np.sum(binom.pmf(count, n, discordant) * tails)))


def smallest_lift(
    n: int, discordant_rate: float, alpha: float = 0.01, power: float = 0.80
) -> float | None:
    """Return the smallest lift that n items show at alpha with this power, or None.

    So many of the items are discordant, or as many as the lift itself, where that is more. None:
    not even a lift of 1 would be shown. Raises ValueError as `mcnemar_power`.
    """
    from scipy import optimize  # noqa: PLC0415 - slow, and few gates need it

    if not 0 <= discordant_rate <= 1 or not alpha < power < 1:
        raise ValueError(
            f"smallest_lift: the discordant rate is {discordant_rate!r}, the power {power!r}; "
            "give a rate, and a power between alpha and 1."
        )

    def missing(lift: float) -> float:
        discordant = max(discordant_rate, lift)
        gained, lost = (discordant + lift) / 2, (discordant - lift) / 2
        return mcnemar_power(n, gained, lost, alpha) - power

    # Without a lift the power is at most alpha; it grows with the lift.
    return float(optimize.brentq(missing, 0.0, 1.0, xtol=1e-9)) if missing(1.0) >= 0 else None


def cohens_h(p1: float, p2: float) -> float:
    """Return the signed effect size 2 asin(sqrt(p1)) - 2 asin(sqrt(p2)) (Cohen 1988, 6.2)."""
    for name, rate in (("p1", p1), ("p2", p2)):
        if not 0 <= rate <= 1:
            raise ValueError(f"cohens_h: {name} is {rate!r}; a rate lies between 0 and 1.")
    return 2 * math.asin(math.sqrt(p1)) - 2 * math.asin(math.sqrt(p2))


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return adjusted p-values in the order given; one at or below q is a discovery at FDR q.

    Benjamini and Hochberg 1995, step-up. Raises ValueError for none, or one outside [0, 1].
    """
    from scipy import stats  # noqa: PLC0415 - slow, and few gates need it

    if not len(p_values) or not all(0 <= p <= 1 for p in p_values):
        raise ValueError(
            f"benjamini_hochberg: got {list(p_values)!r}; give one or more p-values in [0, 1]."
        )
    return tuple(float(p) for p in stats.false_discovery_control(list(p_values), method="bh"))


def paired_comparison(  # three data columns, three declared settings
    base: Sequence[bool],
    tuned: Sequence[bool],
    kinds: Sequence[str] | None = None,
    *,
    fdr: float = 0.10,
    bootstrap: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two models' successes on the same items, over all items and within each kind.

    Within kinds the exact p-values are adjusted, not the chi-square's: a kind has a fifth of the
    items and often so few discordant ones that the chi-square approximation is off.
    Raises ValueError for no items, columns of unequal length, a value that is not a bool, an fdr
    outside (0, 1) or fewer than one bootstrap draw.
    """
    _check_columns(base, tuned, kinds)
    if not 0 < fdr < 1:
        raise ValueError(f"paired_comparison: fdr is {fdr!r}; give a rate between 0 and 1.")
    if bootstrap < 1:
        raise ValueError(f"paired_comparison: bootstrap is {bootstrap}; draw at least one sample.")
    pairs = [(bool(b), bool(t)) for b, t in zip(base, tuned, strict=True)]
    overall = _compare(pairs, bootstrap, seed)
    if kinds is None:
        return overall
    by_kind: dict[str, list[tuple[bool, bool]]] = {}
    for kind, pair in zip(kinds, pairs, strict=True):
        by_kind.setdefault(kind, []).append(pair)
    parts = {kind: _compare(group, bootstrap, seed) for kind, group in by_kind.items()}
    adjusted = benjamini_hochberg([part.exact_p for part in parts.values()])
    return replace(
        overall,
        by_kind={
            kind: replace(part, adjusted_p=p, significant=p <= fdr)
            for (kind, part), p in zip(parts.items(), adjusted, strict=True)
        },
    )


def _compare(pairs: Sequence[tuple[bool, bool]], bootstrap: int, seed: int) -> PairedComparison:
    n = len(pairs)
    base_right = sum(b for b, _ in pairs)
    tuned_right = sum(t for _, t in pairs)
    n01 = sum(t and not b for b, t in pairs)
    n10 = sum(b and not t for b, t in pairs)
    chi2, p = mcnemar_chi2(n01, n10)
    return PairedComparison(
        n=n,
        base_rate=base_right / n,
        tuned_rate=tuned_right / n,
        base_ci=wilson(base_right, n),
        tuned_ci=wilson(tuned_right, n),
        n01=n01,
        n10=n10,
        mcnemar_chi2=chi2,
        mcnemar_p=p,
        exact_p=mcnemar_exact(n01, n10),
        cohens_h=cohens_h(tuned_right / n, base_right / n),
        lift=(tuned_right - base_right) / n,
        lift_ci=_bootstrap_lift(n01, n10, n, bootstrap, seed),
    )


def _bootstrap_lift(n01: int, n10: int, n: int, draws: int, seed: int) -> tuple[float, float]:
    """Return the percentile interval of (n01 - n10) / n when whole items are drawn again.

    An item adds +1, -1 or 0 to the lift, so the counts of a resample of n items are exactly
    multinomial over these three cells: nothing is approximated by drawing the counts themselves.
    """
    import numpy as np  # noqa: PLC0415 - slow, and few gates need it

    rng = np.random.default_rng(seed)
    cells = rng.multinomial(n, [n01 / n, n10 / n, (n - n01 - n10) / n], size=draws)
    lifts = (cells[:, 0] - cells[:, 1]) / n
    low, high = np.quantile(lifts, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _score_interval(successes: int, n: int, z: float) -> tuple[float, float]:
    _check_counts(successes=successes, n=n)
    if successes > n:
        raise ValueError(f"wilson: {successes} successes of {n} items; check which count is which.")
    if n == 0:
        return 0.0, 1.0
    rate, share = successes / n, z * z / n
    centre = (rate + share / 2) / (1 + share)
    half = z * math.sqrt(rate * (1 - rate) / n + share / (4 * n)) / (1 + share)
    # The ends are exact by algebra; rounding would leave 1e-17 where a gate compares with 0.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def _normal_quantile(confidence: float, tails: Literal[1, 2]) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"wilson: confidence is {confidence!r}; give a share such as 0.95.")
    return -NormalDist().inv_cdf((1 - confidence) / tails)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
            raise ValueError(f"{name} is {count!r}; give a count: a whole number, 0 or more.")


def _check_scores(**columns: Sequence[float]) -> None:
    for name, scores in columns.items():
        if not len(scores):
            raise ValueError(f"auc: no {name} items; score at least one.")
        for place, score in enumerate(scores):
            if isinstance(score, bool) or not math.isfinite(score):
                raise ValueError(f"auc: {name}[{place}] is {score!r}; give a finite score.")


def _check_columns(
    base: Sequence[bool], tuned: Sequence[bool], kinds: Sequence[str] | None
) -> None:
    import numpy as np  # noqa: PLC0415 - slow, and few gates need it

    if not len(base):
        raise ValueError("paired_comparison: no items; evaluate the held-out set first.")
    if len(base) != len(tuned):
        raise ValueError(
            f"paired_comparison: {len(base)} base and {len(tuned)} tuned results; "
            "score the same items with both models, in the same order."
        )
    for name, column in (("base", base), ("tuned", tuned)):
        for place, value in enumerate(column):
            if not isinstance(value, bool | np.bool_):
                raise ValueError(  # noqa: TRY004  # one class per remedy: fix the input
                    f"paired_comparison: {name}[{place}] is {value!r}; give True or False. "
                    "An item without a result must be scored or left out of both columns."
                )
    if kinds is not None and len(kinds) != len(base):
        raise ValueError(
            f"paired_comparison: {len(kinds)} kinds for {len(base)} items; give one per item."
        )
