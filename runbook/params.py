"""Parameters by dotted name: found, changed within declared ranges, ``${ENV}`` expanded. Pure."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy

from runbook.contract import Json, Range

_VARIABLE = re.compile(r"\$\{([^}]*)\}?")


def find_param(params: Json, dotted: str) -> Json:
    """The parameter of this name, ``a.b`` being b within a; list items go by their number.

    Raises:
        KeyError: there is none.
    """
    value = params
    for part in dotted.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif (
            isinstance(value, list)
            and len(part) < 10
            and part.isdecimal()
            and int(part) < len(value)
        ):
            value = value[int(part)]
        else:
            raise KeyError(dotted)
    return value


def all_params(params: Json, prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Dotted name and value of each parameter that holds no others.

    A key with a dot of its own is left out: no dotted name can mean it.
    """
    if isinstance(params, dict):
        items = list(params.items())
    elif isinstance(params, list):
        items = [(str(i), item) for i, item in enumerate(params)]
    else:
        yield prefix, params
        return
    for key, value in items:
        if "." not in key:
            yield from all_params(value, f"{prefix}.{key}" if prefix else key)


def is_number(value: Json) -> bool:
    """Whether the value is an int or a float; true and false are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def expand(text: str, environ: Mapping[str, str]) -> str:
    """The text with each ``${NAME}`` replaced.

    Raises:
        KeyError: the variable is not set, or its value is no text; the key is its name.
    """
    return _VARIABLE.sub(lambda m: _usable(m, environ), text)


def _usable(match: re.Match[str], environ: Mapping[str, str]) -> str:
    value = environ[match[1]]
    if not match[0].endswith("}") or any("\ud800" <= c <= "\udfff" or c == "\0" for c in value):
        raise KeyError(match[1])
    return value


def find(params: Mapping[str, Json], name: str) -> Json:
    """The value under a dotted name; None where there is none."""
    try:
        return find_param(dict(params), name)
    except KeyError:
        return None


def overlay(params: Mapping[str, Json], changes: Mapping[str, Json]) -> dict[str, Json]:
    """A copy with values replaced under dotted names; an unknown name is added at the top.

    A number that is not whole by its kind stays so where it is set to 1, as JSON may write 1.0.
    """
    result = deepcopy(dict(params))
    for name, value in changes.items():
        known = find(result, name)
        *outer, last = name.split(".") if known is not None else [name]
        holder: Json = find_param(result, ".".join(outer)) if outer else result
        holder[int(last) if isinstance(holder, list) else last] = _like(known, deepcopy(value))
    return result


def _like(known: Json, value: Json) -> Json:
    if isinstance(known, float) and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    return value


def adjusted(current: Json, operation: Mapping[str, Json], bounds: Range | None) -> Json:
    """The value after ``add``, ``multiply`` or ``set``, held within the bounds."""
    value = current
    for verb, operand in operation.items():
        match verb:
            case "add":
                value = value + operand
            case "multiply":
                value = value * operand
            case "set":
                value = operand
            case _:
                raise ValueError(f"unknown adjustment {verb!r}; known: add, multiply, set")
    if not is_number(value):
        return value
    if bounds:
        value = min(max(value, bounds.min), bounds.max)
    # Twelve digits: 0.7 + 0.1 is meant to be 0.8. A whole number stays one.
    return round(value) if isinstance(current, int) else round(value, 12)


def refuse_changes(
    changes: Mapping[str, Json],
    adjustable: Mapping[str, Range],
    params: Iterable[Mapping[str, Json]],
) -> str:
    """Why a reviewer's changes cannot stand; empty where they can."""
    owners = tuple(params)
    for name, value in changes.items():
        if name not in adjustable:
            return f"{name!r} is not adjustable; adjustable: {', '.join(adjustable) or 'nothing'}"
        if not is_number(value) or not math.isfinite(value):
            return f"{name!r} must be a finite number, found {value!r}"
        low, high = adjustable[name].min, adjustable[name].max
        if not low <= value <= high:
            return f"{name!r} must lie between {low} and {high}, found {value}"
        if _current(name, owners) is None:
            return f"no step that would run again has a parameter {name!r}"
        if name in whole_numbers([name], owners) and not float(value).is_integer():
            return f"{name!r} is a whole number, found {value}"
    return ""


def whole_numbers(names: Iterable[str], params: Iterable[Mapping[str, Json]]) -> tuple[str, ...]:
    """Those of the names whose parameter is a whole number, which a change must not break."""
    owners = tuple(params)
    return tuple(name for name in names if isinstance(_current(name, owners), int))


def _current(name: str, owners: Iterable[Mapping[str, Json]]) -> Json:
    """The parameter in the first of these that has it; None where none does."""
    found = (find(owner, name) for owner in owners)
    return next((value for value in found if value is not None), None)
