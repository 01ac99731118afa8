"""Validates a document against a model and says in plain words, with a position, what is wrong.

pydantic finds the errors; its words are for programmers, so each kind has its own here. A key
without a value is an error wherever the schema knows the key: an emptied ``gate:`` must not mean
that there is no gate.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from runbook.contract import Json
from runbook.problems import Problem, printable, quoted, suggestion
from runbook.yaml_source import Source, ValuePath

_FREE = ("params", "extend")
"""Keys whose values are the phase's own affair."""

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}

_PATTERNS = {
    r"^[a-z][a-z0-9_]*$": ("a step's name", "use small letters, digits and _, a letter first"),
    r"^[A-Za-z][A-Za-z0-9_]*$": ("a phase's name", "use letters, digits and _, a letter first"),
    r"^[A-Za-z_][A-Za-z0-9_]*$": ("a variable's name", "use letters, digits and _"),
    r"^[0-9a-f]{40}$": ("a revision", "write the commit's 40 hex digits, in small letters"),
}

_LIMITS = {
    "greater_than_equal": ("ge", "is below", "use {} or more"),
    "less_than_equal": ("le", "is above", "use {} or less"),
    "less_than": ("lt", "is not less than", "use less than {}"),
}


def find_problems(model: type[BaseModel], value: Json, source: Source) -> list[Problem]:
    """All that the model has against a document; empty if nothing."""
    details: list[ErrorDetails] = []
    try:
        model.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False)
    unknown = {d["loc"] for d in details if d["type"] == "extra_forbidden"}
    empty = [path for path in _nulls(value, ()) if path not in unknown]
    found = [_problem(model, d, source) for d in details if d["loc"] not in empty]
    return [*(_empty_key(source, path) for path in empty), *found]


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


def _problem(model: type[BaseModel], detail: ErrorDetails, source: Source) -> Problem:
    path: ValuePath = detail["loc"]
    kind = detail["type"]
    if kind == "extra_forbidden":
        what = f"unknown key {quoted(path[-1])}"
        fix = suggestion(str(path[-1]), _known_keys(model, path[:-1]))
        return source.problem(path, what, fix, key=True)
    if kind == "missing":
        what = f"the key '{path[-1]}' is missing"
        return source.problem(path[:-1], what, f"add {path[-1]}: here")
    if path and path[-1] == "[key]":
        what, fix = _words(kind, detail.get("ctx", {}), path[-2])
        return source.problem(path[:-1], what, fix, key=True)
    what, fix = _words(kind, detail.get("ctx", {}), detail["input"])
    return source.problem(path, what, fix)


def _words(kind: str, limits: Mapping[str, Any], value: object) -> tuple[str, str]:
    """What is wrong with the value, and what to do."""
    if kind in _TYPES:
        return f"{quoted(value)} is not {_TYPES[kind]}", _type_fix(kind, value)
    if kind in _LIMITS:
        key, relation, fix = _LIMITS[kind]
        limit = str(limits[key])
        return f"{quoted(value)} {relation} {limit}", fix.format(limit)
    match kind:
        case "rule":
            return str(limits["what"]), str(limits["fix"])
        case "literal_error":
            known = re.findall(r"'([^']*)'", str(limits["expected"]))
            fix = suggestion(value if isinstance(value, str) else "", known)
            return f"{quoted(value)} is not one of: {', '.join(known)}", fix
        case "string_pattern_mismatch":
            noun, fix = _PATTERNS[str(limits["pattern"])]
            return f"{quoted(value)} is not {noun}", fix
        case _:  # too_short, string_too_short
            return f"{quoted(value)} is empty", "add at least one entry"


def _type_fix(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return f'quote it: "{quoted(value)}"'
    if kind in {"int_type", "float_type"} and isinstance(value, str):
        return "write the number without quotes"
    if kind == "bool_type" and isinstance(value, str):
        return "write true or false, without quotes"
    return f"write {_TYPES[kind]}"


def _known_keys(model: type[BaseModel], path: ValuePath) -> list[str]:
    """The keys that the schema knows for the mapping at the path."""
    inner: Any = model
    for part in path:
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            inner = _unwrapped(inner.model_fields[str(part)].annotation)
        else:
            inner = _unwrapped(get_args(inner)[-1])
    return list(inner.model_fields)


def _unwrapped(annotation: Any) -> Any:
    """The model or container within Annotated[...] and X | None."""
    while get_args(annotation) and not isinstance(annotation, type(list[int])):
        annotation = get_args(annotation)[0]
    return annotation
