"""The quickstart in miniature on the real model, killed in each phase: the same bytes, made once.

The steps, prompts and model are the quickstart's own; only the sizes and the gates are small,
since a handful of rows could pass no honest gate.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from test_kill_phases import check_evidence, check_metric_names, first_of_each_label

from gates.judge import judge_gate
from runbook import events as ev
from runbook import manifest
from runbook.executor import Seams, run_session
from runbook.journal import facts, read_entries
from runbook.journal_writer import Journal
from runbook.process import Worker
from runbook.schema import load_plan
from runbook.workspace import Workspace

pytestmark = pytest.mark.model

SPECS = Path(__file__).parents[1] / "specs"
DATA = {
    "target_kept": 4,
    "max_rounds": 3,
    "max_new_tokens": 16,
}
PROBES = {"probe_instructions": "instructions.jsonl", "probe_pairs": "pairs.jsonl"}
SIZES: dict[str, dict[str, Any]] = {
    "contamination": {},
    "calibration": {"instructions": ["linear_probe"], "pairs": ["likelihood"], "good_share": 0.6},
    "pilot": {**DATA, "raw_rows": 4, "forecast_target": 7},
    "scale": {**DATA, "target_kept": 7, "shards": 2, "kept_per_shard": 2},
    "baseline": {"per_kind": 2, "max_new_tokens": 8, "batch_size": 5},
    "sft": {"epochs": 2.0, "batch_size": 2, "save_steps": 2, "warmup_steps": 1},
    "evaluation": {},
}
GATES = {
    "calibration": {"metric": "filter_readings", "kind": "census", "at_least": 1},
    "pilot": {"metric": "kept", "kind": "census", "at_least": 1},
    "scale": {"metric": "kept", "kind": "census", "at_least": 2},
    "baseline": {"metric": "held_out_items", "kind": "census", "at_least": 10},
    "evaluation": {"metric": "texts_changed", "kind": "census", "at_least": 0},
}
RUNS = (
    ("executor after BatchCommitted pilot 2",),
    ("child after BatchCommitted pilot 2", "executor before BatchCommitted scale 3"),
    ("executor after StepFinished scale 1",),
    ("child before BatchCommitted baseline 2", "executor after BatchCommitted sft 1"),
    ("executor before GateJudged sft 1",),
    ("child after BatchCommitted evaluate 1",),
)
"""Of each run: who is killed, when, and at which fact of which step, counted within the run."""


def write_miniature(folder: Path, model: Path) -> Path:
    """The quickstart's runbook and specs with small sizes and gates, without phase D."""
    yaml = YAML(typ="safe", pure=True)
    for name in PROBES.values():
        rows = (SPECS / "probe" / name).read_text("utf-8").splitlines()
        (folder / name).write_text("\n".join(first_of_each_label(rows, 25)), "utf-8")
    for name, sizes in SIZES.items():
        spec = yaml.load(SPECS / "quickstart" / f"{name}.yaml")
        spec["params"].update(sizes)
        if isinstance(spec["params"].get("instructions"), dict):
            spec["params"]["instructions"].update(lists_per_round=4, max_new_tokens=32)
        spec["files"] = {
            k: str(folder / Path(v).name if k in PROBES else SPECS / "quickstart" / v)
            for k, v in spec.get("files", {}).items()
            if k != "probe_generated"
        }
        if name in GATES:
            spec["gate"] = {"criteria": [GATES[name]]}
        (folder / f"{name}.yaml").write_text(json.dumps(spec))
    book = yaml.load(SPECS / "quickstart" / "runbook.yaml")
    book["model"]["source"] = {"path": str(model)}
    book["engine"]["batch_size"] = 4
    book["phases"] = [phase for phase in book["phases"] if phase["name"] != "D"]
    for step in (step for phase in book["phases"] for step in phase["steps"]):
        step.pop("adjustments", None)
    path = folder / "runbook.yaml"
    path.write_text(json.dumps(book))
    return path


def run(book: Path, root: Path, *kills: str) -> int:
    """The session in a process of its own, which is killed, or kills its child, as told."""
    command = [sys.executable, __file__, str(book), str(root), *kills]
    paths = os.pathsep.join([str(SPECS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": paths}).returncode


def arm(kills: tuple[str, ...]) -> None:
    """Have SIGKILL sent around each fact that ``kills`` names."""
    seen: Counter[tuple[str, str]] = Counter()
    child = [0]
    real_append, real_run = Journal.append, Worker.run

    def strike(when: str, kind: str, step: str) -> None:
        for who in ("child", "executor"):
            if f"{who} {when} {kind} {step} {seen[kind, step]}" in kills:
                os.kill(os.getpid() if who == "executor" else child[0], signal.SIGKILL)

    def append(self: Journal, body: Any, **options: Any) -> Any:
        kind, step = body["type"], body.get("step", "")
        seen[kind, step] += 1
        strike("before", kind, step)
        entry = real_append(self, body, **options)
        strike("after", kind, step)
        return entry

    def run_worker(self: Worker, *arguments: Any, **options: Any) -> Any:
        child[0] = self.pid or 0
        return real_run(self, *arguments, **options)

    Journal.append = append  # type: ignore[method-assign]  # a kill has no gentler seam
    Worker.run = run_worker  # type: ignore[method-assign]  # it knows the child's number


def events(root: Path) -> tuple[ev.Event, ...]:
    return facts(read_entries(Workspace.at(root)))


def results(root: Path) -> dict[str, bytes]:
    """The bytes of every final file of rows, under a name without the time of day."""
    finished = [f for f in events(root) if isinstance(f, ev.StepFinished)]
    made = {
        f"{fact.step}/{a.name}": root / a.path
        for fact in finished
        for a in fact.artifacts
        if a.path.endswith(".jsonl")
    }
    return {name: path.read_bytes() for name, path in made.items()}


def adapter(root: Path) -> str:
    finished = next(f for f in events(root) if isinstance(f, ev.StepFinished) and f.step == "sft")
    return next(a.sha256 for a in finished.artifacts if a.name == "adapter")


def committed(root: Path) -> dict[Path, int]:
    """Each committed file with the moment of its last change, in nanoseconds."""
    batches = [f for f in events(root) if isinstance(f, ev.BatchCommitted)]
    return {root / b.path: (root / b.path).stat().st_mtime_ns for b in batches}


@pytest.mark.timeout(1200)
def test_killed_in_each_phase_the_bytes_are_the_same(gemma: Path, tmp_path: Path) -> None:
    """Eight kills of executor or child, and the same command: no batch again, the same bytes."""
    book = write_miniature(tmp_path, gemma)
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    assert run(book, calm) == 0
    assert check_metric_names(events(calm)) == 8
    assert check_evidence(events(calm), calm) > 20
    expected = results(calm)
    assert len(expected["scale/dataset"].splitlines()) >= 2
    kept: dict[Path, int] = {}
    for kills in RUNS:
        code = run(book, rough, *kills)
        assert code == (-signal.SIGKILL if kills[-1].startswith("executor") else 0), kills
        now = committed(rough)
        assert {path: now[path] for path in kept} == kept, kills
        kept = now
    lost = [f for f in events(rough) if isinstance(f, ev.StepInterrupted)]
    assert len(lost) == sum(kill.startswith("child") for kills in RUNS for kill in kills)
    assert results(rough) == expected
    assert adapter(rough) == adapter(calm)


def main(book: str, root: str, *kills: str) -> int:
    arm(kills)
    # Every record carries the commit, which someone may change beside a long test.
    manifest.git_sha = lambda: "0" * 40
    place = Workspace.at(Path(root))
    return run_session(
        load_plan(Path(book)),
        place,
        Seams(
            gates=lambda gate, metrics, final: judge_gate(gate, metrics, place.root, final=final),
            reviewer=lambda _: None,
        ),
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
