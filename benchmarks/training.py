"""Seconds a training step takes: a bare loop, TRL's own defaults, and TRL as phases/sft.py sets it.

    python benchmarks/training.py [MODEL_FOLDER]

The model is the quickstart's, as ``make quickstart`` leaves it under workspace/models/base, unless
a folder is given. All runs train on the same batches of the held-out items' reference answers with
the quickstart's settings; the first loss, before any weight has moved, shows that they do. Each run
loads the model anew, and its first step is not counted.
"""

import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, Final

import torch
from datasets import Dataset, disable_progress_bars
from peft import get_peft_model
from setting import ROOT, find_setting, machine
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as hf_logging
from trl import SFTConfig, SFTTrainer

from phases import prompts, sft
from phases.base_model import BaseModel, load_base_model
from phases.checkpoints import score_responses_alone, trainer_settings
from phases.records import Row, parse_params
from phases.training_params import SftParams
from runbook.artifacts import read_jsonl
from runbook.contract import Json, PhaseRequest
from runbook.plan import Plan
from runbook.report.safe_text import columns
from runbook.testing import LocalChannel

MEASURED: Final = 4
BARE: Final = "a bare loop"
DEFAULTS: Final = "TRL, its own defaults"
SHIPPED: Final = "TRL as phases/sft.py sets it"


@dataclass(frozen=True)
class Setup:
    """What every run shares, and the model it is made on."""

    folder: Path
    request: PhaseRequest
    rows: list[Row]

    @property
    def params(self) -> SftParams:
        return parse_params(SftParams, self.request)

    def load(self) -> BaseModel:
        return load_base_model(
            self.folder,
            self.request.model,
            self.request.engine,
            quantization=self.params.quantization,
            trainable=True,
        )

    def changed(self, **params: Json) -> "Setup":
        return replace(
            self, request=replace(self.request, params={**self.request.params, **params})
        )


@dataclass
class Timing:
    """Seconds of the measured steps, and the loss before any weight moved."""

    seconds: list[float] = field(default_factory=list)
    first_loss: float = float("nan")

    def add(self, more: "Timing") -> None:
        self.seconds += more.seconds
        self.first_loss = more.first_loss


Run = Callable[[], Timing]


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """From the end of one step to the end of the next: logging and the data loader included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def main(arguments: Sequence[str]) -> int:
    folder, plan = find_setting(arguments, __doc__)
    with tempfile.TemporaryDirectory() as scratch:
        setup, base = prepare(folder, plan, Path(scratch))
        with quiet():
            trainer = sft.make_trainer(setup.request, setup.params, base, setup.rows)
            batches = list(trainer.get_train_dataloader())
        del base, trainer
        print(machine())
        measure_and_tell(setup, batches)
    return 0


def prepare(folder: Path, plan: Plan, scratch: Path) -> tuple[Setup, BaseModel]:
    """The quickstart's settings on the first rows that fill the steps.

    Raises:
        RunbookError: the folder holds no model, or the specs are wrong.
    """
    spec = next(step for step in plan.steps if step.name == "sft")
    request = PhaseRequest(
        step="sft",
        attempt=1,
        look=1,
        seed=plan.seed,
        params={**spec.params, "epochs": 1.0},
        model=plan.model,
        engine=plan.engine,
        workspace=scratch,
        work=scratch / "work",
        output=scratch / "out",
        inputs={},
        provenance={},
        channel=LocalChannel(),
    )
    setup = Setup(folder, request, [])
    base = setup.load()
    params = setup.params
    items = read_jsonl(ROOT / "specs" / "held_out.jsonl")
    needed = params.batch_size * params.gradient_accumulation * (1 + MEASURED)
    # The file has one kind after another: items far apart, so that every kind is there.
    items = items[:: max(1, len(items) // needed)][:needed]
    rows = [sft.encode_row(base, _record(item), params.max_length) for item in items]
    return replace(setup, rows=rows), base


def _record(item: Mapping[str, Json]) -> Row:
    return {
        "instruction": item["instruction"],
        "prompt": prompts.evaluation_prompt(item["instruction"]),
        "completion": prompts.completion(item["reference"]),
    }


def measure_and_tell(setup: Setup, batches: list[dict[str, torch.Tensor]]) -> None:
    whole: dict[str, Run] = {
        BARE: lambda: bare_loop(setup, batches),
        DEFAULTS: lambda: trl_defaults(setup),
        SHIPPED: lambda: trl_shipped(setup),
    }
    parts: dict[tuple[str, str], Run] = {
        (DEFAULTS, "scoring prompts and padding"): lambda: trl_defaults(setup, narrow=True),
        (DEFAULTS, "gradient checkpointing"): lambda: trl_defaults(
            setup, activation_checkpointing=False
        ),
        (DEFAULTS, "autocast to bf16"): lambda: trl_defaults(setup, bf16=False),
        (SHIPPED, "nf4 (the base in bf16)"): lambda: trl_shipped(
            setup.changed(quantization="none")
        ),
        (SHIPPED, "dropout"): lambda: trl_shipped(setup.changed(dropout=0.0)),
    }
    found = {name: Timing() for name in whole}
    # Once forward and once backward, with the parts in between: a machine that slows down or
    # speeds up meanwhile favours none of the three.
    for name, run in whole.items():
        found[name].add(measured(name, run))
    without = {
        (of, cause): measured(f"{of}, without {cause}", run) for (of, cause), run in parts.items()
    }
    for name, run in reversed(whole.items()):
        found[name].add(measured(name, run))
    tell(setup, found, without)


def measured(name: str, run: Run) -> Timing:
    print(f"... {name}", file=sys.stderr, flush=True)
    torch.manual_seed(0)
    with quiet():
        timing = run()
    gc.collect()
    return timing


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf_logging.set_verbosity_error()
        disable_progress_bars()
        yield


def bare_loop(setup: Setup, batches: list[dict[str, torch.Tensor]]) -> Timing:
    """PyTorch and PEFT alone; the vocabulary's logits for the positions that count."""
    params = setup.params
    model = get_peft_model(setup.load().model, sft.adapter_config(params))
    inner = model.get_base_model()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(
        trained, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
    )
    model.train()
    losses, ends = [], []
    for batch in batches:
        labels = batch["labels"][:, 1:]
        counted = labels != -100
        hidden = inner.base_model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
        logits = inner.get_output_embeddings()(hidden[:, :-1][counted])
        loss = cross_entropy(logits.float(), labels[counted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        ends.append(time.perf_counter())
    return Timing(_between(ends), losses[0])


def trl_shipped(setup: Setup) -> Timing:
    return _trained(sft.make_trainer(setup.request, setup.params, setup.load(), setup.rows))


def trl_defaults(setup: Setup, *, narrow: bool = False, **settings: Json) -> Timing:
    """What one gets who sets the work and leaves the rest to TRL."""
    ours = trainer_settings(setup.request, setup.params)
    work = (
        "output_dir",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "seed",
        "data_seed",
        "use_cpu",
        "report_to",
        "disable_tqdm",
    )
    base = setup.load()
    trainer = SFTTrainer(
        model=base.model,
        # The default logs every tenth step; the first loss is wanted.
        args=SFTConfig(**{name: ours[name] for name in work}, logging_first_step=True, **settings),
        train_dataset=Dataset.from_list(setup.rows),
        processing_class=base.tokenizer,
        peft_config=sft.adapter_config(setup.params),
    )
    if narrow:
        score_responses_alone(trainer.model)
    return _trained(trainer)


def _trained(trainer: Any) -> Timing:
    clock = Clock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Timing(_between(clock.ends), float(losses[0]))


def _between(ends: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(ends)]


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("\n" + "\n".join(columns([head, *rows])))


def tell(
    setup: Setup, found: Mapping[str, Timing], without: Mapping[tuple[str, str], Timing]
) -> None:
    tokens = sum(len(row["input_ids"]) for row in setup.rows)
    counted = sum(label != -100 for row in setup.rows for label in row["labels"])
    print(
        f"{len(setup.rows)} rows, {setup.params.batch_size} a batch, {tokens / len(setup.rows):.0f}"
        f" tokens a row, {counted / len(setup.rows):.0f} of them in the loss"
    )
    bare = mean(found[BARE].seconds)
    _print_table(
        ("what trains", "s/step", "slowest", "of bare", "first loss"),
        [
            (
                name,
                f"{mean(timing.seconds):.2f}",
                f"{max(timing.seconds):.2f}",
                f"{mean(timing.seconds) / bare:.2f}",
                f"{timing.first_loss:.4f}",
            )
            for name, timing in found.items()
        ],
    )
    _print_table(
        ("switched off, alone", "of", "s/step", "saves"),
        [
            (
                cause,
                of,
                f"{mean(timing.seconds):.2f}",
                f"{mean(found[of].seconds) - mean(timing.seconds):+.2f}",
            )
            for (of, cause), timing in without.items()
        ],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
