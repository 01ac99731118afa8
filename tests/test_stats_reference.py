"""The gates' statistics equal statsmodels', or an exact enumeration, on random tables.

Each thousand tables is drawn from its own fixed seed and joined by the degenerate ones. The
tolerance 1e-9 is relative; where the true value can be 0, rounding of order 1e-16 is let pass.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import multinomial, norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.nonparametric import rank_compare_2indep
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize

from gates import stats

TABLES = 1000


def equal(got: Any, expected: Any, *, rtol: float = 1e-9, atol: float = 1e-15) -> None:
    """Nine digits agree."""
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=rtol, atol=atol)


def rates() -> Iterator[tuple[int, int, float]]:
    """Successes, items, confidence: of 1 to 10,000 items, and none, all and one of few."""
    rng = np.random.default_rng(1)
    for n in np.concatenate([np.arange(1, 31), rng.integers(1, 10_000, TABLES)]):
        drawn = int(rng.integers(0, n + 1))
        for successes in {0, int(n), 1, int(n) - 1, drawn}:
            yield successes, int(n), float(rng.uniform(0.5, 0.9999))


def tables() -> Iterator[tuple[int, int, int, int]]:
    """Both right, only tuned, only base, neither: all up to one of each, then random ones."""
    for both, n01, n10, neither in itertools.product((0, 1), repeat=4):
        if both + n01 + n10 + neither:
            yield both, n01, n10, neither
    rng = np.random.default_rng(2)
    for _ in range(TABLES):
        shares = rng.dirichlet([0.5] * 4)
        both, n01, n10, neither = rng.multinomial(rng.integers(1, 5000), shares)
        yield int(both), int(n01), int(n10), int(neither)
        yield int(both), int(n01), int(n01), int(neither) + 1
        yield int(both), 0, int(n10), int(neither) + 1
        yield int(both), 0, 0, int(neither) + 1


def test_wilson_is_statsmodels() -> None:
    """Two-sided intervals at any confidence; the ends at 0 and n are exact here."""
    for successes, n, confidence in rates():
        expected = proportion_confint(successes, n, 1 - confidence, method="wilson")
        got = stats.wilson(successes, n, confidence)
        # z itself carries an error of 1e-16 / (1 - confidence) from the subtraction of the two.
        equal(got, expected, atol=1e-12)


def test_one_sided_bounds_are_statsmodels() -> None:
    """A bound at 95 % is the end of statsmodels' interval that leaves 5 % on that side."""
    for successes, n, confidence in rates():
        low, high = proportion_confint(successes, n, 2 * (1 - confidence), method="wilson")
        for side, expected in (("lower", low), ("upper", high)):
            got = stats.wilson_bound(successes, n, side=side, confidence=confidence)  # type: ignore[arg-type]
            equal(got, expected, atol=1e-12)


def test_the_corrected_chi_square_is_statsmodels() -> None:
    """But for equal discordant counts, where the correction alone must not make a difference.

    statsmodels gives (0 - 1)^2 / (n01 + n10) there, and divides by zero without a discordant
    item. R's mcnemar.test, which leaves the correction out for equal counts, gives 0 as we do.
    """
    alike = 0
    for both, n01, n10, neither in tables():
        got = stats.mcnemar_chi2(n01, n10)
        if n01 == n10 == 0:
            assert got == (0.0, 1.0)
            continue
        found = mcnemar([[both, n10], [n01, neither]], exact=False, correction=True)
        if n01 == n10:
            alike += 1
            assert got == (0.0, 1.0)
            equal(found.statistic, 1 / (n01 + n10))
        else:
            equal(got, (found.statistic, found.pvalue))
    assert alike > TABLES / 2


def test_the_exact_test_is_statsmodels() -> None:
    """On every table, those without a discordant item included."""
    for both, n01, n10, neither in tables():
        found = mcnemar([[both, n10], [n01, neither]], exact=True)
        expected = found.pvalue if n01 + n10 else 1.0
        # Of many items the two sum their tails in another order: 1e-9 relative, down to 1e-300.
        got = stats.mcnemar_exact(n01, n10)
        equal(got, expected, atol=1e-300)


def test_cohens_h_is_statsmodels() -> None:
    """For any two rates of any table, 0 and 1 included."""
    for both, n01, n10, neither in tables():
        n = both + n01 + n10 + neither
        p1, p2 = (both + n01) / n, (both + n10) / n
        expected = proportion_effectsize(p1, p2)
        equal(stats.cohens_h(p1, p2), expected, atol=1e-14)


def test_benjamini_hochberg_is_statsmodels() -> None:
    """Of one to fifty p-values, with ties, zeros and ones; the discoveries are the same too."""
    rng = np.random.default_rng(3)
    for _ in range(TABLES):
        p = rng.beta(0.3, 1, size=rng.integers(1, 51))
        p[rng.random(len(p)) < 0.2] = rng.choice([0.0, 1.0, 0.05, p[0]])
        rejected, expected, _, _ = multipletests(p, alpha=0.10, method="fdr_bh")
        got = stats.benjamini_hochberg([float(x) for x in p])
        equal(got, expected)
        clear = np.abs(expected - 0.10) > 1e-12
        assert [g <= 0.10 for g in np.array(got)[clear]] == list(rejected[clear])


def test_a_comparison_of_items_is_the_comparison_of_their_table() -> None:
    """Counting the pairs and asking statsmodels for their table gives every field."""
    rng = np.random.default_rng(4)
    for _ in range(TABLES):
        n = int(rng.integers(1, 60))
        base, tuned = rng.random((2, n)) < rng.random((2, 1))
        found = stats.paired_comparison(list(base), list(tuned), bootstrap=1)
        table = [[int(np.sum((base == b) & (tuned == t))) for t in (1, 0)] for b in (1, 0)]
        discordant = table[0][1] + table[1][0]
        expected = mcnemar(table, exact=True).pvalue if discordant else 1.0
        equal(found.exact_p, expected)
        interval = proportion_confint(int(tuned.sum()), n, 0.05, method="wilson")
        equal(found.tuned_ci, interval, atol=1e-12)
        effect = proportion_effectsize(tuned.mean(), base.mean())
        equal(found.cohens_h, effect, atol=1e-14)
        equal(found.lift, tuned.mean() - base.mean(), atol=1e-14)


def test_the_bootstrap_reaches_its_nominal_interval() -> None:
    """Of many items the percentile interval is the normal one of the paired difference."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        n = int(rng.integers(2000, 20_000))
        n01, n10 = (int(x) for x in rng.integers(n // 20, n // 5, 2))
        base = [False] * n01 + [True] * n10 + [True] * (n - n01 - n10)
        tuned = [True] * n01 + [False] * n10 + [True] * (n - n01 - n10)
        found = stats.paired_comparison(base, tuned)
        lift = (n01 - n10) / n
        spread = math.sqrt((n01 + n10) / n - lift**2) / math.sqrt(n)
        ends = lift + np.array([-1, 1]) * norm.isf(0.025) * spread
        # 10,000 draws place a 2.5 % quantile within about 0.05 of a standard deviation.
        equal(found.lift_ci, ends, rtol=0, atol=0.1 * spread)


def test_the_auc_is_statsmodels() -> None:
    """Of untied, tied and constant scores, and one item a side."""
    rng = np.random.default_rng(6)
    for turn in range(TABLES):
        sizes = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
        good, bad = (
            rng.normal(shift, 1, size) for shift, size in zip((0.5, 0), sizes, strict=True)
        )
        if turn % 2:
            good, bad = np.round(good), np.round(bad)
        if turn % 50 == 0:
            good, bad = np.ones(sizes[0]), np.ones(sizes[1])
        wins = sum((g > b) + (g == b) / 2 for g in good for b in bad)
        got = stats.auc(list(good), list(bad))
        equal(got, wins / (sizes[0] * sizes[1]))
        if min(sizes) > 1:
            with np.errstate(all="ignore"):
                expected = rank_compare_2indep(good, bad).prob1
            equal(got, expected)


def test_the_auc_bound_is_where_hanley_and_mcneil_leave_the_confidence() -> None:
    """At the bound the measured area is z of Hanley and McNeil's (1982) errors away.

    Newcombe's method 5 takes both sample sizes of their variance as the mean of the two.
    """
    rng = np.random.default_rng(7)
    for turn in range(TABLES):
        good, bad = (int(x) for x in rng.integers(1, 500, 2))
        area = 1.0 if turn % 10 == 0 else float(rng.uniform(0.01, 1))
        confidence = float(rng.uniform(0.6, 0.999))
        bound = stats.auc_bound(area, good, bad, confidence)
        assert 0 <= bound < area
        size = (good + bad) / 2
        q1, q2 = bound / (2 - bound), 2 * bound**2 / (1 + bound)
        variance = bound * (1 - bound) + (size - 1) * (q1 - bound**2 + q2 - bound**2)
        away = norm.isf(1 - confidence) * math.sqrt(variance / (good * bad))
        # The root is sought to 2e-12; near an area of 1 the error's slope makes 1e-7 of that.
        equal(area - bound, away, rtol=1e-6, atol=1e-9)
    assert stats.auc_bound(0.0, 5, 5) == 0.0


def enumerated_power(n: int, p01: float, p10: float, alpha: float) -> float:
    """Every table of n items: its chance, where statsmodels' exact test rejects it."""
    found = 0.0
    for n01, n10 in itertools.product(range(n + 1), repeat=2):
        if 0 < n01 + n10 <= n and mcnemar([[0, n10], [n01, 0]], exact=True).pvalue <= alpha:
            cells = [n01, n10, n - n01 - n10]
            found += float(multinomial.pmf(cells, n, [p01, p10, 1 - p01 - p10]))
    return found


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_the_power_is_that_of_every_table(alpha: float) -> None:
    """Exactly, also where nothing is ever lost, all is discordant, or the models are alike."""
    rng = np.random.default_rng(8)
    drawn = [tuple(float(x) for x in rng.dirichlet([1, 1, 1])[:2]) for _ in range(3)]
    for n in (1, 2, 7, 8, 9, 20):
        for p01, p10 in [*drawn, (0.3, 0.0), (0.0, 1.0), (0.5, 0.5), (0.1, 0.1)]:
            got = stats.mcnemar_power(n, p01, p10, alpha)
            expected = enumerated_power(n, p01, p10, alpha)
            equal(got, expected, atol=1e-12)


def test_the_power_nears_connors_formula() -> None:
    """Of many items it is the normal approximation of Connor (1987, Biometrics 43:207)."""
    rng = np.random.default_rng(9)
    for _ in range(200):
        n, alpha = int(rng.integers(20_000, 100_000)), 0.01
        discordant = float(rng.uniform(0.05, 0.6))
        lift = float(rng.uniform(0, 5)) * math.sqrt(discordant / n)
        p01, p10 = (discordant + lift) / 2, (discordant - lift) / 2
        away = lift * math.sqrt(n) - norm.isf(alpha / 2) * math.sqrt(discordant)
        connor = norm.cdf(away / math.sqrt(discordant - lift**2))
        # Connor leaves out the tail on the other side, and the exact test is a little shy.
        assert stats.mcnemar_power(n, p01, p10, alpha) == pytest.approx(connor, abs=0.015)


def test_the_smallest_lift_has_its_power_and_a_smaller_one_less() -> None:
    """At any n and discordant rate; no discordant item at all means that all are gained."""
    rng = np.random.default_rng(10)
    drawn = [(int(rng.integers(8, 2000)), float(rng.uniform(0, 1))) for _ in range(100)]
    for n, rate in [*drawn, (300, 0.0), (300, 1.0), (14, 0.0), (1_000_000, 0.1)]:
        lift = stats.smallest_lift(n, rate, alpha=0.01, power=0.8)
        assert lift is not None
        for share, more in ((1, 0.0), (0.98, -1.0)):
            moved = lift * share
            discordant = max(rate, moved)
            p01, p10 = (discordant + moved) / 2, (discordant - moved) / 2
            power = stats.mcnemar_power(n, p01, p10, 0.01)
            assert power == pytest.approx(0.8, abs=1e-5) if more == 0 else power < 0.8
