"""An engine without a model: exact outcomes for tests, and faults on order.

Chosen by ``engine: {name: fake}``, and shipped so that users can test their own runbooks and steps
on any machine. What it says is made up and never worth training on, so every record says
``engine: fake``. A text follows by SHA-256 from prompt, seed and row, and from the prompt alone
where the sampling is greedy; never from the clock or from earlier calls.

Variables of the child's environment script it:
    RUNBOOK_FAKE_LABELS   probe files, ``:`` between them, whose rows it judges as they are
                          labelled; without it no filter that reads it calibrates
    RUNBOOK_FAKE_LEARNS   a held-out file; with an adapter it gives a declared share of its items
                          their reference, so that its training shows a gain
    RUNBOOK_FAKE_CALLS    a file that gets one JSON line for each call, before it is answered
    RUNBOOK_FAKE_KILL_AT  N: SIGKILL this process at the file's N-th line, so once over all restarts
"""

import hashlib
import json
import math
import os
import re
import signal
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from phases import prompts
from phases.clean import DELIMITER
from phases.engines import Generation, Sampling
from runbook.contract import Json
from runbook.errors import ConfigError

CALLS: Final = "RUNBOOK_FAKE_CALLS"
KILL_AT: Final = "RUNBOOK_FAKE_KILL_AT"
LABELS: Final = "RUNBOOK_FAKE_LABELS"
LEARNS: Final = "RUNBOOK_FAKE_LEARNS"

FLAWS: Final = {"endless": 3, "new turn": 3, "repeating": 2}
"""Per cent of the answers that never end and so meet the token limit, that run on into a turn of
their own instead of the delimiter, and that say one thing over and over."""
LEARNT: Final = 60
"""Per cent of the items under RUNBOOK_FAKE_LEARNS that it answers with their reference."""
BAD: Final = 12
"""Per cent of the texts without a label that it takes for bad."""

_COMPLETIONS: Final = {
    "The capital of France is": "Paris.",
    "One, two, three, four,": "five, six.",
    "Monday, Tuesday, Wednesday,": "Thursday, Friday.",
    "The opposite of hot is": "cold.",
    "January, February, March,": "April, May.",
    "A, B, C, D,": "E, F.",
    "The sun rises in the": "east.",
    "Roses are red, violets are": "blue.",
}
_NUMBER: Final = re.compile(r"\n(\d+)\.$")
_TURN: Final = "Instruction: "
_ASKS: Final = "\nResponse:"
_LABEL: Final = "\nLabel:"
_PER_LIST: Final = 5
_LETTERS: Final = string.ascii_letters + string.digits
_NONSENSE: Final = str.maketrans(_LETTERS, _LETTERS[7:] + _LETTERS[:7])

_WORDS: Final = re.compile(r"\w+")
_PEOPLE: Final = _WORDS.findall(
    "baker nurse sailor painter farmer teacher doctor tailor pilot gardener singer carpenter "
    "dentist fisherman librarian plumber waiter cook judge dancer miner florist jeweller weaver"
)
_THINGS: Final = _WORDS.findall(
    "hammer lantern kettle blanket ladder bucket mirror basket pencil candle brush compass drum "
    "feather glove hinge button saddle spoon rope wallet whistle anchor stamp pillow jug needle"
)
_PLACES: Final = _WORDS.findall(
    "kitchen harbour garden attic museum station bakery cellar stable library market tent garage "
    "castle workshop school barn chapel theatre office cabin tower laundry studio"
)
_ANIMALS: Final = _WORDS.findall(
    "badger heron rabbit hedgehog sparrow beetle salmon donkey squirrel lizard goose moth weasel "
    "seal crow mole toad swan ferret pigeon"
)
_COLOURS: Final = _WORDS.findall("red blue green yellow black white brown grey purple pink")
_COUNTS: Final = _WORDS.findall("two three four five six")
_TEMPLATES: Final = (
    "Name {count} things a {person} keeps in the {place}.",
    "What does a {person} do with a {thing}?",
    "Why would a {animal} hide in a {place}?",
    "Describe a {colour} {thing} in {count} words.",
    "Is a {thing} larger than a {animal}? Yes or no.",
    "True or false: a {person} often buys a {colour} {thing}.",
    "How many people fit into a {colour} {place}?",
    "List {count} ways to use a {colour} {thing}.",
    "Where in the {place} would a {thing} stand?",
    "Which is heavier, a {thing} or a {animal}?",
)
"""Of at most nine different words, so that two that differ in two slots are not near."""
_CLOSED: Final = (("yes or no", ("Yes", "No")), ("true or false", ("True", "False")))

T = TypeVar("T")


class FakeEngine:
    """Implements ``phases.engines.Engine``; a token is a word between white space."""

    def __init__(self, adapter: str = "") -> None:
        """``adapter`` names what stands on the base: another name, other texts."""
        self._adapter = adapter
        self._damaged = False

    def generate(
        self, prompts: Sequence[str], sampling: Sampling, stop: Sequence[str], seed: int
    ) -> list[Generation]:
        _note("generate", seed, [*prompts, repr(sampling), *stop])
        limit = sampling.max_new_tokens
        found = []
        for row, prompt in enumerate(prompts):
            key = () if sampling.temperature == 0 else (seed, row)
            text = self._learnt(prompt)
            text = text or _continue(prompt, limit, _Draws(self._adapter, prompt, *key))
            if self._damaged:
                text = text.translate(_NONSENSE)
            found.append(_cut(text, limit, stop))
        return found

    def _learnt(self, prompt: str) -> str:
        """What training taught it to answer; '' where it taught nothing."""
        reference = _references().get(prompt) if self._adapter else None
        if reference is None or _Draws("learnt", self._adapter, prompt).below(100) >= LEARNT:
            return ""
        return f" {reference}{prompts.ENDING}"

    @contextmanager
    def damaged(self) -> Iterator[None]:
        """As the protocol has it: every letter and digit is another."""
        self._damaged = True
        try:
            yield
        finally:
            self._damaged = False

    def label_logps(
        self, prefix: str, suffixes: Sequence[str], labels: tuple[str, str]
    ) -> list[tuple[float, float]]:
        """As the protocol has it; the first label is the one that the fake takes for good."""
        _note("label_logps", None, [prefix, *suffixes, *labels])
        odds = [_odds(suffix.removesuffix(_LABEL)) for suffix in suffixes]
        return [(-math.log1p(math.exp(-x)), -math.log1p(math.exp(x))) for x in odds]

    def text_logps(self, prefix: str, texts: Sequence[tuple[str, ...]]) -> list[list[list[float]]]:
        """As the protocol has it: what it takes for good is likely, less so with an adapter."""
        _note("text_logps", None, [prefix, *("".join(text) for text in texts)])
        moved = _Draws("moved", self._adapter).below(100) / 1000 if self._adapter else 0.0
        found = []
        for lead, *pieces in texts:
            odds = 0.0 if lead == prompts.BARE_RESPONSE else _odds(f"{lead}{pieces[0]}")
            found.append([[(odds - 8) / 4 - moved] * len(piece.split()) for piece in pieces])
        return found

    def states(self, prefix: str, texts: Sequence[str]) -> list[list[float]]:
        """As the protocol has it; the first of two numbers tells what it takes for good."""
        _note("states", None, [prefix, *texts])
        return [[_odds(text.removesuffix(_ASKS)), 1.0] for text in texts]

    def fed(self, text: str) -> str:
        return text

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def end_of_turn_logps(self) -> dict[str, float]:
        return {"<end_of_turn>": -25.0}

    def stated(self) -> dict[str, Json]:
        return {
            "engine": "fake",
            "loader_version": "fake",
            "quantization": "none",
            "dtype": "none",
            "template_disabled": True,
            "prefix_matches": True,
            "shipped_template": False,
        }


class _Draws:
    """An endless sequence of draws that follows from its key."""

    def __init__(self, *key: Json) -> None:
        self._key = json.dumps(key)
        self._count = 0

    def below(self, bound: int) -> int:
        self._count += 1
        digest = hashlib.sha256(f"{self._key}{self._count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % bound

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]


def _continue(prompt: str, limit: int, draws: _Draws) -> str:
    if prompt in _COMPLETIONS:
        return f" {_COMPLETIONS[prompt]}\n"
    if number := _NUMBER.search(prompt):
        return _list(int(number[1]), draws)
    if prompt.endswith(_ASKS):
        instruction = prompt.removesuffix(_ASKS).rpartition(_TURN)[2]
        return _respond(instruction, limit, draws, shown=DELIMITER in prompt)
    days = (f" It was a {draws.pick(_COLOURS)} day in the {draws.pick(_PLACES)}.\n" for _ in "ab")
    return "".join(days) * limit


def _list(number: int, draws: _Draws) -> str:
    first, *rest = (_instruction(draws) for _ in range(_PER_LIST))
    lines = [f"{at}. {text}" for at, text in enumerate(rest, number + 1)]
    return "\n".join([f" {first}", *lines]) + "\n\n"


def _instruction(draws: _Draws) -> str:
    return draws.pick(_TEMPLATES).format(
        count=draws.pick(_COUNTS),
        person=draws.pick(_PEOPLE),
        place=draws.pick(_PLACES),
        thing=draws.pick(_THINGS),
        animal=draws.pick(_ANIMALS),
        colour=draws.pick(_COLOURS),
    )


def _respond(instruction: str, limit: int, draws: _Draws, *, shown: bool) -> str:
    """An answer and the delimiter; without it where the prompt shows none, and in the flawed."""
    answer = _answer(instruction, draws)
    turn = f" {answer}\n{_TURN}{_instruction(draws)}{_ASKS}"
    match _flaw(draws) if shown else "new turn":
        case "endless":
            return _ramble(limit, draws)
        case "new turn":
            return turn + _ramble(limit, draws)
        case "repeating":
            return f"{' over and again' * 4}\n{DELIMITER}"
        case _:
            return f" {answer}\n{DELIMITER}"


def _ramble(limit: int, draws: _Draws) -> str:
    return "".join(f" {draws.pick(_THINGS)}" for _ in range(limit + 1))


def _flaw(draws: _Draws) -> str:
    at = draws.below(100)
    for name, share in FLAWS.items():
        if at < share:
            return name
        at -= share
    return ""


def _answer(instruction: str, draws: _Draws) -> str:
    asked = instruction.lower()
    for sign, options in _CLOSED:
        if sign in asked:
            return draws.pick(options)
    if "how many" in asked or "number" in asked:
        return str(1 + draws.below(20))
    if asked.startswith(("list", "name")):
        return ", ".join(draws.pick(part) for part in (_THINGS, _PLACES, _ANIMALS))
    return f"The {draws.pick(_PEOPLE)} has a {draws.pick(_COLOURS)} {draws.pick(_THINGS)}."


def _cut(text: str, limit: int, stop: Sequence[str]) -> Generation:
    """The text up to the end of the word that holds its first stop string, or up to the limit."""
    words = [match.end() for match in re.finditer(r"\S+", text)]
    kept = text[: words[limit - 1]] if len(words) >= limit else text
    start = len(kept) - len(kept.lstrip())
    found = [(at, s) for s in stop if (at := kept.find(s, start)) >= 0]
    if not found:
        return Generation(kept, len(kept.split()), len(words) >= limit)
    at, first = min(found)
    end = at + len(first)
    if not first[-1].isspace():
        end += len(re.split(r"\s", kept[end:], maxsplit=1)[0])
    return Generation(kept[:end], len(kept[:end].split()), hit_limit=False)


def _odds(about: str) -> float:
    """How good it takes a text for, as log-odds of at least 0.5 either way."""
    draws = _Draws("label", about)
    margin = (50 + draws.below(300)) / 100
    bad = draws.below(100) < BAD
    return -margin if not _labels().get(about, not bad) else margin


@cache
def _labels() -> Mapping[str, bool]:
    """The labels it was given, by the text as it stands in a prompt."""
    found = {}
    for path in filter(None, os.environ.get(LABELS, "").split(os.pathsep)):
        for line in Path(path).read_text("utf-8").splitlines():
            row = json.loads(line)
            if "text" in row:
                found[f"{prompts.INSTRUCTION} {row['text']}"] = bool(row["good"])
            else:
                asked = prompts.evaluation_prompt(row["instruction"])
                found[f"{asked} {row['response']}"] = bool(row["good"])
    return found


@cache
def _references() -> Mapping[str, str]:
    """The references it can learn, by the prompt of the evaluation."""
    found = {}
    for path in filter(None, os.environ.get(LEARNS, "").split(os.pathsep)):
        for line in filter(str.strip, Path(path).read_text("utf-8").splitlines()):
            row = json.loads(line)
            found[prompts.evaluation_prompt(row["instruction"])] = str(row["reference"])
    return found


def _note(call: str, seed: int | None, texts: Sequence[str]) -> None:
    """Write the call down, and die of it where that is scripted."""
    path, kill_at = os.environ.get(CALLS), os.environ.get(KILL_AT)
    if path is None:
        if kill_at is not None:
            raise ConfigError(
                f"{KILL_AT} counts the lines of a file that is not named",
                where="environment",
                fix=f"set {CALLS} to a path as well",
            )
        return
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    line = json.dumps({"call": call, "seed": seed, "sha256": digest})
    with Path(path).open("a", encoding="utf-8") as log:
        log.write(f"{line}\n")
    if kill_at is not None and len(Path(path).read_bytes().splitlines()) == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
