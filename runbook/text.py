"""Text, normalised and compared. Pure; used wherever two texts are held against each other."""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, compatibility forms folded."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


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
