"""The only A/B scorer: judgments read off next-token log-probabilities, never sampled.

Each text is read under both label orders (A good, then B good) and the two log-odds are averaged,
so that a preference for a letter cancels. The prefix is shared and cached. What the critic is
worth on this model, and from which margin on it is believed, ``phases.calibration`` measures.
"""

from collections.abc import Callable, Sequence
from typing import Final

from phases.engines import Engine
from phases.prompts import (
    FewShot,
    instruction_critic_prefix,
    instruction_critic_suffix,
    pair_critic_prefix,
    pair_critic_suffix,
)

LABELS: Final = ("A", "B")


def judge_instructions(
    engine: Engine, shots: FewShot, instructions: Sequence[str]
) -> list[dict[str, float]]:
    """``logp_a``, ``logp_b`` and ``margin`` of each instruction, in order; see ``_judge``."""
    suffixes = [instruction_critic_suffix(text) for text in instructions]
    return _judge(engine, lambda a, b: instruction_critic_prefix(shots, a, b), suffixes)


def judge_pairs(
    engine: Engine, shots: FewShot, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, float]]:
    """``logp_a``, ``logp_b`` and ``margin`` of each pair, in order; see ``_judge``."""
    suffixes = [pair_critic_suffix(instruction, response) for instruction, response in pairs]
    return _judge(engine, lambda a, b: pair_critic_prefix(shots, a, b), suffixes)


def _judge(
    engine: Engine, prefix: Callable[[str, str], str], suffixes: Sequence[str]
) -> list[dict[str, float]]:
    """Means over the two label orders, in nats.

    ``logp_a`` is of the label that means good, whichever letter it was, ``logp_b`` of the other,
    ``margin`` their difference.
    """
    first, second = LABELS
    a_good = engine.label_logps(prefix(first, second), suffixes, (first, second))
    b_good = engine.label_logps(prefix(second, first), suffixes, (second, first))
    return [
        {
            "logp_a": (g1 + g2) / 2,
            "logp_b": (b1 + b2) / 2,
            "margin": (g1 + g2) / 2 - (b1 + b2) / 2,
        }
        for (g1, b1), (g2, b2) in zip(a_good, b_good, strict=True)
    ]
