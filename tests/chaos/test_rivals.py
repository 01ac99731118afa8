"""Several executors, stopped ones, killed ones, and clocks that jump: one session, one end."""

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_session import call

from chaos.session import (
    Process,
    calm_result,
    difference,
    ends,
    fork,
    go,
    keep_figure,
    small_plan,
    spread_over,
)
from runbook import durable, executor, takeover
from runbook import events as ev
from runbook.budget import spent
from runbook.clock import Clock
from runbook.crash_session import Result, requests_cut_short, run_forked
from runbook.durable import Data
from runbook.faults import Fault, install
from runbook.journal import facts, read_entries, read_journal
from runbook.testing import generations, simple_gates
from runbook.workspace import Workspace

MONTH_S = 30 * 86400.0
ROUNDS = 50


@pytest.fixture
def calm(tmp_path: Path) -> Result:
    return calm_result(tmp_path)


def twice(things: Sequence[Any]) -> list[Any]:
    return sorted({thing for thing in things if things.count(thing) > 1})


def batches_twice(place: Workspace) -> list[Any]:
    known = facts(read_entries(place))
    return twice([(f.step, f.attempt, f.key) for f in known if isinstance(f, ev.BatchCommitted)])


def overlap(place: Workspace) -> list[int]:
    """Epochs that began before the one before them had ended, by their lines' own times."""
    entries = read_entries(place)
    times = {
        n: [e.mono for e in entries if e.epoch == n]
        for n in dict.fromkeys(e.epoch for e in entries)
    }
    return [after for (_, old), (after, new) in pairwise(times.items()) if old[-1] > new[0]]


def race(folder: Path, calm: Result, rounds: Sequence[int]) -> list[str]:
    return [told for number in rounds if (told := _race(folder, calm, number))]


def _race(folder: Path, calm: Result, number: int) -> str:
    """Two to eight executors at once; every other time on what a killed one left."""
    chance = random.Random(number)
    place = Workspace.at(folder / f"w{number}")
    made = 0
    if number % 2:
        run_forked(place.root, simple_gates, own=Fault(chance.randrange(40, 220)))
        made = len(generations(place.root))
    unsettled = requests_cut_short(place)
    rivals = [
        fork(lambda: go(place.root), folder / f"w{number}.{i}") for i in range(2 + number % 7)
    ]
    codes = [rival.wait() for rival in rivals]
    said = "\n".join(rival.said for rival in rivals)
    if 0 not in codes or set(codes) - {0, 7}:
        return f"round {number}: {codes}: {said[-1500:]}"
    if again := batches_twice(place) or twice(generations(place.root)[made:]) or overlap(place):
        return f"round {number}: twice or at once: {again}"
    wrong = difference(place, calm, unsettled=unsettled)
    return f"round {number}: {wrong}" if wrong else ""


def test_of_many_executors_one_works_at_a_time(tmp_path: Path, calm: Result) -> None:
    """Two to eight at once, fifty times: one goes on, the others end with 7; nothing is doubled."""
    assert spread_over(range(ROUNDS), partial(race, tmp_path, calm)) == []
    keep_figure("executors at once", rounds=ROUNDS)


class Stopping:
    """Stops this process by SIGSTOP before its n-th durable call."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._calls = 0

    def __call__(self, _call: str, _path: Path, data: Data) -> Data:
        self._calls += 1
        if self._calls == self._at:
            os.kill(os.getpid(), signal.SIGSTOP)
        return data


def stopped_at(place: Workspace, log: Path, at: int) -> Process:
    def act() -> int:
        durable.fault = Stopping(at)
        return go(place.root)

    return fork(act, log)


def elsewhere(place: Workspace, log: Path) -> Process:
    """An executor on another machine that takes the workspace over: it sees no process of here."""

    def act() -> int:
        socket.gethostname = lambda: "another-pod"
        takeover._PATIENCE_S = 0.2
        vars(executor)["end_orphans"] = lambda _: 0
        return go(place.root, takeover=takeover.forced)

    return fork(act, log)


def take_over(folder: Path, calm: Result, points: Sequence[int]) -> list[str]:
    return [told for at in points if (told := _take_over(folder, calm, at))]


def _take_over(folder: Path, calm: Result, at: int) -> str:
    """Stop an executor before a durable call, let another finish, wake the first."""
    place = Workspace.at(folder / f"w{at}")
    first = stopped_at(place, folder / f"{at}.first", at)
    if not first.wait_stopped():
        return f"call {at}: it ended before that: {first.said}"
    unsettled = requests_cut_short(place)
    second = elsewhere(place, folder / f"{at}.second")
    try:
        code = second.wait()
    finally:
        first.send(signal.SIGCONT)
    late = first.wait()
    if code != 0:
        return f"call {at}: the second ended with {code}: {second.said[-700:]}"
    # Behind its SessionDone there is nothing left that could be refused.
    mine = [entry.body["type"] for entry in read_entries(place) if entry.epoch == 1]
    if late != 7 and not (late == 0 and "SessionDone" in mine):
        return f"call {at}: the first ended with {late}: {first.said[-1200:]}"
    if (
        late == 0
        and any(isinstance(f, ev.SessionDone) for f in facts(read_entries(place))) is False
    ):
        return f"call {at}: the first believes that it is done"
    wrong = difference(place, calm, unsettled=unsettled)
    return f"call {at}: {wrong}" if wrong else ""


def test_a_stopped_executor_that_wakes_after_a_takeover_changes_nothing(
    tmp_path: Path, calm: Result
) -> None:
    """Stopped at any point, between fence and write too, it ends with 7; the result stands."""
    count = tmp_path / "calls"
    run_forked(tmp_path / "count", simple_gates, own=Fault(0, count_to=str(count)))
    calls = count.read_text().splitlines()
    # A journal line is written without a file created for it, right behind the fence's check.
    lines = [n for n, call in enumerate(pairwise(calls), 2) if call[1] == "write" != call[0]]
    lines = [n for n in lines if calls[n - 2] != "create"]
    files = [n for n, call in enumerate(calls, 1) if call == "create" and 25 < n < len(calls) - 12]
    points = sorted({*range(25, len(calls) - 12, 9), *lines[2:-4:3], *files[::2]})
    assert len(points) > 40

    assert spread_over(points, partial(take_over, tmp_path, calm)) == []

    keep_figure("stopped and taken over", points=len(points))


def jumping(seed: int) -> Clock:
    """Its wall clock jumps by thirty days to and fro at random looks; its monotonic does not."""
    chance, off = random.Random(seed), [0.0]

    def wall() -> float:
        if chance.random() < 0.2:
            off[0] = chance.choice([-MONTH_S, 0.0, MONTH_S])
        return time.time() + off[0]

    return Clock(wall)


@pytest.mark.parametrize("seed", range(8))
def test_jumps_of_the_wall_clock_change_nothing(
    tmp_path: Path, calm: Result, capfd: pytest.CaptureFixture[str], seed: int
) -> None:
    """Thirty days forth and back, over a kill too: same end, no early stop, nothing charged."""
    place, log = Workspace.at(tmp_path / "w"), tmp_path / "log"
    budget = {**small_plan().budget, "wall_clock_s": 3600.0}
    plan = small_plan(0.02, budget=budget)

    def killed() -> int:
        install(Fault(random.Random(seed).randrange(60, 220)))
        return go(place.root, plan, jumping(seed))

    assert fork(killed, log).wait() == -signal.SIGKILL
    unsettled = requests_cut_short(place)
    leased = 300.0
    assert call(capfd, "status", "--workspace", place.root).code == 0

    assert ends(place.root, log, plan, clock=jumping(seed + 100)) == 0, log.read_text()

    assert difference(place, calm, unsettled=unsettled) == ""
    assert spent(facts(read_entries(place))).seconds < leased + 60
    assert call(capfd, "status", "--workspace", place.root).code == 0


def terminate(folder: Path, calm: Result, seeds: Sequence[int]) -> list[str]:
    return [told for seed in seeds if (told := _terminate(folder, calm, seed))]


def _terminate(folder: Path, calm: Result, seed: int) -> str:
    """SIGTERM at a random moment of a session that works, and then the resume."""
    chance = random.Random(seed)
    place, log = Workspace.at(folder / f"w{seed}"), folder / f"{seed}.log"
    sleep = 30.0 if seed % 10 == 0 else 0.05
    delay = chance.uniform(0, 0.3 if sleep > 1 else 0.9)
    process = fork(lambda: go(place.root, small_plan(sleep)), log)
    wait_until(lambda: process.ended() or bool(read_journal(place).entries))
    time.sleep(delay)
    begun = time.monotonic()
    process.send(signal.SIGTERM)
    code = process.wait()
    took = time.monotonic() - begun
    name = f"SIGTERM {seed} after {delay:.2f} s"
    done = any(isinstance(f, ev.SessionDone) for f in facts(read_entries(place)))
    if code != 75 and not (done and code == 0):
        return f"{name}: ended with {code}: {log.read_text()[-500:]}"
    if took >= 4:
        return f"{name}: took {took:.1f} s"
    unsettled = requests_cut_short(place)
    if again := ends(place.root, log):
        return f"{name}: the resume ended with {again}: {log.read_text()[-500:]}"
    wrong = difference(place, calm, unsettled=unsettled)
    return f"{name}: {wrong}" if wrong else ""


def wait_until(holds: Callable[[], bool], timeout: float = 20.0) -> None:
    limit = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_sigterm_at_any_moment_pauses_in_time(tmp_path: Path, calm: Result) -> None:
    """At fifty random moments: exit 75 in under four seconds, and the same end after a resume."""
    assert spread_over(range(50), partial(terminate, tmp_path, calm)) == []
    keep_figure("SIGTERM", moments=50)


def orphan(folder: Path, calm: Result, seeds: Sequence[int]) -> list[str]:
    return [told for seed in seeds if (told := _orphan(folder, calm, seed))]


def _orphan(folder: Path, calm: Result, seed: int) -> str:
    """Kill an executor alone while its child and a process of the child's work, and go on."""
    place, log = Workspace.at(folder / f"w{seed}"), folder / f"{seed}.log"
    # Slow enough not to be done before the kill.
    plan = small_plan(0.4, runbook=Path(__file__))
    steps = tuple(replace(step, function="orphan_steps:run") for step in plan.steps)
    plan = replace(plan, steps=steps)
    notes = place.logs / "sleepers"
    process = fork(lambda: go(place.root, plan), log)
    wait_until(lambda: notes.exists() and bool(notes.read_text()))
    time.sleep(random.Random(seed).uniform(0, 0.6))
    started = psutil.Process(process.pid).children(recursive=True) if not process.ended() else []
    process.send(signal.SIGKILL)
    process.wait()
    left = [psutil.Process(int(pid)) for pid in notes.read_text().split()]
    if not all(each.is_running() for each in left):
        return f"kill {seed}: the sleepers were gone before, so this shows nothing"
    unsettled = requests_cut_short(place)

    code = ends(place.root, log)

    _, alive = psutil.wait_procs([*started, *left], timeout=5)
    alive = [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    for each in alive:
        each.kill()
    if alive or code:
        return f"kill {seed}: code {code}, alive: {alive}"
    wrong = difference(place, calm, unsettled=unsettled)
    return f"kill {seed}: {wrong}" if wrong else ""


def test_no_orphan_survives_the_next_start(tmp_path: Path, calm: Result) -> None:
    """Killed at twenty random moments, an executor's children and theirs are gone after a start."""
    assert spread_over(range(20), partial(orphan, tmp_path, calm)) == []
    keep_figure("orphans", kills=20)
