"""Faults of the pairs for DPO: what is made in phase D, and what is trained on."""

from collections.abc import Callable
from typing import Final

from sabotage.data_faults import ALL_OVERLAPS, LEAK, METADATA
from sabotage.fault import Fault, fault
from sabotage.session import Session, Spec

FIFTH_PAIR: Final = """
from phases import prompts
real, made = preferences.to_record, []

def planted(*args):
    found = real(*args)
    made.append(found)
    return {change} if len(made) == 5 else found

preferences.to_record = planted
"""
LEAKED: Final = f"{{**found, 'rejected': prompts.completion({LEAK!r})}}"


def enable_dpo(session: Session) -> None:
    """Phase D, which the quickstart ships disabled."""

    def change(book: Spec) -> None:
        book["phases"][-1]["enabled"] = True

    session.edit("runbook", change)


def pair(change: str) -> Callable[[Session], None]:
    """Changes the fifth pair that the preferences step makes; ``found`` is what it would be."""

    def plant(session: Session) -> None:
        enable_dpo(session)
        session.break_step("preferences", FIFTH_PAIR.format(change=change))

    return plant


def trained_pair(session: Session) -> None:
    """Changes a pair as the training step reads it; nothing of it reaches a model."""
    enable_dpo(session)
    session.break_step(
        "dpo",
        f"""
        from phases import prompts
        read = dpo.read_jsonl

        def planted(path):
            found, *others = read(path)
            return [{LEAKED}, *others]

        dpo.read_jsonl = planted
        """,
    )


PREFERENCES: Final[tuple[Fault, ...]] = (
    fault(
        "a held-out item in a rejected answer",
        "leak",
        pair(LEAKED),
        "preferences: fail",
        *ALL_OVERLAPS,
    ),
    fault(
        "a pair whose two answers are one",
        "duplicates",
        pair("{**found, 'rejected': found['chosen']}"),
        "preferences: fail",
        "equal_pairs",
    ),
    fault(
        "a pair with chosen and rejected exchanged",
        "provenance",
        pair(
            "{**found, 'chosen_critique': found['rejected_critique'], "
            "'rejected_critique': found['chosen_critique']}"
        ),
        "preferences: fail",
        "incomplete_provenance",
    ),
    fault(
        "a sentinel that is false in one pair",
        "provenance",
        pair(METADATA.format("'sentinel': {'template_left': False}")),
        "preferences: fail",
        "bad_sentinels",
    ),
    fault(
        "a held-out item in a pair as the training step reads it",
        "leak",
        trained_pair,
        "dpo: invalid",
        *(*ALL_OVERLAPS, "nonfinite_weights", "adapter_shift", "reward_margin"),
    ),
)
