"""Step, phase C: base and tuned model on the same items, quantized alike, scored alike.

The base's outcomes are the baseline's own rows, made under the same conditions, which is checked.
So is the scorer: it must be the one that the baseline certified, and read known answers as there.
Significance and confounds are the gate's business: this step lays down the pairs, the same pairs
read in other ways, and the controls.
"""

import json
import random
from collections.abc import Sequence
from functools import partial
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from phases import evaluation_controls as controls
from phases.baseline import by_kind
from phases.certificates import certified
from phases.engines import open_engine
from phases.held_out import load_items
from phases.length_question import length_question
from phases.records import Row, parse_params
from phases.scoring import Conditions, batches_of, items_of, score_batches
from phases.variants import AS_SCORED, variant_readings
from runbook.artifacts import describe, read_jsonl, sha256_file, write_jsonl
from runbook.contract import Artifact, Metric, PhaseRequest, PhaseResult
from runbook.errors import ConfigError, CorruptError

PARAMS: Final = "phases.evaluate:EvaluateParams"
METRICS: Final = (
    "paired_outcomes",
    "tuned_rate",
    "texts_changed",
    "base_outcomes_changed",
    "tuned_outcomes_changed",
    "aa_flips",
    "aa_same_batch_changed",
    "damaged_rate",
    "adapter_logit_shift",
    "variant_readings",
    "scored_responses",
    "scorer_answers_changed",
    "mcnemar_p",
    "exact_p",
    "lift",
    "lift_ci_width",
    "base_ci_width",
    "tuned_ci_width",
    "kinds_worse",
    "aa_p",
    "aa_flip_rate",
    "damaged_p",
    "damage_unseen",
    "confounded",
    "scorer_sensitivity",
    "scorer_specificity",
)
"""From ``mcnemar_p`` on, the gate derives them."""
_SHOWN: Final = 10
"""Rows of each kind that a reviewer is shown."""


class EvaluateParams(BaseModel):
    """All else is the baseline's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    held_out: str
    aa_items: int = Field(default=32, ge=0)
    """At least so many items, in whole batches, are asked of the base again."""
    damaged_items: int = Field(default=64, ge=0)
    """So many items are asked of the tuned model with its output layer misled."""
    ask_if_matched_below: float | None = Field(default=None, ge=0, le=1)
    """A review is asked where pairs of like length show less than this share of the lift."""


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifacts ``outcomes`` (tuned rows), ``pairs``, ``variants``, ``controls``.

    And what the scorer says of known answers: ``scored`` of labelled responses, ``scorer`` of all.
    """
    params = parse_params(EvaluateParams, request)
    conditions = _conditions(request, params)
    items = items_of(conditions)
    base = read_jsonl(request.workspace / request.inputs["baseline"]["outcomes"].path)
    # Opened one after the other: two of them may not fit into memory together.
    plain = partial(open_engine, request, quantization=conditions.quantization)
    same, other = controls.repeat_base(request, plain, conditions, items, params.aa_items)
    before = controls.read_references(request, plain, items, "base")
    adapted = partial(plain, adapter=request.workspace / tuned_adapter(request).path)
    tuned = score_batches(request, adapted, conditions, batches_of(conditions, items), "tuned")
    after = controls.read_references(request, adapted, items, "tuned")
    damaged = controls.score_damaged(request, adapted, conditions, items, params.damaged_items)

    pairs, variants = pair_rows(base, tuned), variant_readings(items, base, tuned)
    paths = {
        name: (request.output / f"{name}.jsonl").relative_to(request.workspace).as_posix()
        for name in ("outcomes", "pairs", "variants", "controls", "scored", "scorer")
    }
    repeated, aa = controls.repeat_metrics(base, same, other, paths["controls"])
    hurt, worse = controls.damaged_metrics(tuned, damaged, paths["controls"])
    shift, moved = controls.shift_metric(before, after, paths["controls"])
    rows_of_controls = [*aa, *worse, *moved]
    every_item = (*load_items(request.workspace / conditions.held_out), *items)
    labelled, answers = controls.reread_answers(request, every_item)
    files = {
        "outcomes": tuned,
        "pairs": pairs,
        "variants": variants,
        "controls": rows_of_controls,
        "scored": labelled,
        "scorer": answers,
    }
    for name, rows in files.items():
        write_jsonl(request.workspace / paths[name], rows)
    right, raw = sum(r["success"] for r in tuned), _raw_rows(base, tuned)
    evidence = paths["pairs"]
    metrics = certified(
        request,
        (
            Metric("paired_outcomes", float(len(pairs)), n=len(pairs), evidence=evidence),
            Metric(
                "tuned_rate", right / len(tuned), n=len(tuned), successes=right, evidence=evidence
            ),
            _count("texts_changed", _changed(base, tuned), len(tuned), paths["outcomes"]),
            *(
                _count(f"{side}_outcomes_changed", controls.changed_outcomes(items, of), n, path)
                for side, of, n, path in (
                    ("base", base, len(base), request.inputs["baseline"]["outcomes"].path),
                    ("tuned", tuned, len(tuned), paths["outcomes"]),
                )
            ),
            *repeated,
            hurt,
            shift,
            Metric(
                "variant_readings", float(len(variants)), n=len(items), evidence=paths["variants"]
            ),
            _count("scored_responses", len(labelled), len(labelled), paths["scored"]),
        ),
    )
    return PhaseResult(
        metrics=controls.scorer_holds(metrics, answers, paths["scorer"]),
        artifacts=tuple(
            describe(name, request.workspace / path, request.workspace)
            for name, path in paths.items()
        ),
        tokens=sum(int(r["tokens"]) for r in (*tuned, *same, *other, *damaged)),
        summary={"base": by_kind(base), "tuned": by_kind(tuned)},
        flagged=_disagreeing(raw),
        samples=_agreeing(raw, request.seed),
        question=_question(variants, params),
        judged_file="evaluation.json",
    )


def _question(variants: Sequence[Row], params: EvaluateParams) -> str:
    if params.ask_if_matched_below is None:
        return ""
    scored = [row for row in variants if row["variant"] == AS_SCORED]
    return length_question(scored, params.ask_if_matched_below)


def _disagreeing(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Ten items that one side alone got right, lost and gained ones: a scorer may err on either."""
    lost = [r for r in rows if r["base"] and not r["tuned"]]
    gained = [r for r in rows if r["tuned"] and not r["base"]]
    half = _SHOWN // 2
    return (*lost[:half], *gained[:half], *lost[half:], *gained[half:])[:_SHOWN]


def _agreeing(rows: Sequence[Row], seed: int) -> tuple[Row, ...]:
    """Ten of the items that both sides got right, or neither, drawn at random."""
    same = [r for r in rows if r["base"] == r["tuned"]]
    return tuple(random.Random(seed).sample(same, min(_SHOWN, len(same))))  # noqa: S311 - no secret


def _raw_rows(base: Sequence[Row], tuned: Sequence[Row]) -> list[Row]:
    """Both sides of each item as the model wrote them, with what the scorer held against them."""
    return [
        {
            "id": b["id"],
            "kind": b["kind"],
            "instruction": b["instruction"],
            **{
                f"{side}{what}": row[field]
                for side, row in (("base", b), ("tuned", t))
                for what, field in (("", "success"), ("_raw", "raw"), ("_failures", "failures"))
            },
        }
        for b, t in zip(base, tuned, strict=True)
    ]


def _count(name: str, count: int, n: int, evidence: str) -> Metric:
    return Metric(name, float(count), n=n, evidence=evidence)


def tuned_adapter(request: PhaseRequest) -> Artifact:
    """The artifact ``adapter`` of the one input step that has one, be it sft or dpo.

    Raises:
        ConfigError: no input step has one, or more than one does.
    """
    trained = {step: a["adapter"] for step, a in request.inputs.items() if "adapter" in a}
    if len(trained) != 1:
        told = ", ".join(sorted(trained)) or "none"
        raise ConfigError(
            f"an evaluation needs one input step with an adapter, found {told}",
            where=request.step,
            fix="name exactly one training step, sft or dpo, among the step's inputs",
        )
    return next(iter(trained.values()))


def _conditions(request: PhaseRequest, params: EvaluateParams) -> Conditions:
    """The baseline's conditions, with the held-out file it scored.

    Raises:
        ConfigError: the held-out file is not the one the baseline scored.
    """
    stated = request.inputs["baseline"]["conditions"]
    found = json.loads((request.workspace / stated.path).read_text("utf-8"))
    fields = {k: v for k, v in found.items() if k in Conditions.model_fields}
    conditions = Conditions(held_out=params.held_out, **fields)
    if sha256_file(request.workspace / conditions.held_out) != found["held_out_sha256"]:
        raise ConfigError(
            "the held-out set is not the one the baseline was scored on",
            where=conditions.held_out,
            fix="give baseline and evaluation the same held_out file",
        )
    return conditions


def pair_rows(base: list[Row], tuned: list[Row]) -> list[Row]:
    """Two sides' outcomes, one row an item. Raises CorruptError: they are of other items."""
    if [r["id"] for r in base] != [r["id"] for r in tuned]:
        raise CorruptError(
            "base and tuned outcomes are not of the same items in the same order",
            where="evaluate",
            fix="the baseline's outcomes were changed: start in a new workspace",
        )
    return [
        {
            "id": b["id"],
            "kind": b["kind"],
            "instruction": b["instruction"],
            "base": b["success"],
            "tuned": t["success"],
            "base_format": b["format_ok"],
            "tuned_format": t["format_ok"],
            "base_content": b["content_ok"],
            "tuned_content": t["content_ok"],
            "base_response": b["response"],
            "tuned_response": t["response"],
        }
        for b, t in zip(base, tuned, strict=True)
    ]


def _changed(base: list[Row], tuned: list[Row]) -> int:
    """How many raw texts differ: none would mean that the adapter was never applied."""
    return sum(b["raw"] != t["raw"] for b, t in zip(base, tuned, strict=True))
