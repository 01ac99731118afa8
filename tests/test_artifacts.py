"""The durable writer: complete files or none, and folders that say when they are complete."""

import errno
import os
from pathlib import Path

import pytest

from runbook import artifacts, durable
from runbook.errors import ConfigError, CorruptError, NeedsPersonError, RunbookError


def test_write_returns_the_sha_of_what_stands_on_disk(tmp_path: Path) -> None:
    """The hash that a write returns is that of the file."""
    path = tmp_path / "new" / "folder" / "a.json"

    sha = artifacts.write_json(path, {"b": 1, "a": "é"})

    assert sha == artifacts.sha256_file(path)
    assert path.read_text() == '{\n  "a": "é",\n  "b": 1\n}\n'


def test_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    """After a write the folder holds the file alone."""
    artifacts.write_text(tmp_path / "a", "one")
    artifacts.write_text(tmp_path / "a", "two")

    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "two"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS])
@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_a_failing_volume_is_a_resumable_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    """A full or failing volume keeps the old file and asks for a person with exit 3."""
    path = tmp_path / "a"
    artifacts.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(NeedsPersonError) as caught:
            artifacts.write_text(path, "new")

    assert caught.value.code == 3
    assert str(path) in str(caught.value)
    assert "nothing committed is lost" in str(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_names_the_free_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a full disk says how much is free."""

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fail)
        with pytest.raises(NeedsPersonError, match=r"\d+ bytes free"):
            artifacts.write_text(tmp_path / "a", "x")


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes few bytes at a time still yields the whole file."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))

    artifacts.write_text(tmp_path / "a", "abcdefgh")

    assert (tmp_path / "a").read_text() == "abcdefgh"


def test_file_and_folder_are_fsynced_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data is durable before its name, and the name before the call returns."""
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(fd: int) -> None:
        calls.append("directory" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")  # noqa: PTH112
        real_fsync(fd)

    def rename(self: Path, target: Path) -> Path:
        calls.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)

    artifacts.write_text(tmp_path / "a", "x")

    assert calls == ["file", "rename", "directory"]


def test_nan_is_refused(tmp_path: Path) -> None:
    """NaN has no JSON form and is not written."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(tmp_path / "a", float("nan"))

    assert not (tmp_path / "a").exists()


def test_jsonl_round_trip(tmp_path: Path) -> None:
    """What was written as JSON lines is read back as it was."""
    rows = [{"b": "ä\u2028", "a": 1}, {}]

    artifacts.write_jsonl(tmp_path / "a", rows)

    assert artifacts.read_jsonl(tmp_path / "a") == rows


@pytest.mark.parametrize(
    ("data", "line", "what"),
    [
        (b'{"a": 1}\n\n{"a": 2}\n', 2, "empty"),
        (b'{"a": 1}\n{"a": 2}', 2, "torn"),
        (b'{"a": 1}\n{"a": ', 2, "not valid JSON"),
        (b'{"a": NaN}\n', 1, "NaN"),
        (b"[1]\n", 1, "not a JSON object"),
        (b'{"a": "\xff"}\n', 1, "not valid JSON"),
        (b"\n", 1, "empty"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(
    tmp_path: Path, data: bytes, line: int, what: str
) -> None:
    """An empty, torn or invalid line is refused by file, line and remedy."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)

    with pytest.raises(CorruptError, match=what) as caught:
        artifacts.read_jsonl(path)

    assert caught.value.where == f"{path}:{line}"
    assert caught.value.fix


def test_a_missing_jsonl_is_refused(tmp_path: Path) -> None:
    """A file that should be there and is not is corruption, not an empty list."""
    with pytest.raises(CorruptError, match="missing"):
        artifacts.read_jsonl(tmp_path / "none")


def _folder(root: Path) -> Path:
    artifacts.write_text(root / "a", "one")
    artifacts.write_text(root / "sub" / "b", "two")
    return root


def test_a_folder_is_complete_once_declared(tmp_path: Path) -> None:
    """A folder counts as complete from its COMPLETE.json on."""
    folder = _folder(tmp_path / "f")
    before = artifacts.is_complete(folder)

    sha = artifacts.complete_directory(folder)

    assert before is False
    assert artifacts.is_complete(folder, deep=True)
    assert sha == artifacts.sha256_tree(folder)


def test_a_missing_or_shorter_file_makes_a_folder_incomplete(tmp_path: Path) -> None:
    """Names and sizes are checked always, bytes only where deep."""
    folder = _folder(tmp_path / "f")
    artifacts.complete_directory(folder)

    (folder / "a").write_text("eno")
    assert (artifacts.is_complete(folder), artifacts.is_complete(folder, deep=True)) == (
        True,
        False,
    )
    (folder / "a").write_text("on")
    assert not artifacts.is_complete(folder)
    (folder / "a").unlink()
    assert not artifacts.is_complete(folder)


def test_the_manifest_is_not_part_of_the_folder(tmp_path: Path) -> None:
    """A manifest added after the verdict changes neither the hash nor completeness."""
    folder = _folder(tmp_path / "f")
    sha = artifacts.complete_directory(folder)

    artifacts.write_json(folder / "manifest.json", {})

    assert artifacts.sha256_tree(folder) == sha
    assert artifacts.is_complete(folder, deep=True)


def test_describe_names_a_file_relative_to_the_workspace(tmp_path: Path) -> None:
    """An artifact carries its relative path, hash and size."""
    artifacts.write_text(tmp_path / "data" / "a", "one")

    found = artifacts.describe("set", tmp_path / "data" / "a", tmp_path)

    assert (found.path, found.bytes) == ("data/a", 3)
    assert found.sha256 == artifacts.sha256_bytes(b"one")


def test_describe_sums_a_folder(tmp_path: Path) -> None:
    """A folder's artifact has its tree's hash and its files' bytes."""
    folder = _folder(tmp_path / "f")

    found = artifacts.describe("adapter", folder, tmp_path)

    assert (found.bytes, found.sha256) == (6, artifacts.sha256_tree(folder))


def test_describe_refuses_what_is_missing_or_outside(tmp_path: Path) -> None:
    """There is no artifact of nothing, and none outside the workspace."""
    with pytest.raises(RunbookError, match="does not exist"):
        artifacts.describe("a", tmp_path / "none", tmp_path)
    with pytest.raises(ConfigError, match="outside the workspace"):
        artifacts.describe("a", tmp_path.parent, tmp_path)


def test_stale_temporaries_are_removed(tmp_path: Path) -> None:
    """What a killed writer left goes; everything else stays."""
    _folder(tmp_path)
    stale = tmp_path / "sub" / f".0123{artifacts.TEMPORARY}"
    stale.write_text("half")

    assert artifacts.settle(tmp_path) == (stale,)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a", "b"]


def test_what_a_killed_writer_renamed_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name whose folder was not fsynced before the kill is there for good after a start."""
    _folder(tmp_path)
    synced: list[Path] = []
    monkeypatch.setattr(durable, "fsync_path", synced.append)

    artifacts.settle(tmp_path)

    assert sorted(synced) == [tmp_path, tmp_path / "sub"]


def test_a_folder_in_a_files_place_is_told_of(tmp_path: Path) -> None:
    """Nothing is taken away, and nothing half written is left."""
    (tmp_path / "report.md").mkdir()

    with pytest.raises(NeedsPersonError, match="a folder stands in the file's place"):
        artifacts.write_text(tmp_path / "report.md", "told")

    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
