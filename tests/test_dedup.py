"""Distinct instructions: what is near is found, what is not is never merged."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from phases.dedup import MISSED, PERMUTATIONS, bands, distinct_metrics, instruction_counts, leaders
from phases.fake_engine import _Draws, _instruction
from runbook.contract import Metric
from runbook.text import NearDuplicates, similarity, words

WORDS = st.lists(st.sampled_from(list("abcdefghij")), min_size=0, max_size=9)


def made(count: int) -> list[str]:
    return [_instruction(_Draws("dedup", number)) for number in range(count)]


@settings(deadline=None)
@given(st.lists(WORDS, max_size=12), st.sampled_from([0.5, 0.8, 1.0]))
def test_no_two_are_merged_that_are_not_near(texts: list[list[str]], bound: float) -> None:
    """Each text belongs to an earlier distinct one at or above the bound, or is distinct itself."""
    joined = [" ".join(text) for text in texts]
    found = leaders(joined, bound)
    for place, leader in enumerate(found):
        assert leader <= place
        assert found[leader] == leader
        bags = (frozenset(words(joined[i])) for i in (place, leader))
        assert similarity(*bags) >= bound


def test_pairs_right_at_the_bound_are_found() -> None:
    """Of 2,000 pairs of Jaccard index 0.8, the hardest to find, none is missed."""
    rng = random.Random(3)
    missed = 0
    for _ in range(2000):
        drawn = rng.sample(range(10**6), 10)
        first, second = drawn[:9], [*drawn[:8], drawn[9]]
        missed += leaders([" ".join(map(str, t)) for t in (first, second)], 0.8) != [0, 0]
    assert missed == 0


def test_the_bands_keep_the_declared_recall() -> None:
    """At the bound itself no more than one pair in a million is no candidate."""
    for bound in (0.3, 0.5, 0.8, 0.95, 1.0):
        number, rows = bands(bound)
        assert number * rows <= PERMUTATIONS
        assert (1 - bound**rows) ** number <= MISSED


def test_it_counts_as_the_exact_index_does() -> None:
    """On 3,000 instructions from templates both searches keep the same ones."""
    texts = made(3000)
    index, kept = NearDuplicates(0.8), []
    for place, text in enumerate(texts):
        if index.find(text) is None:
            index.add(text)
            kept.append(place)
    assert len(kept) < 2000
    assert sorted(set(leaders(texts, 0.8))) == kept


def test_duplicated_rows_are_counted() -> None:
    """The same text, another spelling of it and a near one are three things."""
    texts = ["Name a red bird.", "Name a red bird.", "name a RED bird", "Name a bird, a red one."]
    found, repeats = distinct_metrics([{"instruction": t} for t in texts], 0.8, "rows.jsonl")
    metrics = {m.name: m for m in found}
    assert {name: m.value for name, m in metrics.items()} == {
        "distinct_exact": 3,
        "distinct_normalised": 2,
        "distinct_near": 1,
        "distinct_near_rate": 0.25,
        "largest_repeat": 4,
    }
    assert metrics["distinct_near_rate"] == Metric(
        "distinct_near_rate", 0.25, 4, 1, denominator="kept rows", evidence="rows.jsonl"
    )
    assert [(row["row"], row["why"]) for row in repeats] == [
        (place, "as row 0: 'Name a red bird.'") for place in (1, 2, 3)
    ]


def test_other_numbers_make_other_instructions() -> None:
    """Sums that differ in a number, and short instructions with one other noun, stay apart."""
    texts = ["What is 12 minus 5?", "What is 12 minus 7?", "Name a fruit.", "Name a bird."]
    assert leaders(texts, 0.8) == [0, 1, 2, 3]


def test_near_copies_in_a_script_without_spaces_are_one() -> None:
    """A comma and a last character more; and of one alphabet, another text stays another."""
    texts = [
        "请写出彩虹的四种颜色并说明它们的顺序",
        "请写出彩虹的四种颜色\uff0c并说明它们的顺序吧",
        "请写出水果的三种名字并说明它们的味道",
        "เมืองหลวงของประเทศไทยคืออะไร",
        "ประเทศไทยมีแม่น้ำสายหลักคืออะไรของเมือง",
    ]
    assert leaders(texts, 0.8) == [0, 0, 2, 3, 4]


def test_nothing_kept_is_nothing_measured() -> None:
    """An empty dataset has no count of distinct rows, which a gate calls invalid."""
    metrics, repeats = distinct_metrics([], 0.8, "rows.jsonl")
    assert ({m.value for m in metrics}, repeats) == ({None}, [])


def test_counts_tell_the_known_from_the_new() -> None:
    """Repeats of a few-shot text are counted apart, and tokens stay with their text."""
    fates = ["duplicate", "kept", "duplicate", "near_duplicate", "rejected_pair"]
    texts = ["What is ice?", "Name a red bird.", "name a red bird", "Name a red, red bird!", "Why?"]
    rows = [
        {"instruction": text, "fate": fate, "list_tokens": 2.5, "tokens": 4 * (fate == "kept")}
        for text, fate in zip(texts, fates, strict=True)
    ]
    found = instruction_counts(rows, 0.8)
    assert [(r["instruction"], r["count"], r["known"], r["kept"]) for r in found] == [
        ("What is ice?", 1, True, False),
        ("Name a red bird.", 3, False, True),
        ("Why?", 1, False, False),
    ]
    assert [(r["tokens"], r["list_tokens"]) for r in found] == [(0, 2.5), (4, 7.5), (0, 2.5)]
