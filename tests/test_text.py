"""Texts, normalised and compared."""

from hypothesis import given
from hypothesis import strategies as st

from runbook.text import NearDuplicates, normalise, similarity, words

WORDS = st.lists(st.sampled_from(list("abcdefghij")), min_size=1, max_size=12)


def test_normalising_keeps_words_and_numbers_alone() -> None:
    """Case, punctuation, width and spacing do not count."""
    assert normalise("  List THREE   fruits! ") == normalise("list three fruits")


@given(st.lists(WORDS, max_size=15), WORDS, st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_the_index_finds_what_comparing_all_would(
    seen: list[list[str]], asked: list[str], bound: float
) -> None:
    """The rarest-words lookup misses no near-duplicate and invents none."""
    texts = [" ".join(t) for t in seen]
    text = " ".join(asked)
    bag = frozenset(words(text))
    expected = [t for t in texts if similarity(frozenset(words(t)), bag) >= bound]
    assert (expected[0] if expected else None) == NearDuplicates(bound, texts).find(text)


def test_other_numbers_make_another_instruction() -> None:
    """Two sums that differ in a number are no near-duplicates at 0.8."""
    assert NearDuplicates(0.8, ["What is 12 minus 5?"]).find("What is 12 minus 7?") is None
