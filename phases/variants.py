"""The evaluation's outcomes read in other ways, to see whether its lift survives. Pure.

Rule: each variant treats both sides alike, by a rule that is fixed before the texts are seen. Which
of them decide, and what they decide, is the gate's business.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from phases import verifiers
from phases.clean import DELIMITER
from phases.records import Row
from phases.verifiers import HeldOutItem

AS_SCORED: Final = "as_scored"
SHARE: Final = 0.2
"""How far the scorer's own thresholds are moved, either way."""
_WORD: Final = re.compile(r"\S+")


def variant_readings(
    items: Sequence[HeldOutItem], base: Sequence[Row], tuned: Sequence[Row]
) -> list[Row]:
    """A row for each item and variant: ``id, kind, variant, base, tuned, base_chars, tuned_chars``.

    ``as_scored``, as the rows have it. ``equal_truncation``: the longer response is cut to as many
    words as the other has; a pair of which one says nothing stays as it is. ``one_stop_rule``: of
    both raw texts as many lines as the reference has, up to the delimiter. ``scorer_strict`` and
    ``scorer_lenient``: the items' thresholds moved by a fifth. ``content`` and ``format``: that
    aspect alone. Characters are those of the texts compared.
    """
    known = {item.id: item for item in items}
    rows = []
    for b, t in zip(base, tuned, strict=True):
        for variant, (left, right), (was, now) in _readings(known[b["id"]], b, t):
            row = {"id": b["id"], "kind": b["kind"], "variant": variant, "base": was, "tuned": now}
            rows.append({**row, "base_chars": len(left), "tuned_chars": len(right)})
    return rows


Texts = tuple[str, str]
Outcomes = tuple[bool, bool]


def _readings(item: HeldOutItem, base: Row, tuned: Row) -> Iterator[tuple[str, Texts, Outcomes]]:
    given: Texts = (base["response"], tuned["response"])
    asked = len(item.reference.strip().splitlines())
    yield AS_SCORED, given, (base["success"], tuned["success"])
    for name, texts in (
        ("equal_truncation", _equally_long(*given)),
        ("one_stop_rule", (_first_lines(base["raw"], asked), _first_lines(tuned["raw"], asked))),
    ):
        yield name, texts, _scored(item, texts)
    for name, share in (("scorer_strict", -SHARE), ("scorer_lenient", SHARE)):
        yield name, given, _scored(verifiers.moved(item, share), given)
    for name in ("content", "format"):
        yield name, given, (base[f"{name}_ok"], tuned[f"{name}_ok"])


def _scored(item: HeldOutItem, texts: Texts) -> Outcomes:
    base, tuned = (verifiers.score(item, text).success for text in texts)
    return base, tuned


def _equally_long(base: str, tuned: str) -> Texts:
    shorter = min(len(_WORD.findall(text)) for text in (base, tuned))
    if shorter == 0:
        # Cut to nothing, the other could only fail: no answer would excuse itself.
        return base, tuned
    return _words(base, shorter), _words(tuned, shorter)


def _words(text: str, count: int) -> str:
    ends = [match.end() for match in _WORD.finditer(text)][:count]
    return text[: ends[-1]] if ends else ""


def _first_lines(raw: str, count: int) -> str:
    lines = raw.strip().split("\n")[:count]
    return "\n".join(lines).partition(DELIMITER)[0].strip()
