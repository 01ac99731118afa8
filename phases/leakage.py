"""Training rows against the held-out set, in both directions: who stands in whom, and how.

Five readings of a row's instruction and response, and of the prompt and completion that training
takes where they say something else, each by another instrument:

exact       the very characters of a held-out instruction, whatever cannot be seen between them
normalised  its words, whatever the case, punctuation and spacing
13gram      13 words in a row of a held-out instruction or reference
near        a Jaccard index of word sets at or above the bound, so reworded
quoted      a held-out instruction within the text, or the row's instruction within a held-out one

The last one compares texts under 13 words whole. A reference is looked for by its 13-grams alone,
since two right answers to two questions may well be the same short text. Each text but the exact
one is read a second time without the hyphens in its words and with small English numbers in digits.
A script without spaces is read by its characters; for the length of a gram, and of what can be
quoted, two of Han or kana make a word, or four of Thai, Lao, Khmer or Burmese.

What no reading sees: an item in other words, in another language, in look-alike letters of another
script, or its answer without its question. Under nine words a Jaccard index of 0.8 forgives no
other word, not even a misspelt one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from phases import prompts
from phases.records import Row
from runbook.contract import Metric
from runbook.text import NearDuplicates, fold, quarters, spellings, tokens

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
    asked: dict[str, Item]
    """By each of its spellings, and in ``plain`` by the tokens of each."""
    plain: dict[str, Item]
    rarest: dict[str, list[str]]
    """The keys of ``plain`` by the token of each that the fewest of them have."""
    joined: str
    """The keys of ``plain``, each between spaces and on a line."""
    grams: dict[tuple[str, ...], Item]
    near: NearDuplicates

    @classmethod
    def of(cls, items: Sequence[Item], bound: float) -> "HeldOut":
        """Index items; two are near from ``bound`` on, a Jaccard index of word sets."""
        asked = {text: item for item in items for text in spellings(item.instruction)}
        plain = {" ".join(tokens(text)): item for text, item in asked.items()}
        return cls(
            {fold(item.instruction).strip(): item for item in items},
            asked,
            plain,
            _by_rarest(plain),
            "\n".join(f" {held} " for held in plain),
            {
                gram: item
                for item in items
                for part in (item.instruction, item.reference)
                for text in spellings(part)
                for gram in _grams(tokens(text))
                if _is_telling(gram)
            },
            NearDuplicates(bound, asked),
        )

    def find(self, text: str, *, instruction: bool) -> Iterator[tuple[str, Item]]:
        """Each reading that finds something in a text, with the first item it finds."""
        if item := self.exact.get(fold(text).strip()):
            yield "exact", item
        ways = [(way, tokens(way)) for way in spellings(text)]
        plain = [" ".join(found) for _, found in ways]
        looks = {
            "normalised": (self.plain.get(one) for one in plain),
            "13gram": (self.grams.get(gram) for _, found in ways for gram in _grams(found)),
            "near": (self._near(way) for way, _ in ways),
            "quoted": (
                self._quoted(one, found, within=instruction and _is_quotable(found))
                for one, (_, found) in zip(plain, ways, strict=True)
            ),
        }
        for reading, found in looks.items():
            if item := next(filter(None, found), None):
                yield reading, item

    def _near(self, text: str) -> Item | None:
        similar = self.near.find(text)
        return None if similar is None else self.asked[similar]

    def _quoted(self, plain: str, found: Sequence[str], *, within: bool) -> Item | None:
        padded = f" {plain} "
        near = {held for token in {*found} for held in self.rarest.get(token, ())}
        held_in = {held for held in near if f" {held} " in padded}
        if within and padded in self.joined:
            held_in |= {held for held in self.plain if padded in f" {held} "}
        return (
            next((self.plain[held] for held in self.plain if held in held_in), None)
            if held_in
            else None
        )


def _by_rarest(plain: Iterable[str]) -> dict[str, list[str]]:
    texts = [(held, held.split(" ")) for held in plain]
    counts = Counter(token for _, found in texts for token in {*found})
    rarest: dict[str, list[str]] = defaultdict(list)
    for held, found in texts:
        rarest[min(found, key=counts.__getitem__)].append(held)
    return rarest


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


def _is_quotable(found: Sequence[str]) -> bool:
    return sum(map(quarters, found)) >= 4 * MIN_QUOTED_WORDS


def _grams(found: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """From each token on, as many as make the length of ``GRAM`` words."""
    sizes = [quarters(token) for token in found]
    end = size = 0
    for start, first in enumerate(sizes):
        while size < 4 * GRAM and end < len(found):
            size += sizes[end]
            end += 1
        if size < 4 * GRAM:
            return
        yield tuple(found[start:end])
        size -= first


def _is_telling(gram: Sequence[str]) -> bool:
    return len({word for word in gram if not word.isdecimal()}) >= MIN_GRAM_WORDS
