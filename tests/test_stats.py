"""The statistics agree with published examples and hold their algebra on any counts."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from gates import stats

COUNTS = st.integers(0, 400)
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def from_cells(both: int, n01: int, n10: int, neither: int) -> tuple[list[bool], list[bool]]:
    cells = [(True, True, both), (False, True, n01), (True, False, n10), (False, False, neither)]
    base = [b for b, _, count in cells for _ in range(count)]
    tuned = [t for _, t, count in cells for _ in range(count)]
    return base, tuned


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_newcombe(successes: int, n: int, low: float, high: float) -> None:
    """The four examples of Newcombe 1998 (Stat Med 17:857, table I, method 3) come out."""
    assert stats.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_everything() -> None:
    """Without items the interval is the whole range."""
    assert stats.wilson(0, 0) == (0.0, 1.0)


@given(COUNTS, COUNTS, st.floats(0.5, 0.999))
def test_wilson_contains_the_rate_and_mirrors(a: int, b: int, confidence: float) -> None:
    """The interval holds the rate, stays in [0, 1], and failures mirror successes."""
    n = a + b
    low, high = stats.wilson(a, n, confidence)
    assert 0 <= low <= high <= 1
    if n:
        assert low <= a / n <= high
    assert stats.wilson(b, n, confidence) == pytest.approx((1 - high, 1 - low))


@given(COUNTS, COUNTS)
def test_one_sided_bound_is_the_end_of_the_ninety_percent_interval(a: int, b: int) -> None:
    """Each one-sided 95 % bound is an end of the two-sided 90 % interval."""
    low, high = stats.wilson(a, a + b, 0.90)
    assert stats.wilson_bound(a, a + b, side="lower") == pytest.approx(low)
    assert stats.wilson_bound(a, a + b, side="upper") == pytest.approx(high)


def test_one_sided_bound_of_a_clean_record_has_a_closed_form() -> None:
    """With no failure in n the lower bound is n / (n + 1.6449 squared)."""
    assert pytest.approx(59 / (59 + 2.705543), rel=1e-6) == stats.wilson_bound(59, 59, side="lower")
    assert stats.wilson_bound(59, 59, side="upper") == 1.0


@pytest.mark.parametrize(
    ("successes", "n"), [(-1, 5), (6, 5), (1, -1), (1.0, 5), (1, 5.5), (True, 2), (None, 2)]
)
def test_wilson_refuses_what_is_no_count(successes: Any, n: Any) -> None:
    """A negative, fractional, boolean or too large count is refused."""
    with pytest.raises(ValueError, match=r"count|successes of"):
        stats.wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_wilson_refuses_an_impossible_confidence(confidence: float) -> None:
    """A confidence is a share strictly between 0 and 1."""
    with pytest.raises(ValueError, match="confidence"):
        stats.wilson(1, 2, confidence)


@given(st.floats(0.5, 1 - 1e-9))
def test_the_quantile_is_scipys(confidence: float) -> None:
    """A clean record's bound is z^2 / (n + z^2) away from 1, with scipy's z to twelve digits."""
    low = stats.wilson_bound(9, 9, side="lower", confidence=confidence)
    z = norm.isf(1 - confidence)
    assert low == pytest.approx(9 / (9 + z * z), abs=1e-12)


def test_a_gate_of_counts_and_rates_imports_no_scipy() -> None:
    """Only the tests and intervals that need scipy and numpy pay for their import."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from gates.judge import judge_gate\n"
        "from runbook.contract import Criterion, Gate, Metric\n"
        "kinds = ('census', 'rate', 'statistic')\n"
        "criteria = tuple(Criterion(k, k, at_least=0.5) for k in kinds)\n"
        "right = {'rate': 90}\n"
        "metrics = tuple(Metric(k, 1.0, n=90, successes=right.get(k)) for k in kinds)\n"
        "judged = judge_gate(Gate(criteria=criteria), metrics, Path(), final=True)\n"
        "print(judged.verdict.value, sorted({'scipy', 'numpy'} & sys.modules.keys()))\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout == "pass []\n"


def test_bound_refuses_an_unknown_side() -> None:
    """Only the lower and the upper side exist."""
    with pytest.raises(ValueError, match="side"):
        stats.wilson_bound(1, 2, side="both")  # type: ignore[arg-type]


def test_mcnemar_matches_agresti() -> None:
    """Agresti's approval ratings (Categorical Data Analysis, 10.1; 794, 150, 86, 570)."""
    chi2, p = stats.mcnemar_chi2(150, 86)
    # Agresti prints the uncorrected z^2 = 17.36; the corrected one follows from the same counts.
    assert pytest.approx(17.36, abs=5e-3) == (150 - 86) ** 2 / (150 + 86)
    assert pytest.approx(16.82, abs=5e-3) == chi2
    assert 1e-5 < p < 1e-4


def test_mcnemar_exact_matches_fagerland() -> None:
    """Airway responsiveness in Fagerland et al. 2013 (BMC Med Res Methodol 13:91): 7 against 1."""
    assert stats.mcnemar_exact(7, 1) == pytest.approx(0.0703, abs=5e-5)
    assert stats.mcnemar_chi2(7, 1)[1] == pytest.approx(0.0771, abs=5e-5)


@pytest.mark.parametrize("same", [0, 1, 7, 100])
def test_no_difference_is_no_evidence(same: int) -> None:
    """Equal discordant counts, none included, give chi-square 0 and both p-values 1."""
    assert stats.mcnemar_chi2(same, same) == (0.0, 1.0)
    assert stats.mcnemar_exact(same, same) == pytest.approx(1.0)


@given(COUNTS, COUNTS)
def test_mcnemar_does_not_care_which_model_is_first(n01: int, n10: int) -> None:
    """Swapping the models leaves both tests unchanged, with p-values in [0, 1]."""
    assert stats.mcnemar_chi2(n01, n10) == stats.mcnemar_chi2(n10, n01)
    assert stats.mcnemar_exact(n01, n10) == pytest.approx(stats.mcnemar_exact(n10, n01))
    assert 0 <= stats.mcnemar_chi2(n01, n10)[1] <= 1
    assert 0 <= stats.mcnemar_exact(n01, n10) <= 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_exact_is_the_doubled_tail(n01: int, n10: int) -> None:
    """The exact p-value is twice the smaller tail of the fair binomial, at most 1."""
    total = n01 + n10
    tail = sum(math.comb(total, k) for k in range(min(n01, n10) + 1)) / 2**total
    assert stats.mcnemar_exact(n01, n10) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize(("n01", "n10"), [(-1, 2), (2, -1), (0.5, 1), (True, 1)])
def test_mcnemar_refuses_what_is_no_count(n01: Any, n10: Any) -> None:
    """Discordant counts are whole numbers of at least 0, for both tests."""
    with pytest.raises(ValueError, match="count"):
        stats.mcnemar_chi2(n01, n10)
    with pytest.raises(ValueError, match="count"):
        stats.mcnemar_exact(n01, n10)


def test_power_needs_enough_items_to_reach_alpha() -> None:
    """Seven gains of seven have p = 2 / 128: at 0.01 nothing is shown, with eight it is sure."""
    assert stats.mcnemar_power(7, 1.0, 0.0, 0.01) == 0.0
    assert stats.mcnemar_power(8, 1.0, 0.0, 0.01) == pytest.approx(1.0)
    assert stats.smallest_lift(7, 0.2) is None
    assert stats.smallest_lift(8, 0.2) == pytest.approx(0.8 ** (1 / 8))


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.2))
def test_power_without_a_difference_is_at_most_alpha(
    n: int, discordant: float, share: float, alpha: float
) -> None:
    """Equal chances to gain and to lose reject no more often than alpha; a lift rejects more."""
    alike = stats.mcnemar_power(n, discordant / 2, discordant / 2, alpha)
    assert 0 <= alike <= alpha + 1e-12
    p01 = discordant * (1 + share) / 2
    moved = stats.mcnemar_power(n, p01, max(discordant - p01, 0.0), alpha)
    assert alike - 1e-9 <= moved <= 1
    swapped = stats.mcnemar_power(n, max(discordant - p01, 0.0), p01, alpha)
    assert swapped == pytest.approx(moved, abs=1e-9)


def test_nothing_discordant_shows_nothing() -> None:
    """No items, or none on which the two differ, have no power."""
    assert stats.mcnemar_power(0, 0.5, 0.1) == 0.0
    assert stats.mcnemar_power(300, 0.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("n", "p01", "p10", "alpha"),
    [
        (-1, 0.1, 0.1, 0.01),
        (1.5, 0.1, 0.1, 0.01),
        (9, -0.1, 0.1, 0.01),
        (9, 0.6, 0.5, 0.01),
        (9, math.nan, 0.5, 0.01),
        (9, 0.1, 0.1, 0.0),
        (9, 0.1, 0.1, 1.0),
        (9, 0.1, 0.1, math.nan),
    ],
)
def test_power_refuses_impossible_input(n: Any, p01: float, p10: float, alpha: float) -> None:
    """A count, two rates of one set, an alpha between 0 and 1."""
    with pytest.raises(ValueError, match=r"count|rates of one set|alpha"):
        stats.mcnemar_power(n, p01, p10, alpha)


@pytest.mark.parametrize(
    ("rate", "power"), [(-0.1, 0.8), (1.1, 0.8), (math.nan, 0.8), (0.1, 1.0), (0.1, 0.01)]
)
def test_smallest_lift_refuses_impossible_input(rate: float, power: float) -> None:
    """The discordant rate is a rate, and the power lies between alpha and 1."""
    with pytest.raises(ValueError, match="smallest_lift"):
        stats.smallest_lift(300, rate, power=power)


@pytest.mark.parametrize(
    ("rate", "phi"),
    [(0.05, 0.451), (0.25, 1.047), (0.45, 1.471), (0.5, 1.571), (0.65, 1.875), (0.75, 2.094)],
)
def test_cohens_h_matches_the_arcsine_table(rate: float, phi: float) -> None:
    """Against a rate of 0, h is the phi of Cohen 1988, table 6.2.2."""
    assert stats.cohens_h(rate, 0.0) == pytest.approx(phi, abs=1e-3)


def test_cohens_h_is_signed() -> None:
    """A higher first rate gives a positive h: .65 against .45 is .404 by the table."""
    assert stats.cohens_h(0.65, 0.45) == pytest.approx(0.404, abs=1e-3)
    assert stats.cohens_h(0.45, 0.65) == pytest.approx(-0.404, abs=1e-3)


@given(st.floats(0, 1), st.floats(0, 1))
def test_cohens_h_is_antisymmetric_and_bounded(p1: float, p2: float) -> None:
    """Swapping the rates flips the sign, and no h exceeds pi."""
    assert stats.cohens_h(p1, p2) == -stats.cohens_h(p2, p1)
    assert abs(stats.cohens_h(p1, p2)) <= math.pi


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_cohens_h_refuses_what_is_no_rate(rate: float) -> None:
    """Both arguments are rates."""
    with pytest.raises(ValueError, match="rate"):
        stats.cohens_h(rate, 0.5)
    with pytest.raises(ValueError, match="rate"):
        stats.cohens_h(0.5, rate)


# Benjamini and Hochberg 1995 (J R Stat Soc B 57:289), section 4.1: thrombolysis, 15 comparisons.
THROMBOLYSIS = [
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
    *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
]


def test_benjamini_hochberg_matches_the_paper() -> None:
    """At 0.05 the paper rejects the first four of its fifteen hypotheses, in any order given."""
    adjusted = stats.benjamini_hochberg(THROMBOLYSIS)
    assert [p <= 0.05 for p in adjusted] == [True] * 4 + [False] * 11
    assert stats.benjamini_hochberg(THROMBOLYSIS[::-1]) == adjusted[::-1]


@pytest.mark.parametrize("p_values", [[], [1.5], [0.1, -0.1], [math.nan]])
def test_benjamini_hochberg_refuses_what_is_no_p_value(p_values: list[float]) -> None:
    """No p-values, or one outside [0, 1], is refused."""
    with pytest.raises(ValueError, match="p-values"):
        stats.benjamini_hochberg(p_values)


def test_comparison_of_agrestis_table() -> None:
    """Every field follows from the four cells of Agresti's table."""
    base, tuned = from_cells(both=794, n01=86, n10=150, neither=570)
    result = stats.paired_comparison(base, tuned)
    assert (result.n, result.n01, result.n10) == (1600, 86, 150)
    assert (result.base_rate, result.tuned_rate) == (944 / 1600, 880 / 1600)
    assert (result.base_ci, result.tuned_ci) == (stats.wilson(944, 1600), stats.wilson(880, 1600))
    assert (result.mcnemar_chi2, result.mcnemar_p) == stats.mcnemar_chi2(86, 150)
    assert result.exact_p == stats.mcnemar_exact(86, 150)
    assert result.cohens_h == stats.cohens_h(0.55, 0.59)
    assert result.lift == -0.04
    # Agresti's Wald interval of the difference is -0.04 +- 1.96 * 0.0095 = (-0.059, -0.021).
    assert result.lift_ci == pytest.approx((-0.059, -0.021), abs=2e-3)
    assert (result.adjusted_p, result.significant, result.by_kind) == (None, None, {})


def test_bootstrap_equals_resampling_whole_items() -> None:
    """Drawing cell counts gives the interval that drawing items gives, up to noise."""
    base, tuned = from_cells(both=20, n01=30, n10=8, neither=42)
    gain = np.array(tuned, dtype=int) - np.array(base, dtype=int)
    rng = np.random.default_rng(1)
    lifts = rng.choice(gain, size=(4000, len(gain))).mean(axis=1)
    low, high = np.quantile(lifts, [0.025, 0.975])
    result = stats.paired_comparison(base, tuned)
    assert result.lift_ci == pytest.approx((low, high), abs=0.011)


def test_bootstrap_is_fixed_by_its_seed() -> None:
    """The same seed gives the same interval, another seed another."""
    base, tuned = from_cells(both=400, n01=211, n10=83, neither=307)
    first = stats.paired_comparison(base, tuned, bootstrap=500, seed=3)
    assert first == stats.paired_comparison(base, tuned, bootstrap=500, seed=3)
    assert first.lift_ci != stats.paired_comparison(base, tuned, bootstrap=500, seed=4).lift_ci


@given(PAIRS)
def test_swapping_the_models_flips_the_signs_only(pairs: list[tuple[bool, bool]]) -> None:
    """Tuned against base mirrors base against tuned; each interval holds its estimate."""
    base, tuned = [b for b, _ in pairs], [t for _, t in pairs]
    one = stats.paired_comparison(base, tuned, bootstrap=200)
    two = stats.paired_comparison(tuned, base, bootstrap=200)
    assert (one.n01, one.n10) == (two.n10, two.n01)
    assert (one.lift, one.cohens_h) == (-two.lift, -two.cohens_h)
    assert (one.mcnemar_p, one.mcnemar_chi2) == (two.mcnemar_p, two.mcnemar_chi2)
    assert one.exact_p == pytest.approx(two.exact_p)
    assert one.base_ci[0] <= one.base_rate <= one.base_ci[1]
    assert -1 <= one.lift_ci[0] <= one.lift_ci[1] <= 1


@given(PAIRS, st.randoms())
def test_the_order_of_items_does_not_matter(pairs: list[tuple[bool, bool]], random: Any) -> None:
    """A permutation of the items changes nothing, the bootstrap included."""
    shuffled = random.sample(pairs, len(pairs))
    results = [
        stats.paired_comparison([b for b, _ in ps], [t for _, t in ps], bootstrap=50)
        for ps in (pairs, shuffled)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("value", [True, False])
def test_identical_models_show_nothing(value: bool) -> None:
    """Without a discordant item chi-square is 0, every p is 1 and the lift is exactly 0."""
    result = stats.paired_comparison([value] * 9, [value] * 9, ["list"] * 9)
    assert (result.mcnemar_chi2, result.mcnemar_p, result.exact_p) == (0.0, 1.0, 1.0)
    assert (result.lift, result.lift_ci, result.cohens_h) == (0.0, (0.0, 0.0), 0.0)
    assert result.by_kind["list"].significant is False


def test_kinds_are_compared_apart_and_adjusted_together() -> None:
    """Each kind has its own counts, and its exact p-value is adjusted over all kinds."""
    cells = {"list": (5, 12, 0, 3), "number": (10, 6, 1, 3), "short": (8, 3, 3, 6)}
    columns = {kind: from_cells(*counts) for kind, counts in cells.items()}
    base = [b for column, _ in columns.values() for b in column]
    tuned = [t for _, column in columns.values() for t in column]
    kinds = [kind for kind in cells for _ in range(20)]
    result = stats.paired_comparison(base, tuned, kinds, fdr=0.10)
    parts = result.by_kind
    assert list(parts) == ["list", "number", "short"]
    assert [(part.n, part.n01, part.n10) for part in parts.values()] == [
        (20, 12, 0),
        (20, 6, 1),
        (20, 3, 3),
    ]
    # Exact p: 2/4096, 16/128, 1. Adjusted over three: 3p, 3p/2, p.
    expected = [6 / 4096, 0.1875, 1.0]
    assert [part.adjusted_p for part in parts.values()] == pytest.approx(expected)
    assert [part.significant for part in parts.values()] == [True, False, False]
    assert stats.paired_comparison(base, tuned, kinds, fdr=0.2).by_kind["number"].significant
    assert (result.adjusted_p, result.significant) == (None, None)


def test_a_single_kind_is_listed_and_needs_no_adjustment() -> None:
    """One kind only: its part is the whole comparison, and its p-value stays."""
    base, tuned = from_cells(both=3, n01=7, n10=1, neither=2)
    result = stats.paired_comparison(base, tuned, ["list"] * 13)
    part = result.by_kind["list"]
    assert (part.n, part.exact_p, part.lift_ci) == (result.n, result.exact_p, result.lift_ci)
    assert part.adjusted_p == pytest.approx(part.exact_p)


def test_numpy_booleans_are_booleans() -> None:
    """A comparison of numpy arrays equals that of lists."""
    base, tuned = from_cells(both=3, n01=7, n10=1, neither=2)
    arrays: list[Any] = [np.array(base), np.array(tuned)]
    assert stats.paired_comparison(*arrays) == stats.paired_comparison(base, tuned)


def test_the_dict_survives_json() -> None:
    """What `to_dict` gives comes back equal from JSON, kinds included."""
    base, tuned = from_cells(both=3, n01=7, n10=1, neither=2)
    values = stats.paired_comparison(base, tuned, ["a"] * 6 + ["b"] * 7).to_dict()
    assert values == json.loads(json.dumps(values, allow_nan=False))
    assert values["by_kind"]["b"]["n"] == 7


@pytest.mark.parametrize(
    ("base", "tuned", "kinds", "settings", "message"),
    [
        ([], [], None, {}, "no items"),
        ([True], [True, False], None, {}, "1 base and 2 tuned"),
        ([1.0], [True], None, {}, r"base\[0\] is 1.0"),
        ([True, True], [True, None], None, {}, r"tuned\[1\] is None"),
        ([math.nan], [True], None, {}, "nan"),
        ([1], [True], None, {}, r"base\[0\] is 1;"),
        ([True], [True], [], {}, "0 kinds for 1 items"),
        ([True], [True], None, {"fdr": 0.0}, "fdr"),
        ([True], [True], None, {"fdr": 1.0}, "fdr"),
        ([True], [True], None, {"fdr": math.nan}, "fdr"),
        ([True], [True], None, {"bootstrap": 0}, "bootstrap"),
    ],
)
def test_comparison_refuses_bad_input(
    base: Any, tuned: Any, kinds: Any, settings: dict[str, Any], message: str
) -> None:
    """Missing, unpaired or non-boolean results and impossible settings are refused by name."""
    with pytest.raises(ValueError, match=message):
        stats.paired_comparison(base, tuned, kinds, **settings)
