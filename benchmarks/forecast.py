"""How often the forecast's interval holds the truth, on populations whose truth is known.

    python benchmarks/forecast.py [PILOTS]

Needs no model. So many pilots (200 unless given) are drawn from each population, and for each the
interval of the distinct texts in 2, 10 and 50 times its draws. Each end is nominally a one-sided
95 % bound. The two columns of shares tell how tight it is: medians of both ends, beside the truth.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from setting import machine

from gates.forecast import Sample, distinct_interval
from runbook.report.safe_text import columns

DRAWS: Final = 400
AHEAD: Final = (2, 10, 50)
SEED: Final = 20
Rates = np.ndarray[Any, Any]
HEADER: Final = ("population", "times", "true share", "low holds", "high holds", "low", "high")


def main(arguments: Sequence[str]) -> int:
    pilots = int(arguments[0]) if arguments else 200
    print(machine())
    print(f"{pilots} pilots of {DRAWS} raw instructions each")
    rows = [
        measured(name, rates, times, pilots) for name, rates in populations() for times in AHEAD
    ]
    print("\n".join(columns([HEADER, *rows])))
    return 0


def populations() -> list[tuple[str, Rates]]:
    """Equals, power laws and a geometric one; each sums to 1."""
    found: list[tuple[str, Rates]]
    found = [(f"{size:,} equals", np.ones(size)) for size in (500, 2000, 20_000)]
    ranks = np.arange(1, 100_001)
    found += [(f"Zipf {power:g} of 100,000", ranks**-power) for power in (0.6, 0.8, 1.0, 1.2)]
    found += [(f"geometric {ratio:g}", ratio ** np.arange(20_000)) for ratio in (0.99, 0.999)]
    return [(name, weights / weights.sum()) for name, weights in found]


def measured(name: str, rates: Rates, times: int, pilots: int) -> tuple[str, ...]:
    """A row of the table."""
    rng, ahead = np.random.default_rng(SEED), DRAWS * times
    true = float(-np.expm1(ahead * np.log1p(-rates)).sum())
    ends = np.asarray([distinct_interval(draw(rates, rng), ahead) for _ in range(pilots)])
    low, high = np.median(ends, axis=0) / ahead
    return (
        name,
        str(times),
        f"{true / ahead:.3f}",
        f"{(ends[:, 0] <= true).mean():.2f}",
        f"{(true <= ends[:, 1]).mean():.2f}",
        f"{low:.3f}",
        f"{high:.3f}",
    )


def draw(rates: Rates, rng: np.random.Generator) -> Sample:
    counts = np.bincount(rng.choice(len(rates), DRAWS, p=rates))
    return Sample(DRAWS, tuple(int(count) for count in counts if count))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
