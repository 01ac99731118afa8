"""Each injected fault reaches exactly the call it names."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from chaos.strace_faults import (
    KILLED,
    count_calls,
    fail,
    hang,
    kill,
    run_under_strace,
    shorten,
)

WRITER = """
import os, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
other = os.open(sys.argv[1] + ".other", os.O_WRONLY | os.O_CREAT)
for line in range(5):
    os.write(other, b"other")
    os.write(1, b"%d " % os.write(log, b"%d\\n" % line))
    os.fsync(log)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def writer(log: Path) -> list[str | Path]:
    """A command that writes and fsyncs five lines, each after a write elsewhere."""
    return [sys.executable, "-c", WRITER, log]


def test_kill_at_the_nth_write(log: Path) -> None:
    """The writer dies in the third write to the path: two lines are there."""
    ended = run_under_strace(writer(log), paths=[log], inject=[kill("write", 3)], timeout=60)
    assert ended.returncode == KILLED
    assert log.read_bytes() == b"0\n1\n"
    assert log.with_name("log.other").read_bytes() == b"other" * 3


def test_full_disk_at_the_nth_write(log: Path) -> None:
    """The third write to the path finds no space, and the writer says so."""
    faults = [fail("write", "ENOSPC", 3)]
    ended = run_under_strace(writer(log), paths=[log], inject=faults, timeout=60)
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr
    assert log.read_bytes() == b"0\n1\n"


def test_failing_fsync(log: Path) -> None:
    """The second fsync of the path fails after the second line was written."""
    faults = [fail("fsync", "EIO", 2, ever_after=True)]
    ended = run_under_strace(writer(log), paths=[log], inject=faults, timeout=60)
    assert "Input/output error" in ended.stderr
    assert log.read_bytes() == b"0\n1\n"


def test_hang_delays_the_call(log: Path) -> None:
    """A hang of two seconds loses nothing and lasts two seconds."""
    begun = time.monotonic()
    ended = run_under_strace(writer(log), paths=[log], inject=[hang("write", 2, 3)], timeout=60)
    assert time.monotonic() - begun >= 2
    assert ended.returncode == 0
    assert log.read_bytes() == b"0\n1\n2\n3\n4\n"


def test_short_write(log: Path) -> None:
    """The call claims the size it was told and writes nothing."""
    ended = run_under_strace(writer(log), paths=[log], inject=[shorten("write", 1, 3)], timeout=60)
    assert ended.stdout.split() == ["2", "2", "1", "2", "2"]
    assert log.read_bytes() == b"0\n1\n3\n4\n"


def test_calls_are_counted_by_path(log: Path) -> None:
    """Only calls that touch the path are counted; without paths, all of them."""
    counted = count_calls(writer(log), paths=[log], calls=["write", "fsync"], timeout=60)
    assert counted == {"write": 5, "fsync": 5}
    everywhere = count_calls(writer(log), calls=["write", "fsync"], timeout=60)
    assert everywhere == {"write": 15, "fsync": 5}


def test_counting_refuses_a_command_that_fails(log: Path) -> None:
    """A count of a broken run would bound a sweep too low."""
    with pytest.raises(subprocess.CalledProcessError):
        count_calls(["false"], paths=[log], calls=["write"], timeout=60)


def test_timeout_leaves_no_process(tmp_path: Path) -> None:
    """A command that hangs is ended with its children, also those in sessions of their own."""
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid}')\n"
        "os.fsync(1)"
    )
    command: list[str | Path] = [sys.executable, "-c", code, pids]
    with pytest.raises(subprocess.TimeoutExpired):
        run_under_strace(command, inject=[hang("fsync", 600, 1)], timeout=5)
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in started if psutil.pid_exists(pid)], timeout=10
    )
    assert alive == []
