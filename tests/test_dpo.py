"""DPO in miniature on the real model, and what training steps share."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_data_checks import DATA_PARAMS, record
from test_pair_checks import pair

from phases import dpo, sft
from phases.base_model import BaseModel, load_base_model
from phases.checkpoints import CommitCheckpoints, newest_checkpoint
from phases.evaluate import tuned_adapter
from phases.records import parse_params
from phases.training_params import DpoParams
from runbook.artifacts import (
    complete_directory,
    describe,
    sha256_file,
    sha256_tree,
    write_jsonl,
)
from runbook.contract import Artifact, Committed, PhaseRequest, PhaseResult
from runbook.errors import ConfigError, PausedError
from runbook.testing import LocalChannel

pytestmark = pytest.mark.filterwarnings(
    # PEFT reads a name that transformers has renamed.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
MODEL = {
    "name": "gemma-3-270m",
    "family": "gemma3",
    "prefix": "bos",
    "dtype": "bfloat16",
    "quantization": "none",
}
TRAINING = {
    "quantization": "nf4",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "epochs": 2.0,
    "batch_size": 4,
    "gradient_accumulation": 1,
    "max_length": 64,
    "gradient_checkpointing": False,
    "save_steps": 1,
}
DPO = {**TRAINING, **DATA_PARAMS, "beta": 0.1}
ANSWERS = (
    ("Name a fruit.", "pear", "a pear is what I would like to say"),
    ("What is 2 plus 2?", "4", "5"),
    ("Is ice cold?", "Yes", "Ice"),
    ("Name a bird.", "robin", "brick"),
)
EOS, BOS = 1, 2


def make_request(workspace: Path, step: str, **fields: Any) -> PhaseRequest:
    return PhaseRequest(
        **{
            "step": step,
            "attempt": 1,
            "look": 1,
            "seed": 7,
            "params": {},
            "model": MODEL,
            "engine": {"name": "transformers", "device": "cpu", "threads": 2},
            "workspace": workspace,
            "work": workspace / "work" / step,
            "output": workspace / "checkpoints" / step,
            "inputs": {},
            "provenance": {},
            "channel": LocalChannel(),
            **fields,
        }
    )


@pytest.fixture(scope="module")
def workspace(gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the model, four pairs, and whatever the steps leave there."""
    folder = tmp_path_factory.mktemp("ws")
    (folder / "models").mkdir()
    (folder / "models" / "base").symlink_to(gemma)
    pairs = [pair(*answer) for answer in ANSWERS]
    write_jsonl(folder / "preferences.jsonl", pairs)
    rows = [
        record(p["instruction"], response=said, prompt=p["prompt"], completion=p["chosen"])
        for p, (_, said, _) in zip(pairs, ANSWERS, strict=True)
    ]
    write_jsonl(folder / "dataset.jsonl", rows)
    return folder


def inputs(workspace: Path, **more: Artifact) -> dict[str, dict[str, Artifact]]:
    paths = {
        "scale": ("dataset", "dataset.jsonl"),
        "preferences": ("preferences", "preferences.jsonl"),
    }
    found = {
        step: {name: describe(name, workspace / path, workspace)}
        for step, (name, path) in paths.items()
    }
    model = {"base_model": Artifact("base_model", "models/base", "", 0)}
    return {**found, "prepare_model": model, **{s: {"adapter": a} for s, a in more.items()}}


@pytest.fixture(scope="module")
def trained(workspace: Path) -> Artifact:
    """The sft adapter that DPO starts from."""
    own = {"quantization": "none", "epochs": 1.0, "r": 4, "alpha": 8, "dropout": 0.0}
    params = {**TRAINING, **DATA_PARAMS, **own}
    request = make_request(workspace, "sft", params=params, inputs=inputs(workspace))
    adapter, success = sft.run(request).artifacts
    assert (adapter.name, success.name) == ("adapter", "TRAINING_SUCCESS")
    return adapter


@pytest.fixture(scope="module")
def asked(workspace: Path, trained: Artifact) -> PhaseRequest:
    return make_request(workspace, "dpo", params=DPO, inputs=inputs(workspace, sft=trained))


@pytest.fixture(scope="module")
def undisturbed(asked: PhaseRequest) -> PhaseResult:
    return dpo.run(asked)


def weights(workspace: Path, adapter: Artifact) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(
        workspace / adapter.path / "adapter_model.safetensors"
    )
    return found


@pytest.fixture(scope="module")
def base(asked: PhaseRequest) -> BaseModel:
    """The policy as DPO loads it, but not quantized, which is quicker."""
    return load_base_model(
        asked.workspace / "models" / "base",
        asked.model,
        asked.engine,
        adapter=asked.workspace / asked.inputs["sft"]["adapter"].path,
        trainable=True,
    )


@pytest.mark.model
def test_two_steps_change_the_adapter_and_say_so(
    workspace: Path, trained: Artifact, undisturbed: PhaseResult
) -> None:
    """Finite weights that differ from sft's, and TRAINING_SUCCESS names them."""
    adapter, success = undisturbed.artifacts
    before, after = weights(workspace, trained), weights(workspace, adapter)
    assert before.keys() == after.keys()
    assert all(bool(torch.isfinite(weight).all()) for weight in after.values())
    unmoved = [name for name in before if torch.equal(before[name].float(), after[name].float())]
    assert unmoved == []
    assert json.loads((workspace / success.path).read_text()) == {
        "adapter": adapter.path,
        "sha256": sha256_tree(workspace / adapter.path),
    }
    found = {m.name: m.value for m in undisturbed.metrics}
    assert found["nonfinite_weights"] == 0
    assert found["adapter_shift"] == pytest.approx(_distance(before, after), rel=1e-4)


def _distance(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    moved = [(after[n] - before[n].float()).pow(2).sum() for n in before if "lora_B" in n]
    return math.sqrt(sum(float(square) for square in moved))


@pytest.mark.model
def test_the_reference_is_the_adapter_that_training_starts_from(undisturbed: PhaseResult) -> None:
    """The first loss is ln 2: policy and reference agree on every token; then the loss falls."""
    first, second = undisturbed.summary["loss"]
    assert first == pytest.approx(math.log(2), abs=1e-5)
    assert second < first
    assert undisturbed.summary["reward_margin"][0] == 0


@pytest.mark.model
def test_the_trainer_is_fed_what_the_loader_encodes(asked: PhaseRequest, base: BaseModel) -> None:
    """One BOS in front, prompt and completion encoded apart, EOS at the end, right-hand padding."""
    params = parse_params(DpoParams, asked)
    records = [pair(*answer) for answer in ANSWERS]
    rows = [dpo.encode_pair(base, record, params.max_length) for record in records]
    trainer = dpo.make_trainer(asked, params, base, rows)
    fed = [row for batch in trainer.get_train_dataloader() for row in _rows(batch)]
    expected = [
        (
            [*base.encode(record["prompt"]), *base.encode(record[side], continues=True), EOS],
            [*base.encode(record[side], continues=True), EOS],
        )
        for record in records
        for side in ("chosen", "rejected")
    ]
    assert sorted(fed) == sorted(expected)
    assert {(ids[0], ids.count(BOS), ids.count(EOS)) for ids, _ in fed} == {(BOS, 1, 1)}
    ends = {base.decode(completion[:-1])[-10:] for _, completion in fed}
    assert ends == {"\n###END###"}


def _rows(batch: dict[str, torch.Tensor]) -> Iterator[tuple[list[int], list[int]]]:
    """Attended token ids of each row, and those of them that the loss is taken on."""
    for ids, mask, counted in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        yield ids[mask == 1].tolist(), ids[counted == 1].tolist()


@pytest.mark.model
def test_a_killed_training_goes_on_from_its_checkpoint(
    asked: PhaseRequest, undisturbed: PhaseResult
) -> None:
    """Killed while it wrote its second checkpoint, only the second step is made, to the same bytes.

    The first step of the undisturbed run stands in for that of the killed one.
    """
    assert isinstance(asked.channel, LocalChannel)
    work = asked.workspace / "work" / "killed"
    shutil.copytree(asked.work / "checkpoint-1", work / "checkpoint-1")
    (work / "checkpoint-2").mkdir()
    (work / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"half")
    channel = LocalChannel(tuple(asked.channel.commits[:1]))
    output = asked.workspace / "killed"
    result = dpo.run(replace(asked, work=work, output=output, channel=channel))
    assert [batch.key for batch in asked.channel.commits] == ["checkpoint-1", "checkpoint-2"]
    assert [batch.key for batch in channel.commits] == ["checkpoint-2"]
    assert [report["done"] for report in channel.reports] == [2]
    assert result.summary["loss"] == undisturbed.summary["loss"]
    assert result.artifacts[0].sha256 == undisturbed.artifacts[0].sha256


@pytest.mark.model
def test_a_pair_that_is_too_long_is_refused(base: BaseModel) -> None:
    """Nothing is cut in silence: the longer side counts."""
    record = pair("Name a bird.", "robin", "a bird that I know is the robin")
    # The BOS that ``encode`` puts before the completion stands for the EOS after it.
    longest = len(base.encode(record["prompt"])) + len(base.encode(record["rejected"]))
    assert dpo.encode_pair(base, record, longest)["prompt_ids"][0] == BOS
    with pytest.raises(ConfigError, match=f"has {longest} tokens, max_length is {longest - 1}"):
        dpo.encode_pair(base, record, longest - 1)


def test_no_pairs_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    """An empty file of pairs names the spec that makes them."""
    write_jsonl(tmp_path / "none.jsonl", [])
    none = {"preferences": describe("preferences", tmp_path / "none.jsonl", tmp_path)}
    request = make_request(tmp_path, "dpo", params=DPO, inputs={"preferences": none})
    with pytest.raises(ConfigError, match="no pair to train on"):
        dpo.run(request)


def _checkpoint(request: PhaseRequest, step: int, *, complete: bool, committed: bool) -> Path:
    folder = request.work / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(str(step))
    if complete:
        complete_directory(folder)
    if committed:
        marker = folder / "COMPLETE.json"
        relative = marker.relative_to(request.workspace).as_posix()
        sha = sha256_file(marker) if complete else ""
        request.channel.commit(Committed(folder.name, relative, sha, step))
    return folder


def test_only_a_whole_and_committed_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    """The newest of them by number; a partial, changed or uncommitted one is removed."""
    request = make_request(tmp_path, "dpo")
    whole = [_checkpoint(request, step, complete=True, committed=True) for step in (9, 10)]
    changed = _checkpoint(request, 20, complete=True, committed=True)
    (changed / "weights").write_text("21")
    _checkpoint(request, 30, complete=True, committed=False)
    _checkpoint(request, 40, complete=False, committed=True)
    assert newest_checkpoint(request) == whole[-1]
    assert sorted(request.work.iterdir()) == sorted(whole)


def test_a_pause_comes_after_the_checkpoint_is_whole(tmp_path: Path) -> None:
    """What the pause leaves behind is gone on from, and is committed only once."""
    channel = LocalChannel(pause_after=1)
    request = make_request(tmp_path, "dpo", channel=channel)
    folder = _checkpoint(request, 5, complete=False, committed=False)
    state = SimpleNamespace(global_step=5)
    with pytest.raises(PausedError):
        CommitCheckpoints(request).on_save(None, state, None)
    CommitCheckpoints(request).on_save(None, state, None)
    marker = sha256_file(folder / "COMPLETE.json")
    assert channel.commits == [
        Committed("checkpoint-5", "work/dpo/checkpoint-5/COMPLETE.json", marker, 5)
    ]
    assert newest_checkpoint(request) == folder


def test_without_a_checkpoint_training_starts_at_the_beginning(tmp_path: Path) -> None:
    """Neither a missing folder nor an empty one is a checkpoint."""
    assert newest_checkpoint(make_request(tmp_path, "dpo")) is None


@pytest.mark.parametrize(("trained_by", "told"), [((), "none"), (("dpo", "sft"), "dpo, sft")])
def test_an_evaluation_takes_exactly_one_adapter(
    tmp_path: Path, trained_by: tuple[str, ...], told: str
) -> None:
    """None leaves nothing to evaluate, two leave open which."""
    found = {step: {"adapter": Artifact("adapter", step, "", 1)} for step in trained_by}
    request = make_request(tmp_path, "evaluate", inputs={**found, "baseline": {}})
    with pytest.raises(ConfigError, match=f"found {told}"):
        tuned_adapter(request)


@pytest.mark.parametrize("step", ["sft", "dpo"])
def test_an_evaluation_serves_whichever_step_trained(tmp_path: Path, step: str) -> None:
    """The step's name does not matter, its artifact's does."""
    adapter = Artifact("adapter", f"checkpoints/{step}", "sha", 1)
    found = {"baseline": {"outcomes": Artifact("outcomes", "o", "", 1)}, step: {"adapter": adapter}}
    assert tuned_adapter(make_request(tmp_path, "evaluate", inputs=found)) == adapter
