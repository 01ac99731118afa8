"""Step, phase C: QLoRA on the response tokens with TRL's trainer, flat and resumable.

Rows are encoded by the loader, so training sees what evaluation will see: prompt, then response
and delimiter, then the end of the text. A checkpoint counts once its COMPLETE.json is committed;
a half-written one is never resumed from.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from phases.base_model import BaseModel as Base
from phases.base_model import load_base_model
from phases.records import Row, parse_params
from runbook.artifacts import (
    complete_directory,
    describe,
    is_complete,
    read_jsonl,
    sha256_file,
    write_json,
)
from runbook.contract import Committed, Metric, PhaseRequest, PhaseResult
from runbook.errors import ConfigError

CHECKPOINT = "checkpoint-"


class SftParams(BaseModel):
    """QLoRA and optimiser settings, in the field's usual names."""

    model_config = ConfigDict(extra="forbid", strict=True)

    quantization: str = Field(pattern="^(none|nf4)$")
    r: int = Field(ge=1)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_steps: int = Field(ge=0)
    epochs: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(ge=1)
    max_length: int = Field(ge=8)
    gradient_checkpointing: bool
    save_steps: int = Field(ge=1)


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifact ``adapter``, a folder, and write TRAINING_SUCCESS beside it."""
    params = parse_params(SftParams, request)
    folder = request.workspace / request.inputs["prepare_model"]["base_model"].path
    base = load_base_model(
        folder, request.model, request.engine, quantization=params.quantization, trainable=True
    )
    records = read_jsonl(request.workspace / request.inputs["scale"]["dataset"].path)
    rows = [encode_row(base, record, params.max_length) for record in records]
    trainer = _trainer(request, params, base, rows)
    resumed = newest_checkpoint(request)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    return _finished(request, params, trainer, rows)


def encode_row(base: Base, record: Row, max_length: int) -> Row:
    """Token ids and labels of one record; only response, delimiter and end count in the loss.

    Raises:
        ConfigError: the record is longer than ``max_length`` tokens; nothing is cut in silence.
    """
    prompt = base.encode(record["prompt"])
    response = [*base.encode(record["completion"], continues=True), base.eos_id]
    ids = [*prompt, *response]
    if len(ids) > max_length:
        raise ConfigError(
            f"a training row has {len(ids)} tokens, max_length is {max_length}",
            where=repr(record["instruction"][:60]),
            fix="raise max_length in the step's spec",
        )
    return {"input_ids": ids, "labels": [*([-100] * len(prompt)), *response]}


def _trainer(request: PhaseRequest, params: SftParams, base: Base, rows: list[Row]) -> SFTTrainer:
    config = SFTConfig(
        output_dir=str(request.work),
        num_train_epochs=params.epochs,
        per_device_train_batch_size=params.batch_size,
        gradient_accumulation_steps=params.gradient_accumulation,
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        warmup_steps=params.warmup_steps,
        lr_scheduler_type="cosine",
        max_length=None,
        seed=request.seed % 2**31,
        data_seed=request.seed % 2**31,
        gradient_checkpointing=params.gradient_checkpointing,
        save_strategy="steps",
        save_steps=params.save_steps,
        save_total_limit=None,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=request.engine.get("device", "cpu") == "cpu",
        bf16=False,
        dataloader_pin_memory=False,
    )
    lora = LoraConfig(
        r=params.r,
        lora_alpha=params.alpha,
        lora_dropout=params.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return SFTTrainer(
        model=base.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=base.tokenizer,
        peft_config=lora,
        callbacks=[_Commit(request)],
    )


class _Commit(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Progress at each step; a checkpoint is committed once it is complete on disk."""

    def __init__(self, request: PhaseRequest) -> None:
        self.request = request

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        loss = next((h["loss"] for h in reversed(state.log_history) if "loss" in h), None)
        self.request.channel.progress(
            stage="train", done=state.global_step, total=state.max_steps, loss=loss
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        folder = self.request.work / f"{CHECKPOINT}{state.global_step}"
        complete_directory(folder)
        marker = folder / "COMPLETE.json"
        relative = marker.relative_to(self.request.workspace).as_posix()
        key = f"{CHECKPOINT}{state.global_step}"
        if self.request.channel.committed(key) is None:
            self.request.channel.commit(
                Committed(key, relative, sha256_file(marker), state.global_step)
            )


def newest_checkpoint(request: PhaseRequest) -> Path | None:
    """The latest committed checkpoint whose every file is whole; partial ones are removed."""
    found = []
    for folder in request.work.glob(f"{CHECKPOINT}*"):
        step = folder.name.removeprefix(CHECKPOINT)
        whole = (
            step.isdigit()
            and request.channel.committed(folder.name) is not None
            and is_complete(folder, deep=True)
        )
        if whole:
            found.append((int(step), folder))
        else:
            shutil.rmtree(folder)
    return max(found)[1] if found else None


def _finished(
    request: PhaseRequest, params: SftParams, trainer: Any, rows: list[Row]
) -> PhaseResult:
    folder = request.output / f"attempt_{request.attempt}"
    shutil.rmtree(folder, ignore_errors=True)
    trainer.model.save_pretrained(str(folder))
    complete_directory(folder)
    adapter = describe("adapter", folder, request.workspace)
    success = request.output / "TRAINING_SUCCESS"
    write_json(success, {"adapter": adapter.path, "sha256": adapter.sha256})
    losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    bad, moved = _weights(trainer.model)
    return PhaseResult(
        metrics=(
            Metric("nonfinite_weights", float(bad), n=1),
            Metric("adapter_norm", moved if math.isfinite(moved) else None, n=1),
            Metric("final_loss", float(losses[-1]) if losses else None, n=len(losses)),
        ),
        artifacts=(adapter, describe("TRAINING_SUCCESS", success, request.workspace)),
        tokens=int(sum(len(r["input_ids"]) for r in rows) * params.epochs),
        summary={"loss": losses, "steps": trainer.state.global_step, "rows": len(rows)},
    )


def _weights(model: Any) -> tuple[int, float]:
    """How many adapter weights are not finite, and the norm of what was zero before training."""
    bad, square = 0, 0.0
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            continue
        bad += int((~torch.isfinite(weight)).sum())
        if "lora_B" in name:
            square += float(weight.detach().float().pow(2).sum())
    return bad, math.sqrt(square)
