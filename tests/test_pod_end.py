"""The pod's end: it is stopped whatever fails before it, once, and by the machine it belongs to."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runbook import durable, executor
from runbook import events as ev
from runbook.budget import spent
from runbook.contract import Criterion, Gate, Json, Judgement
from runbook.errors import LockedError, NeedsPersonError
from runbook.executor import Seams, run_session
from runbook.journal import facts, read_entries
from runbook.journal_writer import Journal
from runbook.meter_decision import DEADLINE
from runbook.meter_folder import MeterRecords
from runbook.meter_record import MeterRecord, write_record
from runbook.plan import Plan
from runbook.projection import Projector
from runbook.testing import make_plan, make_step, simple_gates
from runbook.workspace import Workspace

ROOT = Path(__file__).parents[1]
GATE = Gate((Criterion("m", "rate", at_least=0.5),))
PAUSING = {"trouble": {"kind": "pause", "at": 1}}
FAILING = {"trouble": {"kind": "raise", "at": 1, "times": 9}}


class Scene:
    """A workspace, and a pod whose stops are counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = Workspace.at(folder / "ws")
        self._calls = folder / "calls"

    def plan(self, params: dict[str, Json] | None = None, **fields: Any) -> Plan:
        """One step; its pod is stopped unless another one is declared."""
        stop = ["/bin/sh", "-c", 'echo x >> "$0"', str(self._calls)]
        pod = {"stop": stop, "state": None, "rental_ends": None, "abandoned_after_s": 60.0}
        step = make_step("a", gate=GATE, params={"metrics": {"m": 0.9}, **(params or {})})
        return make_plan(step, **{"pod": pod, **fields})

    def run(self, plan: Plan, **seams: Any) -> int:
        given = {"gates": simple_gates, "reviewer": lambda _: None, **seams}
        return run_session(plan, self.workspace, Seams(**given))

    @property
    def stops(self) -> int:
        return self._calls.read_text().count("x") if self._calls.exists() else 0

    @property
    def facts(self) -> list[ev.Event]:
        return list(facts(read_entries(self.workspace)))

    @property
    def record(self) -> MeterRecord:
        """The newest meter's, which a new one takes a moment to write."""
        limit = time.monotonic() + 20.0
        while (newest := MeterRecords.of(self.workspace.root).newest()) is None:
            assert time.monotonic() < limit
            time.sleep(0.01)
        return newest

    def change_record(self, **changes: Any) -> None:
        path = max(self.folder.glob("state/*.meter.json"))
        write_record(path, replace(self.record, **changes), durable=False)

    def clear(self) -> None:
        for path in self.folder.glob("state/*.meter.json"):
            with suppress(OSError, ValueError, KeyError):
                os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("RUNBOOK_STATE_DIR", str(tmp_path / "state"))
    made = Scene(tmp_path)
    yield made
    made.clear()


DRIVER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_pod_end import LIMITED, Scene, executor
scene = Scene(Path(sys.argv[1]))
kill = lambda *_: scene.record and os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_in_a_run(scene: Scene, run: str) -> None:
    """Have a process of its own run code in which it dies of ``kill``."""
    command = [sys.executable, "-c", DRIVER + run, str(scene.folder), str(Path(__file__).parent)]
    assert subprocess.call(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) == -signal.SIGKILL


def full(*_: object) -> None:
    raise NeedsPersonError("no space is left", fix="make room")


def test_a_report_without_room_does_not_keep_the_pod(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop whose report cannot be written ends with its own code, and the pod is stopped."""
    monkeypatch.setattr(Projector, "session", full)

    assert scene.run(scene.plan(FAILING)) == 1

    assert scene.stops == 1
    assert isinstance(scene.facts[-1], ev.PodStopRequested)


def test_a_journal_without_room_does_not_keep_the_pod(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no line can be added any more the error is told, and the pod is stopped."""

    def no_room(_: int, __: bytes, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def gates(*_: object) -> Judgement:
        monkeypatch.setattr(durable, "write_all", no_room)
        return simple_gates(GATE, (), True)

    with pytest.raises(NeedsPersonError, match="no space left"):
        scene.run(scene.plan(), gates=gates)

    monkeypatch.undo()
    monkeypatch.setenv("RUNBOOK_STATE_DIR", str(scene.folder / "state"))
    assert scene.stops == 1
    assert not any(isinstance(fact, ev.SessionStopped) for fact in scene.facts)


def test_a_done_sessions_report_without_room_does_not_keep_the_pod(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done and no stop follows; the error is told, and the next run writes the report."""
    with monkeypatch.context() as patch:
        patch.setattr(Projector, "session", full)
        with pytest.raises(NeedsPersonError, match="no space"):
            scene.run(scene.plan())

    assert scene.stops == 1
    kinds = [type(fact) for fact in scene.facts[-2:]]
    assert kinds == [ev.SessionDone, ev.PodStopRequested]
    assert scene.run(scene.plan()) == 0
    assert scene.workspace.report.is_file()
    assert scene.stops == 1


@pytest.fixture
def killed(scene: Scene) -> Scene:
    """A session that was killed after its last line, before its pod was stopped."""
    kill_in_a_run(scene, "executor.Session._end_meter = kill; scene.run(scene.plan())")
    assert scene.stops == 0
    return scene


def test_a_stop_that_a_kill_left_undone_is_made_up_for(killed: Scene) -> None:
    """The same command stops the pod, says so on record, and does it once."""
    for _ in range(2):
        assert killed.run(killed.plan()) == 0
        assert killed.stops == 1

    asked = [fact for fact in killed.facts if isinstance(fact, ev.PodStopRequested)]
    assert [fact.rc for fact in asked] == [0]
    assert "stop requested at" in killed.workspace.report.read_text()


def test_a_stop_is_made_up_for_where_the_report_fails(
    killed: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report's error is told after the pod was stopped."""
    killed.workspace.report.unlink()
    monkeypatch.setattr(Projector, "session", full)

    with pytest.raises(NeedsPersonError, match="no space"):
        killed.run(killed.plan())

    assert killed.stops == 1


@pytest.mark.parametrize(
    "changes", [{"boot_id": "another"}, {"run_id": "another"}, {"left": "SIGTERM"}]
)
def test_another_machines_run_of_a_done_session_stops_nothing(
    killed: Scene, changes: dict[str, str]
) -> None:
    """Neither a machine started anew or a stranger is stopped, nor one whose meter was ended."""
    killed.clear()
    killed.change_record(**changes)
    before = killed.facts

    assert killed.run(killed.plan()) == 0

    assert (killed.stops, killed.facts) == (0, before)


def test_a_machine_without_a_record_is_not_stopped(
    killed: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a word of a meter nobody knows that the work was done here."""
    monkeypatch.setenv("RUNBOOK_STATE_DIR", str(tmp_path / "elsewhere"))

    assert killed.run(killed.plan()) == 0

    assert killed.stops == 0
    assert not (tmp_path / "elsewhere").exists()


def test_a_superseded_executor_stops_no_pod(scene: Scene) -> None:
    """The pod may be the next one's: its own meter watches on, and no other is started."""

    def taken_over(*_: object) -> Judgement:
        Journal(scene.workspace)
        return simple_gates(GATE, (), True)

    with pytest.raises(LockedError):
        scene.run(scene.plan(), gates=taken_over)

    assert scene.stops == 0
    assert scene.record.is_running
    assert len(list(scene.folder.glob("state/*.meter.json"))) == 1


# Former meters


@pytest.mark.parametrize("limits", [{}, {"wall_clock_s": 600.0}])
def test_a_former_meter_ends_whatever_the_next_session_wants(
    scene: Scene, limits: dict[str, float]
) -> None:
    """It ends before anything else is prepared, also where no new one is wanted."""
    assert scene.run(scene.plan(PAUSING)) == 75
    former = scene.record
    assert former.is_running
    seen: list[bool] = []

    def prepare(session: executor.Session) -> None:
        wanted = session.metering._wanted
        seen.append(not former.is_running and (session.metering._meter is not None) is wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor.Session, "_prepare", prepare)
        assert scene.run(scene.plan(PAUSING, pod={}, budget=limits)) == 0

    assert seen == [True]
    assert scene.stops == 0


LEAN = """
import sys
from unittest.mock import Mock
from pathlib import Path
from runbook.metering import Metering
from runbook.workspace import Workspace
limits = Mock(any=False)
metering = Metering(Mock(pod={}), Workspace.at(Path(sys.argv[1])), Mock(limits=limits), Mock())
metering.take_over("r1")
print(metering._former is not None, {"psutil", "runbook.meter"} & set(sys.modules) or "lean")
"""


def test_a_start_with_no_meter_to_end_imports_little(scene: Scene) -> None:
    """A record of a meter that ended is read without what only a living one needs."""
    path = MeterRecords.of(scene.workspace.root).claim()
    write_record(path, MeterRecord(1, 1, "boot", "r1", None, None, None), durable=False)

    told = subprocess.check_output(
        [sys.executable, "-c", LEAN, str(scene.workspace.root)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )

    assert told.split() == ["True", "lean"]


# Time of an executor that hung


def hang(scene: Scene) -> None:
    """An executor that died at work, which its meter had asked to end at a limit."""
    kill_in_a_run(scene, "scene.run(scene.plan(pod={}, budget=LIMITED), on_progress=kill)")
    scene.clear()
    scene.change_record(limit=DEADLINE)


LIMITED = {"wall_clock_s": 1000.0}


def test_the_time_of_a_hung_executor_is_charged(scene: Scene) -> None:
    """All that the limit left is spent before the session goes on, and then nothing is leased."""
    hang(scene)

    assert scene.run(scene.plan(pod={}, budget=LIMITED)) == 4

    known = scene.facts
    resumed = next(n for n, fact in enumerate(known) if isinstance(fact, ev.SessionResumed))
    assert isinstance(known[resumed - 1], ev.TimeLeased)
    assert spent(known[: resumed + 1]).seconds == pytest.approx(1000.0)


def test_a_raised_limit_leaves_what_it_was_raised_by(scene: Scene) -> None:
    """The charge is of the limit that held when it hung, once."""
    hang(scene)
    raised = {"wall_clock_s": 2000.0}

    assert scene.run(scene.plan(pod={}, budget=raised)) == 0

    assert spent(scene.facts).seconds == pytest.approx(1000.0, abs=60.0)


@pytest.mark.parametrize(
    "changes", [{"executor_start": 1}, {"boot_id": "another"}, {"run_id": "x"}, {"limit": ""}]
)
def test_only_a_record_of_the_executor_itself_charges(
    scene: Scene, changes: dict[str, Any]
) -> None:
    """Of another executor, boot or session, or of no limit, a record says nothing."""
    hang(scene)
    scene.change_record(**changes)

    assert scene.run(scene.plan(pod={}, budget=LIMITED)) == 0

    assert spent(scene.facts).seconds == pytest.approx(300.0, abs=60.0)
