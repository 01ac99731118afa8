"""What status and logs show of a session, and of an executor that is seen from outside."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_session import call, write_runbook

from runbook import events as ev
from runbook.fingerprint import plan_document
from runbook.journal import read_journal
from runbook.takeover import open_journal
from runbook.testing import make_plan, make_step
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]
PROGRESS = {"step": "a", "attempt": 1, "stage": "work", "done": 4, "total": 6, "kept": 4}
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_showing import begin
from runbook.takeover import open_journal
from runbook.workspace import Workspace
with open_journal(Workspace(Path({root!r}))) as journal:
    begin(journal)
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def begin(journal: Any) -> None:
    """Bring a session into step ``a``."""
    plan = make_plan(make_step("a"), name="small")
    known = ("20260101_000000", str(plan.runbook), plan.name, plan.fingerprint, plan.overrides)
    journal.append(ev.SessionStarted(*known, plan_document(plan), {}).to_body())
    journal.append(ev.StepStarted("a", 1, 1, {}, "o", "").to_body())


def beat(place: Workspace, age_s: float, pid: int) -> None:
    wall = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    place.heartbeat.write_text(json.dumps({"pid": pid, "wall": wall, "progress": PROGRESS}))


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path / "ws")
    made.create()
    return made


def test_a_live_executor_is_shown_with_its_progress_and_its_silence(
    place: Workspace, capfd: Capture
) -> None:
    """Progress reads as it does while running, with its age; nothing tells to start a second."""
    with open_journal(place) as journal:
        begin(journal)
        for number in range(4):
            batch = ev.BatchCommitted("a", 1, f"k{number}", "p", "0" * 64, 1)
            journal.append(batch.to_body())
        beat(place, 19, os.getpid())

        told = call(capfd, "status", "--workspace", place.root).err
        (facts,) = call(capfd, "status", "--workspace", place.root, "--json").lines

    head, *lines = told.splitlines()
    assert head == "small: running, but no sign of life for 19 s"
    assert "  progress 19 s ago: work: batch 4/6, kept 4" in lines
    assert f"  heartbeat of process {os.getpid()}: 19 s ago; it may hang" in lines
    assert "the same command" not in told.partition("Spent")[2]
    assert facts["alive"] is True
    assert facts["heartbeat"]["progress"] == PROGRESS
    assert [step["at_pace"] for step in facts["outlook"]["steps"]] == [True]


def test_the_heartbeat_of_an_earlier_executor_is_not_shown(
    place: Workspace, capfd: Capture
) -> None:
    """One that has only just gone on with the session has no sign of life to be old."""
    with open_journal(place) as journal:
        begin(journal)
        beat(place, 3600, os.getpid() + 1)

        told = call(capfd, "status", "--workspace", place.root).err

    assert told.startswith("small: running\n")
    assert "heartbeat" not in told


def test_an_executor_that_was_killed_is_not_at_work(place: Workspace, capfd: Capture) -> None:
    """Text and JSON say that it is gone, and the command goes on without an if."""
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(place.root))
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    beat(place, 3600, int(done.stdout))

    told = call(capfd, "status", "--workspace", place.root).err
    (facts,) = call(capfd, "status", "--workspace", place.root, "--json").lines

    head = "small: not at work (its executor is gone); the same command goes on\n"
    assert told.startswith(head)
    assert "If it was killed" not in told
    assert (facts["outcome"]["state"], facts["alive"]) == ("running", False)


def test_another_machines_executor_may_live_or_not(
    place: Workspace, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell from here: null in JSON, and an if before the command."""
    with open_journal(place) as journal:
        begin(journal)
        monkeypatch.setattr("socket.gethostname", lambda: "another-pod")
        holder = read_journal(place).holder

        told = call(capfd, "status", "--workspace", place.root).err
        (facts,) = call(capfd, "status", "--workspace", place.root, "--json").lines

    assert holder is not None
    assert not holder.is_here
    assert told.startswith("small: running\n")
    assert "If it was killed, the same command goes on:" in told
    assert facts["alive"] is None


def test_a_session_that_ended_between_two_looks_is_not_called_gone(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An executor that is not there any more may have told its end since the first look."""
    from runbook.report import view as views  # noqa: PLC0415 - what is patched

    spec = write_runbook(tmp_path, {"metrics": {"score": 0.9}})
    place = tmp_path / "ws"
    call(capfd, "run", spec, "--workspace", place)
    looks: list[int] = []

    def late(entries: Any) -> views.SessionView:
        looks.append(len(entries))
        return whole(entries[:-1] if len(looks) == 1 else entries)

    whole = views.build_view
    monkeypatch.setattr(views, "build_view", late)

    told = call(capfd, "status", "--workspace", place).err

    assert told.startswith("small: all done (exit 0)\n")
    assert len(looks) == 2


def test_logs_keep_indentation_and_nothing_that_moves_a_cursor(
    place: Workspace, capfd: Capture
) -> None:
    """A traceback reads as it was printed; escapes are spelled out."""
    text = "Traceback:\n    at  line 3\n\tand tab\n\x1b[2Jred\u202e\n"
    place.log("a").write_text(text)

    told = call(capfd, "logs", "--workspace", place.root)

    expected = "Traceback:\n    at  line 3\n\tand tab\n\\x1b[2Jred\\u202e\n"
    assert told.out == expected


@pytest.mark.parametrize("verb", ["status", "logs", "stop", "verify"])
def test_an_empty_workspace_is_no_folder(
    verb: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An unset variable in a script must not mean the folder the script was started in."""
    monkeypatch.chdir(tmp_path)

    flag = call(capfd, verb, "--workspace", "")
    monkeypatch.setenv("RUNBOOK_WORKSPACE", "")
    twin = call(capfd, verb)
    given = call(capfd, "status", "--workspace", "somewhere")

    assert (flag.code, twin.code, given.code) == (2, 2, 0)
    assert "--workspace is empty\n  fix: write . for this folder\n" in flag.err
    assert "RUNBOOK_WORKSPACE is empty" in twin.err
    assert f"{tmp_path / 'somewhere'}: no session yet" in given.err


def test_a_workspace_below_an_unknown_home_is_told_so(capfd: Capture) -> None:
    """A folder whose name begins with a tilde is somebody's home, and nobody may have that name."""
    told = call(capfd, "status", "--workspace", "~nobody-of-this-name/ws")

    assert told.code == 2
    assert "no home folder of '~nobody-of-this-name' is known\n" in told.err
    assert "fix: write the whole path, or ./~nobody-of-this-name/ws " in told.err


def test_no_log_yet_says_what_to_do(capfd: Capture, tmp_path: Path) -> None:
    """A session is begun where there is none, and its status asked where it has no log yet."""
    empty = call(capfd, "logs", "--workspace", tmp_path / "none")
    spec, place = write_runbook(tmp_path, {"metrics": {"score": 0.9}}), tmp_path / "ws"
    assert call(capfd, "run", spec, "--workspace", place).code == 0
    for log in (place / "logs").glob("*.log"):
        log.unlink()
    begun = call(capfd, "logs", "--workspace", place)

    assert (empty.code, begun.code) == (2, 2)
    assert "there is no log yet\n  fix: name the folder of a session with --workspace" in empty.err
    assert "there is no log yet\n  fix: a step's log begins with the step" in begun.err
