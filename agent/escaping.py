"""Foreign text as data: JSON in ASCII, on one line, in which nothing acts on its reader.

Rule: what is escaped is escaped as JSON escapes it, so a reader of JSON gets the very text back.
That holds for control and bidi characters, for what opens or closes a fence, and for the marks by
which chat templates tell roles apart. A name that stands outside a fence is cut down to letters.
"""

import json
import math
import re
from collections.abc import Iterator

from runbook.contract import Json

_DEEPEST = 40
_TOO_DEEP = "(nested too deeply to be shown)"
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_NAME = 60
_WORDS = re.compile(r"[^A-Za-z0-9 _.,:;$%()/+=-]+")
_LINE_STARTS = r"(?:\A|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])"
_ROLES = "human|assistant|system|user|developer|tool|model"
_MARKS = re.compile(
    r"<(?![ =\d]|\Z)|(?<=[|>])>|[`\x7f]|\[(?=/?(?:[A-Z][A-Z_]{2,30}|inst)\])"
    rf"|(?i:{_LINE_STARTS}[\s>#*\"'-]{{0,30}}(?:{_ROLES})[\s*\"']{{0,9}}(?P<colon>[:\uff1a]))"
)
"""One character each, or in the last case the colon: what a mark cannot do without. A ``<`` before
a space or a number is a comparison and stays."""


def data_line(value: Json, fence: str) -> str:
    """The value as one line of JSON that can neither close the fence nor act as a token.

    Args:
        value: any JSON; what is none stands as its text.
        fence: the word that this call's fences are built from.
    """
    return "".join(_parts(value, fence, 0))


def _parts(value: Json, fence: str, depth: int) -> Iterator[str]:
    """In the order of the text; mappings by their keys."""
    if depth > _DEEPEST:
        yield json.dumps(_TOO_DEEP)
    elif isinstance(value, dict):
        yield "{"
        for index, key in enumerate(sorted(value, key=str)):
            yield f"{', ' if index else ''}{_text(str(key), fence)}: "
            yield from _parts(value[key], fence, depth + 1)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _parts(item, fence, depth + 1)
        yield "]"
    elif value is None or isinstance(value, int) or _is_finite(value):
        yield json.dumps(value)
    else:
        yield _text(str(value), fence)


def _is_finite(value: Json) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _text(text: str, fence: str) -> str:
    """A JSON string, with the character that each mark cannot do without spelled by its code."""
    places = {m.start("colon") if m["colon"] else m.start() for m in _MARKS.finditer(text)}
    places |= {m.start() for m in re.finditer(re.escape(fence), text, re.IGNORECASE)}
    shown, begin = [], 0
    for place in sorted(places):
        shown += [json.dumps(text[begin:place])[1:-1], f"\\u{ord(text[place]):04x}"]
        begin = place + 1
    return f'"{"".join(shown)}{json.dumps(text[begin:])[1:-1]}"'


def label(text: str) -> str:
    """A name as it may stand in a table: letters, digits, dot, dash and underscore.

    Where it differs from the text, the text belongs between fences.
    """
    return _NAME.sub("_", text)[:_LONGEST_NAME] or "_"


def words(text: str) -> str:
    """A sentence of our own in which names may stand: no markup, no line of its own."""
    return _WORDS.sub("_", text)[:300]


def shorten(value: Json, longest: int, depth: int = 0) -> tuple[Json, int]:
    """The value with each longer text cut, and how many were; a cut one says how long it was."""
    if depth > _DEEPEST:
        return _TOO_DEEP, 1
    if isinstance(value, str):
        if len(value) <= longest:
            return value, 0
        return f"{value[:longest]}... ({len(value):,} characters)", 1
    if isinstance(value, dict):
        found = {str(k)[:longest]: shorten(v, longest, depth + 1) for k, v in value.items()}
        return {k: v for k, (v, _) in found.items()}, sum(n for _, n in found.values())
    if isinstance(value, list | tuple):
        items = [shorten(item, longest, depth + 1) for item in value]
        return [item for item, _ in items], sum(n for _, n in items)
    return value, 0


def fitted(value: Json, longest: int) -> tuple[Json, int]:
    """As ``shorten``; of what is many short texts, and so no shorter, the start of its JSON."""
    short, cut = shorten(value, longest)
    text = json.dumps(short, default=str)
    if len(text) <= 4 * longest:
        return short, cut
    return f"{text[:longest]}... ({len(text):,} characters of JSON)", 1
