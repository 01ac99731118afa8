"""Volumes that are too small, and volumes that go away. Mounting needs root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_tmpfs(folder: Path, size: str = "64k") -> Iterator[Path]:
    """An empty volume of ``size`` below ``folder``, gone at the end.

    A write that no longer fits is short; the next one fails with ENOSPC. Skips the test where
    this machine cannot mount.
    """
    path = folder / "small"
    path.mkdir()
    with _mounted(path, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield path


def grow(path: Path, size: str) -> None:
    """Give a small volume more room; what it holds stays."""
    subprocess.run(["mount", "-o", f"remount,size={size}", path], check=True)


class VanishingVolume:
    """A volume that a test takes away and brings back with what it held."""

    def __init__(self, path: Path, backing: Path) -> None:
        self.path = path
        """Where it is mounted; an empty folder of another device while it is away."""
        self._backing = backing

    def vanish(self) -> None:
        """Unmount it lazily: paths no longer lead to it, open files go on as before."""
        subprocess.run(["umount", "-l", self.path], check=True)

    def come_back(self) -> None:
        subprocess.run(["mount", "--bind", self._backing, self.path], check=True)


@contextmanager
def vanishing_volume(folder: Path) -> Iterator[VanishingVolume]:
    """A volume of a device of its own below ``folder``, gone at the end.

    Skips the test where this machine cannot mount.
    """
    path, backing = folder / "volume", folder / "backing"
    path.mkdir()
    backing.mkdir()
    # The second mount keeps the content while the first is away.
    with (
        _mounted(backing, "-t", "tmpfs", "-o", "size=64m", "tmpfs"),
        _mounted(path, "--bind", str(backing)),
    ):
        yield VanishingVolume(path, backing)


@contextmanager
def _mounted(path: Path, *options: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if shutil.which("mount") is None:
        pytest.skip("mount is not installed")
    tried = subprocess.run(
        ["mount", *options, path], capture_output=True, text=True, check=False, timeout=60
    )
    if tried.returncode:
        pytest.skip(f"this machine cannot mount: {tried.stderr.strip()}")
    try:
        yield
    finally:
        while os.path.ismount(path):  # a test may have mounted it again
            subprocess.run(["umount", "-l", path], check=True)
