"""Step, phase C: QLoRA on the response tokens with TRL's trainer, flat and resumable.

Rows are encoded by the loader, so training sees what evaluation will see: prompt, then response
and delimiter, then the end of the text.
"""

from typing import Final

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from phases.base_model import BaseModel as Base
from phases.base_model import load_base_model
from phases.checkpoints import (
    CommitCheckpoints,
    logged,
    save_adapter,
    score_responses_alone,
    train,
    trainer_settings,
    weight_metrics,
    write_log,
)
from phases.data_checks import CLEAN, measure_data
from phases.records import Row, parse_params
from phases.training_params import SftParams
from runbook.artifacts import read_jsonl
from runbook.contract import Metric, PhaseRequest, PhaseResult
from runbook.errors import ConfigError

PARAMS: Final = "phases.training_params:SftParams"
METRICS: Final = (
    "distinct_exact",
    "distinct_normalised",
    "distinct_near",
    "distinct_near_rate",
    "largest_repeat",
    "overlap_exact",
    "overlap_normalised",
    "overlap_13gram",
    "overlap_near",
    "overlap_quoted",
    "incomplete_provenance",
    "bad_sentinels",
    "nonfinite_weights",
    "adapter_norm",
    "final_loss",
)
_LEARNT: Final = METRICS[-3:]
"""What only a training measures."""


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifact ``adapter``, a folder, and write TRAINING_SUCCESS beside it.

    Where the data is not clean, nothing is trained: the data's metrics come back, and the gate
    finds no adapter measured.
    """
    params = parse_params(SftParams, request)
    dataset = request.inputs["scale"]["dataset"].path
    records = read_jsonl(request.workspace / dataset)
    if not records:
        raise ConfigError(
            "there is no row to train on",
            where=dataset,
            fix="let the gate of the step that made it ask for kept rows",
        )
    checks = measure_data(request, params, records)
    dirty = [m.name for m in checks if m.name in CLEAN and m.value]
    if dirty:
        note = f"not trained, since the data is not clean: {', '.join(dirty)}"
        return PhaseResult(metrics=(*checks, *(Metric(m, None, n=1, note=note) for m in _LEARNT)))
    folder = request.workspace / request.inputs["prepare_model"]["base_model"].path
    base = load_base_model(
        folder, request.model, request.engine, quantization=params.quantization, trainable=True
    )
    rows = [encode_row(base, record, params.max_length) for record in records]
    trainer = make_trainer(request, params, base, rows)
    train(request, trainer)
    losses = logged(trainer, "loss")
    last = losses[-1] if losses else None
    return PhaseResult(
        metrics=(
            *checks,
            *weight_metrics(request, trainer.model, "adapter_norm"),
            Metric("final_loss", last, n=len(losses), evidence=write_log(request, trainer)),
        ),
        artifacts=save_adapter(request, trainer.model),
        tokens=int(sum(len(r["input_ids"]) for r in rows) * params.epochs),
        summary={"loss": losses, "steps": trainer.state.global_step, "rows": len(rows)},
    )


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


def adapter_config(params: SftParams) -> LoraConfig:
    return LoraConfig(
        r=params.r,
        lora_alpha=params.alpha,
        lora_dropout=params.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def make_trainer(
    request: PhaseRequest, params: SftParams, base: Base, rows: list[Row]
) -> SFTTrainer:
    """TRL's trainer over the loader's own token ids."""
    trainer = SFTTrainer(
        model=base.model,
        args=SFTConfig(**trainer_settings(request, params)),
        train_dataset=Dataset.from_list(rows),
        processing_class=base.tokenizer,
        peft_config=adapter_config(params),
        callbacks=[CommitCheckpoints(request)],
    )
    # TRL rounds the adapter of a quantized model to bf16, and PEFT widens it again when it loads a
    # checkpoint: a resumed training would go another way. So it is wide from the start.
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    score_responses_alone(trainer.model)
    return trainer
