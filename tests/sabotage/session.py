"""A whole session of the shipped quickstart on the fake engine, and how it ended.

Its specs, gates and steps are those that are shipped. Only the model is none, and the training is
one that takes no time. A fault is planted in the written session before it runs.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from ruamel.yaml import YAML

from phases.fake_engine import LABELS, LEARNS
from runbook import events as ev
from runbook.journal import facts, read_entries
from runbook.workspace import Workspace

ROOT = Path(__file__).parents[2]
Spec = dict[str, Any]

BREAKS = """
{imported}


def run(request):
{code}
    return {module}.run(request)
"""
AFTERWARDS = """
from dataclasses import replace

{imported}


def run(request):
    result = {module}.run(request)
{code}
    return result
"""
OF_ITS_OWN = """
import json

from runbook.contract import PhaseResult

{before}
def run(request):
{code}
    return PhaseResult()
"""


@dataclass(frozen=True)
class Session:
    """A session that was written and not yet run."""

    folder: Path

    @property
    def specs(self) -> Path:
        return self.folder / "specs" / "quickstart"

    @property
    def runbook(self) -> Path:
        return self.specs / "runbook.yaml"

    @property
    def held_out(self) -> Path:
        return self.folder / "specs" / "held_out.jsonl"

    @property
    def root(self) -> Path:
        return self.folder / "ws"

    @property
    def hooks(self) -> Path:
        return self.folder / "hooks"

    def edit(self, name: str, change: Callable[[Spec], Any]) -> None:
        """Change one of the runbook's files, given without its ending."""
        path = self.specs / f"{name}.yaml"
        spec = YAML(typ="safe", pure=True).load(path)
        change(spec)
        path.write_text(json.dumps(spec))

    def change_step(self, step: str, **fields: Any) -> None:
        self.edit("runbook", lambda book: _step(book, step).update(fields))

    def break_step(self, step: str, code: str) -> None:
        """Have a step's process run this first."""
        self._wrap(step, BREAKS, code)

    def spoil_result(self, step: str, code: str) -> None:
        """Have a step's process run this on its ``result`` at the end."""
        self._wrap(step, AFTERWARDS, code)

    def _wrap(self, step: str, form: str, code: str) -> None:
        module = "training" if step == "sft" else step
        imported = f"import {module}" if step == "sft" else f"from phases import {module}"
        text = form.format(imported=imported, module=module, code=_body(code))
        (self.specs / f"planted_{step}.py").write_text(text)
        self.change_step(step, function=f"planted_{step}:run")

    def insert_step(self, before: str, code: str, given: str = "") -> None:
        """A step of the user's own, which runs this code; ``given`` stands above its function."""
        text = OF_ITS_OWN.format(
            before=f"{dedent(given).strip()}\n\n" * bool(given), code=_body(code)
        )
        (self.specs / "own_step.py").write_text(text)

        def insert(book: Spec) -> None:
            for phase in book["phases"]:
                names = [step["name"] for step in phase["steps"]]
                if before in names:
                    own = {"name": "own", "function": "own_step:run", "inputs": ["prepare_model"]}
                    own["output"] = "artifacts/own"
                    phase["steps"].insert(names.index(before), own)

        self.edit("runbook", insert)

    def hook(self, code: str) -> None:
        """Have every process of the session run this as it starts."""
        self.hooks.mkdir()
        (self.hooks / "sitecustomize.py").write_text(dedent(code))

    def run(self) -> "Ended":
        """Run it to its end by ``runbook run``."""
        done = subprocess.run(
            [sys.executable, "-m", "runbook", "run", self.runbook, "--workspace", self.root],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(self.hooks), str(ROOT))),
                "XDG_STATE_HOME": str(self.folder / "state"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return read_end(self.root, done.returncode, done.stderr)


@dataclass(frozen=True)
class Ended:
    """Where a session first met a judgement that is no pass, or what ended it otherwise."""

    exit_code: int
    stopped_at: str
    """The step; 'plan' where nothing was run; '' where it was not stopped."""
    verdict: str
    """Of the gate; or 'sentinel'; 'dry'; 'refused' by a check that is no gate; 'done'."""
    reasons: tuple[str, ...]

    @property
    def because(self) -> frozenset[str]:
        """What did not pass, by its metric."""
        return frozenset(reason.partition(":")[0] for reason in self.reasons)


def write_session(folder: Path, seed: int = 1) -> Session:
    """The quickstart with the fake engine, beside a copy of all the specs it names."""
    session = Session(folder)
    shutil.copytree(ROOT / "specs", folder / "specs")
    shutil.copy(Path(__file__).with_name("training.py"), session.specs / "training.py")
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["None"], "num_hidden_layers": 0}')
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"no weights")
    probes = folder / "specs" / "probe"

    def change(book: Spec) -> None:
        book["seed"] = seed
        book["model"] |= {"source": {"path": str(model)}, "dtype": "float32"}
        book["engine"] = {"name": "fake", "batch_size": 32}
        book["preflight"] = {"gpus": 0}
        book["environment"] = {
            LEARNS: str(session.held_out),
            LABELS: os.pathsep.join(
                str(probes / name) for name in ("instructions.jsonl", "pairs.jsonl")
            ),
        }
        _step(book, "sft")["function"] = "training:run"

    session.edit("runbook", change)
    return session


def _step(book: Spec, name: str) -> Spec:
    return next(s for phase in book["phases"] for s in phase["steps"] if s["name"] == name)


def _body(code: str) -> str:
    return indent(dedent(code).strip(), "    ")


def read_end(root: Path, exit_code: int, told: str) -> Ended:
    """What the journal says; where there is none, what was told."""
    place = Workspace.at(root)
    known = facts(read_entries(place)) if (root / ".runbook" / "journal.jsonl").exists() else ()
    judged = [f for f in known if isinstance(f, ev.GateJudged)]
    # Underpowered is no stop where the sample was then extended.
    last = {(f.step, f.attempt): f for f in judged}
    first = next((f for f in last.values() if f.verdict != "pass"), None)
    if first is not None:
        verdict = "sentinel" if first.sentinel else first.verdict
        reasons = tuple(r for r in first.reasons if not r.endswith("(thin)"))
        return Ended(exit_code, first.step, verdict, reasons)
    if exit_code == 0:
        return Ended(0, "", "done", ())
    for fact in known:
        if isinstance(fact, ev.StepFailed):
            return Ended(exit_code, fact.step, "refused", (fact.error,))
    stop = next((f for f in known if isinstance(f, ev.SessionStopped)), None)
    begun = [f.step for f in known if isinstance(f, ev.StepStarted)]
    if stop is None:
        return Ended(exit_code, "plan", "refused", (told,))
    verdict = "dry" if stop.reason == "dry" else "refused"
    return Ended(exit_code, f"after {begun[-1]}" if begun else "start", verdict, (stop.detail,))
