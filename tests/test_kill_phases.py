"""Killed anywhere, the shipped steps go on: the same bytes, and no committed batch made again.

A whole small session is run: the real steps and gates on the fake engine, with a failed attempt,
an adjustment and an extended sample. Each executor is a process of its own, forked from a server
that has imported the package once, and each kill is SIGKILL.
"""

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, cast

import pytest

from gates.judge import judge_gate
from phases.detectors import DETECTORS
from phases.detectors import SENTINELS as TEXT_SENTINELS
from phases.fake_engine import CALLS
from phases.prompts import load_few_shot
from runbook import events as ev
from runbook import manifest, next_act
from runbook.contract import Committed
from runbook.executor import Seams, run_session
from runbook.journal import facts, read_entries
from runbook.journal_writer import Journal
from runbook.process import Worker
from runbook.schema import load_plan
from runbook.workspace import Workspace

ROOT = Path(__file__).parents[1]
ABREAST = 3
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "gates.judge", "runbook.executor", "runbook.schema"])
LOCK = Lock()
"""A process that starts polls all others; of two polls at once one loses the exit code."""

PER_KIND = 3
FILES = {"few_shot": "few_shot.yaml", "held_out": "held_out.jsonl"}
PROBES = ("instructions", "pairs")
PER_LABEL = 10
DATA = {
    "target_kept": 6,
    "max_rounds": 4,
    "instructions": {
        "lists_per_round": 3,
        "max_new_tokens": 64,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 64,
        "repetition_penalty": 1.1,
    },
    "max_new_tokens": 4,
    "temperature": 0.4,
    "top_p": 0.9,
    "top_k": 64,
    "repetition_penalty": 1.0,
    "near_duplicate": 0.8,
    "sentinels": {"end_of_turn_logp": {"below": -6.0}, "template_left": {"at_most": 0}},
}
SENTINELS = [
    {"metric": "end_of_turn_logp", "kind": "sentinel", "below": -6.0},
    {"metric": "prefix_mismatch", "kind": "sentinel", "at_most": 0},
    {"metric": "template_left", "kind": "sentinel", "at_most": 0},
]
QUALITY = [
    {"metric": "runaway_rate", "kind": "rate", "below": 0.3, "min_n": 8},
    {"metric": "token_limit_rate", "kind": "rate", "below": 0.2, "min_n": 8},
    {"metric": "delimiter_left", "kind": "census", "at_most": 0},
    {"metric": "median_tokens", "kind": "statistic", "below": 40},
    {"metric": "instruction_acceptance", "kind": "rate", "at_least": 0.3, "min_n": 8},
    *SENTINELS,
]
CLEAN = [
    *(
        {"metric": f"overlap_{reading}", "kind": "census", "at_most": 0}
        for reading in ("exact", "normalised", "13gram", "near", "quoted")
    ),
    {"metric": "incomplete_provenance", "kind": "census", "at_most": 0},
    {"metric": "bad_sentinels", "kind": "census", "at_most": 0},
    {"metric": "largest_repeat", "kind": "census", "at_most": 1},
]
SPECS: Mapping[str, Any] = {
    "contamination": {
        "gate": {
            "criteria": [
                *SENTINELS,
                {"metric": "completions_right", "kind": "sentinel", "at_least": 0.5},
                {"metric": "assistant_like", "kind": "sentinel", "at_most": 0.34},
                {"metric": "undeclared_chat_template", "kind": "sentinel", "at_most": 0},
            ]
        }
    },
    "calibration": {
        "files": {
            "few_shot": FILES["few_shot"],
            **{f"probe_{name}": f"{name}.jsonl" for name in PROBES},
        },
        "params": {"instructions": ["linear_probe"], "pairs": ["likelihood"], "good_share": 0.8},
        "gate": {
            "criteria": [
                {"metric": "instruction_filter_auc", "kind": "instrument", "at_least": 0.8},
                {"metric": "pair_filter_auc", "kind": "instrument", "above": 0.6},
                *(
                    {"metric": f"{name}_{side}", "kind": "instrument", "at_least": 0.4}
                    for name in DETECTORS
                    for side in ("sensitivity", "specificity")
                ),
            ]
        },
    },
    "pilot": {
        "files": FILES,
        "params": {**DATA, "raw_rows": 8, "forecast_target": 14},
        "gate": {
            "criteria": [
                *QUALITY,
                *CLEAN,
                {"metric": "kept", "kind": "census", "at_least": 6},
                {"metric": "forecast_distinct_low", "kind": "statistic", "at_least": 0.5},
                {"metric": "pair_acceptance", "kind": "rate", "at_least": 0.3, "min_n": 16},
            ],
            "extend": {"raw_rows": 16},
        },
    },
    "scale": {
        "files": FILES,
        "params": {
            **DATA,
            "max_new_tokens": 44,
            "target_kept": 14,
            "shards": 2,
            "kept_per_shard": 5,
        },
        "gate": {
            "criteria": [
                *QUALITY,
                *CLEAN,
                {"metric": "kept", "kind": "census", "at_least": 14},
                {"metric": "distinct_near", "kind": "census", "at_least": 14},
            ]
        },
    },
    "baseline": {
        "files": {"held_out": FILES["held_out"]},
        "params": {
            "per_kind": PER_KIND,
            "max_new_tokens": 48,
            "batch_size": 8,
            "quantization": "none",
        },
        "gate": {
            "criteria": [
                {"metric": "base_rate", "kind": "rate", "below": 0.85, "min_n": 8},
                {"metric": "held_out_items", "kind": "census", "at_least": 10},
                {"metric": "references_failing", "kind": "control", "at_most": 0},
            ]
        },
    },
}
SMOKE = {"raw_rows": 10, "target_kept": 1, "instructions.lists_per_round": 2}
PILOT: Mapping[str, Any] = {
    "retries": 1,
    "adjustable": {"max_new_tokens": {"min": 4, "max": 100}},
    "adjustments": [
        {"when": "token_limit_rate", "change": {"max_new_tokens": {"add": 40}}, "why": "a clause"}
    ],
}
STEPS: Mapping[str, Mapping[str, Any]] = {
    "prepare_model": {"output": "models/base"},
    "contamination": {"inputs": ["prepare_model"], "output": "artifacts/contamination"},
    "calibration": {
        "inputs": ["prepare_model", "contamination"],
        "output": "artifacts/calibration",
    },
    "pilot": {
        "inputs": ["prepare_model", "contamination", "calibration"],
        "output": "artifacts/data_gen_pilot_{time}",
        **PILOT,
    },
    "scale": {
        "inputs": ["prepare_model", "contamination", "calibration", "pilot"],
        "output": "data",
    },
    "baseline": {
        "inputs": ["prepare_model", "contamination", "scale"],
        "output": "results/baseline",
    },
}


def write_runbook(folder: Path) -> Path:
    """A runbook, its specs, a model that is none, and a small held-out set."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["None"], "num_hidden_layers": 0}')
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"no weights")
    items = (ROOT / "specs" / "held_out.jsonl").read_text("utf-8").splitlines()
    (folder / FILES["held_out"]).write_text("\n".join(first_of_each_kind(items)), "utf-8")
    shots = load_few_shot(ROOT / "specs" / "few_shot.yaml").model_dump()
    shown = {name: texts[:12] for name, texts in shots.items()}
    (folder / FILES["few_shot"]).write_text(json.dumps(shown))
    for name in PROBES:
        rows = (ROOT / "specs" / "probe" / f"{name}.jsonl").read_text("utf-8").splitlines()
        few = first_of_each_label(rows, PER_LABEL)
        (folder / f"{name}.jsonl").write_text("\n".join(few), "utf-8")
    for name, spec in SPECS.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"spec": 1, **spec}))
    steps = [
        {"name": name, "function": f"phases.{name}:run", **fields}
        | ({"spec": f"{name}.yaml"} if name in SPECS else {})
        for name, fields in STEPS.items()
    ]
    book = {
        "runbook": 1,
        "name": "small",
        "seed": 1,
        "model": {
            "name": "none",
            "source": {"path": str(model)},
            "family": "gemma3",
            "prefix": "bos",
            "chat_template": "none",
            "dtype": "float32",
        },
        "engine": {"name": "fake", "batch_size": 14},
        "phases": [{"name": "A", "steps": steps}],
    }
    (folder / "runbook.yaml").write_text(json.dumps(book))
    return folder / "runbook.yaml"


def first_of_each_kind(lines: list[str]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for line in lines:
        kind = json.loads(line)["kind"]
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= PER_KIND:
            yield line


def first_of_each_label(lines: list[str], count: int) -> Iterator[str]:
    """So many good and bad rows of each half; of the bad, easy ones, since the gate reads those."""
    seen: dict[tuple[str, bool], int] = {}
    for line in lines:
        row = json.loads(line)
        if str(row.get("negative", "")).startswith("wrong"):
            continue
        cell = (row["half"], row["good"])
        seen[cell] = seen.get(cell, 0) + 1
        if seen[cell] <= count:
            yield line


def kill_executor(at: int, when: str) -> None:
    """SIGKILL this process before or after its ``at``-th journal line."""
    real, count = Journal.append, [0]

    def append(self: Journal, body: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == at and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        entry = real(self, body, **options)
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return entry

    Journal.append = append  # type: ignore[method-assign]  # a kill has no gentler seam


def kill_children_at_commits() -> None:
    """SIGKILL the child once at each batch: committed, and the child has not heard of it."""
    real, struck = Worker.run, set[str]()

    def run(self: Worker, job: Any, *, on_commit: Any, **options: Any) -> Any:
        def commit(batch: Committed) -> bool:
            pause = bool(on_commit(batch))
            if batch.path not in struck and self.pid:
                struck.add(batch.path)
                os.kill(self.pid, signal.SIGKILL)
            return pause

        return real(self, job, on_commit=commit, **options)

    Worker.run = run  # type: ignore[method-assign]  # a kill has no gentler seam


KILLED_AFTER_WRITES = """
import os, pathlib, signal
from runbook import artifacts

real, log = artifacts.write_bytes, pathlib.Path(os.environ["STRUCK"])

def write_bytes(path, data):
    sha = real(path, data)
    line = f"{sha} {path}"
    if line not in (log.read_text().splitlines() if log.exists() else []):
        with log.open("a") as struck:
            struck.write(line + chr(10))
        os.kill(os.getpid(), signal.SIGKILL)
    return sha

artifacts.write_bytes = write_bytes
"""


def kill_children_at_writes(hooks: Path) -> None:
    """SIGKILL the child once after each file that it writes, batches and final files alike."""
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(KILLED_AFTER_WRITES)
    os.environ |= {"STRUCK": str(hooks / "struck"), "PYTHONPATH": str(hooks)}
    # A step has more final files than it may lose children in a row.
    next_act.MAX_INTERRUPTIONS = 50


def execute(book: Path, root: Path, calls: str, arm: Callable[[], None] | None) -> None:
    """The session, in a process of its own; it exits with the session's code."""
    os.environ[CALLS] = str(root / calls)
    # Every record carries the commit, which someone may change beside a long sweep.
    manifest.git_sha = lambda: "0" * 40
    if arm:
        arm()
    place = Workspace.at(root)
    code = run_session(
        load_plan(book),
        place,
        Seams(
            gates=lambda gate, metrics, final: judge_gate(gate, metrics, place.root, final=final),
            reviewer=lambda _: None,
        ),
    )
    sys.exit(code)


def exit_code(process: Any) -> int | None:
    with LOCK:
        return cast("int | None", process.exitcode)


@dataclass(frozen=True)
class Play:
    """One workspace, and the runs of its session."""

    book: Path
    root: Path

    def run(self, calls: str, arm: Callable[[], None] | None = None) -> int:
        self.root.mkdir(exist_ok=True)
        process = SERVER.Process(target=execute, args=(self.book, self.root, calls, arm))
        with LOCK:
            process.start()
        while (code := exit_code(process)) is None:
            time.sleep(0.01)
        return code

    def facts(self) -> tuple[ev.Event, ...]:
        return facts(read_entries(Workspace.at(self.root)))

    def batches(self) -> list[str]:
        return [f.key for f in self.facts() if isinstance(f, ev.BatchCommitted)]

    def lost(self) -> int:
        """How many children the executor lost."""
        return sum(isinstance(f, ev.StepInterrupted) for f in self.facts())

    def verdicts(self) -> list[tuple[str, int, int, str, tuple[str, ...]]]:
        judged = [f for f in self.facts() if isinstance(f, ev.GateJudged)]
        return [(f.step, f.attempt, f.look, f.verdict, f.reasons) for f in judged]

    def calls(self, name: str) -> list[str]:
        """What the engine was asked for; the sentinels, read at each start, left out."""
        path = self.root / name
        rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        return [row["sha256"] for row in rows if row["seed"] != 0]

    def data(self) -> dict[str, bytes]:
        """Every file of rows; a pilot's folder by its attempt, as its name holds the time."""
        made = [f.output for f in self.facts() if isinstance(f, ev.StepStarted)]
        pilots = [o for o in dict.fromkeys(made) if "data_gen_pilot" in o]
        found = {}
        for path in sorted(self.root.rglob("*.json*")):
            name = path.relative_to(self.root).as_posix()
            folder = next((p for p in pilots if name.startswith(f"{p}/")), "")
            if path.suffix == ".jsonl" or "/work/" in name:
                known = name.replace(folder, f"pilot {pilots.index(folder)}") if folder else name
                found[known] = path.read_bytes()
        return {n: b for n, b in found.items() if not n.startswith((".runbook", "logs", "calls"))}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Play:
    """The undisturbed session."""
    folder = tmp_path_factory.mktemp("clean")
    book = write_runbook(folder)
    spec = json.loads((folder / "pilot.yaml").read_text())
    spec["gate"]["smoke"] = SMOKE
    (folder / "pilot.yaml").write_text(json.dumps(spec))
    play = Play(book, folder / "ws")
    assert play.run("calls") == 0
    return play


def calls_of(batch: str) -> int:
    """A likelihood is read with the instruction and without."""
    return 2 if "likelihood" in batch or "pair_filter" in batch else 1


DERIVED = {
    "contamination": {
        f"{name}_{side}" for name in TEXT_SENTINELS for side in ("sensitivity", "specificity")
    },
    "calibration": {
        *("instruction_filter_auc", "pair_filter_auc", "pair_filter_hard_auc"),
        *(f"{name}_{side}" for name in DETECTORS for side in ("sensitivity", "specificity")),
    },
    "pilot": {
        *("forecast_coverage", "forecast_distinct"),
        *("forecast_distinct_low", "forecast_distinct_high", "forecast_tokens_per_row"),
    },
    "baseline": {"scorer_sensitivity", "scorer_specificity", "power"},
    "evaluate": {
        *("mcnemar_p", "exact_p", "lift", "lift_ci_width"),
        *("base_ci_width", "tuned_ci_width", "kinds_worse"),
        *("aa_p", "aa_flip_rate", "damaged_p", "damage_unseen", "confounded"),
        *("scorer_sensitivity", "scorer_specificity"),
    },
}
"""Metrics that a gate makes of a step's evidence."""


def check_metric_names(known: tuple[ev.Event, ...]) -> int:
    """Assert that every finished step measured what its module says in METRICS; how many did."""
    finished = [fact for fact in known if isinstance(fact, ev.StepFinished)]
    for fact in finished:
        module = importlib.import_module(f"phases.{fact.step}")
        told = set(getattr(module, "METRICS", ())) - DERIVED.get(fact.step, set())
        assert {metric.name for metric in fact.metrics} == told, fact.step
    return len(finished)


def check_evidence(known: tuple[ev.Event, ...], root: Path) -> int:
    """Assert that rows on record stand behind every criterion; how many criteria there were."""
    held: set[str] = set()
    count = 0
    for fact in known:
        if isinstance(fact, ev.StepFinished):
            held |= {artifact.path for artifact in fact.artifacts}
        if isinstance(fact, ev.GateJudged):
            count += len(fact.criteria)
            named = {str(c["metric"]): str(c["evidence"]) for c in fact.criteria}
            assert set(named.values()) <= held, (fact.step, named)
            assert all((root / path).is_file() for path in named.values()), fact.step
    return count


def test_rows_stand_behind_every_criterion(clean: Play) -> None:
    """Each names a file whose bytes are on record."""
    assert check_evidence(facts(read_entries(Workspace.at(clean.root))), clean.root) > 50


def test_the_steps_measure_what_they_say(clean: Play) -> None:
    """No criterion can name what is never measured, and none that is measured is refused."""
    assert check_metric_names(facts(read_entries(Workspace.at(clean.root)))) >= len(STEPS)


def test_an_undisturbed_session_passes_its_gates(clean: Play) -> None:
    """An attempt fails, a smoke shows that its change helps, and the sample is extended."""
    assert [
        (step, attempt, look, verdict) for step, attempt, look, verdict, _ in clean.verdicts()
    ] == [
        ("contamination", 1, 1, "pass"),
        ("calibration", 1, 1, "pass"),
        ("pilot", 1, 1, "fail"),
        ("pilot", 2, 0, "fail"),
        ("pilot", 3, 1, "underpowered"),
        ("pilot", 3, 2, "pass"),
        ("scale", 1, 1, "pass"),
        ("baseline", 1, 1, "pass"),
    ]
    assert len(clean.calls("calls")) == sum(map(calls_of, clean.batches()))
    rows = [json.loads(row) for row in clean.data()["data/stage1_sft_data.jsonl"].splitlines()]
    assert len(rows) == 14
    assert {row["metadata"]["engine"] for row in rows} == {"fake"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_every_append_the_session_goes_on(
    clean: Play, tmp_path: Path, when: str
) -> None:
    """SIGKILL of the executor at each line, then the same command: same bytes, made once."""

    def survive(at: int) -> None:
        mine = Play(clean.book, tmp_path / f"{when}{at}")
        assert mine.run("calls_killed", partial(kill_executor, at, when)) == -signal.SIGKILL
        committed = mine.batches()

        assert mine.run("calls_resumed") == 0

        made = sum(map(calls_of, committed))
        assert mine.calls("calls_resumed") == clean.calls("calls")[made:], f"{when} line {at}"
        assert (mine.data(), mine.verdicts()) == (clean.data(), clean.verdicts())
        shutil.rmtree(mine.root)

    with ThreadPoolExecutor(ABREAST) as pool:
        list(pool.map(survive, range(1, len(clean.facts()) + 1)))


def test_a_child_killed_at_every_commit_is_replaced_in_place(clean: Play, tmp_path: Path) -> None:
    """The executor goes on by itself, and asks the engine nothing twice."""
    mine = Play(clean.book, tmp_path / "ws")

    assert mine.run("calls", kill_children_at_commits) == 0

    assert mine.lost() == len(clean.batches())
    assert mine.calls("calls") == clean.calls("calls")
    assert (mine.data(), mine.verdicts()) == (clean.data(), clean.verdicts())


def test_a_child_killed_after_every_write_is_replaced_in_place(clean: Play, tmp_path: Path) -> None:
    """A batch that was written and not committed is made again, and nothing else is."""
    mine, hooks = Play(clean.book, tmp_path / "ws"), tmp_path / "hooks"

    assert mine.run("calls", partial(kill_children_at_writes, hooks)) == 0

    struck = (hooks / "struck").read_text().splitlines()
    assert mine.lost() == len(struck) > len(clean.batches())
    once = iter(clean.calls("calls"))
    groups = [list(islice(once, calls_of(batch))) for batch in clean.batches()]
    assert mine.calls("calls") == [call for group in groups for call in group * 2]
    assert (mine.data(), mine.verdicts()) == (clean.data(), clean.verdicts())
