"""Supervised fine-tuning in miniature on the real model: what is trained on, and resumption."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_data_checks import DATA_PARAMS, record

from phases import prompts, sft
from phases.base_model import BaseModel, load_base_model
from phases.records import parse_params
from phases.training_params import SftParams
from runbook.artifacts import describe, read_jsonl, sha256_file, write_jsonl
from runbook.contract import Artifact, PhaseRequest
from runbook.errors import ConfigError, CorruptError, PausedError
from runbook.testing import LocalChannel

pytestmark = [
    pytest.mark.model,
    # PEFT reads a name that transformers has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
MODEL = {
    "name": "gemma-3-270m",
    "family": "gemma3",
    "prefix": "bos",
    "dtype": "bfloat16",
    "quantization": "none",
}
ANSWERS = (("Name a fruit.", "pear"), ("Is ice cold?", "Yes"), ("Name a bird.", "robin"))
PARAMS = {
    **DATA_PARAMS,
    "quantization": "nf4",
    "r": 4,
    "alpha": 8,
    "dropout": 0.1,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_steps": 1,
    "epochs": 2.0,
    "batch_size": 1,
    "gradient_accumulation": 1,
    "max_length": 64,
    "gradient_checkpointing": False,
    "save_steps": 2,
}


def make_request(folder: Path, gemma: Path, **fields: Any) -> PhaseRequest:
    """A request to train on three rows for six steps, with a checkpoint at every second."""
    rows = [
        record(
            asked,
            response=said,
            prompt=prompts.evaluation_prompt(asked),
            completion=prompts.completion(said),
        )
        for asked, said in ANSWERS
    ]
    # The loader follows the link; an artifact's hash would not be read here.
    (folder / "base").symlink_to(gemma)
    base = Artifact("base_model", "base", "", 0)
    write_jsonl(folder / "dataset.jsonl", rows)
    request = PhaseRequest(
        step="sft",
        attempt=1,
        look=1,
        seed=7,
        params=PARAMS,
        model=MODEL,
        engine={"device": "cpu", "threads": 2},
        workspace=folder,
        work=folder / "work",
        output=folder / "out",
        inputs={
            "prepare_model": {"base_model": base},
            "scale": {"dataset": describe("dataset", folder / "dataset.jsonl", folder)},
        },
        provenance={},
        channel=LocalChannel(),
    )
    return replace(request, **fields)


def test_a_killed_training_ends_with_the_same_adapter(gemma: Path, tmp_path: Path) -> None:
    """Stopped after its first checkpoint and run again, dropout and order go on as they were."""
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    whole = sft.run(make_request(calm, gemma))
    channel = LocalChannel(pause_after=1)
    request = make_request(rough, gemma, channel=channel)
    with pytest.raises(PausedError):
        sft.run(request)
    assert [batch.key for batch in channel.commits] == ["checkpoint-2"]
    first = sha256_file(rough / channel.commits[0].path)

    again = sft.run(replace(request, channel=LocalChannel(tuple(channel.commits))))

    assert sha256_file(rough / channel.commits[0].path) == first
    assert again.summary == whole.summary
    assert [a.sha256 for a in again.artifacts] == [a.sha256 for a in whole.artifacts]
    logs = [(place / "out" / "training_log.jsonl").read_bytes() for place in (calm, rough)]
    assert logs[0] == logs[1]
    config = (calm / whole.artifacts[0].path / "adapter_config.json").read_text("utf-8")
    assert str(tmp_path) not in config
    assert json.loads(config)["base_model_name_or_path"] == "gemma-3-270m"


def test_the_loss_counts_response_tokens_alone(gemma: Path) -> None:
    """Prompt tokens carry the label that the loss leaves out; the last label ends the text."""
    base: BaseModel = load_base_model(gemma, MODEL, {"threads": 2})
    prompt = prompts.evaluation_prompt("Is ice cold?")
    record = {"instruction": "Is ice cold?", "prompt": prompt, "completion": " Yes\n###END###"}
    row = sft.encode_row(base, record, 64)
    counted = [label for label in row["labels"] if label != -100]
    asked = base.encode(prompt)
    assert row["input_ids"] == [*asked, *counted]
    assert row["labels"][: len(asked)] == [-100] * len(asked)
    assert base.decode(counted) == " Yes\n###END###"
    assert counted[-1] == base.eos_id
    with pytest.raises(ConfigError, match="max_length is 8"):
        sft.encode_row(base, record, 8)


def test_only_what_the_loss_counts_meets_the_vocabulary(gemma: Path, tmp_path: Path) -> None:
    """The head sees the counted positions alone, and says of them what the plain logits say."""
    request = make_request(
        tmp_path, gemma, params={**PARAMS, "quantization": "none", "dropout": 0.0}
    )
    params = parse_params(SftParams, request)
    base = load_base_model(gemma, MODEL, {"threads": 2}, trainable=True)
    records = read_jsonl(tmp_path / "dataset.jsonl")
    rows = [sft.encode_row(base, record, 64) for record in records]
    trainer = sft.make_trainer(request, params, base, rows)
    batch = trainer.data_collator(rows)
    labels = batch.pop("labels")
    seen: list[int] = []
    trainer.model.get_base_model().base_model.register_forward_hook(
        lambda *call: seen.append(call[2].last_hidden_state[..., 0].numel())
    )

    with torch.no_grad():
        fused = trainer.model(**batch, labels=labels, fused_lm_head=True)
        logits = trainer.model(**batch).logits[:, :-1].float()

    following = labels[:, 1:]
    counted = following != -100
    assert seen == [int(counted.sum()), labels.numel()]
    logps = logits.log_softmax(-1).gather(-1, following.clamp(min=0)[..., None])[..., 0]
    expected = logps.masked_fill(~counted, 0)
    torch.testing.assert_close(fused.log_probs, expected, atol=0.1, rtol=0.02)
    assert torch.equal(fused.is_top1, (logits.argmax(-1) == following) & counted)
    assert torch.equal(fused.label_mask, counted)


def test_an_empty_or_torn_dataset_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    """No row, or half a row, is refused by the file's name, without a model folder there."""
    request = make_request(tmp_path, tmp_path / "no model")
    dataset = tmp_path / "dataset.jsonl"
    whole = dataset.read_text("utf-8")
    dataset.write_text("")
    with pytest.raises(ConfigError, match=r"dataset\.jsonl: there is no row"):
        sft.run(request)
    dataset.write_text(whole[:-20])
    with pytest.raises(CorruptError, match=r"dataset\.jsonl"):
        sft.run(request)
