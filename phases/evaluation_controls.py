"""Controls around an evaluation that need the model: is the difference the adapter's, and no other?

The base once more must give what it gave; a damaged copy must score worse; the adapter must move
the probabilities. What the readings are worth is the gate's business. The scorer's known answers,
which need no model, are read once more too.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from phases import clean, prompts, scorer_controls, verifiers
from phases.certificates import READ_BY, SCORER
from phases.engines import Engine
from phases.records import Row, batch
from phases.scoring import Conditions, Item, batches_of, score_batches
from runbook.artifacts import read_jsonl
from runbook.contract import Instrument, Metric, PhaseRequest

SHIFT_ITEMS: Final = 16
"""References whose probabilities are compared with the adapter and without."""

Opener = Callable[[], Engine]


def changed_outcomes(items: Sequence[Item], rows: Sequence[Row]) -> int:
    """How many stored rows are not what item, stop rule and scorer make of their raw text now."""
    known = {item.id: item for item in items}
    return sum(not _holds(known.get(row["id"]), row) for row in rows)


def _holds(item: Item | None, row: Row) -> bool:
    if item is None or (item.instruction, item.kind) != (row["instruction"], row["kind"]):
        return False
    response = clean.cut(row["raw"]).text
    return bool(
        response == row["response"] and verifiers.score(item, response).success is row["success"]
    )


def repeat_base(
    request: PhaseRequest, base: Opener, conditions: Conditions, items: Sequence[Item], count: int
) -> tuple[list[Row], list[Row]]:
    """Whole batches of at least ``count`` items, made again as they were, and dealt anew."""
    batches = batches_of(conditions, items)
    draw = random.Random(request.seed)  # noqa: S311 - not secret
    draw.shuffle(batches)
    taken: list[list[Item]] = []
    while batches and sum(map(len, taken)) < count:
        taken.append(batches.pop())
    mixed = [item for part in taken for item in part]
    draw.shuffle(mixed)
    size = max(1, conditions.batch_size // 2)
    other = [mixed[at : at + size] for at in range(0, len(mixed), size)]
    return (
        score_batches(request, base, conditions, taken, "aa_same"),
        score_batches(request, base, conditions, other, "aa_other"),
    )


def repeat_metrics(
    rows: Sequence[Row], same: Sequence[Row], other: Sequence[Row], evidence: str
) -> tuple[tuple[Metric, ...], list[Row]]:
    """Base against base, and the rows that say so: ``control, id, kind, first, again, ...``."""
    known = {row["id"]: row for row in rows}
    texts = {row["id"]: row["raw"] for row in same}
    found = [
        {
            "control": "aa",
            "id": row["id"],
            "kind": row["kind"],
            "first": known[row["id"]]["success"],
            "again": row["success"],
            "same_batch_same_text": texts[row["id"]] == known[row["id"]]["raw"],
            "other_batch_same_text": row["raw"] == known[row["id"]]["raw"],
        }
        for row in other
    ]
    n = len(found)
    flips = sum(row["first"] is not row["again"] for row in found)
    changed = sum(not row["same_batch_same_text"] for row in found)
    return (
        Metric("aa_flips", float(flips), n=n, evidence=evidence),
        Metric("aa_same_batch_changed", float(changed) if n else None, n=n, evidence=evidence),
    ), found


def score_damaged(
    request: PhaseRequest, tuned: Opener, conditions: Conditions, items: Sequence[Item], count: int
) -> list[Row]:
    """A fixed draw of the items, answered by the tuned model with its output layer misled."""
    draw = random.Random(request.seed)  # noqa: S311 - not secret
    drawn = draw.sample(list(items), min(count, len(items)))
    engine = tuned()
    with engine.damaged():
        return score_batches(
            request, lambda: engine, conditions, batches_of(conditions, drawn), "damaged"
        )


def damaged_metrics(
    tuned: Sequence[Row], damaged: Sequence[Row], evidence: str
) -> tuple[Metric, list[Row]]:
    """The damaged copy's rate, and its rows: ``control, id, kind, undamaged, damaged``."""
    known = {row["id"]: row["success"] for row in tuned}
    found = [
        {
            "control": "damaged",
            "id": row["id"],
            "kind": row["kind"],
            "undamaged": known[row["id"]],
            "damaged": row["success"],
        }
        for row in damaged
    ]
    n, right = len(found), sum(row["damaged"] for row in found)
    rate = right / n if n else None
    return Metric("damaged_rate", rate, n, right, "damaged answers", evidence=evidence), found


def read_references(
    request: PhaseRequest, engine: Opener, items: Sequence[Item], side: str
) -> list[Row]:
    """Log-probabilities, in nats, of the tokens of a few references: ``id, logps``.

    One that is not finite is None.
    """
    step = max(1, len(items) // SHIFT_ITEMS)
    asked = list(items)[::step][:SHIFT_ITEMS]

    def make(_: int) -> list[Row]:
        texts = [
            (
                prompts.evaluation_prompt(item.instruction).removeprefix(prompts.INSTRUCTION),
                prompts.completion(item.reference),
            )
            for item in asked
        ]
        read = engine().text_logps(prompts.INSTRUCTION, texts)
        return [
            {"id": item.id, "logps": [p if math.isfinite(p) else None for p in pieces[0]]}
            for item, pieces in zip(asked, read, strict=True)
        ]

    return batch(request, f"references/{side}", make)


def shift_metric(
    base: Sequence[Row], tuned: Sequence[Row], evidence: str
) -> tuple[Metric, list[Row]]:
    """``adapter_logit_shift``: mean absolute change of a reference token's log-probability, nats.

    None where a probability is not finite. Its rows: ``control, id, base, tuned``, of each
    reference the tokens' log-probabilities under both.
    """
    rows = [
        {"control": "shift", "id": b["id"], "base": b["logps"], "tuned": t["logps"]}
        for b, t in zip(base, tuned, strict=True)
    ]
    pairs = [pair for row in rows for pair in zip(row["base"], row["tuned"], strict=True)]
    broken = any(None in pair for pair in pairs)
    moved = [] if broken else [abs(b - t) for b, t in pairs]
    return Metric(
        "adapter_logit_shift",
        sum(moved) / len(moved) if moved else None,
        n=len(pairs),
        denominator="reference tokens",
        evidence=evidence,
        note="a log-probability is not finite" if broken else "",
    ), rows


def reread_answers(request: PhaseRequest, items: Sequence[Item]) -> tuple[list[Row], list[Row]]:
    """What the scorer says now of each answer that the baseline's controls gave it.

    Of two items of one id the later counts. Returns the labelled responses as the baseline has
    them, read anew; and a row for each known answer: ``answer, id, kind, before, now``.
    """
    known = {item.id: item for item in items}
    stored = request.inputs["baseline"]

    def read(name: str) -> list[Row]:
        return read_jsonl(request.workspace / stored[name].path) if name in stored else []

    def says(item: str, text: str) -> bool:
        return item in known and verifiers.score(known[item], text).success

    labelled = [{**row, "scored": says(row["item"], row["response"])} for row in read("scored")]
    asked = [
        *(("labelled", row["item"], row) for row in read("scored")),
        *(("reference", row["id"], row) for row in read("references")),
        *(("shuffled", row["id"], row) for row in read("shuffled")),
    ]
    answers: list[Row] = [
        {
            "answer": of,
            "id": row["id"],
            "kind": row["kind"],
            "before": row["scored"],
            "now": says(item, row["response"]),
        }
        for of, item, row in asked
    ]
    for row in read("references"):
        passing = sum(says(row["id"], text) for text in scorer_controls.EMPTY)
        told = {"answer": "empty", "id": row["id"], "kind": row["kind"]}
        answers.append({**told, "before": row["empty_passing"], "now": passing})
    return labelled, answers


def scorer_holds(
    metrics: Sequence[Metric], answers: Sequence[Row], evidence: str
) -> tuple[Metric, ...]:
    """The metrics with ``scorer_answers_changed``; broken what a scorer read that changed.

    Without a known answer it has no value, and what the scorer read is not calibrated.
    """
    n, changed = len(answers), sum(row["before"] != row["now"] for row in answers)
    counted = Metric(
        "scorer_answers_changed", float(changed) if n else None, n=n, evidence=evidence
    )
    if n and not changed:
        return (*metrics, counted)
    state = Instrument.BROKEN if n else Instrument.UNCALIBRATED
    why = f"scorer: {changed} of {n} known answers are scored otherwise than by the baseline's"
    note = why if n else "scorer: the baseline kept no known answer of it"
    read = {name for name, by in READ_BY.items() if SCORER in by}
    return (
        *(
            replace(m, instrument=state, note=note)
            if m.name in read and m.instrument is Instrument.OK
            else m
            for m in metrics
        ),
        replace(counted, note=note),
    )
