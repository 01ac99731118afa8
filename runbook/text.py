"""Text, normalised and compared. Pure; used wherever two texts are held against each other."""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_WORD = re.compile(r"[^\W_]+")


_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Letters by category, of which nothing is seen."""
_OWN_MARKS_FROM = "\u0900"
"""Scripts from here on spell with marks: Devanagari, Thai, Kana. Before it an accent or a point is
an addition to a letter, in Latin, Greek, Cyrillic, Hebrew and Arabic alike."""


def fold(text: str) -> str:
    """The text as it is read: compatibility forms, accents and invisible characters folded away.

    Case, spacing and punctuation stay, and so do the marks without which a script's words would
    be others. A letter of another script that looks the same stays another letter.
    """
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


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard index of two sets, in [0, 1]; two empty sets are equal."""
    if not a and not b:
        return 1.0
    return len(a & b) / len(a | b)


class NearDuplicates:
    """Texts seen so far, asked whether a new one nearly repeats one of them.

    Near means a Jaccard index of the sets of words at or above the bound; word order does not
    count. Exact: two sets at or above the bound share at least ``bound * size`` words, so one of
    any ``size - ceil(bound * size) + 1`` words is shared, and the rarest are looked up.
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
        bag = frozenset(words(text))
        self._seen.append((text, bag))
        for word in bag:
            self._index[word].append(len(self._seen) - 1)

    def find(self, text: str) -> str | None:
        """An earlier text that this one nearly repeats, the first added, or None."""
        bag = frozenset(words(text))
        probes = len(bag) - math.ceil(self._bound * len(bag)) + 1
        rarest = sorted(bag, key=lambda w: (len(self._index.get(w, ())), w))[:probes]
        candidates = sorted({i for word in rarest for i in self._index.get(word, ())})
        for i in candidates:
            other, other_bag = self._seen[i]
            if similarity(bag, other_bag) >= self._bound:
                return other
        return None
