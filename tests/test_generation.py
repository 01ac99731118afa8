"""Parsing of generated lists, and what the few-shot file may hold."""

from pathlib import Path

from phases.generation import make_screen, parse_instructions
from phases.held_out import load_instructions
from phases.prompts import load_few_shot, seen_instructions
from runbook.text import NearDuplicates

SPECS = Path(__file__).parents[1] / "specs"


def test_a_list_is_parsed_up_to_its_first_odd_line() -> None:
    """The cut number goes on, numbered lines follow, and the list then ends."""
    text = " Name two fruits.\n8. What is ice?\n\nAnswer key\n9. Not this one."
    assert parse_instructions(text, cut_off=False) == ["Name two fruits.", "What is ice?"]


def test_half_an_instruction_is_left_out() -> None:
    """The last line of a generation that hit its limit was cut off."""
    assert parse_instructions(" Name two fruits.\n8. What is", cut_off=True) == ["Name two fruits."]


def test_no_few_shot_text_comes_near_the_held_out_set() -> None:
    """What the model is shown is not what it is examined on."""
    held_out = NearDuplicates(0.8, load_instructions(SPECS / "held_out.jsonl"))
    shown = seen_instructions(load_few_shot(SPECS / "few_shot.yaml"))
    assert [t for t in shown if held_out.find(t) is not None] == []


def test_the_screen_names_why_an_instruction_is_dropped() -> None:
    """Held-out first, in any spelling, then exact, then near; what is new is remembered."""
    screen = make_screen(0.8, ["What is ice?"], ["List three fruits."])
    asked = [
        "List three fruits!",
        "List 3 fruits.",
        "what is ICE",
        "Name a red bird",
        "Name a red bird.",
    ]
    fates = [screen.fate(text) for text in asked]
    assert fates == ["near_held_out", "near_held_out", "duplicate", "", "duplicate"]
