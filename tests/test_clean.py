"""The stop rule, cleaning, the detectors of residue and runaway, and how far they search."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phases import clean
from phases.chat_signs import holds_markup
from phases.clean import cut, fault, has_residue, is_cut_off, is_runaway


@pytest.mark.parametrize(
    ("raw", "response", "cut_by"),
    [
        (" Yes\n###END###\n\nInstruction: next", "Yes", "delimiter"),
        (" Yes\n###EN", "Yes", "delimiter"),
        ("\n\n Yes\n\nand more", "Yes", "blank line or new turn"),
        (" 4 sides\nInstruction: How many", "4 sides", "blank line or new turn"),
        (" a\nb\nQ: c", "a\nb", "blank line or new turn"),
        (" done\nNow answer this", "done", "new question"),
        (" a long and right answer", "a long and right answer", ""),
    ],
)
def test_a_response_ends_at_the_first_stop(raw: str, response: str, cut_by: str) -> None:
    """The delimiter, whole or in part, else a blank line, a new turn or a new question."""
    assert (response, cut_by) == (cut(raw).text, cut(raw).cut_by)


@pytest.mark.parametrize(
    "text", ["red ###END###", "red ##", "red END###", "red </s>", "<|im_end|>"]
)
def test_a_piece_of_the_delimiter_is_residue(text: str) -> None:
    """A stop marker counts whole and in part."""
    assert has_residue(text)


@pytest.mark.parametrize("text", ["C# is a language", "The end.", "THE END", "a < b > c", "#1"])
def test_plain_text_is_no_residue(text: str) -> None:
    """What only looks like a marker passes."""
    assert not has_residue(text)


@pytest.mark.parametrize(
    "text",
    [
        "dog dog dog dog",
        "the cat sat. the cat sat. the cat sat.",
        "1. a red car\n2. a red car\n3. a red car",
        "Instruction: again and again",
        " Response: 42",
        "\nQ: What is it?",
    ],
)
def test_repetition_and_new_turns_are_runaway(text: str) -> None:
    """A response that starts a new prompt or says one thing again and again."""
    assert is_runaway(cut(text))


@pytest.mark.parametrize(
    "text",
    [
        "It is very, very, very cold.",
        "hello hello",
        " ".join(f"word{i}" for i in range(400)),
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
        "A rose is a flower and a rose is a name.",
        "Yes\nInstruction: what came after the answer is cut off",
        "\n\n  Yes",
        "###END###",
    ],
)
def test_a_long_or_lively_answer_is_not_runaway(text: str) -> None:
    """Length plays no part."""
    assert not is_runaway(cut(text))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (" Paris.\n###END###", ""),
        ("###END###", "empty_response"),
        (" Response: 42", "runaway"),
        ("no no no no", "runaway"),
        ("Paris END##", "residue"),
        ("Paris <end_of_turn> yes", "residue"),
        ("<start_of_turn>", "residue"),
        ("<|im_end|>", "residue"),
        ("Fine.\nLabel: A", ""),
        ("Verdict: good", "residue"),
    ],
)
def test_each_fault_has_its_name(raw: str, expected: str) -> None:
    """One rule names why a response is dropped, and a sound one has no fault."""
    assert fault(cut(raw)) == expected


# --- searches that a long text must not slow down: the same readings as the plain patterns

_PIECES = st.lists(
    st.sampled_from(["user:", "User :", "assistant:", "x", " ", "\n", "###", "instruction:"])
    | st.sampled_from(["response:", "the", "is", "have", "_", "-", "word", "."])
).map("".join)


@given(_PIECES)
def test_two_turns_are_found_as_one_pattern_would(text: str) -> None:
    """A user's turn and an assistant's behind it, or the headings of a task."""
    one = r"\buser:.*\bassistant:|###\s*instruction:.*###\s*response:"
    assert holds_markup(text) is bool(re.search(one, text, re.IGNORECASE | re.DOTALL))


@given(_PIECES)
def test_an_open_end_is_found_wherever_its_words_begin(text: str) -> None:
    """That the search begins at a word, not within one, changes no reading."""
    anywhere = re.compile(clean._OPEN_END.pattern.replace(r"\b(?:\w+", r"(?:\w+"), re.IGNORECASE)
    assert anywhere.pattern != clean._OPEN_END.pattern
    assert bool(clean._OPEN_END.search(text)) is bool(anywhere.search(text))


def test_a_long_text_is_read_to_its_end() -> None:
    """A million letters in one word, and as many turns that nobody answers."""
    assert not is_cut_off("a" * 1_000_000)
    assert not holds_markup("user: " * 1_000_000)
    assert not holds_markup("### instruction: " * 1_000_000)
