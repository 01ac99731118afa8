"""Small volumes fill up, vanishing ones vanish, and none is left behind."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from chaos.volumes import small_tmpfs, vanishing_volume


def test_small_volume_gives_a_short_write_and_then_no_space(tmp_path: Path) -> None:
    """Sixteen pages fit: the write beyond is short, and the one after it fails."""
    with small_tmpfs(tmp_path) as path:
        fd = os.open(path / "a", os.O_WRONLY | os.O_CREAT)
        try:
            assert os.write(fd, bytes(60_000)) == 60_000
            assert os.write(fd, bytes(60_000)) == 65_536 - 60_000
            with pytest.raises(OSError, match="No space left") as full:
                os.write(fd, b"x")
        finally:
            os.close(fd)
    assert full.value.errno == errno.ENOSPC


def test_volume_vanishes_and_comes_back(tmp_path: Path) -> None:
    """Its paths lead nowhere while it is away, an open file goes on, and all is back after."""
    with vanishing_volume(tmp_path) as volume, (volume.path / "a").open("wb", 0) as held:
        held.write(b"before ")
        device = volume.path.stat().st_dev
        volume.vanish()
        assert list(volume.path.iterdir()) == []
        assert volume.path.stat().st_dev != device
        held.write(b"while away")
        volume.come_back()
        assert (volume.path / "a").read_bytes() == b"before while away"
        assert volume.path.stat().st_dev == device


@pytest.mark.parametrize("vanished", [False, True])
def test_nothing_stays_mounted(tmp_path: Path, vanished: bool) -> None:
    """Volumes go with a test that raised, with files still open, vanished or not."""
    with (
        suppress(LookupError),
        small_tmpfs(tmp_path) as small,
        vanishing_volume(tmp_path) as volume,
        (small / "a").open("w"),
        (volume.path / "a").open("w"),
    ):
        if vanished:
            volume.vanish()
        raise LookupError
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
