"""Verifiers: a program that says whether a response does what a held-out instruction asks.

Rule: a check looks at what its instruction asks for and at nothing else. Length counts only in
`max_words` and `min_words`, which an item carries only where its instruction asks for a length,
so a right answer does not fail for being long. Each check belongs to one aspect, format or
content, and a response succeeds when both hold.
Not here: generation, cleaning, rates, files.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from phases.answers import (
    _NUMBER,
    count_words,
    find_number,
    inflections,
    lines_of,
    names_item,
    normalise,
    readings,
    split_items,
)

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
    """The response is a list of `count` items, none of them empty; see `split_items`.

    `slack` more or fewer are let pass; it is there for `moved`.
    """

    aspect: ClassVar[Aspect] = "format"
    check: Literal["exact_count"]
    count: int = Field(ge=1)
    slack: int = Field(default=0, ge=0)

    def failure(self, response: str) -> str | None:
        items = split_items(response)
        if not all(items):
            return f"an empty item in {items}"
        near = abs(len(items) - self.count) <= self.slack
        return None if near else f"{len(items)} items, asked {self.count}"


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
            place = next((i for i, e in enumerate(self.items) if names_item(e, item)), None)
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
        same = len(found) == len(self.items) and all(map(names_item, self.items, found))
        return None if same else f"{found}, asked {list(self.items)}"


class OneOf(_Row):
    """The whole response is one of the `options` that the instruction offers, right or wrong."""

    aspect: ClassVar[Aspect] = "format"
    check: Literal["one_of"]
    options: Words

    def failure(self, response: str) -> str | None:
        options = {normalise(option) for option in self.options}
        return None if options & set(readings(response)) else f"{response.strip()!r} is no option"


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
        if any(map(right.match, readings(response))):
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
        lines = len(lines_of(response))
        return None if lines == 1 else f"{lines} lines"


class MaxWords(_Row):
    """The response has at most `words` words; only where the instruction sets this limit."""

    aspect: ClassVar[Aspect] = "format"
    check: Literal["max_words"]
    words: int = Field(ge=1)

    def failure(self, response: str) -> str | None:
        count = count_words(response)
        return None if count <= self.words else f"{count} words, at most {self.words} asked"


class MinWords(_Row):
    """The response has at least `words` words; asking for a sentence asks for two."""

    aspect: ClassVar[Aspect] = "format"
    check: Literal["min_words"]
    words: int = Field(ge=1)

    def failure(self, response: str) -> str | None:
        count = count_words(response)
        return None if count >= self.words else f"{count} words, at least {self.words} asked"


class MentionsAny(_Row):
    """One of `words` (a phrase counts as one) stands in the response, plainly inflected or not."""

    aspect: ClassVar[Aspect] = "content"
    check: Literal["mentions_any"]
    words: Words

    def failure(self, response: str) -> str | None:
        forms = sorted({form for word in self.words for form in inflections(word.lower())})
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


def moved(item: HeldOutItem, share: float) -> HeldOutItem:
    """The item with every threshold of its checks moved by a share: 0.2 is laxer, -0.2 stricter.

    A threshold that counts stays a whole number, so a small one may not move at all.
    """
    return item.model_copy(update={"checks": tuple(_moved(check, share) for check in item.checks)})


def _moved(check: Check, share: float) -> Check:
    match check:
        case MaxWords():
            change: dict[str, float] = {"words": max(1, math.floor(check.words * (1 + share)))}
        case MinWords():
            change = {"words": math.ceil(check.words * (1 - share))}
        case Number():
            change = {"tolerance": check.tolerance * (1 + share)}
        case ExactCount():
            change = {"slack": max(0, math.floor(check.count * share))}
        case _:
            return check
    return check.model_copy(update=change)
