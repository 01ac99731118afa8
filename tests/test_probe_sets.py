"""The labelled probe sets are even, apart from what the critics are shown, and fair in length."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Final

import pytest

from phases.held_out import load_instructions
from phases.probes import GeneratedPair, Probe, ProbeInstruction, ProbePair, load_probes
from phases.prompts import load_few_shot, seen_instructions
from runbook.text import NearDuplicates, normalise

SPECS: Final = Path(__file__).parents[1] / "specs"
NEAR: Final = 0.8
HALVES: Final = ("tune", "test")
EASY: Final = ("mismatched", "cut_off", "rambling", "empty_of_sense")
HARD: Final = ("wrong_answer", "wrong_format")

INSTRUCTIONS = load_probes(SPECS / "probe" / "instructions.jsonl", ProbeInstruction)
PAIRS = load_probes(SPECS / "probe" / "pairs.jsonl", ProbePair)
GENERATED = load_probes(SPECS / "probe" / "generated.jsonl", GeneratedPair)
TEXTS = {
    half: {row.text for row in INSTRUCTIONS if row.half == half}
    | {row.instruction for row in PAIRS if row.half == half}
    for half in HALVES
}


def near_in_length(good: Sequence[str], bad: Sequence[str]) -> bool:
    """Whether the mean lengths, in characters and in words, are within a quarter of each other."""
    sizes = [(mean(map(len, texts)), mean(len(t.split()) for t in texts)) for texts in (good, bad)]
    return all(max(a, b) <= 1.25 * min(a, b) for a, b in zip(*sizes, strict=True))


def longer_share(good: Sequence[str], bad: Sequence[str]) -> float:
    """How often a good text is longer than a bad one, a tie counted half."""
    return mean((len(g) > len(b)) + (len(g) == len(b)) / 2 for g, b in product(good, bad))


def test_there_are_enough_instructions_of_both_labels() -> None:
    """At least 160 instructions, half of them good, and at least 40 in each label's hard part."""
    cells = Counter((row.good, row.difficulty) for row in INSTRUCTIONS)
    assert cells.total() >= 160
    assert 0.45 <= mean(row.good for row in INSTRUCTIONS) <= 0.55
    assert len(cells) == 4
    assert min(cells.values()) >= 40


def test_there_are_enough_pairs_of_every_kind() -> None:
    """At least 220 pairs, half of them good, 15 of each easy negative and 40 hard ones."""
    kinds = Counter(row.negative for row in PAIRS)
    assert kinds.total() >= 220
    assert 0.45 <= mean(row.good for row in PAIRS) <= 0.55
    assert min(kinds[kind] for kind in EASY) >= 15
    assert sum(kinds[kind] for kind in HARD) >= 40
    assert min(kinds[kind] for kind in HARD) >= 15


def test_a_pair_is_good_or_names_what_is_wrong() -> None:
    """Exactly the bad pairs carry a kind of negative."""
    assert [row.id for row in PAIRS if row.good != (row.negative == "")] == []


def test_every_bad_or_hard_instruction_has_its_reason() -> None:
    """Only an easy good instruction goes without a reason for its label."""
    silent = {row.id for row in INSTRUCTIONS if not row.why}
    assert silent == {r.id for r in INSTRUCTIONS if r.good and r.difficulty == "easy"}


def test_the_halves_hold_the_same() -> None:
    """Each label, difficulty and kind of negative falls evenly on the halves, within one."""
    cells: Counter[tuple[str, bool, str]] = Counter()
    cells.update((row.half, row.good, row.difficulty) for row in INSTRUCTIONS)
    cells.update((row.half, row.good, row.negative or "good") for row in PAIRS)
    uneven = [
        (good, kind)
        for _, good, kind in cells
        if abs(cells["tune", good, kind] - cells["test", good, kind]) > 1
    ]
    assert uneven == []


@pytest.mark.parametrize(("rows", "letter"), [(INSTRUCTIONS, "i"), (PAIRS, "p")])
def test_ids_are_unique_and_in_order(rows: Sequence[Probe], letter: str) -> None:
    """Ids count up from one without a gap, so none stands twice."""
    assert [row.id for row in rows] == [f"{letter}{n:03d}" for n in range(1, len(rows) + 1)]


def test_no_row_stands_twice() -> None:
    """No instruction of the first set and no pair of the second is given twice."""
    assert len({normalise(row.text) or row.text for row in INSTRUCTIONS}) == len(INSTRUCTIONS)
    assert len({(row.instruction, row.response) for row in PAIRS}) == len(PAIRS)


def test_the_halves_share_no_instruction() -> None:
    """No instruction of one half, in either set, nearly repeats one of the other half."""
    tuned = NearDuplicates(NEAR, sorted(TEXTS["tune"]))
    near = [(text, tuned.find(text)) for text in sorted(TEXTS["test"])]
    assert [found for found in near if found[1] is not None] == []
    assert TEXTS["tune"].isdisjoint(TEXTS["test"])


def test_no_probe_stands_in_what_is_shown_or_held_out() -> None:
    """No probe instruction nearly repeats a text of the few-shot file or a held-out one."""
    shots = load_few_shot(SPECS / "few_shot.yaml")
    known = [
        *seen_instructions(shots),
        *(pair.response for pair in shots.responses),
        *(pair.response for pair in shots.labelled_pairs),
        *load_instructions(SPECS / "held_out.jsonl"),
    ]
    others = NearDuplicates(NEAR, known)
    near = [(text, others.find(text)) for text in sorted(TEXTS["tune"] | TEXTS["test"])]
    assert [found for found in near if found[1] is not None] == []


def test_an_instruction_alone_does_not_tell_a_pairs_label() -> None:
    """Every instruction of a pair stands once with a good response and once with a bad one."""
    labels = Counter((row.instruction, row.good) for row in PAIRS)
    asked = {row.instruction for row in PAIRS}
    assert labels == Counter((text, good) for text in asked for good in (True, False))


@pytest.mark.parametrize("half", HALVES)
def test_length_does_not_tell_the_label(half: str) -> None:
    """Good and bad texts are about as long, and either is the longer one about as often."""
    pairs = [row for row in PAIRS if row.half == half]
    rows = [row for row in INSTRUCTIONS if row.half == half]
    for good, bad in (
        ([r.response for r in pairs if r.good], [r.response for r in pairs if not r.good]),
        ([r.text for r in rows if r.good], [r.text for r in rows if not r.good]),
    ):
        assert near_in_length(good, bad)
        assert 0.4 <= longer_share(good, bad) <= 0.6


def test_a_generated_pair_is_good_only_with_a_good_instruction() -> None:
    """What a model wrote is labelled twice, and the labels do not contradict each other."""
    assert [row.id for row in GENERATED if row.good and not row.instruction_good] == []
    assert len({row.id for row in GENERATED}) == len(GENERATED) >= 150
