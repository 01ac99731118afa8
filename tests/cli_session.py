"""What the command line's tests share: a call within this process, and a small real runbook."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runbook.cli import main

REVIEWED = {"metrics": {"score": [0.1, 0.2, 0.9]}, "t": 0.7, "batches": 2}
"""Fails twice, passes at the third attempt."""


class Called(NamedTuple):
    """How a call ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The objects on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


def call(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> Called:
    """Run the command line as the shell would, within this process."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    told = capfd.readouterr()
    code = ended.value.code
    return Called(code if isinstance(code, int) else 0, told.out, told.err)


def write_runbook(folder: Path, params: dict[str, Any], **step: Any) -> Path:
    """A runbook of fake steps: ``a`` with a gate, ``b`` after it, ``c`` in a disabled phase."""
    gate = {"criteria": [{"metric": "score", "kind": "statistic", "at_least": 0.5}]}
    (folder / "a.yaml").write_text(json.dumps({"spec": 1, "params": params, "gate": gate}))
    first = {**_fake("a"), "spec": "a.yaml", "retries": 2, **step}
    if "t" in params:
        first |= {
            "adjustable": {"t": {"min": 0.1, "max": 1.0}, "batches": {"min": 1, "max": 4}},
            "adjustments": [{"when": "score", "change": {"t": {"add": -0.1}}, "why": "cooler"}],
        }
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
        "engine": {"name": "fake"},
        "budget": {"wall_clock": "90m"},
        "phases": [
            {"name": "A", "steps": [first]},
            {"name": "B", "steps": [{**_fake("b"), "inputs": ["a"]}]},
            {"name": "C", "enabled": False, "steps": [_fake("c")]},
        ],
    }
    path = folder / "runbook.yaml"
    path.write_text(json.dumps(runbook))
    return path


def _fake(name: str) -> dict[str, Any]:
    output = f"artifacts/{name}_{{time}}"
    return {"name": name, "function": "runbook.testing:fake_phase", "output": output}
