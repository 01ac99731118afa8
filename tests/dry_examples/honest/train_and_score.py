r"""Step: train on the kept rows and evaluate on the held-out set, with the project's own pieces.

The prompt is ``Instruction: {instruction}\nResponse:`` and the stop marker ``###END###``; both
come from ``phases.prompts``. No chat template is applied: ``tokenizer.apply_chat_template`` and
``AutoModelForCausalLM.from_pretrained`` have no place here.
"""

import json
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from phases import prompts, verifiers
from phases.base_model import load_base_model
from phases.critic import LABELS, judge_pairs
from phases.engines import open_engine
from runbook.contract import Metric, PhaseRequest, PhaseResult


def run(request: PhaseRequest) -> PhaseResult:
    """Train a few steps, judge the rows, and count right answers."""
    base = load_base_model(request.workspace / "models/base", request.model, request.engine)
    # from_pretrained is the loader's; the record says what it did to the chat template.
    record = {"chat_template": base.tokenizer.chat_template, "prefix": list(base.prefix_ids)}
    config = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.1)
    rows = [json.loads(line) for line in Path(request.params["rows"]).read_bytes().splitlines()]
    texts = [prompts.evaluation_prompt(r["instruction"]) for r in rows]
    lengths = [len(base.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    shots = prompts.load_few_shot(Path(request.params["shots"]))
    judged = judge_pairs(open_engine(request), shots, [(r["q"], r["a"]) for r in rows])
    trainer = SFTTrainer(
        model=base.model,
        args=SFTConfig(output_dir=str(request.work), max_steps=10),
        train_dataset=Dataset.from_list([{"text": text} for text in texts]),
        peft_config=config,
    )
    loss = trainer.train().training_loss
    labels = [LABELS[0] if j["logp_a"] > j["logp_b"] else LABELS[1] for j in judged]
    answers = {"A": labels.count("A"), "B": labels.count("B")}
    right = sum(verifiers.score(item, "Yes").success for item in request.params["items"])
    return PhaseResult(
        metrics=(Metric("rate", right / len(rows), n=len(rows), successes=right),),
        artifacts=(),
        summary={
            **record,
            "labels": answers,
            "r": config.r,
            "longest": max(lengths),
            "loss": loss,
        },
    )
