"""One way to score a model on the held-out set: same items, batches, prompt, stop rule, scorer.

Baseline and tuned model both go through ``score_batches`` with the same ``Conditions``; only then
are their outcomes comparable. Greedy text depends on the batch, so the batches are pinned: items
sorted by length, then id.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from phases import clean, held_out, prompts, verifiers
from phases.engines import Engine, Sampling
from phases.records import Row, batch, chunks
from runbook.contract import PhaseRequest

Item = verifiers.HeldOutItem
GREEDY: Final = 0.0


class Conditions(BaseModel):
    """What must be equal for two scorings to be paired."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    held_out: str
    per_kind: int = Field(ge=1)
    """The first so many items of each kind, in file order."""
    max_new_tokens: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    quantization: str = Field(pattern="^(none|nf4)$")

    def check_files(self) -> None:
        """Read the held-out set; raises ConfigError for one that is no use, or too small."""
        items_of(self)


def items_of(conditions: Conditions) -> tuple[Item, ...]:
    """The fixed subset of the held-out set."""
    return held_out.subset(held_out.load_items(Path(conditions.held_out)), conditions.per_kind)


def batches_of(conditions: Conditions, items: Sequence[Item]) -> list[list[Item]]:
    """The pinned batches: what else stands in one changes the text of an item."""
    ordered = sorted(items, key=lambda i: (len(i.instruction), i.id))
    groups = chunks([{"item": item} for item in ordered], conditions.batch_size)
    return [[entry["item"] for entry in part] for part in groups]


def score_batches(
    request: PhaseRequest,
    engine: Callable[[], Engine],
    conditions: Conditions,
    groups: Sequence[Sequence[Item]],
    stream: str,
    ask: Callable[[str], str] = prompts.evaluation_prompt,
) -> list[Row]:
    """One row an item, sorted by id: raw text, response, and the verifier's findings.

    Args:
        request: the step's.
        engine: opens the engine; not called where the journal holds every batch.
        conditions: of the scoring.
        groups: the items, batch by batch.
        stream: what the batches' keys begin with.
        ask: makes the prompt of an instruction.
    """
    sampling = Sampling(conditions.max_new_tokens, GREEDY)
    rows: list[Row] = []
    for number, part in enumerate(groups):

        def make(seed: int, asked: Sequence[Item] = part) -> list[Row]:
            texts = [ask(item.instruction) for item in asked]
            made = engine().generate(texts, sampling, clean.STOP_STRINGS, seed)
            return [score_text(item, g.text, g.tokens) for item, g in zip(asked, made, strict=True)]

        rows += batch(request, f"{stream}/{number:04d}", make)
        request.channel.progress(
            stage=stream,
            done=number + 1,
            total=len(groups),
            tokens=sum(int(r["tokens"]) for r in rows[-len(part) :]),
        )
    return sorted(rows, key=lambda r: str(r["id"]))


def score_text(item: Item, raw: str, tokens: int) -> Row:
    """A raw continuation as a row of outcomes: cut by the one stop rule, then verified."""
    response = clean.cut(raw).text
    found = verifiers.score(item, response)
    return {
        "id": item.id,
        "kind": item.kind,
        "instruction": item.instruction,
        "raw": raw,
        "response": response,
        "tokens": tokens,
        "success": found.success,
        "format_ok": found.format_ok,
        "content_ok": found.content_ok,
        "failures": list(found.failures),
    }
