"""The JSON form of the contract's types, in the journal and on the child's pipe.

A number that JSON cannot hold becomes null, so that NaN reads as "not measured" everywhere.
A whole number that no float can hold reads as infinite where a float is asked for, so likewise.
Decoding is strict: an unknown field, or a value of another type, is an error that names its place.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from runbook.contract import Json

T = TypeVar("T")
_LARGEST = 2**63 - 1


def encode(value: Any) -> Json:
    """The JSON form of a value. Raises TypeError for what has none."""
    match value:
        case Enum():
            return value.value
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
        case Path():
            return str(value)
        case Mapping():
            return {str(key): encode(item) for key, item in value.items()}
        case list() | tuple():
            return [encode(item) for item in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case _:
            raise TypeError(f"a {type(value).__name__} has no JSON form: {value!r}")


def decode(kind: type[T], value: Json) -> T:
    """A dataclass from its JSON form. Raises TypeError or ValueError naming the field."""
    decoded: T = _decode(kind, value, kind.__name__)
    return decoded


def _decode(kind: Any, value: Json, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _decode_optional(kind, value, where)
    if origin is tuple:
        _require(list, value, where)
        item, *rest = get_args(kind)
        if rest != [...]:
            raise TypeError(f"{where}: only homogeneous tuples travel")
        return tuple(_decode(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _require(dict, value, where)
        item = get_args(kind)[1]
        return {key: _decode(item, v, f"{where}.{key}") for key, v in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_fields(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is float and type(value) is int:
        return _float(value)
    if kind is Path:
        _require(str, value, where)
        return Path(value)
    _require(kind, value, where)
    return value


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _decode_optional(kind: Any, value: Json, where: str) -> Any:
    if value is None:
        return None
    rest = [arg for arg in get_args(kind) if arg is not type(None)]
    return _decode(rest[0], value, where)


def _decode_fields(kind: Any, value: Json, where: str) -> Any:
    _require(dict, value, where)
    hints = _hints(kind)
    if unknown := sorted(value.keys() - hints.keys()):
        raise TypeError(f"{where}: unknown field {unknown[0]!r}")
    fields = {name: _decode(hints[name], v, f"{where}.{name}") for name, v in value.items()}
    return kind(**fields)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The type of each field; a journal has few classes and many lines."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _require(kind: type, value: Json, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{where}: expected {kind.__name__}, found {value!r:.60}")
    if kind is int and isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{where}: a whole number beyond 64 bits is no count")
