"""The forecast from a pilot's counts covers the truth and blocks what repeats, no more."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gates.forecast import (
    Sample,
    distinct_interval,
    expected_distinct,
    forecast,
    richness_interval,
    unseen,
)
from gates.judge import judge_gate
from gates.most_distinct import most_distinct
from runbook.artifacts import write_jsonl
from runbook.contract import Criterion, Gate, Json, Judgement, Metric, Verdict

CRITERIA = (
    Criterion("forecast_distinct_low", "power", at_least=0.5, min_n=300),
    Criterion("forecast_distinct_high", "statistic", at_least=0.5),
)
"""As the shipped pilots declare them."""


def uniform(size: int) -> np.ndarray[Any, Any]:
    return np.full(size, 1 / size)


def zipf(size: int, exponent: float) -> np.ndarray[Any, Any]:
    weights = np.arange(1, size + 1) ** -exponent
    return np.asarray(weights / weights.sum())


def geometric(ratio: float) -> np.ndarray[Any, Any]:
    weights = ratio ** np.arange(20_000)
    return np.asarray(weights / weights.sum())


def original() -> np.ndarray[Any, Any]:
    """Like the merged set of the run that went wrong: 1,311 texts, one of them 273 of 3,968 times.

    The others by a power law that gives as many rows, with every text at least once.
    """
    ranks = np.arange(1, 1311)
    counts = 1 + 2385 * ranks**-0.7 / (ranks**-0.7).sum()
    found = np.asarray([273.0, *counts])
    return np.asarray(found / found.sum())


def draw(rates: np.ndarray[Any, Any], size: int, rng: np.random.Generator) -> Sample:
    counts = np.bincount(rng.choice(len(rates), size, p=rates))
    return Sample(size, tuple(int(c) for c in counts if c))


def truth(rates: np.ndarray[Any, Any], draws: int) -> float:
    """Expected distinct texts in so many draws of a known population."""
    return float(-np.expm1(draws * np.log1p(-rates)).sum())


def rows_of(counts: Iterable[int], kept: float = 0.5, tokens: int = 10) -> list[dict[str, Json]]:
    """Of a pilot in which this share of the distinct instructions was kept."""
    return [
        {
            "instruction": f"text {place}",
            "count": count,
            "known": False,
            "kept": place % 100 < 100 * kept,
            "tokens": tokens,
            "list_tokens": 8.0 * count,
        }
        for place, count in enumerate(counts)
    ]


def judged(folder: Path, rows: list[dict[str, Json]], target: float) -> Judgement:
    write_jsonl(folder / "counts.jsonl", rows)
    metric = Metric("forecast_target", target, n=1, evidence="counts.jsonl")
    return judge_gate(Gate(CRITERIA), (metric,), folder, final=False)


POPULATIONS = {
    "equals of 500": uniform(500),
    "equals of 20000": uniform(20_000),
    "zipf 0.8": zipf(100_000, 0.8),
    "zipf 1": zipf(2000, 1.0),
    "zipf 1.2": zipf(100_000, 1.2),
    "geometric": geometric(0.999),
    "original": original(),
}


@pytest.mark.parametrize("ahead", [2, 20])
@pytest.mark.parametrize("name", POPULATIONS)
def test_each_end_of_the_interval_covers_at_its_rate(name: str, ahead: int) -> None:
    """Of 60 pilots 80 % at least lie on each end's right side, whatever the population's shape.

    Each end is nominally one of 95 %; ``benchmarks/forecast.py`` measures it on more pilots.
    """
    rates, rng = POPULATIONS[name], np.random.default_rng(11)
    true = truth(rates, 400 * ahead)
    ends = [distinct_interval(draw(rates, 400, rng), 400 * ahead) for _ in range(60)]
    assert sum(low <= true for low, _ in ends) >= 48
    assert sum(true <= high for _, high in ends) >= 54


def test_the_upper_end_says_something() -> None:
    """It lies near the truth at twice the pilot, and far below what the draws alone would allow."""
    rng = np.random.default_rng(15)
    sample = draw(uniform(500), 400, rng)
    assert distinct_interval(sample, 800)[1] < 1.25 * truth(uniform(500), 800)
    assert distinct_interval(sample, 8000)[1] < 0.5 * 8000


def test_the_upper_end_by_hand() -> None:
    """Nothing seen twice: every further draw may be new. All seen often: hardly any can be."""
    assert most_distinct((1,) * 30, 30, 300) == pytest.approx(330)
    # A text of rate 8 a sample is missed by chance once in 3,000; unseen rare ones remain.
    assert most_distinct((10,) * 40, 400, 400) < 45
    assert most_distinct((10,) * 40, 400, 0) == 40


def test_counts_that_agree_with_no_population_still_have_an_upper_end() -> None:
    """Two and three times and never once is no chance draw; the end is wide, and finite."""
    sample = Sample(500, (*[2] * 100, *[3] * 100))
    low, high = distinct_interval(sample, 5000)
    assert low == 200 <= high <= 200 + 4500


def test_chao_and_its_interval_are_the_published_ones() -> None:
    """By hand for 10 texts seen once and 4 twice of 40, and for none twice."""
    sample = Sample(40, (*[1] * 10, *[2] * 4, *[11, 11]))
    assert unseen(sample) == pytest.approx(39 / 40 * 10 * 9 / (2 * 5))
    low, high = richness_interval(sample)
    assert 16 < low < 16 + unseen(sample) < high
    assert (low - 16) * (high - 16) == pytest.approx(unseen(sample) ** 2)
    lonely = Sample(20, (1,) * 20)
    assert unseen(lonely) == pytest.approx(19 / 20 * 190)
    assert richness_interval(Sample(20, (10, 10))) == (2, 2)


def test_what_was_seen_is_where_the_curve_begins() -> None:
    """At the pilot's own size the yield is what was found; it grows, and never past Chao1."""
    sample = Sample(40, (*[1] * 10, *[2] * 4, *[11, 11]))
    found = [expected_distinct(sample, n) for n in (40, 60, 400, 10**6)]
    assert found[0] == 16
    assert found == sorted(found)
    assert found[-1] == pytest.approx(16 + unseen(sample))
    # Nothing was seen once, and of 20 draws that leaves room for 3.7 in 20 that are new.
    low, high = distinct_interval(Sample(20, (10, 10)), 400)
    assert (low, round(high)) == (2, 72)


def test_the_original_run_would_have_been_blocked(tmp_path: Path) -> None:
    """Before its 3,968 rows were paid for: a pilot of 300 asks for more, one of 1,200 fails."""
    rates = original()
    assert (len(rates), round(3968 * rates.max())) == (1311, 273)
    rng = np.random.default_rng(13)

    def verdicts(size: int) -> Counter[str]:
        return Counter(
            judged(tmp_path, rows_of(draw(rates, size, rng).counts, kept=1.0), 3968).verdict.value
            for _ in range(30)
        )

    assert verdicts(300)["pass"] == 0
    assert verdicts(1200) == {"fail": 30}


@pytest.mark.parametrize(
    ("rates", "size", "target", "verdict"),
    [
        # 0.13 of the raw rows are distinct there, whatever was not seen.
        (uniform(500), 400, 2000, Verdict.FAIL),
        (geometric(0.99), 400, 1000, Verdict.FAIL),
        # 0.43 and 0.61 are distinct in truth: nobody can tell from 400.
        (uniform(2000), 400, 4000, Verdict.UNDERPOWERED),
        (zipf(100_000, 0.8), 400, 20_000, Verdict.UNDERPOWERED),
        (uniform(50_000), 400, 3000, Verdict.PASS),
    ],
    ids=["few", "geometric", "just below", "heavy tail", "diverse"],
)
def test_what_is_not_proven_is_extended_and_what_is_ruled_out_fails(
    tmp_path: Path, rates: np.ndarray[Any, Any], size: int, target: float, verdict: Verdict
) -> None:
    """Pass where the lower end clears the share, fail where not even the upper end does."""
    sample = draw(rates, size, np.random.default_rng(16))
    found = judged(tmp_path, rows_of(sample.counts, kept=1.0), target)
    assert found.verdict is verdict, found.reasons


@pytest.mark.parametrize(
    ("rates", "size"), [(uniform(50_000), 400), (zipf(200_000, 0.6), 800)], ids=["equals", "zipf"]
)
def test_a_diverse_source_is_not_blocked(
    tmp_path: Path, rates: np.ndarray[Any, Any], size: int
) -> None:
    """Repeats here and there, and some texts far more common, are no reason to stop."""
    rng = np.random.default_rng(14)
    verdicts = Counter(
        judged(tmp_path, rows_of(draw(rates, size, rng).counts), 1500).verdict.value
        for _ in range(40)
    )
    assert verdicts["pass"] >= 38


def test_a_pilot_of_a_real_base_model_passes(tmp_path: Path) -> None:
    """Counts of Gemma 3 270M's pilot: 847 texts once, 9 twice, one three times; 121 kept."""
    rows = rows_of([*[1] * 847, *[2] * 9, 3], kept=0.14)
    verdict = judged(tmp_path, rows, 200)
    told = verdict.details["forecast"]
    assert verdict.verdict is Verdict.PASS
    # 1,789 raw ones gave 1,750 distinct in the scale-up that followed.
    sample = Sample(868, (*[1] * 847, *[2] * 9, 3))
    low, high = distinct_interval(sample, 1789)
    assert low <= 1750 <= high
    assert told["coverage"] == pytest.approx(1 - 847 / 868)


def test_a_small_pilot_says_that_it_is_too_small(tmp_path: Path) -> None:
    """Below 300 raw instructions the sample is extended; nothing is decided."""
    assert judged(tmp_path, rows_of([1] * 200), 250).verdict is Verdict.UNDERPOWERED


@pytest.mark.parametrize(
    ("rows", "target", "told"),
    [
        ([], 100.0, "0 rows were kept"),
        (rows_of([1] * 400, kept=0), 100.0, "0 rows were kept"),
        (rows_of([1] * 400), float("nan"), "nan are asked for"),
        ([{**rows_of([1])[0], "count": -3}], 100.0, "no whole number"),
        (rows_of([1]) * 2, 100.0, "stands twice"),
        (rows_of([400], kept=1), 100.0, "all raw instructions were one and the same"),
        ([{"instruction": "no more than that"}], 100.0, "forecast_target cannot be read: 'count'"),
        ([{**rows_of([1])[0], "known": True}], 100.0, "1 rows were kept"),
    ],
)
def test_counts_that_allow_no_forecast_are_invalid(
    tmp_path: Path, rows: list[dict[str, Json]], target: float, told: str
) -> None:
    """Nothing kept, no number, or a file that is not the counts: never a pass."""
    found = judged(tmp_path, rows, target)
    assert found.verdict is Verdict.INVALID
    assert told in found.reasons[0]


def test_a_missing_file_is_invalid(tmp_path: Path) -> None:
    """The evidence is what the forecast rests on."""
    metric = Metric("forecast_target", 200.0, evidence="gone.jsonl")
    found = judge_gate(Gate(CRITERIA), (metric,), tmp_path, final=False)
    assert found.verdict is Verdict.INVALID


def test_cost_counts_the_lists_that_only_repeat() -> None:
    """Tokens for each distinct kept row: a raw one costs a line, a distinct one an answer too."""
    told = forecast(rows_of([1] * 100 + [300], kept=0.5), 1000)
    raw, distinct, kept = told["raw_at_target"], told["distinct"], told["kept_at_target"]
    assert told["tokens_per_row"] == pytest.approx((8 * raw + 10 * distinct) / kept)
    alone = forecast(rows_of([1] * 400, kept=0.5), 1000)
    assert alone["tokens_per_row"] < told["tokens_per_row"]
    best, worst = told["tokens_per_row_interval"]
    assert best <= told["tokens_per_row"] <= worst


def test_known_texts_take_draws_and_yield_nothing() -> None:
    """What repeats a few-shot text is drawn like any other, and is no distinct row."""
    rows = rows_of([1] * 300)
    more = [{**row, "instruction": f"known {i}", "known": True} for i, row in enumerate(rows)]
    alone, mixed = forecast(rows, 400), forecast([*rows, *more], 400)
    assert mixed["distinct"] < 0.6 * mixed["raw_at_target"]
    assert alone["distinct"] > 0.9 * alone["raw_at_target"]
