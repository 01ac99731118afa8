"""A Python file as the DRY rules are asked of it: its text, its syntax tree, what is wrong with it.

Rule: what Python would take for one literal or one name is written as one, so that a rule sees the
text and not its spelling: literals side by side, added or joined, escapes of plain characters,
identifiers in other scripts' letters. Every line keeps its number.
"""

import ast
import re
import unicodedata
import warnings
from collections.abc import Iterator
from importlib.util import decode_source
from typing import Any, Final

from ast_grep_py import SgNode, SgRoot

_DECLARED: Final = re.compile(rb"\A(?:[^\n]*\n)?[^\n]*coding[:=]")
_PLAIN: Final = re.compile(r"[\w #:.,;!?<>|/()\[\]*=+-]", re.ASCII)
"""Characters that may stand in a literal for themselves, whatever its quotes are."""
_CUT: Final = re.compile(r"((?<!\\)(?:\\\\)*)\\\n")
"""A line's end within a literal that is none of its text; an escaped backslash ends no line."""
_MOST_ROUNDS: Final = 20
"""A sum of more literals is left as the rounds leave it."""
_FOLDS: Final[list[Any]] = [
    {"kind": "concatenated_string"},
    {
        "kind": "binary_operator",
        "has": {
            "field": "right",
            "any": [{"kind": "string"}, {"kind": "parenthesized_expression"}],
        },
    },
    {"kind": "string", "regex": r"\\\n", "not": {"regex": "^[fF]?[rRbB]"}},
    {"kind": "call", "has": {"field": "function", "regex": r"[\"']\.join$"}},
]
"""What may be one literal in several pieces."""
_Edit = tuple[int, int, str]
"""Where from, where to, in characters; the new text."""


def decode(data: bytes) -> str:
    """The text as Python reads it. Raises SyntaxError or ValueError: it is in no such encoding."""
    if _DECLARED.match(data):
        return decode_source(data)
    return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def check_syntax(data: bytes) -> None:
    """Raises SyntaxError, ValueError, RecursionError or MemoryError: Python would not run it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile(data, "<phase>", "exec", dont_inherit=True)


def is_torn(root: SgNode) -> bool:
    """Whether the tree leaves out something that the parser could not place."""
    return root.find(kind="ERROR") is not None


def parse(text: str) -> SgNode:
    """The tree as the text spells it."""
    return SgRoot(text, "python").root()


def folded(text: str, root: SgNode) -> tuple[str, SgNode]:
    """The text and its tree, each literal and each name spelled in the plainest way."""
    plain, tree = _apply(text, root, list(_letters(text, root)))
    for _ in range(_MOST_ROUNDS):
        edits = _outermost([edit for node in tree.find_all(any=_FOLDS) for edit in _fold(node)])
        if not edits:
            break
        plain, tree = _apply(plain, tree, edits)
    return (text, root) if is_torn(tree) and not is_torn(root) else (plain, tree)


def _apply(text: str, root: SgNode, edits: list[_Edit]) -> tuple[str, SgNode]:
    if not edits:
        return text, root
    pieces, at = [], 0
    for start, end, new in sorted(edits):
        # A literal that took several lines takes them still.
        lost = text.count("\n", start, end) - new.count("\n")
        pieces += [text[at:start], new, "\\\n" * lost]
        at = end
    text = "".join([*pieces, text[at:]])
    return text, parse(text)


def _outermost(edits: list[_Edit]) -> list[_Edit]:
    """Those that lie in no other one."""
    found: list[_Edit] = []
    for edit in sorted(edits, key=lambda e: (e[0], -e[1])):
        if not found or edit[0] >= found[-1][1]:
            found.append(edit)
    return found


def _letters(text: str, root: SgNode) -> Iterator[_Edit]:
    if not text.isascii():
        for node in root.find_all(kind="identifier", regex=r"[^\x00-\x7f]"):
            yield *_span(node), unicodedata.normalize("NFKC", node.text())
    if "\\" in text:
        for node in root.find_all(kind="escape_sequence", regex=r"^\\[xuUN0-7]"):
            literal = node.parent()
            while literal is not None and literal.kind() != "string":
                literal = literal.parent()
            if literal is not None and _mark(literal).isdisjoint("rb"):
                plain = str(ast.literal_eval(f'"{node.text()}"'))
                if _PLAIN.fullmatch(plain):
                    yield *_span(node), plain


def _fold(node: SgNode) -> Iterator[_Edit]:
    match node.kind():
        case "concatenated_string":
            yield from _as_one(node, [c for c in node.children() if c.kind() == "string"])
        case "binary_operator":
            yield from _sum(node)
        case "string":
            whole = _CUT.sub(r"\1", node.text())
            if whole != node.text():
                yield *_span(node), whole
        case _:
            yield from _join(node)


def _sum(node: SgNode) -> Iterator[_Edit]:
    left, right = node.field("left"), node.field("right")
    last, first = _literal(right), _literal(left)
    if first is None and left is not None and _adds(left):
        left = left.field("right")
        first = _literal(left)
    if not _adds(node) or first is None or last is None or left is None or right is None:
        return
    joined = _joined([first, last])
    if joined is not None:
        yield left.range().start.index, right.range().end.index, joined


def _adds(node: SgNode) -> bool:
    sign = node.field("operator")
    return sign is not None and sign.text() == "+"


def _join(node: SgNode) -> Iterator[_Edit]:
    """A text that joins a list of nothing but literals."""
    function, arguments = node.field("function"), node.field("arguments")
    by = function.field("object") if function else None
    given = arguments.named_children() if arguments else []
    if by is None or by.kind() != "string" or len(given) != 1:
        return
    items = [c for c in given[0].named_children() if c.kind() != "comment"]
    literal = all(item.kind() == "string" for item in items)
    if given[0].kind() in {"list", "tuple"} and items and literal:
        yield from _as_one(node, [piece for item in items for piece in (by, item)][1:])


def _literal(node: SgNode | None) -> SgNode | None:
    """The literal that an expression is, in however many parentheses."""
    while node is not None and node.kind() == "parenthesized_expression":
        inner = node.named_children()
        node = inner[0] if len(inner) == 1 else None
    return node if node is not None and node.kind() == "string" else None


def _as_one(node: SgNode, pieces: list[SgNode]) -> Iterator[_Edit]:
    joined = _joined(pieces)
    if joined is not None:
        yield *_span(node), joined


def _joined(pieces: list[SgNode]) -> str | None:
    """One literal for several; None where they are bytes."""
    if any("b" in _mark(piece) for piece in pieces):
        return None
    filled = any("f" in _mark(piece) for piece in pieces)
    return ("f" if filled else "") + '"' + "".join(_content(p, filled=filled) for p in pieces) + '"'


def _content(piece: SgNode, *, filled: bool) -> str:
    mark = _mark(piece)
    found = []
    for child in piece.children():
        text = child.text()
        if child.kind() == "interpolation":
            found.append(text.replace("\n", " "))
        elif child.kind() not in {"string_start", "string_end"}:
            text = text.replace("\\", "\\\\") if "r" in mark else _CUT.sub(r"\1", text)
            text = _escaped(text)
            if filled and "f" not in mark:
                text = text.replace("{", "{{").replace("}", "}}")
            found.append(text.replace("\n", "\\n"))
    return "".join(found)


def _escaped(text: str) -> str:
    return re.sub(r'(\\.)|"', lambda m: m[1] or '\\"', text)


def _mark(literal: SgNode) -> set[str]:
    """The letters before its quotes."""
    start = literal.child(0)
    return set(start.text().lower()) & set("rbfu") if start else set()


def _span(node: SgNode) -> tuple[int, int]:
    place = node.range()
    return place.start.index, place.end.index
