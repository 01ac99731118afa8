"""Texts, normalised and compared."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook.text import NearDuplicates, fold, normalise, similarity, words

WORDS = st.lists(st.sampled_from(list("abcdefghij")), min_size=1, max_size=12)


def test_normalising_keeps_words_and_numbers_alone() -> None:
    """Case, punctuation, width and spacing do not count."""
    assert normalise("  List THREE   fruits! ") == normalise("list three fruits")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Café, naïve: e\u0301te\u0301", ["cafe", "naive", "ete"]),
        ("na\u200bme t\u00adwo", ["name", "two"]),
        ("\uff34\uff37\uff2f ½ ﬁsh", ["two", "1", "2", "fish"]),
        ("İstanbul Straße", ["istanbul", "strasse"]),
        ("हिन्दी कुल कल", ["हिन्दी", "कुल", "कल"]),
        ("ความ สุข", ["ความ", "สุข"]),
        ("がか ガ", ["がか", "ガ"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("snake_case e-mail", ["snake", "case", "e", "mail"]),
        ("\u0301 \u200b", []),
    ],
)
def test_accents_go_and_a_script_keeps_its_own_marks(written: str, expected: list[str]) -> None:
    """Where a mark is a vowel, two words that differ in it stay two."""
    assert words(written) == [unicodedata.normalize("NFC", word) for word in expected]


def test_letters_of_another_script_stay_other_letters() -> None:
    """Look-alikes are not folded: they are words of another language as well."""
    assert words("nаme") != words("name")  # noqa: RUF001 - the second letter is Cyrillic


@given(st.text())
def test_folding_once_is_enough(text: str) -> None:
    """Words of the words, and the folded of the folded, are the same."""
    assert words(normalise(text)) == words(text)
    assert normalise(fold(text)) == normalise(text)


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
