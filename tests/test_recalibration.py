"""An instrument whose code changed: the certificate is taken again, on record, and nothing else."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from test_kill_phases import write_runbook

from phases import calibration, code_hash, contamination, filters
from phases.detectors import DETECTORS, SENTINELS
from phases.linear_probe import Weights
from runbook import events as ev
from runbook.changes import Fate, compare_plan
from runbook.contract import Artifact
from runbook.fingerprint import fingerprint, plan_document
from runbook.journal import facts, read_entries
from runbook.plan import Plan
from runbook.testing import make_plan, make_step
from runbook.workspace import Workspace

ROOT = Path(__file__).parents[1]
REPLACED = """
import phases.pilot
from phases import clean
real = phases.pilot.run
def run(request):
    clean.is_runaway = lambda cleaned: False
    return real(request)
phases.pilot.run = run
"""


def modules(*functions: Any) -> set[str]:
    """Where the code lies that a hash of these functions is taken over."""
    seen: dict[int, Any] = {}
    for one in functions:
        list(code_hash._parts("", one, seen))
    return {value.__module__ for value in seen.values() if isinstance(value, FunctionType | type)}


def test_each_module_that_a_certificate_is_bound_to_is_declared() -> None:
    """And each file of labelled rows; so a change of any is seen before a gate is invalid."""
    readers = [reader for kind in filters.READERS.values() for reader in kind.values()]
    one = filters.Filter
    judges = modules(*readers, one.parts, one.raw, one.critique, Weights.score, filters.keeps)
    for step, held, more in (
        (calibration, DETECTORS, judges),
        (contamination, SENTINELS, set[str]()),
    ):
        code = modules(*(detector.says for detector in held.values()))
        rows = {d.shipped.relative_to(ROOT).as_posix() for d in held.values()}
        assert {*step.CERTIFIES} == code | more | rows


# --- which steps are made anew


def plan(*, clean: str = "1", own: str = "1") -> Plan:
    """A step that certifies, and two that read what it wrote, one after the other."""
    code = {"phases.calibration": own, "phases.clean": clean}
    steps = (
        make_step("calibration", function="phases.calibration:run", code=code),
        make_step("pilot", inputs=("calibration",)),
        make_step("scale", inputs=("calibration", "pilot")),
    )
    found = make_plan(*steps)
    return replace(found, fingerprint=fingerprint(plan_document(found)))


def session(*passed: str, artifact: str = "certificate") -> list[ev.Event]:
    """Its facts, up to where these steps passed."""
    began = plan()
    start = ev.SessionStarted(
        run_id="r",
        runbook="runbook.yaml",
        name="test",
        fingerprint=began.fingerprint,
        overrides=(),
        plan=plan_document(began),
        versions={},
    )
    known: list[ev.Event] = [start]
    for name in passed:
        step = began.step(name)
        made = (Artifact(artifact, f"{name}.json", "beef", 1),) if name == "calibration" else ()
        at = "2026-01-01T00:00:00Z"
        known += [
            ev.StepStarted(name, 1, 1, {}, step.output, at, step.code),
            ev.StepFinished(name, 1, 1, (), made, 0, 1.0, {}, (), ()),
            ev.StepPassed(name, 1),
        ]
    return known


def fates(changed: Plan, known: list[ev.Event]) -> list[Fate]:
    return [step.fate for step in compare_plan(changed, known).steps]


def test_a_stale_certificate_is_made_anew_for_those_that_still_read_it() -> None:
    """What passed under it stays, though it reads it as well."""
    found = compare_plan(plan(clean="2"), session("calibration", "pilot"))
    assert [step.fate for step in found.steps] == [Fate.INVALIDATED, Fate.REUSE, Fate.REDO]
    first, pilot, scale = found.steps
    assert first.begins_anew
    assert len(first.fields) == 1
    assert first.fields[0].startswith("steps.calibration.code.phases.clean: ")
    assert (pilot.through, scale.through) == ((), ("calibration",))


def test_a_certificate_that_nothing_reads_any_more_stays() -> None:
    """Hours of training are not thrown away for a detector that was mended after its last use."""
    known = session("calibration", "pilot", "scale")
    assert fates(plan(clean="2"), known) == [Fate.REUSE] * 3


def test_only_the_code_of_instruments_makes_a_certificate_stale() -> None:
    """Not the step's own module, and not the code of a step that certified nothing."""
    known = session("calibration")
    assert fates(plan(own="2"), known) == [Fate.REUSE, Fate.REDO, Fate.REDO]
    known = session("calibration", artifact="dataset")
    assert fates(plan(clean="2"), known) == [Fate.REUSE, Fate.REDO, Fate.REDO]


# --- a session


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The sources, in a place where they can be edited."""
    place = tmp_path / "sources"
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("agent", "gates", "phases", "runbook", "specs"):
        shutil.copytree(ROOT / name, place / name, ignore=unwanted)
    return place


def played(
    sources: Path, *arguments: str | Path, hooks: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, run from the copied sources."""
    path = os.pathsep.join(map(str, (*([hooks] if hooks else []), sources)))
    return subprocess.run(
        [sys.executable, "-m", "runbook", *map(str, arguments)],
        cwd=sources,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def judged(root: Path) -> list[tuple[str, int, str]]:
    known = facts(read_entries(Workspace.at(root)))
    return [(f.step, f.attempt, f.verdict) for f in known if isinstance(f, ev.GateJudged)]


def test_a_changed_instrument_is_calibrated_again_on_record(copied: Path, tmp_path: Path) -> None:
    """Until a person accepts it the gate is invalid and no data are made again; then it passes."""
    book, place, hooks = write_runbook(tmp_path), tmp_path / "ws", tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(REPLACED)
    given = (book, "--workspace", place)

    assert played(copied, "run", *given, hooks=hooks).returncode == 3
    first = judged(place)
    assert first[-2:] == [("calibration", 1, "pass"), ("pilot", 1, "invalid")]
    source = copied / "phases" / "clean.py"
    text = source.read_text("utf-8")
    source.write_text(text.replace(r"\1{19}", r"\1{18}"), "utf-8")
    assert source.read_text("utf-8") != text
    refused = played(copied, "run", *given)
    assert refused.returncode == 2
    # The baseline certifies the scorer, which cuts a response as the filters do.
    assert "the source of phases.clean, run by baseline, calibration, changed" in refused.stderr
    assert judged(place) == first
    shown = [line.split() for line in played(copied, "plan", *given).stderr.splitlines()]
    told = ["calibration", "invalidated", "steps.calibration.code.phases.clean:"]
    assert any(set(told) <= set(row) for row in shown)
    assert ["contamination", "reuse"] in [row[:2] for row in shown]

    accepted = played(copied, "run", *given, "--accept-changes", "a stricter stutter")

    assert accepted.returncode == 0, accepted.stderr
    after = judged(place)[len(first) :]
    # The small session's pilot fails once by design, for its token limit.
    assert after[0] == ("calibration", 2, "pass")
    pilots = [verdict for step, _, verdict in after if step == "pilot"]
    assert (pilots[0], pilots[-1]) == ("fail", "pass")
    assert "invalid" not in {verdict for _, _, verdict in after}
    assert [name for name, _, _ in after if name == "contamination"] == []
    assert after[-1][2] == "pass"
