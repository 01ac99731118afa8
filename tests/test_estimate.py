"""Estimates: only what was measured on this machine counts, and what was not is said."""

import json
import math
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_session import call, write_runbook

from runbook import estimate as e
from runbook.budget import Limits, Spent
from runbook.contract import Json
from runbook.estimate import Estimate, Fit, Interval, Run, Work
from runbook.events import BatchCommitted, Event, SessionStarted, StepFinished, StepStarted
from runbook.executor import Seams, run_session
from runbook.fingerprint import plan_document
from runbook.journal import Entry
from runbook.plan import Plan
from runbook.report import spending
from runbook.report.session import SessionView
from runbook.report.view import build_view
from runbook.testing import make_plan, make_step, simple_gates
from runbook.workspace import Workspace

PASSES = {"metrics": {"score": 0.9}}
Capture = pytest.CaptureFixture[str]


def finished(seconds: float, step: str = "a") -> StepFinished:
    return StepFinished(step, 1, 1, (), (), 12, seconds, {}, (), ())


def remember(plan: Plan, *seconds: float, step: str = "a") -> None:
    planned = plan.step(step)
    for took in seconds:
        e.remember(plan, planned, planned.params, finished(took, step))


def estimated(plan: Plan, step: str = "a") -> Estimate:
    (found,) = e.estimate_steps(plan_document(plan), [step], e.read_history())
    return found


def one(params: Json = None, **fields: Json) -> Plan:
    given = {"model": {"name": "tiny"}, "engine": {"device": "cpu"}, **fields}
    return make_plan(make_step("a", params=params or {}), **given)


def execute(plan: Plan, root: Path) -> int:
    return run_session(plan, Workspace.at(root), Seams(simple_gates, lambda _: None))


def test_a_step_never_run_here_is_not_measured(state_home: Path) -> None:
    """Without a former run nothing is said, and nothing is written by asking."""
    assert estimated(one()) == Estimate("a", Interval(0.0, None), 0, same_params=False)
    assert list(state_home.iterdir()) == []


def test_former_runs_give_their_span(state_home: Path) -> None:
    """Several runs span from the shortest to the longest; a single one is widened."""
    remember(one(), 10.0)
    assert estimated(one()).seconds == Interval(5.0, 20.0)

    remember(one(), 14.0, 12.0)
    assert estimated(one()) == Estimate("a", Interval(10.0, 14.0), 3, same_params=True)
    assert (state_home / "runbook" / "durations.jsonl").stat().st_mode & 0o777 == 0o600


def test_the_same_parameters_are_preferred_and_others_marked() -> None:
    """Runs with other parameters count only where there are none with these, and are told so."""
    remember(one({"rows": 9}), 90.0, 99.0)

    found = estimated(one({"rows": 1}))
    assert (found.seconds, found.same_params) == (Interval(90.0, 99.0), False)

    remember(one({"rows": 1}), 10.0, 11.0)
    assert estimated(one({"rows": 1})).seconds == Interval(10.0, 11.0)


def test_a_declared_files_bytes_are_parameters_and_its_place_is_not(tmp_path: Path) -> None:
    """The same file elsewhere is the same work; other bytes are other parameters."""

    def plan(place: str, sha256: str) -> Plan:
        path = tmp_path / place
        step = make_step("a", params={"rows": str(path)}, files={"rows": path})
        return make_plan(replace(step, file_sha256={"rows": sha256}))

    remember(plan("here", "0"), 10.0)

    assert estimated(plan("there", "0")).same_params
    assert not estimated(plan("here", "1")).same_params


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"name": "large"}},
        {"engine": {"device": "cuda"}},
        {"steps": (make_step("a", function="other:run"),)},
    ],
)
def test_other_work_tells_nothing(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of another function, model or device is no measurement of this one."""
    monkeypatch.setattr(e, "_gpus", lambda: "one, 80 GiB")
    remember(one(), 10.0)

    assert estimated(replace(one(), **other)).runs == 0


def test_another_machine_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state folder that several machines share keeps them apart."""
    remember(one(), 10.0)
    monkeypatch.setattr(e, "_machine", lambda: "another processor x 96")

    assert estimated(one()).runs == 0


def test_a_gpu_that_cannot_be_told_from_another_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, state_home: Path
) -> None:
    """Without its name a GPU's time would be taken for any other's."""
    monkeypatch.setattr(e, "_gpus", lambda: None)
    plan = one(engine={"device": "cuda"})

    remember(plan, 10.0)

    assert list(state_home.iterdir()) == []
    assert estimated(plan).runs == 0


def test_torn_and_strange_lines_are_passed_over(state_home: Path) -> None:
    """What a killed writer, or anybody else, left in the file costs no other line."""
    remember(one(), 10.0)
    path = state_home / "runbook" / "durations.jsonl"
    good = path.read_bytes().strip()
    row = json.loads(good)
    strange = [
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({**row, "seconds": -1}).encode(),
        json.dumps({**row, "seconds": "1"}).encode(),
        json.dumps({**row, "seconds": 10**400}).encode(),
        json.dumps({**row, "work": {**row["work"], "gpu": 1}}).encode(),
        json.dumps({**row, "new": 1}).encode(),
        b'{"seconds": NaN}',
        good[:40],
    ]
    path.write_bytes(b"\n".join(strange))

    remember(one(), 12.0)

    assert [run.seconds for run in e.read_history()] == [12.0]


def test_writers_at_once_lose_no_line() -> None:
    """Lines of several sessions never mix."""
    threads = [
        threading.Thread(target=remember, args=(one(), *range(1, 51)), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(run.seconds for run in e.read_history()) == sorted([*range(1, 51)] * 4)


def test_the_history_is_bounded(state_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the newest runs and stays within two halves."""
    monkeypatch.setattr(e, "HALF", 2000)

    remember(one(), *range(1, 101))

    kept = [run.seconds for run in e.read_history()]
    assert kept == list(range(101 - len(kept), 101))
    assert 5 <= len(kept) < 100
    sizes = [path.stat().st_size for path in (state_home / "runbook").iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) < 5000


@pytest.mark.parametrize("harm", ["file", "readonly", "fifo", "link", "no home"])
def test_a_history_that_cannot_be_written_harms_no_session(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_home: Path
) -> None:
    """The session ends as ever, at once; there is only no estimate."""
    folder = state_home / "runbook"
    match harm:
        case "file":
            folder.write_text("")
        case "readonly":
            monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
        case "fifo":
            folder.mkdir()
            os.mkfifo(folder / "durations.jsonl")
        case "link":
            folder.mkdir()
            (tmp_path / "target").write_text("mine")
            (folder / "durations.jsonl").symlink_to(tmp_path / "target")
        case _:
            monkeypatch.setenv("XDG_STATE_HOME", "relative")
            monkeypatch.setattr(Path, "home", _homeless)

    assert execute(one(), tmp_path / "ws") == 0
    assert estimated(one()).runs == 0
    if harm == "link":
        assert (tmp_path / "target").read_text() == "mine"
    assert not Path("relative").exists()


def _homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_state_folder_is_the_environments(tmp_path: Path) -> None:
    """A relative XDG_STATE_HOME does not count, as its specification says."""
    named = e.history_file({"XDG_STATE_HOME": str(tmp_path)})
    assert named == tmp_path / "runbook" / "durations.jsonl"
    assert e.history_file({"XDG_STATE_HOME": "x"}) == e.history_file({})
    assert e.history_file({}) == Path.home() / ".local/state/runbook/durations.jsonl"


def test_a_session_remembers_its_whole_runs_alone(tmp_path: Path) -> None:
    """A run that went on from committed batches says nothing of the whole."""
    pause = {"trouble": {"kind": "pause", "at": 1}}
    plan = make_plan(make_step("a", params=pause), make_step("b"), model={"name": "tiny"})

    assert execute(plan, tmp_path / "ws") == 75
    assert e.read_history() == ()
    assert execute(plan, tmp_path / "ws") == 0

    (run,) = e.read_history()
    assert (run.work.function, run.work.model, run.tokens) == (
        "runbook.testing:fake_phase",
        "tiny",
        4,
    )
    assert run.seconds > 0
    assert estimated(plan, "b").same_params


def test_an_adjusted_run_is_remembered_under_its_own_parameters() -> None:
    """What a retry ran with is what its time is of."""
    plan = one({"t": 1})
    e.remember(plan, plan.step("a"), {"t": 2}, finished(10.0))

    assert not estimated(plan).same_params
    assert estimated(one({"t": 2})).same_params


def test_a_sum_with_an_unmeasured_step_has_no_upper_end() -> None:
    """It is at least what was measured."""
    known = Estimate("a", Interval(10.0, 20.0), 2, same_params=True)
    unknown = Estimate("b", Interval(0.0, None), 0, same_params=False)

    assert e.total([known, known]) == Interval(20.0, 40.0)
    assert e.total([known, unknown]) == Interval(10.0, None)
    assert e.total([]) == Interval(0.0, 0.0)


def test_other_parameters_say_nothing_of_a_sum() -> None:
    """A step that ran here with other parameters alone is as little known as one that never ran."""
    known = Estimate("a", Interval(10.0, 20.0), 2, same_params=True)
    other = Estimate("b", Interval(1.0, 2.0), 9, same_params=False)

    assert e.total([known, other]) == Interval(10.0, None)
    limits = Limits(wall_clock_s=9999.0, usd_per_hour=3600.0)
    told = spending.ahead([other], e.total([other]), limits)
    assert told == "not known; measured with other parameters alone: b (1 s to 2 s)"
    (line,) = spending.projected(e.project(limits, Spent(seconds=5.0), e.total([other])))
    assert line == "wall clock: at least 5 s of 2 h 46 min: not known"


@pytest.mark.parametrize(
    ("high", "same", "expected"),
    [
        (20.0, False, Interval(6.0, None)),
        (None, False, Interval(6.0, None)),
        (20.0, True, Interval(6.0, 24.0)),
        (900.0, True, Interval(6.0, 884.0)),
    ],
)
def test_a_step_at_work_is_projected_from_its_own_pace(
    high: float | None, same: bool, expected: Interval
) -> None:
    """Three units of 4 s are left; above, only former runs of the same work bound it."""
    whole = Estimate("a", Interval(0.0, high), 2, same_params=same)

    found = e.at_pace(whole, 4, 7, 4.0)

    assert (found.seconds, found.at_pace) == (expected, True)
    assert e.total([found]) == expected


def view_at_work(*commits: float, wall_clock_s: float = 600.0) -> SessionView:
    """Step ``a`` at work, a batch committed at each of these seconds; ``b`` is to come."""
    plan = make_plan(make_step("a"), make_step("b"), model={"name": "tiny"})
    known = ("20260101_000000", str(plan.runbook), plan.name, plan.fingerprint, plan.overrides)
    begun = SessionStarted(*known, plan_document(plan), {}, {"wall_clock_s": wall_clock_s})
    facts: list[tuple[float, Event]] = [(0.0, begun), (0.0, StepStarted("a", 1, 1, {}, "o", ""))]
    facts += [(at, BatchCommitted("a", 1, f"k{at}", "p", "0" * 64, 1)) for at in commits]
    wall = "2026-01-01T00:00:00+00:00"
    return build_view(
        [Entry(i, 1, wall, at, fact.to_body(), "0" * 64) for i, (at, fact) in enumerate(facts)]
    )


def test_what_a_step_tells_of_itself_outdoes_the_history() -> None:
    """100 s to begin and 10 s a batch: 100 more are 500 s at the least, and 600 s may not last."""
    plan = make_plan(make_step("a"), make_step("b"), model={"name": "tiny"})
    remember(plan, 20.0, 22.0)
    view = view_at_work(100.0, 110.0, 120.0)
    told = {"step": "a", "attempt": 1, "done": 3, "total": 103}

    before = spending.outlook(view, e.read_history())
    now = spending.outlook(view, e.read_history(), told)

    assert before.limits[0].fit is Fit.FITS
    assert (now.limits[0].used.low, now.limits[0].fit) == (520.0, Fit.MAY_NOT)
    assert "; a at its own pace" in now.lines[0]
    assert spending.outlook(view, (), told).limits[0].fit is Fit.UNKNOWN
    short = spending.outlook(view_at_work(100.0, 110.0, 120.0, wall_clock_s=499.0), (), told)
    assert short.limits[0].fit is Fit.NOT


@pytest.mark.parametrize(
    "told",
    [
        {"step": "b"},
        {"attempt": 2},
        {"done": 40},
        {"done": 0},
        {"done": "3"},
        {"done": float("nan")},
        {"total": 2},
        {"total": None},
    ],
)
def test_progress_that_counts_no_batches_of_this_run_projects_nothing(told: Json) -> None:
    """Optimizer steps, another step's message and nonsense are no batches of the step at hand."""
    view = view_at_work(100.0, 110.0, 120.0)

    found = spending.outlook(view, (), {"step": "a", "attempt": 1, "done": 3, "total": 103, **told})

    assert found.lines == ()
    assert not any(step.at_pace for step in found.steps)


@pytest.mark.parametrize(
    ("more", "cap", "reserve", "fit"),
    [
        (Interval(10, 20), 120, 0, Fit.FITS),
        (Interval(10, 20), 120, 1, Fit.MAY_NOT),
        (Interval(10, 21), 120, 0, Fit.MAY_NOT),
        (Interval(21, 30), 120, 0, Fit.NOT),
        (Interval(21, None), 120, 0, Fit.NOT),
        (Interval(10, None), 120, 0, Fit.UNKNOWN),
    ],
)
def test_a_limit_is_compared_with_both_ends(
    more: Interval, cap: float, reserve: float, fit: Fit
) -> None:
    """It fits only where the upper end does, with what is held back for the end left alone."""
    limits = Limits(wall_clock_s=cap, reserve_s=reserve)

    (projection,) = e.project(limits, Spent(seconds=100.0), more)

    assert projection.fit is fit
    assert projection.used.low == 100.0 + more.low


def test_money_and_gpu_hours_follow_from_time_and_price() -> None:
    """Reviews that were paid count, and so does what a running executor has reserved ahead."""
    limits = Limits(gpu_hours=8.0, usd=10.0, usd_per_hour=2.0, gpus=4)
    spent = Spent(seconds=3600.0, review_usd=1.0)

    hours, money = e.project(limits, spent, Interval(1800.0, 3600.0), ahead=900.0)

    assert (hours.limit, hours.used, hours.fit) == ("GPU-hours", Interval(5.0, 8.0), Fit.FITS)
    assert (money.limit, money.used, money.fit) == ("money", Interval(3.5, 5.0), Fit.FITS)


def test_plan_shows_time_and_money_as_intervals(tmp_path: Path, capfd: Capture) -> None:
    """Before a first run nothing is measured; after one, each step, the sum and the limits are."""
    spec = write_runbook(tmp_path, PASSES)
    options = ("--set", "budget.usd_per_hour=2.0", "--set", "budget.usd=5.0")
    empty = ("--workspace", tmp_path / "none")
    assert "Time: not measured" in call(capfd, "plan", spec, *empty).err

    call(capfd, "run", spec, "--workspace", tmp_path / "ws")
    told = call(capfd, "plan", spec, *empty, *options).err
    rows = call(capfd, "plan", spec, *empty, *options, "--json").lines

    assert "wall clock: " in told
    assert "of 1 h 30 min: fits." in told
    assert "of $5.00: fits." in told
    assert [row["estimate"]["runs"] for row in rows[:2]] == [1, 1]
    assert rows[2]["estimate"] is None
    low, high = rows[3]["seconds"]["low"], rows[3]["seconds"]["high"]
    assert 0 < low < high
    assert [limit["fit"] for limit in rows[3]["limits"]] == ["fits", "fits"]


def test_plan_says_what_is_not_measured(tmp_path: Path, capfd: Capture) -> None:
    """A sum without every step is told as a lower end, and fits nothing for certain."""
    spec = write_runbook(tmp_path, PASSES)
    call(capfd, "run", spec, "--workspace", tmp_path / "ws")
    (tmp_path / "mine.py").write_text("def run(request): pass\n")
    text = spec.read_text()
    fake = '"name": "b", "function": "runbook.testing:fake_phase"'
    assert fake in text
    spec.write_text(text.replace(fake, '"name": "b", "function": "mine:run"'))

    told = call(capfd, "plan", spec, "--workspace", tmp_path / "none").err

    assert "In all: at least " in told
    assert "; not measured: b." in told
    assert "of 1 h 30 min: not known." in told


def test_status_projects_what_is_left_against_the_limits(tmp_path: Path, capfd: Capture) -> None:
    """A stopped session shows what its remaining steps took before; a done one nothing."""
    spec = write_runbook(tmp_path, PASSES)
    call(capfd, "run", spec, "--workspace", tmp_path / "first")
    place = tmp_path / "ws"
    failing = ("--set", "a.metrics.score=0.1")
    assert call(capfd, "run", spec, "--workspace", place, *failing).code == 3

    told = call(capfd, "status", "--workspace", place).err
    (facts,) = call(capfd, "status", "--workspace", place, "--json").lines

    assert "Still to come, without retries: " in told
    assert "Projected wall clock: " in told
    assert [step["step"] for step in facts["outlook"]["steps"]] == ["b"]
    assert facts["outlook"]["limits"][0]["fit"] == "fits"
    done = call(capfd, "status", "--workspace", tmp_path / "first").err
    assert "Projected" not in done


def test_a_run_is_what_its_line_says() -> None:
    """A history line read back equals the run that was remembered."""
    remember(one(), 12.5)
    (run,) = e.read_history()

    assert run == Run(
        Work("runbook.testing:fake_phase", e._machine(), "", "tiny", "cpu"),
        run.params,
        12.5,
        12,
    )
    assert math.isfinite(run.seconds)
    assert len(run.params) == 64
