"""Dotted names of parameters, and ``${ENV}`` in the few values where it is allowed. Pure."""

import re
from collections.abc import Iterator, Mapping

from runbook.contract import Json

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
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
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
