"""Foreign text in a report: it is data, so it can neither shape the page nor move a cursor.

Four ways in, none other: ``prose`` within a sentence or a cell, ``code`` for a name or a path,
``link`` for a file to go to, ``block`` for whole lines. What a terminal would act on is spelled out
as an escape, and so is what would end the place the text stands in.
"""

import json
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from runbook.contract import Json
from runbook.problems import printable
from runbook.report.figures import NOTHING

_LONGEST = 600
_MARKUP = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=[wW]{3})\.")
"""Underscores within a word mean nothing to Markdown, and names are full of them.

An address is a link by its ``://`` or ``www.`` alone.
"""
_TAG = re.compile(r"<(?![\s\d=]|$)")
_ENTITY = re.compile(r"&(?=[#\w])")
_OPENS_BLOCK = re.compile(r"[#>=]|[-+](?=\s|$|[-+])|\d+[.)](?=\s|$)")
"""At the start of a line or a list item only."""


class Code(str):
    """A table's cell that is a name or a path, shown as code."""

    __slots__ = ()


class Strong(str):
    """A table's cell that stands out."""

    __slots__ = ()


def cut(text: str, longest: int = _LONGEST) -> str:
    """At most so many characters; what was cut is told."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}... ({len(text):,} characters)"


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Plain text on one line, with nothing in it that a terminal acts on."""
    short = cut(" ".join(text.split()), longest)
    return printable(short, longest=len(short))


def prose(text: str, longest: int = _LONGEST) -> str:
    """Text as, or within, a Markdown paragraph or list item."""
    line = _inline(text, longest)
    opening = _OPENS_BLOCK.match(line)
    return f"{line[: opening.end() - 1]}\\{line[opening.end() - 1 :]}" if opening else line


def _inline(text: str, longest: int = _LONGEST) -> str:
    line = _MARKUP.sub(lambda m: "\\" + m[0], one_line(text, longest))
    return _TAG.sub("&lt;", _ENTITY.sub("&amp;", line))


def code(text: str, longest: int = _LONGEST) -> str:
    """A name or a path as a code span, also within a table."""
    line = one_line(text, longest)
    for mark, escape in (("`", r"\x60"), ("|", r"\x7c"), ("<", r"\x3c")):
        line = line.replace(mark, escape)
    return f"`{line}`" if line else NOTHING


def link(label: str, path: str) -> str:
    """A link to a file below the folder of the report, whatever characters its path has."""
    return f"[{_inline(label)}](./{quote(path, errors='backslashreplace')})"


def json_line(value: Json, longest: int = _LONGEST) -> str:
    """A value as ASCII JSON on one line; a long text in it is cut first."""
    short = cut(value, longest) if isinstance(value, str) else value
    text = json.dumps(short, ensure_ascii=True, sort_keys=True, default=str)
    return cut(text.replace("<", r"\u003c"), 6 * longest)


def block(introduction: str, lines: Iterable[str]) -> list[str]:
    """Whole lines as an indented code block.

    The introduction is needed: straight after a list an indented line would belong to the list.
    """
    shown = [f"    {printable(line, longest=10_000)}".rstrip() for line in lines]
    return [introduction, "", *shown, ""]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, its columns aligned for those who read the file as it is."""
    head, *body = [[_cell(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in (head, *body))) for i in range(len(head) - 1)]
    rule = ["-" * width for width in (*widths, max(3, len(head[-1])))]
    return [*(_line(row, widths) for row in (head, rule, *body)), ""]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """The last column is as wide as it is: a note may be long."""
    padded = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
    return f"| {' | '.join([*padded, row[-1]])} |"


def _cell(text: str) -> str:
    if isinstance(text, Code):
        return code(text)
    return f"**{_inline(text)}**" if isinstance(text, Strong) and text.strip() else _inline(text)


def columns(rows: Iterable[Sequence[str]], indent: str = "  ") -> list[str]:
    """Plain text in aligned columns."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        (indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))).rstrip()
        for row in cells
    ]
