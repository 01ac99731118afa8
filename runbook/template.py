"""A new workspace: the template's files and a programme's runbook and specs, ready to be edited.

Rule: it appears under its name whole or not at all, and takes the place of nothing.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from runbook import artifacts, durable
from runbook.errors import ConfigError, RunbookError
from runbook.problems import listing, printable, suggestion
from runbook.yaml_source import parse_yaml

HOME = Path(__file__).parents[1]
"""Holds ``specs`` and ``workspace_template``, in a checkout as in an installed package."""
_DOT = "dot_"
"""A template's ``dot_env`` becomes ``.env``: packaging passes over names that begin with a dot."""
_SPEC = re.compile(r"\bspec: (?=[\w-]+\.yaml)")
_EXECUTABLE = ".sh"
_OURS = ("dry", "review_bench")
"""The sentinel's rules and the recorded reviews are no user's to change: no copy is laid down."""
_OF_TEMPLATE = "workspace_template"


def programmes(home: Path = HOME) -> list[str]:
    """The programmes that a workspace can be made from."""
    return sorted(path.parent.name for path in home.glob("specs/*/runbook.yaml"))


def lay_down(folder: Path, programme: str, *, home: Path = HOME) -> tuple[Path, tuple[str, ...]]:
    """Make a workspace; return its absolute path and the files in it.

    Args:
        folder: a path where nothing is, or an empty folder.
        programme: one of ``programmes``.
        home: where the templates are.

    Raises:
        ConfigError: the folder is taken or cannot be made, or there is no such programme.
    """
    known = programmes(home)
    if programme not in known:
        what = f"there is no programme '{printable(programme)}'"
        raise ConfigError(what, where="--from", fix=suggestion(programme, known))
    target = folder.expanduser().resolve()
    _refuse_taken(target)
    files = dict(_files(home, programme, target.name))
    staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}{artifacts.TEMPORARY}")
    try:
        _write(files, staging)
        durable.replace(staging, target)
        durable.fsync_path(target.parent)
    except (OSError, RunbookError) as error:
        what = error.what if isinstance(error, RunbookError) else error.strerror or str(error)
        fix = "choose a folder that can be written to; nothing was left behind"
        raise ConfigError(f"it cannot be made: {what}", where=str(target), fix=fix) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target, tuple(sorted(files))


def _refuse_taken(target: Path) -> None:
    fix = "name a new folder; nothing was written"
    if target == Path.cwd().resolve():
        raise ConfigError("this is the current folder", where=str(target), fix=fix)
    if os.path.ismount(target):
        fix = "name a new folder in it; nothing was written"
        raise ConfigError("a volume is mounted here", where=str(target), fix=fix)
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir())
        if names:
            what = f"the folder is not empty: {listing(names)}"
            raise ConfigError(what, where=str(target), fix=fix)
    elif os.path.lexists(target):
        raise ConfigError("a file stands here", where=str(target), fix=fix)


def _write(files: dict[str, bytes], staging: Path) -> None:
    for name, content in files.items():
        path = staging / name
        artifacts.write_bytes(path, content)
        if path.suffix == _EXECUTABLE:
            path.chmod(0o755)


def _files(home: Path, programme: str, name: str) -> Iterator[tuple[str, bytes]]:
    """Relative name and content of every file."""
    specs, others = home / "specs", set(programmes(home))
    runbook = (specs / programme / "runbook.yaml").read_text("utf-8")
    yield "runbook.yaml", _SPEC.sub("spec: specs/", runbook).encode()
    for path in _sources(specs):
        relative = path.relative_to(specs)
        if relative.parts[0] not in {*others, *_OURS}:
            yield relative.as_posix(), path.read_bytes()
        elif relative.parts[0] == programme and relative.name != "runbook.yaml":
            yield f"specs/{relative.relative_to(programme).as_posix()}", path.read_bytes()
    marks = _marks(runbook, programme, name)
    for path in _sources(home / _OF_TEMPLATE):
        relative = path.relative_to(home / _OF_TEMPLATE)
        text = path.read_text("utf-8")
        for mark, value in marks.items():
            text = text.replace(f"@{mark}@", value)
        yield relative.as_posix().replace(_DOT, "."), text.encode()


def _sources(folder: Path) -> list[Path]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc"})
    return sorted(found)


def _marks(runbook: str, programme: str, name: str) -> dict[str, str]:
    """What the template's ``@MARKS@`` stand for."""
    gpus = int(parse_yaml(runbook, "runbook.yaml").value().get("preflight", {}).get("gpus", 0))
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    on_gpu = f"accelerators: H100:{gpus}   # with 80 GB each, or more"
    return {
        "NAME": slug if re.match(r"[a-z]", slug) else f"session-{slug}".rstrip("-"),
        "PROGRAMME": programme,
        "HARDWARE": on_gpu if gpus else "cpus: 2+\n  memory: 8+",
        "EXTRAS": "train,gpu" if gpus else "train,quickstart",
    }
