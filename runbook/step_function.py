"""Checks that ``module:function`` names a function of one parameter, without importing it.

Phases import torch, so a look at the source has to do: the module's file is found as Python would
find it, or beside the runbook, and parsed. A name that is only imported there does not count.
"""

import ast
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from runbook.contract import Json
from runbook.problems import listing, printable, quoted, suggestion

_FORM = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)


def check_function(function: str, folder: Path) -> tuple[str, str] | None:
    """What is wrong with a step's function and what to do; None if nothing is.

    Args:
        function: ``module:function``.
        folder: the runbook's folder, searched after ``sys.path``.
    """
    form = _FORM.fullmatch(function)
    if not form:
        return f"{quoted(function)} is not a function", "write module:function, as phases.pilot:run"
    module, name = form.groups()
    file = find_module(module, folder)
    if file is None:
        near = suggestion(module, _neighbours(module, folder))
        return f"there is no module '{module}' in Python source", near
    try:
        body = _parsed(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = f"{printable(str(file), longest=200)} cannot be parsed: {printable(str(error))}"
        return what, "mend the module"
    defined = {n.name: n for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    usable = [n for n, node in defined.items() if _takes_one(node) and not n.startswith("_")]
    if name not in defined:
        fix = suggestion(name, usable) if usable else f"write def {name}(request) there"
        return f"the module '{module}' defines no function '{name}'", fix
    if not _takes_one(defined[name]):
        others = f", or use one of: {listing(usable)}" if usable else ""
        fix = f"write def {name}(request: PhaseRequest) -> PhaseResult{others}"
        return f"'{name}' in '{module}' is not a plain function of one parameter", fix
    return None


def declared(name: str, function: str, folder: Path) -> Json:
    """The literal that the step's module gives under this name at its top; None where it has none.

    ``...`` where it is no literal. The function is one that ``check_function`` passed.
    """
    file = find_module(function.partition(":")[0], folder)
    for node in _parsed(file.read_bytes()) if file else []:
        match node:
            case (
                ast.Assign(targets=[ast.Name(given)], value=value)
                | ast.AnnAssign(target=ast.Name(given), value=value)
            ) if given == name and value is not None:
                try:
                    return ast.literal_eval(value)
                except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                    return ...
    return None


@lru_cache(maxsize=64)
def _parsed(data: bytes) -> list[ast.stmt]:
    """A module's statements, parsed once for all its steps. Raises what ``ast.parse`` does."""
    return ast.parse(data).body


def find_module(module: str, folder: Path) -> Path | None:
    """The module's source file, on ``sys.path`` or else in the folder; nothing is imported."""
    return _installed(module.split(".")) or _beside(module.split("."), folder)


def _installed(parts: list[str]) -> Path | None:
    """What the import system would load, asked part by part: a dotted find_spec would import."""
    search: Iterable[str] | None = None
    origin: str | None = None
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        finders = [f.find_spec for f in sys.meta_path if hasattr(f, "find_spec")]
        path = None if search is None else list(search)
        spec = next((s for find in finders if (s := find(name, path))), None)
        if spec is None:
            return None
        last = i == len(parts) - 1
        if not last and spec.submodule_search_locations is None:
            return None
        search, origin = spec.submodule_search_locations, spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


def _beside(parts: list[str], folder: Path) -> Path | None:
    base = folder.joinpath(*parts)
    found = [f for f in (base / "__init__.py", base.parent / f"{base.name}.py") if f.is_file()]
    return found[0] if found else None


def _neighbours(module: str, folder: Path) -> list[str]:
    """The modules that stand where this one was looked for."""
    package, _, _ = module.rpartition(".")
    if not package:
        return sorted(f.stem for f in folder.glob("*.py"))
    home = find_module(package, folder)
    place = home.parent if home else folder.joinpath(*package.split("."))
    return sorted(f"{package}.{f.stem}" for f in place.glob("*.py") if f.stem != "__init__")


def _takes_one(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether ``function(request)`` is a valid call that runs the body."""
    if isinstance(node, ast.AsyncFunctionDef):
        return False
    arguments = node.args
    total = len(arguments.posonlyargs) + len(arguments.args)
    required = total - len(arguments.defaults)
    demanded = [d for d in arguments.kw_defaults if d is None]
    return required <= 1 <= total and not demanded
