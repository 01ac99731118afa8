"""Training rows against the held-out set: each reading trips, and lets innocent rows be."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from phases.held_out import load_items
from phases.leakage import OVERLAPS, find_overlaps, leaks, overlap_metrics
from phases.prompts import completion, evaluation_prompt, load_few_shot

SPECS = Path(__file__).parents[1] / "specs"
LONG = (
    "Read the notice on the harbour wall aloud, then name the ship that left first, "
    "the ship that came last and the captain of each."
)


@dataclass(frozen=True)
class Item:
    id: str
    instruction: str
    reference: str = "unknown"


ITEMS = [
    Item("a", "Name three primary colors."),
    Item("b", LONG, "The Swan left first, the Heron came last; their captains were Ruth and Omar."),
    Item("c", "Count from one to fifteen.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15"),
]


def readings(instruction: str, response: str = "Yes.") -> set[str]:
    row = {"instruction": instruction, "response": response}
    return {found["check"].removeprefix("overlap_") for found in find_overlaps([row], ITEMS, 0.8)}


@pytest.mark.parametrize(
    ("instruction", "response", "expected"),
    [
        ("Name three primary colors.", "Red.", {"exact", "normalised", "near", "quoted"}),
        ("name THREE primary colors", "Red.", {"normalised", "near", "quoted"}),
        ("Now name three primary colors.", "Red.", {"near", "quoted"}),
        ("Colors, primary: name three!", "Red.", {"near"}),
        ("First greet me, then name three primary colors.", "Hello.", {"quoted"}),
        ("Write a quiz.", "Name three primary colors! Then stop.", {"quoted"}),
        (
            "Write a quiz.",
            "Name three primary colors.",
            {"exact", "normalised", "near", "quoted"},
        ),
        ("Name the ship that left first, the ship that came last", "Swan.", {"quoted"}),
        (
            "Please name the ship that left first, the ship that came last and the captain, now.",
            "Swan.",
            {"13gram"},
        ),
        (
            "Who sailed?",
            "As I said: the Swan left first, the Heron came last; their captains were Ruth and me.",
            {"13gram"},
        ),
    ],
)
def test_each_reading_finds_its_kind_of_leak(
    instruction: str, response: str, expected: set[str]
) -> None:
    """Exact, in other letters, reworded, within a longer text, in the response, both ways."""
    assert readings(instruction, response) == expected


ASKED = "Name three primary colors."


@pytest.mark.parametrize(
    "written",
    [
        "".join(f"{letter}\u200b" for letter in ASKED),
        ASKED.replace("a", "a\u00ad"),
        ASKED.replace("m", "m\u0301\u0320"),
        ASKED.replace("i", "i\u2060\ufeff"),
        ASKED.replace("r", "r\u3164"),
        ASKED.replace("o", "o\ufe0f\u093c"),
        ASKED.replace("a", "á"),
        ASKED.replace("m", "m\x00"),
        ASKED.replace("primary", "\x1b[31mprim\x1b[0mary"),
    ],
    ids=[
        *("zero width", "soft hyphen", "accents", "joiners", "filler", "other marks", "one letter"),
        *("control character", "colour"),
    ],
)
def test_what_cannot_be_seen_hides_nothing(written: str) -> None:
    """Every reading of a short leak sees through it, in an instruction and in a response."""
    assert written != ASKED
    expected = {"exact", "normalised", "near", "quoted"}
    assert readings(written) == expected
    assert readings("Write a quiz.", written) == expected


@pytest.mark.parametrize(
    ("held", "written"),
    [
        ("Name three primary colors.", "name 3 primary colors"),
        ("Name 3 primary colors.", "Name three primary colors."),
        ("Name three primary colors.", "Name three pri-mary colors."),
        ("How can ants co-operate?", "How can ants cooperate?"),
        ("How can ants cooperate?", "How can ants co\u2011operate?"),
        ("List 2 e-mail programs.", "List two email programs."),
    ],
)
def test_another_spelling_is_the_same_item(held: str, written: str) -> None:
    """A hyphen within a word, or a number as a word, hides nothing from the readings of words."""
    row = {"instruction": written, "response": "No."}
    found = {hit["check"] for hit in find_overlaps([row], [Item("x", held)], 0.8)}
    assert found == {"overlap_normalised", "overlap_near", "overlap_quoted"}


FRENCH = "法国的首都是哪里"
THAI = "เมืองหลวงของประเทศไทยคืออะไร"
RAINBOW = "请写出彩虹的四种颜色并说明它们的顺序和波长以及为什么会出现在雨后的天空中"


@pytest.mark.parametrize(
    ("held", "written", "expected"),
    [
        (FRENCH, "请回答\uff1a法国的首都是哪里\uff1f谢谢", {"quoted"}),
        (FRENCH, "请问法国的首都是哪里呢", {"quoted"}),
        (FRENCH, "法国的 首都是哪里?", {"normalised", "near", "quoted"}),
        (
            "日本の首都はどこですか",
            "次の問いに答えて日本の首都はどこですかお願いします",
            {"quoted"},
        ),
        (THAI, f"ช่วยตอบ{THAI}หน่อยได้ไหมครับ", {"quoted"}),
        (RAINBOW, RAINBOW.replace("们的", "们"), {"near"}),
        (RAINBOW, f"一二三{RAINBOW[:26]}四五六", {"13gram"}),
        (RAINBOW, f"一二三{RAINBOW[:25]}四五六", set()),
        (RAINBOW, RAINBOW[2:10], {"quoted"}),
        (RAINBOW, RAINBOW[2:9], set()),
        (FRENCH, "德国的首都是哪里", set()),
        (FRENCH, "法国的面积是多少", set()),
        (THAI, "ประเทศไทยมีกี่จังหวัด", set()),
    ],
)
def test_a_script_without_spaces_hides_nothing(held: str, written: str, expected: set[str]) -> None:
    """Within a sentence, nearly the same, 26 characters in a row; and another question is none."""
    row = {"instruction": written, "response": "No."}
    found = find_overlaps([row], [Item("x", held)], 0.8)
    assert {hit["check"].removeprefix("overlap_") for hit in found} == expected


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("prompt", evaluation_prompt(ASKED)),
        ("prompt", ASKED),
        ("completion", completion(ASKED)),
    ],
)
def test_what_training_takes_is_read_too(part: str, text: str) -> None:
    """A leak in the prompt or completion alone, with an innocent instruction and response."""
    row = {"instruction": "Say hello.", "response": "Hello."}
    row |= {"prompt": evaluation_prompt("Say hello."), "completion": completion("Hello.")}
    assert list(find_overlaps([row], ITEMS, 0.8)) == []
    found = list(find_overlaps([row | {part: text}], ITEMS, 0.8))
    assert {hit["part"] for hit in found} == {part}
    assert {hit["check"].removeprefix("overlap_") for hit in found} == {
        *("exact", "normalised", "near", "quoted")
    }


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        ("Name three", "Red."),
        ("Name three primary", "Red."),
        ("Three primary colors: which?", "Red."),
        ("List all your very odd socks", "Name."),
        ("Name three primary schools.", "Oak, Elm, Ash."),
        ("Name two primary numbers.", "2 and 3"),
        ("Name a color.", "Primary colors are three."),
        ("Read the notice aloud.", "the captain of each"),
        (
            "Count to twenty.",
            "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
        ),
        ("Who left first?", "Unknown"),
        ("", ""),
    ],
)
def test_an_innocent_row_is_let_be(instruction: str, response: str) -> None:
    """Short pieces, other nouns, boilerplate, a shared short answer, and counting are no leaks."""
    assert readings(instruction, response) == set()


def test_rows_are_counted_once_a_reading_with_what_was_found() -> None:
    """Two hits in one row count as one row, and a person sees both texts of each."""
    row = {"instruction": "Name three primary colors.", "response": "Name three primary colors."}
    found = list(find_overlaps([{"instruction": "Hi.", "response": "Hi."}, row], ITEMS, 0.8))
    metrics = {m.name: (m.value, m.n) for m in overlap_metrics(found, 2, "faults.jsonl")}
    assert metrics == {
        **dict.fromkeys(OVERLAPS, (1.0, 2)),
        "overlap_13gram": (0.0, 2),
    }
    assert found[0] == {
        "check": "overlap_exact",
        "row": 1,
        "part": "instruction",
        "text": "Name three primary colors.",
        "held_out_id": "a",
        "held_out_instruction": "Name three primary colors.",
        "held_out_reference": "unknown",
    }
    assert [m.value for m in overlap_metrics([], 0, "")] == [None] * len(OVERLAPS)


def test_the_shipped_few_shot_pairs_leak_nothing() -> None:
    """Honest rows of the same make as the training data, held against all 325 shipped items."""
    shots = load_few_shot(SPECS / "few_shot.yaml")
    rows = [{"instruction": p.instruction, "response": p.response} for p in shots.responses]
    assert rows
    assert list(find_overlaps(rows, load_items(SPECS / "held_out.jsonl"), 0.8)) == []


def test_every_shipped_item_is_found_as_it_is_and_reworded() -> None:
    """Put among the training rows, each is seen by three readings, and with a word added by one."""
    items = load_items(SPECS / "held_out.jsonl")
    rows = [{"instruction": item.instruction, "response": item.reference} for item in items]
    found: dict[str, set[str]] = {item.id: set() for item in items}
    for hit in find_overlaps(rows, items, 0.8):
        if hit["held_out_id"] == items[hit["row"]].id:
            found[hit["held_out_id"]].add(hit["check"])
    for item in items:
        assert found[item.id] >= {"overlap_exact", "overlap_normalised", "overlap_near"}, item.id
        asked = f"Please {item.instruction[0].lower()}{item.instruction[1:]}"
        assert leaks({"instruction": asked, "response": ""}, item.instruction, 0.8), item.id
