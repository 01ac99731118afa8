"""The most distinct texts that a source can still yield, given how often each was seen. No torch.

Of all populations whose expected counts agree with those seen, the one that yields most. No shape
is assumed, so the bound holds for equals and for heavy tails alike, where the end of an interval
around Chao's estimate does not. Texts so rare that none of them was seen cannot be ruled out: the
further the look ahead, the wider it is.
"""

from collections.abc import Sequence
from typing import Final

LEVEL: Final = 0.05
"""Of each of the count's two-sided Poisson intervals."""
_TIMES: Final = 5
"""Counts up to so many are held one by one, those above together."""
_RATES: Final = 300
_HIGHEST: Final = 40.0
"""Expected count of a text that nobody fails to see; more common ones add nothing unseen."""


def most_distinct(counts: Sequence[int], draws: int, more: int) -> float:
    """Distinct texts in ``draws + more`` draws at the most, in expectation.

    A linear programme over the number of texts of each rate, as Efron and Thisted (1976) bound the
    words that Shakespeare knew: each f_k, the number of texts seen k times, has its expectation
    within Garwood's interval.

    Args:
        counts: how often each distinct text came.
        draws: of the sample, 1 or more, those included that are no new text.
        more: further draws.
    """
    import numpy as np  # noqa: PLC0415 - slow, and few gates need it
    from scipy.optimize import linprog  # noqa: PLC0415
    from scipy.stats import chi2, poisson  # noqa: PLC0415

    if more <= 0:
        return float(len(counts))
    times = more / draws
    rates = np.geomspace(0.01 / (1 + times), _HIGHEST, _RATES)
    times_seen = range(1, _TIMES + 1)
    chances = np.vstack([*(poisson.pmf(k, rates) for k in times_seen), poisson.sf(_TIMES, rates)])
    seen = np.asarray([*(counts.count(k) for k in times_seen), sum(c > _TIMES for c in counts)])
    found = np.exp(-rates) * -np.expm1(-rates * times)
    level = LEVEL
    while True:
        low = np.where(seen > 0, chi2.ppf(level / 2, 2 * seen) / 2, 0.0)
        high = chi2.isf(level / 2, 2 * seen + 2) / 2
        best = linprog(
            -found,
            A_ub=np.vstack([chances, -chances]),
            b_ub=np.concatenate([high, -low]),
            method="highs",
        )
        if best.fun is not None:
            return len(counts) + min(-float(best.fun), float(more))
        # Counts that agree with no population at this level: by chance, or since the draws were
        # not independent. Wider intervals hold some population in the end.
        level /= 4
        if level < 1e-12:
            return float(len(counts) + more)
