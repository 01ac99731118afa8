"""A session that nobody watches: launched, shown, stopped, resumed, its pod stopped at the end."""

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from cli_session import Called, call, write_runbook

from runbook import events as ev
from runbook.clock import SYSTEM, Clock
from runbook.control import STOP_REQUESTED, Pulse, request_stop
from runbook.journal import facts, read_entries, read_journal
from runbook.ledger import Ledger
from runbook.meter_decision import ABANDONED
from runbook.meter_folder import MeterRecords
from runbook.meter_record import MeterRecord
from runbook.metering import Metering
from runbook.supervision import Halt, Supervisor
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]
SLOW: dict[str, Any] = {"metrics": {"score": 0.9}, "batches": 8, "sleep": 0.5}


class Scene:
    """A small runbook and its workspace."""

    def __init__(self, folder: Path, capfd: Capture) -> None:
        self.folder = folder
        self.place = Workspace.at(folder / "ws")
        self._capfd = capfd

    def write(self, params: dict[str, Any], **head: Any) -> Path:
        self.spec = write_runbook(self.folder, params)
        document = json.loads(self.spec.read_text())
        document.update(head)
        self.spec.write_text(json.dumps(document))
        return self.spec

    def call(self, *arguments: str | Path) -> Called:
        verb, *rest = arguments
        return call(self._capfd, str(verb), *rest, "--workspace", self.place.root)

    def launch(self) -> dict[str, Any]:
        told = self.call("launch", self.spec)
        assert told.code == 0, told.err
        (record,) = told.lines
        return record

    def facts(self, kind: type[ev.Event]) -> list[Any]:
        return [f for f in facts(read_entries(self.place)) if isinstance(f, kind)]

    def has_more_than(self, number: int, kind: type[ev.Event]) -> bool:
        return len(self.facts(kind)) > number

    def meter(self) -> MeterRecord:
        """What the newest meter shows of itself, once it does."""
        until(MeterRecords.of(self.place.root).newest)
        record = MeterRecords.of(self.place.root).newest()
        assert record is not None
        return record

    def has_ended(self) -> bool:
        return read_journal(self.place).holder is None


@pytest.fixture
def scene(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("RUNBOOK_STATE_DIR", str(tmp_path / "state"))
    made = Scene(tmp_path, capfd)
    yield made
    holder = read_journal(made.place).holder
    if holder and holder.pid != os.getpid():
        holder.end(1.0)


def until(true: Callable[[], object], limit_s: float = 30.0) -> None:
    limit = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)


def note_to(path: Path, *more: str) -> list[str]:
    """A command that adds a line to a file, with what else it is to print."""
    code = f"open({str(path)!r}, 'a').write('x'); print({' '.join(more)!r})"
    return [sys.executable, "-c", code]


def test_launch_detaches_and_tells_how_to_go_on(scene: Scene) -> None:
    """The record names a process of its own session that holds the workspace, and the commands."""
    scene.write(SLOW)

    record = scene.launch()

    assert record["run_id"] == scene.facts(ev.SessionStarted)[0].run_id
    assert os.getsid(record["pid"]) == record["pid"] != os.getsid(0)
    holder = read_journal(scene.place).holder
    assert holder is not None
    assert holder.pid == record["pid"]
    assert Path(record["log"]).is_file()
    assert record["stop"] == f"runbook stop --workspace {scene.place.root}"
    os.kill(record["pid"], signal.SIGHUP)
    until(lambda: len(scene.facts(ev.BatchCommitted)) > 2)
    assert scene.facts(ev.SessionStopped) == []
    assert scene.call("stop").code == 0
    until(scene.has_ended)


def test_a_terminal_that_closes_pauses_the_session(scene: Scene) -> None:
    """A foreground run commits its batch and ends with 75, though it can tell nobody any more."""
    scene.write(SLOW)
    command = ["-m", "runbook", "run", str(scene.spec), "--workspace", str(scene.place.root)]
    pid, terminal = pty.fork()
    if pid == 0:
        # Whoever tests under nohup has it ignored, and so would the session.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, *command])
    until(lambda: scene.facts(ev.BatchCommitted))

    os.close(terminal)

    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 75
    (stop,) = scene.facts(ev.SessionStopped)
    assert (stop.reason, stop.detail) == ("paused", "SIGHUP; the same command goes on")


def test_launch_may_be_told_to_answer_a_program(scene: Scene) -> None:
    """With --json its answer is the same one, and an error is told on stdout too."""
    scene.write({**SLOW, "batches": 1, "sleep": 0})

    told = scene.call("launch", scene.spec, "--json")
    until(scene.has_ended)
    wrong = scene.call("launch", scene.folder / "none.yaml", "--json")

    assert (told.code, told.lines[0]["run_id"]) == (0, scene.facts(ev.SessionStarted)[0].run_id)
    assert (wrong.code, wrong.lines[0]["exit_code"]) == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        (["--takeover", "--spec"], "it needs a word before --spec", "--takeover=yes"),
        (["--takeover=maybe"], "'maybe' is no kind of takeover", "no, yes, if-owner-gone"),
    ],
)
def test_a_takeover_is_asked_for_by_its_word(
    scene: Scene, arguments: list[str], what: str, fix: str
) -> None:
    """An option is never taken for one, and a wrong word is told before anything is looked at."""
    told = scene.call("resume", *arguments)

    assert told.code == 2
    assert f"--takeover: {what}\n  fix: " in told.err
    assert fix in told.err


def test_launch_of_a_held_workspace_is_refused(scene: Scene) -> None:
    """The second launch ends with the executor's own exit code, 7, and its words."""
    scene.write(SLOW)
    scene.launch()

    again = scene.call("launch", scene.spec)

    assert again.code == 7
    assert "holds the workspace" in again.err
    scene.call("stop")
    until(scene.has_ended)


def test_a_launch_that_cannot_start_says_why(scene: Scene) -> None:
    """A wrong runbook is exit 2, and nothing is left running."""
    scene.write(SLOW, budget={"wall_clock": "soon"})

    told = scene.call("launch", scene.spec)

    assert told.code == 2
    assert "is not a duration" in told.err


def test_a_failed_launch_shows_its_own_words_alone(scene: Scene) -> None:
    """The log is appended to: an earlier session's words are no reason; each launch is dated."""
    scene.write({**SLOW, "batches": 1, "sleep": 0})
    scene.launch()
    until(scene.has_ended)
    log = scene.place.log("session")
    log.write_text(f"{log.read_text()}an earlier session's last words\n")
    scene.spec.write_text(scene.spec.read_text().replace('"seed": 7', '"seed": 8'))

    again = scene.call("launch", scene.spec)

    assert again.code == 2
    assert again.err.startswith("the executor ended at its start:\nerror: ")
    assert "seed" in again.err
    assert "last words" not in again.err
    dated = re.findall(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: launched$", log.read_text(), re.MULTILINE
    )
    assert len(dated) == 2


def test_a_lost_child_is_told_when_it_happens(scene: Scene) -> None:
    """A line on stderr as the child is replaced; the status counts it, in JSON as a list."""
    scene.write({"metrics": {"score": 0.9}, "trouble": {"kind": "kill", "at": 1, "times": 1}})

    ran = scene.call("run", scene.spec)
    (facts,) = scene.call("status", "--json").lines

    cause = "SIGKILL: killed from outside, or the machine ran out of memory"
    assert ran.code == 0
    assert f"warning: a: its child is lost: {cause}\n" in ran.err
    assert f"  a: 1 loss ({cause})\n" in ran.err
    assert [step["losses"] for step in facts["steps"]] == [[cause], [], []]


def test_a_done_session_on_a_read_only_mount_is_still_done(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is run again, so nothing is written either."""
    scene.write({"metrics": {"score": 0.9}})
    assert scene.call("run", scene.spec).code == 0
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)

    again = scene.call("run", scene.spec)

    assert again.code == 0, again.err
    assert again.err.startswith("This session was done before: nothing is run again.")


def test_resume_of_a_moved_runbook_names_the_option(scene: Scene) -> None:
    """The journal knows the old place alone; --spec gives the new one, and it goes on."""
    scene.write({"metrics": {"score": 0.9}, "trouble": {"kind": "pause", "at": 1}})
    assert scene.call("run", scene.spec).code == 75
    moved = scene.folder / "moved"
    moved.mkdir()
    for path in (scene.spec, scene.folder / "a.yaml"):
        path.rename(moved / path.name)

    refused = scene.call("resume")

    assert refused.code == 2
    assert str(scene.spec) in refused.err
    assert "fix: if it was moved, name its new place with --spec PATH" in refused.err
    assert scene.call("resume", "--spec", moved / scene.spec.name).code == 0


def test_a_workspace_that_is_a_file_is_refused(scene: Scene) -> None:
    """Launch says what stands in the workspace's place, and starts nothing."""
    scene.write(SLOW)
    scene.place.root.write_text("x")

    told = scene.call("launch", scene.spec)

    assert told.code == 2
    assert "cannot be made" in told.err
    scene.place.root.unlink()


def test_a_stopped_session_waits_for_a_persons_resume(scene: Scene) -> None:
    """Stop ends after the batch with 3; run is refused; resume goes on and makes nothing twice."""
    scene.write(SLOW)
    scene.launch()
    until(lambda: scene.facts(ev.BatchCommitted))

    asked = scene.call("stop", "--reason", "lunch")
    until(scene.has_ended)
    refused = scene.call("run", scene.spec)
    made = [f.key for f in scene.facts(ev.BatchCommitted)]
    went_on = scene.call("resume")

    assert asked.code == 0
    stop = scene.facts(ev.SessionStopped)[0]
    assert (stop.reason, stop.exit_code) == ("stop requested", 3)
    assert "lunch" in stop.detail
    assert refused.code == 3
    assert "runbook resume" in refused.err
    assert went_on.code == 0
    keys = [f.key for f in scene.facts(ev.BatchCommitted) if f.step == "a"]
    assert keys[: len(made)] == made
    assert len(keys) == len(set(keys)) == 8


def test_a_stop_with_no_executor_at_work_is_put_on_record(scene: Scene) -> None:
    """A killed session that a relauncher would resume stays stopped until a person resumes."""
    scene.write(SLOW)
    record = scene.launch()
    until(lambda: scene.facts(ev.BatchCommitted))
    os.killpg(record["pid"], signal.SIGKILL)
    until(lambda: not psutil.pid_exists(record["pid"]) or dead(record["pid"]))

    assert "(its executor is gone); the same command goes on" in scene.call("status").err
    asked = scene.call("stop", "--reason", "enough")

    assert "is on record" in asked.err
    assert "a person asked for it: enough" in scene.place.report.read_text("utf-8")
    assert scene.call("run", scene.spec).code == 3
    assert scene.call("resume").code == 0


PAUSED: dict[str, Any] = {
    "metrics": {"score": 0.9},
    "batches": 4,
    "trouble": {"kind": "pause", "at": 1},
}


@pytest.mark.parametrize("person", [[], ["--takeover", "yes"]])
def test_a_relaunchers_resume_is_no_persons(scene: Scene, person: list[str]) -> None:
    """With if-owner-gone, as the pod's template asks, a session that was stopped stays stopped."""
    scene.write(PAUSED)
    assert scene.call("run", scene.spec).code == 75
    assert "is on record" in scene.call("stop", "--reason", "enough").err
    before = scene.place.segment(1).read_bytes()

    told = scene.call("resume", "--takeover", "if-owner-gone")

    assert told.code == 3
    assert "enough" in told.err
    assert scene.place.segment(1).read_bytes() == before
    assert len(scene.facts(ev.BatchCommitted)) == 1
    assert scene.call("resume", *person).code == 0


@pytest.mark.parametrize("relaunch", ["run", "resume"])
def test_a_stop_that_no_executor_saw_is_put_on_record(scene: Scene, relaunch: str) -> None:
    """A relaunch ends with 3 before it makes anything; a person's resume withdraws the wish."""
    scene.write(PAUSED)
    again: dict[str, tuple[str | Path, ...]] = {
        "run": ("run", scene.spec),
        "resume": ("resume", "--takeover", "if-owner-gone"),
    }
    assert scene.call("run", scene.spec).code == 75
    made = len(scene.facts(ev.BatchCommitted))
    request_stop(scene.place, "enough", SYSTEM)

    codes = [scene.call(*again[relaunch]).code for _ in range(2)]

    assert codes == [3, 3]
    stop = scene.facts(ev.SessionStopped)[-1]
    assert (stop.reason, stop.exit_code) == ("stop requested", 3)
    assert "enough" in stop.detail
    assert len(scene.facts(ev.BatchCommitted)) == made
    assert scene.call("resume").code == 0
    assert not scene.place.stop_request.exists()


def test_a_pending_stop_comes_before_a_signal(scene: Scene) -> None:
    """A pod that is preempted while a stop is pending ends with 3, and no relaunch goes on."""
    scene.write(SLOW)
    record = scene.launch()
    until(lambda: scene.facts(ev.BatchCommitted))

    request_stop(scene.place, "enough", SYSTEM)
    os.kill(record["pid"], signal.SIGTERM)

    _, status = os.waitpid(record["pid"], 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert [(f.reason, f.exit_code) for f in scene.facts(ev.SessionStopped)] == [
        ("stop requested", 3)
    ]
    assert scene.call("run", scene.spec).code == 3


def test_after_a_signal_the_wish_is_looked_up_at_once(tmp_path: Path) -> None:
    """A stop asked for since the last look, half a second ago at most, is not missed."""
    place = Workspace.at(tmp_path / "ws")
    place.create()
    sent: list[str] = []
    clock = Clock(monotonic=lambda: 0.0)
    metering = Mock(spec=Metering, **{"limit_reached.return_value": ""})
    supervisor = Supervisor(
        clock, lambda: "".join(sent), Pulse(place, clock), Mock(spec=Ledger), metering, Mock()
    )
    supervisor.check()
    request_stop(place, "enough", SYSTEM)
    supervisor.check()
    sent.append("SIGTERM")

    with pytest.raises(Halt, match="enough") as halt:
        supervisor.check()

    assert (halt.value.reason, halt.value.exit_code) == (STOP_REQUESTED, 3)


TURNS = 3
"""Other work may make a machine slow once; what waits for its child is slow each time."""
SLOW_TO_LEAVE = """
import atexit, time
from runbook.testing import fake_phase
atexit.register(time.sleep, 60)
def run(request):
    {fail}
    return fake_phase(request)
"""


@pytest.mark.parametrize("fail", ["", "time.sleep(2.2); raise ValueError('late')"])
def test_a_signal_ends_the_session_in_time_whatever_its_child_does(scene: Scene, fail: str) -> None:
    """A commit, or an error, late in the grace and a child slow to leave: still under 4 s."""
    (scene.folder / "slow_to_leave.py").write_text(SLOW_TO_LEAVE.format(fail=fail))
    scene.write({**SLOW, "sleep": 2.2})
    document = json.loads(scene.spec.read_text())
    document["phases"][0]["steps"][0]["function"] = "slow_to_leave:run"
    scene.spec.write_text(json.dumps(document))
    took = math.inf
    for _ in range(TURNS):
        kind, known = ev.StepStarted if fail else ev.BatchCommitted, len(scene.facts(ev.Event))
        seen = len(scene.facts(kind))
        record = scene.launch()
        until(partial(scene.has_more_than, seen, kind))

        begin = time.monotonic()
        os.kill(record["pid"], signal.SIGTERM)
        _, status = os.waitpid(record["pid"], 0)
        took = min(took, time.monotonic() - begin)

        assert os.waitstatus_to_exitcode(status) == 75
        since = scene.facts(ev.Event)[known:]
        if fail:
            assert any("late" in f.error for f in since if isinstance(f, ev.StepFailed))
        else:
            assert sum(isinstance(f, ev.BatchCommitted) for f in since) == 2
        if took < 4.0:
            break

    assert took < 4.0


def dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_status_shows_progress_heartbeat_and_spend(scene: Scene) -> None:
    """One screen tells the step, how far it is, what is spent of the limits, and that it lives."""
    scene.write(SLOW, budget={"wall_clock": "90m", "usd": 5, "usd_per_hour": 2})
    scene.launch()
    until(lambda: len(scene.facts(ev.BatchCommitted)) >= 2)
    until(scene.place.heartbeat.exists)

    told = scene.call("status")
    as_json = scene.call("status", "--json").lines[0]

    assert "At a, attempt 1" in told.err
    assert "1 h 30 min wall clock" in told.err
    assert "of $5.00" in told.err
    assert "heartbeat of process" in told.err
    assert "is at work" in told.err
    assert as_json["heartbeat"]["pid"] > 0
    assert as_json["limits"]["usd"] == 5.0
    scene.call("stop")
    until(scene.has_ended)


def test_watch_ends_with_the_sessions_own_code(scene: Scene) -> None:
    """Watch goes on until the session ends, and exits as it did."""
    scene.write({**SLOW, "batches": 2})
    scene.launch()

    told = scene.call("watch", "--every", "0.2")

    assert told.code == 0
    assert "all done" in told.err


def test_logs_follow_a_step_and_are_harmless(scene: Scene) -> None:
    """The end of a log comes on stdout, without what a terminal would obey."""
    scene.write({"metrics": {"score": 0.9}})
    scene.call("run", scene.spec)
    scene.place.log("a").write_bytes(b"one\n\x1b]0;evil\x07two\n")

    told = scene.call("logs", "--step", "a")
    missing = scene.call("logs", "--step", "../../etc/passwd")

    assert told.out.startswith("one\n")
    assert "\x1b" not in told.out
    assert missing.code == 2
    assert "no log of '../../etc/passwd'\n  fix: give one of these to --step: a\n" in missing.err


class TestPod:
    """The pod is stopped when the session is over for good, and its state is told as it is."""

    def test_done_stops_it_and_the_report_says_what_was_seen(self, scene: Scene) -> None:
        """The declared command runs once; the report tells when, and the last state."""
        mark = scene.folder / "stopped"
        pod = {"stop": note_to(mark), "state": note_to(scene.folder / "asked", "EXITED")}
        scene.write({"metrics": {"score": 0.9}}, pod=pod)

        assert scene.call("run", scene.spec).code == 0

        assert mark.read_text() == "x"
        (stopped,) = scene.facts(ev.PodStopRequested)
        assert (stopped.rc, stopped.state) == (0, "EXITED")
        report = scene.place.report.read_text()
        assert "stop requested at" in report
        assert "last state EXITED" in report

    def test_a_pause_leaves_it_running(self, scene: Scene) -> None:
        """After exit 75 a relaunch follows, so the pod runs on until it counts as abandoned."""
        mark = scene.folder / "stopped"
        trouble = {"kind": "pause", "at": 1}
        pod = {"stop": note_to(mark), "abandoned_after": "6s"}
        scene.write({"metrics": {"score": 0.9}, "trouble": trouble}, pod=pod)

        assert scene.call("run", scene.spec).code == 75

        assert not mark.exists()
        assert scene.meter().is_running
        until(mark.exists)
        stop = scene.meter().stop
        assert stop is not None
        assert stop.why == ABANDONED

    def test_a_relaunch_after_a_pause_keeps_it(self, scene: Scene) -> None:
        """The next executor on the machine ends the watch, and the pod is stopped by it alone."""
        mark = scene.folder / "stopped"
        trouble = {"kind": "pause", "at": 1}
        pod = {"stop": note_to(mark), "abandoned_after": "60s"}
        scene.write({"metrics": {"score": 0.9}, "trouble": trouble}, pod=pod)
        assert scene.call("run", scene.spec).code == 75
        watching = scene.meter()

        assert scene.call("run", scene.spec).code == 0

        assert not watching.is_running
        assert mark.read_text() == "x"

    def test_a_pause_with_no_pod_to_stop_leaves_no_meter(self, scene: Scene) -> None:
        """Where nothing can be stopped nothing watches on."""
        trouble = {"kind": "pause", "at": 1}
        scene.write({"metrics": {"score": 0.9}, "trouble": trouble})

        assert scene.call("run", scene.spec).code == 75

        until(lambda: not scene.meter().is_running)
        assert "paused" in (scene.meter().left or "")

    def test_an_executor_killed_is_not_the_end_of_the_limit(self, scene: Scene) -> None:
        """Killed with SIGKILL and left alone, the pod is stopped when it counts as abandoned."""
        mark = scene.folder / "stopped"
        scene.write(SLOW, pod={"stop": note_to(mark), "abandoned_after": "1s"})
        record = scene.launch()
        until(lambda: scene.facts(ev.BatchCommitted))

        os.killpg(record["pid"], signal.SIGKILL)

        until(mark.exists)

    def test_the_end_of_the_rental_stops_session_and_pod(self, scene: Scene) -> None:
        """A second before the machine is taken away it is asked to end; exit 4."""
        mark = scene.folder / "stopped"
        soon = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
        pod = {"stop": note_to(mark), "rental_ends": soon}
        scene.write({**SLOW, "batches": 99}, pod=pod)

        told = scene.call("run", scene.spec)

        assert told.code == 4, told.err
        assert "the meter asked for it: the rental ends" in told.err
        assert "rented until later" in told.err
        assert mark.exists()

    def test_a_session_begins_under_no_rental_that_has_ended(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Exit 2 before there is a journal; one that was begun in time is gone on with as ever."""
        trouble = {"kind": "pause", "at": 1}
        params = {"metrics": {"score": 0.9}, "trouble": trouble}
        scene.write(params, pod={"rental_ends": "${RENTAL_END}"})
        monkeypatch.setenv("RENTAL_END", "2001-01-01T00:00:00Z")

        refused = scene.call("run", scene.spec)
        begun = read_journal(scene.place).entries
        monkeypatch.setenv("RENTAL_END", "2999-01-01T00:00:00Z")
        paused = scene.call("run", scene.spec)
        monkeypatch.setenv("RENTAL_END", "2001-01-01T00:00:00Z")
        scene.call("run", scene.spec)

        assert (refused.code, begun, paused.code) == (2, (), 75)
        assert "it ended at 2001-01-01 00:00:00 UTC" in refused.err
        assert len(scene.facts(ev.SessionResumed)) == 1

    def test_another_machine_may_say_verified(self, scene: Scene) -> None:
        """Status --verify-pod believes the declared command alone, and no answer is not 'gone'."""
        state = scene.folder / "pod_state"
        command = [sys.executable, "-c", f"print(open({str(state)!r}).read())"]
        scene.write({"metrics": {"score": 0.9}}, pod={"state": command})
        scene.call("run", scene.spec)
        told = {}
        for word in ("EXITED", "RUNNING", ""):
            state.write_text(word)
            told[word] = scene.call("status", "--verify-pod")

        assert [told[w].code for w in ("EXITED", "RUNNING", "")] == [0, 1, 1]
        assert "verified: it is stopped" in told["EXITED"].err
        assert "NOT verified" in told["RUNNING"].err
        assert "NOT verified" in told[""].err


class TestLostChildren:
    """A child that hangs, stalls or dies is found, ended, counted, and its step goes on."""

    def test_a_hung_child_is_found_by_its_heartbeat(self, scene: Scene) -> None:
        """A child that was stopped is killed after the declared silence, and the step goes on."""
        scene.write(SLOW, watchdog={"heartbeat": "3s", "stall": "60s"})
        record = scene.launch()
        until(lambda: scene.facts(ev.BatchCommitted))
        (worker,) = workers(record["pid"])

        worker.suspend()

        until(lambda: scene.facts(ev.StepInterrupted))
        assert "hung: no heartbeat for 3 s" in scene.facts(ev.StepInterrupted)[0].cause
        until(scene.has_ended)
        assert scene.facts(ev.SessionDone)
        assert not worker.is_running()

    def test_a_child_without_progress_is_given_up(self, scene: Scene) -> None:
        """It beats but makes nothing: killed after the declared time, and counted."""
        slow = {"metrics": {"score": 0.9}, "batches": 1, "sleep": 120}
        scene.write(slow, watchdog={"heartbeat": "60s", "stall": "1s"})

        told = scene.call("run", scene.spec)

        assert told.code == 1
        causes = [f.cause for f in scene.facts(ev.StepInterrupted)]
        assert len(causes) == 6
        assert all("stalled: no progress for 1 s" in cause for cause in causes)

    def test_no_orphan_survives_the_next_start(self, scene: Scene) -> None:
        """The executor killed alone, its child dies with it, or at the next start at the latest."""
        scene.write(SLOW)
        record = scene.launch()
        until(lambda: scene.facts(ev.BatchCommitted))
        (worker,) = workers(record["pid"])

        os.kill(record["pid"], signal.SIGKILL)
        scene.call("resume")

        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def workers(executor: int) -> list[psutil.Process]:
    children = psutil.Process(executor).children()
    return [c for c in children if "runbook.worker" in " ".join(c.cmdline())]


class TestTakeover:
    """One writer: the superseded executor stops at its next line, whatever woke it."""

    def test_a_stopped_executor_is_ended_by_a_takeover_here(self, scene: Scene) -> None:
        """On the same machine a takeover ends the old process, then goes on."""
        scene.write(SLOW)
        record = scene.launch()
        until(lambda: scene.facts(ev.BatchCommitted))
        os.kill(record["pid"], signal.SIGSTOP)

        assert scene.call("resume").code == 7
        assert scene.call("resume", "--takeover", "if-owner-gone").code == 7
        taken = scene.call("resume", "--takeover", "yes")

        assert taken.code == 0, taken.err
        assert dead(record["pid"])
        assert "taken over" in read_journal(scene.place).epochs[-1].why
        keys = [f.key for f in scene.facts(ev.BatchCommitted) if f.step == "a"]
        assert len(keys) == len(set(keys)) == 8

    def test_another_machines_owner_is_not_taken_over_by_itself(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Exit 7 for an owner elsewhere; its pod's state, or a person, allows the takeover."""
        state = scene.folder / "pod_state"
        command = [sys.executable, "-c", f"print(open({str(state)!r}).read())"]
        scene.write(SLOW, pod={"state": command})
        record = scene.launch()
        until(lambda: scene.facts(ev.BatchCommitted))
        os.killpg(record["pid"], signal.SIGKILL)
        monkeypatch.setattr("socket.gethostname", lambda: "another-pod")

        alone = scene.call("resume")
        state.write_text("RUNNING")
        alive = scene.call("resume", "--takeover", "if-owner-gone")
        state.write_text("TERMINATED")
        gone = scene.call("resume", "--takeover", "if-owner-gone")

        assert alone.code == 7
        assert "--takeover" in alone.err
        assert alive.code == 7
        assert "may be alive: RUNNING" in alive.err
        assert "declare pod.state" not in alive.err
        assert gone.code == 0, gone.err
        assert "TERMINATED" in read_journal(scene.place).epochs[-1].why


def test_a_launched_session_survives_the_shell_that_launched_it(scene: Scene) -> None:
    """The terminal's hangup reaches the shell's process group, and not the executor."""
    scene.write({**SLOW, "batches": 4})
    command = [sys.executable, "-m", "runbook", "launch", str(scene.spec), "--workspace"]
    shell = subprocess.Popen(
        [*command, str(scene.place.root)], stdout=subprocess.PIPE, start_new_session=True
    )
    out, _ = shell.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGHUP)

    until(scene.has_ended)

    assert json.loads(out)["pid"] != shell.pid
    assert scene.facts(ev.SessionDone)
