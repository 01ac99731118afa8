"""Verifiers: a program that says whether a response does what a held-out instruction asks.

Rule: a check looks at what its instruction asks for and at nothing else. Length counts only in
`max_words` and `min_words`, which an item carries only where its instruction asks for a length,
so a right answer does not fail for being long. Each check belongs to one aspect, format or
content, and a response succeeds when both hold.
Not here: generation, cleaning, rates. This module reads one JSONL file and strings.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

Aspect = Literal["format", "content"]
Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


@dataclass(frozen=True)
class Score:
    """One response against one item."""

    success: bool
    """`format_ok and content_ok`."""
    format_ok: bool
    content_ok: bool
    failures: tuple[str, ...]
    """One line per check that failed: aspect, check, what was found."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class ExactCount(_Row):
    """The response is a list of `count` items, none of them empty; see `split_items`."""

    aspect: ClassVar[Aspect] = "format"
    check: Literal["exact_count"]
    count: int = Field(ge=1)

    def failure(self, response: str) -> str | None:
        items = split_items(response)
        if not all(items):
            return f"an empty item in {items}"
        return None if len(items) == self.count else f"{len(items)} items, asked {self.count}"


class AllowedItems(_Row):
    """Every listed item is one of `items`, and no two are the same one.

    An entry may hold several names of one thing, joined by `|`. Case, articles, surrounding
    punctuation, a remark in brackets and singular or plural make no difference.
    """

    aspect: ClassVar[Aspect] = "content"
    check: Literal["allowed_items"]
    items: Words

    def failure(self, response: str) -> str | None:
        seen: set[int] = set()
        for item in split_items(response):
            place = next((i for i, e in enumerate(self.items) if _names(e, item)), None)
            if place is None:
                return f"{item!r} is not among the allowed"
            if place in seen:
                return f"{item!r} is there twice"
            seen.add(place)
        return None


class OrderedItems(_Row):
    """The listed items are exactly `items`, in this order."""

    aspect: ClassVar[Aspect] = "content"
    check: Literal["ordered_items"]
    items: Words

    def failure(self, response: str) -> str | None:
        found = split_items(response)
        same = len(found) == len(self.items) and all(map(_names, self.items, found))
        return None if same else f"{found}, asked {list(self.items)}"


class OneOf(_Row):
    """The whole response is one of the `options` that the instruction offers, right or wrong."""

    aspect: ClassVar[Aspect] = "format"
    check: Literal["one_of"]
    options: Words

    def failure(self, response: str) -> str | None:
        options = {normalise(option) for option in self.options}
        return None if options & set(_readings(response)) else f"{response.strip()!r} is no option"


class AllowedAnswers(_Row):
    """The response is one of `answers`, or opens with one.

    What follows the answer is for a format check to judge: `Yes, it is.` has the content of yes.
    """

    aspect: ClassVar[Aspect] = "content"
    check: Literal["allowed_answers"]
    answers: Words

    def failure(self, response: str) -> str | None:
        answers = "|".join(re.escape(normalise(answer)) for answer in self.answers)
        right = re.compile(rf"(?:{answers})(?![\w'-])")
        if any(map(right.match, _readings(response))):
            return None
        return f"{normalise(response)!r} is not the answer"


class Number(_Row):
    """The number that the response gives is within `tolerance` of `value`; see `find_number`."""

    aspect: ClassVar[Aspect] = "content"
    check: Literal["number"]
    value: float = Field(allow_inf_nan=False)
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def failure(self, response: str) -> str | None:
        found = find_number(response)
        if found is None:
            return "no number"
        return None if abs(found - self.value) <= self.tolerance else f"{found:g} is wrong"


class NumberOnly(_Row):
    """The response is one number in digits or words, with one of the `units` at most."""

    aspect: ClassVar[Aspect] = "format"
    check: Literal["number_only"]
    units: tuple[str, ...] = ()

    def failure(self, response: str) -> str | None:
        answer = normalise(response)
        match = _NUMBER.search(answer)
        if match is None:
            return "no number"
        rest = f"{answer[: match.start()]} {answer[match.end() :]}".strip()
        units = map(normalise, self.units)
        return None if rest == "" or rest in units else f"{rest!r} beside the number"


class Pattern(_Row):
    """The stripped response matches the whole regular expression `pattern`."""

    aspect: ClassVar[Aspect] = "format"
    check: Literal["pattern"]
    pattern: str = Field(min_length=1)
    ignore_case: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"no regular expression ({error})") from error
        return pattern

    def failure(self, response: str) -> str | None:
        flags = re.IGNORECASE if self.ignore_case else 0
        matched = re.fullmatch(self.pattern, response.strip(), flags)
        return None if matched else f"does not match {self.pattern}"


class OneLine(_Row):
    """The response is one line."""

    aspect: ClassVar[Aspect] = "format"
    check: Literal["one_line"]

    def failure(self, response: str) -> str | None:
        lines = len(_lines(response))
        return None if lines == 1 else f"{lines} lines"


class MaxWords(_Row):
    """The response has at most `words` words; only where the instruction sets this limit."""

    aspect: ClassVar[Aspect] = "format"
    check: Literal["max_words"]
    words: int = Field(ge=1)

    def failure(self, response: str) -> str | None:
        count = _count_words(response)
        return None if count <= self.words else f"{count} words, at most {self.words} asked"


class MinWords(_Row):
    """The response has at least `words` words; asking for a sentence asks for two."""

    aspect: ClassVar[Aspect] = "format"
    check: Literal["min_words"]
    words: int = Field(ge=1)

    def failure(self, response: str) -> str | None:
        count = _count_words(response)
        return None if count >= self.words else f"{count} words, at least {self.words} asked"


class MentionsAny(_Row):
    """One of `words` (a phrase counts as one) stands in the response, plainly inflected or not."""

    aspect: ClassVar[Aspect] = "content"
    check: Literal["mentions_any"]
    words: Words

    def failure(self, response: str) -> str | None:
        forms = sorted({form for word in self.words for form in _inflections(word.lower())})
        any_form = rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?!\w)"
        found = re.search(any_form, response, re.IGNORECASE)
        return None if found else "none of the words asked for"


Check = Annotated[
    ExactCount
    | AllowedItems
    | OrderedItems
    | OneOf
    | AllowedAnswers
    | Number
    | NumberOnly
    | Pattern
    | OneLine
    | MaxWords
    | MinWords
    | MentionsAny,
    Field(discriminator="check"),
]


class HeldOutItem(_Row):
    """One line of a held-out file."""

    id: str = Field(min_length=1)
    kind: str = Field(min_length=1)
    instruction: str = Field(min_length=1)
    reference: str = Field(min_length=1)
    """A right response. It passes the item's own checks, or the file is refused."""
    checks: tuple[Check, ...] = Field(min_length=1)
    """Without a content check any non-empty response has the content."""


def score(item: HeldOutItem, response: str) -> Score:
    """Run every check of the item; an empty response has neither format nor content."""
    if not response.strip():
        return Score(
            success=False, format_ok=False, content_ok=False, failures=("the response is empty",)
        )
    found = [(check, check.failure(response)) for check in item.checks]
    failed = [(check, reason) for check, reason in found if reason is not None]
    aspects = {check.aspect for check, _ in failed}
    return Score(
        success=not failed,
        format_ok="format" not in aspects,
        content_ok="content" not in aspects,
        failures=tuple(f"{c.aspect} {c.check}: {reason}" for c, reason in failed),
    )


def load_items(path: Path) -> tuple[HeldOutItem, ...]:
    """Read a held-out file, one JSON object a line; blank lines are passed over.

    Raises ValueError naming file:line, what is wrong and what to do, for a row that does not
    parse (a torn last line too), an unknown check or key, a missing or bad parameter, an id or
    instruction that stood before, and a reference that fails its own checks.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not readable as UTF-8 text ({error}). Check the path."
        ) from error
    items: list[HeldOutItem] = []
    first_seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        item = _parse_item(line, where)
        for what, key in (("id", item.id), ("instruction", normalise(item.instruction))):
            before = first_seen.setdefault(f"{what} {key}", number)
            if before != number:
                raise ValueError(
                    f"{where}: {what} {key!r} stands on line {before} too. Remove one of them."
                )
        items.append(item)
    if not items:
        raise ValueError(f"{path}: no items. Write one JSON object a line, or name another file.")
    return tuple(items)


def subset(items: Sequence[HeldOutItem], per_kind: int) -> tuple[HeldOutItem, ...]:
    """Return the first `per_kind` items of each kind, in file order."""
    if per_kind < 1:
        raise ValueError(f"subset: per_kind is {per_kind}; ask for at least one item of each kind.")
    seen: dict[str, int] = {}
    taken = []
    for item in items:
        seen[item.kind] = seen.get(item.kind, 0) + 1
        if seen[item.kind] <= per_kind:
            taken.append(item)
    short = {kind: count for kind, count in seen.items() if count < per_kind}
    if short or not seen:
        raise ValueError(
            f"subset: asked for {per_kind} items of each kind, but the set has only "
            f"{short or 'no items'}. Lower per_kind or write more items."
        )
    return tuple(taken)


def normalise(text: str) -> str:
    """Return lower case, single spaces, straight quotes, no punctuation or quotes around."""
    text = text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
    return re.sub(
        r"^[\s\"'`*_(\[.,;:!?-]+|[\s\"'`*_)\].,;:!?-]+$", "", " ".join(text.split())
    ).lower()


def split_items(response: str) -> list[str]:
    """Return the items of a listed answer; an item that is empty stays as an empty string.

    Commas, semicolons, line breaks and `and` separate; bullets, numbers before items, a heading
    line that ends in a colon and a final period do not count. On a line of prose the list is the
    stretch with most items: `Three fruits are an apple, a pear and a fig. Enjoy!` has three.
    Text on further lines is more items: a list that goes on into something else is not the list.
    """
    lines = _lines(response)
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    items: list[str] = []
    for place, line in enumerate(lines):
        marked = _MARKER.match(line)
        stretches = _GLOSS.split(line[marked.end() :])[:1] if marked else _STRETCH.split(line)
        text = max(map(_split_line, stretches), key=len)
        # A separator at a line's end only leads over to the next line.
        items += text[:-1] if text[-1:] == [""] and place < len(lines) - 1 else text
    return items


def find_number(response: str) -> float | None:
    """Return the number that the first line gives, None if it has none.

    Of several numbers it is the one after the last `is`, `=` or the like of the first clause that
    has a number: `7 plus 5 is 12, as 7 + 6 is 13` gives 12. A clause with `if` restates.
    Digits (`1,000`, `-3.5`) and English words up to the thousands are read; `7th` is no number.
    """
    line = next(iter(_lines(response)), "").lower()
    for clause in re.split(r"[,;.!?]\s", re.sub(r"^if\s[^,]*,\s", "", line)):
        after = [m.end() for m in _EQUALS.finditer(clause)]
        for start in [*after[::-1], 0]:
            match = _NUMBER.search(clause, start)
            if match:
                return _value(match.group())
    return None


_MARKER = re.compile(r"^\s*(?:[-*\u2022]\s+|\(?\d{1,2}[.)]\s+)")
_GLOSS = re.compile(r"\s[-\u2013\u2014]\s|:|\s\(")
_STRETCH = re.compile(r":\s|\s(?:are|include)\s|(?<=[a-z]{3})[.!?]\s+(?=[A-Z])")
_SEPARATOR = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+|\s+\d{1,2}[.)]\s+")
_ARTICLE = re.compile(r"^(?:an?|the|some)\s+")
_EQUALS = re.compile(r"=|\b(?:is|are|equals?|makes?|gives?|has|have)\b")

_ONES = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen",
)
_TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
_SMALL = {word: value for value, word in enumerate(_ONES)}
_SMALL |= {word: 10 * place for place, word in enumerate(_TENS, start=2)}
_SCALES = {"hundred": 100, "thousand": 1000}
_BELOW_100 = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_ONES[1:10])}))?|{'|'.join(_ONES[::-1])})"
)
_SCALE = r"(?:hundred|thousand)"
_NUMBER = re.compile(
    r"(?<![\w.])[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\d|st\b|nd\b|rd\b|th\b)"
    rf"|\b(?:(?:an?|{_BELOW_100})(?:\s{_SCALE})+(?:(?:\sand)?\s{_BELOW_100}(?:\s{_SCALE})*)*"
    rf"|{_BELOW_100})\b"
)


def _value(text: str) -> float:
    text = text.replace("\u2212", "-")
    if any(c.isdigit() for c in text):
        return float(text.replace(",", ""))
    total = group = 0
    for word in re.split(r"[\s-]+", text):
        if word in _SCALES:
            group = max(group, 1) * _SCALES[word]
            if word == "thousand":
                total, group = total + group, 0
        else:
            group += _SMALL.get(word, 0)
    return float(total + group)


def _parse_item(line: str, where: str) -> HeldOutItem:
    try:
        item = HeldOutItem.model_validate_json(line)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors()
        )
        raise ValueError(f"{where}: not a held-out item: {problems}. Correct this row.") from error
    result = score(item, item.reference)
    if not result.success:
        raise ValueError(
            f"{where}: the reference of {item.id!r} fails its own checks "
            f"({'; '.join(result.failures)}). Correct the reference or the checks."
        )
    return item


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _readings(response: str) -> tuple[str, str]:
    """Return the normalised response as it stands and without an article: `a` can be a letter."""
    given = normalise(response)
    return given, _ARTICLE.sub("", given)


def _count_words(text: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in text.split())


def _split_line(line: str) -> list[str]:
    text = re.sub(r"^and\s+|[\s.!]+$", "", _MARKER.sub("", line, count=1).strip())
    return _SEPARATOR.split(text)


def _names(entry: str, item: str) -> bool:
    """Say whether the item is the entry under one of its names, singular or plural."""
    bare = _ARTICLE.sub("", normalise(re.sub(r"\(.*", "", item)))
    return any(
        _plural_forms(bare) & _plural_forms(_ARTICLE.sub("", normalise(name)))
        for name in entry.split("|")
    )


_IRREGULAR = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "men": "man",
    "mice": "mouse",
    "teeth": "tooth",
    "women": "woman",
}
_ENDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ies", ("y",)),
    ("ves", ("f", "fe")),
    ("es", ("",)),
    ("s", ("",)),
)


def _plural_forms(phrase: str) -> set[str]:
    """Return the phrase and what it may be the plural of: two phrases that share one are equal."""
    head, _, last = phrase.rpartition(" ")
    forms = {last, _IRREGULAR.get(last, last)}
    for ending, singulars in _ENDINGS:
        if last.endswith(ending) and len(last) > len(ending) + 1:
            forms |= {last.removesuffix(ending) + singular for singular in singulars}
    return {f"{head} {form}".strip() for form in forms}


def _inflections(word: str) -> Iterator[str]:
    yield from (word, word + "s", word + "es", word + "ed", word + "ing", word + "d", word + "er")
    stem = word[:-1]
    if word.endswith("e"):
        yield from (stem + "ing", stem + "er")
    if word.endswith("y"):
        yield from (stem + "ies", stem + "ied")
    if re.search(r"[aeiou][bdgklmnprt]$", word):
        yield from (word + word[-1] + "ed", word + word[-1] + "ing", word + word[-1] + "er")
