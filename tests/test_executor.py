"""The executor: kill it anywhere, and the same command makes the same bytes once."""

import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from runbook import artifacts, durable, manifest
from runbook import events as ev
from runbook.clock import Clock
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
from runbook.control import record_stop
from runbook.errors import ConfigError, CorruptError, LockedError, NeedsPersonError
from runbook.executor import Seams, run_session
from runbook.journal import batches, facts, read_entries
from runbook.manifest import provenance
from runbook.owner import process_start
from runbook.plan import Adjustment, Plan
from runbook.review import record_decision
from runbook.takeover import open_journal
from runbook.testing import GENERATIONS, generations, make_plan, make_step, simple_gates
from runbook.workspace import Workspace

GATE = Gate((Criterion("m", "rate", at_least=0.5),))
SENTINEL = Gate((Criterion("m", "sentinel", at_least=0.5),))
DRIVER = Path(__file__)
Answer = Callable[[ReviewRequest], Decision | None]


def nobody(_: ReviewRequest) -> Decision | None:
    return None


def execute(plan: Plan, workspace: Workspace, reviewer: Answer = nobody, **seams: Any) -> int:
    return run_session(
        plan, workspace, Seams(**{"gates": simple_gates, **seams}, reviewer=reviewer)
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "ws")


def history(workspace: Workspace) -> list[str]:
    """The kinds of facts, leases of time left out."""
    names = [type(fact).__name__ for fact in facts(read_entries(workspace))]
    return [name for name in names if name != "TimeLeased"]


def last_stop(workspace: Workspace) -> ev.SessionStopped:
    found = [f for f in facts(read_entries(workspace)) if isinstance(f, ev.SessionStopped)]
    return found[-1]


def dataset(workspace: Workspace, step: str) -> bytes:
    found = [
        fact
        for fact in facts(read_entries(workspace))
        if isinstance(fact, ev.StepFinished) and fact.step == step
    ]
    return (workspace.root / found[-1].artifacts[0].path).read_bytes()


def test_a_session_runs_to_its_end(workspace: Workspace) -> None:
    """Steps run in order, read each other's artifacts, and leave manifests of what they made."""
    plan = make_plan(
        make_step("a", gate=GATE, params={"metrics": {"m": 0.9}}),
        make_step("b", inputs=("a",)),
        make_step("c", enabled=False),
    )

    assert execute(plan, workspace) == 0

    assert history(workspace)[-1] == "SessionDone"
    session = next(f for f in facts(read_entries(workspace)) if isinstance(f, ev.SessionStarted))
    whole = json.loads(workspace.session_manifest(session.run_id).read_bytes())
    assert [m["step"] for m in whole["manifests"]] == ["a", "b"]
    assert whole["done"] == {"exit_code": 0, "overrides": 0}
    first, second = (
        json.loads((workspace.root / m["path"]).read_bytes()) for m in whole["manifests"]
    )
    assert first["verdict"] == "pass"
    assert second["inputs"]["a"]["dataset"] == first["outputs"][0]["sha256"]
    assert second["environment"]["python"]


def test_a_finished_session_returns_its_code_at_once(workspace: Workspace) -> None:
    """Running a finished session again appends nothing."""
    plan = make_plan(make_step("a"))
    execute(plan, workspace)
    before = workspace.segment(1).read_bytes()

    assert execute(plan, workspace) == 0
    assert workspace.segment(1).read_bytes() == before


def test_one_child_serves_steps_that_need_the_same_model(workspace: Workspace) -> None:
    """A child is kept while the model stays, and replaced where the quantization differs."""
    plan = make_plan(make_step("a"), make_step("b"), make_step("c", params={"quantization": "nf4"}))
    execute(plan, workspace)

    done = [f for f in facts(read_entries(workspace)) if isinstance(f, ev.StepFinished)]
    first, second, third = (f.summary["pid"] for f in done)
    assert first == second
    assert second != third


def test_an_adjusted_retry_passes(workspace: Workspace) -> None:
    """A failed gate changes what was declared, and the next attempt makes other data."""
    step = make_step(
        "a",
        gate=GATE,
        params={"t": 0.7, "metrics": {"m": [0.1, 0.9]}},
        adjustable={"t": Range(0.1, 1.0)},
        adjustments=(Adjustment("m", {"t": {"add": -0.2}}, "cooler"),),
    )

    assert execute(make_plan(step), workspace) == 0

    known = facts(read_entries(workspace))
    starts = [f for f in known if isinstance(f, ev.StepStarted)]
    assert [(s.attempt, s.params["t"]) for s in starts] == [(1, 0.7), (2, 0.5)]
    assert starts[0].output != starts[1].output
    assert len(generations(workspace.root)) == 4


def test_an_underpowered_sample_keeps_its_batches(workspace: Workspace) -> None:
    """The second look makes only what the first did not, in the same attempt."""
    gate = Gate((Criterion("m", "rate", at_least=0.5, min_n=100),), extend={"batches": 4})
    step = make_step("a", gate=gate, params={"metrics": {"m": {"value": 0.9, "n_per_batch": 25}}})

    assert execute(make_plan(step), workspace) == 0

    assert [key for _, _, key in generations(workspace.root)] == ["0000", "0001", "0002", "0003"]


def test_a_second_look_at_the_same_sample_decides_nothing(workspace: Workspace) -> None:
    """A sample that did not grow stays underpowered, and a person is asked."""
    gate = Gate((Criterion("m", "rate", at_least=0.5, min_n=100),), extend={"batches": 2})
    step = make_step("a", gate=gate, params={"metrics": {"m": {"value": 0.9, "n_per_batch": 25}}})

    assert execute(make_plan(step), workspace) == 3

    judged = [f for f in facts(read_entries(workspace)) if isinstance(f, ev.GateJudged)]
    assert [(f.look, f.verdict) for f in judged] == [(1, "underpowered"), (2, "underpowered")]


@pytest.mark.parametrize("harm", ["change", "delete"])
def test_a_result_that_is_gone_is_never_called_done(workspace: Workspace, harm: str) -> None:
    """A changed or deleted file stops the session with 3; restored, the same command ends it."""
    plan = make_plan(make_step("a"), make_step("b", params={"trouble": {"kind": "pause", "at": 0}}))
    assert execute(plan, workspace) == 75
    (path,) = workspace.artifacts.glob("a_*/dataset.jsonl")
    whole = path.read_bytes()
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes(whole.replace(b"0", b"1"))

    assert execute(plan, workspace) == 3

    last = facts(read_entries(workspace))[-1]
    assert isinstance(last, ev.SessionStopped)
    assert "dataset.jsonl is missing or changed" in last.detail
    path.write_bytes(whole)
    assert execute(plan, workspace) == 0


def test_without_a_person_a_review_stops_with_three(workspace: Workspace) -> None:
    """The reviewer sees the evidence; with no answer the session waits, and asks again later."""
    asked: list[ReviewRequest] = []

    def reviewer(request: ReviewRequest) -> Decision | None:
        asked.append(request)
        return None

    step = make_step("a", gate=GATE, review_after=1, params={"metrics": {"m": 0.1}})
    plan = make_plan(step)

    assert execute(plan, workspace, reviewer) == 3
    assert execute(plan, workspace, reviewer) == 3

    assert last_stop(workspace).reason == "review"
    assert [r.review_id for r in asked] == ["a-1", "a-1"]
    assert (asked[0].verdict, asked[0].metrics[0].value) == ("fail", 0.1)
    assert history(workspace).count("ReviewRequested") == 1


def test_a_decided_review_goes_on(workspace: Workspace) -> None:
    """A decision recorded between two runs drives the retry with its changes."""
    step = make_step(
        "a",
        gate=GATE,
        review_after=1,
        params={"t": 0.7, "metrics": {"m": [0.1, 0.9]}},
        adjustable={"t": Range(0.1, 1.0)},
    )
    plan = make_plan(step)
    execute(plan, workspace)

    decision = ev.ReviewDecided("a-1", "retry", {"t": 0.3}, "cooler", "me", person=True)
    record_decision(plan, workspace, decision)

    assert execute(plan, workspace) == 0
    starts = [f for f in facts(read_entries(workspace)) if isinstance(f, ev.StepStarted)]
    assert starts[-1].params["t"] == 0.3


def test_a_decision_out_of_bounds_is_not_recorded(workspace: Workspace) -> None:
    """A person's slip is refused with what would be allowed."""
    plan = make_plan(make_step("a", gate=GATE, review_after=1, params={"metrics": {"m": 0}}))
    execute(plan, workspace)
    before = workspace.segment(1).read_bytes()

    with pytest.raises(ConfigError, match="allowed: retry, stop, needs_human, override"):
        record_decision(
            plan, workspace, ev.ReviewDecided("a-1", "proceed", {}, "r", "me", person=True)
        )
    assert workspace.segment(1).read_bytes() == before


def test_each_attempt_has_its_own_review(workspace: Workspace) -> None:
    """A reviewer who answers at once is asked for every failed attempt, within one run."""
    asked: list[str] = []

    def retry(request: ReviewRequest) -> Decision | None:
        asked.append(f"{request.review_id} {request.reason}")
        return Decision("retry", "again", "model", person=False)

    step = make_step("a", gate=GATE, review_after=1, params={"metrics": {"m": 0.1}})

    assert execute(make_plan(step), workspace, retry) == 3
    assert asked == ["a-1 gate failed", "a-2 gate failed", "a-3 closing"]
    assert last_stop(workspace).reason == "closing"


def test_a_person_overrides_and_the_session_ends_with_six(workspace: Workspace) -> None:
    """An override goes on, stands in the manifest, and shows in the exit code."""
    plan = make_plan(make_step("a", gate=SENTINEL, params={"metrics": {"m": 0}}), make_step("b"))
    assert execute(plan, workspace) == 5
    assert last_stop(workspace).reason == "sentinel"
    assert execute(plan, workspace) == 5

    decision = ev.ReviewDecided("a-1", "override", {}, "false alarm", "me", person=True)
    record_decision(plan, workspace, decision)

    assert execute(plan, workspace) == 6
    written = [f for f in facts(read_entries(workspace)) if isinstance(f, ev.ManifestWritten)]
    manifest = json.loads((workspace.root / written[1].path).read_bytes())
    assert manifest["overridden"] == {"by": "me", "reason": "false alarm"}


@pytest.mark.parametrize("action", ["override", "proceed"])
def test_a_model_never_overrides(workspace: Workspace, action: str) -> None:
    """An answer outside the bounds counts as none, and is told."""
    told: list[Mapping[str, Json]] = []
    plan = make_plan(make_step("a", gate=GATE, params={"metrics": {}}))

    code = execute(
        plan,
        workspace,
        lambda _: Decision(action, "looks fine", "model", person=False),
        on_progress=told.append,
    )

    assert code == 3
    assert any("refused" in fields for fields in told)
    assert "ReviewDecided" not in history(workspace)


@pytest.mark.parametrize(
    ("error", "code"),
    [("PhaseError", 1), ("ConfigError", 2), ("NeedsPersonError", 3), ("SentinelError", 5)],
)
def test_a_failed_step_stops_with_its_code_and_goes_on(
    workspace: Workspace, error: str, code: int
) -> None:
    """The step's error is the exit code; once mended, the same command finishes."""
    plan = make_plan(make_step("a", params={"trouble": {"kind": "raise", "at": 1, "error": error}}))

    assert execute(plan, workspace) == code
    assert "fake step was told" in last_stop(workspace).detail
    assert execute(plan, workspace) == 0
    # The batch before the error was committed and is not made again.
    assert [key for _, _, key in generations(workspace.root)].count("0000") == 1


def test_a_broken_gate_stops_with_one_and_judges_again(workspace: Workspace) -> None:
    """A gate that raises passes nothing; the step is judged, not run, once it is mended."""
    plan = make_plan(make_step("a", gate=GATE, params={"metrics": {"m": 0.9}}))

    def broken(gate: Gate, metrics: tuple[Metric, ...], final: bool) -> Judgement:
        raise ZeroDivisionError(len(gate.criteria), len(metrics), final)

    assert execute(plan, workspace, gates=broken) == 1
    assert execute(plan, workspace) == 0
    assert history(workspace).count("StepStarted") == 1


def test_a_step_that_pauses_itself_exits_seventy_five(workspace: Workspace) -> None:
    """A pause is cured by the same command."""
    plan = make_plan(make_step("a", params={"trouble": {"kind": "pause", "at": 1}}))

    assert execute(plan, workspace) == 75
    assert execute(plan, workspace) == 0


def test_a_child_killed_at_every_batch_is_restarted_in_place(workspace: Workspace) -> None:
    """Lost children cost interruptions, not exits, and the bytes are the same."""
    clean = Workspace.at(workspace.root.parent / "clean")
    execute(make_plan(make_step("a", params={"batches": 3})), clean)
    for at in range(4):
        mine = Workspace.at(workspace.root.parent / f"at{at}")
        step = make_step(
            "a", params={"batches": 3, "trouble": {"kind": "kill", "at": at, "times": 2}}
        )

        assert execute(make_plan(step), mine) == 0

        assert dataset(mine, "a") == dataset(clean, "a")
        assert history(mine).count("StepInterrupted") == 2


def test_a_child_that_always_dies_stops_with_one(workspace: Workspace) -> None:
    """Six losses without a batch in between are no accident."""
    step = make_step("a", params={"trouble": {"kind": "kill", "at": 0, "times": 99}})

    assert execute(make_plan(step), workspace) == 1
    assert last_stop(workspace).reason == "no progress"
    assert history(workspace).count("StepInterrupted") == 6


def test_the_budget_stops_at_a_commit_and_counts_over_resumes(workspace: Workspace) -> None:
    """Time adds up over runs; where the next batch would not fit it is exit 4; more goes on."""
    now = [0.0]

    def pass_time(_: Mapping[str, Json]) -> None:
        now[0] += 100.0

    seams: dict[str, Any] = {"clock": Clock(monotonic=lambda: now[0]), "on_progress": pass_time}
    step = make_step("a", params={"batches": 4, "sleep": 0.3})
    plan = make_plan(step, budget={"wall_clock_s": 250.0})

    assert execute(plan, workspace, **seams) == 4
    assert len(batches(read_entries(workspace), "a", 1)) == 3
    assert execute(plan, workspace, **seams) == 4
    assert len(batches(read_entries(workspace), "a", 1)) == 3
    assert last_stop(workspace).reason == "budget"
    assert "of 250 s spent" in last_stop(workspace).detail
    assert execute(replace(plan, budget={}), workspace, **seams) == 0


@pytest.mark.parametrize("damage", ["manifest", "changed manifest", "artifact"])
def test_a_missing_manifest_or_changed_input_stops_with_three(
    workspace: Workspace, damage: str
) -> None:
    """A step does not read what is not what the journal says."""
    trouble = {"kind": "raise", "at": 0}
    plan = make_plan(make_step("a"), make_step("b", inputs=("a",), params={"trouble": trouble}))
    assert execute(plan, workspace) == 1
    written = next(f for f in facts(read_entries(workspace)) if isinstance(f, ev.ManifestWritten))
    manifest = workspace.root / written.path
    match damage:
        case "manifest":
            manifest.unlink()
        case "changed manifest":
            manifest.write_text("{}")
        case _:
            (manifest.parent / "dataset.jsonl").write_text("")

    assert execute(plan, workspace) == 3
    assert last_stop(workspace).reason == "missing manifest"


def test_a_changed_input_is_never_read(workspace: Workspace) -> None:
    """The step that would read it is not even started."""
    pause = {"trouble": {"kind": "pause", "at": 0}}
    plan = make_plan(make_step("a"), make_step("b", inputs=("a",), params=pause))
    assert execute(plan, workspace) == 75
    (path,) = workspace.artifacts.glob("a_*/dataset.jsonl")
    path.write_bytes(path.read_bytes().replace(b"0", b"1"))

    assert execute(plan, workspace) == 3

    known = facts(read_entries(workspace))
    assert [f.step for f in known if isinstance(f, ev.StepStarted)] == ["a", "b"]


def test_a_skipped_input_stops_with_three(workspace: Workspace) -> None:
    """A step whose input was never made does not run on nothing."""
    plan = make_plan(make_step("a", enabled=False), make_step("b", inputs=("a",)))

    assert execute(plan, workspace) == 3
    assert "was not run" in last_stop(workspace).detail


def test_a_dry_finding_stops_before_any_phase_code(workspace: Workspace) -> None:
    """A finding of the DRY sentinel ends the session with 5; mended, the same command goes on."""
    plan = make_plan(make_step("a"))
    found = ["mine.py:3: calls from_pretrained"]

    def go() -> int:
        return execute(plan, workspace, dry=lambda: found)

    assert go() == 5
    known = facts(read_entries(workspace))
    assert not [fact for fact in known if isinstance(fact, ev.StepStarted)]
    assert "mine.py:3" in next(f.detail for f in known if isinstance(f, ev.SessionStopped))
    found.clear()
    assert go() == 0


def test_a_changed_plan_is_refused_by_field(workspace: Workspace) -> None:
    """A journal goes on only with the plan it was started with."""
    plan = make_plan(make_step("a"))
    execute(plan, workspace)

    with pytest.raises(
        ConfigError, match="changed since this session began: seed: 7 -> 8"
    ) as caught:
        execute(replace(plan, fingerprint="other", seed=8), workspace)
    assert caught.value.code == 2


def test_a_held_workspace_is_refused_with_its_owner(workspace: Workspace) -> None:
    """The second executor exits with 7 and says who holds the workspace."""
    workspace.create()
    held = pytest.raises(LockedError, match=f"process {os.getpid()} on ")
    with open_journal(workspace), held as caught:
        execute(make_plan(make_step("a")), workspace)
    assert caught.value.code == 7
    assert read_entries(workspace) == ()


def test_a_corrupt_journal_is_refused(workspace: Workspace) -> None:
    """Damage in the journal stops everything before anything is run."""
    plan = make_plan(make_step("a"))
    execute(plan, workspace)
    workspace.segment(1).write_bytes(b"x" + workspace.segment(1).read_bytes())

    with pytest.raises(CorruptError, match="byte 0"):
        execute(plan, workspace)


@pytest.mark.parametrize("written", [True, False])
def test_a_batch_that_is_not_on_disk_is_refused(
    workspace: Workspace, tmp_path: Path, written: bool
) -> None:
    """The executor believes the file, not the step."""
    (tmp_path / "liar.py").write_text(
        "from runbook.contract import Committed, PhaseResult\n"
        "def run(request):\n"
        f"    if {written}: (request.workspace / 'artifacts/x').write_text('other bytes')\n"
        "    request.channel.commit(Committed('k', 'artifacts/x', '0' * 64, 1))\n"
        "    return PhaseResult()\n"
    )
    plan = make_plan(make_step("a", function="liar:run"), runbook=tmp_path / "runbook.yaml")

    assert execute(plan, workspace) == 1
    assert "not on disk as declared" in last_stop(workspace).detail
    assert "BatchCommitted" not in history(workspace)


def test_what_a_killed_run_left_is_cleared_at_the_start(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orphaned processes and half-written files of an earlier run are gone before anything runs."""
    workspace.create()
    stale = workspace.data / f".0123{artifacts.TEMPORARY}"
    stale.write_text("half")
    monkeypatch.setattr("runbook.executor.Session.run", Mock(side_effect=RuntimeError("begun")))
    mark = {**os.environ, "RUNBOOK_WORKER_OF": str(workspace.root)}
    sleeper = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]
    with subprocess.Popen(sleeper, env=mark, stdout=subprocess.PIPE) as orphan:
        assert orphan.stdout is not None
        orphan.stdout.readline()

        with pytest.raises(RuntimeError, match="begun"):
            execute(make_plan(make_step("a")), workspace)

        assert orphan.wait(timeout=30) == -signal.SIGKILL
    assert not stale.exists()


def test_what_a_step_leaves_running_ends_with_the_session(
    workspace: Workspace, tmp_path: Path
) -> None:
    """A server that a step started, and forgot, is gone when the session is done."""
    (tmp_path / "forgetful.py").write_text(
        "import subprocess, sys\n"
        "from runbook.contract import PhaseResult\n"
        "def run(request):\n"
        "    code = 'import time; time.sleep(60)'\n"
        "    left = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
        "    (request.workspace / 'left').write_text(str(left.pid))\n"
        "    left.returncode = 0\n"
        "    return PhaseResult()\n"
    )
    plan = make_plan(make_step("a", function="forgetful:run"), runbook=tmp_path / "runbook.yaml")

    assert execute(plan, workspace) == 0

    left = int((workspace.root / "left").read_text())
    limit = time.monotonic() + 30.0
    while process_start(left) is not None:
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_workspace_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A file in the folder's place is a configuration error."""
    (tmp_path / "ws").write_text("")

    with pytest.raises(ConfigError, match="cannot be made") as caught:
        execute(make_plan(make_step("a")), Workspace.at(tmp_path / "ws"))
    assert caught.value.code == 2


def test_the_child_starts_before_it_is_needed(workspace: Workspace) -> None:
    """The first step's child starts up while the executor still looks at the code and at git."""
    started: list[bool] = []

    def workers() -> int:
        commands = []
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # git may be done; a zombie has no command line
                commands.append(child.cmdline())
        return sum("runbook.worker" in command for command in commands)

    def look() -> tuple[str, ...]:
        started.append(workers() == 1)
        return ()

    assert execute(make_plan(make_step("a")), workspace, dry=look) == 0
    assert started == [True]
    assert workers() == 0


def test_a_batchs_folders_are_durable_before_it_is_answered(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new folder's entry is fsynced after the step began and before its first batch is."""
    calls: list[tuple[str, Path]] = []
    committed: list[int] = []

    def note(call: str, path: Path, data: durable.Data) -> durable.Data:
        if b'"BatchCommitted"' in bytes(data):
            committed.append(len(calls))
        calls.append((call, path))
        return data

    monkeypatch.setattr(durable, "fault", note)
    assert execute(make_plan(make_step("a")), workspace) == 0
    known = facts(read_entries(workspace))
    output = next(fact.output for fact in known if isinstance(fact, ev.StepStarted))
    work = workspace.work("a", 1)
    for made in (work, work.parent, work.parent.parent, workspace.root / output):
        begun = calls.index(("mkdir", made))
        assert ("fsync", made.parent) in calls[begun : committed[0]]


def test_the_system_is_named_as_the_library_names_it() -> None:
    """A manifest's platform is the standard library's, without the process that it starts."""
    assert manifest.environment()["platform"] == platform.platform()


def test_provenance_is_the_same_at_any_time_and_place() -> None:
    """What every record carries holds no time, path or run id."""
    plan = make_plan(make_step("a"))

    assert provenance(plan) == provenance(replace(plan, runbook=Path("/else/runbook.yaml")))
    assert set(provenance(plan)) == {"git_sha", "versions", "runbook", "fingerprint"}


SWEPT: dict[str, Any] = {"batches": 2, "metrics": {"m": [0.1, 0.9]}, "t": 0.7}


def swept_plan(sleep: float = 0.0) -> Plan:
    """A plan whose run has a retry, two gates' worth of facts and an input."""
    tuned = {
        "adjustable": {"t": Range(0.1, 1.0)},
        "adjustments": (Adjustment("m", {"t": {"add": -0.2}}, "cooler"),),
    }
    return make_plan(
        make_step("a", gate=GATE, params={**SWEPT, "sleep": sleep}, **tuned),
        make_step("b", inputs=("a",), params={"batches": 1}),
    )


def drive(root: Path, kill_at: int = 0, when: str = "after", sleep: float = 0.0) -> list[str]:
    return [sys.executable, str(DRIVER), str(root), str(kill_at), when, str(sleep)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(DRIVER.parent.parent)}


def spawn(root: Path, kill_at: int = 0, when: str = "after") -> int:
    return subprocess.run(drive(root, kill_at, when), env=environment(), check=False).returncode


def told_end(workspace: Workspace) -> Any:
    """How the session manifest says that the session ended."""
    (path,) = workspace.artifacts.glob("session_manifest_*.json")
    return json.loads(path.read_text("utf-8"))["done"]


def test_killed_around_every_append_the_bytes_are_the_same(tmp_path: Path) -> None:
    """SIGKILL before or after any journal line, then the same command: same data, made once."""
    clean = Workspace.at(tmp_path / "clean")
    assert execute(swept_plan(), clean) == 0
    appends = len(read_entries(clean))
    for when in ("before", "after"):
        for kill_at in range(1, appends + 1):
            mine = Workspace.at(tmp_path / f"{when}{kill_at}")
            assert spawn(mine.root, kill_at, when) == -signal.SIGKILL
            committed = {
                (step, attempt, key)
                for step, attempt in (("a", 1), ("a", 2), ("b", 1))
                for key in batches(read_entries(mine), step, attempt)
            }
            made = len(generations(mine.root))

            assert execute(swept_plan(), mine) == 0

            again = set(generations(mine.root)[made:])
            assert not again & committed, f"made again after a kill {when} append {kill_at}"
            assert [dataset(mine, s) for s in "ab"] == [dataset(clean, s) for s in "ab"]
            stale = [p for p in mine.root.rglob("*") if p.name.endswith(artifacts.TEMPORARY)]
            assert stale == []
            assert told_end(mine) == {"exit_code": 0, "overrides": 0}
            assert "all done" in mine.report.read_text("utf-8")


def test_killed_at_every_append_in_turn_it_still_ends(tmp_path: Path) -> None:
    """Killed at the fourth line of every run, the session ends with the same data."""
    clean, mine = Workspace.at(tmp_path / "clean"), Workspace.at(tmp_path / "mine")
    execute(swept_plan(), clean)

    runs = 0
    while (code := spawn(mine.root, 4)) == -signal.SIGKILL:
        runs += 1
        assert runs < 30

    assert code == 0
    assert dataset(mine, "b") == dataset(clean, "b")


TURNS = 3
"""Other work may make a machine slow once; an executor that waits is slow each time."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("sleep", [0.15, 30.0])
def test_a_signal_pauses_within_four_seconds(
    tmp_path: Path, number: signal.Signals, sleep: float
) -> None:
    """SIGTERM and SIGINT end the run with 75, at a commit or after the grace, and it goes on."""
    took = math.inf
    for turn in range(TURNS):
        workspace = Workspace.at(tmp_path / f"ws{turn}")
        log = workspace.logs / GENERATIONS
        with subprocess.Popen(drive(workspace.root, sleep=sleep), env=environment()) as executor:
            limit = time.monotonic() + 60
            while not log.exists():
                assert time.monotonic() < limit
                time.sleep(0.02)
            begin = time.monotonic()
            executor.send_signal(number)
            assert executor.wait(timeout=60) == 75
            took = min(took, time.monotonic() - begin)
        if took < 4.0:
            break

    assert took < 4.0
    assert history(workspace)[-2:] == ["StepInterrupted", "SessionStopped"]
    assert number.name in last_stop(workspace).detail
    assert execute(swept_plan(), workspace) == 0


def test_a_stop_put_on_record_while_a_start_is_checked_holds(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is looked at again under the lock: nothing is made after the stop."""
    plan = make_plan(make_step("a", params={"batches": 2, "trouble": {"kind": "pause", "at": 1}}))
    assert execute(plan, workspace) == 75
    monkeypatch.setattr(
        "runbook.executor.check_machine", lambda *_, **__: record_stop(workspace, "enough")
    )

    with pytest.raises(NeedsPersonError, match="enough"):
        execute(plan, workspace)

    assert history(workspace)[-1] == "SessionStopped"
    assert last_stop(workspace).exit_code == 3


def drive_main(root: str, kill_at: str, when: str, sleep: str) -> int:
    """The test's own driver: a session that is killed around its n-th journal line."""
    from runbook.journal_writer import Journal  # noqa: PLC0415 - only this process patches it

    real, count = Journal.append, [0]

    def append(self: Any, body: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == int(kill_at) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        entry = real(self, body, **options)
        if count[0] == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return entry

    Journal.append = append  # type: ignore[method-assign]  # a kill has no gentler seam
    return execute(swept_plan(float(sleep)), Workspace.at(Path(root)))


if __name__ == "__main__":
    sys.exit(drive_main(*sys.argv[1:]))


def test_a_failure_before_the_first_line_stops_no_session(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is told as it is, and the next run begins as if nothing had been."""
    plan = make_plan(make_step("a"))
    whole = manifest.look_up

    def fails() -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(manifest, "look_up", fails)
    with pytest.raises(BlockingIOError, match="no more processes"):
        execute(plan, workspace)
    assert history(workspace) == []

    monkeypatch.setattr(manifest, "look_up", whole)
    assert execute(plan, workspace) == 0


def test_a_stop_before_the_start_does_not_hold_the_session_up(workspace: Workspace) -> None:
    """As a journal may have it that an earlier release left."""
    plan = make_plan(make_step("a"))
    with open_journal(workspace) as journal:
        journal.append(ev.SessionStopped("error", 1, "no more processes").to_body())
    assert execute(plan, workspace) == 0
