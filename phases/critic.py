"""The only A/B scorer: judgments read off next-token log-probabilities, never sampled.

Each text is read under both label orders (A good, then B good) and the two log-odds are averaged,
so that a preference for a letter cancels. The prefix is shared and cached. What the critic is
worth is measured elsewhere: until it is calibrated, its reading is stated as such.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from phases.engines import Engine
from phases.prompts import (
    FewShot,
    instruction_critic_prefix,
    instruction_critic_suffix,
    pair_critic_prefix,
    pair_critic_suffix,
)
from runbook.contract import Json

LABELS: Final = ("A", "B")


@dataclass(frozen=True)
class Critique:
    is_good: bool
    predicted_label: str
    """A for good, whichever letter stood for good in a reading."""
    logp_a: float
    """Mean log-probability of the label that means good."""
    logp_b: float
    """Mean log-probability of the label that means bad."""
    margin: float
    """logp_a - logp_b, mean of the two label orders, in nats."""
    confident: bool
    """The margin's size reaches the declared one."""

    @property
    def keeps(self) -> bool:
        """Good and confident."""
        return self.is_good and self.confident

    def to_dict(self) -> dict[str, Json]:
        return asdict(self)


def judge_instructions(
    engine: Engine, shots: FewShot, instructions: Sequence[str], margin: float
) -> list[Critique]:
    """One critique an instruction, in order."""
    suffixes = [instruction_critic_suffix(text) for text in instructions]
    return _judge(engine, lambda a, b: instruction_critic_prefix(shots, a, b), suffixes, margin)


def judge_pairs(
    engine: Engine, shots: FewShot, pairs: Sequence[tuple[str, str]], margin: float
) -> list[Critique]:
    """One critique an (instruction, response) pair, in order."""
    suffixes = [pair_critic_suffix(instruction, response) for instruction, response in pairs]
    return _judge(engine, lambda a, b: pair_critic_prefix(shots, a, b), suffixes, margin)


def _judge(
    engine: Engine,
    prefix: Callable[[str, str], str],
    suffixes: Sequence[str],
    margin: float,
) -> list[Critique]:
    first, second = LABELS
    a_good = engine.label_logps(prefix(first, second), suffixes, (first, second))
    b_good = engine.label_logps(prefix(second, first), suffixes, (second, first))
    return [
        critique((g1 + g2) / 2, (b1 + b2) / 2, margin)
        for (g1, b1), (g2, b2) in zip(a_good, b_good, strict=True)
    ]


def critique(logp_good: float, logp_bad: float, margin: float) -> Critique:
    """A reading turned into a verdict; a tie is bad, since when unsure the rubric says B."""
    gap = logp_good - logp_bad
    good = gap > 0
    return Critique(
        is_good=good,
        predicted_label=LABELS[0] if good else LABELS[1],
        logp_a=round(logp_good, 6),
        logp_b=round(logp_bad, 6),
        margin=round(gap, 6),
        confident=abs(gap) >= margin,
    )
