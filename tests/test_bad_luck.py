"""Bad input and bad luck through the command line: a clear message, its exit code, nothing lost."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_session import call
from test_kill_phases import write_runbook

from runbook import events as ev
from runbook.journal import facts, read_entries
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Nine levels of nine: four hundred million values."""


def _tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _bomb(path: Path) -> None:
    path.write_text(BOMB)


@pytest.mark.parametrize(
    ("file", "harm", "told"),
    [
        ("held_out.jsonl", _empty, "held_out.jsonl: no items"),
        ("held_out.jsonl", _tear, "not a held-out item"),
        ("few_shot.yaml", _bomb, "the alias *a is not allowed"),
        ("few_shot.yaml", _empty, "few_shot.yaml"),
        ("runbook.yaml", _bomb, "runbook.yaml:"),
        ("runbook.yaml", _empty, "runbook.yaml"),
        ("pilot.yaml", _tear, "pilot.yaml:"),
        ("model/model.safetensors", Path.unlink, "the model folder has no weights"),
        ("model/model.safetensors", _empty, "the model folder has no weights"),
        ("model/config.json", Path.unlink, "the model folder has no config.json"),
    ],
)
def test_a_bad_file_ends_with_two_and_its_name(
    tmp_path: Path, capfd: Capture, file: str, harm: Callable[[Path], None], told: str
) -> None:
    """Empty, torn or hostile, a file is named with what is wrong and the fix: exit 2."""
    book = write_runbook(tmp_path)
    harm(tmp_path / file)
    ended = call(capfd, "run", book, "--workspace", tmp_path / "workspace")
    assert ended.code == 2, ended.err
    assert told in ended.err
    assert "fix: " in ended.err.lower()
    assert "Traceback" not in ended.err


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not mount or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def committed(root: Path) -> dict[str, str]:
    known = facts(read_entries(Workspace.at(root)))
    batches = [fact for fact in known if isinstance(fact, ev.BatchCommitted)]
    return {f"{b.step}/{b.attempt}/{b.key}": b.sha256 for b in batches}


@pytest.mark.parametrize("room", [20_000, 200_000, 300_000])
def test_a_full_disk_ends_with_three_and_loses_nothing(
    tmp_path: Path, small_volume: Path, capfd: Capture, room: int
) -> None:
    """What was committed stays; with room again, the same command ends as if it never was."""
    book = write_runbook(tmp_path)
    calm, root = tmp_path / "calm", small_volume / "workspace"
    assert call(capfd, "run", book, "--workspace", calm).code == 0
    root.mkdir()
    ballast = small_volume / "ballast"
    free = shutil.disk_usage(small_volume).free
    ballast.write_bytes(b"\0" * (free - room))

    full = call(capfd, "run", book, "--workspace", root)

    assert full.code == 3, full.err
    assert "no space left" in full.err
    assert "free space and run the same command" in full.err
    before = committed(root)
    assert before or room < 200_000
    ballast.unlink()
    again = call(capfd, "run", book, "--workspace", root)
    assert again.code == 0, again.err
    assert before.items() <= committed(root).items()
    data = "data/stage1_sft_data.jsonl"
    assert (root / data).read_bytes() == (calm / data).read_bytes()
    assert json.loads((root / "data" / "qc_summary.json").read_text())["verdict"] == "pass"
