"""What a function does, as a hash: its source and that of all it calls, as they stand in memory.

Follows the names that a function looks up, through modules and siblings, so that a helper or a
pattern put in another's place counts as well. Comments, docstrings and layout do not. The standard
library and big packages are followed by name alone. What is only found at call time, such as a
function stored in a list's element or an instance's attribute, is not seen.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from runbook.artifacts import canonical_json, sha256_bytes

_BY_NAME: Final = sys.stdlib_module_names | {"numpy", "pydantic", "scipy", "torch", "transformers"}
_PLAIN: Final = (str, bytes, int, float, bool, type(None))


def code_hash(*functions: Callable[..., Any]) -> str:
    """SHA-256 over the functions and what they reach; the same in every process."""
    seen: dict[int, Any] = {}
    parts = [part for one in functions for part in _parts("", one, seen)]
    return sha256_bytes(canonical_json(sorted(parts)).encode())


def _parts(name: str, value: Any, seen: dict[int, Any]) -> Iterator[list[str]]:
    """What stands behind a name, and behind the names that it uses."""
    if callable(value) and not isinstance(value, FunctionType | type):
        # A cached function, say. A plain wrapper is code of its own and is followed as such.
        value = inspect.unwrap(value)
    if isinstance(value, partial):
        yield [name, "partial", _constant([value.args, value.keywords])]
        yield from _parts(name, value.func, seen)
    elif not isinstance(value, FunctionType | type):
        yield [name, _constant(value)]
    elif value.__module__.partition(".")[0] in _BY_NAME:
        yield [name, f"{value.__module__}.{value.__qualname__}"]
    elif id(value) not in seen:
        seen[id(value)] = value
        yield [name, _source(value)]
        found = _used(value) if isinstance(value, FunctionType) else _members(value)
        for used, part in found:
            yield from _parts(used, part, seen)


def _members(owner: type) -> Iterator[tuple[str, Any]]:
    """What a class holds in memory, which need not be what its source says; and its bases."""
    for name, value in vars(owner).items():
        held = [getattr(value, f) for f in ("fget", "fset", "func", "__func__") if _has(value, f)]
        for one in [value] if isinstance(value, partial) or not held else held:
            special = name.startswith("__")
            made = isinstance(one, FunctionType) and not _generated(name, one)
            if made or not (special or isinstance(one, FunctionType | type)):
                yield f"{owner.__qualname__}.{name}", one
    for base in owner.__bases__:
        yield f"{owner.__qualname__} is a", base


def _has(value: Any, field: str) -> bool:
    return getattr(value, field, None) is not None


def _generated(name: str, function: FunctionType) -> bool:
    """Whether a decorator wrote it, as those of a dataclass."""
    code, made_in = function.__code__, str(function.__globals__.get("__name__"))
    special = name.startswith("__")
    return special and (code.co_filename == "<string>" or made_in.partition(".")[0] in _BY_NAME)


def _used(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals that a function looks up, of a module what it takes from it; and its closure."""
    names = {*_looked_up(function.__code__)}
    for name in sorted(names & function.__globals__.keys()):
        found = function.__globals__[name]
        if not isinstance(found, ModuleType):
            yield name, found
        elif found.__name__.partition(".")[0] not in _BY_NAME:
            yield from ((f"{name}.{n}", vars(found)[n]) for n in sorted(names & vars(found).keys()))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, cell.cell_contents
    yield "defaults", [function.__defaults__, function.__kwdefaults__]


def _looked_up(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _looked_up(constant)


def _source(value: Any) -> str:
    """Source without comments, docstrings and layout; of what has none, its bytecode."""
    try:
        # By its code: a function's name and wrapper may point to the source of another.
        told = value.__code__ if isinstance(value, FunctionType) else value
        text = textwrap.dedent(inspect.getsource(told))
    except (OSError, TypeError):
        code = getattr(value, "__code__", None)
        return f"{code.co_code.hex()} {code.co_consts!r}" if code else f"a {value.__qualname__}"
    try:
        tree = ast.parse(text)
    except SyntaxError:
        # The lines around a lambda are no statement of their own.
        return text
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not _is_text(n)]  # type: ignore[attr-defined]  # it has one
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a bare string: a docstring, or the text under a field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _constant(value: Any) -> str:
    """A value's spelling that does not hang on the process."""
    if isinstance(value, re.Pattern):
        return f"pattern {value.pattern!r} {value.flags}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_constant(k)}: {_constant(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_constant, value))}]"
    if isinstance(value, set | frozenset):
        return f"set {sorted(map(_constant, value))}"
    if isinstance(value, _PLAIN):
        return repr(value)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', '')}.{name}"
