"""Parent and child: every way a child can end is an outcome, and none outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from runbook.codec import encode
from runbook.contract import Artifact, Committed, Json
from runbook.errors import PhaseError
from runbook.process import (
    Failed,
    Finished,
    Lost,
    Outcome,
    Patience,
    Paused,
    Worker,
    end_orphans,
    signals,
)
from runbook.worker import Job
from runbook.workspace import Workspace

SOON_S = 30.0
"""Half of what those sleep that must not be waited for."""

USER_STEPS = """
import atexit, os, subprocess, sys, threading, time
from runbook.artifacts import describe
from runbook.contract import Committed, Metric, PhaseResult

def environment(request):
    print("printed", flush=True)
    print("warned", file=sys.stderr)
    return PhaseResult(summary={name: os.environ.get(name) for name in request.params["names"]})

def leave_a_child(request):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    request.channel.progress(child=child.pid)
    time.sleep(60)

def wrong_result(request):
    return {"metrics": []}

def raises(request):
    return 1 / 0

def leaves(request):
    sys.exit(4)

def hangs(request):
    request.channel.progress(stage="hanging")
    time.sleep(60)

def chats(request):
    for i in range(1000):
        request.channel.progress(i=i)
    return PhaseResult()

def odd_number(request):
    return PhaseResult(metrics=(Metric("m", float("nan")),))

def shows_rows(request):
    request.output.mkdir(parents=True)
    (request.output / "rows.jsonl").write_text("{}")
    (request.output / "held.jsonl").write_text("{}")
    (request.output / "out.jsonl").symlink_to("rows.jsonl")
    earlier = request.workspace / "artifacts" / "earlier"
    earlier.mkdir()
    (earlier / "rows.jsonl").write_text("{}")
    (earlier / "mine.jsonl").write_text("{}")
    (request.workspace / "artifacts" / "other.jsonl").write_text("{}")
    base = request.workspace / "artifacts" / "base"
    (base / "folder").mkdir(parents=True)
    (base / "folder" / "rows.jsonl").write_text("{}")
    (base / "loose.jsonl").write_text("{}")
    (request.output / "more").mkdir()
    (request.output / "more" / "rows.jsonl").write_text("{}")
    (request.output / "away").symlink_to("/etc")
    named = "s/rows.jsonl s/rows.jsonl s/held.jsonl s/out.jsonl other.jsonl s/../other.jsonl "
    named += "s/none s/more/rows.jsonl s/away/hostname s/more earlier/rows.jsonl "
    named += "earlier/mine.jsonl none base/folder/rows.jsonl base/loose.jsonl "
    named += "base/folder/../loose.jsonl ../../../etc/hostname s/" + 300 * "x"
    metrics = [Metric(str(i), 1.0, evidence=f"artifacts/{n}") for i, n in enumerate(named.split())]
    held = describe("held", request.output / "held.jsonl", request.workspace)
    mine = describe("mine", earlier / "mine.jsonl", request.workspace)
    return PhaseResult((*metrics, Metric("without", 1.0)), (held, mine))

def commits_a_long_key(request):
    request.channel.commit(Committed("k" * 300_000, "x", "0" * 64, 1))
    return PhaseResult()

def leaves_slowly(request):
    atexit.register(time.sleep, 60)
    return PhaseResult()

def closes_its_pipes(request):
    os.closerange(3, 64)
    time.sleep(60)

def no_json(request):
    return PhaseResult(summary={"x": object()})
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path / "ws")
    made.create()
    (tmp_path / "user_steps.py").write_text(USER_STEPS)
    return made


@pytest.fixture
def worker(workspace: Workspace) -> Iterator[Worker]:
    made = Worker("key", workspace.root, workspace.log("worker"), {"USER_SETTING": "on"})
    made.start()
    yield made
    made.kill()


def job(workspace: Workspace, function: str = "runbook.testing:fake_phase", **params: Any) -> Job:
    work = workspace.work("s", 1)
    work.mkdir(parents=True, exist_ok=True)
    return Job(
        function=function,
        search=str(workspace.root.parent),
        log=str(workspace.log("s")),
        step="s",
        attempt=1,
        look=1,
        seed=7,
        params=params,
        model={},
        engine={},
        workspace=workspace.root,
        work=work,
        output=workspace.artifacts / "s",
        inputs={},
        provenance={},
        committed=(),
    )


def run(worker: Worker, asked: Job, **seams: Any) -> Outcome:
    seams = {"on_commit": lambda _: False, "on_progress": lambda _: None, **seams}
    return worker.run(asked, **seams)


def user(workspace: Workspace, name: str, **params: Any) -> Job:
    return job(workspace, f"user_steps:{name}", **params)


def test_a_step_commits_and_returns_its_result(workspace: Workspace, worker: Worker) -> None:
    """Batches are offered one by one, and the result comes back whole."""
    commits: list[Committed] = []

    outcome = run(worker, job(workspace, batches=3, metrics={"m": 0.5}), on_commit=commits.append)

    assert isinstance(outcome, Finished)
    assert [c.key for c in commits] == ["0000", "0001", "0002"]
    assert outcome.result.metrics[0].value == 0.5
    assert outcome.result.artifacts[0].path == "artifacts/s/dataset.jsonl"


def test_the_child_serves_the_next_job_too(workspace: Workspace, worker: Worker) -> None:
    """One child stays alive from job to job."""
    pids = set()
    for _ in range(2):
        outcome = run(worker, job(workspace, batches=1))
        assert isinstance(outcome, Finished)
        pids.add(outcome.result.summary["pid"])

    assert pids == {worker.pid}


def test_output_and_environment_of_a_step(workspace: Workspace, worker: Worker) -> None:
    """What a user's step prints goes to its log; the declared environment is there."""
    outcome = run(worker, user(workspace, "environment", names=["USER_SETTING"]))

    assert isinstance(outcome, Finished)
    assert outcome.result.summary == {"USER_SETTING": "on"}
    assert workspace.log("s").read_text() == "printed\nwarned\n"


def test_a_pause_ends_the_step_after_its_batch(workspace: Workspace, worker: Worker) -> None:
    """A commit answered with a pause is durable and ends the step."""
    commits: list[Committed] = []

    def pause(batch: Committed) -> bool:
        commits.append(batch)
        return True

    assert run(worker, job(workspace, batches=3), on_commit=pause) == Paused()
    assert len(commits) == 1


@pytest.mark.parametrize(
    ("name", "code"),
    [("ConfigError", 2), ("NeedsPersonError", 3), ("SentinelError", 5), ("PhaseError", 1)],
)
def test_an_error_keeps_its_code_and_remedy(
    workspace: Workspace, worker: Worker, name: str, code: int
) -> None:
    """What, where, fix and code of the child's error reach the parent."""
    outcome = run(worker, job(workspace, trouble={"kind": "raise", "at": 0, "error": name}))

    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.where, outcome.fix) == (code, "s", "tell it not to")
    assert name in outcome.traceback


@pytest.mark.parametrize(
    ("function", "what", "code"),
    [
        ("user_steps:raises", "ZeroDivisionError", 1),
        ("user_steps:leaves", "SystemExit: 4", 1),
        ("user_steps:wrong_result", "returned a dict", 1),
        ("user_steps:no_json", "has no JSON form", 1),
        ("user_steps:missing", "cannot import", 2),
        ("no_such_module:run", "cannot import", 2),
        ("no colon", "cannot import", 2),
    ],
)
def test_a_broken_step_is_an_outcome(
    workspace: Workspace, worker: Worker, function: str, what: str, code: int
) -> None:
    """However a step breaks, the parent learns what and what to do."""
    outcome = run(worker, job(workspace, function))

    assert isinstance(outcome, Failed)
    assert what in outcome.what
    assert outcome.code == code
    assert outcome.fix


def test_a_reading_that_is_no_number_comes_back_as_none(
    workspace: Workspace, worker: Worker
) -> None:
    """NaN from a step reads as not measured."""
    outcome = run(worker, user(workspace, "odd_number"))

    assert isinstance(outcome, Finished)
    assert outcome.result.metrics[0].value is None


def shows_rows(workspace: Workspace) -> Job:
    made = Artifact("folder", "artifacts/base/folder", "0" * 64, 2)
    return replace(user(workspace, "shows_rows"), inputs={"base": {"folder": made}})


def test_the_rows_behind_a_number_are_on_record(workspace: Workspace, worker: Worker) -> None:
    """What a metric names in the step's own folder is hashed with its artifacts, once."""
    outcome = run(worker, shows_rows(workspace))

    assert isinstance(outcome, Finished)
    assert [(a.name, a.path) for a in outcome.result.artifacts] == [
        ("held", "artifacts/s/held.jsonl"),
        ("mine", "artifacts/earlier/mine.jsonl"),
        ("rows.jsonl", "artifacts/s/rows.jsonl"),
        ("more/rows.jsonl", "artifacts/s/more/rows.jsonl"),
    ]


def test_a_number_on_rows_of_elsewhere_has_no_value(workspace: Workspace, worker: Worker) -> None:
    """Evidence is of the step's own folder, or of an artifact of its inputs; no link hides it."""
    outcome = run(worker, shows_rows(workspace))

    assert isinstance(outcome, Finished)
    metrics = outcome.result.metrics
    assert [m.evidence for m in metrics if m.value is not None] == [
        *["artifacts/s/rows.jsonl"] * 2,
        "artifacts/s/held.jsonl",
        "artifacts/s/rows.jsonl",
        # The executor says that it is missing.
        "artifacts/s/none",
        "artifacts/s/more/rows.jsonl",
        "artifacts/base/folder/rows.jsonl",
        "",
    ]
    refused = [m for m in metrics if m.value is None]
    assert {m.evidence for m in refused} == {""}
    assert [m.note.split("'")[1].removeprefix("artifacts/")[:60] for m in refused] == [
        "other.jsonl",
        "s/../other.jsonl",
        "s/away/hostname",
        "s/more",
        "earlier/rows.jsonl",
        "earlier/mine.jsonl",
        "none",
        "base/loose.jsonl",
        "base/folder/../loose.jsonl",
        "../../../etc/hostname",
        "s/" + 58 * "x",
    ]
    assert refused[4].note == (
        "it read 1.0, but 'artifacts/earlier/rows.jsonl', its evidence, is neither a file of the "
        "step's own output folder nor of an artifact of its inputs"
    )


def soon(worker: Worker, act: Callable[[], Outcome]) -> Outcome:
    """The outcome of what must not block; a child that does block it is killed at last."""
    assert worker.pid is not None
    rescue = threading.Timer(SOON_S, os.kill, (worker.pid, signal.SIGKILL))
    rescue.start()
    begin = time.monotonic()
    try:
        outcome = act()
    finally:
        rescue.cancel()
    assert time.monotonic() - begin < SOON_S
    return outcome


def test_a_job_larger_than_the_pipe_arrives_whole(workspace: Workspace, worker: Worker) -> None:
    """What the pipe does not take at once follows while the child is listened to."""
    told: list[bool] = []
    asked = user(workspace, "environment", names=["HOME"], ballast="x" * 3_000_000)

    outcome = soon(worker, lambda: run(worker, asked, meanwhile=lambda: told.append(True)))

    assert isinstance(outcome, Finished)
    assert told == [True]


def test_a_child_that_does_not_read_its_job_is_given_up(
    workspace: Workspace, worker: Worker
) -> None:
    """One that is stopped before it took a large job is found by the watchdog, which ticks on."""
    ticks: list[float] = []
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)

    def watch() -> float:
        ticks.append(time.monotonic())
        return 9.0

    outcome = soon(
        worker,
        lambda: run(
            worker,
            job(workspace, ballast="x" * 3_000_000),
            watch=watch,
            patience=Patience(heartbeat_s=0.5),
        ),
    )

    assert isinstance(outcome, Lost)
    assert "hung: no heartbeat" in outcome.cause
    assert len(ticks) >= 4


def test_a_child_that_does_not_read_an_answer_is_given_up(
    workspace: Workspace, worker: Worker
) -> None:
    """The answer to a commit waits for nobody: a signal's grace ends the child meanwhile."""
    commits: list[float] = []

    def stop_it(_: Committed) -> bool:
        assert worker.pid is not None
        commits.append(time.monotonic())
        os.kill(worker.pid, signal.SIGSTOP)
        return False

    def watch() -> float:
        return commits[0] + 0.3 - time.monotonic() if commits else 9.0

    outcome = soon(
        worker,
        lambda: run(worker, user(workspace, "commits_a_long_key"), on_commit=stop_it, watch=watch),
    )

    assert isinstance(outcome, Lost)
    assert "did not reach a commit" in outcome.cause


def test_a_child_that_closed_its_pipes_is_waited_for_as_long_as_there_is_time(
    workspace: Workspace, worker: Worker
) -> None:
    """It is not waited for beyond what a signal leaves."""
    begin = time.monotonic()

    outcome = run(
        worker,
        user(workspace, "closes_its_pipes"),
        watch=lambda: begin + 1.0 - time.monotonic(),
    )

    assert isinstance(outcome, Lost)
    assert time.monotonic() - begin < SOON_S


def test_a_killed_child_is_lost_with_the_signal_named(workspace: Workspace, worker: Worker) -> None:
    """SIGKILL is reported as such, with memory as a likely cause."""
    outcome = run(worker, job(workspace, trouble={"kind": "kill", "at": 1}))

    assert isinstance(outcome, Lost)
    assert "SIGKILL" in outcome.cause
    assert "memory" in outcome.cause


def test_a_child_that_leaves_without_a_word_is_lost(workspace: Workspace, worker: Worker) -> None:
    """An exit without an answer is no result."""
    outcome = run(worker, job(workspace, trouble={"kind": "exit", "at": 0}))

    assert outcome == Lost("the child exited with code 9 and no answer")


def test_a_stop_kills_the_child_and_what_it_started(workspace: Workspace, worker: Worker) -> None:
    """After the grace the whole process group is gone, grandchildren too."""
    seen: list[Mapping[str, Json]] = []

    outcome = run(
        worker,
        user(workspace, "leave_a_child"),
        on_progress=seen.append,
        watch=lambda: 0.0 if seen else 9.0,
    )

    assert isinstance(outcome, Lost)
    assert_gone(int(seen[0]["child"]))


def assert_gone(pid: int) -> None:
    limit = time.monotonic() + SOON_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit, f"process {pid} is still there"
        time.sleep(0.02)


def test_progress_is_throttled(workspace: Workspace, worker: Worker) -> None:
    """A step that talks all the time is heard about five times a second."""
    seen: list[Mapping[str, Json]] = []

    begin = time.monotonic()
    run(worker, user(workspace, "chats"), on_progress=seen.append)

    assert 1 <= len(seen) < 10 + 5 * (time.monotonic() - begin)


def test_an_error_of_the_parent_ends_the_child(workspace: Workspace, worker: Worker) -> None:
    """A batch that cannot be made durable leaves no child behind."""

    def refuse(_: Committed) -> bool:
        raise PhaseError("no")

    pid = worker.pid
    with pytest.raises(PhaseError, match="no"):
        run(worker, job(workspace), on_commit=refuse)

    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_close_lets_the_child_end_by_itself(workspace: Workspace) -> None:
    """A closed worker exits cleanly and can be closed twice."""
    worker = Worker("key", workspace.root, workspace.log("worker"), {})
    worker.start()
    run(worker, job(workspace, batches=1))
    pid = worker.pid

    worker.close()
    worker.close()

    assert pid is not None
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("after_s", [0.0, 0.3])
def test_a_hurried_close_kills_an_idle_child(
    workspace: Workspace, worker: Worker, monkeypatch: pytest.MonkeyPatch, after_s: float
) -> None:
    """One that takes long to leave is killed as soon as there is a hurry, before or meanwhile."""
    monkeypatch.setattr("runbook.process._CLOSE_S", 60.0)
    run(worker, user(workspace, "leaves_slowly"))
    begin = time.monotonic()

    worker.close(lambda: time.monotonic() >= begin + after_s)

    assert after_s <= time.monotonic() - begin < SOON_S
    assert worker.pid is not None
    assert not psutil.pid_exists(worker.pid)


TRACER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
failed = libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None)
print(ctypes.get_errno() if failed else 0, flush=True)
time.sleep(60)
"""


def test_a_killed_child_that_stays_is_not_waited_for(workspace: Workspace, worker: Worker) -> None:
    """One that the kernel keeps, as it does in a call that cannot be interrupted, holds nobody."""
    run(worker, job(workspace))
    command = [sys.executable, "-c", TRACER, str(worker.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tracer:
        try:
            assert tracer.stdout is not None
            if tracer.stdout.readline() != b"0\n":
                pytest.skip("this machine lets no process trace another")
            begin = time.monotonic()
            worker.kill()
            took = time.monotonic() - begin
        finally:
            tracer.kill()

    assert took < SOON_S


DRIVER = """
import json, sys
from pathlib import Path
from runbook.codec import decode
from runbook.process import Worker
from runbook.worker import Job
worker = Worker("key", Path(sys.argv[1]), Path(sys.argv[1]) / "logs/worker.log", {})
worker.start()
job = decode(Job, json.loads(sys.argv[2]))
say = lambda _: print(worker.pid, flush=True)
worker.run(job, on_commit=lambda _: False, on_progress=say)
"""


def test_the_child_dies_with_its_parent(workspace: Workspace) -> None:
    """A parent killed without warning takes along a child that is busy."""
    asked = json.dumps(encode(user(workspace, "hangs")))
    command = [sys.executable, "-c", DRIVER, str(workspace.root), asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()

    assert_gone(child)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def test_orphans_of_this_workspace_are_ended(workspace: Workspace) -> None:
    """Only what carries this workspace's mark is killed at the next start."""
    sleeper = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]
    mine = {**os.environ, "RUNBOOK_WORKER_OF": str(workspace.root)}
    other = {**os.environ, "RUNBOOK_WORKER_OF": "/elsewhere"}
    with (
        subprocess.Popen(sleeper, env=mine, stdout=subprocess.PIPE) as orphan,
        subprocess.Popen(sleeper, env=other, stdout=subprocess.PIPE) as stranger,
    ):
        for process in (orphan, stranger):
            assert process.stdout is not None
            process.stdout.readline()

        assert end_orphans(workspace.root) == 1
        assert orphan.wait() == -signal.SIGKILL
        assert stranger.poll() is None
        stranger.kill()


def test_without_orphans_nothing_slow_is_imported(tmp_path: Path) -> None:
    """A start that finds no process with the workspace's mark does without psutil."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from runbook.process import end_orphans\n"
        "print(end_orphans(Path(sys.argv[1])), 'psutil' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0 False\n"


def test_a_dismissed_child_ends_by_itself(workspace: Workspace, worker: Worker) -> None:
    """It goes while its parent does something else, and closing it afterwards is no error."""
    run(worker, job(workspace))
    assert worker.pid is not None
    worker.dismiss()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    worker.close()
    worker.close()


def test_signals_are_noted_and_the_handlers_restored() -> None:
    """SIGTERM is a wish to be read, not an end, and only while the session runs."""
    before = signal.getsignal(signal.SIGTERM)
    with signals() as stop:
        assert stop() == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == "SIGTERM"

    assert signal.getsignal(signal.SIGTERM) is before
