"""The stop rule, cleaning, and the detectors of residue and runaway."""

import pytest

from phases.clean import cut, fault, has_residue, is_runaway


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
