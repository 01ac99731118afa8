"""The DRY rules as they stand in ``specs/dry``: one file a family, and what all of them share.

A family names the canonical piece (``use``) and the files of ``phases/`` that it does not hold for
(``exempt``). Each of its rules has an ``id`` that begins with the family's name, a ``message``, an
ast-grep ``rule``, and ``needs``: what every text holds that the rule could match, one of several
strings or a pattern each, so that most texts are not searched.

Under ``names`` stand rules for what gives a name a meaning, as an alias or an assignment does. The
names that a file gives so are known there under the rule's name, like what stands under ``utils``.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

from ast_grep_py import SgNode
from ruamel.yaml import YAML

RULES: Final = Path(__file__).resolve().parents[1] / "specs" / "dry"
_FAMILIES: Final = ("loader", "template", "scorer", "prompt")
_SHARED: Final = "shared"
_ALIASES: Final = 4
"""Names for names that are followed."""


@lru_cache(maxsize=64)
def _holds(need: tuple[str, ...] | re.Pattern[str], text: str) -> bool:
    """Several rules need the same of one text."""
    if isinstance(need, tuple):
        return any(part in text for part in need)
    return need.search(text) is not None


@dataclass(frozen=True)
class Rule:
    rule_id: str
    family: str
    message: str
    use: str
    """The canonical piece."""
    exempt: frozenset[str]
    needs: tuple[tuple[str, ...] | re.Pattern[str], ...]
    rule: Mapping[str, Any]
    utils: Mapping[str, Any]
    """The rules that ``rule`` names, and that these name."""
    names: Mapping[str, Any]
    """Those of them that a file's own identifiers have to be looked up for."""

    def could_match(self, text: str) -> bool:
        return all(_holds(need, text) for need in self.needs)

    def found_in(self, root: SgNode, known: dict[str, frozenset[str]]) -> Iterator[SgNode]:
        """The nodes that match. ``known`` keeps a file's names from one rule to the next."""
        unknown = {name: rule for name, rule in self.names.items() if name not in known}
        if unknown:
            known |= _names(root, unknown, self.utils, known)
        yield from _find(root, self.rule, {**self.utils, **_as_utils(known)})


def _names(
    root: SgNode,
    wanted: Mapping[str, Any],
    utils: Mapping[str, Any],
    known: Mapping[str, frozenset[str]],
) -> dict[str, frozenset[str]]:
    """What each of these rules matches; where a name stands for a name, in a few rounds."""
    found = dict.fromkeys(wanted, frozenset[str]())
    for _ in range(_ALIASES):
        meant = {**utils, **_as_utils({**known, **found})}
        more = {
            name: frozenset(bound for node in _find(root, rule, meant) for bound in _bound(node))
            for name, rule in wanted.items()
        }
        if more == found:
            break
        found = more
    return found


def _bound(node: SgNode) -> Iterator[str]:
    """The names that an assignment or an import gives."""
    alias = node.field("alias")
    targets = [alias] if alias else [*node.field_children("left"), *node.field_children("name")]
    for target in targets:
        of = target.field("attribute") or target.field("alias") or target
        yield from (name.text() for name in of.find_all(kind="identifier"))


def _as_utils(names: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    return {
        name: {"kind": "identifier", "regex": f"^({'|'.join(sorted(texts))})$" if texts else "^$"}
        for name, texts in names.items()
    }


def _find(root: SgNode, rule: Mapping[str, Any], utils: Mapping[str, Any]) -> list[SgNode]:
    named = _named(rule, utils)
    config = {"rule": rule, "utils": {name: utils[name] for name in named}}
    return root.find_all(config)  # type: ignore[call-overload, no-any-return]  # a rule as data


@cache
def rules(folder: Path = RULES) -> tuple[Rule, ...]:
    """Every rule of every family, in the families' order."""
    shared = _read(folder / f"{_SHARED}.yaml")["utils"]
    return tuple(
        _rule(family, document, row, shared)
        for family in _FAMILIES
        for document in [_read(folder / f"{family}.yaml")]
        for row in document["rules"]
    )


def _read(path: Path) -> Any:
    # Its C parser, where it is there, is six times as fast; a session waits for this.
    return YAML(typ="safe", plug_ins=[]).load(path.read_text("utf-8"))


def _rule(family: str, document: Any, row: Any, shared: Mapping[str, Any]) -> Rule:
    names = document.get("names", {})
    rule, utils = row["rule"], {**shared, **document.get("utils", {})}
    named = _named(rule, {**utils, **names})
    return Rule(
        rule_id=row["id"],
        family=family,
        message=row["message"],
        use=document["use"],
        exempt=frozenset(document["exempt"]),
        needs=tuple(re.compile(n) if isinstance(n, str) else tuple(n) for n in row["needs"]),
        rule=rule,
        utils={name: utils[name] for name in named & utils.keys()},
        names={name: names[name] for name in named & names.keys()},
    )


def _named(rule: Any, utils: Mapping[str, Any]) -> set[str]:
    """What a rule names by ``matches``, and what that names."""
    found: set[str] = set()
    open_rules = [rule]
    while open_rules:
        part = open_rules.pop()
        if isinstance(part, dict):
            name = part.get("matches")
            if name is not None and name not in found:
                found.add(name)
                open_rules.append(utils[name])
            open_rules += part.values()
        elif isinstance(part, list):
            open_rules += part
    return found
