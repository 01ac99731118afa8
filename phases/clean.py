"""Raw generations to responses: the one stop rule, cleaning, and what is wrong with a text.

The same rule serves data generation and both sides of the evaluation. Pure; knows no model.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Final

DELIMITER: Final = "###END###"
STOP_STRINGS: Final = ("###", "\n\n", "\nInstruction:", "\nResponse:", "\nQ:", "\nA:")
"""What ends a generation early. Every one of them is also cut at by ``cut``."""

_NEW_TURN: Final = re.compile(
    r"\n\s*\n|(?:^|\n)[ \t*]*(?:Instructions?|Questions?|Q|A|Answer|Response|Input|Output"
    r"|User|Human|Assistant|Label|Task|Prompt)\s*\d*\s*:",
    re.IGNORECASE,
)
_NEW_QUESTION: Final = re.compile(
    r"\n[ \t]*(?:now (?:answer|write|try)|next (?:question|instruction)|here is another"
    r"|another (?:question|instruction))\b",
    re.IGNORECASE,
)
_HEADING: Final = re.compile(r"^#{1,6}[ \t]+(?!END\b|[\w ]{1,20}:)\w", re.IGNORECASE | re.MULTILINE)
"""Of Markdown; a piece of the delimiter has no text behind it, or a turn's name."""
_RESIDUE: Final = re.compile(
    r"#(?:\s*#)+|\bEND#|#END\s*$|\[END\]|\bEND_OF_(?:TEXT|TURN)\b"
    r"|</?s>|<eos>|<\|[a-z_]{2,}|</?(?:start|end)_of_turn>",
    re.IGNORECASE,
)
_STUTTER: Final = re.compile(r"([^\s_=*-]{1,4}?)\1{19}")
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
    """Whether a piece of the delimiter, whole or in part, or a special token is left.

    Signs of full width count as plain ones; a Markdown heading is none.
    """
    plain = unicodedata.normalize("NFKC", text)
    return _RESIDUE.search(_HEADING.sub("", plain)) is not None


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
    """Whether a line, a run of words or a few characters come back again and again.

    Three equal lines of three words or more; nothing but three equal lines; a sequence of up to 40
    words said at least three times in a row (four times for a single word, so that 'very, very,
    very' passes), also where only its numbers change, if it has three other words; one to four
    characters twenty times in a row.
    """
    lines = [bare for line in text.split("\n") if (bare := _bare(line))]
    for line, n in Counter(lines).items():
        if len(line) > 2 and n >= 3 and (len(line.split()) >= 3 or n == len(lines)):
            return True
    words = re.findall(r"[^\W_]+", text.lower())
    unnumbered = [word for word in words if not word.isdigit()]
    return (
        any(_loops(words, size) for size in range(1, 41))
        or any(_loops(unnumbered, size) for size in range(3, 41))
        or _STUTTER.search(text) is not None
    )


def _bare(line: str) -> str:
    return re.sub(r"^\s*(?:\d+[.)]|[*-])\s+", "", line).strip().lower()


def _loops(words: list[str], size: int) -> bool:
    needed = size * (3 if size == 1 else 2)
    run = 0
    for i in range(size, len(words)):
        run = run + 1 if words[i] == words[i - size] else 0
        if run >= needed:
            return True
    return False


def is_cut_off(text: str) -> bool:
    """Whether a response stops in mid-sentence, as far as its words tell.

    An open bracket or speech, a sign or a word that must be followed by something, an item's mark
    without the item, or a last sentence without its end where the ones before it have theirs. A
    text that breaks off at a word that could have been the last one is not seen.
    """
    text = text.rstrip()
    if not text:
        return False
    lines = text.split("\n")
    if _OPEN_END.search(text) or _BARE_MARK.fullmatch(lines[-1]) or _opens_more(text):
        return True
    if _ENDED.search(text):
        return False
    before, _, last = _SENTENCE.sub("\0", lines[-1]).rpartition("\0")
    ended = bool(before) or (len(lines) > 1 and all(_ENDED.search(line) for line in lines[:-1]))
    return ended and len(last.split()) >= 3


def _opens_more(text: str) -> bool:
    """Whether a bracket or a speech is opened and never closed."""
    return text.count("(") > text.count(")") or text.count('"') % 2 == 1


_OPEN_END: Final = re.compile(
    r"(?:[,(\[{:]|\s[*+/=-]"
    r"|\b(?:a|an|the|and|or|but|because|than|of|from|into|that|which|whose|my|your|their|its|very))$"
    r"|\b(?:\w+\W+){5}(?:in|to|with|by|is|are|was|were|can|could|will|would|should|must|has|have|if)$",
    re.IGNORECASE,
)
_BARE_MARK: Final = re.compile(r"\s*(?:\d+[.)]|[*-])")
_ENDED: Final = re.compile(r"[.!?;:}\]\"')]$")
_SENTENCE: Final = re.compile(r"(?<=[a-z][.!?])[\"']?\s+(?=[A-Z])")


def fault(cleaned: Cleaned) -> str:
    """Why a response is dropped: 'runaway', 'residue' or 'empty_response'; '' where it is sound."""
    if is_runaway(cleaned):
        return "runaway"
    if not cleaned.text:
        return "empty_response"
    return "residue" if has_residue(cleaned.text) or has_marker(cleaned.text) else ""
