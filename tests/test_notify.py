"""Notifications: each incident once, over any kill, and nothing waits or fails for them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli_session import REVIEWED, write_runbook
from test_secrets import leaks

from gates.judge import judge_gate
from runbook import courier, notify
from runbook import events as ev
from runbook.changes import check_same_plan
from runbook.cli.reviewer_row import check_reviewer
from runbook.contract import (
    Criterion,
    Decision,
    Gate,
    Json,
    Judgement,
    Metric,
    Range,
    ReviewRequest,
)
from runbook.doctor import examine
from runbook.errors import ConfigError, NeedsPersonError
from runbook.executor import Seams, run_session
from runbook.incidents import all_incidents, identity, new_incidents, of_budget
from runbook.journal import facts, read_entries
from runbook.journal_writer import Journal
from runbook.machine import apply, replay
from runbook.meter_folder import MeterRecords
from runbook.plan import Plan
from runbook.report.view import build_view
from runbook.schema import load_plan
from runbook.schema_models import NOTIFIED_EVENTS, NOTIFY_URL
from runbook.testing import make_plan, make_step, simple_gates
from runbook.workspace import Workspace

ROOT = Path(__file__).parents[1]
CANARY = "k7Qz-canary-Vw93xLpT"
GATE = Gate((Criterion("m", "rate", at_least=0.5),))
PASSING: dict[str, Json] = {"metrics": {"m": 0.9}}
FAILING: dict[str, Json] = {"metrics": {"m": 0.1}}
STALLING = """
import os, time
from runbook.testing import fake_phase

def run(request):
    flag = request.work / "stalled_once"
    if not flag.exists():
        flag.write_text("")
        time.sleep(60)
    print(os.environ.get("RUNBOOK_NOTIFY_URL"), flush=True)
    return fake_phase(request)
"""


class Server:
    """A real HTTP server that keeps what it was told, and may refuse or hang."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.status = 200
        self.asked = threading.Event()
        self.free = threading.Event()
        self.free.set()
        self.on_told: Callable[[dict[str, Any]], object] = lambda _: None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - self is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.set()
                server.free.wait(30)
                server.on_told(body)
                server.told.append(body)
                self.send_response(server.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.http.server_port}/{CANARY}"

    @property
    def titles(self) -> list[str]:
        return [told["title"].removeprefix("test: ") for told in self.told]

    def close(self) -> None:
        self.free.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setenv(NOTIFY_URL, made.url)
    yield made
    made.close()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setenv("RUNBOOK_STATE_DIR", str(tmp_path / "state"))
    yield Workspace.at(tmp_path / "ws")
    for path in (tmp_path / "state").glob("*.meter.json"):
        pid = json.loads(path.read_text())["pid"]
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def notified(*steps: Any, events: Sequence[str] = NOTIFIED_EVENTS, **fields: Any) -> Plan:
    told = {"url_env": NOTIFY_URL, "events": list(events)}
    return make_plan(*steps, notifications=told, **fields)


def run(plan: Plan, workspace: Workspace, **seams: Any) -> int:
    given = {"gates": simple_gates, "reviewer": lambda _: None, **seams}
    return run_session(plan, workspace, Seams(**given))


def log_of(workspace: Workspace) -> str:
    return workspace.log("notify").read_text()


def known_of(workspace: Workspace) -> tuple[ev.Event, ...]:
    return facts(read_entries(workspace))


def kinds(workspace: Workspace) -> list[str]:
    """The kind of each message that was sent, in order."""
    lines = [line.split() for line in log_of(workspace).splitlines()]
    return [words[1] for words in lines if words[-1] == "sent"]


def until(true: Callable[[], object]) -> None:
    limit = time.monotonic() + 30
    while not true():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


def spend(request: ReviewRequest) -> Decision:
    """Half of the reviews' budget at each review, and another try."""
    assert request.account.reserve(f"key of {request.review_id}", 0.5) == ""
    return Decision("retry", "once more", "a test", person=False)


def test_each_kind_is_told_once(server: Server, workspace: Workspace) -> None:
    """A session that stalls, fails twice, spends its reviews' budget and ends tells each of it."""
    (workspace.root.parent / "stalling.py").write_text(STALLING)
    score = {"metrics": {"m": [0.1, 0.2, 0.9]}}
    first = make_step("a", function="stalling:run")
    second = make_step("b", gate=GATE, params=score, review_after=1)
    told = workspace.root.parent / "told"

    def at_the_end(said: dict[str, Any]) -> None:
        if "ended: done" in said["title"]:
            # A pod that is stopped without waiting is stopped before this is over.
            time.sleep(0.5)
            told.touch()

    server.on_told = at_the_end
    calls = workspace.root.parent / "calls"
    script = f'test -e "{told}" && echo told >> "{calls}" || echo untold >> "{calls}"'
    pod = {"stop": ["/bin/sh", "-c", script], "state": None, "rental_ends": None}
    plan = notified(
        first,
        second,
        runbook=workspace.root.parent / "runbook.yaml",
        watchdog={"stall_s": 1.0},
        budget={"review_usd": 1.0},
        pod={**pod, "abandoned_after_s": 60.0},
    )

    assert run(plan, workspace, reviewer=spend) == 0

    until(lambda: len(server.titles) == 10)
    assert server.titles == [
        "stalled: a, attempt 1",
        "gate failed: b, attempt 1",
        "review asked: b, attempt 1",
        "50 % of the budget's review_usd is spent",
        "gate failed: b, attempt 2",
        "review asked: b, attempt 2",
        "100 % of the budget's review_usd is spent",
        "phase A done: Phase A",
        "ended: done (exit 0)",
        "the pod was asked to stop",
    ]
    assert calls.read_text() == "told\n"
    failed = server.told[1]["message"].splitlines()
    assert failed[0] == "verdict: fail"
    assert failed[1].startswith("m 0.1, declared")
    assert any(line.startswith("Cost so far: ") for line in failed)
    assert failed[-2:] == ["Next:", f"runbook status --workspace {workspace.root}"]
    review = server.told[2]["message"].splitlines()
    assert review[-1] == f"runbook review show b-1 --workspace {workspace.root}"


def test_a_person_is_told_what_to_do(server: Server, workspace: Workspace) -> None:
    """Where a review waits for a person, the message holds the commands that show and decide it."""
    plan = notified(make_step("a", gate=GATE, params=FAILING, review_after=1))

    assert run(plan, workspace) == 3

    needed = next(t for t in server.told if "human needed: review" in t["title"])
    commands = needed["message"].partition("Next:\n")[2].splitlines()
    assert commands[0] == f"runbook review show a-1 --workspace {workspace.root}"
    assert commands[1].startswith("runbook review decide a-1 ")
    assert server.titles[-1] == "ended: review (exit 3)"


def judged(gate: Gate, metrics: tuple[Metric, ...], final: bool) -> Judgement:
    return judge_gate(gate, metrics, None, final=final)


def messages(server: Server, kind: str) -> list[str]:
    """The lines of the message whose title begins so."""
    found = (str(t["message"]) for t in server.told if t["title"].startswith(f"test: {kind}"))
    return next(found).splitlines()


@pytest.mark.parametrize(
    ("provider", "action", "told"),
    [
        ("human", "", "not decided"),
        ("openai", "", "and its reviewer, openai, gave no answer"),
        ("openai", "needs_human", "and its reviewer, openai, wants a person to decide"),
    ],
)
def test_a_person_is_told_of_step_verdict_and_reviewer(
    server: Server, workspace: Workspace, provider: str, action: str, told: str
) -> None:
    """The numbers that failed stand there with their thresholds; nothing of a model's words."""
    said = Decision(action, CANARY, CANARY, person=False) if action else None
    score = {"value": 0.1, "n": 200, "successes": 20, "denominator": "rows"}
    step = make_step("a", gate=GATE, params={"metrics": {"m": score}}, review_after=1)
    plan = notified(step, reviewer={"provider": provider})

    assert run(plan, workspace, reviewer=lambda _: said, gates=judged) == 3

    assert messages(server, "human needed: review")[:3] == [
        "a, attempt 1, verdict: fail",
        "m 0.1 (n = 200), declared >= 0.5",
        f"review a-1, reason: gate failed, {told}",
    ]
    assert CANARY not in json.dumps(server.told)


def silent(cause: str, decided: Decision | None = None) -> Callable[[ReviewRequest], Any]:
    """A reviewer that leaves a cause in its folder, as one does that gave no answer."""

    def ask(request: ReviewRequest) -> Decision | None:
        folder = request.workspace / request.path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(f"{cause}\nand more of it\n")
        return decided

    return ask


@pytest.mark.parametrize(
    ("events", "telling", "besides"),
    [
        (["human_needed", "ended"], "human needed: review", "ended: review"),
        (["ended"], "ended: review", ""),
    ],
)
def test_a_person_is_told_why_the_reviewer_gave_no_answer(
    server: Server, workspace: Workspace, events: list[str], telling: str, besides: str
) -> None:
    """The first line of what was kept, in the message that has the commands and in no other."""
    step = make_step("a", gate=GATE, params=FAILING, review_after=1)
    plan = notified(step, events=events, reviewer={"provider": "openai"})
    cause = "gpt-x: HTTP 401: the API key is not accepted"

    assert run(plan, workspace, reviewer=silent(cause)) == 3

    told = messages(server, telling)
    assert told.count(f"why there is no answer: {cause}") == 1
    assert any(line.startswith("runbook review decide a-1 ") for line in told)
    assert "and more of it" not in json.dumps(server.told)
    assert not besides or cause not in "\n".join(messages(server, besides))


def test_a_cause_holds_nothing_a_chat_would_make_more_of(
    server: Server, workspace: Workspace
) -> None:
    """A link, a mention or a format that a server or a model wrote arrives as plain words."""
    step = make_step("a", gate=GATE, params=FAILING, review_after=1)
    plan = notified(step, reviewer={"provider": "openai"})
    hostile = "HTTP 400: [pay](https://evil/x) <http://evil|here> <@U1> @all **now** "
    hostile += "`x` _y_ www.evil.com :z: \\#1"

    assert run(plan, workspace, reviewer=silent(hostile)) == 3

    lines = messages(server, "human needed: review")
    (line,) = [line for line in lines if line.startswith("why there is no answer: ")]
    told = " ".join(line.split(": ", 1)[1].split())
    plain = "HTTP 400: [pay] https: evil x http: evil here U1 all now x y"
    assert told == f"{plain} www. evil. com : z: 1"


@pytest.mark.parametrize("before", [0, 190, 198])
def test_a_cause_is_told_without_secrets_on_one_short_line(
    server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """What a server said may be long, move a cursor, or repeat a key across the cut."""
    key = "sk-Qm7-Vw93xLpT-k7Qz"
    monkeypatch.setenv("SOME_API_KEY", key)
    step = make_step("a", gate=GATE, params=FAILING, review_after=1)
    plan = notified(step, reviewer={"provider": "openai"})
    cause = f"{'x' * before}{key}\x1b[2J\u202e{'y' * 5000}"

    assert run(plan, workspace, reviewer=silent(cause)) == 3

    told = messages(server, "human needed: review")
    (line,) = [line for line in told if line.startswith("why there is no answer: ")]
    assert "sk-" not in json.dumps(server.told)
    assert len(line) < 300
    assert line.isprintable()
    assert line.endswith(" characters)")
    assert "y" * 200 not in json.dumps(server.told)


def test_of_an_answer_no_cause_is_told(server: Server, workspace: Workspace) -> None:
    """What an earlier failure left in the folder says nothing of a reviewer that answered."""
    said = Decision("needs_human", CANARY, CANARY, person=False)
    step = make_step("a", gate=GATE, params=FAILING, review_after=1)
    plan = notified(step, reviewer={"provider": "openai"})

    assert run(plan, workspace, reviewer=silent("it was busy", said)) == 3

    assert "wants a person to decide" in "".join(messages(server, "human needed: review"))
    assert "it was busy" not in json.dumps(server.told)


def test_a_stop_that_a_model_decided_says_so(server: Server, workspace: Workspace) -> None:
    """Step, verdict and who decided; its reason is read where the command shows it."""
    stop = Decision("stop", CANARY, "x", person=False)
    step = make_step("a", gate=GATE, params=FAILING, review_after=1)

    run(notified(step, reviewer={"provider": "openai"}), workspace, reviewer=lambda _: stop)

    told = "review a-1, reason: gate failed, decided by its reviewer, openai: stop"
    assert told in messages(server, "human needed: gate failed")
    assert CANARY not in json.dumps(server.told)


def adjustable(*events: str) -> Plan:
    """A step that fails, of which a retry may change a parameter."""
    ranges = {"temperature": Range(0.1, 1.0)}
    params = {**FAILING, "temperature": 0.5}
    step = make_step("a", gate=GATE, params=params, review_after=1, adjustable=ranges)
    return notified(step, events=events)


@pytest.mark.parametrize("budget", [{}, {"review_usd": 1.0, "request_usd": 2.0}])
def test_the_command_that_goes_on_is_never_cut_off(
    server: Server, workspace: Workspace, budget: dict[str, Json]
) -> None:
    """Where a retry may change parameters, and a limit could be raised; the end repeats none."""
    plan = replace(adjustable("human_needed", "ended"), budget=budget)
    run(plan, workspace)

    commands = messages(server, "human needed")
    commands = commands[commands.index("Next:") + 1 :]
    assert ["--change" in c for c in commands] == [False, False, True, False]
    assert commands[3] == build_view(read_entries(workspace)).command(workspace.root)
    ended = messages(server, "ended: review")
    assert ended[-2:] == ["Next:", f"runbook status --workspace {workspace.root}"]


def test_an_end_that_is_told_alone_says_what_to_do(server: Server, workspace: Workspace) -> None:
    """Whoever is not told that a person is needed reads the commands in the end's message."""
    run(adjustable("ended"), workspace)

    assert any("review decide" in line for line in messages(server, "ended: review"))


def test_what_is_not_asked_for_is_not_sent(server: Server, workspace: Workspace) -> None:
    """Of the events that the runbook does not list nothing is sent."""
    plan = notified(make_step("a", gate=GATE, params=PASSING), events=["ended"])

    assert run(plan, workspace) == 0

    assert server.titles == ["ended: done (exit 0)"]


def test_a_relaunch_that_stops_at_once_tells_nothing_anew(
    server: Server, workspace: Workspace
) -> None:
    """The same stop, reached again without any progress, is the same incident."""
    plan = notified(make_step("a", gate=GATE, params=FAILING, review_after=1))
    run(plan, workspace)
    before = list(server.titles)

    assert [run(plan, workspace), run(plan, workspace)] == [3, 3]

    assert server.titles == before


def test_a_relaunch_that_asks_a_reviewer_in_vain_tells_nothing_anew(
    server: Server, workspace: Workspace
) -> None:
    """A request that brings no answer is no progress, however often it is paid for."""

    def ask(request: ReviewRequest) -> None:
        key = f"key {len(known_of(workspace))}"
        assert request.account.reserve(key, 0.01) == ""
        request.account.settle(key, 0.0)

    plan = notified(make_step("a", gate=GATE, params=FAILING, review_after=1))
    run(plan, workspace, reviewer=ask)
    before = list(server.titles)

    assert [run(plan, workspace, reviewer=ask) for _ in range(2)] == [3, 3]

    assert server.titles == before
    assert sum(isinstance(f, ev.RequestSent) for f in known_of(workspace)) == 3


def test_a_pause_tells_nothing(server: Server, workspace: Workspace) -> None:
    """A session that its relaunch goes on with has not ended."""
    plan = notified(make_step("a", params={"trouble": {"kind": "pause", "at": 1}}))

    assert run(plan, workspace) == 75

    assert server.titles == []


DRIVER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_notify import *
from runbook import executor
place = Workspace.at(Path(sys.argv[1]))
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
plan = notified(make_step("a", gate=GATE, params=PASSING), make_step("b"))
"""


def kill_in_a_run(workspace: Workspace, code: str) -> None:
    """Have a process of its own run a session in which it dies of ``kill``."""
    place = [str(workspace.root), str(Path(__file__).parent)]
    command = [sys.executable, "-c", f"{DRIVER}{code}\nrun(plan, place)\n", *place]
    assert subprocess.call(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) == -signal.SIGKILL


TWO = notified(make_step("a", gate=GATE, params=PASSING), make_step("b"))


def test_what_was_marked_is_not_sent_again(server: Server, workspace: Workspace) -> None:
    """Killed between the mark and the message, the incident is never told: at most once."""
    kill_in_a_run(workspace, "notify.Link.send = kill")
    assert len(list(workspace.notified.iterdir())) == 1
    assert server.titles == []

    assert run(TWO, workspace) == 0

    assert server.titles == ["ended: done (exit 0)"]


def test_what_was_not_marked_is_told_by_the_next_run(server: Server, workspace: Workspace) -> None:
    """Killed between the fact and its mark, the next run tells it, once."""
    code = "real = notify.Notifier._take\n"
    code += (
        "notify.Notifier._take = lambda self, f, *a, **k: kill() if f else real(self, f, *a, **k)"
    )
    kill_in_a_run(workspace, code)
    assert list(workspace.notified.iterdir()) == []

    assert run(TWO, workspace) == 0
    assert run(TWO, workspace) == 0

    assert server.titles == ["phase A done: Phase A", "ended: done (exit 0)"]


def test_a_message_under_way_survives_its_executor(server: Server, workspace: Workspace) -> None:
    """What was handed over before a kill is sent by the child that has it, and not again."""
    server.free.clear()
    code = "from runbook.projection import Projector\nProjector.session = kill"
    kill_in_a_run(workspace, code)

    server.free.set()
    until(lambda: len(server.titles) == 2)
    assert run(TWO, workspace) == 0

    assert server.titles == ["phase A done: Phase A", "ended: done (exit 0)"]


@pytest.mark.usefixtures("server")
def test_streamed_and_replayed_incidents_are_the_same(workspace: Workspace) -> None:
    """A journal that is read again names the incidents that were named as it was written."""
    score = {"metrics": {"m": [0.1, 0.2, 0.9]}}
    plan = notified(
        make_step("a", gate=GATE, params=score, review_after=1), budget={"review_usd": 1.0}
    )
    run(plan, workspace, reviewer=spend)
    known = known_of(workspace)
    assert isinstance(known[0], ev.SessionStarted)

    state, streamed = replay(plan, ()), set()
    for number, fact in enumerate(known):
        state = apply(plan, state, fact)
        found = new_incidents(plan, state, known[: number + 1])
        streamed |= {identity("r", incident) for incident in found}
    replayed = {identity("r", i) for i in all_incidents(plan, state, known)}

    assert replayed == streamed
    assert {path.name for path in workspace.notified.iterdir()} == {
        identity(known[0].run_id, incident) for incident in all_incidents(plan, state, known)
    }


def test_a_session_begun_before_is_told_of_from_here_on(
    server: Server, workspace: Workspace
) -> None:
    """Notifications that are added to a session under way say nothing of its past."""
    pausing = make_step("b", params={"trouble": {"kind": "pause", "at": 1}})
    first = make_step("a", gate=GATE, params=PASSING, phase="first")
    phases = make_plan(first).phases[0], make_plan(pausing).phases[0]
    plan = make_plan(first, pausing, phases=(replace(phases[0], name="first"), phases[1]))
    assert run(plan, workspace) == 75

    assert run(replace(plan, notifications=TWO.notifications), workspace) == 0

    assert server.titles == ["phase A done: Phase A", "ended: done (exit 0)"]


def test_a_hanging_server_holds_no_session(
    server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session ends with its own code while the server still holds the first message."""
    server.free.clear()
    monkeypatch.setattr(notify, "WAIT_S", 0.3)

    assert run(notified(make_step("a", gate=GATE, params=FAILING, review_after=1)), workspace) == 3

    assert server.told == []
    assert not workspace.log("notify").exists(), "the courier had given up before"
    assert isinstance(known_of(workspace)[-1], ev.SessionStopped)
    server.free.set()
    until(lambda: server.titles[-1:] == ["ended: review (exit 3)"])


def test_a_hanging_server_does_not_hold_a_signal(server: Server, tmp_path: Path) -> None:
    """Sent SIGTERM, the executor pauses with 75 while the server still holds its message."""
    server.free.clear()
    spec = write_runbook(tmp_path, {**REVIEWED, "sleep": 0.3, "batches": 4})
    document = json.loads(spec.read_text())
    spec.write_text(json.dumps({**document, "notifications": {}}))
    command = [sys.executable, "-m", "runbook", "run", str(spec), "--workspace"]
    with subprocess.Popen([*command, str(tmp_path / "ws")], stderr=subprocess.DEVNULL) as process:
        assert server.asked.wait(30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75

    assert server.told == []
    assert not (tmp_path / "ws/logs/notify.log").exists(), "the courier had given up before"


def test_a_server_that_is_down_is_a_line_in_the_log(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing listens the session ends as it would, and its log says what was not told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv(NOTIFY_URL, f"json://127.0.0.1:{free.getsockname()[1]}/{CANARY}")

        assert run(TWO, workspace) == 0

    assert log_of(workspace).count("no server took it") == 2
    assert CANARY not in log_of(workspace)


def test_a_refusal_is_told_by_its_number(server: Server, workspace: Workspace) -> None:
    """Of a server's refusal the log holds the HTTP status."""
    server.status = 503

    assert run(TWO, workspace) == 0

    assert log_of(workspace).count("the server answered 503") == 2


def test_a_lost_courier_is_replaced(
    server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A courier that was killed fails nothing; the next message goes to another one."""
    real = notify.Link.__init__

    def begin(link: notify.Link, *arguments: Any) -> None:
        real(link, *arguments)
        assert link._process is not None
        link._process.kill()
        link._process.wait()

    monkeypatch.setattr(notify.Link, "__init__", begin)

    assert run(TWO, workspace) == 0

    assert server.titles == ["phase A done: Phase A", "ended: done (exit 0)"]


def test_a_failure_of_our_own_fails_no_session(
    server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while a message is put into words is a line in the log."""

    def broken(*_: object) -> tuple[str, str]:
        raise ZeroDivisionError

    monkeypatch.setattr(notify, "compose", broken)

    assert run(TWO, workspace) == 0

    assert log_of(workspace).count("not notified: ZeroDivisionError") == 2
    assert server.titles == []


def test_an_end_that_is_not_on_record_is_told(
    server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that takes no more keeps nobody from hearing that the session has ended."""

    def full(*_: object, **__: object) -> None:
        raise NeedsPersonError("no space is left", fix="make room")

    def gates(gate: Gate, metrics: tuple[Metric, ...], final: bool) -> Judgement:
        monkeypatch.setattr(Journal, "append", full)
        return simple_gates(gate, metrics, final)

    with pytest.raises(NeedsPersonError):
        run(TWO, workspace, gates=gates)

    assert server.titles == ["ended: the journal takes no more"]


def test_without_an_address_the_session_goes_on(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the variable is not set a warning says so once, and no courier is started."""
    monkeypatch.delenv(NOTIFY_URL, raising=False)
    monkeypatch.setattr(notify, "Link", None)
    said: list[Json] = []

    assert run(TWO, workspace, on_progress=said.append) == 0

    warnings = [fields["unnotified"] for fields in said if "unnotified" in fields]
    assert warnings == [
        f"nobody will be notified: {NOTIFY_URL} is not set; export it, or write it in .env"
    ]
    assert not workspace.notified.exists()


@pytest.mark.parametrize("is_declared", [False, True])
def test_the_executor_itself_never_imports_apprise(
    server: Server, workspace: Workspace, is_declared: bool
) -> None:
    """What sends is imported by the courier alone, and nothing of it where none is declared."""
    code = """
plan = plan if sys.argv[3] == "True" else make_plan(*plan.steps)
assert run(plan, place) == 0
assert "apprise" not in sys.modules and "requests" not in sys.modules
"""
    arguments = [str(workspace.root), str(Path(__file__).parent), str(is_declared)]
    command = [sys.executable, "-c", DRIVER + code, *arguments]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert len(server.titles) == (2 if is_declared else 0)


@pytest.mark.parametrize("status", [200, 500])
def test_the_address_is_nowhere_on_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """A step prints it, a server refuses it, and no file holds it in any spelling."""
    server.status = status
    address = server.url.replace("json://", f"json://someone:{CANARY}@")
    monkeypatch.setenv(NOTIFY_URL, address)
    monkeypatch.setenv("RUNBOOK_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "stalling.py").write_text(STALLING.replace("60", "0"))
    place = Workspace.at(tmp_path / "ws")
    step = make_step("a", function="stalling:run", params={"trouble": {"kind": "raise", "at": 1}})
    plan = replace(TWO, steps=(step,), runbook=tmp_path / "runbook.yaml", budget={"usd": 9.0})

    assert run(replace(plan, phases=make_plan(step).phases), place) == 1

    assert len(server.told) == 2
    assert f"[secret {NOTIFY_URL}]" in place.log("a").read_text()
    for folder in (place.root, tmp_path / "state"):
        for path in (p for p in folder.rglob("*") if p.is_file()):
            assert leaks(path.read_bytes(), address, CANARY) == [], path


def test_a_steps_own_words_are_not_sent(server: Server, workspace: Workspace) -> None:
    """What a step raised may quote a sample, so a message says where to read it, and no more."""
    step = make_step("a", params={"trouble": {"kind": "raise", "at": 1}})

    assert run(notified(step), workspace) == 1

    (needed, _) = server.told
    assert "fake step was told to fail" not in json.dumps(server.told)
    assert needed["message"].startswith("a, attempt 1: its own code failed")


def test_where_the_executor_is_dead_the_meter_tells(server: Server, workspace: Workspace) -> None:
    """Killed and not resumed, the session's end is told by its meter before the pod is stopped."""
    told, calls = workspace.root.parent / "told", workspace.root.parent / "calls"
    server.on_told = lambda _: told.touch()
    script = f'test -e "{told}" && echo told >> "{calls}"'
    pod = {"stop": ["/bin/sh", "-c", script], "state": None, "rental_ends": None}
    code = f"plan = replace(plan, pod={ {**pod, 'abandoned_after_s': 0.1}!r})\n"
    code += "executor.acts.run_step = lambda *_: (wait_for_meter(place), kill())"
    kill_in_a_run(workspace, code)

    until(calls.exists)

    assert calls.read_text() == "told\n"
    (message,) = server.told
    assert message["title"] == "test: ended without its executor"
    assert message["message"].splitlines()[-1] == f"runbook status --workspace {workspace.root}"


def wait_for_meter(workspace: Workspace) -> None:
    until(MeterRecords.of(workspace.root).newest)


def started(**limits: Json) -> ev.SessionStarted:
    return ev.SessionStarted("r", "x", "x", "x", (), {}, {}, limits=limits)


def thresholds(*known: ev.Event) -> list[tuple[str, int, bool]]:
    return [(str(i.key[0]), int(i.key[1]), i.is_news) for i in of_budget(known)]


def test_a_threshold_counts_what_was_worked() -> None:
    """Time that is leased ahead is not spent yet; a lost executor's lease is."""
    begun = started(wall_clock_s=1000.0)
    assert thresholds(begun, ev.TimeLeased(450.0, 300.0)) == []
    assert thresholds(begun, ev.TimeLeased(500.0, 300.0)) == [("wall_clock", 50, True)]
    resumed = ev.SessionResumed({"wall_clock_s": 1000.0})
    assert thresholds(begun, ev.TimeLeased(450.0, 300.0), resumed) == [("wall_clock", 50, True)]


def test_a_request_under_way_is_not_spent_yet() -> None:
    """Its worst cost counts once nobody waits for it any more, be it without an end."""
    begun, sent = started(review_usd=1.0), ev.RequestSent("a-1", "k", 1, 0.9)
    beat, asked_again = ev.TimeLeased(1.0, 0.0), ev.RequestSent("a-1", "k", 2, 0.01)
    assert thresholds(begun, sent, beat) == []
    assert thresholds(begun, sent, beat, ev.RequestSettled("a-1", "k", 1, 0.1)) == []
    told = [("review_usd", 80, True), ("review_usd", 50, False)]
    decided = ev.ReviewDecided("a-1", "stop", {}, "no", "x", person=False)
    stopped = ev.SessionStopped("review", 3, "a: why")
    resumed = ev.SessionResumed({"review_usd": 1.0})
    for later in (asked_again, decided, stopped, resumed):
        assert thresholds(begun, sent, beat, later) == told


def test_the_highest_threshold_speaks_for_those_below() -> None:
    """Of thresholds that are passed at once one message tells, and the others never do."""
    known = [started(usd=10.0, usd_per_hour=3600.0), ev.TimeLeased(8.5, 1.5)]
    assert thresholds(*known) == [("usd", 80, True), ("usd", 50, False)]


def test_a_stop_by_the_budget_is_its_hundred_percent() -> None:
    """What is held back for the end is not left; a stop by the rental says nothing of a limit."""
    begun = started(wall_clock_s=1000.0, reserve_s=100.0, gpu_hours=100.0, gpus=1)
    used = ev.TimeLeased(900.0, 0.0)
    stop = ev.SessionStopped("budget", 4, "spent")
    assert thresholds(begun, used, stop)[0] == ("wall_clock", 100, True)
    assert thresholds(begun, used, replace(stop, reason="rental"))[0] == ("wall_clock", 80, True)


def test_a_raised_limit_is_another_one() -> None:
    """The same share of a higher limit is told again; over resumes of one limit it is not."""
    used = ev.TimeLeased(600.0, 0.0)

    def names(limit: float) -> set[str]:
        known = [started(wall_clock_s=1000.0), used, ev.SessionResumed({"wall_clock_s": limit})]
        return {identity("r", incident) for incident in of_budget(known)}

    first = {identity("r", i) for i in of_budget([started(wall_clock_s=1000.0), used])}
    assert names(1000.0) == first
    assert names(1100.0).isdisjoint(first)


def spec_with(folder: Path, notifications: Json) -> Path:
    spec = write_runbook(folder, {"metrics": {"score": 0.9}})
    document = json.loads(spec.read_text())
    spec.write_text(json.dumps({**document, "notifications": notifications}))
    return spec


@pytest.mark.parametrize(
    ("notifications", "told"),
    [
        ({"url": f"ntfys://ntfy.sh/{CANARY}"}, "an address is a secret"),
        ({"url_env": f"ntfys://ntfy.sh/{CANARY}"}, "this is no variable's name"),
        ({"url_env": "MY_PAGER"}, "does not say that its value is a secret"),
        ({"events": ["phase_dun"]}, "'phase_dun' is not one of"),
        ({"events": []}, "is empty"),
    ],
)
def test_an_address_in_the_runbook_is_refused(
    tmp_path: Path, notifications: Json, told: str
) -> None:
    """The address stands in the environment alone; what is refused is not quoted."""
    with pytest.raises(ConfigError) as refused:
        load_plan(spec_with(tmp_path, notifications))
    assert told in str(refused.value)
    assert CANARY not in str(refused.value)


def test_editing_notifications_changes_no_session(tmp_path: Path) -> None:
    """They are no part of the plan's identity: no step is made anew for them."""
    without = load_plan(write_runbook(tmp_path, {"metrics": {"score": 0.9}}))
    place = Workspace.at(tmp_path / "ws")
    assert run(without, place) == 0

    plan = load_plan(spec_with(tmp_path, {"url_env": "TEAM_WEBHOOK", "events": ["ended"]}))

    assert plan.notifications == {"url_env": "TEAM_WEBHOOK", "events": ["ended"]}
    assert plan.fingerprint == without.fingerprint
    check_same_plan(plan, known_of(place), place.root)


@pytest.mark.usefixtures("server")
def test_the_doctor_says_whether_anybody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row names the variable, never its value; without one it warns and says what to do."""
    spec = spec_with(tmp_path, {})

    def row() -> list[str]:
        place = Workspace.at(tmp_path / "ws")
        rows = examine(spec, place, check_reviewer=check_reviewer, environ=os.environ)
        return [f"{r.state.value} {r.found} {r.fix}" for r in rows if r.name == "notifications"]

    assert row() == [f"ok {NOTIFY_URL} is set; 8 kinds of events "]
    monkeypatch.delenv(NOTIFY_URL)
    assert row() == [
        f"warn nobody will be told: {NOTIFY_URL} is not set export it, or write it in .env"
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_message_has_a_bounded_time(server: Server) -> None:
    """A server that does not answer is left behind after the time that was given."""
    server.free.clear()
    message = {"title": "t", "body": "b", "level": "info"}
    assert courier.send(server.url, message, 0.3) == "no end within 0.3 s"
    assert courier.send("no address", message) == "apprise cannot read the address"


def test_a_courier_does_not_outlive_its_parent_for_long(server: Server, tmp_path: Path) -> None:
    """Held by a server, it ends all the same once its parent is gone and its time is over."""
    server.free.clear()
    code = "import os; from runbook import courier as c; c.LINGER_S = 0.2; os._exit(c.main())"
    log = tmp_path / "notify.log"
    message = {"id": "x", "kind": "ended", "title": "t", "body": "b", "level": "info"}
    with subprocess.Popen(
        [sys.executable, "-c", code, NOTIFY_URL, str(log)], stdin=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdin is not None
        child.stdin.write(b"torn\n" + json.dumps(message).encode() + b"\n")
        child.stdin.flush()
        assert server.asked.wait(30)
        child.stdin.close()
        assert child.wait(30) == 1

    assert "a torn message was passed over" in log.read_text()
    assert server.told == []
