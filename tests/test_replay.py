"""Replay: stored evidence under changed thresholds or instruments, and nothing taken on trust."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_session import REVIEWED, Called, call
from cli_session import write_runbook as write_fake
from test_kill_phases import write_runbook

from gates.judge import judge_gate
from phases import generation, scorer_controls, verifiers
from phases.evaluate import pair_rows
from phases.held_out import load_items, subset
from phases.scoring import score_text
from runbook import events as ev
from runbook.artifacts import describe, read_jsonl, sha256_file, write_jsonl
from runbook.cli.remeasure import remeasures
from runbook.codec import encode
from runbook.contract import Criterion, Gate, Judgement, Metric
from runbook.decided import decisions
from runbook.journal import Entry, facts, read_entries
from runbook.replay import Replayed, Rules, compare, replay
from runbook.takeover import open_journal
from runbook.testing import simple_gates
from runbook.verify import verify
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]


def run_small(folder: Path, *more: str, **environment: str) -> int:
    """A real session on the fake engine; its exit code."""
    place = ("--workspace", str(folder / "ws"))
    done = subprocess.run(
        [sys.executable, "-m", "runbook", "run", str(folder / "runbook.yaml"), *place, *more],
        env={**os.environ, "XDG_STATE_HOME": str(folder / "state"), **environment},
        capture_output=True,
        check=False,
    )
    return done.returncode


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session with a failed attempt, an adjustment and an extension. Not to be changed."""
    folder = tmp_path_factory.mktemp("ended")
    write_runbook(folder)
    assert run_small(folder) == 0
    return folder


@pytest.fixture
def past(ended: Path, tmp_path: Path) -> Path:
    """A copy of its workspace."""
    return Path(shutil.copytree(ended / "ws", tmp_path / "ws"))


Changed = Callable[[str, Callable[[dict[str, Any]], None]], Path]


@pytest.fixture
def changed(ended: Path, tmp_path: Path) -> Changed:
    """The session's runbook with one of its specs changed."""

    def change(name: str, how: Callable[[dict[str, Any]], None]) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(ended, folder, ignore=shutil.ignore_patterns("ws", "state"))
        spec = json.loads((folder / f"{name}.yaml").read_text())
        how(spec["gate"])
        (folder / f"{name}.yaml").write_text(json.dumps(spec))
        return folder / "runbook.yaml"

    return change


def criterion(gate: dict[str, Any], metric: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in gate["criteria"] if c["metric"] == metric)
    return found


def replayed(capfd: Capture, workspace: Path, *more: str | Path) -> Called:
    return call(capfd, "gate", "replay", "--run", workspace, "--json", *more)


def flips(called: Called) -> "dict[Key, tuple[str, str]]":
    """(step, attempt, look) of each decision that flips -> what it was and would be."""
    rows = [row for row in called.lines if row.get("flips") is True]
    return {
        (r["step"], r["attempt"], r["look"]): (r["verdict"], r["would_be"])
        for r in rows
        if "step" in r
    }


Key = tuple[str, int, int]
"""Step, attempt, look."""


def verdicts(root: Path) -> dict[Key, str]:
    judged = [f for f in facts(read_entries(Workspace.at(root))) if isinstance(f, ev.GateJudged)]
    return {(f.step, f.attempt, f.look): f.verdict for f in judged}


def row_of(called: Called, step: str, attempt: int = 1, look: int = 1) -> dict[str, Any]:
    key = (step, attempt, look)
    rows = [r for r in called.lines if "step" in r]
    return next(r for r in rows if (r["step"], r["attempt"], r["look"]) == key)


def files(folder: Path) -> dict[str, str]:
    return {str(p): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_nothing_changed_nothing_flips(past: Path, capfd: Capture) -> None:
    """Every decision of a whole session comes out as it did, and no byte is written."""
    before = files(past)

    called = replayed(capfd, past)

    assert called.code == 0
    rows = [r for r in called.lines if "step" in r]
    known = verdicts(past)
    assert {("pilot", 1, 1): "fail", ("pilot", 2, 2): "pass"}.items() <= known.items()
    assert {(r["step"], r["attempt"], r["look"]): r["would_be"] for r in rows} == known
    assert [c for r in rows for c in r["criteria"] if c["changed"]] == []
    total = {"decisions": len(known), "flips": 0, "not_replayed": 0, "damaged": 0}
    assert called.lines[-1] == total
    assert files(past) == before


def test_unchanged_instruments_read_the_same(past: Path, capfd: Capture) -> None:
    """Measured anew from the stored texts, every reading is the one on record."""
    called = replayed(capfd, past, "--remeasure")

    assert called.code == 0
    assert [r["readings"] for r in called.lines if r.get("readings")] == []
    total = {"decisions": len(verdicts(past)), "flips": 0, "not_replayed": 1, "damaged": 0}
    assert called.lines[-1] == total
    gone = row_of(called, "pilot", 2, 1)
    assert "candidates.jsonl (and " in gone["why_not_replayed"]
    assert gone["why_not_replayed"].endswith("was written over by look 2 of attempt 2")


def test_a_tightened_threshold_flips_a_pass(past: Path, changed: Changed, capfd: Capture) -> None:
    """The flip is told with its criterion: value, bound and threshold before and after."""
    spec = changed(
        "pilot", lambda gate: criterion(gate, "instruction_acceptance").update(at_least=0.99)
    )

    called = replayed(capfd, past, "--spec", spec)

    assert called.code == 0
    assert flips(called) == {
        ("pilot", 2, 1): ("underpowered", "fail"),
        ("pilot", 2, 2): ("pass", "fail"),
    }
    (cause,) = [c for c in row_of(called, "pilot", 2, 2)["criteria"] if c["flips"]]
    before, after = cause["before"], cause["after"]
    assert (before["threshold"], after["threshold"]) == (">= 0.3", ">= 0.99")
    assert before["value"] == after["value"] < 0.99
    shown = call(capfd, "gate", "replay", "--run", past, "--spec", spec).err
    assert "pilot, attempt 2, look 2: pass -> fail" in shown
    assert ">= 0.3 -> >= 0.99  pass -> fail" in shown
    assert shown.endswith(f"\n{len(verdicts(past))} decisions, 2 would flip\n")


def test_a_loosened_threshold_flips_a_failure(past: Path, changed: Changed, capfd: Capture) -> None:
    """With the failing criterion and the minimum n relaxed, the first attempt would have done."""

    def loosen(gate: dict[str, Any]) -> None:
        limit = criterion(gate, "token_limit_rate")
        del limit["below"]
        limit["at_most"] = 1.0
        criterion(gate, "pair_acceptance")["min_n"] = 1

    called = replayed(capfd, past, "--spec", changed("pilot", loosen))

    assert called.code == 0
    assert flips(called) == {
        ("pilot", 1, 1): ("fail", "pass"),
        ("pilot", 2, 1): ("underpowered", "pass"),
    }


def test_a_raised_minimum_n_is_underpowered(past: Path, changed: Changed, capfd: Capture) -> None:
    """A sample that was enough is too small, also at the second look."""
    spec = changed("pilot", lambda gate: criterion(gate, "pair_acceptance").update(min_n=500))

    assert flips(replayed(capfd, past, "--spec", spec)) == {
        ("pilot", 2, 2): ("pass", "underpowered")
    }


@pytest.mark.parametrize(
    ("rule", "extends", "verdict"),
    [("rate", True, "underpowered"), ("rate", False, "pass"), ("bound", False, "fail")],
)
def test_an_extension_declared_or_not_decides_what_is_final(
    past: Path, changed: Changed, capfd: Capture, rule: str, extends: bool, verdict: str
) -> None:
    """A rate whose bound is short waits for a second look, and without one meets its rule."""

    def tighten(gate: dict[str, Any]) -> None:
        criterion(gate, "pair_acceptance").update(at_least=0.8, at_max_n=rule, min_n=8)
        for name in ("runaway_rate", "token_limit_rate"):  # What so few rows could show.
            criterion(gate, name)["below"] = 0.5
        if not extends:
            del gate["extend"]

    called = replayed(capfd, past, "--spec", changed("pilot", tighten))

    first = row_of(called, "pilot", 2, 1)
    assert first["would_be"] == verdict
    (pairs,) = [c["after"] for c in first["criteria"] if c["metric"] == "pair_acceptance"]
    assert pairs["thin"] == (verdict == "pass")


def test_what_a_gate_derives_is_derived_again(past: Path, changed: Changed, capfd: Capture) -> None:
    """An instrument's bound stands in no stored metric; its rows are read again."""
    spec = changed(
        "calibration",
        lambda gate: criterion(gate, "instruction_filter_auc").update(at_least=0.9999),
    )

    called = replayed(capfd, past, "--spec", spec)

    assert flips(called) == {("calibration", 1, 1): ("pass", "invalid")}


def test_steps_that_are_gone_are_not_counted_as_held(
    past: Path, ended: Path, tmp_path: Path, capfd: Capture
) -> None:
    """A step that the changed runbook lacks, or that has no gate there, is told as not replayed."""
    folder = tmp_path / "changed"
    shutil.copytree(ended, folder, ignore=shutil.ignore_patterns("ws", "state"))
    book = json.loads((folder / "runbook.yaml").read_text())
    book["phases"][0]["steps"] = [s for s in book["phases"][0]["steps"] if s["name"] != "baseline"]
    (folder / "runbook.yaml").write_text(json.dumps(book))
    spec = json.loads((folder / "scale.yaml").read_text())
    del spec["gate"]
    (folder / "scale.yaml").write_text(json.dumps(spec))

    called = replayed(capfd, past, "--spec", folder / "runbook.yaml")

    assert called.code == 0
    lacking = row_of(called, "baseline")
    assert lacking["would_be"] is None
    assert lacking["why_not_replayed"] == "the changed runbook has no step 'baseline'"
    assert "declares no gate for 'scale'" in row_of(called, "scale")["why_not_replayed"]
    total = {"decisions": len(verdicts(past)), "flips": 0, "not_replayed": 2, "damaged": 0}
    assert called.lines[-1] == total


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lead_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("name", "harm", "told"),
    [
        ("stage1_candidates.jsonl", flip_byte, "was changed"),
        ("stage1_sft_data.jsonl", flip_byte, "was changed"),
        ("stage1_candidates.jsonl", Path.unlink, "is missing"),
        ("stage1_candidates.jsonl", lead_out, "leads out of the workspace"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--remeasure",)])
def test_damaged_evidence_is_told_by_name(
    past: Path,
    capfd: Capture,
    name: str,
    harm: Callable[[Path], None],
    told: str,
    more: tuple[str, ...],
) -> None:
    """Its decision is not replayed, the others are, and the exit code is 3."""
    harm(past / "data" / name)

    called = replayed(capfd, past, *more)

    assert called.code == 3
    row = row_of(called, "scale")
    assert (row["would_be"], row["damaged"], row["flips"]) == (None, True, False)
    assert f"data/{name} {told}" in row["why_not_replayed"]
    assert row_of(called, "pilot", 2, 2)["would_be"] == "pass"
    assert called.lines[-1]["damaged"] == 1


LYING = """
from phases.generation import Generator

honest = Generator._cleaned


def lying(self, raw):
    facts = honest(self, raw)
    long = {"runaway": True, "fate": "runaway"} if len(facts["response"]) > 28 else {}
    return {**facts, **long}


Generator._cleaned = lying
"""
"""Beside the probes on which detectors are measured, so that calibration sees nothing of it."""


def test_a_lying_detector_is_unmasked(tmp_path: Path, capfd: Capture) -> None:
    """Long answers were flagged as runaways; read anew by an honest detector, the gate passes."""
    write_runbook(tmp_path)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(LYING)
    search = os.pathsep.join(filter(None, (str(hooks), os.environ.get("PYTHONPATH"))))
    long_enough = ("--set", "pilot.max_new_tokens=44", "--set", "pilot.raw_rows=60")
    assert run_small(tmp_path, *long_enough, PYTHONPATH=search) == 3
    workspace = tmp_path / "ws"

    as_stored = replayed(capfd, workspace)
    assert flips(as_stored) == {}
    assert row_of(as_stored, "pilot")["verdict"] == "fail"

    anew = replayed(capfd, workspace, "--remeasure")

    assert anew.code == 0
    assert flips(anew) == {("pilot", 1, 1): ("fail", "pass")}
    before, after = row_of(anew, "pilot")["readings"]["runaway_rate"]
    assert before > 0.4
    assert after < 0.1
    shown = call(capfd, "gate", "replay", "--run", workspace, "--remeasure").err
    assert "pilot, attempt 1, look 1: fail -> pass" in shown
    assert f"runaway_rate  {before:.3g} -> {after:.3g}" in shown
    assert shown.endswith("3 decisions, 1 would flip\n")


def test_a_detector_that_lies_today_is_not_believed(
    past: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it reads anything it is measured on its own labelled rows; failing, it is invalid."""
    honest = generation.read_raw

    def lying(raw: str) -> dict[str, Any]:
        return {**honest(raw), "runaway": True, "fate": "runaway"}

    monkeypatch.setattr(generation, "read_raw", lying)

    called = replayed(capfd, past, "--remeasure")

    assert flips(called) == {
        ("pilot", 1, 1): ("fail", "invalid"),
        ("pilot", 2, 2): ("pass", "invalid"),
        ("scale", 1, 1): ("pass", "invalid"),
    }
    (cause,) = [c for c in row_of(called, "scale")["criteria"] if c["flips"]]
    assert cause["metric"] == "runaway_rate"
    assert "runaway detector is below its bound" in cause["after"]["reason"]


def test_rows_that_leak_are_found_anew(past: Path, ended: Path, tmp_path: Path) -> None:
    """Today's held-out set is what the stored rows are held against."""
    rows = read_jsonl(past / "data" / "stage1_sft_data.jsonl")
    items = (ended / "held_out.jsonl").read_text("utf-8").splitlines()
    leaked = {**json.loads(items[0]), "id": "leaked", "instruction": rows[0]["instruction"]}
    today = tmp_path / "held_out.jsonl"
    today.write_text("\n".join([*items, json.dumps(leaked)]), "utf-8")
    place = Workspace.at(past)
    how = remeasures(past, tmp_path / "scratch", {"scale": today}, {})

    found = again(past, read_entries(place), Rules(real_judge, None, how))

    scale = next(r for r in found if r.decided.judged.step == "scale")
    assert scale.verdict == "fail"
    assert scale.readings["overlap_exact"] == (0.0, 1.0)


def test_what_never_was_measured_is_invalid(tmp_path: Path, capfd: Capture) -> None:
    """A criterion that is new, on a metric that no step reported, passes nothing."""
    spec = write_fake(tmp_path, {"metrics": {"score": 0.9}})
    workspace = tmp_path / "ws"
    assert call(capfd, "run", spec, "--workspace", workspace).code == 0
    document = json.loads((tmp_path / "a.yaml").read_text())
    document["gate"]["criteria"].append({"metric": "other", "kind": "census", "at_most": 0})
    (tmp_path / "a.yaml").write_text(json.dumps(document))

    called = replayed(capfd, workspace, "--spec", spec)

    assert flips(called) == {("a", 1, 1): ("pass", "invalid")}
    (new,) = [c for c in row_of(called, "a")["criteria"] if c["before"] is None]
    assert "was not measured" in new["after"]["reason"]


def test_a_decision_that_a_person_overrode_is_told_as_such(tmp_path: Path, capfd: Capture) -> None:
    """The list names who and why, and the replay holds the gate's own verdict against its own."""
    spec, workspace = write_fake(tmp_path, REVIEWED), tmp_path / "ws"
    assert call(capfd, "run", spec, "--workspace", workspace).code == 3
    told = ("--action", "override", "--reason", "seen by eye", "--author", "me")
    assert call(capfd, "review", "decide", "a-2", *told, "--workspace", workspace).code == 0

    listed = call(capfd, "gate", "list", "--workspace", workspace)

    lines = [line.split() for line in listed.err.splitlines()]
    assert [line[:4] for line in lines[1:]] == [["a", "1", "1", "fail"], ["a", "2", "1", "fail"]]
    assert "overridden" not in listed.err.splitlines()[1]
    assert listed.err.splitlines()[2].endswith("overridden by me: seen by eye")
    called = replayed(capfd, workspace)
    assert flips(called) == {}
    assert row_of(called, "a", 2)["override"] == {"author": "me", "reason": "seen by eye"}


def judged_by(gate: Gate, verdict: str, step: str, attempt: int = 1) -> ev.GateJudged:
    criteria = tuple(
        {"metric": c.metric, "kind": c.kind, "threshold": c.threshold, "verdict": verdict}
        for c in gate.criteria
    )
    return ev.GateJudged(step, attempt, 1, verdict, criteria, (), sentinel=False)


def begun(functions: Mapping[str, str], gate: Gate) -> ev.SessionStarted:
    steps = {name: {"function": way, "gate": encode(gate)} for name, way in functions.items()}
    return ev.SessionStarted("r", "/x", "n", "f", (), {"steps": steps}, {})


def finished(step: str, attempt: int, metrics: tuple[Metric, ...], *made: Path) -> ev.StepFinished:
    """The end of a step that wrote these files into ``ws/<folder>``."""
    found = tuple(describe(path.stem, path, path.parents[1]) for path in made)
    return ev.StepFinished(step, attempt, 1, metrics, found, 0, 1.0, {}, (), ())


def record(root: Path, *happened: ev.Event) -> Workspace:
    place = Workspace.at(root)
    place.create()
    with open_journal(place) as journal:
        for event in happened:
            journal.append(event.to_body())
    return place


def pairs(path: Path, gained: int) -> Path:
    rows = [
        {"id": str(i), "kind": "k", "base": i >= gained, "tuned": True}
        for i in range(max(40, gained))
    ]
    write_jsonl(path, rows)
    return path


SIGNIFICANT = Gate((Criterion("mcnemar_p", "p_value", below=0.01),))
PAIRED = (Metric("paired_outcomes", 40.0, n=40, evidence="eval/pairs.jsonl"),)


def retried(root: Path, recorded: float | None, *more: Metric) -> None:
    """Two attempts in one folder: the second wrote over the first one's pairs."""
    file = root / "eval" / "pairs.jsonl"
    first = finished("evaluate", 1, (*PAIRED, *more), pairs(file, 1))
    second = finished("evaluate", 2, PAIRED, pairs(file, 30))
    failed = judged_by(SIGNIFICANT, "fail", "evaluate", 1)
    read = {**failed.criteria[0], "value": recorded, "n": 40}
    record(
        root,
        begun({"evaluate": "mine:run"}, SIGNIFICANT),
        first,
        replace(failed, criteria=(read,)),
        second,
        judged_by(SIGNIFICANT, "pass", "evaluate", 2),
    )


def test_what_a_retry_wrote_over_is_judged_by_what_was_derived_then(
    tmp_path: Path, capfd: Capture
) -> None:
    """The first verdict stands on its recorded p-value, never on the second attempt's pairs."""
    retried(tmp_path / "ws", 0.8)

    called = replayed(capfd, tmp_path / "ws")

    assert called.code == 0
    first = row_of(called, "evaluate", 1)
    assert (first["would_be"], first["criteria"][0]["after"]["value"]) == ("fail", 0.8)
    gone = "eval/pairs.jsonl was written over by look 1 of attempt 2"
    assert first["notes"] == [f"by the readings on record: {gone}"]
    assert row_of(called, "evaluate", 2)["would_be"] == "pass"


def test_a_metric_that_was_reported_twice_stays_invalid(tmp_path: Path, capfd: Capture) -> None:
    """Also where the rows are gone: of two readings none is chosen."""
    twice = (Metric("mcnemar_p", 0.001, n=40), Metric("mcnemar_p", 0.5, n=40))
    retried(tmp_path / "ws", 0.8, *twice)

    called = replayed(capfd, tmp_path / "ws")

    assert row_of(called, "evaluate", 1)["would_be"] == "invalid"


def test_what_was_not_derived_then_is_not_replayed(tmp_path: Path, capfd: Capture) -> None:
    """Without rows and without a recorded value there is nothing to judge."""
    retried(tmp_path / "ws", None)

    called = replayed(capfd, tmp_path / "ws")

    gone = row_of(called, "evaluate", 1)
    assert gone["would_be"] is None
    told = "mcnemar_p cannot be derived: eval/pairs.jsonl was written over by look 1 of attempt 2"
    assert gone["why_not_replayed"] == told
    assert called.lines[-1] == {"decisions": 2, "flips": 0, "not_replayed": 1, "damaged": 0}


@pytest.mark.parametrize(
    ("output", "damaged", "told"),
    [("eval", False, "is being made again"), ("other", True, "was changed")],
)
def test_a_run_at_work_is_no_damage(
    tmp_path: Path, capfd: Capture, output: str, damaged: bool, told: str
) -> None:
    """What a started attempt may have touched is not called damaged; what lies elsewhere is."""
    root = tmp_path / "ws"
    file = root / "eval" / "pairs.jsonl"
    before = ev.StepStarted("evaluate", 1, 1, {}, "eval", "")
    end = finished("evaluate", 1, PAIRED, pairs(file, 30))
    at_work = ev.StepStarted("evaluate", 2, 1, {}, output, "")
    start = begun({"evaluate": "mine:run"}, SIGNIFICANT)
    record(root, start, before, end, judged_by(SIGNIFICANT, "pass", "evaluate"), at_work)
    flip_byte(file)

    called = replayed(capfd, root)

    assert called.code == 3
    row = row_of(called, "evaluate")
    assert row["damaged"] == damaged
    assert told in row["why_not_replayed"]


@pytest.mark.parametrize("written_anew", [False, True])
def test_rows_of_an_earlier_step_are_held_against_its_hash(
    tmp_path: Path, capfd: Capture, written_anew: bool
) -> None:
    """An edit is damage, told by verify too; what that step wrote itself later is none."""
    root = tmp_path / "ws"
    file = root / "eval" / "pairs.jsonl"
    record(
        root,
        begun({"base": "mine:run", "evaluate": "mine:run"}, SIGNIFICANT),
        ev.StepStarted("base", 1, 1, {}, "eval", ""),
        finished("base", 1, (), pairs(file, 30)),
        ev.StepStarted("evaluate", 1, 1, {}, "other", ""),
        finished("evaluate", 1, PAIRED),
        judged_by(SIGNIFICANT, "pass", "evaluate"),
        *((finished("base", 2, (), pairs(file, 1)),) if written_anew else ()),
    )
    if not written_anew:
        assert replayed(capfd, root).code == 0
        flip_byte(file)

    called = replayed(capfd, root)

    row = row_of(called, "evaluate")
    assert (called.code, row["would_be"], row["damaged"]) == (3, None, not written_anew)
    told = "was written over by look 1 of attempt 2" if written_anew else "was changed"
    assert told in row["why_not_replayed"]
    where = [finding.where for finding in verify(Workspace.at(root)).findings]
    assert where.count("eval/pairs.jsonl") == (not written_anew)


def test_rows_without_a_hash_are_never_read(tmp_path: Path, capfd: Capture) -> None:
    """The verdict on record stays, by its readings; verify names the file."""
    root = tmp_path / "ws"
    pairs(root / "eval" / "pairs.jsonl", 1)
    judged = judged_by(SIGNIFICANT, "pass", "evaluate")
    read = {**judged.criteria[0], "value": 0.001, "n": 40}
    record(
        root,
        begun({"evaluate": "mine:run"}, SIGNIFICANT),
        ev.StepStarted("evaluate", 1, 1, {}, "eval", ""),
        finished("evaluate", 1, PAIRED),
        replace(judged, criteria=(read,)),
    )

    called = replayed(capfd, root)

    row = row_of(called, "evaluate")
    assert (called.code, row["would_be"]) == (0, "pass")
    assert row["notes"] == ["by the readings on record: eval/pairs.jsonl has no hash on record"]
    told = "eval/pairs.jsonl: evidence of evaluate with no hash on record"
    assert told in verify(Workspace.at(root)).notes


def scored_session(
    root: Path, base: Callable[[str], str], gate: Gate = SIGNIFICANT, *more: Metric
) -> None:
    """An evaluation whose scorer called what the base answered wrong, right or not."""
    items = load_items(ROOT / "specs" / "held_out.jsonl")[:40]
    sides = {}
    for side, answer in (("base", base), ("tuned", str)):
        rows = [score_text(item, f" {answer(item.reference)}\n###END###", 5) for item in items]
        lie = {"success": False, "format_ok": False} if side == "base" else {}
        sides[side] = sorted(({**row, **lie} for row in rows), key=lambda row: str(row["id"]))
    folders = {"base": root / "baseline", "tuned": root / "eval"}
    for side, folder in folders.items():
        write_jsonl(folder / "outcomes.jsonl", sides[side])
    write_jsonl(root / "eval" / "pairs.jsonl", pair_rows(sides["base"], sides["tuned"]))
    functions = {"baseline": "phases.baseline:run", "evaluate": "phases.evaluate:run"}
    params = {"held_out": str(ROOT / "specs" / "held_out.jsonl")}
    made = (root / "eval" / "outcomes.jsonl", root / "eval" / "pairs.jsonl")
    record(
        root,
        begun(functions, gate),
        finished("baseline", 1, (), root / "baseline" / "outcomes.jsonl"),
        ev.StepStarted("evaluate", 1, 1, params, "eval", ""),
        finished("evaluate", 1, (*PAIRED, *more), *made),
        judged_by(gate, "pass", "evaluate"),
    )


@pytest.mark.parametrize(
    ("base", "expected"),
    [(str, {("evaluate", 1, 1): ("pass", "fail")}), (lambda _: "Zzyzx.", {})],
)
def test_an_evaluation_is_scored_again(
    tmp_path: Path, capfd: Capture, base: Callable[[str], str], expected: dict[Key, tuple[str, str]]
) -> None:
    """A gain that a scorer invented is gone when its texts are verified; a real one stays."""
    scored_session(tmp_path / "ws", base)
    assert flips(replayed(capfd, tmp_path / "ws")) == {}

    anew = replayed(capfd, tmp_path / "ws", "--remeasure")

    assert anew.code == 0
    assert flips(anew) == expected


SCORER = Gate(
    (
        Criterion("base_rate", "rate", below=1.01),
        Criterion("references_failing", "control", at_most=0),
        Criterion("shuffled_references_passing", "control", below=0.05),
        Criterion("empty_passing", "control", at_most=0),
        Criterion("scorer_sensitivity", "instrument", at_least=0.85),
        Criterion("scorer_specificity", "instrument", at_least=0.85),
    )
)


def checked_session(root: Path) -> None:
    """A baseline whose scorer went through its controls."""
    held_out = ROOT / "specs" / "held_out.jsonl"
    items = subset(load_items(held_out), 32)
    labels = scorer_controls.load_labelled(ROOT / "specs" / "probe" / "scoring.jsonl")
    files = {
        "outcomes": [score_text(item, item.reference, 3) for item in items],
        "shuffled": scorer_controls.shuffled_readings(items),
        "scored": scorer_controls.labelled_readings(labels, load_items(held_out)),
    }
    for name, rows in files.items():
        write_jsonl(root / "base" / f"{name}.jsonl", rows)
    n, scored = len(items), len(files["scored"])
    metrics = (
        Metric("base_rate", 1.0, n, n, evidence="base/outcomes.jsonl"),
        Metric("references_failing", 0.0, n, evidence="base/outcomes.jsonl"),
        scorer_controls.shuffled_metric(items, files["shuffled"], "base/shuffled.jsonl"),
        Metric("empty_passing", 0.0, n, evidence="base/outcomes.jsonl"),
        Metric("scored_responses", float(scored), scored, evidence="base/scored.jsonl"),
    )
    record(
        root,
        begun({"baseline": "phases.baseline:run"}, SCORER),
        ev.StepStarted("baseline", 1, 1, {"held_out": str(held_out)}, "base", ""),
        finished("baseline", 1, metrics, *(root / "base" / f"{name}.jsonl" for name in files)),
        judged_by(SCORER, "pass", "baseline"),
    )


def yes(*_: object) -> verifiers.Score:
    return verifiers.Score(success=True, format_ok=True, content_ok=True, failures=())


def no(*_: object) -> verifiers.Score:
    return verifiers.Score(success=False, format_ok=False, content_ok=False, failures=("no",))


@pytest.mark.parametrize(
    ("today", "moved"),
    [
        (yes, {"shuffled_references_passing", "empty_passing", "scorer_specificity"}),
        (no, {"references_failing", "scorer_sensitivity"}),
        (verifiers.score, set()),
    ],
)
def test_the_scorer_goes_through_its_controls_again(
    tmp_path: Path,
    capfd: Capture,
    monkeypatch: pytest.MonkeyPatch,
    today: Callable[..., verifiers.Score],
    moved: set[str],
) -> None:
    """One that passes everything today, or nothing, flips the baseline; the same one does not."""
    checked_session(tmp_path / "ws")
    monkeypatch.setattr(verifiers, "score", today)

    anew = replayed(capfd, tmp_path / "ws", "--remeasure")

    assert anew.code == 0
    assert flips(anew) == ({("baseline", 1, 1): ("pass", "invalid")} if moved else {})
    row = row_of(anew, "baseline")
    assert {c["metric"] for c in row["criteria"] if c["flips"]} == moved
    assert moved or not row["readings"]


def test_outcomes_that_the_scorer_reads_otherwise_today_are_counted(
    tmp_path: Path, capfd: Capture
) -> None:
    """The base's stored outcomes are held against today's scorer, as the evaluation held them."""
    gate = Gate((Criterion("base_outcomes_changed", "control", at_most=0),))
    metric = Metric("base_outcomes_changed", 0.0, n=40)
    scored_session(tmp_path / "ws", str, gate, metric)

    anew = replayed(capfd, tmp_path / "ws", "--remeasure")

    assert flips(anew) == {("evaluate", 1, 1): ("pass", "invalid")}
    assert row_of(anew, "evaluate")["readings"]["base_outcomes_changed"] == [0.0, 40.0]


def test_a_damaged_other_side_is_told(tmp_path: Path, capfd: Capture) -> None:
    """The baseline's rows are the base's side of the pairs, so they are checked too."""
    scored_session(tmp_path / "ws", str)
    path = tmp_path / "ws" / "baseline" / "outcomes.jsonl"
    path.write_text(path.read_text().replace('"tokens":5', '"tokens":6', 1))

    anew = replayed(capfd, tmp_path / "ws", "--remeasure")

    assert anew.code == 3
    row = row_of(anew, "evaluate")
    assert (row["damaged"], row["would_be"]) == (True, None)
    assert row["why_not_replayed"].startswith("baseline/outcomes.jsonl: was changed")


def test_an_item_that_is_not_asked_any_more_stops_the_rescoring(tmp_path: Path) -> None:
    """Today's held-out file must hold every item as it was asked."""
    root = tmp_path / "ws"
    scored_session(root, str)
    kept = (ROOT / "specs" / "held_out.jsonl").read_text().splitlines()[1:]
    entries = read_entries(Workspace.at(root))
    moved = tmp_path / "held_out.jsonl"
    moved.write_text("\n".join(kept))
    remeasure = remeasures(root, tmp_path / "scratch", {"evaluate": moved}, {})

    (found,) = again(root, entries, Rules(real_judge, None, remeasure))

    assert found.after is None
    assert "does not stand in today's held-out file" in found.why


def real_judge(
    gate: Gate, metrics: tuple[Metric, ...], root: Path | None, final: bool
) -> Judgement:
    return judge_gate(gate, metrics, root, final=final)


def again(root: Path, entries: tuple[Entry, ...], rules: Rules) -> list[Replayed]:
    return list(replay(Workspace.at(root), entries, rules))


HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e"


@pytest.mark.parametrize("flagged", [True, False])
def test_hostile_rows_reach_no_terminal(tmp_path: Path, capfd: Capture, flagged: bool) -> None:
    """What a model said is escaped, be it flagged in the journal or read off the evidence."""
    root = tmp_path / "ws"
    file = root / "eval" / "rows.jsonl"
    file.parent.mkdir(parents=True)
    line = json.dumps({"text": HOSTILE}, ensure_ascii=False)
    file.write_text(f"{line}\n{HOSTILE} is no JSON\n" + f"{line}\n" * 20)
    gate = Gate((Criterion("score", "statistic", at_least=0.5),))
    metric = Metric("score", 0.9, evidence="eval/rows.jsonl", note=HOSTILE)
    end = finished("a", 1, (metric,), file)
    end = replace(end, flagged=({"text": HOSTILE},)) if flagged else end
    verdict = replace(judged_by(gate, "pass", "a"), reasons=(HOSTILE,))
    verdict = replace(verdict, criteria=({**verdict.criteria[0], "reason": HOSTILE},))
    record(root, begun({"a": "mine:run"}, gate), end, verdict)

    for how in ((), ("--json",)):
        shown = call(capfd, "gate", "show", "a", "--workspace", root, *how)
        told = shown.out + shown.err
        assert shown.code == 0
        assert "owned" in told
        assert not set(HOSTILE) & set("\x1b\x07\u202e") & set(told)
    (row,) = call(capfd, "gate", "show", "a", "--workspace", root, "--json").lines
    assert len(row["rows"]) == (1 if flagged else 10)


def test_a_gate_is_shown_with_all_it_rests_on(past: Path, capfd: Capture) -> None:
    """Each criterion with value, n, bound, threshold, verdict, reason and evidence, then rows."""
    called = call(capfd, "gate", "show", "pilot", "--attempt", "1", "--workspace", past)

    assert called.code == 0
    assert called.err.startswith("pilot, attempt 1, look 1: fail, judged at ")
    limit = next(line for line in called.err.splitlines() if "token_limit_rate  " in line)
    assert limit.split()[1:7] == ["0.75", "12", "-", "<", "0.2", "fail"]
    assert limit.endswith("/candidates.jsonl")
    assert "token_limit_rate: 0.75 does not satisfy < 0.2" in called.err
    assert "Rows that the step flagged:" in called.err
    (told,) = call(capfd, "gate", "show", "pilot", "--workspace", past, "--json").lines
    assert (told["attempt"], told["look"], told["verdict"]) == (2, 2, "pass")


@pytest.mark.parametrize(
    "arguments",
    [
        ("gate", "show", "sft"),
        ("gate", "show", "pilot", "--attempt", "9"),
        ("gate", "replay", "--set", "pilot.max_new_tokens=4"),
        ("gate", "replay", "--spec", "nowhere.yaml"),
        ("gate", "replay", "--run", "nowhere"),
    ],
)
def test_bad_input_is_told(past: Path, capfd: Capture, arguments: tuple[str, ...]) -> None:
    """Exit 2, with what to do."""
    called = call(capfd, *arguments, "--workspace", past)
    assert called.code == 2
    assert "fix: " in called.err


def test_several_runs_are_replayed_and_a_damaged_one_is_named(
    past: Path, ended: Path, capfd: Capture
) -> None:
    """One table a run, one sum; a run whose journal is damaged spoils no other, and exits 3."""
    both = call(capfd, "gate", "replay", "--run", past, "--run", ended / "ws", "--run", past)
    assert both.code == 0
    count = len(verdicts(past))
    assert both.err.endswith(f"\n{2 * count} decisions, 0 would flip\n")

    flip_byte(past / ".runbook" / "journal.jsonl")
    broken = call(capfd, "gate", "replay", "--run", past, "--run", ended / "ws")
    assert broken.code == 3
    assert f"{past}: cannot be replayed: " in broken.err
    assert broken.err.endswith(f"\n{count} decisions, 0 would flip\n")


def test_a_session_without_a_verdict_has_nothing_to_replay(tmp_path: Path, capfd: Capture) -> None:
    """Nothing judged is nothing replayed: 3, and no claim that all would hold."""
    record(tmp_path / "ws", begun({}, Gate(())))

    called = replayed(capfd, tmp_path / "ws")

    assert called.code == 3
    assert called.lines == [{"decisions": 0, "flips": 0, "not_replayed": 0, "damaged": 0}]
    assert "no gate was judged" in call(capfd, "gate", "list", "--workspace", tmp_path / "ws").err


def test_a_second_look_that_did_not_grow_is_not_final(tmp_path: Path) -> None:
    """As the executor has it: an extension that added nothing decides nothing."""
    gate = Gate((Criterion("score", "statistic", at_least=0.5, min_n=20),), {"batches": 4})

    def verdicts(grown: int) -> Iterator[str]:
        happened: list[ev.Event] = [begun({"a": "mine:run"}, gate)]
        for look, n in ((1, 10), (2, grown)):
            end = replace(finished("a", 1, (Metric("score", 0.9, n=n),)), look=look)
            happened += [end, replace(judged_by(gate, "underpowered", "a"), look=look)]
        entries = tuple(Entry(i, 1, "", 0.0, e.to_body(), "") for i, e in enumerate(happened))
        rules = Rules(lambda g, m, _, final: simple_gates(g, m, final))
        yield from (r.verdict for r in again(tmp_path, entries, rules))

    assert list(verdicts(10)) == ["underpowered", "underpowered"]
    assert list(verdicts(15)) == ["underpowered", "pass"]


def test_criteria_are_compared_in_pairs() -> None:
    """Of two on one metric each meets its own; one that failed and is gone flips, too."""
    low = {"metric": "kept", "threshold": ">= 100", "verdict": "pass", "value": 150.0}
    high = {"metric": "kept", "threshold": "<= 200", "verdict": "fail", "value": 250.0}
    found = compare([low, high], [low])
    assert [(c.metric, c.flips, c.changed) for c in found] == [
        ("kept", False, False),
        ("kept", True, True),
    ]
    again_ = compare([{**low, "value": 0.1 + 0.2}], [{**low, "value": 0.3}])
    assert not again_[0].changed


def test_a_verdict_that_was_given_again_is_marked() -> None:
    """The same look, judged anew under an accepted change, stands in the list twice."""
    gate = Gate((Criterion("score", "statistic", at_least=0.5),))
    happened = (begun({"a": "mine:run"}, gate), judged_by(gate, "fail", "a"))
    bodies = [event.to_body() for event in (*happened, judged_by(gate, "pass", "a"))]
    entries = [Entry(i, 1, "", 0.0, body, "") for i, body in enumerate(bodies)]
    assert [d.again for d in decisions(entries)] == [True, False]
