"""A mounted disk that forgets, when the power is cut, whatever was not fsynced.

``platter.py`` says what counts as fsynced. Cutting the power kills the process that serves the
mount: every open file and every path on it then fails with ENOTCONN or ECONNABORTED. A writer that
should not notice the power coming back has to be ended before ``power_on``.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Not imported from the server: that needs pyfuse3, which may be missing.
_CANNOT_MOUNT = 3
_TESTS = Path(__file__).parents[1]


class Disk:
    """A disk and its power switch."""

    def __init__(self, folder: Path, seed: int | None) -> None:
        self.path = folder / "volume"
        """Where it is mounted."""
        self._platter = folder / "platter"
        self._log = folder / "forgetful.log"
        self._seed = seed
        self._boots = 0
        self._server: subprocess.Popen[str] | None = None
        self.path.mkdir()
        self._platter.mkdir()

    def power_on(self, *, off_at: int | None = None) -> None:
        """Mount what is durable; with ``off_at``, cut the power before the N-th changing call.

        Changing calls are create, mkdir, link, rename, unlink, rmdir, write, truncate, changes of
        mode or time, and both kinds of fsync. Skips the test where this machine cannot mount.
        """
        self._boots += 1
        command = [sys.executable, "-m", "chaos.forgetful_fs", str(self.path), str(self._platter)]
        if self._seed is not None:
            command += ["--seed", f"{self._seed}-{self._boots}"]
        if off_at is not None:
            command += ["--off-at", str(off_at)]
        with self._log.open("w") as log:
            # A session of its own, so that an interrupt at the terminal reaches the test only.
            self._server = subprocess.Popen(
                command,
                cwd=_TESTS,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        if self._reply() != "mounted":
            self._fail_to_mount()

    def _fail_to_mount(self) -> None:
        server = self._server
        assert server is not None
        code = server.wait()
        self.power_off()
        if code == _CANNOT_MOUNT:
            pytest.skip(f"FUSE cannot mount here: {self._log.read_text().strip()}")
        raise RuntimeError(f"the forgetful file system ended with {code}: {self._log.read_text()}")

    def power_off(self) -> None:
        """Drop whatever was not durable; until ``power_on`` every path below ``path`` fails."""
        server, self._server = self._server, None
        if server is not None:
            server.kill()
            server.communicate()

    def power_loss(self, *, off_at: int | None = None) -> None:
        """Cut the power and mount anew what is left; ``off_at`` is that of ``power_on``."""
        self.power_off()
        self._unmount()
        self.power_on(off_at=off_at)

    def changes(self) -> int:
        """How many changing calls have arrived since the power was last switched on."""
        return int(self._order("changes"))

    def cut_before(self, nth: int) -> None:
        """Cut the power before the N-th changing call from now on."""
        self._order(f"off {nth}")

    def fail(self, error: int) -> None:
        """Let every changing call fail with this errno from now on; 0 mends the disk."""
        self._order(f"fail {error}")

    def hang(self) -> None:
        """Answer nothing until ``wake``. A caller can still be killed."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        self.power_off()
        self._unmount()

    def _unmount(self) -> None:
        subprocess.run(["fusermount3", "-uzq", str(self.path)], check=False)

    def _signal(self, number: signal.Signals) -> None:
        assert self._server is not None, "the power is off"
        self._server.send_signal(number)

    def _order(self, line: str) -> str:
        assert self._server is not None, "the power is off"
        assert self._server.stdin is not None
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()
        return self._reply()

    def _reply(self) -> str:
        assert self._server is not None
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


@contextmanager
def forgetful_mount(
    folder: Path, *, seed: int | None = None, off_at: int | None = None
) -> Iterator[Disk]:
    """An empty forgetful disk below ``folder``, gone at the end.

    Without a seed a power cut loses everything that was not fsynced; with one it loses a part
    that the seed and the order of calls decide. Skips the test by name where FUSE is missing.
    """
    require_fuse()
    disk = Disk(folder, seed)
    try:
        disk.power_on(off_at=off_at)
        yield disk
    finally:
        disk.close()


def require_fuse() -> None:
    """Skip the test, by name, where FUSE is missing."""
    if importlib.util.find_spec("pyfuse3") is None:
        pytest.skip("pyfuse3 is not installed: pip install 'runbook[chaos]'")
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed: install the package fuse3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened")
