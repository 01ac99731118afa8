"""Tokens a second of the engine against transformers' own batched sampling, and what parts cost.

    python benchmarks/generation.py [MODEL_FOLDER]

The model is the quickstart's, as ``make quickstart`` leaves it under workspace/models/base, unless
a folder is given. Both sides get the quickstart's prompts and sampling, the same batch and limit of
new tokens, and are counted alike: what stands before the end of a row. Each is run twice, in turn.
"""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from setting import ROOT, find_setting, machine
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.utils import logging as hf_logging

from phases import prompts
from phases.base_model import BaseModel, load_base_model
from phases.clean import STOP_STRINGS
from phases.engines import Sampling
from phases.generation import PilotParams
from phases.prompts import load_few_shot
from phases.transformers_engine import TransformersEngine, _Draw
from runbook.artifacts import read_jsonl
from runbook.report.safe_text import columns

BATCH: Final = 32
BATCHES: Final = (16, 32, 64, 128)
NEW_TOKENS: Final = 12
ROUNDS: Final = 2
REQUIRED: Final = 0.95


@dataclass(frozen=True)
class Case:
    """What both sides are asked for."""

    name: str
    prompts: list[str]
    sampling: Sampling
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timing:
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class Unshared(TransformersEngine):
    """The engine that reads every prompt whole."""

    def _shared(self, rows: Sequence[list[int]], new: int) -> list[int]:  # noqa: ARG002 - as above it
        return []


def main(arguments: Sequence[str]) -> int:
    folder, plan = find_setting(arguments, __doc__)
    base = load_base_model(folder, plan.model, plan.engine)
    hf_logging.set_verbosity_error()
    pilot = next(step for step in plan.steps if step.name == "pilot")
    cases = make_cases(PilotParams.model_validate(pilot.params))
    print(machine())
    print(f"{BATCH} rows a batch, {NEW_TOKENS} new tokens at the most")
    worst = compare(base, cases)
    tell_parts(base, cases)
    word = "met" if worst >= REQUIRED else "not met"
    print(
        f"\nrequired: at least {REQUIRED} of transformers' own batched sampling: {word}, "
        f"{worst:.2f} in the worst case"
    )
    return 0


def make_cases(params: PilotParams) -> list[Case]:
    """Lists with and without the penalty, responses with and without stop strings."""
    shots = load_few_shot(Path(params.few_shot))
    lists = [prompts.instruction_list_prompt(shots, seed) for seed in range(max(BATCHES))]
    items = read_jsonl(ROOT / "specs" / "probe" / "instructions.jsonl")
    texts = sorted((str(item["text"]) for item in items), key=len)
    first = (len(texts) - BATCH) // 2
    responses = [prompts.response_prompt(shots, text) for text in texts[first:] + texts[:first]]
    listed = replace(params.instructions.sampling(), max_new_tokens=NEW_TOKENS)
    answered = replace(params.sampling(), max_new_tokens=NEW_TOKENS)
    return [
        Case("lists, penalty 1.1", lists, replace(listed, repetition_penalty=1.1)),
        Case("lists, no penalty", lists, replace(listed, repetition_penalty=1.0)),
        Case("responses, no penalty", responses, replace(answered, repetition_penalty=1.0)),
        Case(
            "responses, stop strings",
            responses,
            replace(answered, repetition_penalty=1.0),
            STOP_STRINGS,
        ),
    ]


def compare(base: BaseModel, cases: Iterable[Case]) -> float:
    """Tell every case; the worst of their median ratios is returned."""
    engine = TransformersEngine(base)
    built = warm_up(engine, base)
    rows, ratios = [], []
    for case in cases:
        ours: list[Timing] = []
        plain: list[Timing] = []
        sides: list[tuple[list[Timing], Callable[[int], Timing]]] = [
            (ours, lambda seed, case=case: run_ours(engine, case, seed)),  # type: ignore[misc]  # bound now
            (plain, lambda seed, case=case: run_plain(base, case, seed)),  # type: ignore[misc]  # bound now
        ]
        for number in range(ROUNDS):
            print(f"... {case.name}, round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
            for found, run in sides if number % 2 == 0 else reversed(sides):
                found.append(run(number))
        pairs = [a.rate / b.rate for a, b in zip(ours, plain, strict=True)]
        ratios.append(median(pairs))
        rows.append(
            (
                case.name,
                f"{median(t.rate for t in ours):.1f}",
                f"{median(t.rate for t in plain):.1f}",
                f"{median(pairs):.2f}",
                ", ".join(f"{ratio:.2f}" for ratio in pairs),
                f"{sum(t.tokens for t in ours)} / {sum(t.tokens for t in plain)}",
            )
        )
    head = ("asked for", "engine tok/s", "plain tok/s", "ratio", "each round", "tokens")
    print_table(head, rows)
    print(f"transformers' stop_strings took {built:.1f} s more to build, once; not counted above")
    return min(ratios)


def warm_up(engine: TransformersEngine, base: BaseModel) -> float:
    """Seconds that transformers takes to build its stop strings' tables, which it then keeps."""
    short = Case("warm-up", ["One, two,"] * 2, Sampling(1, temperature=0.5))
    run_ours(engine, short, 0)
    without = run_plain(base, short, 0)
    return run_plain(base, replace(short, stop=STOP_STRINGS), 0).seconds - without.seconds


def run_ours(engine: TransformersEngine, case: Case, seed: int, rows: int = BATCH) -> Timing:
    begun = time.perf_counter()
    made = engine.generate(case.prompts[:rows], case.sampling, case.stop, seed)
    return Timing(sum(g.tokens for g in made), time.perf_counter() - begun)


def run_plain(base: BaseModel, case: Case, seed: int, **settings: Any) -> Timing:
    """With transformers' own processors, sampling and stop rule; greedy at temperature 0."""
    torch.manual_seed(seed)
    s = case.sampling
    if s.temperature:
        settings |= {"temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k}
    if s.repetition_penalty != 1.0:
        settings["repetition_penalty"] = s.repetition_penalty
    if case.stop:
        settings |= {"stop_strings": list(case.stop), "tokenizer": base.tokenizer}
    begun = time.perf_counter()
    ids, mask = padded(base, case.prompts[:BATCH])
    with torch.inference_mode():
        out = base.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=s.max_new_tokens,
            do_sample=s.temperature > 0,
            pad_token_id=base.pad_id,
            eos_token_id=base.eos_id,
            **settings,
        )
    made = out[:, ids.shape[1] :].tolist()
    for row in made:
        base.decode(row)
    return Timing(sum(count(base, row) for row in made), time.perf_counter() - begun)


def padded(base: BaseModel, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [base.encode(text) for text in texts]
    longest = max(len(row) for row in rows)
    ids = [[base.pad_id] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=base.device), torch.tensor(mask, device=base.device)


def count(base: BaseModel, row: list[int]) -> int:
    """Tokens before the end of the text, or before the padding of a row that was stopped."""
    if base.eos_id in row:
        return row.index(base.eos_id)
    length = len(row)
    while length and row[length - 1] == base.pad_id:
        length -= 1
    return length


def tell_parts(base: BaseModel, cases: Sequence[Case]) -> None:
    print("... parts", file=sys.stderr, flush=True)
    engine, unshared = TransformersEngine(base), Unshared(base)
    lists, responses = cases[1], cases[2]
    greedy = replace(lists, sampling=Sampling(NEW_TOKENS))
    pairs: list[tuple[str, Callable[[], Timing], Callable[[], Timing]]] = [
        (
            "shared start read once, lists",
            lambda: run_ours(engine, lists, 0),
            lambda: run_ours(unshared, lists, 0),
        ),
        (
            "shared start read once, responses",
            lambda: run_ours(engine, responses, 0),
            lambda: run_ours(unshared, responses, 0),
        ),
        (
            "greedy against sampling, engine",
            lambda: run_ours(engine, greedy, 0),
            lambda: run_ours(engine, lists, 0),
        ),
        (
            "static cache against dynamic, greedy, plain",
            lambda: run_plain(base, greedy, 0, cache_implementation="static"),
            lambda: run_plain(base, greedy, 0),
        ),
    ]
    rows = []
    for name, changed, reference in pairs:
        found = [(changed(), reference()), tuple(reversed((reference(), changed())))]
        rows.append((name, f"{median(a.rate / b.rate for a, b in found):.2f}"))
    print_table(("what changes", "tokens a second, times"), rows)
    tell_batches(engine, cases[1:3])
    tell_choosing(base, lists)


def tell_batches(engine: TransformersEngine, cases: Iterable[Case]) -> None:
    rows = []
    for case in cases:
        sizes = [size for size in BATCHES if size <= len(case.prompts)]
        rates = {size: run_ours(engine, case, 0, size).rate for size in sizes}
        rows += [
            (case.name, str(size), f"{rate:.1f}", f"{rate / rates[BATCH]:.2f}")
            for size, rate in rates.items()
        ]
    print_table(("asked for", "rows a batch", "tok/s", f"of {BATCH} rows"), rows)


def tell_choosing(base: BaseModel, case: Case) -> None:
    """One step's choice of tokens on the same logits, without the forward pass."""
    ids, mask = padded(base, case.prompts[:BATCH])
    with torch.inference_mode():
        logits = base.model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
    s = case.sampling
    # In the order of transformers: each acts on the whole vocabulary.
    warpers = LogitsProcessorList(
        [
            TemperatureLogitsWarper(s.temperature),
            TopKLogitsWarper(s.top_k),
            TopPLogitsWarper(s.top_p),
        ]
    )
    draw = _Draw(s, BATCH, 0, base.device)
    ways: dict[str, Callable[[], Any]] = {
        "engine: top_k, then the rest on what is left": lambda: draw(ids, logits, range(BATCH)),
        "plain: all of it on the whole vocabulary": lambda: (
            warpers(ids, logits.float()).softmax(dim=-1).multinomial(1)
        ),
        "greedy": lambda: logits.float().argmax(dim=-1),
    }
    found = {name: median(seconds(way) for _ in range(5)) for name, way in ways.items()}
    least = min(found.values())
    print_table(
        ("choosing a token", "ms a step", "times"),
        [(name, f"{1000 * took:.1f}", f"{took / least:.1f}") for name, took in found.items()],
    )


def seconds(way: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    way()
    return time.perf_counter() - begun


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("\n" + "\n".join(columns([head, *rows])), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
