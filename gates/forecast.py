"""From a pilot's counts of instructions to what a scale-up will yield. No torch.

Reads one JSONL row for each distinct instruction: ``instruction, count, known, kept, tokens,
list_tokens``, counted before anything was dropped. The target takes so many raw instructions as it
would if none came twice; the forecast is how many of those will be distinct.

The estimate follows from the instructions seen once and twice. Where some instructions are far
more common than others it is too low, the more so the further it looks ahead (Chao1 is a lower
bound of the richness). So the lower end of the interval is the estimate's own, and the upper end is
``gates.most_distinct``'s, which assumes no shape of the population. Both rest on the scale-up's
being drawn as the pilot was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Final

from gates.evidence import UNREADABLE, named, read, unread
from gates.most_distinct import most_distinct
from runbook.contract import Json, Metric

TARGET: Final = "forecast_target"
"""The metric whose value is the kept rows asked for, and whose evidence is the file of counts."""
CONFIDENCE: Final = 0.90
"""Two-sided, so that each end is a one-sided 95 % bound."""
DRAWS: Final = 200
_MOST: Final = 1_000_000
"""Raw instructions of a pilot; the bootstrap takes memory and time by them."""
DERIVES: Final = (
    "forecast_coverage",
    "forecast_distinct",
    "forecast_distinct_low",
    "forecast_distinct_high",
    "forecast_tokens_per_row",
)
_Z: Final = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Sample:
    """How often each instruction came in ``draws`` raw ones."""

    draws: int
    """All of them, those that were known before included."""
    counts: tuple[int, ...]
    """Of each distinct instruction that was not known before."""

    @property
    def once(self) -> int:
        """Instructions that came once, f1."""
        return self.counts.count(1)

    @property
    def twice(self) -> int:
        """Instructions that came twice, f2."""
        return self.counts.count(2)


def derive(
    metrics: Sequence[Metric], workspace: Path
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The metrics with the forecast's added, and the forecast for the report.

    Adds ``forecast_coverage``, the chance that the next raw instruction was seen before (Good
    1953); ``forecast_distinct``, the share of the raw instructions up to the target that will be
    distinct, with ``forecast_distinct_low`` and ``forecast_distinct_high``, its one-sided 95 %
    bounds; ``forecast_tokens_per_row``, tokens generated for each distinct kept row at the target.
    Where the counts allow no forecast, their values are None and their notes say why.
    """
    target = named(metrics, TARGET)
    if target is None:
        return tuple(metrics), {}
    try:
        rows = read(target, workspace)
        told = forecast(rows, target.value)
        low, high = told["distinct_interval"]
        values = (
            told["coverage"],
            told["distinct"] / told["raw_at_target"],
            low / told["raw_at_target"],
            high / told["raw_at_target"],
            told["tokens_per_row"],
        )
    except UNREADABLE as error:
        return (*metrics, *unread(DERIVES, target, error)), {}
    n, evidence = told["raw"], target.evidence
    found = (
        Metric(name, value, n=n, denominator="raw instructions", evidence=evidence)
        for name, value in zip(DERIVES, values, strict=True)
    )
    return (*metrics, *found), {"forecast": told}


def forecast(rows: Sequence[dict[str, Json]], target: float | None) -> dict[str, Json]:
    """What ``target`` kept rows will take and yield.

    Args:
        rows: of the pilot's counts.
        target: kept rows, 1 or more.

    Raises:
        ValueError: nothing was kept, or a count is no count.
    """
    sample = _sample(rows)
    kept = sum(row["kept"] is True for row in rows)
    if not kept or not sample.counts or target is None or not math.isfinite(target) or target < 1:
        raise ValueError(f"{kept} rows were kept, {target} are asked for")
    share = kept / len(sample.counts)
    ahead = max(math.ceil(target / share), sample.draws)
    yielded = expected_distinct(sample, ahead)
    low, high = distinct_interval(sample, ahead)
    listed = sum(float(row["list_tokens"]) for row in rows) / sample.draws
    answered = sum(int(row["tokens"]) for row in rows) / len(sample.counts)
    cost = {y: (ahead * listed + y * answered) / (y * share) for y in (low, yielded, high)}
    return {
        "raw": sample.draws,
        "seen": len(sample.counts),
        "once": sample.once,
        "twice": sample.twice,
        "coverage": 1 - sample.once / sample.draws,
        "chao1": len(sample.counts) + unseen(sample),
        "chao1_interval": list(richness_interval(sample)),
        "target": target,
        "kept_share": share,
        "raw_at_target": ahead,
        "distinct": yielded,
        "distinct_interval": [low, high],
        "kept_at_target": yielded * share,
        "tokens_per_row": cost[yielded],
        "tokens_per_row_interval": [cost[high], cost[low]],
    }


def _sample(rows: Sequence[dict[str, Json]]) -> Sample:
    counts = [row["count"] for row in rows]
    if any(isinstance(c, bool) or not isinstance(c, int) or c < 1 for c in counts):
        raise ValueError("a count is no whole number of 1 or more")
    if sum(counts) > _MOST:
        raise ValueError(f"{sum(counts)} raw instructions are more than {_MOST}")
    spent = [row[name] for row in rows for name in ("tokens", "list_tokens")]
    if any(isinstance(t, bool) or not 0 <= t < math.inf for t in spent):
        raise ValueError("a number of tokens is negative or not finite")
    names = {row["instruction"] for row in rows}
    if len(names) != len(rows):
        raise ValueError("an instruction stands twice among the counts")
    new = tuple(c for c, row in zip(counts, rows, strict=True) if row["known"] is not True)
    return Sample(sum(counts), new)


def unseen(sample: Sample) -> float:
    """How many instructions were not seen, at the least: bias-corrected Chao1 (Chao 2005), f0."""
    n, once, twice = sample.draws, sample.once, sample.twice
    return (n - 1) / n * once * (once - 1) / (2 * (twice + 1))


def richness_interval(sample: Sample) -> tuple[float, float]:
    """Chao1's log-normal interval (Chao 1987), 90 %; never below what was seen."""
    seen, missing = len(sample.counts), unseen(sample)
    if missing == 0:
        return float(seen), float(seen)
    once, twice = sample.once, sample.twice
    if twice:
        ratio = once / twice
        variance = twice * (ratio**2 / 2 + ratio**3 + ratio**4 / 4)
    else:
        variance = once * (once - 1) / 2 + once * (2 * once - 1) ** 2 / 4
        variance -= once**4 / (4 * (seen + missing))
    factor = math.exp(_Z * math.sqrt(math.log1p(variance / missing**2)))
    return seen + missing / factor, seen + missing * factor


def expected_distinct(sample: Sample, draws: int) -> float:
    """Distinct instructions in ``draws`` raw ones, no fewer than the sample's own.

    S(n + m) = S + f0 (1 - (1 - f1 / (n f0 + f1))^m), Chao and Shen 2004 (Colwell et al. 2012, 9).
    """
    missing, seen = unseen(sample), len(sample.counts)
    if missing == 0:
        return float(seen)
    chance = sample.once / (sample.draws * missing + sample.once)
    return seen - missing * math.expm1((draws - sample.draws) * math.log1p(-chance))


def distinct_interval(sample: Sample, draws: int) -> tuple[float, float]:
    """90 % interval of the distinct instructions in ``draws`` raw ones, no fewer than the sample's.

    The lower end by the estimate's standard error, the upper end whatever the population's shape,
    and never below the estimate's own.
    """
    estimate, error = expected_distinct(sample, draws), _error(sample, draws)
    most = most_distinct(sample.counts, sample.draws, draws - sample.draws)
    return (
        max(float(len(sample.counts)), estimate - _Z * error),
        max(most, min(estimate + _Z * error, len(sample.counts) + float(draws - sample.draws))),
    )


def _error(sample: Sample, draws: int, seed: int = 0) -> float:
    """Standard error of ``expected_distinct`` by the bootstrap.

    Samples are drawn anew from the population that the sample suggests: its instructions, a little
    rarer than they came, and the unseen ones, all alike (Chao et al. 2014, appendix G). Percentiles
    would be biased: a redrawn sample repeats itself more than the first did.
    """
    import numpy as np  # noqa: PLC0415 - slow, and few gates need it

    n, seen = sample.draws, len(sample.counts)
    if seen == 1:
        raise ValueError("all raw instructions were one and the same")
    hidden = math.ceil(unseen(sample))
    rates = np.asarray(sample.counts) / n
    shrinking = (1 - rates) ** n
    deficit = _deficit(sample) if hidden else 0.0
    rates = rates * (1 - deficit / float((rates * shrinking).sum()) * shrinking)
    edges = np.cumsum([*np.clip(rates, 0, None), deficit])
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(DRAWS):
        drawn = np.searchsorted(edges, rng.random(n), side="right")
        fresh = rng.integers(0, max(hidden, 1), int((drawn == seen).sum()))
        again = [*np.bincount(drawn[drawn < seen]), *np.unique(fresh, return_counts=True)[1]]
        counts = tuple(int(count) for count in again if count)
        found.append(expected_distinct(Sample(n, counts), draws))
    return float(np.std(found, ddof=1))


def _deficit(sample: Sample) -> float:
    """The chance that the next raw instruction is a new one (Chao and Jost 2012), in [0, 1]."""
    n, once, twice = sample.draws, sample.once, sample.twice
    rarer = (n - 1) * (once if twice else once - 1)
    common = 2 * twice if twice else 2
    return once / n * rarer / (rarer + common)
