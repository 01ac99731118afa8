"""Sessions on a disk that forgets, at a power cut, whatever was not fsynced."""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from chaos.forgetful import Disk, forgetful_mount
from chaos.session import (
    JOBS,
    acknowledgements,
    calm_result,
    difference,
    ends,
    keep_figure,
    lost_lines,
    spread_over,
)
from runbook import journal_lines
from runbook.crash_session import (
    Result,
    committed_batches,
    made_twice,
    requests_cut_short,
)
from runbook.errors import CorruptError, RunbookError
from runbook.testing import generations
from runbook.verify import verify
from runbook.workspace import Workspace

SEEDS = (1, 2, 3)
"""Of disks that keep a part of what was not fsynced: other than nothing, and never in order."""
NO_FSYNC = """
import os
os.fsync = lambda fd: None
"""


@pytest.fixture
def calm(tmp_path: Path) -> Result:
    return calm_result(tmp_path)


def number_of_changes(folder: Path) -> int:
    """How many calls of an undisturbed session change the disk."""
    folder.mkdir()
    with forgetful_mount(folder) as disk:
        assert ends(disk.path / "w", folder / "log") == 0
        return disk.changes()


def cut_at(disk: Disk, calm: Result, notes: Path, at: int, *, keeps_parts: bool = False) -> str:
    """Cut the power before the session's n-th change, and go on; what went wrong, or nothing."""
    place = Workspace.at(disk.path / f"w{at}")
    told, log = notes / f"{at}.acknowledged", notes / f"{at}.log"
    disk.cut_before(at)
    with acknowledgements(told):
        code = ends(place.root, log)
    disk.power_loss()
    try:
        wrong = "" if code in {0, 3} else f"the cut ended with {code}: {log.read_text()[-500:]}"
        wrong = wrong or broken_promise(place, told) or gone_on(place, calm, log)
    except CorruptError as error:
        wrong = "" if keeps_parts and keeps_all_but_the_tail(error, told) else str(error)
    except RunbookError as error:
        wrong = str(error)
    shutil.rmtree(place.root, ignore_errors=True)
    fsync_folder(disk.path)
    return f"change {at}: {wrong}" if wrong else ""


def keeps_all_but_the_tail(error: CorruptError, told: Path) -> bool:
    """Whether the journal was refused behind the last line that was ever reported.

    A disk may keep the end of an unsynced line without its beginning. That is no torn tail, so it
    is refused, and a person has the byte from which on nothing was promised.
    """
    path, _, offset = error.where.rpartition(", byte ")
    lines, _ = journal_lines.parse(Path(path).read_bytes()[: int(offset)])
    acknowledged = set(told.read_text().split()) if told.exists() else set()
    return acknowledged <= {line.sha256 for line in lines}


def broken_promise(place: Workspace, told: Path) -> str:
    """What was reported as done and is not there, or not as it was."""
    if lost := lost_lines(place, told):
        return f"{len(lost)} acknowledged lines of the journal are lost"
    findings = verify(place).findings
    return f"verify finds {findings[0].where}: {findings[0].what}" if findings else ""


def gone_on(place: Workspace, calm: Result, log: Path) -> str:
    """Resume; how the end differs from the undisturbed one."""
    unsettled = requests_cut_short(place)
    committed, made = committed_batches(place), len(generations(place.root))
    if code := ends(place.root, log):
        return f"the resume ended with {code}: {log.read_text()[-300:]}"
    if twice := made_twice(place, made, committed):
        return f"{twice} committed batches were made again"
    return difference(place, calm, unsettled=unsettled)


def fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def sweep(folder: Path, calm: Result, seed: int | None, points: Sequence[int]) -> list[str]:
    """Each point's outcome, one after the other on one disk."""
    if not points:
        return []
    mine = folder / f"{seed}-{points[0]}"
    mine.mkdir()
    with forgetful_mount(mine, seed=seed) as disk:
        return [cut_at(disk, calm, mine, at, keeps_parts=seed is not None) for at in points]


def failures(folder: Path, calm: Result, seed: int | None, points: Sequence[int]) -> list[str]:
    act: Callable[[Sequence[int]], list[str]] = partial(sweep, folder, calm, seed)
    return [told for told in spread_over(points, act) if told]


def test_nothing_acknowledged_is_lost_wherever_the_power_is_cut(
    tmp_path: Path, calm: Result
) -> None:
    """Cut before every second change, the disk holds what was reported; the end is the same."""
    changes = number_of_changes(tmp_path / "count")
    assert changes > 200
    points = range(1, changes + 2, 2)

    assert failures(tmp_path, calm, None, points) == []

    keep_figure("power cut, everything not fsynced lost", points=len(points))


def test_a_few_cuts_lose_nothing(tmp_path: Path, calm: Result) -> None:
    """The same at a dozen points: what the mutation check can afford."""
    changes = number_of_changes(tmp_path / "count")

    with forgetful_mount(tmp_path) as disk:
        for at in range(9, changes, changes // 11):
            assert cut_at(disk, calm, tmp_path, at) == ""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_keeps_parts_of_it_is_no_worse(tmp_path: Path, calm: Result, seed: int) -> None:
    """Sectors and names that reach the disk by themselves, in any order, lose nothing reported."""
    changes = number_of_changes(tmp_path / "count")
    points = range(1 + seed, changes + 2, 12)

    assert failures(tmp_path, calm, seed, points) == []

    keep_figure("power cut, a part kept", seed=seed, points=len(points))


def test_without_fsync_the_promise_is_broken(
    tmp_path: Path, calm: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: with fsync a no-op in executor and child, acknowledged lines are lost."""
    changes = number_of_changes(tmp_path / "count")
    (tmp_path / "sitecustomize.py").write_text(NO_FSYNC)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    points = range(changes // 4, changes, changes // 6)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _fd: None)
        told = failures(tmp_path, calm, None, points)

    assert any("acknowledged lines of the journal are lost" in each for each in told), told
    keep_figure("control without fsync", points=len(points), broken=len(told), jobs=JOBS)
