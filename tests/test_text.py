"""Texts, normalised and compared."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook.text import (
    NearDuplicates,
    bag,
    fold,
    normalise,
    quarters,
    similarity,
    spellings,
    tokens,
    words,
)

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


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("rain\x00bow", "rainbow"),
        ("rain\x08bow\x7f", "rainbow"),
        ("rain\x9fbów", "rainbow"),
        ("\x1b[1;31mrain\x1b[0mbow", "rainbow"),
        ("a\tb\nc\r\x0bd\x1ce\x85f", "a\tb\nc\r\x0bd\x1ce\x85f"),
        ("[31m is plain", "[31m is plain"),
    ],
)
def test_control_characters_go_and_white_space_stays(written: str, expected: str) -> None:
    """In plain ASCII and beside other letters, a terminal's colours included."""
    assert fold(written) == expected


@pytest.mark.parametrize(
    ("written", "expected", "pieces"),
    [
        ("Two e-mails", ["two", "e", "mails"], {"two", "e", "mails"}),
        ("法国的GPT4吗", ["法", "国", "的", "gpt4", "吗"], {"法国", "国的", "gpt4", "吗"}),
        ("どこ ですか", ["ど", "こ", "で", "す", "か"], {"どこ", "です", "すか"}),
        ("ไทย", ["ไ", "ท", "ย"], {"ไท", "ทย"}),
        ("한국어 문장", ["한국어", "문장"], {"한국어", "문장"}),
        ("", [], set()),
    ],
)
def test_a_script_without_spaces_is_read_by_its_characters(
    written: str, expected: list[str], pieces: set[str]
) -> None:
    """One by one where their order counts, in pairs where it does not."""
    assert tokens(written) == expected
    assert bag(written) == pieces


def test_a_character_is_a_part_of_a_word() -> None:
    """Half a word in Han and kana, a quarter in Thai; a word of any other script is one."""
    assert [quarters(token) for token in ("a", "word", "é", "법", "国", "ど", "ท")] == [
        *(4, 4, 4, 4, 2, 2, 1)
    ]


@given(st.text(alphabet=st.characters(max_codepoint=127, exclude_categories=["Cc"])))
def test_plain_english_is_read_as_its_words(text: str) -> None:
    """In ASCII without control characters neither of the finer readings says more."""
    assert fold(text) == text
    assert tokens(text) == words(text)
    assert bag(text) == frozenset(words(text))
    assert spellings(text)[0] == text


@pytest.mark.parametrize(
    ("written", "others"),
    [
        ("A plain text, 3-4 lines - no more.", []),
        ("Co\u2011operate by e-mail", ["Cooperate by email"]),
        ("Name Four of twenty", ["Name 4 of 20"]),
        ("Someone tenfold", []),
        ("One re-run", ["One rerun", "1 re-run", "1 rerun"]),
    ],
)
def test_hyphens_and_small_numbers_have_another_spelling(written: str, others: list[str]) -> None:
    """A hyphen between letters goes; a whole word that is a number becomes digits."""
    assert spellings(written)[1:] == others


@given(st.text())
def test_folding_once_is_enough(text: str) -> None:
    """Words of the words, and the folded of the folded, are the same."""
    assert words(normalise(text)) == words(text)
    assert normalise(fold(text)) == normalise(text)
    assert fold(fold(text)) == fold(text)


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
