"""A step's code as an input: SHA-256 of its sources, found without importing them.

Of a shipped phase: its own module, the prompts', and what it says in ``CERTIFIES``: the modules and
rows of the instruments whose worth it writes down. Of a module beside the runbook: itself, or
every source of the package it is part of. Of one that is installed elsewhere: itself alone. What a
module imports beside that is not looked at.
"""

import os
from pathlib import Path

from runbook.artifacts import sha256_file
from runbook.fingerprint import fingerprint
from runbook.step_function import declared, find_module

_PHASES = Path(__file__).resolve().parents[1] / "phases"
_PROMPTS = "prompts"
_CERTIFIES = "CERTIFIES"
_UNREADABLE = "cannot be read"


def code_of(function: str, folder: Path) -> dict[str, str]:
    """Module, package or file of rows -> sha256; empty where the module is not found.

    Args:
        function: the step's, ``module:function``.
        folder: the runbook's.
    """
    module = function.partition(":")[0]
    file = find_module(module, folder)
    if file is None:
        return {}
    if file.parent.name == _PHASES.name and file.resolve().parent == _PHASES:
        named = [f"{_PHASES.name}.{_PROMPTS}", *_certified(function, folder)]
        return {module: _source(file), **{name: _source(_shipped(name)) for name in named}}
    package = _package(module, file)
    if package and package.resolve().parent == folder.resolve():
        return {package.name: _sources(package)}
    return {module: _source(file)}


def _certified(function: str, folder: Path) -> list[str]:
    """What a shipped phase says in ``CERTIFIES``; what is no list of names says nothing."""
    named = declared(_CERTIFIES, function, folder)
    return [str(name) for name in named] if isinstance(named, list | tuple) else []


def _shipped(name: str) -> Path:
    """A module by its dotted name, or a file of rows by its path, of those shipped."""
    path = name if "/" in name else f"{name.replace('.', '/')}.py"
    return _PHASES.parent / path


def _package(module: str, file: Path) -> Path | None:
    """The folder of the outermost package that a module is part of; None: it is of none."""
    depth = module.count(".") + (file.name == "__init__.py")
    return file.parents[depth - 1] if depth else None


def _sources(package: Path) -> str:
    """One hash over every ``*.py`` of a package, by name."""
    found = {}
    for root, folders, names in os.walk(package):
        # In a folder of another name, as .git, nothing can be imported.
        folders[:] = [name for name in folders if name.isidentifier()]
        for path in (Path(root, name) for name in names if name.endswith(".py")):
            found[path.relative_to(package).as_posix()] = _inner(path, package)
    return fingerprint(found)


def _inner(path: Path, package: Path) -> str:
    """The hash of a package's source; of a link that leads out of it, where that points to."""
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(package.resolve()):
            return f"a link to {path.readlink()}"
    except (OSError, RuntimeError):
        return _UNREADABLE
    return _source(path)


def _source(file: Path) -> str:
    try:
        return sha256_file(file)
    except OSError:
        return _UNREADABLE
