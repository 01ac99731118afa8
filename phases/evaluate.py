"""Step, phase C: base and tuned model on the same items, quantized alike, scored alike.

The base's outcomes are the baseline's own rows, made under the same conditions, which is checked.
Significance is the gate's business: this step lays down the pairs.
"""

import json
from typing import Final

from pydantic import BaseModel, ConfigDict

from phases.baseline import by_kind
from phases.engines import open_engine
from phases.records import Row, parse_params
from phases.scoring import Conditions, items_of, score_items
from runbook.artifacts import describe, read_jsonl, sha256_file, write_jsonl
from runbook.contract import Artifact, Metric, PhaseRequest, PhaseResult
from runbook.errors import ConfigError, CorruptError

PARAMS: Final = "phases.evaluate:EvaluateParams"
METRICS: Final = (
    "paired_outcomes",
    "tuned_rate",
    "texts_changed",
    "mcnemar_p",
    "exact_p",
    "lift",
    "lift_ci_width",
    "base_ci_width",
    "tuned_ci_width",
    "kinds_worse",
)
"""The last seven the gate derives from the pairs."""


class EvaluateParams(BaseModel):
    """All else is the baseline's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    held_out: str


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifacts ``outcomes`` (tuned rows) and ``pairs`` (one row an item)."""
    conditions = _conditions(request, parse_params(EvaluateParams, request))
    base = read_jsonl(request.workspace / request.inputs["baseline"]["outcomes"].path)
    adapter = request.workspace / tuned_adapter(request).path
    engine = open_engine(request, quantization=conditions.quantization, adapter=adapter)
    items = items_of(conditions)
    tuned = score_items(request, engine, conditions, items, "tuned")
    pairs = _paired(base, tuned)
    outcomes, paired = request.output / "outcomes.jsonl", request.output / "pairs.jsonl"
    write_jsonl(outcomes, tuned)
    write_jsonl(paired, pairs)
    right = sum(r["success"] for r in tuned)
    evidence = paired.relative_to(request.workspace).as_posix()
    return PhaseResult(
        metrics=(
            Metric("paired_outcomes", float(len(pairs)), n=len(pairs), evidence=evidence),
            Metric(
                "tuned_rate", right / len(tuned), n=len(tuned), successes=right, evidence=evidence
            ),
            Metric("texts_changed", float(_changed(base, tuned)), n=len(tuned)),
        ),
        artifacts=(
            describe("outcomes", outcomes, request.workspace),
            describe("pairs", paired, request.workspace),
        ),
        tokens=sum(int(r["tokens"]) for r in tuned),
        summary={"base": by_kind(base), "tuned": by_kind(tuned)},
        flagged=tuple(r for r in pairs if r["base"] and not r["tuned"])[:10],
        judged_file="evaluation.json",
    )


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


def _paired(base: list[Row], tuned: list[Row]) -> list[Row]:
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
