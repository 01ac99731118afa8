"""The held-out set: one JSON object a line, each item with a reference that passes its checks."""

from collections.abc import Sequence
from pathlib import Path

from phases.answers import normalise
from phases.jsonl import parse_row, read_lines
from phases.verifiers import HeldOutItem, score
from runbook.errors import ConfigError


def load_items(path: Path) -> tuple[HeldOutItem, ...]:
    """Read a held-out file, one JSON object a line; blank lines are passed over.

    Raises:
        ConfigError: names file:line; a row that does not parse (a torn last line too), an unknown
            check or key, a missing or bad parameter, an id or instruction that stood before, a
            reference that fails its own checks, or a file without items.
    """
    items: list[HeldOutItem] = []
    first_seen: dict[str, int] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        item = _parse_item(line, f"{path}:{number}")
        for what, key in (("id", item.id), ("instruction", normalise(item.instruction))):
            before = first_seen.setdefault(f"{what} {key}", number)
            if before != number:
                raise ConfigError(
                    f"{what} {key!r} stands on line {before} too",
                    where=f"{path}:{number}",
                    fix="remove one of them",
                )
        items.append(item)
    if not items:
        raise ConfigError(
            "no items", where=str(path), fix="write one JSON object a line, or name another file"
        )
    return tuple(items)


def load_instructions(path: Path) -> list[str]:
    """The instructions that no training row may come near."""
    return [item.instruction for item in load_items(path)]


def subset(items: Sequence[HeldOutItem], per_kind: int) -> tuple[HeldOutItem, ...]:
    """The first ``per_kind`` items of each kind, in file order.

    Raises:
        ConfigError: a kind has fewer.
    """
    seen: dict[str, int] = {}
    taken = []
    for item in items:
        seen[item.kind] = seen.get(item.kind, 0) + 1
        if seen[item.kind] <= per_kind:
            taken.append(item)
    short = {kind: count for kind, count in seen.items() if count < per_kind}
    if short or not taken:
        raise ConfigError(
            f"{per_kind} items of each kind are asked for, the held-out set has {short or 'none'}",
            where="per_kind",
            fix="ask for fewer, but at least one, or write more items",
        )
    return tuple(taken)


def _parse_item(line: str, where: str) -> HeldOutItem:
    try:
        item = parse_row(HeldOutItem, line)
    except ValueError as error:
        raise ConfigError(
            f"not a held-out item: {error}", where=where, fix="correct this row"
        ) from error
    result = score(item, item.reference)
    if not result.success:
        raise ConfigError(
            f"the reference of {item.id!r} fails its own checks ({'; '.join(result.failures)})",
            where=where,
            fix="correct the reference or the checks",
        )
    return item
