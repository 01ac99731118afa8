"""Text, normalised and compared. Pure; used wherever two texts are held against each other."""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_WORD = re.compile(r"[^\W_]+")
_CONTROL = re.compile(r"\x1b\[[\d;:]*m|[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
"""A terminal's order for a colour, and every control character that is no white space."""
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17dd\ua9e0-\ua9fe\uaa60-\uaa7f"
    r"\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U000323af]"
)
"""Scripts without a space between words: Thai, Lao, Burmese, Khmer; then kana and Han."""
_RUNS = re.compile(rf"{_UNSPACED.pattern}+|(?:(?!{_UNSPACED.pattern}).)+")
_HAN_FROM = "\u3000"
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010](?=[^\W\d_])")
"""Between two letters; NFKD makes the unbreakable one this one."""
_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen", "twenty"),
)
_NUMBER = re.compile(rf"\b(?:{'|'.join(_NUMBERS)})\b", re.IGNORECASE | re.ASCII)


_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Letters by category, of which nothing is seen."""
_OWN_MARKS_FROM = "\u0900"
"""Scripts from here on spell with marks: Devanagari, Thai, Kana. Before it an accent or a point is
an addition to a letter, in Latin, Greek, Cyrillic, Hebrew and Arabic alike."""


def fold(text: str) -> str:
    """The text as it is read: compatibility forms, accents and what cannot be seen folded away.

    Case, spacing and punctuation stay, and so do the marks without which a script's words would
    be others. A letter of another script that looks the same stays another letter.
    """
    text = _CONTROL.sub("", text)
    if text.isascii():
        return text
    kept = []
    letter = ""
    for character in unicodedata.normalize("NFKD", text):
        category = unicodedata.category(character)
        if category == "Cf" or character in _FILLERS:
            continue
        if not category.startswith("M"):
            letter = character
        elif not _is_spelling(letter, character):
            continue
        kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))


def _is_spelling(letter: str, mark: str) -> bool:
    """Whether a mark is of its letter's own script, and that script spells with marks."""
    if letter < _OWN_MARKS_FROM:
        return False
    return unicodedata.name(letter, "-").split(maxsplit=1)[0] in unicodedata.name(mark, "")


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, folded as in ``fold``."""
    plain = fold(text).casefold()
    if plain.isascii():
        return _WORD.findall(plain)
    return "".join(c if _is_in_word(c) else " " for c in plain).split()


def _is_in_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def normalise(text: str) -> str:
    """The text as its words: case, punctuation and spacing do not count."""
    return " ".join(words(text))


def tokens(text: str) -> list[str]:
    """Its words in order; of a script without spaces its characters, as no sign parts its words."""
    found = words(text)
    if all(map(str.isascii, found)):
        return found
    return [token for word in found for token in _parts(word)]


def _parts(word: str) -> list[str]:
    return [t for run in _RUNS.findall(word) for t in (run if _UNSPACED.match(run) else [run])]


def quarters(token: str) -> int:
    """How long a token is, in quarters of a word: a character of Han or kana is about a half."""
    if token.isascii() or not _UNSPACED.fullmatch(token):
        return 4
    return 1 if token < _HAN_FROM else 2


def bag(text: str) -> frozenset[str]:
    """What two texts are compared by, whatever the order: words, or pairs of characters.

    Pairs in a script without spaces: of an alphabet nearly every text has nearly every letter.
    """
    found = words(text)
    if all(map(str.isascii, found)):
        return frozenset(found)
    return frozenset(piece for word in found for piece in _pieces(word))


def _pieces(word: str) -> list[str]:
    return [piece for run in _RUNS.findall(word) for piece in _pairs(run)]


def _pairs(run: str) -> list[str]:
    if len(run) == 1 or not _UNSPACED.match(run):
        return [run]
    return [run[at : at + 2] for at in range(len(run) - 1)]


def spellings(text: str) -> list[str]:
    """The folded text first, then without the hyphens in its words, and with numbers in digits.

    English number words up to twenty; the text alone where it has neither.
    """
    plain = fold(text)
    ways = (plain, _HYPHEN.sub("", plain))
    return list(dict.fromkeys([*ways, *map(_in_digits, ways)]))


def _in_digits(text: str) -> str:
    return _NUMBER.sub(lambda found: str(_NUMBERS.index(found[0].lower())), text)


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard index of two sets, in [0, 1]; two empty sets are equal."""
    if not a and not b:
        return 1.0
    return len(a & b) / len(a | b)


class NearDuplicates:
    """Texts seen so far, asked whether a new one nearly repeats one of them.

    Near means a Jaccard index of the sets of words (see ``bag``) at or above the bound; word order
    does not count. Exact: two sets at or above the bound share at least ``bound * size`` words, so
    one of any ``size - ceil(bound * size) + 1`` words is shared, and the rarest are looked up.
    """

    def __init__(self, bound: float, texts: Iterable[str] = ()) -> None:
        if not 0 < bound <= 1:
            raise ValueError(f"a Jaccard bound lies in (0, 1], not {bound}")
        self._bound = bound
        self._seen: list[tuple[str, frozenset[str]]] = []
        self._index: dict[str, list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Remember a text."""
        held = bag(text)
        self._seen.append((text, held))
        for word in held:
            self._index[word].append(len(self._seen) - 1)

    def find(self, text: str) -> str | None:
        """An earlier text that this one nearly repeats, the first added, or None."""
        asked = bag(text)
        probes = len(asked) - math.ceil(self._bound * len(asked)) + 1
        rarest = sorted(asked, key=lambda w: (len(self._index.get(w, ())), w))[:probes]
        candidates = sorted({i for word in rarest for i in self._index.get(word, ())})
        for i in candidates:
            other, held = self._seen[i]
            if similarity(asked, held) >= self._bound:
                return other
        return None
