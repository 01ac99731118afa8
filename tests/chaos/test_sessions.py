"""Whole sessions on volumes that fill up, fail, hang or vanish: a named stop, then the same end."""

import errno
import os
import random
import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from chaos.session import (
    TESTS,
    calm_result,
    cause,
    command,
    difference,
    ends,
    fork,
    go,
    keep_figure,
    run_command,
    small_plan,
    spread_over,
)
from chaos.strace_faults import count_calls, fail, hang, run_under_strace
from chaos.volumes import grow, small_tmpfs, vanishing_volume
from runbook import durable
from runbook.crash_session import Result, crash_plan, requests_cut_short, run_forked
from runbook.durable import Data
from runbook.faults import FAIL, Fault
from runbook.testing import simple_gates
from runbook.workspace import Workspace

FAILED = "the volume failed: Input/output error"
BATCH = "artifacts/work/data/attempt_1/0001.jsonl"


@pytest.fixture
def calm(tmp_path: Path) -> Result:
    return calm_result(tmp_path)


def gone_on(place: Workspace, calm: Result, log: Path) -> str:
    """Resume; how the end differs from the undisturbed one."""
    unsettled = requests_cut_short(place)
    if code := ends(place.root, log):
        return f"the resume ended with {code}: {log.read_text()[-500:]}"
    return difference(place, calm, unsettled=unsettled)


@pytest.mark.parametrize("kib", range(64, 320, 16))
def test_a_full_disk_stops_with_three_and_goes_on_with_room(
    tmp_path: Path, calm: Result, kib: int
) -> None:
    """Wherever the volume fills up, the stop says so, and with room the end is the same."""
    log = tmp_path / "log"
    with small_tmpfs(tmp_path, f"{kib}k") as volume:
        place = Workspace.at(volume / "w")
        code = ends(place.root, log)
        assert code == 3 or (code == 0 and kib > 140), log.read_text()
        if code:
            assert "no space left" in cause(place, log.read_text())
        assert "Traceback" not in log.read_text()
        grow(volume, "16m")
        assert gone_on(place, calm, log) == ""


class Failing:
    """EIO at the n-th durable call of a process; it notes the calls of that path from then on."""

    def __init__(self, at: int, notes: Path) -> None:
        self._at = at
        self._notes = notes
        self._calls = 0
        self._failed: Path | None = None

    def __call__(self, call: str, path: Path, data: Data) -> Data:
        self._calls += 1
        if self._failed == path and call in {"write", "fsync"}:
            self._note(f"again: {call}")
        if self._calls == self._at:
            self._failed = path
            self._note(f"{call} {path.name}")
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return data

    def _note(self, text: str) -> None:
        with self._notes.open("a") as notes:
            notes.write(f"{text}\n")


def fail_at(folder: Path, calm: Result, points: Sequence[tuple[str, int]]) -> list[str]:
    return [_fail_at(folder, calm, who, at) for who, at in points]


def _fail_at(folder: Path, calm: Result, who: str, at: int) -> str:
    """EIO at one durable call, and then the resume; what went wrong."""
    place, log = Workspace.at(folder / f"{who}{at}"), folder / f"{who}{at}.log"
    notes = folder / f"{who}{at}.notes"
    notes.touch()

    def act() -> int:
        if who == "executor":
            durable.fault = Failing(at, notes)
            return go(place.root)
        return go(place.root, crash_plan(Fault(at, FAIL, once=str(notes) + "1").environment()))

    code = fork(act, log).wait()
    failed, *again = notes.read_text().splitlines() or [f"a call of the {who}"]
    name = f"{who}'s call {at}, {failed}"
    if "Traceback" in log.read_text() or code not in {0, 3}:
        return f"{name}: {code}: {log.read_text()[-700:]}"
    if code and FAILED not in cause(place, log.read_text()):
        return f"{name}: no cause in {cause(place, log.read_text())}"
    if "journal" in failed and again:
        return f"{name}: {again}"
    wrong = gone_on(place, calm, log)
    return f"{name}: {wrong}" if wrong else ""


def test_one_failed_call_stops_by_name_and_is_not_repeated(tmp_path: Path, calm: Result) -> None:
    """EIO at any third durable call: exit 3 with the cause, no second try on that descriptor."""
    counts = {who: tmp_path / f"calls of {who}" for who in ("executor", "child")}
    faults = {who: Fault(0, count_to=str(path)) for who, path in counts.items()}
    run_forked(tmp_path / "count", simple_gates, own=faults["executor"], childs=faults["child"])
    points = [
        (who, at)
        for who, path in counts.items()
        for at in range(1, len(path.read_text().splitlines()) + 1, 3)
    ]
    assert len(points) > 90

    told = [each for each in spread_over(points, partial(fail_at, tmp_path, calm)) if each]

    assert told == []
    keep_figure("EIO at a durable call", points=len(points))


@pytest.mark.parametrize(
    ("call", "path", "nth"),
    [
        ("fsync", ".runbook/journal.jsonl", 1),
        ("fsync", ".runbook/journal.jsonl", 9),
        ("write", ".runbook/journal.jsonl", 1),
        ("write", ".runbook/journal.jsonl", 20),
        ("rename", "", 1),
        ("rename", "", 8),
        ("fsync", ".runbook", 5),
        ("fsync", str(Path(BATCH).parent), 1),
    ],
)
def test_a_failing_system_call_stops_by_name(
    tmp_path: Path, calm: Result, call: str, path: str, nth: int
) -> None:
    """EIO from the kernel itself is told as the volume's failure, and the same command goes on."""
    place, log = Workspace.at(tmp_path / "w"), tmp_path / "log"
    trace = tmp_path / "trace"

    ended = run_under_strace(
        command(place.root),
        inject=[fail(call, "EIO", nth)],
        # strace knows a rename by its source alone, whose name is random.
        paths=[place.root / path] if path else [],
        timeout=60,
        cwd=TESTS,
        log=trace,
    )

    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    assert FAILED in cause(place, ended.stderr)
    tried = [line for line in trace.read_text().splitlines() if re.search(rf"\b{call}\(", line)]
    if path.endswith(".jsonl"):
        assert len(tried) == nth, "the failed call was the last one on that descriptor"
    assert gone_on(place, calm, log) == ""


def test_a_hanging_fsync_only_delays(tmp_path: Path, calm: Result) -> None:
    """An fsync that takes three seconds costs three seconds."""
    place = Workspace.at(tmp_path / "w")
    begun = time.monotonic()

    ended = run_under_strace(
        command(place.root),
        inject=[hang("fsync", 3, 12)],
        paths=[place.segment(1)],
        timeout=60,
        cwd=TESTS,
    )

    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - begun >= 3
    assert difference(place, calm) == ""


def test_strace_sees_the_journals_fsyncs(tmp_path: Path) -> None:
    """The path filter of the injections is not blind: an undisturbed session has many."""
    place = Workspace.at(tmp_path / "w")
    counted = count_calls(
        command(place.root),
        calls=["fsync", "write"],
        paths=[place.segment(1)],
        timeout=60,
        cwd=TESTS,
    )
    assert counted["fsync"] == counted["write"] > 20
    assert run_command(place.root).returncode == 0


def vanish_after(folder: Path, calm: Result, delay: float) -> None:
    with vanishing_volume(folder) as volume:
        place, log = Workspace.at(volume.path / "w"), folder / "log"
        # Slow enough not to be done before it vanishes.
        process = fork(lambda: go(place.root, small_plan(0.4)), log)
        time.sleep(delay)
        volume.vanish()
        begun = time.monotonic()

        code = process.wait(timeout=20)

        assert time.monotonic() - begun < 10
        assert [str(p) for p in volume.path.rglob("*")] == []
        volume.come_back()
        assert code == 3, process.said
        assert "Traceback" not in process.said
        assert re.search("volume failed|is gone", cause(place, process.said))
        assert gone_on(place, calm, log) == ""


@pytest.mark.parametrize("seed", range(12))
def test_a_vanished_volume_stops_by_name_and_takes_nothing_elsewhere(
    tmp_path: Path, calm: Result, seed: int
) -> None:
    """Unmounted under a session, nothing lands on the bare folder; back again, it goes on."""
    vanish_after(tmp_path, calm, random.Random(seed).uniform(0.05, 1.0))
