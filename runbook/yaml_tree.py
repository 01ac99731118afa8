"""A YAML document as a tree of nodes that know their position, built from the parser's events.

Rule: what could surprise is refused with its position: duplicate keys, tags, aliases that
multiply, second documents, numbers that are not finite, keys that are not text. ruamel.yaml does
the parsing; the tree is built here, event by event, so that a hostile document is given up as
soon as it breaks a rule.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ruamel.yaml import YAML, events
from ruamel.yaml.nodes import ScalarNode

from runbook.contract import Json
from runbook.errors import ConfigError
from runbook.problems import Problem, printable, quoted, to_error

MAX_NODES = 10_000
"""Values of a document, aliases expanded."""
MAX_DEPTH = 50
_MAX_INTEGER = 2**63


class Position(NamedTuple):
    """Both from 1, as editors count."""

    line: int
    column: int


@dataclass
class Node:
    """One value of the document with its position; aliases share nodes."""

    value: Any
    """A scalar, ``dict[str, Node]`` or ``list[Node]``."""
    at: Position
    keys: dict[str, Position] = field(default_factory=dict)
    size: int = 1
    """Nodes at and below this one, aliases expanded."""
    height: int = 1
    """Levels at and below this one."""

    def plain(self) -> Json:
        """The value without positions; nothing is shared with another value."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


@dataclass
class _Open:
    """A list or mapping whose end has not come yet."""

    node: Node
    anchor: str | None
    key: str | None = None


class TreeBuilder:
    """Folds parser events into nodes; one use."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._yaml = YAML(typ="safe", pure=True)
        self._anchors: dict[str, Node] = {}
        self._open: list[_Open] = []
        self._root: Node | None = None
        self._count = 0

    def build(self, text: str) -> Node:
        """The document's root node.

        Raises:
            ConfigError: a rule is broken.
            Exception: what ruamel.yaml raises on text that is not YAML.
        """
        for event in self._yaml.parse(text):
            self._take(event)
        if self._root is None or self._root.value is None:
            raise self._error(Position(1, 1), "the document is empty", "write the keys it needs")
        return self._root

    def _take(self, event: Any) -> None:
        at = Position(event.start_mark.line + 1, event.start_mark.column + 1)
        match event:
            case events.DocumentStartEvent():
                self._start_document(event, at)
            case events.AliasEvent():
                node = self._aliased(event.anchor, at)
                self._attach(node, at)
                self._weigh(node)
            case events.ScalarEvent():
                self._refuse_tag(event, at)
                self._scalar(event, at)
            case events.SequenceStartEvent() | events.MappingStartEvent():
                self._refuse_tag(event, at)
                self._start(event, at)
            case events.SequenceEndEvent() | events.MappingEndEvent():
                done = self._open.pop()
                self._remember(done.anchor, done.node)
                self._weigh(done.node)
            case _:
                pass

    def _start_document(self, event: Any, at: Position) -> None:
        if self._root is not None:
            fix = "keep one document per file: take away the line '---'"
            raise self._error(at, "a second document starts here", fix)
        if event.tags or event.version not in (None, (1, 2)):
            fix = "take away the line that starts with %"
            raise self._error(at, "directives other than %YAML 1.2 are not allowed", fix)

    def _refuse_tag(self, event: Any, at: Position) -> None:
        # event.tag itself takes time that is quadratic in the tag's length.
        if event.ctag is not None:
            shown = printable(f"{event.ctag.handle or ''}{event.ctag.suffix or ''}")
            what = f"the tag {shown} is not allowed"
            fix = "write a plain value; quote it if it is text"
            raise self._error(at, what, fix)

    def _aliased(self, anchor: str, at: Position) -> Node:
        if anchor not in self._anchors:
            what = f"the alias '*{printable(anchor)}' has no finished anchor before it"
            raise self._error(at, what, "write the value out")
        return self._anchors[anchor]

    def _scalar(self, event: Any, at: Position) -> None:
        top = self._open[-1] if self._open else None
        if top and isinstance(top.node.value, dict) and top.key is None:
            top.key = self._key(event, top.node, at)
            return
        node = Node(self._resolve(event, at), at)
        self._remember(event.anchor, node)
        self._attach(node, at)
        self._weigh(node)

    def _start(self, event: Any, at: Position) -> None:
        node = Node({} if isinstance(event, events.MappingStartEvent) else [], at)
        self._attach(node, at)
        self._open.append(_Open(node, event.anchor))

    def _attach(self, node: Node, at: Position) -> None:
        if len(self._open) + node.height > MAX_DEPTH:
            raise self._error(at, f"nested deeper than {MAX_DEPTH} levels", "flatten it")
        self._count += node.size
        if self._count > MAX_NODES:
            what = f"more than {MAX_NODES} values, aliases expanded"
            raise self._error(at, what, "keep data in a file of its own, and use fewer aliases")
        if not self._open:
            self._root = node
            return
        top = self._open[-1]
        if isinstance(top.node.value, list):
            top.node.value.append(node)
        elif top.key is None:
            raise self._error(at, "a key must be text", "write the key as plain text")
        else:
            top.node.value[top.key] = node
            top.key = None

    def _weigh(self, node: Node) -> None:
        """Tell the collection around a finished node what it weighs."""
        if self._open:
            around = self._open[-1].node
            around.size += node.size
            around.height = max(around.height, node.height + 1)

    def _remember(self, anchor: str | None, node: Node) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _key(self, event: Any, mapping: Node, at: Position) -> str:
        if event.value == "<<" and event.implicit[0]:
            raise self._error(at, "merge keys (<<) are not used here", "write the keys out")
        key = self._resolve(event, at)
        if not isinstance(key, str):
            raise self._error(at, f"the key {quoted(key)} is not text", "quote the key")
        if key in mapping.keys:
            what = f"the key {quoted(key)} stands twice, first on line {mapping.keys[key].line}"
            raise self._error(at, what, "keep one of the two")
        mapping.keys[key] = at
        self._remember(event.anchor, Node(key, at))
        return key

    def _resolve(self, event: Any, at: Position) -> Json:
        if not event.implicit[0]:
            return self._text(event.value, at)
        tag = str(self._yaml.resolver.resolve(ScalarNode, event.value, (True, False)))
        match tag.rpartition(":")[2]:
            case "null":
                return None
            case "bool":
                return event.value.lower() == "true"
            case "int" | "float" as kind:
                return self._number(ScalarNode(tag, event.value), kind, at)
            case _:
                return self._text(event.value, at)

    def _number(self, node: ScalarNode, kind: str, at: Position) -> int | float:
        shown = quoted(node.value)
        read = self._yaml.constructor
        try:
            number: int | float = getattr(read, f"construct_yaml_{kind}")(node)
        except ValueError as error:
            raise self._error(at, f"{shown} is not a number", "write it in digits") from error
        if isinstance(number, int):
            if abs(number) >= _MAX_INTEGER:
                raise self._error(at, f"the integer {shown} is too large", "quote it if it is text")
        elif not math.isfinite(number):
            raise self._error(at, f"{shown} is not a finite number", "write a finite number")
        return number

    def _text(self, text: str, at: Position) -> str:
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            fix = "take away the escape \\0 or \\ud800 and its like"
            raise self._error(at, f"{quoted(text)} holds a character no file may hold", fix)
        return text

    def _error(self, at: Position, what: str, fix: str) -> ConfigError:
        return to_error([Problem(self._name, *at, what, fix)])
