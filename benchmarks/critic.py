"""Items a second of the critic's reading against one full forward each, and what it flips.

    python benchmarks/critic.py [MODEL_FOLDER]

The model is the quickstart's, as ``make quickstart`` leaves it under workspace/models/base, unless
a folder is given. The critic reads the shared prefix once and of each item the last position alone;
the naive way reads prefix and item whole, one at a time, with logits for all positions. The speed
is measured on the shipped prompt, the labels against a model in fp32 on its first labelled
instructions, because the naive way takes seconds an item on the whole.
"""

import gc
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import torch
from setting import ROOT, find_setting, machine

from phases import prompts
from phases.base_model import BaseModel, load_base_model
from phases.critic import LABELS
from phases.prompts import FewShot, load_few_shot
from phases.transformers_engine import TransformersEngine
from runbook.artifacts import read_jsonl
from runbook.plan import Plan
from runbook.report.safe_text import columns

BATCH: Final = 32
ITEMS: Final = 160
NAIVE_ITEMS: Final = 8
"""Read the naive way on the shipped prompt; each of them takes as long as the others."""
SHOTS: Final = 16
"""Labelled instructions in the prompt on which labels are compared."""
FASTER: Final = 9.0
POINTS: Final = 1.0


class HeadOfModel(TransformersEngine):
    """The critic with logits from the model's own head, in the model's own precision."""

    def _head_logps(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = self.base.model.get_output_embeddings()(hidden)
        return logits.float().log_softmax(dim=-1).gather(1, ids)


def main(arguments: Sequence[str]) -> int:
    folder, plan = find_setting(arguments, __doc__)
    base = load_base_model(folder, plan.model, plan.engine)
    shots = load_few_shot(ROOT / "specs" / "few_shot.yaml")
    items = read_jsonl(ROOT / "specs" / "probe" / "instructions.jsonl")
    # Spread over the file, whose rows were written in several parts.
    chosen = [items[i * len(items) // ITEMS] for i in range(min(ITEMS, len(items)))]
    suffixes = [prompts.instruction_critic_suffix(str(item["text"])) for item in chosen]
    print(machine())
    times = tell_speed(base, prefix_of(shots), suffixes)
    points = tell_labels(base, folder, plan, prefix_of(first_of(shots)), suffixes)
    print(
        f"\nrequired: at least {FASTER:g} times the naive way's speed: "
        f"{'met' if times >= FASTER else 'not met'}, {times:.1f} times"
    )
    print(
        f"required: flips at most {POINTS:g} percentage point more often than the naive way: "
        f"{'met' if points <= POINTS else 'not met'}, {points:+.2f} points"
    )
    return 0


def prefix_of(shots: FewShot) -> str:
    return prompts.instruction_critic_prefix(shots, *LABELS)


def first_of(shots: FewShot) -> FewShot:
    return shots.model_copy(update={"labelled_instructions": shots.labelled_instructions[:SHOTS]})


def tell_speed(base: BaseModel, prefix: str, suffixes: Sequence[str]) -> float:
    """How many times the naive way's speed the critic has, the prefix's own reading included."""
    print("... speed", file=sys.stderr, flush=True)
    engine = TransformersEngine(base)
    naive_log_odds(base, ["One, two,"])
    few = [prefix + suffix for suffix in suffixes[:NAIVE_ITEMS]]
    before = timed_naive(base, few[: NAIVE_ITEMS // 2])
    begun = time.perf_counter()
    log_odds(engine, prefix, suffixes)
    ours = len(suffixes) / (time.perf_counter() - begun)
    begun = time.perf_counter()
    log_odds(engine, prefix, suffixes)
    again = len(suffixes) / (time.perf_counter() - begun)
    after = timed_naive(base, few[NAIVE_ITEMS // 2 :])
    naive = NAIVE_ITEMS / (before + after)
    tokens = [len(base.encode(text)) for text in (prefix, few[0])]
    print(
        f"shipped prompt: a prefix of {tokens[0]} tokens; the naive way reads {tokens[1]} an item"
    )
    print_table(
        ("reading", "items", "items/s", "of naive"),
        [
            ("naive", str(NAIVE_ITEMS), f"{naive:.3f}", "1.0"),
            ("critic, first time", str(len(suffixes)), f"{ours:.2f}", f"{ours / naive:.1f}"),
            ("critic, prefix kept", str(len(suffixes)), f"{again:.2f}", f"{again / naive:.1f}"),
        ],
    )
    return ours / naive


def timed_naive(base: BaseModel, texts: Sequence[str]) -> float:
    begun = time.perf_counter()
    naive_log_odds(base, texts)
    return time.perf_counter() - begun


def log_odds(engine: TransformersEngine, prefix: str, suffixes: Sequence[str]) -> list[float]:
    found: list[float] = []
    for start in range(0, len(suffixes), BATCH):
        read = engine.label_logps(prefix, suffixes[start : start + BATCH], LABELS)
        found += [first - second for first, second in read]
    return found


def naive_log_odds(
    base: BaseModel, texts: Sequence[str], *, last_only: bool = False
) -> list[float]:
    """One forward a text, logits for all positions unless it is only to be right."""
    forms = [
        [base.encode(form, continues=True)[0] for form in (label, f" {label}")] for label in LABELS
    ]
    found = []
    for text in texts:
        ids = torch.tensor([base.encode(text)], device=base.device)
        with torch.inference_mode():
            logits = base.model(input_ids=ids, logits_to_keep=int(last_only)).logits[0, -1]
        logps = logits.float().log_softmax(dim=-1)
        first, second = (float(logps[form].logsumexp(0)) for form in forms)
        found.append(first - second)
    return found


def tell_labels(
    base: BaseModel, folder: Path, plan: Plan, prefix: str, suffixes: Sequence[str]
) -> float:
    """Percentage points by which the critic flips more labels than the naive way does."""
    texts = [prefix + suffix for suffix in suffixes]
    print("... labels, bf16", file=sys.stderr, flush=True)
    begun = time.perf_counter()
    ours = log_odds(TransformersEngine(base), prefix, suffixes)
    short = time.perf_counter() - begun
    head = log_odds(HeadOfModel(base), prefix, suffixes)
    begun = time.perf_counter()
    naive = naive_log_odds(base, texts)
    took = time.perf_counter() - begun
    del base
    gc.collect()
    print("... labels, fp32", file=sys.stderr, flush=True)
    exact = load_base_model(folder, {**plan.model, "dtype": "float32"}, plan.engine)
    reference = naive_log_odds(exact, texts, last_only=True)
    rates = {
        "naive": flips(naive, reference),
        "critic": flips(ours, reference),
        "critic, the model's own bf16 head": flips(head, reference),
    }
    sides = (naive, ours, head)
    print(
        f"\nlabels on {len(texts)} items, the first {SHOTS} labelled instructions as the prompt; "
        f"there the naive way reads {len(texts) / took:.2f} items/s, the critic "
        f"{len(texts) / short:.2f} ({took / short:.1f} times)"
    )
    print_table(
        ("reading, bf16", "flips", "of items", "median off by", "most off by", "ties"),
        [
            (
                name,
                str(count),
                f"{count / len(texts):.4f}",
                f"{median(_gaps(side, reference)):.4f}",
                f"{max(_gaps(side, reference)):.4f}",
                str(sum(value == 0 for value in side)),
            )
            for (name, count), side in zip(rates.items(), sides, strict=True)
        ],
    )
    changed = flips(ours, head)
    print(
        f"the exact label head changes {changed} of {len(texts)} labels; a log-odds by "
        f"{median(_gaps(ours, head)):.4f} in the median, {max(_gaps(ours, head)):.4f} at the most"
    )
    close = [abs(value) for value, other in zip(reference, ours, strict=True) if value * other <= 0]
    if close:
        print(f"the critic's flips: an fp32 log-odds of at most {max(close):.4f} from zero")
    return 100 * (rates["critic"] - rates["naive"]) / len(texts)


def flips(found: Sequence[float], reference: Sequence[float]) -> int:
    """Items with another label; a log-odds of zero has none of the two, the reference's second."""
    return sum((a > 0) != (b > 0) for a, b in zip(found, reference, strict=True))


def _gaps(found: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(found, reference, strict=True)]


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("\n" + "\n".join(columns([head, *rows])), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
