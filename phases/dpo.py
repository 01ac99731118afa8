"""Step, phase D: DPO with TRL's trainer, on from the sft adapter, against a frozen copy of it.

Each pair is encoded by the loader as ``phases.sft`` encodes its rows: prompt, then completion and
delimiter, then the end of the text. Evaluation of what comes out is ``phases.evaluate``'s.
"""

from typing import Any, Final

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from phases.base_model import BaseModel as Base
from phases.base_model import load_base_model
from phases.checkpoints import (
    ADAPTER,
    REFERENCE,
    CommitCheckpoints,
    logged,
    save_adapter,
    score_responses_alone,
    train,
    trainer_settings,
    weight_metrics,
    write_log,
)
from phases.pair_checks import CLEAN_PAIRS, measure_pairs
from phases.records import Row, parse_params
from phases.sft import encode_row
from phases.training_params import DpoParams
from runbook.artifacts import read_jsonl
from runbook.contract import Metric, PhaseRequest, PhaseResult
from runbook.errors import ConfigError

PARAMS: Final = "phases.training_params:DpoParams"
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
    "equal_pairs",
    "nonfinite_weights",
    "adapter_shift",
    "final_loss",
    "reward_margin",
    "reward_accuracy",
)
_LEARNT: Final = METRICS[-5:]
"""What only a training measures."""


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifact ``adapter``, a folder, and write TRAINING_SUCCESS beside it.

    Where the pairs are not clean, nothing is trained: their metrics come back, and the gate finds
    no adapter measured.
    """
    params = parse_params(DpoParams, request)
    pairs = request.inputs["preferences"]["preferences"].path
    records = read_jsonl(request.workspace / pairs)
    if not records:
        raise ConfigError(
            "there is no pair to train on",
            where=pairs,
            fix="ask for more instructions or responses, or a smaller min_gap, in preferences.yaml",
        )
    checks = measure_pairs(request, params, records)
    dirty = [m.name for m in checks if m.name in CLEAN_PAIRS and m.value]
    if dirty:
        note = f"not trained, since the pairs are not clean: {', '.join(dirty)}"
        return PhaseResult(metrics=(*checks, *(Metric(m, None, n=1, note=note) for m in _LEARNT)))
    base = load_base_model(
        request.workspace / request.inputs["prepare_model"]["base_model"].path,
        request.model,
        request.engine,
        quantization=params.quantization,
        adapter=request.workspace / request.inputs["sft"]["adapter"].path,
        trainable=True,
    )
    rows = [encode_pair(base, record, params.max_length) for record in records]
    trainer = make_trainer(request, params, base, rows)
    train(request, trainer)
    return PhaseResult(
        metrics=(*checks, *_metrics(request, trainer)),
        artifacts=save_adapter(request, trainer.model),
        tokens=int(sum(sum(map(len, row.values())) for row in rows) * params.epochs),
        summary={
            "loss": logged(trainer, "loss"),
            "reward_margin": logged(trainer, "rewards/margins"),
            "reward_accuracy": logged(trainer, "rewards/accuracies"),
            "logp_chosen": logged(trainer, "logps/chosen"),
            "logp_rejected": logged(trainer, "logps/rejected"),
            "steps": trainer.state.global_step,
            "pairs": len(rows),
        },
    )


def encode_pair(base: Base, record: Row, max_length: int) -> Row:
    """Token ids of one record in the columns that TRL's collator reads.

    Raises:
        ConfigError: a side is longer than ``max_length`` tokens.
    """
    chosen, rejected = (
        encode_row(base, {**record, "completion": record[side]}, max_length)["input_ids"]
        for side in ("chosen", "rejected")
    )
    prompt = base.encode(record["prompt"])
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen[len(prompt) :],
        "rejected_ids": rejected[len(prompt) :],
    }


def make_trainer(
    request: PhaseRequest, params: DpoParams, base: Base, rows: list[Row]
) -> DPOTrainer:
    """TRL's trainer over the loader's own token ids."""
    stand_in = {"prompt": "", "chosen": "a", "rejected": "b"}
    trainer = DPOTrainer(
        model=base.model,
        args=DPOConfig(**trainer_settings(request, params), beta=params.beta),
        train_dataset=Dataset.from_list([stand_in]),
        processing_class=base.tokenizer,
        callbacks=[CommitCheckpoints(request)],
    )
    # TRL tokenizes whatever it is given, with the tokenizer's own idea of a prefix and with
    # tokens merged across the end of the prompt. So it is given a stand-in; these are the rows.
    trainer.train_dataset = Dataset.from_list(rows)
    # TRL rounds the adapter of a quantized model to bf16. It is then no longer its own reference,
    # and too coarse for small learning rates: measured at 2e-5, three quarters of lora_A had not
    # moved after two steps.
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            start = trainer.model.get_parameter(name.replace(f".{ADAPTER}.", f".{REFERENCE}."))
            weight.data = start.detach().float().clone()
    score_responses_alone(trainer.model)
    return trainer


def _metrics(request: PhaseRequest, trainer: Any) -> tuple[Metric, ...]:
    """Sound weights, and whether the pairs were learnt: means over the last epoch's steps."""
    losses = logged(trainer, "loss")
    last = losses[-1] if losses else None
    log = write_log(request, trainer)
    return (
        *weight_metrics(request, trainer.model, "adapter_shift", reference=REFERENCE),
        Metric("final_loss", last, n=len(losses), evidence=log),
        _last_epoch("reward_margin", trainer, "rewards/margins", log),
        _last_epoch("reward_accuracy", trainer, "rewards/accuracies", log),
    )


def _last_epoch(name: str, trainer: Any, logged_as: str, evidence: str) -> Metric:
    found = [entry for entry in trainer.state.log_history if logged_as in entry]
    ended = max((entry["epoch"] for entry in found), default=0.0)
    values = [entry[logged_as] for entry in found if entry["epoch"] > ended - 1]
    value = sum(values) / len(values) if values else None
    return Metric(name, value, n=len(values), evidence=evidence)
