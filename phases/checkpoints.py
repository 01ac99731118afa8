"""What every training step shares: settings, checkpoints, and the end of a finished one.

Rule: a checkpoint counts once its COMPLETE.json is committed. A half-written one is never resumed
from, and is removed. Which loss is trained on is not this module's business; which positions it
asks for is, so that no others are computed.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainerCallback

from phases.records import Row, batch_seed
from phases.training_params import TrainingParams
from runbook.artifacts import (
    COMPLETE,
    complete_directory,
    describe,
    is_complete,
    sha256_file,
    write_json,
    write_jsonl,
)
from runbook.contract import Artifact, Committed, Json, Metric, PhaseRequest

CHECKPOINT: Final = "checkpoint-"
ADAPTER: Final = "default"
"""What PEFT calls the one adapter that is trained."""
REFERENCE: Final = "ref"
"""What TRL calls its frozen copy of the adapter that DPO starts from."""


def trainer_settings(request: PhaseRequest, params: TrainingParams) -> dict[str, Any]:
    """Keyword arguments that SFTConfig and DPOConfig both take."""
    # A retry draws otherwise than the attempt that failed.
    seed = batch_seed(request, "training") % 2**31
    return {
        "output_dir": str(request.work),
        "num_train_epochs": params.epochs,
        "per_device_train_batch_size": params.batch_size,
        "gradient_accumulation_steps": params.gradient_accumulation,
        "learning_rate": params.learning_rate,
        "weight_decay": params.weight_decay,
        "warmup_steps": params.warmup_steps,
        "lr_scheduler_type": "cosine",
        "max_length": None,
        "seed": seed,
        "data_seed": seed,
        "activation_checkpointing": params.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": params.save_steps,
        "save_total_limit": None,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": request.engine.get("device", "cpu") == "cpu",
        "bf16": False,
        "dataloader_pin_memory": False,
    }


def score_responses_alone(model: Any) -> None:
    """Have TRL's fused head score the labelled positions alone, and give its answer as before.

    On a GPU it does so itself. On a CPU it projects every position, prompts and padding too, onto
    the whole vocabulary, forward and backward, and drops them (measured on two cores, 8
    rows of 30 tokens of which 9 count, Gemma 3 270M: 4.3 s a step against 2.0 s).

    Args:
        model: the PEFT model of a trainer that was made.
    """
    running: list[torch.Tensor] = []

    def pick(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        running.clear()
        if kwargs.get("fused_lm_head"):
            labels = kwargs.pop("labels")[:, 1:]
            running.append(labels != -100)
            kwargs["shift_labels"] = labels[running[0]][None]
        return args, kwargs

    def narrow(_: Any, __: Any, output: Any) -> None:
        for mask in running:
            output.last_hidden_state = output.last_hidden_state[:, :-1][mask][None]

    def widen(_: Any, __: Any, output: Any) -> None:
        for mask in running:
            scored = {name: value for name, value in output.items() if value.dim() == 2}
            for name, value in scored.items():
                output[name] = value.new_zeros(mask.shape).masked_scatter(mask, value)
        running.clear()

    model.register_forward_pre_hook(pick, with_kwargs=True)
    model.get_base_model().base_model.register_forward_hook(narrow)
    model.register_forward_hook(widen)


class CommitCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
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
        if self.request.channel.committed(folder.name) is None:
            marker = folder / COMPLETE
            relative = marker.relative_to(self.request.workspace).as_posix()
            self.request.channel.commit(
                Committed(folder.name, relative, sha256_file(marker), state.global_step)
            )


def newest_checkpoint(request: PhaseRequest) -> Path | None:
    """The latest committed checkpoint whose every file is whole; partial ones are removed."""
    found = []
    for folder in request.work.glob(f"{CHECKPOINT}*"):
        step = folder.name.removeprefix(CHECKPOINT)
        whole = step.isdigit() and _is_committed(folder, request.channel.committed(folder.name))
        if whole:
            found.append((int(step), folder))
        else:
            shutil.rmtree(folder)
    return max(found)[1] if found else None


def _is_committed(folder: Path, known: Committed | None) -> bool:
    """Whether the folder holds what was committed, byte for byte, and no file beside it."""
    marker = folder / COMPLETE
    if known is None or not marker.is_file() or sha256_file(marker) != known.sha256:
        return False
    listed = {COMPLETE, *json.loads(marker.read_bytes())["files"]}
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
    return there == listed and is_complete(folder, deep=True)


def train(request: PhaseRequest, trainer: Any) -> None:
    """Train to the end, from the newest checkpoint where there is one."""
    resumed = newest_checkpoint(request)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)


def save_adapter(request: PhaseRequest, model: Any) -> tuple[Artifact, Artifact]:
    """The artifacts ``adapter``, a folder, and TRAINING_SUCCESS, which names its path and SHA."""
    folder = request.output / f"attempt_{request.attempt}"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder), selected_adapters=[ADAPTER])
    _settle(folder, request.model)
    complete_directory(folder)
    adapter = describe("adapter", folder, request.workspace)
    success = request.output / "TRAINING_SUCCESS"
    write_json(success, {"adapter": adapter.path, "sha256": adapter.sha256})
    return adapter, describe("TRAINING_SUCCESS", success, request.workspace)


def _settle(folder: Path, model: Mapping[str, Json]) -> None:
    """Take out what depends on the machine or the process: the same weights, the same hash.

    PEFT writes the base's local path, sets in the order of the process's hashes, and an empty
    model card with the path once more.
    """
    source = model.get("source", {})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["base_model_name_or_path"] = source.get("hub") or model.get("name")
    config["revision"] = source.get("revision")
    for name in ("target_modules", "modules_to_save"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    write_json(path, config)
    (folder / "README.md").unlink(missing_ok=True)


def logged(trainer: Any, name: str) -> list[float]:
    """One value a step, those before an interruption included."""
    history: list[Mapping[str, Json]] = trainer.state.log_history
    return [float(entry[name]) for entry in history if name in entry]


def weight_metrics(
    request: PhaseRequest, model: Any, moved: str, *, reference: str | None = None
) -> tuple[Metric, ...]:
    """How many weights of the trained adapter are not finite, and how far its lora_B moved.

    Args:
        request: the step's; the rows behind both, one a tensor, stand in its ``weights.jsonl``.
        model: with the trained adapter.
        moved: the second metric's name: the norm of lora_B's distance from the adapter
            ``reference``, or from zero, where lora_B begins without one; None where not finite.
        reference: an adapter that the training began with.
    """
    rows: list[Row] = []
    for name, weight in model.named_parameters():
        if f".{ADAPTER}." not in name or "lora_" not in name:
            continue
        row: Row = {"name": name, "nonfinite": int((~torch.isfinite(weight)).sum())}
        if "lora_B" in name:
            distance = weight.detach().float()
            if reference is not None:
                start = model.get_parameter(name.replace(f".{ADAPTER}.", f".{reference}."))
                distance = distance - start.detach().float()
            square = float(distance.pow(2).sum())
            row["moved_squared"] = square if math.isfinite(square) else None
        rows.append(row)
    path = request.output / "weights.jsonl"
    write_jsonl(path, rows)
    evidence = path.relative_to(request.workspace).as_posix()
    squares = [row["moved_squared"] for row in rows if "moved_squared" in row]
    norm = None if None in squares else math.sqrt(math.fsum(squares))
    bad = float(sum(row["nonfinite"] for row in rows))
    return (
        Metric("nonfinite_weights", bad, n=len(rows), denominator="tensors", evidence=evidence),
        Metric(moved, norm, n=len(squares), denominator="tensors", evidence=evidence),
    )


def write_log(request: PhaseRequest, trainer: Any) -> str:
    """Lay the trainer's log down as ``training_log.jsonl``, a row a step; its path.

    How long it took is left out, and how many tokens went by, which the trainer counts anew from a
    checkpoint: a resumed training writes the same.
    """
    path = request.output / "training_log.jsonl"
    steps = (entry for entry in trainer.state.log_history if "train_runtime" not in entry)
    write_jsonl(path, [{k: v for k, v in step.items() if k != "num_tokens"} for step in steps])
    return path.relative_to(request.workspace).as_posix()
