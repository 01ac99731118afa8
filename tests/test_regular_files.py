"""A pipe in a file's place is told of, whatever command meets it, and never waited for."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_session import write_runbook

from runbook import regular_files


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Neither reading nor appending waits for somebody at the other end."""
    path = tmp_path / "it"
    make(path)

    with pytest.raises(OSError, match=r"no regular file|[Dd]irectory"):
        regular_files.read(path)
    with pytest.raises(OSError, match=r"no regular file|[Dd]irectory|No such device"):
        regular_files.open_to_append(path)


def test_what_is_appended_stands_behind_what_was_there(tmp_path: Path) -> None:
    """A new file is made, and an old one kept."""
    path = tmp_path / "log"
    for line in (b"a\n", b"b\n"):
        with regular_files.open_to_append(path) as file:
            file.write(line)

    assert regular_files.read(path) == b"a\nb\n"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A runbook and the workspace of its finished session."""
    folder = tmp_path_factory.mktemp("done")
    spec = write_runbook(folder, {"metrics": {"score": 0.9}})
    subprocess.run(
        [sys.executable, "-m", "runbook", "run", spec, "--workspace", folder / "ws"],
        check=True,
        capture_output=True,
    )
    return spec, folder / "ws"


@pytest.mark.parametrize(
    "name",
    [
        ".runbook/HEAD",
        ".runbook/journal.jsonl",
        ".runbook/heartbeat.json",
        "artifacts/a_*/dataset.jsonl",
        "artifacts/a_*/manifest.json",
        "artifacts/a_*/COMPLETE.json",
        "artifacts/a_*/gate.json",
        "report.md",
        "logs/a.log",
    ],
)
@pytest.mark.parametrize("verb", ["verify", "status", "run", "logs"])
def test_no_command_waits_for_a_pipe(
    done: tuple[Path, Path], tmp_path: Path, name: str, verb: str
) -> None:
    """A pipe in the place of any file of a finished workspace: an answer, and no traceback."""
    spec, finished = done
    shutil.copytree(finished, tmp_path / "ws")
    (tmp_path / "ws" / "logs" / "a.log").touch()
    (path,) = (tmp_path / "ws").glob(name)
    path.unlink()
    os.mkfifo(path)
    arguments = [str(spec)] if verb == "run" else []

    told = subprocess.run(
        [sys.executable, "-m", "runbook", verb, *arguments, "--workspace", tmp_path / "ws"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert "Traceback" not in told.stderr
    if verb == "verify" and not name.startswith(("logs", ".runbook/heartbeat")):
        assert told.returncode in {2, 3}
        assert Path(name).name in told.stderr


def test_no_launch_waits_for_a_pipe(tmp_path: Path) -> None:
    """A pipe in the place of the session's log is a configuration error that names it."""
    spec = write_runbook(tmp_path, {"metrics": {"score": 0.9}})
    (tmp_path / "ws" / "logs").mkdir(parents=True)
    os.mkfifo(tmp_path / "ws" / "logs" / "session.log")

    told = subprocess.run(
        [sys.executable, "-m", "runbook", "launch", spec, "--workspace", tmp_path / "ws"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert told.returncode == 2
    assert "session.log" in told.stderr
    assert "Traceback" not in told.stderr
