"""The meter: a limit holds whatever becomes of the executor, and the pod is stopped once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from runbook import meter_handover
from runbook.contract import MARK
from runbook.meter import Inbox, Keeper, Terms
from runbook.meter_client import Meter, MeterConfig
from runbook.meter_decision import ABANDONED, DEADLINE, RENTAL, Stop, Wait, Warn
from runbook.meter_folder import MeterRecords
from runbook.meter_record import MeterRecord, StopRecord
from runbook.owner import process_start

ROOT = Path(__file__).parents[1]
SOON_S = 20.0
"""For what must happen at all, on a loaded machine too."""

EXECUTOR = """
import json, os, signal, subprocess, sys
from pathlib import Path
from runbook.meter_client import Meter, MeterConfig

options = json.loads(sys.argv[1])
if options.pop("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
meter = Meter.start(MeterConfig(workspace=Path(options.pop("workspace")), **options))
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
stray = {**os.environ, "RUNBOOK_WORKER_OF": sys.argv[2]}
child = subprocess.Popen(sleep, stdout=subprocess.DEVNULL)
leave = ["/bin/sh", "-c", "sleep 60 >/dev/null & echo $!"]
worker = subprocess.Popen(leave, stdout=subprocess.PIPE, start_new_session=True, env=stray)
found = [meter._process.pid, child.pid, int(worker.stdout.readline())]
worker.wait()
print(json.dumps(found), flush=True)
for line in sys.stdin:
    name, args, named = json.loads(line)
    print(json.dumps(repr(getattr(meter, name)(*args, **named))), flush=True)
"""


@dataclass
class Executor:
    """A process that owns a meter, a child, and a worker whose parent is gone."""

    process: subprocess.Popen[str]
    meter: int
    child: int
    worker: int

    def call(self, name: str, *args: Any, **named: Any) -> str:
        """The repr of what a method of its meter returns."""
        self._order(name, *args, **named)
        assert self.process.stdout is not None
        return str(json.loads(self.process.stdout.readline()))

    def expire(self, seconds: float = 0.0) -> None:
        """Have the limit reached then; the executor may not live to answer."""
        self._order("arm", seconds)

    def _order(self, name: str, *args: Any, **named: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, args, named]) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Pod:
    """A workspace, its meters' folder, commands that note their calls, and executors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / "ws"
        self.workspace.mkdir()
        self.calls = folder / "calls"
        self.state = folder / "state"
        self._started: list[Executor] = []

    def command(self, script: str = "exit 0") -> tuple[str, ...]:
        """A command that notes its call, then runs the script; $n is the number of the call."""
        head = 'echo call >> "$0"; n=$(wc -l < "$0"); '
        return ("/bin/sh", "-c", head + script, str(self.calls))

    def config(self, **options: Any) -> MeterConfig:
        quick = {"grace_s": 0.2, "pause_s": 0.02, "stop_pod": self.command(), **options}
        return MeterConfig(run_id="r1", workspace=self.workspace, **quick)

    def launch(self, *, deaf: bool = False, leader: bool = False, **options: Any) -> Executor:
        config = {**vars(self.config(**options)), "workspace": str(self.workspace), "deaf": deaf}
        command = [sys.executable, "-c", EXECUTOR, json.dumps(config), str(self.workspace)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=leader,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        self._started.append(Executor(process, *json.loads(process.stdout.readline())))
        return self._started[-1]

    def stops(self) -> int:
        """How often a command was called."""
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    @property
    def records(self) -> MeterRecords:
        return MeterRecords.of(self.workspace)

    def newest(self) -> MeterRecord | None:
        return self.records.newest()

    def record(self) -> MeterRecord:
        record = self.newest()
        assert record is not None
        return record

    def stop(self) -> StopRecord:
        """The record of a stop, once it is over."""
        eventually(lambda: (r := self.newest()) and r.stop and r.stop.finished)
        stop = self.record().stop
        assert stop is not None
        return stop

    def log(self) -> str:
        return "".join(path.read_text() for path in self.state.glob("*.log"))

    def clear(self) -> None:
        for executor in self._started:
            meters = {executor.meter}
            for path in self.state.glob("*.meter.json"):
                with suppress(ValueError, KeyError):
                    meters.add(json.loads(path.read_text())["pid"])
            for pid in (*meters, executor.child, executor.worker):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            executor.kill()
            for pipe in (executor.process.stdin, executor.process.stdout):
                with suppress(OSError):
                    pipe and pipe.close()


def eventually(condition: Callable[[], Any]) -> None:
    limit = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    return process_start(pid) is not None


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    monkeypatch.setenv("RUNBOOK_STATE_DIR", str(tmp_path / "state"))
    made = Pod(tmp_path)
    yield made
    made.clear()


@pytest.mark.parametrize("leader", [False, True])
def test_a_limit_holds_when_the_executor_hangs(pod: Pod, *, leader: bool) -> None:
    """A stopped executor, its child and its stray worker are killed and the pod stopped once."""
    executor = pod.launch(deaf=True, leader=leader)
    executor.call("arm", 0.3)
    os.kill(executor.process.pid, signal.SIGSTOP)

    stop = pod.stop()

    assert executor.process.wait(SOON_S) == -signal.SIGKILL
    eventually(lambda: not is_alive(executor.meter))
    assert [is_alive(pid) for pid in (executor.child, executor.worker)] == [False, False]
    assert (pod.stops(), stop.tries, stop.last_rc, stop.why) == (1, 1, 0, DEADLINE)


def test_a_session_is_cleared_whole_after_its_leader_is_gone(pod: Pod) -> None:
    """What a dead executor started in its own session is killed at the limit."""
    executor = pod.launch(leader=True)
    executor.call("arm", 0.5)
    executor.kill()

    assert pod.stop().why == DEADLINE
    eventually(lambda: not is_alive(executor.child))


def test_others_of_the_executors_session_are_spared(pod: Pod) -> None:
    """Where the executor does not lead its session, as in a shell, its siblings live on."""
    sibling = subprocess.Popen(["sleep", "60"])
    executor = pod.launch(deaf=True)
    executor.expire()

    assert pod.stop().why == DEADLINE
    assert executor.process.wait(SOON_S) == -signal.SIGKILL
    assert sibling.poll() is None
    sibling.kill()
    sibling.wait()


def test_an_executor_that_ends_at_the_warning_is_not_killed(pod: Pod) -> None:
    """SIGTERM comes first, and the grace ends with the executor."""
    executor = pod.launch(grace_s=60.0)
    executor.expire()

    assert executor.process.wait(SOON_S) == -signal.SIGTERM
    assert pod.stop().last_rc == 0


def test_an_executor_learns_of_the_limit_and_ends_in_order(pod: Pod) -> None:
    """It is told why it is asked to end, and its end within the grace stops the pod at once."""
    executor = pod.launch(grace_s=60.0, deaf=True)
    assert executor.call("limit_reached") == "None"
    executor.call("arm", 0.0)
    eventually(lambda: executor.call("limit_reached") == repr(DEADLINE))

    answer = executor.call("end", "paused", stop_pod=False)

    assert f"why='{DEADLINE}'" in answer
    assert "last_rc=0" in answer
    assert executor.process.poll() is None
    assert pod.stops() == 1


def test_a_limit_of_the_start_holds(pod: Pod) -> None:
    """The rental's end and the first deadline are held from the start on, the rental's first."""
    executor = pod.launch(rental_ends_s=0.0, deadline_s=0.0, grace_s=60.0, deaf=True)
    eventually(lambda: executor.call("limit_reached") == repr(RENTAL))


def test_a_limit_holds_after_the_executor_was_killed(pod: Pod) -> None:
    """SIGKILL of the executor takes neither the meter nor its limit away."""
    executor = pod.launch(abandoned_after_s=None)
    executor.call("arm", 0.5)
    executor.kill()

    assert pod.stop().why == DEADLINE
    assert pod.stops() == 1


def test_an_abandoned_pod_is_stopped(pod: Pod) -> None:
    """A dead executor that nobody follows has its pod stopped long before the limit."""
    executor = pod.launch(deadline_s=600.0, abandoned_after_s=0.3)
    time.sleep(0.5)
    assert pod.stops() == 0
    executor.kill()

    assert pod.stop().why == ABANDONED
    assert pod.stops() == 1


def test_a_new_executor_takes_over(pod: Pod) -> None:
    """The former meter leaves and stops nothing, and the new one's limit holds."""
    first = pod.launch()
    eventually(pod.newest)
    first.kill()
    second = pod.launch()

    assert not is_alive(first.meter)
    assert is_alive(second.meter)
    assert "leaves the pod running: SIGTERM" in pod.log()
    assert pod.stops() == 0
    second.expire()
    assert pod.stop().why == DEADLINE
    assert pod.stops() == 1


def test_a_former_meter_that_just_started_is_found(pod: Pod) -> None:
    """A meter whose record is not yet written is ended all the same."""
    first = pod.launch()
    eventually(pod.newest)
    path = next(pod.state.glob("*.meter.json"))
    path.write_bytes(b"")

    pod.launch()

    assert not is_alive(first.meter)


def test_a_stop_under_way_is_left_to_its_meter(pod: Pod) -> None:
    """A new meter does not end one that stops the pod, and shows its record as the former."""
    script = 'until test -e "$0.go"; do sleep 0.05; done'
    first = pod.launch(stop_pod=pod.command(script))
    first.expire()
    eventually(lambda: (r := pod.newest()) and r.stop)
    second = pod.launch()
    eventually(lambda: pod.record().pid == second.meter)

    assert is_alive(first.meter)
    os.kill(first.meter, signal.SIGTERM)
    (pod.folder / "calls.go").touch()
    eventually(lambda: (f := pod.record().former) and f.stop and f.stop.finished)
    former = pod.record().former
    assert former is not None
    assert former.stop is not None
    assert (former.pid, former.stop.last_rc, pod.record().stop) == (first.meter, 0, None)
    for _ in range(2):
        pod.launch()
        assert len(list(pod.state.glob("*.meter.json"))) == 3
    assert (pod.state / f"{pod.records.key}.1.meter.json").exists()


@pytest.mark.parametrize("stopping", [False, True])
def test_a_deaf_meter_is_killed_unless_it_stops_the_pod(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, *, stopping: bool
) -> None:
    """What is on record after SIGTERM decides about SIGKILL."""
    monkeypatch.setattr(meter_handover, "_DISMISS_S", 0.2)
    executor = pod.launch(stop_pod=pod.command("sleep 60"))
    if stopping:
        executor.expire()
    eventually(lambda: (r := pod.newest()) and bool(r.stop) == stopping)
    os.kill(executor.meter, signal.SIGSTOP)
    start = process_start(executor.meter)
    assert start is not None

    meter_handover._dismiss(executor.meter, start, next(pod.state.glob("*.meter.json")))

    if stopping:
        time.sleep(0.2)
        assert is_alive(executor.meter)
    else:
        eventually(lambda: not is_alive(executor.meter))


def test_an_end_that_stops_the_pod(pod: Pod) -> None:
    """The executor hears when the stop was asked for, its exit code and the pod's last state."""
    state = ("/bin/sh", "-c", f'echo noise; echo "STATE $(wc -l < {pod.calls})"')
    executor = pod.launch(pod_state=state)

    answer = executor.call("end", "done", stop_pod=True)

    record = pod.record().stop
    assert record is not None
    assert answer == repr(record)
    assert (record.why, record.last_rc, record.last_state) == ("done", 0, "STATE 1")
    requested = datetime.fromisoformat(record.requested_at)
    assert timedelta(0) < datetime.now(UTC) - requested < timedelta(minutes=1)
    eventually(lambda: not is_alive(executor.meter))
    assert executor.process.poll() is None


def test_an_end_that_leaves_the_pod(pod: Pod) -> None:
    """The meter leaves, the record says why, and nothing is stopped."""
    executor = pod.launch(abandoned_after_s=0.1)

    assert executor.call("end", "a person decides", stop_pod=False) == "None"

    eventually(lambda: not is_alive(executor.meter))
    assert (pod.stops(), pod.record().left, pod.record().stop) == (0, "a person decides", None)
    assert is_alive(executor.child)


def test_a_pause_is_watched_as_a_death(pod: Pod) -> None:
    """The pod of a paused session is stopped when nobody resumes; its process is left alone."""
    executor = pod.launch(abandoned_after_s=0.3)

    assert executor.call("leave", "paused: SIGTERM") == "None"

    assert pod.stop().why == ABANDONED
    assert "paused: SIGTERM: the executor has ended" in pod.log()
    assert executor.process.poll() is None
    assert is_alive(executor.child)
    assert is_alive(executor.worker)


def test_a_limit_holds_after_a_pause(pod: Pod) -> None:
    """The pod is stopped at the limit that was armed last, however long the patience."""
    executor = pod.launch(deadline_s=0.5, abandoned_after_s=600.0, deaf=True)

    executor.call("leave", "paused")

    assert pod.stop().why == DEADLINE
    assert executor.process.poll() is None


def test_a_meter_that_died_is_replaced_for_the_watch(pod: Pod) -> None:
    """After a pause there is a meter, unless another executor has taken over."""
    executor = pod.launch(abandoned_after_s=0.3)
    eventually(pod.newest)
    os.kill(executor.meter, signal.SIGKILL)
    eventually(lambda: executor.call("alive") == "False")

    executor.call("let_go")
    assert len(list(pod.state.glob("*.meter.json"))) == 1
    executor.call("leave", "paused")

    assert pod.stop().why == ABANDONED


def test_a_limit_that_a_living_executor_reached_is_on_record(pod: Pod) -> None:
    """The record names the executor that hung, and the limit that it was to end for."""
    executor = pod.launch(deaf=True, grace_s=60.0)
    start = process_start(executor.process.pid)
    executor.expire()

    eventually(lambda: (r := pod.newest()) and r.limit)
    record = pod.record()
    assert (record.limit, record.stop) == (DEADLINE, None)
    assert (record.executor_pid, record.executor_start) == (executor.process.pid, start)


def test_a_limit_after_the_executors_death_is_not_its_own(pod: Pod) -> None:
    """Where nobody worked any more nothing says that somebody worked until the limit."""
    executor = pod.launch(abandoned_after_s=None)
    executor.call("arm", 0.5)
    executor.kill()

    assert pod.stop().why == DEADLINE
    assert pod.record().limit == ""


def test_no_command_is_declared(pod: Pod) -> None:
    """Without a command to stop the pod the record says so, and the limit ends the executor."""
    executor = pod.launch(stop_pod=None, deaf=True)
    executor.expire()

    stop = pod.stop()

    assert (stop.command, stop.tries, stop.last_rc) == (None, 0, None)
    assert executor.process.wait(SOON_S) == -signal.SIGKILL
    eventually(lambda: "no stop_pod is declared" in pod.log())


def test_a_stop_that_fails_is_tried_again(pod: Pod) -> None:
    """The third try succeeds and is the last."""
    executor = pod.launch(stop_pod=pod.command("echo try $n; test $n -ge 3"))

    answer = executor.call("end", "done", stop_pod=True)

    stop = pod.stop()
    assert (pod.stops(), stop.tries, stop.last_rc, stop.last_output) == (3, 3, 0, "try 3\n")
    assert "tries=3" in answer


def test_a_stop_that_keeps_failing_is_given_up_on_record(pod: Pod) -> None:
    """After the declared tries the record holds the last exit code and the pod's state."""
    state = ("/bin/sh", "-c", "echo RUNNING")
    stop_pod = pod.command("exit 7")
    pod.launch(stop_pod=stop_pod, stop_tries=2, pod_state=state).expire()

    stop = pod.stop()

    assert (pod.stops(), stop.tries, stop.last_rc, stop.last_state) == (2, 2, 7, "RUNNING")


def test_a_stop_that_hangs_is_killed_and_tried_again(pod: Pod) -> None:
    """A try that does not end is killed with its group after its time."""
    script = 'test $n -ge 2 || { sleep 61 & echo $! > "$0.pid"; wait; }'
    pod.launch(stop_pod=pod.command(script), stop_timeout_s=3.0).expire()

    stop = pod.stop()

    assert (pod.stops(), stop.tries, stop.last_rc, stop.problem) == (2, 2, 0, "")
    assert "killed: no end within 3 s" in pod.log()
    eventually(lambda: not is_alive(int((pod.folder / "calls.pid").read_text())))


def test_a_stop_is_on_record_before_it_runs(pod: Pod) -> None:
    """The command itself finds the request in the record."""
    script = f'cp {pod.state}/*.meter.json "$0.seen"'
    pod.launch(stop_pod=pod.command(script)).expire()
    pod.stop()

    seen = json.loads((pod.folder / "calls.seen").read_text())
    assert (seen["stop"]["why"], seen["stop"]["tries"]) == (DEADLINE, 0)


def test_a_command_that_is_not_there(pod: Pod) -> None:
    """A program that cannot be started is a failed try with its reason."""
    executor = pod.launch(stop_pod=["/no/such/program", "pod"], stop_tries=2)

    executor.call("end", "done", stop_pod=True)

    stop = pod.stop()
    assert (stop.tries, stop.last_rc) == (2, None)
    assert stop.problem == "cannot be started: No such file or directory"


def test_arming_moves_the_limit(pod: Pod) -> None:
    """A limit moves later and sooner as spend is settled, and None takes it away."""
    executor = pod.launch(deadline_s=300.0)

    def limit_s() -> float | None:
        record = pod.newest()
        if record is None or record.deadline is None:
            return None
        return (datetime.fromisoformat(record.deadline) - datetime.now(UTC)).total_seconds()

    for seconds in (300, 900, 600):
        executor.call("arm", seconds)
        eventually(lambda: round((limit_s() or 0) + 50, -2) == seconds)  # noqa: B023 - called now
    executor.call("arm", None)
    eventually(lambda: limit_s() is None)
    assert pod.stops() == 0

    executor.expire()

    assert pod.stop().why == DEADLINE


def test_a_beat_is_on_record(pod: Pod) -> None:
    """The record says when the executor was last heard."""
    executor = pod.launch(deadline_s=600.0)
    eventually(pod.newest)
    assert pod.record().heartbeat is None

    executor.call("beat")

    eventually(lambda: pod.record().heartbeat)
    heard = datetime.fromisoformat(pod.record().heartbeat or "")
    assert abs(datetime.now(UTC) - heard) < timedelta(minutes=1)
    assert pod.record().is_running
    assert not replace(pod.record(), start=1).is_running
    assert not replace(pod.record(), boot_id="another").is_running


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_lost_line_does_not_end_the_meter(pod: Pod, number: signal.Signals) -> None:
    """The meter outlives what a terminal sends."""
    executor = pod.launch()
    eventually(pod.newest)
    os.kill(executor.meter, number)
    executor.expire()

    assert pod.stop().last_rc == 0


def test_sigterm_ends_the_meter_and_not_the_pod(pod: Pod) -> None:
    """It says so on record; the executor sees it dead and has it started again, limit and all."""
    executor = pod.launch(deadline_s=600.0)
    eventually(pod.newest)
    assert executor.call("ensure") == "False"
    os.kill(executor.meter, signal.SIGTERM)
    eventually(lambda: executor.call("alive") == "False")
    assert (pod.stops(), pod.record().left) == (0, "SIGTERM")

    assert executor.call("beat") == "None"
    assert executor.call("arm", 300.0) == "None"
    assert executor.call("ensure") == "True"
    assert executor.call("alive") == "True"

    eventually(lambda: pod.record().deadline and not pod.record().left)
    limit = datetime.fromisoformat(pod.record().deadline or "") - datetime.now(UTC)
    assert timedelta(seconds=200) < limit < timedelta(seconds=300)


def test_a_killed_meter_is_replaced_for_the_stop(pod: Pod) -> None:
    """An end that stops the pod finds a meter even where the running one was killed."""
    executor = pod.launch()
    os.kill(executor.meter, signal.SIGKILL)

    assert "last_rc=0" in executor.call("end", "done", stop_pod=True)
    assert pod.stops() == 1


def test_a_meter_that_dies_while_it_stops_the_pod_is_replaced(pod: Pod) -> None:
    """A stop that was begun and not finished is done again, and the answer is the second's."""
    script = "test $n -ge 2 || { kill -9 $PPID; sleep 60; }"
    executor = pod.launch(stop_pod=pod.command(script))

    answer = executor.call("end", "done", stop_pod=True)

    assert "last_rc=0" in answer
    assert pod.stops() == 2
    former = pod.record().former
    assert former is not None
    assert former.stop is not None
    assert (former.pid, former.stop.finished) == (executor.meter, False)


def test_a_meter_that_hangs_never_blocks_the_executor(pod: Pod) -> None:
    """With a full pipe nothing waits, and the newest limit is sent once there is room."""
    executor = pod.launch(deadline_s=600.0)
    eventually(pod.newest)
    os.kill(executor.meter, signal.SIGSTOP)
    for _ in range(3000):
        executor.call("arm", 600.0)
    executor.call("arm", 0.0)
    assert executor.call("_flush") == "False"

    os.kill(executor.meter, signal.SIGCONT)
    eventually(lambda: executor.call("_flush") == "True")

    assert pod.stop().why == DEADLINE


@pytest.mark.parametrize("stop_pod", [False, True])
def test_an_end_waits_no_longer_than_it_may_for_a_meter_that_hangs(
    pod: Pod, *, stop_pod: bool
) -> None:
    """A stopped meter costs the executor its limit and no more, and does its work later."""
    executor = pod.launch()
    eventually(pod.newest)
    os.kill(executor.meter, signal.SIGSTOP)
    started = time.monotonic()

    assert executor.call("end", "done", stop_pod=stop_pod, wait_s=1.0) == "None"
    assert 0.9 < time.monotonic() - started < SOON_S

    os.kill(executor.meter, signal.SIGCONT)
    eventually(lambda: not is_alive(executor.meter))
    assert pod.stops() == int(stop_pod)


# What it may touch, and write


def test_the_meter_carries_no_mark_and_few_files(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the executor's is inherited: no mark, no descriptor, no folder, no session."""
    monkeypatch.setenv(MARK, str(pod.workspace))
    executor = pod.launch()
    eventually(pod.newest)

    meter = psutil.Process(executor.meter)
    opened = {Path(file.path).name for file in meter.open_files()}

    assert MARK not in meter.environ()
    assert meter.cwd() == "/"
    assert os.getsid(executor.meter) == executor.meter
    assert [name for name in opened if not name.endswith(".meter.log")] == []
    assert meter.num_fds() == 5


def file_calls(folder: Path, pid: int) -> str:
    """What a process and its descendants asked of the file system."""
    text = (folder / f"trace.{pid}").read_text()
    started = re.findall(r"(?:clone3?|v?fork)\(.*= (\d+)$", text, re.MULTILINE)
    return text + "".join(file_calls(folder, int(child)) for child in started)


TRACED = """
import sys
from pathlib import Path
from runbook.meter_client import Meter, MeterConfig
meter = Meter.start(MeterConfig("r1", Path(sys.argv[1]), stop_pod=("true",), pause_s=0.01))
print(meter._process.pid)
meter.end("done", stop_pod=True)
"""


def test_the_workspace_is_never_touched(pod: Pod) -> None:
    """From its start to the pod's stop the meter names no path of the workspace to the kernel."""
    strace = shutil.which("strace")
    if strace is None or subprocess.call([strace, "-o", "/dev/null", "true"]) != 0:
        pytest.skip("strace cannot trace here")
    environment = {
        **os.environ,
        "PATH": f"{pod.workspace}/bin:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{pod.workspace}/lib",
    }
    trace = [strace, "-ff", "-e", "trace=file,process", "-o", str(pod.folder / "trace")]

    pid = subprocess.check_output(
        [*trace, sys.executable, "-c", TRACED, str(pod.workspace)], env=environment, cwd="/"
    )

    seen = file_calls(pod.folder, int(pid))
    everything = "".join(path.read_text() for path in pod.folder.glob("trace.*"))
    assert '/true", ["true"]' in seen
    assert ".meter.json" in seen
    assert f'"{pod.workspace}' in everything
    assert f'"{pod.workspace}' not in seen


WATCHED = """
import os, sys
from runbook import meter
late = []
sys.addaudithook(lambda event, args: event == "import" and late.append(args[0]))
meter.main()
loaded = {"pydantic", "ruamel", "typer", "rich", "scipy", "torch"} & set(sys.modules)
os.write(2, f"late: {late}, heavy: {loaded or 0}".encode())
os._exit(0)
"""


def test_nothing_is_imported_once_it_runs(tmp_path: Path) -> None:
    """From the terms to the pod's state all modules are there, and none of them is heavy."""
    executor = subprocess.Popen(["sleep", "60"], start_new_session=True)
    terms = Terms(
        run_id="r1",
        executor_pid=executor.pid,
        executor_start=process_start(executor.pid) or 0,
        leads_session=True,
        mark=(MARK, "/nowhere"),
        deadline=0.0,
        rental_end=None,
        stop_pod=("sh", "-c", "exit 7"),
        pod_state=("echo", "RUNNING"),
        grace_s=0.0,
        abandoned_after_s=None,
        stop_timeout_s=SOON_S,
        stop_tries=2,
        pause_s=0.0,
    )

    ran = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path / "record")],
        input=json.dumps(vars(terms)) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    executor.wait()

    assert "'last_state': 'RUNNING'" in str(json.loads(ran.stdout.splitlines()[-1]))
    assert "late: [], heavy: 0" in ran.stderr


def test_no_secret_is_written(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments and secret variables reach the commands, and neither the record nor the log."""
    monkeypatch.setenv("POD_API_KEY", "canary-in-env")
    script = 'echo "$POD_API_KEY $1 plain"; test $POD_API_KEY = canary-in-env'
    stop = (*pod.command(script), "--token=canary-in-argv")
    state = ("/bin/sh", "-c", 'echo "$POD_API_KEY EXITED"')
    executor = pod.launch(stop_pod=stop, pod_state=state)

    answer = executor.call("end", "done", stop_pod=True)

    written = "".join(path.read_text() for path in pod.state.iterdir())
    assert "canary" not in written + answer
    assert pod.stop().last_output == "[secret POD_API_KEY] --token=[secret] plain\n"
    assert (pod.stop().last_rc, pod.stop().last_state) == (0, "[secret POD_API_KEY] EXITED")
    assert {path.stat().st_mode & 0o777 for path in pod.state.iterdir()} == {0o600}


def test_a_limit_must_be_a_number(pod: Pod) -> None:
    """NaN would never be reached, so it is refused."""
    with pytest.raises(ValueError, match="never be reached"):
        Meter.start(pod.config(deadline_s=float("nan")))


# The clock


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Callable[..., Keeper]]:
    """Makes keepers in this process, with a dead executor and pipes of their own."""
    pipes: list[int] = []

    def make(clock: Callable[[], float], wall: Callable[[], datetime]) -> Keeper:
        pipes.extend((*os.pipe(), *os.pipe()))
        lines, _, dismissal, answers = pipes[-4:]
        terms = Terms(
            run_id="r1",
            executor_pid=os.getpid(),
            executor_start=process_start(os.getpid()) or 0,
            leads_session=False,
            mark=(MARK, "/nowhere"),
            deadline=1000.0,
            rental_end=None,
            stop_pod=None,
            pod_state=None,
            grace_s=5.0,
            abandoned_after_s=None,
            stop_timeout_s=1.0,
            stop_tries=1,
            pause_s=0.0,
        )
        return Keeper(
            terms, tmp_path / "record", Inbox(lines, dismissal), answers, clock=clock, wall=wall
        )

    yield make
    for fd in pipes:
        os.close(fd)


@pytest.mark.parametrize("days", [-30, 30])
def test_a_jump_of_the_wall_clock_changes_nothing(
    keeper: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Only the steady clock brings the limit nearer; the wall clock moves what is shown."""
    steady = [0.0]
    wall = [datetime(2026, 1, 1, tzinfo=UTC)]
    made = keeper(lambda: steady[0], lambda: wall[0])
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _, number: killed.append(number))
    assert made.step() == Wait(1000.0)

    wall[0] += timedelta(days=days)
    steady[0] = 999.9
    assert made.step() == Wait(1000.0)
    steady[0] = 1000.0
    assert made.step() == Warn(DEADLINE)

    assert killed == [signal.SIGTERM]


def test_lines_that_are_none_are_passed_over(keeper: Callable[..., Keeper]) -> None:
    """Nothing that the executor writes ends the meter."""
    made = keeper(lambda: 0.0, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    before = made.situation
    for line in (b"", b"\xff", b"[]", b'{"deadline": "x"}', b'{"end": {}}', b'{"beat": 0}'):
        made.hear(line)

    assert made.situation == before


def test_a_record_that_cannot_be_written_keeps_no_limit_from_holding(
    keeper: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full or lost disk the meter goes on."""
    (tmp_path / "record").mkdir()
    made = keeper(lambda: 1000.0, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    monkeypatch.setattr(os, "kill", lambda *_: None)
    made.hear(b'{"end": {"why": "done", "stop_pod": true}}')

    assert made.step() == Stop(DEADLINE)
