"""Journals of earlier releases stay readable, and mean what they meant."""

import json
import shutil
from pathlib import Path

import pytest
from write_old_journals import FOLDER, summary

from runbook.crash_session import result_of, run_forked
from runbook.testing import simple_gates
from runbook.workspace import Workspace

CASES = sorted(path.parent for path in FOLDER.glob("*/*/expected.json"))
NAMES = [f"{case.parent.name}-{case.name}" for case in CASES]


def test_there_are_journals_of_this_release() -> None:
    """The fixtures are there, so that the tests below test something."""
    assert {case.name for case in CASES} >= {"done", "killed", "killed_twice_then_done"}


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_it_says_what_it_said(case: Path) -> None:
    """Epochs, facts, steps, spend and batches are read as on the day it was written."""
    assert summary(Workspace.at(case)) == json.loads((case / "expected.json").read_text("utf-8"))


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_session_goes_on_with_it(case: Path, tmp_path: Path) -> None:
    """Done stays done; what another machine never ended is not taken over by itself."""
    root = tmp_path / "ws"
    shutil.copytree(case, root)
    done = summary(Workspace.at(case))["outcome"] == "done"

    code = run_forked(root, simple_gates)

    assert code == (0 if done else 7)
    assert result_of(Workspace.at(root)) == result_of(Workspace.at(case))
