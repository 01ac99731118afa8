"""The declared family of a model is held against what its checkpoint says of itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from phases.contamination import MEASURED_FAMILIES, MODEL_TYPES, family_of, read_sentinels
from phases.fake_engine import FakeEngine
from runbook.contract import Artifact, PhaseRequest
from runbook.errors import ConfigError
from runbook.testing import LocalChannel


def request(folder: Path, family: str, config: Any) -> PhaseRequest:
    """Of a step that is given a prepared model with this config.json."""
    (folder / "base").mkdir()
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "base" / "config.json").write_text(text)
    return PhaseRequest(
        step="pilot",
        attempt=1,
        look=1,
        seed=1,
        params={},
        workspace=folder,
        output=folder,
        work=folder,
        model={"family": family},
        engine={"name": "fake"},
        inputs={"prepare_model": {"base_model": Artifact("base_model", "base", "0", 1)}},
        provenance={},
        channel=LocalChannel(),
    )


@pytest.mark.parametrize("found", ["qwen2", "llama", "gemma2", "no such", 3])
def test_a_family_that_the_checkpoint_belies_is_refused(tmp_path: Path, found: Any) -> None:
    """Bounds that were measured on Gemma say nothing of it; the file and both names are told."""
    asked = request(tmp_path, "gemma3", {"model_type": found})
    with pytest.raises(ConfigError, match="the declared family is 'gemma3'") as refused:
        read_sentinels(asked, FakeEngine())
    assert refused.value.where == str(tmp_path / "base" / "config.json")
    assert repr(found) in refused.value.what
    assert ("that of qwen2.5" in refused.value.what) == (found == "qwen2")


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gemma3", {"model_type": "gemma3"}),
        ("gemma3", {"model_type": "gemma3_text"}),
        ("qwen2.5", {"model_type": "qwen2"}),
        ("smollm2", {"model_type": "llama"}),
        ("a family of my own", {"model_type": "llama"}),
        ("gemma3", {}),
        ("gemma3", "{"),
        ("gemma3", []),
    ],
)
def test_what_is_not_belied_is_innocent(tmp_path: Path, family: str, config: Any) -> None:
    """The shipped models, families of which nothing is known, and what no loader would take."""
    assert family_of(request(tmp_path, family, config)) == family


def test_every_measured_family_is_known_by_its_checkpoints() -> None:
    """Else its bounds would be believed of any."""
    assert {*MEASURED_FAMILIES} <= {*MODEL_TYPES}
