"""Each check accepts what its instruction asks for, in any honest shape, and nothing else."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phases import answers, verifiers
from phases.held_out import load_items, subset
from phases.verifiers import HeldOutItem, moved, score
from runbook.errors import ConfigError

HELD_OUT = Path(__file__).parents[1] / "specs" / "held_out.jsonl"
ITEMS = load_items(HELD_OUT)
KINDS = ("list", "choice", "number", "format", "short")


def item(*checks: dict[str, Any], **fields: Any) -> HeldOutItem:
    row = {"id": "x-1", "kind": "x", "instruction": "Do it.", "reference": "done", **fields}
    return HeldOutItem.model_validate_json(json.dumps({**row, "checks": checks}))


def passes(check: dict[str, Any], response: str) -> bool:
    return score(item(check), response).success


FRUITS = {"check": "allowed_items", "items": ["apple", "pear", "cherry", "kiwi|kiwi fruit"]}
THREE = {"check": "exact_count", "count": 3}


@pytest.mark.parametrize(
    "response",
    [
        "apple, pear, cherry",
        " Apple, pear, and cherry. ",
        "apple; pear; cherry",
        "apples and pears and cherries",
        "apple\npear\ncherry",
        "1. apple\n2. pear\n3. cherry",
        "1) apple 2) pear 3) cherry",
        "- An apple\n- A pear\n\n- Some cherries",
        "* apple\n* pear\n* cherry",
        "apple,\npear,\ncherry.",
        "Here are three fruits:\n1. Apple - red and sweet\n2. Pear (green)\n3. Cherry: small",
        "Three fruits are an apple, a pear and a cherry. I like all of them very much.",
        "Sure! Three fruits that people like to eat are: apple, pear, cherry",
        "An apple, a pear and a cherry are three fruits.",
        "Three fruits are an apple, a pear and a cherry. Wash, peel, cut and eat them, raw or not.",
        "I like fruit, and I eat it. Three fruits are apple, pear, cherry.",
        '"apple", "pear", "kiwi fruit"',
    ],
)
def test_a_list_may_be_written_in_many_ways(response: str) -> None:
    """Separators, bullets, numbers, articles, plurals, a lead-in and remarks do not matter."""
    result = score(item(THREE, FRUITS), response)
    assert result.failures == ()
    assert result.success


@pytest.mark.parametrize(
    ("response", "format_ok", "content_ok"),
    [
        ("apple, pear", False, True),
        ("apple, pear, cherry, kiwi", False, True),
        ("apple,, pear, cherry", False, False),
        ("apple, pear,", False, False),
        ("apple, apple, pear", True, False),
        ("kiwi, kiwi fruit, pear", True, False),
        ("apple, pear, hammer", True, False),
        ("apple, pear, pineapple", True, False),
        ("dog, cat", False, False),
        ("apple, pear, cherry\n\nName two animals.\ndog, cat", False, False),
    ],
)
def test_a_wrong_list_fails_where_it_is_wrong(
    response: str, format_ok: bool, content_ok: bool
) -> None:
    """Count and gaps are format; foreign and repeated items are content."""
    result = score(item(THREE, FRUITS), response)
    assert (result.format_ok, result.content_ok) == (format_ok, content_ok)
    assert not result.success


def test_irregular_plurals_are_one_thing() -> None:
    """Feet and foot, knives and knife, buses and bus are the same item; bus and bun are not."""
    check = {"check": "allowed_items", "items": ["foot", "knife", "bus", "glove"]}
    assert passes(check, "feet, knives, buses, gloves")
    assert not passes(check, "bun")


def test_ordered_items_keep_their_order() -> None:
    """The same items in another order, or one too few, fail in content."""
    check = {"check": "ordered_items", "items": ["1", "2", "3"]}
    assert passes(check, "1, 2, 3.")
    assert passes(check, "1\n2\n3")
    assert not passes(check, "2, 1, 3")
    assert not passes(check, "1, 2")


YES = (
    {"check": "one_of", "options": ["yes", "no"]},
    {"check": "allowed_answers", "answers": ["yes"]},
)


@pytest.mark.parametrize("response", ["yes", "Yes.", ' "YES!" ', "\u201cyes\u201d", "**Yes**"])
def test_a_choice_ignores_case_quotes_and_punctuation(response: str) -> None:
    """The bare option in any dress is the answer."""
    assert score(item(*YES), response).success


@pytest.mark.parametrize(
    ("response", "format_ok", "content_ok"),
    [
        ("no", True, False),
        ("Yes, it is.", False, True),
        ("yes\nInstruction: Is it?", False, True),
        ("yesterday", False, False),
        ("maybe", False, False),
        ("no, not yes", False, False),
    ],
)
def test_a_choice_tells_the_form_from_the_answer(
    response: str, format_ok: bool, content_ok: bool
) -> None:
    """An option that is wrong has the form; an answer with more around it has the content."""
    result = score(item(*YES), response)
    assert (result.format_ok, result.content_ok) == (format_ok, content_ok)


def test_an_article_is_not_part_of_an_answer_but_a_letter_is() -> None:
    """`An elephant` is the option elephant, and `A` is still the letter."""
    assert passes({"check": "one_of", "options": ["mouse", "elephant"]}, "An elephant.")
    assert passes({"check": "allowed_answers", "answers": ["elephant"]}, "The elephant")
    assert passes({"check": "allowed_answers", "answers": ["a"]}, "A")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12),
        ("12.", 12),
        ("-3.5", -3.5),
        ("\u22123", -3),
        ("1,000", 1000),
        ("$5", 5),
        ("twelve", 12),
        ("Forty-two", 42),
        ("twenty one", 21),
        ("a hundred", 100),
        ("one hundred", 100),
        ("three hundred and sixty-five days", 365),
        ("two thousand five hundred", 2500),
        ("one hundred thousand", 100_000),
        ("7 plus 5 is 12", 12),
        ("7 + 5 = 12, and 12 is not 13", 12),
        ("There are 7 days in 1 week.", 7),
        ("There are 24 hours in one day, which is 1440 minutes.", 24),
        ("If you have 10 rolls and sell 4, you have 6 left.", 6),
        ("Well, the answer is 6", 6),
        ("seventeen", 17),
        ("the 7th of 9", 9),
        ("7\nHow many days has May? 31", 7),
        ("none at all", None),
        ("someone weighty", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text: str, expected: float | None) -> None:
    """Digits and words are read, and of several numbers the one that is stated as the result."""
    assert answers.find_number(text) == expected


@given(st.integers(0, 9999))
def test_every_number_word_is_read(value: int) -> None:
    """A number written out in English reads as itself."""
    ones, tens = answers._ONES, answers._TENS

    def below_100(n: int) -> str:
        return ones[n] if n < 20 else f"{tens[n // 10 - 2]}-{ones[n % 10]}".removesuffix("-zero")

    thousands, hundreds, rest = value // 1000, value // 100 % 10, value % 100
    words = f"{ones[thousands]} thousand " if thousands else ""
    words += f"{ones[hundreds]} hundred " if hundreds else ""
    words += below_100(rest) if rest or not words else ""
    assert answers.find_number(words) == value


def test_a_number_has_its_tolerance() -> None:
    """Within the tolerance, its ends included, is right; without one only the value is."""
    about = {"check": "number", "value": 30, "tolerance": 1}
    assert all(passes(about, text) for text in ("29", "thirty", "about 31 days"))
    assert not any(passes(about, text) for text in ("28", "31.5", "thirteen", "many"))
    assert not passes({"check": "number", "value": 30}, "30.5")


def test_a_bare_number_may_carry_only_its_units() -> None:
    """One number and one of the given units is bare; any other word is not."""
    check = {"check": "number_only", "units": ["days", "$", "\u00b0C"]}
    for text in ("7", "7.", "Seven", "7 days", "$7", "7 \u00b0C", "7\u00b0C", "**7**"):
        assert passes(check, text), text
    for text in ("7 weeks", "It is 7", "7 or 8", "days", "7\n8", "#"):
        assert not passes(check, text), text


def test_a_pattern_matches_the_whole_stripped_response() -> None:
    """Space around is ignored, a rest is not, and case counts unless the item says otherwise."""
    check = {"check": "pattern", "pattern": "[A-Z]+"}
    assert passes(check, " RIVER\n")
    assert not passes(check, "RIVER is a word")
    assert not passes(check, "river")
    assert passes({**check, "ignore_case": True}, "river")


def test_one_line_is_one_line() -> None:
    """Line breaks around do not count, a second line does, and a long line is still one."""
    assert passes({"check": "one_line"}, "\n\nA line.\n")
    assert passes({"check": "one_line"}, "word " * 2000)
    assert not passes({"check": "one_line"}, "A line.\n\nAnother.")


def test_word_limits_count_words() -> None:
    """Both limits are inclusive, and a dash is no word."""
    assert passes({"check": "max_words", "words": 3}, "cold, white - soft")
    assert not passes({"check": "max_words", "words": 3}, "cold, white and soft")
    assert passes({"check": "min_words", "words": 2}, "It melts.")
    assert not passes({"check": "min_words", "words": 2}, "Melts - !")


@pytest.mark.parametrize(
    ("word", "response"),
    [
        ("road", "Roads are there."),
        ("carry", "It carries cars."),
        ("stop", "It stopped."),
        ("write", "She is writing"),
        ("cross", "for crossing water"),
        ("ice cream", "We had ice cream!"),
        ("read", "a (reader)"),
    ],
)
def test_a_mention_may_be_inflected(word: str, response: str) -> None:
    """Plain English endings and capitals do not hide a word."""
    assert passes({"check": "mentions_any", "words": ["zebra", word]}, response)


@pytest.mark.parametrize(
    ("word", "response"), [("road", "broad roadside"), ("ice", "nice price"), ("ice cream", "ice")]
)
def test_a_part_of_a_word_is_no_mention(word: str, response: str) -> None:
    """Only whole words and whole phrases count."""
    assert not passes({"check": "mentions_any", "words": [word]}, response)


@pytest.mark.parametrize("response", ["", " \n\t "])
def test_an_empty_response_never_succeeds(response: str) -> None:
    """Nothing has neither form nor content, also where no check asks for content."""
    result = score(item({"check": "max_words", "words": 5}), response)
    assert (result.success, result.format_ok, result.content_ok) == (False, False, False)


def test_without_content_checks_any_text_has_content() -> None:
    """An item of format checks only leaves the content to pass."""
    result = score(item({"check": "max_words", "words": 1}), "two words")
    assert (result.success, result.format_ok, result.content_ok) == (False, False, True)
    assert result.failures == ("format max_words: 2 words, at most 1 asked",)


@given(st.text(max_size=200), st.sampled_from(ITEMS))
def test_success_is_format_and_content(response: str, held_out: HeldOutItem) -> None:
    """No text breaks a check, and success is both aspects with no failure left."""
    result = score(held_out, response)
    assert result.success == (result.format_ok and result.content_ok)
    assert result.success == (result.failures == ())


@given(st.integers(1, 400))
def test_length_alone_changes_nothing(repeats: int) -> None:
    """A right answer stays right under any amount of further words where no limit is asked."""
    tail = "which many people see every single day of their life " * repeats
    mention = {"check": "mentions_any", "words": ["road"]}
    assert passes(mention, f"A bridge carries a road, {tail}")
    assert passes({"check": "number", "value": 7}, f"There are 7 days in a week, {tail}")
    listed = f"Three fruits are apple, pear and cherry. These are fruits {tail}".strip()
    assert score(item(THREE, FRUITS), listed).success


ROW = {
    "id": "a",
    "kind": "list",
    "instruction": "List one fruit.",
    "reference": "apple",
    "checks": [{"check": "exact_count", "count": 1}],
}
TWIN = {**ROW, "id": "b", "instruction": "Name one fruit."}


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({**TWIN, "checks": [{"check": "longest", "count": 1}]}, "longest.*exact_count"),
        ({**TWIN, "checks": [{"check": "exact_count"}]}, "count: Field required"),
        ({**TWIN, "checks": [{"check": "exact_count", "count": "1"}]}, "valid integer"),
        ({**TWIN, "checks": [{"check": "exact_count", "count": 0}]}, "greater than"),
        ({**TWIN, "checks": [{"check": "one_line", "lines": 1}]}, "lines: Extra inputs"),
        ({**TWIN, "checks": [{"check": "allowed_items", "items": []}]}, "items"),
        ({**TWIN, "checks": [{"check": "number", "value": 1, "tolerance": -1}]}, "tolerance"),
        ({**TWIN, "checks": [{"check": "pattern", "pattern": "("}]}, "no regular expression"),
        ({**TWIN, "checks": []}, "checks"),
        ({**TWIN, "note": "x"}, "note: Extra inputs"),
        ({key: value for key, value in TWIN.items() if key != "reference"}, "reference: Field"),
        ({**TWIN, "reference": ""}, "reference"),
        ({**TWIN, "reference": "apple, pear"}, "fails its own checks .*2 items, asked 1"),
        ({**TWIN, "id": "a"}, "id 'a' stands on line 1 too"),
        ({**TWIN, "instruction": "list one  fruit"}, "instruction .* stands on line 1 too"),
        (json.dumps(TWIN)[:40], "Invalid JSON"),
        ("[]", "row"),
    ],
)
def test_a_bad_row_is_refused_by_line(
    tmp_path: Path, second: dict[str, Any] | str, message: str
) -> None:
    """A row that does not hold is refused with file, line, reason and remedy."""
    path = write(tmp_path / "items.jsonl", ROW, "", second)
    with pytest.raises(
        ConfigError, match=rf"items\.jsonl:3: .*{message}.*\n.*fix: (correct|remove)"
    ):
        load_items(path)


def test_a_file_without_items_is_refused(tmp_path: Path) -> None:
    """An empty, missing or binary file is refused by its name."""
    with pytest.raises(ConfigError, match=r"empty\.jsonl: no items"):
        load_items(write(tmp_path / "empty.jsonl", "", " "))
    with pytest.raises(ConfigError, match=r"missing\.jsonl: not readable"):
        load_items(tmp_path / "missing.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.jsonl: not readable"):
        load_items(tmp_path / "binary.jsonl")


def test_a_good_file_is_read_in_order(tmp_path: Path) -> None:
    """Items come back in file order, a final line break or not."""
    assert [i.id for i in load_items(write(tmp_path / "a.jsonl", ROW, TWIN, ""))] == ["a", "b"]


def test_a_subset_takes_the_first_of_each_kind() -> None:
    """Kinds that are mixed in the file give their first items, in file order."""
    rows = [item({"check": "one_line"}, id=f"{k}{i}", kind=k) for i in range(3) for k in "ab"]
    assert [row.id for row in subset(rows, 2)] == ["a0", "b0", "a1", "b1"]


@pytest.mark.parametrize(("per_kind", "message"), [(0, "at least one"), (66, "65")])
def test_a_subset_that_cannot_be_is_refused(per_kind: int, message: str) -> None:
    """More items than a kind has, or none, is refused."""
    with pytest.raises(ConfigError, match=message):
        subset(ITEMS, per_kind)
    with pytest.raises(ConfigError, match="has none"):
        subset([], 1)


def test_the_held_out_set_is_large_and_even() -> None:
    """At least 300 items, five kinds of the same size, each subset even too."""
    counts = Counter(row.kind for row in ITEMS)
    assert tuple(counts) == KINDS
    assert len(ITEMS) >= 300
    assert len(set(counts.values())) == 1
    assert Counter(row.kind for row in subset(ITEMS, 32)) == dict.fromkeys(KINDS, 32)


def test_no_two_held_out_instructions_are_near_identical() -> None:
    """No two instructions share three quarters of their words."""
    words = [frozenset(answers.normalise(row.instruction).split()) for row in ITEMS]
    near = [(a, b) for a, b in combinations(words, 2) if len(a & b) >= 0.75 * len(a | b)]
    assert near == []


@pytest.mark.parametrize("kind", KINDS)
def test_most_items_judge_content_too(kind: str) -> None:
    """Nine in ten items of each kind have a content check: form alone does not carry a kind."""
    rows = [row for row in ITEMS if row.kind == kind]
    judged = sum(any(check.aspect == "content" for check in row.checks) for row in rows)
    assert judged >= 0.9 * len(rows)


@pytest.mark.parametrize("row", ITEMS, ids=lambda row: row.id)
def test_an_item_holds_its_reference_and_not_its_echo(row: HeldOutItem) -> None:
    """The reference succeeds, and the instruction given back as the response does not."""
    assert score(row, row.reference).failures == ()
    assert not score(row, row.instruction).success
    if row.kind == "short":
        assert not score(row, row.instruction).content_ok


@pytest.mark.parametrize("turn", [1, 7, 20, 33])
def test_another_items_answer_mostly_fails(turn: int) -> None:
    """References turned round within their kind succeed in less than 35 % of the items."""
    hits = 0
    for kind in KINDS:
        rows = [row for row in ITEMS if row.kind == kind]
        moved = rows[turn:] + rows[:turn]
        hits += sum(score(a, b.reference).success for a, b in zip(rows, moved, strict=True))
    assert hits < 0.35 * len(ITEMS)


@pytest.mark.parametrize("per_kind", [32, 65])
def test_no_constant_choice_wins(per_kind: int) -> None:
    """Always yes, always false or always the first option is right in at most 55 % of its items."""
    strategies: dict[str, Counter[str]] = {}
    for row in subset(ITEMS, per_kind):
        for check in row.checks:
            if isinstance(check, verifiers.OneOf):
                named = check.options in (("yes", "no"), ("true", "false"))
                key = "/".join(check.options) if named else f"one of {len(check.options)}"
                choice = row.reference if named else str(check.options.index(row.reference))
                strategies.setdefault(key, Counter())[choice] += 1
    assert sorted(strategies) == ["one of 2", "one of 3", "true/false", "yes/no"]
    for key, counts in strategies.items():
        assert max(counts.values()) <= 0.55 * counts.total() + 0.5, (key, counts)


@pytest.mark.parametrize(
    ("check", "response", "strict", "lenient"),
    [
        ({"check": "max_words", "words": 10}, "a " * 9, False, True),
        ({"check": "max_words", "words": 10}, "a " * 12, False, True),
        ({"check": "max_words", "words": 4}, "a " * 5, False, False),
        ({"check": "min_words", "words": 10}, "a " * 11, False, True),
        ({"check": "min_words", "words": 10}, "a " * 8, False, True),
        ({"check": "number", "value": 50, "tolerance": 10}, "61", False, True),
        ({"check": "number", "value": 50, "tolerance": 10}, "59", False, True),
        ({"check": "number", "value": 50}, "51", False, False),
        ({"check": "exact_count", "count": 5}, "a, b, c, d", False, True),
        ({"check": "exact_count", "count": 4}, "a, b, c", False, False),
        (THREE, "a, b, c", True, True),
    ],
)
def test_thresholds_move_by_a_fifth(
    check: dict[str, Any], response: str, strict: bool, lenient: bool
) -> None:
    """A count moves by whole numbers, an exact value not at all, and the item stays as it was."""
    one = item(check)
    before = one.model_dump()
    assert score(moved(one, -0.2), response).success is strict
    assert score(moved(one, 0.2), response).success is lenient
    assert one.model_dump() == before
