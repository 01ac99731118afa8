"""Taking over: the one that was superseded learns of it, whatever it was doing."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runbook import artifacts, durable
from runbook import events as ev
from runbook.errors import LockedError, NeedsPersonError
from runbook.executor import Seams, run_session
from runbook.journal import facts, read_entries
from runbook.process import end_orphans
from runbook.takeover import open_journal
from runbook.testing import make_plan, make_step, simple_gates
from runbook.workspace import Workspace

ROOT = Path(__file__).parents[1]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path / "ws")
    made.create()
    return made


SUCCESSOR = """
import sys
from pathlib import Path
from runbook import artifacts
from runbook.journal_writer import Journal
from runbook.workspace import Workspace
workspace = Workspace.at(Path(sys.argv[1]))
with Journal(workspace):
    artifacts.settle(workspace.root)
    artifacts.write_text(workspace.report, "the newest")
"""


def succeed(workspace: Workspace) -> None:
    """Another process claims the workspace, clears it up and writes its report."""
    subprocess.run([sys.executable, "-c", SUCCESSOR, workspace.root], check=True, cwd=ROOT)


def test_a_file_cleared_away_by_the_next_one_ends_with_seven(workspace: Workspace) -> None:
    """The next executor deletes half-written files; the cause is told, not the symptom."""

    def superseded() -> None:
        with open_journal(workspace):
            succeed(workspace)
            raise FileNotFoundError

    with pytest.raises(LockedError, match="taken the workspace over"):
        superseded()


@pytest.mark.parametrize("call", ["create", "write", "fsync", "rename"])
def test_a_file_of_one_that_slept_does_not_replace_the_next_ones(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Superseded before whichever call, its report never stands where the newer one does."""

    def take_over(name: str, _: Path, data: durable.Data) -> durable.Data:
        if name == call:
            monkeypatch.setattr(durable, "fault", None)
            succeed(workspace)
        return data

    def superseded() -> None:
        with open_journal(workspace):
            monkeypatch.setattr(durable, "fault", take_over)
            artifacts.write_text(workspace.report, "stale")

    with pytest.raises(LockedError, match="taken the workspace over"):
        superseded()
    assert workspace.report.read_text() == "the newest"
    assert artifacts.settle(workspace.root) == ()


def test_a_child_does_not_work_on_beside_that_of_the_next_executor(workspace: Workspace) -> None:
    """Superseded in the middle of a long batch, an executor ends its child within the second."""
    took_over: list[float] = []

    def take_over() -> None:
        limit = time.monotonic() + 30.0
        while not any(isinstance(f, ev.StepStarted) for f in facts(read_entries(workspace))):
            assert time.monotonic() < limit
            time.sleep(0.02)
        succeed(workspace)
        took_over.append(time.monotonic())

    plan = make_plan(make_step("data", params={"batches": 1, "sleep": 15.0}))
    rival = threading.Thread(target=take_over)
    rival.start()
    with pytest.raises(LockedError, match="taken the workspace over"):
        run_session(plan, workspace, Seams(simple_gates, lambda _: None))
    rival.join()

    assert time.monotonic() - took_over[0] < 10.0
    assert end_orphans(workspace.root) == 0


def test_a_missing_file_of_its_own_is_no_takeover(workspace: Workspace) -> None:
    """An error that no other executor caused passes as it is."""
    with pytest.raises(FileNotFoundError), open_journal(workspace):
        raise FileNotFoundError


def test_nothing_is_made_where_the_workspace_is_gone(workspace: Workspace) -> None:
    """While the workspace is held, a vanished one is not begun anew on what lies beneath."""
    held = pytest.raises(NeedsPersonError, match="gone from its volume")
    with open_journal(workspace), held:
        workspace.root.rename(workspace.root.with_name("away"))
        artifacts.write_text(workspace.root / "data" / "a", "x")

    assert not workspace.root.exists()


def test_a_workspace_that_is_let_go_may_be_made_anew(workspace: Workspace) -> None:
    """The hold ends with the executor."""
    with open_journal(workspace):
        pass
    workspace.root.rename(workspace.root.with_name("away"))

    durable.make_directory(workspace.root)

    assert workspace.root.is_dir()
