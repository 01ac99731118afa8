"""A filter of instructions that reads the model's own states: a linear probe (Alain & Bengio 2016).

The model reads the instruction as it would before answering it; what its middle layers hold at the
last token is one vector. A ridge regression of good or bad on it, fitted on labelled instructions,
is the filter. It needs no output layer, so it costs a tenth of what scoring every token does.

What it cannot see: whatever the labelled instructions do not show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from phases import prompts
from phases.engines import Engine
from phases.prompts import FewShot

RIDGE: Final = 0.3
"""Strength of the penalty on standardised states; chosen on the tuning half, among 0.03 to 1."""
FOLDS: Final = 10


@dataclass(frozen=True)
class Weights:
    """A fitted probe: the score is ``state . slope + offset``, near 1 for good, -1 for bad."""

    slope: tuple[float, ...]
    offset: float

    def score(self, state: Sequence[float]) -> float:
        return sum(a * b for a, b in zip(state, self.slope, strict=True)) + self.offset


def read_states(
    engine: Engine, shots: FewShot, instructions: Sequence[str]
) -> list[dict[str, list[float]]]:
    """``state`` of each instruction, in order."""
    texts = [prompts.evaluation_prompt(text) for text in instructions]
    return [{"state": state} for state in engine.states(prompts.response_prefix(shots), texts)]


def fit(states: Sequence[Sequence[float]], good: Sequence[bool]) -> Weights:
    """Ridge regression on standardised states, solved in the dual: rows are fewer than columns."""
    import numpy as np  # noqa: PLC0415 - the command line starts without it

    rows = np.asarray(states, dtype=np.float64)
    targets = np.where(np.asarray(good), 1.0, -1.0)
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-9
    scaled: Any = (rows - mean) / spread / np.sqrt(rows.shape[1])
    kernel = scaled @ scaled.T + RIDGE * np.eye(len(rows))
    slope = scaled.T @ np.linalg.solve(kernel, targets - targets.mean())
    slope = slope / spread / np.sqrt(rows.shape[1])
    return Weights(tuple(map(float, slope)), float(targets.mean() - mean @ slope))


def cross_fitted(
    states: Sequence[Sequence[float]], good: Sequence[bool], always: int = 0
) -> list[float]:
    """Scores of rows by probes that were not fitted on them, each fold's by the others.

    The first ``always`` rows are in every fit and get no score.
    """
    found = [0.0] * len(states)
    for fold in range(FOLDS):
        out = [at for at in range(always, len(states)) if (at - always) % FOLDS == fold]
        rest = [at for at in range(len(states)) if at not in set(out)]
        weights = fit([states[at] for at in rest], [good[at] for at in rest])
        for at in out:
            found[at] = weights.score(states[at])
    return found[always:]
