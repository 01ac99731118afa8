"""Training rows against the held-out set, in both directions: who stands in whom, and how.

Five readings of a row's instruction and response, and of the prompt and completion that training
takes where they say something else, each by another instrument:

exact       the very characters of a held-out instruction, whatever cannot be seen between them
normalised  its words, whatever the case, punctuation and spacing
13gram      13 words in a row of a held-out instruction or reference
near        a Jaccard index of word sets at or above the bound, so reworded
quoted      a held-out instruction within the text, or the row's instruction within a held-out one

The last one compares texts under 13 words whole. A reference is looked for by its 13-grams alone,
since two right answers to two questions may well be the same short text. What no reading sees: an
item in other words, in another language, in look-alike letters of another script, or its answer
without its question.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from phases import prompts
from phases.records import Row
from runbook.contract import Metric
from runbook.text import NearDuplicates, fold, normalise, words

READINGS: Final = ("exact", "normalised", "13gram", "near", "quoted")
OVERLAPS: Final = tuple(f"overlap_{name}" for name in READINGS)
"""What ``overlap_metrics`` measures."""
GRAM: Final = 13
MIN_QUOTED_WORDS: Final = 4
"""A shorter instruction stands in too many held-out ones by chance."""
MIN_GRAM_WORDS: Final = 4
"""Different words with a letter in them; with fewer a gram is counting, or a row of symbols."""


class Item(Protocol):
    """What is looked at of a held-out item."""

    @property
    def id(self) -> str: ...
    @property
    def instruction(self) -> str: ...
    @property
    def reference(self) -> str: ...


@dataclass(frozen=True)
class HeldOut:
    """A held-out set, made ready to be looked up."""

    exact: dict[str, Item]
    plain: dict[str, Item]
    grams: dict[tuple[str, ...], Item]
    near: NearDuplicates

    @classmethod
    def of(cls, items: Sequence[Item], bound: float) -> "HeldOut":
        """Index items; two are near from ``bound`` on, a Jaccard index of word sets."""
        return cls(
            {fold(item.instruction).strip(): item for item in items},
            {normalise(item.instruction): item for item in items},
            {
                gram: item
                for item in items
                for text in (item.instruction, item.reference)
                for gram in _grams(text)
            },
            NearDuplicates(bound, [item.instruction for item in items]),
        )

    def find(self, text: str, *, instruction: bool) -> Iterator[tuple[str, Item]]:
        """Each reading that finds something in a text, with the first item it finds."""
        plain = normalise(text)
        if item := self.exact.get(fold(text).strip()):
            yield "exact", item
        if item := self.plain.get(plain):
            yield "normalised", item
        if item := next((self.grams[g] for g in _grams(text) if g in self.grams), None):
            yield "13gram", item
        if (similar := self.near.find(text)) is not None:
            yield "near", self.exact[fold(similar).strip()]
        if item := self._quoted(plain, within=instruction):
            yield "quoted", item

    def _quoted(self, plain: str, *, within: bool) -> Item | None:
        padded = f" {plain} "
        within = within and plain.count(" ") >= MIN_QUOTED_WORDS - 1
        return next(
            (
                item
                for held, item in self.plain.items()
                if f" {held} " in padded or (within and padded in f" {held} ")
            ),
            None,
        )


def find_overlaps(records: Sequence[Row], items: Sequence[Item], bound: float) -> Iterator[Row]:
    """A row for each reading of a record's text that finds a held-out item, for a person to see."""
    held = HeldOut.of(items, bound)
    for place, record in enumerate(records):
        for part, text in _texts(record):
            asks = part in {"instruction", "prompt"}
            for reading, item in held.find(text, instruction=asks):
                yield {
                    "check": f"overlap_{reading}",
                    "row": place,
                    "part": part,
                    "text": text,
                    "held_out_id": item.id,
                    "held_out_instruction": item.instruction,
                    "held_out_reference": item.reference,
                }


def _texts(record: Row) -> Iterator[tuple[str, str]]:
    """The parts to be read, without the frame of a prompt and the delimiter of a completion."""
    asked, said = str(record.get("instruction", "")), str(record.get("response", ""))
    yield "instruction", asked
    yield "response", said
    prompt = str(record.get("prompt", ""))
    if prompt != prompts.evaluation_prompt(asked):
        prompt = prompt.removeprefix(prompts.INSTRUCTION)
        yield "prompt", prompt.removesuffix(prompts.BARE_RESPONSE)
    completion = str(record.get("completion", ""))
    if completion != prompts.completion(said):
        yield "completion", completion.removesuffix(prompts.ENDING)


def leaks(record: Row, instruction: str, bound: float) -> bool:
    """Whether any reading finds a held-out instruction in a record."""
    items = [_Question(instruction)]
    return next(find_overlaps([record], items, bound), None) is not None


@dataclass(frozen=True)
class _Question:
    """A held-out item of which no more than the instruction is known."""

    instruction: str
    id: str = ""
    reference: str = ""


def overlap_metrics(found: Sequence[Row], n: int, evidence: str) -> tuple[Metric, ...]:
    """How many of ``n`` records each reading found something in."""
    rows: dict[str, set[int]] = defaultdict(set)
    for hit in found:
        rows[hit["check"]].add(hit["row"])
    return tuple(
        Metric(name, float(len(rows[name])) if n else None, n=n, evidence=evidence)
        for name in OVERLAPS
    )


def _grams(text: str) -> Iterator[tuple[str, ...]]:
    found = words(text)
    for start in range(len(found) - GRAM + 1):
        gram = tuple(found[start : start + GRAM])
        if len({word for word in gram if not word.isdecimal()}) >= MIN_GRAM_WORDS:
            yield gram
