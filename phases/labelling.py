"""What a person labels: for each instrument, which texts are shown, and the row that a key makes.

Rows go to a user's own file, which a spec names beside the shipped one. They are of the half that
judges: nothing is tuned by them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from phases.detectors import ALL, SENTINELS, SHIPPED, Detector
from phases.jsonl import parse_row, read_lines
from phases.probes import ProbeInstruction, ProbePair
from phases.records import Row
from phases.scorer_controls import LabelledResponse
from runbook.artifacts import canonical_json, sha256_bytes
from runbook.contract import Json
from runbook.errors import ConfigError

_WHY: Final = "labelled by hand"
_LONG: Final = 20
"""Words from which on a response to a held-out item is a long one; most have fewer."""


@dataclass(frozen=True)
class Kind:
    """One instrument, as a person who labels meets it."""

    question: str
    keys: Mapping[str, Mapping[str, Json]]
    """Key -> the fields that it adds to a row."""
    told: str
    """The keys, in words."""
    fields: Mapping[str, tuple[str, ...]]
    """Field of a labelled row -> what it may be called in a user's rows, best first."""
    model: type[BaseModel]
    named: str
    """Under ``files`` in the spec."""
    step: str
    """The step whose spec it is."""

    @property
    def needs(self) -> str:
        """The fields that a user's row must have, in words."""
        return ", ".join(" or ".join(names) for names in self.fields.values())


def _detector(one: Detector) -> Kind:
    return Kind(
        one.question,
        {key: {"label": yes, "why": _WHY} for key, yes in (("y", True), ("n", False))},
        "y/n",
        {field: (field,) for field in one.fields},
        one.probe,
        f"probe_{one.name}",
        "contamination" if one.name in SENTINELS else "calibration",
    )


_JUDGES: Final[Mapping[str, Kind]] = {
    "instructions": Kind(
        "Is it a clear, specific, achievable and safe instruction?",
        {
            key: {"good": good, "difficulty": "hard", "half": "test", "why": _WHY}
            for key, good in (("y", True), ("n", False))
        },
        "y/n",
        {"text": ("text", "instruction")},
        ProbeInstruction,
        "own_instructions",
        "calibration",
    ),
    "pairs": Kind(
        "Does the response do what the instruction asks, correctly and in its form?",
        {
            key: {"good": not negative, "negative": negative, "half": "test"}
            for key, negative in (("y", ""), ("n", "other"), ("w", "wrong_answer"))
        },
        "y/n, w = no, it is of the right kind and wrong",
        {"instruction": ("instruction",), "response": ("response",)},
        ProbePair,
        "own_pairs",
        "calibration",
    ),
    "scorer": Kind(
        "Does the response do what the held-out item asks?",
        {key: {"success": yes, "note": _WHY} for key, yes in (("y", True), ("n", False))},
        "y/n",
        {"item": ("item", "id"), "instruction": ("instruction",), "response": ("response",)},
        LabelledResponse,
        "own_responses",
        "baseline",
    ),
}
KINDS: Final[Mapping[str, Kind]] = {**{n: _detector(one) for n, one in ALL.items()}, **_JUDGES}
"""Every instrument that ships labelled rows, by name."""


def labelled(kind: Kind, texts: Mapping[str, str], key: str) -> dict[str, Json]:
    """The row that a key makes, as the instrument's own file has them."""
    row: dict[str, Json] = {**texts, **kind.keys[key]}
    if kind.model is LabelledResponse:
        del row["instruction"]
        row["length"] = "long" if len(texts["response"].split()) >= _LONG else "short"
    return row


def known_ids(kind: Kind, target: Path) -> set[str]:
    """The ids in a user's own file; none where there is no file.

    Raises:
        ConfigError: it was shipped, or a line is none of this instrument's.
    """
    if target.resolve().is_relative_to(SHIPPED.parent):
        raise ConfigError(
            "this file was shipped and is never edited",
            where=str(target),
            fix="name a file of your own with --into",
        )
    lines = read_lines(target) if target.exists() else []
    return {_own(kind, f"{target}:{number}", line) for number, line in lines}


def _own(kind: Kind, where: str, line: str) -> str:
    try:
        return str(parse_row(kind.model, line).id)  # type: ignore[attr-defined]  # each has one
    except ValueError as error:
        fix = f"its fields are {', '.join(kind.model.model_fields)}; see specs/probe"
        raise ConfigError(str(error), where=where, fix=fix) from error


def waiting(name: str, kind: Kind, file: Path) -> Iterator[dict[str, str]]:
    """The rows of a file that have all texts, each once, with an id made of them.

    Raises:
        ConfigError: a line is no JSON, or no row has the texts.
    """
    seen = set()
    for number, line in read_lines(file):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            what, fix = "the line is no JSON", "write one object a line"
            raise ConfigError(what, where=f"{file}:{number}", fix=fix) from error
        texts = _texts(kind, row if isinstance(row, dict) else {})
        if texts is None or any("\ud800" <= c <= "\udfff" for c in "".join(texts.values())):
            # Half a character is no text either: it has no form in a file.
            continue
        made = f"own-{sha256_bytes(canonical_json(texts).encode())[:16]}"
        if made not in seen:
            seen.add(made)
            yield {"id": made, **texts}
    if not seen:
        what = f"no row has the texts of a {name} probe"
        raise ConfigError(what, where=str(file), fix=f"give each row {kind.needs} as text")


def _texts(kind: Kind, row: Row) -> dict[str, str] | None:
    found = {}
    for field, names in kind.fields.items():
        given = next((row[n] for n in names if isinstance(row.get(n), str)), None)
        if given is None:
            return None
        found[field] = given
    return found
