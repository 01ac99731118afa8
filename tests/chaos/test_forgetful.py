"""The forgetful disk forgets exactly what was not fsynced, and nothing that was."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from chaos.forgetful import Disk, forgetful_mount, require_fuse
from runbook.artifacts import write_bytes
from runbook.errors import RunbookError


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with forgetful_mount(tmp_path) as mounted:
        yield mounted


def put(path: Path, data: bytes, *, flags: int = os.O_CREAT | os.O_EXCL) -> None:
    """Write a file and fsync it, but not its folder."""
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)


def fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def put_durably(path: Path, data: bytes) -> None:
    put(path, data)
    fsync_folder(path.parent)


def content(folder: Path) -> dict[str, bytes | None]:
    """Each name of a folder, with a file's bytes."""
    paths = sorted(folder.iterdir())
    return {path.name: path.read_bytes() if path.is_file() else None for path in paths}


def test_write_without_fsync_is_lost(disk: Disk) -> None:
    """A file whose folder was fsynced but whose bytes were not comes back empty."""
    (disk.path / "a").write_bytes(b"bytes")
    fsync_folder(disk.path)
    assert (disk.path / "a").read_bytes() == b"bytes"
    disk.power_loss()
    assert (disk.path / "a").read_bytes() == b""


def test_file_without_directory_fsync_is_gone(disk: Disk) -> None:
    """A new file that was fsynced is gone where its folder was not."""
    put(disk.path / "a", b"bytes")
    disk.power_loss()
    assert content(disk.path) == {}


def test_full_recipe_survives(disk: Disk) -> None:
    """Temporary file, fsync, rename and folder fsync keep the new bytes under the final name."""
    put_durably(disk.path / "a", b"old")
    put(disk.path / "a.tmp", b"new")
    (disk.path / "a.tmp").rename(disk.path / "a")
    fsync_folder(disk.path)
    disk.power_loss()
    assert content(disk.path) == {"a": b"new"}


def test_rename_without_directory_fsync_shows_the_old_content(disk: Disk) -> None:
    """A rename that no folder fsync followed leaves the old bytes under the name."""
    put_durably(disk.path / "a", b"old")
    put(disk.path / "a.tmp", b"new")
    (disk.path / "a.tmp").rename(disk.path / "a")
    assert (disk.path / "a").read_bytes() == b"new"
    disk.power_loss()
    assert content(disk.path) == {"a": b"old"}


def test_append_without_fsync_is_lost_and_the_earlier_bytes_stay(disk: Disk) -> None:
    """Of a log, the lines up to the last fsync remain."""
    put_durably(disk.path / "log", b"one\n")
    put(disk.path / "log", b"two\n", flags=os.O_APPEND)
    with (disk.path / "log").open("ab") as log:
        log.write(b"three\n")
    assert (disk.path / "log").read_bytes() == b"one\ntwo\nthree\n"
    disk.power_loss()
    assert (disk.path / "log").read_bytes() == b"one\ntwo\n"


def test_directory_without_parent_fsync_is_gone(disk: Disk) -> None:
    """A new folder and all that was fsynced in it is gone where its parent was not fsynced."""
    (disk.path / "folder").mkdir()
    put_durably(disk.path / "folder" / "a", b"bytes")
    disk.power_loss()
    assert content(disk.path) == {}


def test_unlink_without_directory_fsync_comes_back(disk: Disk) -> None:
    """A file whose removal was not fsynced is there again."""
    put_durably(disk.path / "a", b"bytes")
    (disk.path / "a").unlink()
    assert not (disk.path / "a").exists()
    disk.power_loss()
    assert (disk.path / "a").read_bytes() == b"bytes"


def test_truncation_without_fsync_is_lost(disk: Disk) -> None:
    """Neither truncation by descriptor nor at opening is durable by itself."""
    put_durably(disk.path / "a", b"bytes")
    put_durably(disk.path / "b", b"bytes")
    os.truncate(disk.path / "a", 2)
    (disk.path / "b").open("wb").close()
    assert (disk.path / "a").read_bytes() == b"by"
    assert (disk.path / "b").read_bytes() == b""
    disk.power_loss()
    assert (disk.path / "a").read_bytes() == b"bytes"
    assert (disk.path / "b").read_bytes() == b"bytes"


def test_the_durable_writer_survives(disk: Disk) -> None:
    """What ``write_bytes`` reported as written is there after a power cut, folders included."""
    write_bytes(disk.path / "deep" / "er" / "a", b"bytes")
    disk.power_loss()
    assert (disk.path / "deep" / "er" / "a").read_bytes() == b"bytes"


def test_the_durable_writer_without_fsync_does_not(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the same call loses the file once fsync does nothing."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _fd: None)
        write_bytes(disk.path / "deep" / "er" / "a", b"bytes")
    assert (disk.path / "deep" / "er" / "a").read_bytes() == b"bytes"
    disk.power_loss()
    assert content(disk.path) == {}


def test_power_can_be_cut_before_any_call(tmp_path: Path) -> None:
    """Whichever changing call the power is cut before, a reader sees the old or the new file."""
    seen = []
    for at in range(1, 6):
        folder = tmp_path / str(at)
        folder.mkdir()
        with forgetful_mount(folder) as disk:
            write_bytes(disk.path / "a", b"old")
            # The final write is: create, write, fsync, rename, fsync of the folder.
            disk.power_loss(off_at=at)
            with pytest.raises((OSError, RunbookError), match=r"not connected|abort"):
                write_bytes(disk.path / "a", b"new")
            disk.power_loss()
            seen.append(content(disk.path))
    assert seen == [{"a": b"old"}] * 5


def test_changes_are_counted(disk: Disk) -> None:
    """The number of changing calls bounds a sweep over all of them."""
    assert disk.changes() == 0
    write_bytes(disk.path / "a", b"bytes")
    assert disk.changes() == 5
    (disk.path / "a").read_bytes()
    assert disk.changes() == 5


def survivors(folder: Path, seed: int) -> dict[str, bytes | None]:
    """What a disk of this seed keeps of a rewritten and a renamed file, neither of them fsynced."""
    folder.mkdir()
    with forgetful_mount(folder, seed=seed) as disk:
        put_durably(disk.path / "pages", b"-" * 2048)
        with (disk.path / "pages").open("r+b") as pages:
            pages.write(b"+" * 2048)
        put_durably(disk.path / "name", b"old")
        put(disk.path / "name.tmp", b"new")
        (disk.path / "name.tmp").rename(disk.path / "name")
        disk.power_loss()
        return content(disk.path)


def test_seed_lets_a_part_survive(tmp_path: Path) -> None:
    """With seeds, unsynced sectors and renames survive in part: the same for the same seed."""
    kept = [survivors(tmp_path / str(seed), seed) for seed in range(8)]
    again = survivors(tmp_path / "again", 3)
    assert kept[3] == again
    assert {files["name"] for files in kept} == {b"old", b"new"}
    assert any("name.tmp" in files for files in kept)
    pages = [files["pages"] or b"" for files in kept]
    assert any(b"+" in page and b"-" in page for page in pages)
    sectors = {page[at : at + 512] for page in pages for at in range(0, 2048, 512)}
    assert sectors == {b"+" * 512, b"-" * 512}


@pytest.mark.parametrize("seed", [None, *range(6)])
def test_moved_folder_has_one_name(tmp_path: Path, seed: int | None) -> None:
    """A folder moved between folders is found under one name, old or new, with its content."""
    with forgetful_mount(tmp_path, seed=seed) as disk:
        for name in ("from", "to", "from/folder"):
            (disk.path / name).mkdir()
            fsync_folder((disk.path / name).parent)
        put_durably(disk.path / "from" / "folder" / "a", b"bytes")
        (disk.path / "from" / "folder").rename(disk.path / "to" / "folder")
        (disk.path / "to" / "folder").rename(disk.path / "to" / "last")
        if seed is None:
            fsync_folder(disk.path / "to")
        disk.power_loss()
        found = [*disk.path.glob("*/*")]
        assert len(found) == 1
        assert content(found[0]) == {"a": b"bytes"}


def test_exclusive_creation_hard_links_and_unlinked_files(disk: Disk) -> None:
    """The calls that a durable writer relies on behave as on a local disk."""
    path = disk.path / "a"
    put(path, b"bytes")
    with pytest.raises(FileExistsError):
        put(path, b"other")
    os.link(path, disk.path / "b")
    assert path.stat().st_nlink == 2
    with path.open("r+b") as held:
        path.unlink()
        (disk.path / "b").unlink()
        held.write(b"BY")
        held.flush()
        held.truncate(3)
        assert os.fstat(held.fileno()).st_nlink == 0
        held.seek(0)
        assert held.read() == b"BYt"
    with pytest.raises(PermissionError):
        (disk.path / "link").symlink_to("a")
    assert os.statvfs(disk.path).f_bavail > 0


def test_folders_are_listed_moved_and_removed(disk: Disk) -> None:
    """A folder of many entries is listed whole, moves with its content, and goes only empty."""
    folder = disk.path / "folder"
    folder.mkdir()
    names = {f"{number:04}-{'x' * 100}" for number in range(300)}
    for name in names:
        (folder / name).touch()
    folder.rename(disk.path / "moved")
    assert set(content(disk.path / "moved")) == names
    with pytest.raises(OSError, match="not empty"):
        (disk.path / "moved").rmdir()
    for path in (disk.path / "moved").iterdir():
        path.unlink()
    (disk.path / "moved").rmdir()
    assert content(disk.path) == {}


def test_flock_excludes(disk: Disk) -> None:
    """A second holder of a lock is refused until the first lets go."""
    with (disk.path / "lock").open("w") as first, (disk.path / "lock").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_disk_fails_and_is_mended(disk: Disk) -> None:
    """A failing disk gives its error to every change; what was durable is still read."""
    put_durably(disk.path / "a", b"bytes")
    disk.fail(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        put(disk.path / "b", b"bytes")
    assert (disk.path / "a").read_bytes() == b"bytes"
    disk.fail(0)
    put(disk.path / "b", b"bytes")
    assert (disk.path / "b").read_bytes() == b"bytes"


def test_disk_hangs_and_wakes(disk: Disk) -> None:
    """A call on a hanging disk waits, can be killed, and goes on once the disk wakes."""
    disk.hang()
    command = [sys.executable, "-c", "import os, sys; os.mkdir(sys.argv[1])", str(disk.path / "a")]
    with subprocess.Popen(command) as killed:
        with pytest.raises(subprocess.TimeoutExpired):
            killed.wait(1)
        killed.kill()
        assert killed.wait(5) == -9
    waker = threading.Timer(0.5, disk.wake)
    waker.start()
    (disk.path / "b").mkdir()
    waker.join()
    assert (disk.path / "b").is_dir()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """After use, also by a test that raised, nothing is mounted and an open file has failed."""
    with suppress(LookupError), forgetful_mount(tmp_path) as disk:
        held = (disk.path / "a").open("w")
        raise LookupError
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    with pytest.raises(OSError, match="not connected"):
        held.close()
    assert content(disk.path) == {}


def test_an_owner_that_was_killed_leaves_no_mount(tmp_path: Path) -> None:
    """The disk goes when the process that mounted it is gone."""
    require_fuse()
    code = (
        "import os, pathlib, sys; from chaos.forgetful import forgetful_mount\n"
        "with forgetful_mount(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    owner = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parents[1], check=False
    )
    assert owner.returncode == -9
    for _ in range(100):
        if str(tmp_path) not in Path("/proc/mounts").read_text():
            return
        threading.Event().wait(0.1)
    pytest.fail("still mounted after 10 s")
