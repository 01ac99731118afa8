"""Raw generations to responses: the one stop rule, cleaning, and what is wrong with a text.

The same rule serves data generation and both sides of the evaluation. Pure; knows no model.
"""

import re
from dataclasses import dataclass
from typing import Final

DELIMITER: Final = "###END###"
STOP_STRINGS: Final = ("###", "\n\n", "\nInstruction:", "\nResponse:", "\nQ:", "\nA:")
"""What ends a generation early. Every one of them is also cut at by ``cut``."""

_NEW_TURN: Final = re.compile(
    r"\n\s*\n|(?:^|\n)[ \t]*(?:Instructions?|Questions?|Q|A|Answer|Response|Input|Output"
    r"|User|Assistant|Label|Task|Prompt)\s*\d*\s*:",
    re.IGNORECASE,
)
_NEW_QUESTION: Final = re.compile(
    r"\n[ \t]*(?:now (?:answer|write|try)|next (?:question|instruction)|here is another"
    r"|another (?:question|instruction))\b",
    re.IGNORECASE,
)
_RESIDUE: Final = re.compile(
    r"#{2,}|\bEND#|###?\s*END|</?s>|<eos>|<\|[^|>]{1,30}\|>|<(?:start|end)_of_turn>", re.IGNORECASE
)
_MARKERS: Final = re.compile(r"(?:^|\n)\s*(?:Label|Verdict|Rating|Score)\s*:", re.IGNORECASE)


@dataclass(frozen=True)
class Cleaned:
    text: str
    """The response: stripped, cut at the first stop."""
    cut_by: str
    """'delimiter', 'blank line or new turn', 'new question' or '' where nothing was cut."""

    @property
    def opens_a_turn(self) -> bool:
        """Whether nothing is left because the text began with a new prompt or turn."""
        return not self.text and self.cut_by == _TURN


def cut(raw: str) -> Cleaned:
    """Cut a raw continuation where the response ends.

    At the delimiter; where that is missing, at the first blank line, line that opens a new turn,
    or new-question phrase. Leading white space never counts as a blank line.
    """
    text = raw.lstrip()
    delimiter = text.find("###")
    if delimiter >= 0:
        text = text[:delimiter]
    found = [(m.start(), why) for pattern, why in _CUTS if (m := pattern.search(text)) is not None]
    if found:
        at, why = min(found)
        return Cleaned(text[:at].strip(), why)
    return Cleaned(text.strip(), "delimiter" if delimiter >= 0 else "")


_TURN: Final = "blank line or new turn"
_CUTS: Final = ((_NEW_TURN, _TURN), (_NEW_QUESTION, "new question"))


def has_residue(text: str) -> bool:
    """Whether a piece of the delimiter, whole or in part, or a special token is left."""
    return _RESIDUE.search(text) is not None


def has_marker(text: str) -> bool:
    """Whether an evaluator's marker is left in a response."""
    return _MARKERS.search(text) is not None


def is_runaway(cleaned: Cleaned) -> bool:
    """Whether a response starts a new prompt or turn in place of an answer, or repeats itself.

    Length plays no part: a long answer that says new things is none. A turn that comes after the
    answer was cut off by then.
    """
    return cleaned.opens_a_turn or repeats_itself(cleaned.text)


def repeats_itself(text: str) -> bool:
    """Whether a line or a run of words comes back again and again.

    Three equal lines of text, or a sequence of 1 to 8 words said at least three times in a row
    (four times for a single word, so that 'very, very, very' passes).
    """
    lines = [s for line in text.split("\n") if len(s := _bare(line)) > 2]
    if any(lines.count(line) >= 3 for line in set(lines)):
        return True
    words = re.findall(r"[^\W_]+", text.lower())
    return any(_loops(words, size) for size in range(1, 9))


def _bare(line: str) -> str:
    return re.sub(r"^[\s\d.)*-]+", "", line).strip().lower()


def _loops(words: list[str], size: int) -> bool:
    needed = size * (3 if size == 1 else 2)
    run = 0
    for i in range(size, len(words)):
        run = run + 1 if words[i] == words[i - size] else 0
        if run >= needed:
            return True
    return False


def fault(cleaned: Cleaned) -> str:
    """Why a response is dropped: 'runaway', 'residue' or 'empty_response'; '' where it is sound."""
    if is_runaway(cleaned):
        return "runaway"
    if not cleaned.text:
        return "empty_response"
    return "residue" if has_residue(cleaned.text) or has_marker(cleaned.text) else ""
