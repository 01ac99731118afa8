"""A session that nobody watches: launched, shown, stopped, resumed, its pod stopped at the end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_session import Called, call, write_runbook

from runbook import events as ev
from runbook.journal import facts, read_entries, read_journal
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
    time.sleep(0.2)
    assert scene.call("stop").code == 0
    until(scene.has_ended)


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

    assert "is gone; the same command goes on" in scene.call("status").err
    asked = scene.call("stop", "--reason", "enough")

    assert "is on record" in asked.err
    assert scene.call("run", scene.spec).code == 3
    assert scene.call("resume").code == 0


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
    assert "no such log" in missing.err


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
        """After exit 75 a relaunch follows, so the pod is still needed."""
        mark = scene.folder / "stopped"
        trouble = {"kind": "pause", "at": 1}
        scene.write({"metrics": {"score": 0.9}, "trouble": trouble}, pod={"stop": note_to(mark)})

        assert scene.call("run", scene.spec).code == 75

        assert not mark.exists()

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
