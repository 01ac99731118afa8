"""Changed runbooks: what stays, what is judged or made anew, and that it is on record."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_session import call
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook import events as ev
from runbook import machine as m
from runbook.artifacts import sha256_file
from runbook.changes import Acceptance, Comparison, Fate, agree, compare_plan
from runbook.contract import Criterion, Decision, Gate, Json, Range
from runbook.errors import ConfigError
from runbook.executor import Seams, run_session
from runbook.fingerprint import (
    changed_fields,
    fingerprint,
    plan_document,
    recorded_plan,
    step_fingerprint,
)
from runbook.journal import facts, read_entries
from runbook.plan import Adjustment, Plan, PlannedPhase, PlannedStep
from runbook.report.markdown import render_report
from runbook.report.view import SessionView, build_view
from runbook.review import record_decision
from runbook.schema import load_plan
from runbook.state import Status
from runbook.step_code import code_of
from runbook.testing import generations, make_plan, make_step, simple_gates
from runbook.verify import verify
from runbook.workspace import Workspace

DRIVER = Path(__file__)
ACCEPTED = Acceptance("a better idea", "me")
MODEL: dict[str, Json] = {"name": "tiny", "source": {"hub": "x/y", "revision": "0" * 40}}
Capture = pytest.CaptureFixture[str]


def gate(at_least: float) -> Gate:
    return Gate((Criterion("m", "rate", at_least=at_least),))


def identified(plan: Plan) -> Plan:
    """The plan with the fingerprints that ``runbook.schema`` would take."""
    made: dict[str, str] = {}
    steps: list[PlannedStep] = []
    for step in plan.steps:
        inputs = {name: made[name] for name in step.inputs}
        model = plan.declared_model or plan.model
        made[step.name] = step_fingerprint(
            step, model=model, engine=plan.engine, seed=plan.seed, inputs=inputs
        )
        steps.append(replace(step, fingerprint=made[step.name]))
    plan = replace(plan, steps=tuple(steps))
    return replace(plan, fingerprint=fingerprint(plan_document(plan)))


def chain(
    *, at_least: float = 0.5, model: Mapping[str, Json] = MODEL, b: Mapping[str, Json] | None = None
) -> Plan:
    """``a`` with a gate, ``b`` that reads it, ``c`` that reads nothing."""
    return identified(
        make_plan(
            make_step("a", gate=gate(at_least), review_after=1, params={"metrics": {"m": 0.6}}),
            make_step("b", inputs=("a",), params=b or {"rows": 2}),
            make_step("c"),
            model=model,
            engine={"name": "fake", "device": "cpu", "batch_size": 4},
        )
    )


def execute(
    plan: Plan, workspace: Workspace, acceptance: Acceptance | None = None, **seams: Any
) -> int:
    given = {"gates": simple_gates, "reviewer": lambda _: None, **seams}
    return run_session(plan, workspace, Seams(**given), acceptance=acceptance)


def known(workspace: Workspace) -> tuple[ev.Event, ...]:
    return facts(read_entries(workspace))


def starts(workspace: Workspace) -> list[tuple[str, int]]:
    return [(f.step, f.attempt) for f in known(workspace) if isinstance(f, ev.StepStarted)]


def dataset(workspace: Workspace, step: str) -> bytes:
    made = [f for f in known(workspace) if isinstance(f, ev.StepFinished) and f.step == step]
    return (workspace.root / made[-1].artifacts[0].path).read_bytes()


def fates(found: Comparison) -> dict[str, str]:
    return {change.step: change.fate.value for change in found.steps}


def view(workspace: Workspace) -> SessionView:
    return build_view(read_entries(workspace))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "ws")


def test_a_changed_threshold_judges_the_same_bytes_again(workspace: Workspace) -> None:
    """Only the gate is judged again: no byte is generated, no other step is touched."""
    execute(chain(), workspace)
    before = {step: dataset(workspace, step) for step in "abc"}
    made = generations(workspace.root)

    assert fates(compare_plan(chain(at_least=0.4), known(workspace))) == {
        "a": "rejudge",
        "b": "reuse",
        "c": "reuse",
    }
    assert execute(chain(at_least=0.4), workspace, ACCEPTED) == 0

    assert generations(workspace.root) == made
    assert starts(workspace) == [("a", 1), ("b", 1), ("c", 1)]
    assert {step: dataset(workspace, step) for step in "abc"} == before
    judged = [f for f in known(workspace) if isinstance(f, ev.GateJudged)]
    assert [(f.attempt, f.verdict) for f in judged] == [(1, "pass"), (1, "pass")]
    assert not verify(workspace).findings


def test_a_stricter_gate_that_fails_makes_its_readers_anew_too(workspace: Workspace) -> None:
    """What was made of bytes that are replaced under the new gate does not stand."""
    tuned: dict[str, Any] = {
        "params": {"t": 0.7, "metrics": {"m": [0.6, 0.9]}},
        "adjustable": {"t": Range(0.1, 1.0)},
        "adjustments": (Adjustment("m", {"t": {"add": -0.2}}, "cooler"),),
    }

    def plan(at_least: float) -> Plan:
        steps = (make_step("a", gate=gate(at_least), **tuned), make_step("b", inputs=("a",)))
        return identified(make_plan(*steps, make_step("c")))

    execute(plan(0.5), workspace)

    assert execute(plan(0.8), workspace, ACCEPTED) == 0

    assert starts(workspace) == [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2)]
    assert m.replay(plan(0.8), known(workspace)).steps["c"].attempt == 1
    assert {s.name: s.status for s in view(workspace).steps} == dict.fromkeys("abc", Status.PASSED)
    assert not verify(workspace).findings


def test_a_gate_that_had_failed_is_asked_about_anew(workspace: Workspace) -> None:
    """The old question and its answer count no more; a verdict judged again counts once."""
    assert execute(chain(at_least=0.7), workspace) == 3

    assert execute(chain(at_least=0.65), workspace, ACCEPTED) == 3

    asked = [f.review_id for f in known(workspace) if isinstance(f, ev.ReviewRequested)]
    assert asked == ["a-1", "a-1-2"]
    assert m.replay(chain(at_least=0.65), known(workspace)).steps["a"].failures == 1
    waiting = view(workspace).waiting
    assert waiting is not None
    assert waiting.review_id == "a-1-2"
    old = ev.ReviewDecided("a-1", "override", {}, "why", "me", person=True)
    with pytest.raises(ConfigError, match="no review 'a-1'"):
        record_decision(chain(at_least=0.65), workspace, old)
    now = replace(old, review_id="a-1-2")
    record_decision(chain(at_least=0.65), workspace, now)
    assert execute(chain(at_least=0.65), workspace) == 6


def test_an_override_does_not_outlive_a_changed_gate(workspace: Workspace) -> None:
    """Passed by a person's word under one gate, a step is judged by the next one itself."""
    execute(chain(at_least=0.7), workspace)
    word = ev.ReviewDecided("a-1", "override", {}, "why", "me", person=True)
    record_decision(chain(at_least=0.7), workspace, word)
    assert execute(chain(at_least=0.7), workspace) == 6

    assert execute(chain(at_least=0.5), workspace, ACCEPTED) == 0

    assert view(workspace).steps[0].override is None
    assert "a (it was: fail, overridden)" in workspace.report.read_text("utf-8")


def test_a_changed_parameter_makes_its_step_anew_alone(workspace: Workspace) -> None:
    """The step runs under another attempt number; what it does not reach stays as it is."""
    execute(chain(), workspace)
    before = dataset(workspace, "a"), dataset(workspace, "c")
    changed = chain(b={"rows": 3})

    found = compare_plan(changed, known(workspace))

    assert fates(found) == {"a": "reuse", "b": "invalidated", "c": "reuse"}
    assert found.steps[1].fields == ("steps.b.params.rows: 2 -> 3",)
    assert found.steps[1].seconds is not None
    assert execute(changed, workspace, ACCEPTED) == 0
    assert starts(workspace)[3:] == [("b", 2)]
    assert (dataset(workspace, "a"), dataset(workspace, "c")) == before
    assert not verify(workspace).findings


def test_a_change_reaches_what_reads_it(workspace: Workspace) -> None:
    """A step whose input is made anew is made anew, and says through which."""
    execute(chain(), workspace)
    changed = identified(
        replace(
            chain(),
            steps=(replace(chain().steps[0], params={"metrics": {"m": 0.7}}), *chain().steps[1:]),
        )
    )

    found = compare_plan(changed, known(workspace))

    assert fates(found) == {"a": "invalidated", "b": "invalidated", "c": "reuse"}
    assert (found.steps[1].through, found.steps[1].fields) == (
        ("a",),
        ("steps.a.params.metrics.m: 0.6 -> 0.7",),
    )


def test_another_model_revision_makes_everything_anew(workspace: Workspace) -> None:
    """The model reaches the bytes of every step."""
    execute(chain(), workspace)
    model = {**MODEL, "source": {"hub": "x/y", "revision": "1" * 40}}

    with pytest.raises(ConfigError, match=r"model\.source\.revision") as refused:
        execute(chain(model=model), workspace)
    assert "runbook plan" in refused.value.fix
    assert "--accept-changes REASON" in refused.value.fix
    assert execute(chain(model=model), workspace, ACCEPTED) == 0
    assert starts(workspace)[3:] == [("a", 2), ("b", 2), ("c", 2)]


def test_bytes_of_a_declared_file_are_an_input(workspace: Workspace, tmp_path: Path) -> None:
    """Where the held-out set or the prompts changed, the steps that name the file are redone."""
    path = tmp_path / "held_out.jsonl"

    def plan(text: str) -> Plan:
        path.write_text(text)
        named = {"params": {"held_out": str(path)}, "files": {"held_out": path}}
        hashes = {"held_out": sha256_file(path)}
        steps = (make_step("a"), make_step("b", **named, file_sha256=hashes))
        return identified(make_plan(*steps))

    execute(plan("old"), workspace)

    found = compare_plan(plan("new"), known(workspace))

    assert fates(found) == {"a": "reuse", "b": "invalidated"}
    assert found.fields[0].startswith("steps.b.params.held_out.sha256: ")


def test_a_complete_folder_of_an_earlier_attempt_is_not_taken_for_the_new_one(
    workspace: Workspace, tmp_path: Path
) -> None:
    """A step that keeps what is complete, as the model's snapshot, still makes it anew."""
    (tmp_path / "keeper.py").write_text(
        "from runbook.artifacts import complete_directory, describe, is_complete, write_text\n"
        "from runbook.contract import PhaseResult\n"
        "def run(request):\n"
        "    path = request.output / 'model.txt'\n"
        "    if not is_complete(request.output):\n"
        "        write_text(path, request.params['revision'])\n"
        "        complete_directory(request.output)\n"
        "    return PhaseResult(artifacts=(describe('model', path, request.workspace),))\n"
    )

    def plan(revision: str) -> Plan:
        step = make_step("a", function="keeper:run", params={"revision": revision})
        step = replace(step, output="models/base")
        return identified(make_plan(step, runbook=tmp_path / "runbook.yaml"))

    execute(plan("old"), workspace)

    assert execute(plan("new"), workspace, ACCEPTED) == 0

    assert dataset(workspace, "a") == b"new"
    assert not verify(workspace).findings


def test_what_only_affects_throughput_changes_nothing(workspace: Workspace) -> None:
    """Threads, environment, budget, pod, watchdog, preflight and titles need no acceptance."""
    plan = chain()
    execute(plan, workspace)
    other = identified(
        replace(
            plan,
            name="renamed",
            engine={**plan.engine, "threads": 9},
            environment={"X": "1"},
            budget={"usd": 5.0, "usd_per_hour": 1.0},
            pod={"stop": ["true"]},
            watchdog={"heartbeat_s": 9.0, "stall_s": 99.0},
            preflight={"gpus": 0, "free_disk_gib": 0.001},
            phases=tuple(replace(p, title="Other") for p in plan.phases),
        )
    )

    found = compare_plan(other, known(workspace))

    assert (found.fields, set(fates(found).values())) == ((), {"reuse"})
    assert execute(other, workspace) == 0
    with pytest.raises(ConfigError, match="nothing changed since the plan on record"):
        execute(other, workspace, ACCEPTED)


def test_the_batch_size_is_an_input(workspace: Workspace) -> None:
    """Batched decoding gives other bytes, so another batch size makes every step anew."""
    execute(chain(), workspace)
    other = identified(replace(chain(), engine={**chain().engine, "batch_size": 5}))

    found = compare_plan(other, known(workspace))

    assert [change.fate.value for change in found.steps] == ["invalidated"] * 3
    assert {change.fields for change in found.steps} == {("engine.batch_size: 4 -> 5",)}


def test_a_change_far_into_a_long_text_is_seen(workspace: Workspace) -> None:
    """Values are compared whole, though a long one is shown cut."""
    prompt = "word " * 100
    execute(chain(b={"rows": 2, "prompt": prompt}), workspace)

    found = compare_plan(chain(b={"rows": 2, "prompt": f"{prompt}!"}), known(workspace))

    (field,) = found.fields
    assert field.startswith("steps.b.params.prompt: ")
    assert len(field) < 250
    assert found.steps[1].fields == (field,)


def test_a_change_that_redoes_nothing_still_stands_in_the_report(workspace: Workspace) -> None:
    """Also where the run that accepted it was killed before it could write the report."""
    execute(chain(), workspace)
    (manifest,) = workspace.artifacts.glob("session_manifest_*.json")
    before = manifest.read_bytes(), workspace.report.read_bytes()
    other = identified(replace(chain(), reviewer={"provider": "human"}))

    assert execute(other, workspace, ACCEPTED) == 0

    assert starts(workspace) == [("a", 1), ("b", 1), ("c", 1)]
    manifest.write_bytes(before[0])
    workspace.report.write_bytes(before[1])
    assert execute(other, workspace) == 0
    assert "me accepted a changed plan" in workspace.report.read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: (*s, make_step("d")), "added steps: d"),
        (lambda s: s[:2], "removed steps: c"),
        (lambda s: (s[2], *s[:2]), "another order of steps: c, a, b"),
        (lambda s: (*s[:2], replace(s[2], function="other:run")), "steps.c.function"),
        (lambda s: (*s[:2], replace(s[2], output="artifacts/z")), "steps.c.output"),
        (lambda s: (*s[:2], replace(s[2], phase="Z")), "steps.c.phase"),
    ],
)
def test_another_sessions_plan_is_never_acceptable(
    workspace: Workspace, change: Any, said: str
) -> None:
    """Other steps, another order, function or output: that is a new workspace's."""
    execute(chain(), workspace)
    before = workspace.segment(1).read_bytes()
    steps = change(chain().steps)
    names = tuple(step.name for step in steps)
    phases = (PlannedPhase("A", "A", enabled=True, steps=names),)
    other = identified(replace(chain(), steps=steps, phases=phases))

    for acceptance in (None, ACCEPTED):
        with pytest.raises(ConfigError, match=said) as refused:
            execute(other, workspace, acceptance)
        assert "another workspace" in refused.value.fix

    assert compare_plan(other, known(workspace)).steps == ()
    assert workspace.segment(1).read_bytes() == before


def test_an_acceptance_needs_a_session_and_a_reason(workspace: Workspace) -> None:
    """There is nothing to accept where nothing was begun; a blank reason is none."""
    with pytest.raises(ConfigError, match="no session was begun here"):
        execute(chain(), workspace, ACCEPTED)
    execute(chain(), workspace)
    with pytest.raises(ConfigError, match="needs a reason"):
        execute(chain(at_least=0.4), workspace, Acceptance(" ", "me"))


def test_an_attempt_under_way_begins_anew_where_its_bytes_changed(workspace: Workspace) -> None:
    """Its batches were made with the old parameters: the next attempt takes none of them."""
    pause = {"kind": "pause", "at": 1}
    assert execute(chain(b={"rows": 2, "trouble": pause}), workspace) == 75

    found = compare_plan(chain(b={"rows": 3}), known(workspace))

    assert fates(found) == {"a": "reuse", "b": "invalidated", "c": "redo"}
    assert execute(chain(b={"rows": 3}), workspace, ACCEPTED) == 0
    assert starts(workspace)[1:] == [("b", 1), ("b", 2), ("c", 1)]
    assert len(dataset(workspace, "b").splitlines()) == 6


def test_an_attempt_under_way_goes_on_where_its_bytes_did_not_change(
    workspace: Workspace,
) -> None:
    """A committed batch is not made again because a gate elsewhere changed."""
    pause = {"rows": 2, "trouble": {"kind": "pause", "at": 1}}
    assert execute(chain(b=pause), workspace) == 75

    assert execute(chain(b=pause, at_least=0.4), workspace, ACCEPTED) == 0

    assert [key for step, _, key in generations(workspace.root) if step == "b"].count("0000") == 1
    assert starts(workspace) == [("a", 1), ("b", 1), ("b", 1), ("c", 1)]


def test_adjustments_of_the_old_plan_do_not_hide_the_new_value(workspace: Workspace) -> None:
    """A step that begins anew runs with what is declared now, and old facts replay as they were."""

    def plan(t: float) -> Plan:
        step = make_step(
            "a",
            gate=gate(0.5),
            review_after=1,
            params={"t": t, "metrics": {"m": [0.1, 0.1, 0.9]}},
            adjustable={"t": Range(t - 0.1, t + 0.1)},
        )
        return identified(make_plan(step))

    execute(plan(0.7), workspace)
    retry = ev.ReviewDecided("a-1", "retry", {"t": 0.65}, "cooler", "me", person=True)
    record_decision(plan(0.7), workspace, retry)
    assert execute(plan(0.7), workspace) == 3

    assert execute(plan(0.3), workspace, ACCEPTED) == 0

    ran = [f for f in known(workspace) if isinstance(f, ev.StepStarted)]
    assert [(f.attempt, f.params["t"]) for f in ran] == [(1, 0.7), (2, 0.65), (3, 0.3)]
    assert m.replay(plan(0.3), known(workspace)).steps["a"].status is Status.PASSED
    assert view(workspace).steps[0].status is Status.PASSED


def test_a_phase_that_is_switched_on_later_runs(workspace: Workspace) -> None:
    """A skip stands no longer than what it rested on; what was done is not done again."""

    def plan(*, enabled: bool) -> Plan:
        phases = (
            PlannedPhase("A", "A", enabled=True, steps=("a",)),
            PlannedPhase("D", "D", enabled=enabled, steps=("d",)),
        )
        return identified(
            make_plan(make_step("a"), make_step("d", phase="D", inputs=("a",)), phases=phases)
        )

    assert execute(plan(enabled=False), workspace) == 0

    assert fates(compare_plan(plan(enabled=True), known(workspace))) == {"a": "reuse", "d": "redo"}
    assert execute(plan(enabled=True), workspace, ACCEPTED) == 0
    assert starts(workspace) == [("a", 1), ("d", 1)]


def test_retries_given_later_reopen_a_closed_gate(workspace: Workspace) -> None:
    """More retries have a failed gate asked about again; a gate that passed is left alone."""

    def plan(retries: int) -> Plan:
        failing = {"metrics": {"m": [0.1, 0.9]}}
        passing = make_step("a", gate=gate(0.5), params={"metrics": {"m": 0.9}}, retries=retries)
        other = make_step("b", gate=gate(0.5), params=failing, retries=retries, review_after=1)
        return identified(make_plan(passing, other))

    def retry(_: object) -> Decision:
        return Decision("retry", "again", "model", person=False)

    assert execute(plan(0), workspace) == 3

    assert fates(compare_plan(plan(1), known(workspace))) == {"a": "reuse", "b": "rejudge"}
    assert execute(plan(1), workspace, ACCEPTED, reviewer=retry) == 0
    assert starts(workspace) == [("a", 1), ("b", 1), ("b", 2)]


def test_the_newest_accepted_plan_is_what_counts(workspace: Workspace) -> None:
    """After an acceptance the first plan is the changed one, and everyone compares with the new."""
    execute(chain(), workspace)
    execute(chain(b={"rows": 3}), workspace, ACCEPTED)

    assert execute(chain(b={"rows": 3}), workspace) == 0
    with pytest.raises(ConfigError, match="rows: 3 -> 2"):
        execute(chain(), workspace)
    with pytest.raises(ConfigError, match="rows: 3 -> 2"):
        record_decision(
            chain(), workspace, ev.ReviewDecided("x", "stop", {}, "r", "me", person=True)
        )
    assert execute(chain(), workspace, ACCEPTED) == 0
    assert starts(workspace)[3:] == [("b", 2), ("b", 3)]
    assert len(view(workspace).acceptances) == 2


def test_the_report_says_near_its_top_that_plans_changed(workspace: Workspace) -> None:
    """Who, when, why, which fields, and which verdict went: nobody takes it for one plan."""
    execute(chain(at_least=0.7), workspace)
    execute(chain(at_least=0.5, b={"rows": 3}), workspace, ACCEPTED)

    report = render_report(view(workspace))

    head = report.partition("## Steps")[0]
    assert "me accepted a changed plan at 2" in head
    assert "(a better idea)" in head
    assert "at\\_least: 0.7 -> 0.5" in head or "at_least: 0.7 -> 0.5" in head
    assert "udged again: a (it was: fail)" in head
    assert "## Changes of the plan" in head


def test_a_recorded_plan_is_the_plan() -> None:
    """A document read back has the same document and gates."""
    plan = chain()
    assert plan_document(recorded_plan(plan_document(plan))) == plan_document(plan)
    assert recorded_plan(plan_document(plan)).steps[0].gate == plan.steps[0].gate


def test_a_sharded_step_is_told_by_shards() -> None:
    """Whole shards of an attempt under way stay; a parameter that changed takes them all."""
    plan = identified(make_plan(make_step("a", params={"shards": 3, "rows": 2})))
    begun = (
        ev.SessionStarted("r", "", "n", plan.fingerprint, (), plan_document(plan), {}),
        ev.StepStarted("a", 1, 1, {}, "o", "t"),
        ev.BatchCommitted("a", 1, "shard-0001/round-0/0000", "p", "s", 1),
        ev.BatchCommitted("a", 1, "shard-0002/round-0/0000", "p", "s", 1),
    )

    def shards(params: Json) -> list[tuple[int, int, str]]:
        changed = identified(make_plan(make_step("a", params=params)))
        (step,) = compare_plan(changed, begun).steps
        return [(s.first, s.last, s.fate.value) for s in step.shards]

    assert shards({"shards": 3, "rows": 2}) == [(1, 1, "reuse"), (2, 3, "redo")]
    assert shards({"shards": 4, "rows": 2}) == [(1, 3, "invalidated"), (4, 4, "redo")]
    assert shards({"shards": 2, "rows": 3}) == [(1, 2, "invalidated")]


STEP = """from runbook.artifacts import complete_directory, describe, write_text
from runbook.contract import PhaseResult
from runbook.testing import fake_phase

def run(request):
    made = fake_phase(request)
    if "file" in request.params:
        with open(request.params["file"]) as file:
            write_text(request.output / "copy.txt", file.read())
        complete_directory(request.output)
        copied = describe("copy", request.output / "copy.txt", request.workspace)
        return PhaseResult(artifacts=(*made.artifacts, copied))
    return made
"""


def coded(folder: Path, **params: Json) -> Path:
    """A runbook of ``a`` and ``c``, by the module ``first``, and between them ``b`` by ``second``.

    ``b`` reads a file, and has these parameters.
    """
    path = write_runbook(folder, 0.5, 2, more=("c",))
    if not (folder / "first.py").exists():
        for name in ("first", "second"):
            (folder / f"{name}.py").write_text(STEP)
        (folder / "file.txt").write_text("as planned")
    spec = {"spec": 1, "params": params, "files": {"file": "file.txt"}}
    (folder / "b.yaml").write_text(json.dumps(spec))
    document = json.loads(path.read_text())
    for step, module in zip(
        document["phases"][0]["steps"], ("first", "second", "first"), strict=True
    ):
        step["function"] = f"{module}:run"
    path.write_text(json.dumps(document))
    return path


def edit(path: Path) -> None:
    path.write_text(f"{path.read_text()}# other code\n")


PAUSE = {"kind": "pause", "at": 1}


def test_changed_code_is_refused_and_then_makes_what_had_begun_anew(
    workspace: Workspace, tmp_path: Path
) -> None:
    """No attempt holds records of two codes; what passed before stays as it is."""
    spec = coded(tmp_path, trouble=PAUSE)
    assert execute(load_plan(spec), workspace) == 75
    before = dataset(workspace, "a"), workspace.segment(1).read_bytes()
    edit(tmp_path / "second.py")

    with pytest.raises(
        ConfigError, match="yaml: the source of second, run by b, changed"
    ) as refused:
        execute(load_plan(spec), workspace)

    assert f"runbook run {spec} --workspace" in refused.value.fix
    assert "--accept-changes REASON" in refused.value.fix
    assert workspace.segment(1).read_bytes() == before[1]
    found = compare_plan(load_plan(spec), known(workspace))
    assert fates(found) == {"a": "reuse", "b": "invalidated", "c": "redo"}
    assert found.steps[1].fields == found.fields
    assert found.fields[0].startswith("steps.b.code.second: ")
    assert execute(load_plan(spec), workspace, ACCEPTED) == 75
    assert execute(load_plan(spec), workspace) == 0
    assert starts(workspace) == [("a", 1), ("b", 1), ("b", 2), ("b", 2), ("c", 1)]
    assert dataset(workspace, "a") == before[0]
    made = [f for f in known(workspace) if isinstance(f, ev.StepStarted) and f.step == "b"]
    assert made[0].code != made[1].code == {"second": sha256_file(tmp_path / "second.py")}
    assert made[1].code == made[2].code
    assert ("b", 2, "0000") in generations(workspace.root)
    assert not verify(workspace).findings


def test_what_passed_stays_under_changed_code(workspace: Workspace, tmp_path: Path) -> None:
    """It is shown as made with earlier code; an attempt of another module goes on where it was."""
    spec = coded(tmp_path, trouble=PAUSE)
    assert execute(load_plan(spec), workspace) == 75
    earlier = sha256_file(tmp_path / "first.py")
    edit(tmp_path / "first.py")

    found = compare_plan(load_plan(spec), known(workspace))

    assert fates(found) == {"a": "reuse", "b": "redo", "c": "redo"}
    assert [change.earlier_code for change in found.steps] == [("first",), (), ()]
    assert found.code == {"first": ("a", "c")}
    assert execute(load_plan(spec), workspace, ACCEPTED) == 0
    assert starts(workspace) == [("a", 1), ("b", 1), ("b", 1), ("c", 1)]
    assert [key for step, _, key in generations(workspace.root) if step == "b"].count("0000") == 1
    codes = {
        path.parent.name[0]: json.loads(path.read_text())["code"]
        for path in workspace.artifacts.glob("*/manifest.json")
    }
    assert codes["a"] == {"first": earlier}
    assert codes["c"] == {"first": sha256_file(tmp_path / "first.py")}
    later = compare_plan(load_plan(spec), known(workspace)).steps[0]
    assert (later.fate, later.earlier_code) == (Fate.REUSE, ("first",))


def test_a_mended_step_goes_on_with_an_acceptance(tmp_path: Path, capfd: Capture) -> None:
    """After its own error each command says what to add; nothing that passed is made again."""
    place = tmp_path / "ws"
    spec = coded(tmp_path)
    good = (tmp_path / "second.py").read_text()
    (tmp_path / "second.py").write_text(good.replace("    made =", "    1 / 0\n    made ="))

    failed = call(capfd, "run", spec, "--workspace", place)
    report = (place / "report.md").read_text("utf-8")
    (tmp_path / "second.py").write_text(good)
    refused = call(capfd, "run", spec, "--workspace", place)
    shown = call(capfd, "plan", spec, "--workspace", place)
    rows = call(capfd, "plan", spec, "--workspace", place, "--json").lines
    mended = call(capfd, "resume", "--workspace", place, "--accept-changes", "mended")

    assert failed.code == 1
    assert "with --accept-changes REASON where that changed its code" in failed.err
    assert "or a step's code, add --accept-changes REASON" in failed.err
    assert "none of it again, unless the code of b is changed." in report
    assert refused.code == 2
    assert "the source of second, run by b, changed since this session began\n" in refused.err
    table = [line.split() for line in shown.err.splitlines()]
    assert any(row[:2] == ["a", "reuse"] for row in table)
    assert any(row[:3] == ["b", "invalidated", "steps.b.code.second:"] for row in table)
    assert rows[1]["code"] == {"second": sha256_file(tmp_path / "second.py")}
    assert rows[1]["change"]["fate"] == "invalidated"
    assert mended.code == 0
    assert starts(Workspace.at(place)) == [("a", 1), ("b", 1), ("b", 2), ("c", 1)]


def test_a_gate_that_waits_begins_anew_under_changed_code(
    workspace: Workspace, tmp_path: Path
) -> None:
    """A step that was judged and did not pass is not done, so its mended code runs it again."""
    spec = coded(tmp_path)
    strict = json.loads((tmp_path / "a.yaml").read_text())
    strict["gate"]["criteria"][0]["at_least"] = 0.7
    (tmp_path / "a.yaml").write_text(json.dumps(strict))
    assert execute(load_plan(spec), workspace) == 3
    edit(tmp_path / "first.py")

    assert fates(compare_plan(load_plan(spec), known(workspace)))["a"] == "invalidated"
    assert execute(load_plan(spec), workspace, ACCEPTED) == 3
    assert starts(workspace) == [("a", 1), ("a", 2)]


def test_a_plan_recorded_without_code_agrees_with_any(workspace: Workspace) -> None:
    """Sessions begun before code was an input go on as they are; other fields still count."""
    execute(chain(), workspace)

    def with_code(plan: Plan, code: Mapping[str, str]) -> Plan:
        return identified(replace(plan, steps=tuple(replace(s, code=code) for s in plan.steps)))

    code = code_of("runbook.testing:fake_phase", workspace.root)
    now = with_code(chain(), code)

    assert now.fingerprint != chain().fingerprint
    assert compare_plan(now, known(workspace)).fields == ()
    assert changed_fields(plan_document(chain()), plan_document(now)) == ()
    assert execute(now, workspace) == 0
    with pytest.raises(ConfigError, match="nothing changed since the plan on record"):
        execute(now, workspace, ACCEPTED)
    changed = with_code(chain(b={"rows": 3}), code)
    with pytest.raises(
        ConfigError, match=r"the runbook changed .* steps\.b\.params\.rows: 2 -> 3\n"
    ):
        execute(changed, workspace)
    assert execute(changed, workspace, ACCEPTED) == 0
    with pytest.raises(ConfigError, match=r"the source of .*, run by a, b, c, changed"):
        execute(with_code(chain(b={"rows": 3}), dict.fromkeys(code, "0" * 64)), workspace)


def test_a_second_look_is_never_of_other_code_than_the_first() -> None:
    """A changed gate that may ask for more has a step of earlier code made anew, not extended."""

    def plan(code: str, *, extend: Mapping[str, Json] | None, at_least: float) -> Plan:
        asked = replace(gate(at_least), extend=extend)
        step = make_step("a", gate=asked, params={"metrics": {"m": 0.9}}, code={"m": code})
        return identified(make_plan(step))

    begun = (
        ev.SessionStarted(
            "r", "", "n", "", (), plan_document(plan("1", extend=None, at_least=0.5)), {}
        ),
        ev.StepStarted("a", 1, 1, {}, "artifacts/a", "t", {"m": "1"}),
        *finished("a")[1:],
    )
    more = {"batches": 4}

    def fate(code: str, extend: Mapping[str, Json] | None) -> Fate:
        return compare_plan(plan(code, extend=extend, at_least=0.6), begun).steps[0].fate

    assert fate("1", more) is Fate.REJUDGE
    assert fate("2", None) is Fate.REJUDGE
    assert fate("2", more) is Fate.INVALIDATED


def meddle_with(folder: Path, how: str) -> None:
    path = folder / "file.txt"
    if how == "code":
        edit(folder / "second.py")
    elif how == "changed":
        path.write_text("otherwise")
    else:
        path.unlink()
    if how == "pipe":
        os.mkfifo(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["changed", "missing", "pipe", "code"])
def test_an_input_changed_while_an_earlier_step_ran_is_not_read(
    workspace: Workspace, tmp_path: Path, how: str
) -> None:
    """The session stops for a person and names it; restored, the same command goes on."""
    spec = coded(tmp_path)
    kept = {name: (tmp_path / name).read_bytes() for name in ("file.txt", "second.py")}

    told: list[Json] = []

    def meddle(progress: Mapping[str, Json]) -> None:
        if progress.get("step") == "a" and not told:
            meddle_with(tmp_path, how)
        told.append(progress)

    assert execute(load_plan(spec), workspace, on_progress=meddle) == 3

    stop = view(workspace).outcome
    named = "the source of second" if how == "code" else f"{tmp_path / 'file.txt'}, its file file,"
    assert stop.reason == "changed input"
    assert stop.detail.startswith(f"b: {named}")
    assert "restore it" in stop.detail
    report = workspace.report.read_text("utf-8")
    assert "is not the one that was planned with" in report
    assert "--accept-changes REASON" in report
    assert starts(workspace) == [("a", 1)]
    (tmp_path / "file.txt").unlink(missing_ok=True)
    for name, data in kept.items():
        (tmp_path / name).write_bytes(data)
    assert execute(load_plan(spec), workspace) == 0
    assert next(workspace.artifacts.glob("b_*/copy.txt")).read_text() == "as planned"


def test_a_file_changed_under_way_can_be_accepted(workspace: Workspace, tmp_path: Path) -> None:
    """The next run says which field changed, and with a reason reads the file as it is now."""
    spec = coded(tmp_path)

    def meddle(progress: Mapping[str, Json]) -> None:
        if progress.get("step") == "a":
            (tmp_path / "file.txt").write_text("otherwise")

    assert execute(load_plan(spec), workspace, on_progress=meddle) == 3
    with pytest.raises(ConfigError, match=r"steps\.b\.params\.file\.sha256: "):
        execute(load_plan(spec), workspace)

    assert execute(load_plan(spec), workspace, ACCEPTED) == 0

    assert next(workspace.artifacts.glob("b_*/copy.txt")).read_text() == "otherwise"
    assert starts(workspace) == [("a", 1), ("b", 1), ("c", 1)]


def edited(plan: Plan, edits: Mapping[str, Json]) -> Plan:
    """The plan with some of its fields changed, named as the strategies below name them."""
    for name, value in edits.items():
        where, _, field = name.partition(".")
        if where == "plan":
            plan = replace(plan, **{field: value})
        else:
            steps = [replace(s, **{field: value}) if s.name == where else s for s in plan.steps]
            plan = replace(plan, steps=tuple(steps))
    return identified(plan)


STEP_EDITS = {
    "params": st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2), max_size=2),
    "gate": st.sampled_from([None, gate(0.5), gate(0.4)]),
    "retries": st.integers(0, 2),
    "review_after": st.integers(1, 2),
    "adjustable": st.sampled_from([{}, {"x": Range(0, 1)}]),
}
EDITS = {
    **{f"{step}.{field}": values for step in "abcd" for field, values in STEP_EDITS.items()},
    "d.inputs": st.sampled_from([("b", "c"), ("c", "b"), ("b",), ("a", "b", "c")]),
    "plan.seed": st.integers(7, 8),
    "plan.model": st.sampled_from([{}, {"name": "x"}]),
    "plan.engine": st.sampled_from([{}, {"threads": 2}, {"batch_size": 2}]),
    "plan.budget": st.sampled_from([{}, {"usd": 1.0}]),
    "plan.environment": st.sampled_from([{}, {"X": "1"}]),
    "plan.reviewer": st.sampled_from([{}, {"provider": "human"}]),
}
DIAMOND = identified(
    make_plan(
        make_step("a", gate=gate(0.5)),
        make_step("b", inputs=("a",)),
        make_step("c", inputs=("a",)),
        make_step("d", inputs=("b", "c"), gate=gate(0.5)),
    )
)


def finished(step: str) -> tuple[ev.Event, ...]:
    return (
        ev.StepStarted(step, 1, 1, {}, f"artifacts/{step}", "t"),
        ev.StepFinished(step, 1, 1, (), (), 0, 5.0, {}, (), ()),
        ev.GateJudged(step, 1, 1, "pass", (), (), sentinel=False),
    )


@settings(max_examples=300, deadline=None)
@given(
    st.sets(st.sampled_from(sorted(EDITS)), max_size=4).flatmap(
        lambda names: st.fixed_dictionaries({name: EDITS[name] for name in sorted(names)})
    ),
    st.integers(0, 4),
)
def test_a_step_is_made_anew_exactly_where_its_fingerprint_changed(
    edits: dict[str, Json], done: int
) -> None:
    """For any set of edits, none that changed is reused, none that did not is redone."""
    changed = edited(DIAMOND, edits)
    begun = ev.SessionStarted("r", "", "n", DIAMOND.fingerprint, (), plan_document(DIAMOND), {})
    history = (begun, *(fact for step in "abcd"[:done] for fact in finished(step)))

    found = compare_plan(changed, history)

    for index, (old, new, change) in enumerate(
        zip(DIAMOND.steps, changed.steps, found.steps, strict=True)
    ):
        same = old.fingerprint == new.fingerprint
        if index >= done:
            assert change.fate is Fate.REDO
        else:
            assert (change.fate in (Fate.REUSE, Fate.REJUDGE)) == same
            assert (change.fate is Fate.REJUDGE) == (same and old.gate != new.gate)
        assert bool(change.fields) or change.fate is not Fate.INVALIDATED
    assert bool(found.fields) == (changed.fingerprint != DIAMOND.fingerprint)
    if found.fields:
        accepted = agree(changed, history, Path("/w"), ACCEPTED)
        assert accepted is not None
        state = m.replay(changed, (*history, accepted))
        for change in found.steps:
            fresh = change.fate in (Fate.INVALIDATED, Fate.REDO)
            assert (state.steps[change.step].status is Status.PENDING) == fresh
        assert agree(changed, (*history, accepted), Path("/w"), None) is None


CHANGED = chain(b={"rows": 3}, at_least=0.4)


def killed(workspace: Workspace, kill_at: int) -> int:
    """Accept a change in a process that is killed after its n-th journal line from there on."""
    path = f"{DRIVER.parent.parent}:{DRIVER.parent}"
    command = [sys.executable, str(DRIVER), str(workspace.root), str(kill_at)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def test_killed_anywhere_after_the_acceptance_the_same_command_goes_on(tmp_path: Path) -> None:
    """The acceptance is durable: no run after it needs another, and each ends with the same."""
    first, clean = Workspace.at(tmp_path / "first"), Workspace.at(tmp_path / "clean")
    execute(chain(), first)
    shutil.copytree(first.root, clean.root)
    execute(CHANGED, clean, ACCEPTED)
    kill_at = -1
    code = -signal.SIGKILL

    while code == -signal.SIGKILL:
        kill_at += 2
        assert kill_at < 40
        mine = Workspace.at(tmp_path / f"at{kill_at}")
        shutil.copytree(first.root, mine.root)
        code = killed(mine, kill_at)
        if kill_at == 1:
            assert isinstance(known(mine)[-1], ev.PlanAccepted)
            assert view(mine).outcome.state == "running"
        assert execute(CHANGED, mine) == 0
        assert [dataset(mine, step) for step in "abc"] == [dataset(clean, step) for step in "abc"]
        assert set(starts(mine)) == set(starts(clean))
        made = [key for key in generations(mine.root) if key[:2] == ("b", 2)]
        assert len(made) <= 3
        assert "accepted a changed plan" in mine.report.read_text("utf-8")
        assert not verify(mine).findings

    assert (code, kill_at > 10) == (0, True)


def write_runbook(
    folder: Path, at_least: float, rows: int, *, threads: int = 1, more: tuple[str, ...] = ()
) -> Path:
    criteria = [{"metric": "m", "kind": "statistic", "at_least": at_least}]
    params = {"metrics": {"m": 0.6}}
    (folder / "a.yaml").write_text(
        json.dumps({"spec": 1, "params": params, "gate": {"criteria": criteria}})
    )
    (folder / "b.yaml").write_text(json.dumps({"spec": 1, "params": {"rows": rows}}))
    fake = {"function": "runbook.testing:fake_phase"}
    steps = [
        {"name": "a", **fake, "spec": "a.yaml", "output": "artifacts/a_{time}"},
        {"name": "b", **fake, "spec": "b.yaml", "output": "artifacts/b_{time}"},
        *({"name": name, **fake, "output": f"artifacts/{name}"} for name in more),
    ]
    runbook = {
        "runbook": 1,
        "name": "small",
        "seed": 7,
        "model": {
            "name": "none",
            "source": {"path": "model"},
            "family": "none",
            "prefix": "none",
            "chat_template": "none",
            "dtype": "float32",
        },
        "engine": {"name": "fake", "threads": threads},
        "budget": {"wall_clock": "90m", "usd": 5.0, "usd_per_hour": 2.0},
        "phases": [{"name": "A", "steps": steps}],
    }
    path = folder / "runbook.yaml"
    path.write_text(json.dumps(runbook))
    return path


def test_the_command_line_shows_refuses_and_accepts(tmp_path: Path, capfd: Capture) -> None:
    """A change is shown by plan, refused by run, and with a reason taken on record by resume."""
    place = tmp_path / "ws"
    spec = write_runbook(tmp_path, 0.5, 2)
    assert call(capfd, "run", spec, "--workspace", place).code == 0
    assert "reuse" in call(capfd, "plan", spec, "--workspace", place).err
    write_runbook(tmp_path, 0.4, 3, threads=2)

    shown = call(capfd, "plan", spec, "--workspace", place)
    rows = call(capfd, "plan", spec, "--workspace", place, "--json").lines
    refused = call(capfd, "run", spec, "--workspace", place)

    table = [line.split() for line in shown.err.splitlines()]
    assert any(row[:2] == ["a", "rejudge"] for row in table)
    assert any(row[:2] == ["b", "invalidated"] and "$0.00" in row for row in table)
    assert [row.get("change", {}).get("fate") for row in rows] == ["rejudge", "invalidated", None]
    assert rows[1]["change"]["fields"] == ["steps.b.params.rows: 2 -> 3"]
    assert refused.code == 2
    assert f"runbook plan {spec} --workspace {place}" in refused.err
    write_runbook(tmp_path, 0.4, 3, more=("c",))
    other = call(capfd, "plan", spec, "--workspace", place)
    assert (other.code, "holds another session: added steps: c." in other.err) == (0, True)
    write_runbook(tmp_path, 0.4, 3, threads=2)
    accepted = call(
        capfd, "resume", "--workspace", place, "--accept-changes", "more rows", "--author", "me"
    )
    assert accepted.code == 0
    assert "me accepted a changed plan" in accepted.err
    assert "nothing is run again" in call(capfd, "run", spec, "--workspace", place).err


@pytest.mark.parametrize("verb", ["run", "run --detach", "resume", "launch"])
@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (" ", "an acceptance needs a reason"),
        ("REASON", "REASON stands in the command for a person's own words"),
    ],
)
def test_the_word_of_a_shown_command_is_no_reason_to_accept(
    tmp_path: Path, capfd: Capture, verb: str, reason: str, said: str
) -> None:
    """It is refused as a decision's is, and nothing is written."""
    place = tmp_path / "ws"
    spec = write_runbook(tmp_path, 0.5, 2)
    call(capfd, "run", spec, "--workspace", place)
    write_runbook(tmp_path, 0.4, 2)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    options = ("--workspace", str(place), "--accept-changes", reason)
    begins = [] if verb == "resume" else [str(spec)]

    told = call(capfd, *verb.split(), *begins, *options)

    assert told.code == 2
    assert f"error: --accept-changes: {said}\n" in told.err
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_an_accepted_override_is_part_of_the_command_that_goes_on(
    tmp_path: Path, capfd: Capture
) -> None:
    """A change by --set is kept: resume and the printed command carry it."""
    place = tmp_path / "ws"
    spec = write_runbook(tmp_path, 0.5, 2)
    call(capfd, "run", spec, "--workspace", place)

    options = ("--set", "b.rows=3", "--accept-changes", "more rows")
    assert call(capfd, "run", spec, "--workspace", place, *options).code == 0

    assert call(capfd, "resume", "--workspace", place).code == 0
    assert view(Workspace.at(place)).command(place).endswith("--set b.rows=3")
    assert load_plan(spec, ["b.rows=3"]).fingerprint == view(Workspace.at(place)).fingerprint


def drive(root: str, kill_at: str) -> int:
    """The test's own driver: a session that accepts a change and is killed after a line."""
    from runbook.journal_writer import Journal  # noqa: PLC0415 - only this process patches it

    real, count = Journal.append, [0]

    def append(self: Any, body: Any, **options: Any) -> Any:
        entry = real(self, body, **options)
        count[0] += 1
        if count[0] == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return entry

    Journal.append = append  # type: ignore[method-assign]  # a kill has no gentler seam
    return execute(CHANGED, Workspace.at(Path(root)), ACCEPTED)


if __name__ == "__main__":
    sys.exit(drive(*sys.argv[1:]))
