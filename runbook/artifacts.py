"""The only durable writer: under a final name there is only ever a complete file.

A write goes to a temporary file in the same folder, is fsynced, renamed, and the folder fsynced.
A folder counts as complete only with a ``COMPLETE.json``, written last. Nothing here relies on
modification times or on what another node sees at once.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from runbook import durable
from runbook.contract import Artifact, Json
from runbook.errors import ConfigError, CorruptError, NeedsPersonError, RunbookError
from runbook.regular_files import open_to_read

COMPLETE = "COMPLETE.json"
TEMPORARY = ".runbook-tmp"
_LATER = re.compile(r"COMPLETE\.json|(session_)?manifest\.json")
"""Top-level files that are added once a folder's content is final, so they are not in its hash."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_VOLUME = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.EROFS,
        errno.ENOTCONN,
        errno.ECONNABORTED,
        errno.ENODEV,
        errno.ENXIO,
    }
)
_CHUNK = 1 << 20


def canonical_json(value: Json) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN. Raises ValueError."""
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full or failing volume into a stop that a person can cure; other errors pass.

    Raises:
        NeedsPersonError: ENOSPC, EDQUOT, EIO, ESTALE, EROFS and a volume that went away.
    """
    try:
        yield
    except OSError as error:
        stop = storage_stop(error, path)
        if stop is None:
            raise
        raise stop from error


def storage_stop(error: OSError, path: Path) -> NeedsPersonError | None:
    """What to tell a person about this error; None where it is not the volume's."""
    if error.errno in _FULL:
        what = f"no space left while writing ({_free_bytes(path)} bytes free)"
        fix = "nothing committed is lost; free space and run the same command"
    elif error.errno in _VOLUME:
        what = f"the volume failed: {error.strerror}"
        fix = "nothing committed is lost; bring the volume back and run the same command"
    else:
        return None
    return NeedsPersonError(what, where=str(path), fix=fix)


def _free_bytes(path: Path) -> str:
    try:
        return str(shutil.disk_usage(path.parent).free)
    except OSError:
        return "unknown"


def make_directory(path: Path) -> None:
    """Create a folder and its missing parents, each one durable."""
    make_durable(make_directories(path))


def make_directories(*paths: Path) -> tuple[Path, ...]:
    """Create folders and their missing parents, not yet durable.

    Returns:
        The folders that got a new entry: what is to be ``make_durable`` before anybody is told of
        something within the new ones.
    """
    changed: dict[Path, None] = {}
    for path in paths:
        missing = []
        for folder in (path, *path.parents):
            if folder.is_dir():
                break
            missing.append(folder)
        for folder in reversed(missing):
            with storage_errors(folder):
                durable.make_directory(folder)
            changed[folder.parent] = None
    return tuple(changed)


def make_durable(folders: Iterable[Path]) -> None:
    """Make the entries of folders durable."""
    for folder in folders:
        with storage_errors(folder):
            durable.fsync_path(folder)


def write_bytes(path: Path, data: bytes) -> str:
    """Write a file atomically and durably; return its SHA-256."""
    return write_files(path.parent, {path.name: data})[path.name]


def write_files(folder: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """Write files of one folder, each atomically, all of them durably; their SHA-256 by name.

    They appear in the order given. The folder is fsynced once, so a crash may leave any of them.
    """
    make_directory(folder)
    for name, data in files.items():
        _write(folder / name, data)
    with storage_errors(folder):
        durable.fsync_path(folder)
    return {name: sha256_bytes(data) for name, data in files.items()}


def _write(path: Path, data: bytes) -> None:
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY}"
    with storage_errors(path):
        try:
            fd = durable.create(temporary)
            try:
                durable.write_all(fd, data, path)
                durable.fsync(fd, path)
            finally:
                os.close(fd)
            durable.replace(temporary, path)
        except IsADirectoryError as error:
            temporary.unlink()
            raise NeedsPersonError(
                "a folder stands in the file's place",
                where=str(path),
                fix="move it away and run the same command; nothing committed is lost",
            ) from error
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_text(path: Path, text: str) -> str:
    """Write UTF-8 text atomically; return its SHA-256."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: Json) -> str:
    """Write one JSON value, indented for people, keys sorted; return its SHA-256."""
    return write_text(path, indented_json(value))


def indented_json(value: Json) -> str:
    """A JSON value for people, keys sorted, with a newline at its end. Raises ValueError: NaN."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=2)
    return f"{text}\n"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Json]]) -> str:
    """Write one canonical JSON object a line; return its SHA-256."""
    return write_text(path, "".join(f"{canonical_json(dict(row))}\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Json]]:
    """Every row of a file that this module wrote.

    Raises:
        CorruptError: a missing file, an empty, torn or invalid line, with its number.
    """
    if not path.is_file():
        raise CorruptError("the file is missing", where=str(path), fix="restore it")
    lines = path.read_bytes().split(b"\n")
    last = lines.pop()
    if last:
        lines.append(last)
        _parse_row(path, len(lines), last)
        raise _bad_line(path, len(lines), "the last line is torn: it has no newline")
    return [_parse_row(path, number, line) for number, line in enumerate(lines, 1)]


def _parse_row(path: Path, number: int, line: bytes) -> dict[str, Json]:
    if not line.strip():
        raise _bad_line(path, number, "the line is empty")
    try:
        row = json.loads(line.decode(), parse_constant=_refuse_constant)
    except ValueError as error:
        raise _bad_line(path, number, f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise _bad_line(path, number, f"not a JSON object but a {type(row).__name__}")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _bad_line(path: Path, number: int, what: str) -> CorruptError:
    fix = "restore the file from its source; a finished file is never mended by guessing"
    return CorruptError(what, where=f"{path}:{number}", fix=fix)


def sha256_file(path: Path) -> str:
    """Raises OSError: it is missing, or no regular file."""
    digest = hashlib.sha256()
    with open_to_read(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    """The regular files of a folder in one order, without what is added to it afterwards."""
    found = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(root) / name for name in names if not name.endswith(TEMPORARY)]
    own = (p for p in found if p.parent != folder or not _LATER.fullmatch(p.name))
    return sorted(path for path in own if path.is_file())


def names(folder: Path) -> set[str]:
    """The files that a folder's hash is taken over, relative to it."""
    return {str(path.relative_to(folder)) for path in _files(folder)}


def sha256_tree(folder: Path) -> str:
    """SHA-256 of the canonical JSON of relative name -> SHA-256 of a folder's files."""
    names = {str(path.relative_to(folder)): sha256_file(path) for path in _files(folder)}
    return sha256_bytes(canonical_json(names).encode())


def complete_directory(folder: Path) -> str:
    """Make a folder's files durable and declare it complete; return the tree's SHA-256."""
    files: dict[str, Json] = {}
    with storage_errors(folder):
        for path in _files(folder):
            durable.fsync_path(path)
            files[str(path.relative_to(folder))] = measured(path)
        for root, _, _ in os.walk(folder):
            durable.fsync_path(Path(root))
    write_json(folder / COMPLETE, {"files": files})
    names = {name: entry["sha256"] for name, entry in files.items()}
    return sha256_bytes(canonical_json(names).encode())


def measured(path: Path) -> dict[str, Json]:
    """What a marker says of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def marker_of(files: Mapping[str, Json]) -> bytes:
    """A ``COMPLETE.json``, as ``complete_directory`` writes it."""
    return indented_json({"files": dict(files)}).encode()


def is_complete(folder: Path, *, deep: bool = False) -> bool:
    """Whether every file that ``COMPLETE.json`` lists is there in full; hashed where deep."""
    try:
        files = json.loads((folder / COMPLETE).read_bytes())["files"]
        return all(_matches(folder / name, entry, deep=deep) for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _matches(path: Path, entry: Mapping[str, Json], *, deep: bool) -> bool:
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    return not deep or sha256_file(path) == entry["sha256"]


def describe(name: str, path: Path, workspace: Path) -> Artifact:
    """The artifact that stands at ``path``, hashed.

    Raises:
        RunbookError: nothing is there.
        ConfigError: it lies outside the workspace.
    """
    try:
        relative = path.resolve().relative_to(workspace.resolve())
    except ValueError:
        raise ConfigError(
            f"artifact {name!r} lies outside the workspace {workspace}",
            where=str(path),
            fix="write it under the request's output folder",
        ) from None
    if path.is_dir():
        size = sum(file.stat().st_size for file in _files(path))
        return Artifact(name, str(relative), sha256_tree(path), size)
    if not path.is_file():
        raise RunbookError(
            f"artifact {name!r} does not exist",
            where=str(path),
            fix="write the file before it is described",
        )
    return Artifact(name, str(relative), sha256_file(path), path.stat().st_size)


def settle(folder: Path) -> tuple[Path, ...]:
    """Clear up after a killed writer; return the temporary files that were deleted.

    Every folder is fsynced, since a file may have been renamed, or a folder made, right before
    the kill. The caller holds the workspace's lock.
    """
    stale = []
    with storage_errors(folder):
        for root, _, names in os.walk(folder):
            found = [Path(root) / name for name in names if name.endswith(TEMPORARY)]
            for path in found:
                path.unlink(missing_ok=True)
            stale += found
            durable.fsync_path(Path(root))
    return tuple(stale)
