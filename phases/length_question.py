"""The question an evaluation may raise: whether its lift is more than a change of length. Pure.

Matched on length, a real gain can vanish, since training changes the length of what is good and of
what is not; so this reading decides nothing, and whoever reviews the step is asked instead.
"""

from collections.abc import Sequence
from typing import Final

from phases.records import Row

ALIKE: Final = 0.5
"""Two responses are of like length where the shorter has at least this share of the characters."""

FEWEST: Final = 30
"""Pairs of like length below which their lift shows nothing, however great it is."""


def length_question(rows: Sequence[Row], remains: float) -> str:
    """What to ask of these pairs; '' where enough of like length show that it is no change of it.

    Args:
        rows: one a pair, as scored: ``base, tuned`` (bool), ``base_chars, tuned_chars``.
        remains: the share of the lift that pairs of like length must show.
    """
    whole = _lift(rows)
    if whole <= 0:
        return ""
    alike = [row for row in rows if _is_alike(row["base_chars"], row["tuned_chars"])]
    matched = _lift(alike)
    if len(alike) >= FEWEST and matched >= remains * whole:
        return ""
    shorter = sum(row["tuned_chars"] < row["base_chars"] for row in rows)
    thin = f", and fewer than {FEWEST} show nothing" if 0 < len(alike) < FEWEST else ""
    found = f"it is {matched:+.3f} ({_rates(alike)})" if alike else "there is nothing to compare"
    return (
        f"The lift is {whole:+.3f} over {len(rows)} pairs ({_rates(rows)}). Among the {len(alike)} "
        f"pairs whose responses are of like length {found}{thin}. The tuned response is the "
        f"shorter one in {shorter} pairs. Is the gain more than a change of length? proceed "
        "where the rows show that the instruction is followed better; else stop, or leave "
        "it to a person."
    )


def _is_alike(one: int, other: int) -> bool:
    return min(one, other) >= ALIKE * max(one, other)


def _lift(rows: Sequence[Row]) -> float:
    gained = sum(row["tuned"] - row["base"] for row in rows)
    return gained / len(rows) if rows else 0.0


def _rates(rows: Sequence[Row]) -> str:
    return " to ".join(f"{sum(row[side] for row in rows)}" for side in ("base", "tuned")) + " right"
