"""Step, phase C: the base model's rate on the held-out set, before anything is spent on training.

With no gap left to close, training cannot show a gain. The rows made here are the base's side of
the paired evaluation; they are not made a second time.
"""

from typing import Final

from phases import verifiers
from phases.engines import open_engine
from phases.records import Row, parse_params
from phases.scoring import Conditions, items_of, score_items
from runbook.artifacts import describe, sha256_file, write_json, write_jsonl
from runbook.contract import Metric, PhaseRequest, PhaseResult

PARAMS: Final = "phases.scoring:Conditions"
METRICS: Final = (
    "base_rate",
    "held_out_items",
    "references_failing",
)


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifacts ``outcomes`` (a row an item) and ``conditions``."""
    conditions = parse_params(Conditions, request)
    items = items_of(conditions)
    engine = open_engine(request, quantization=conditions.quantization)
    rows = score_items(request, engine, conditions, items, "base")
    outcomes, stated = request.output / "outcomes.jsonl", request.output / "conditions.json"
    write_jsonl(outcomes, rows)
    write_json(
        stated,
        {
            **conditions.model_dump(exclude={"held_out"}),
            "held_out_sha256": sha256_file(request.workspace / conditions.held_out),
            **engine.stated(),
            "engine": {k: v for k, v in request.engine.items() if k != "threads"},
        },
    )
    return PhaseResult(
        metrics=_metrics(items, rows, outcomes.relative_to(request.workspace).as_posix()),
        artifacts=(
            describe("outcomes", outcomes, request.workspace),
            describe("conditions", stated, request.workspace),
        ),
        tokens=sum(int(r["tokens"]) for r in rows),
        summary={"by kind": by_kind(rows)},
        flagged=tuple(_shown(r) for r in rows if not r["success"])[:10],
    )


def _metrics(
    items: tuple[verifiers.HeldOutItem, ...], rows: list[Row], evidence: str
) -> tuple[Metric, ...]:
    right = sum(r["success"] for r in rows)
    references = sum(not verifiers.score(item, item.reference).success for item in items)
    return (
        Metric(
            "base_rate",
            right / len(rows),
            n=len(rows),
            successes=right,
            denominator="held-out items",
            evidence=evidence,
        ),
        Metric("held_out_items", float(len(rows)), n=len(rows)),
        Metric("references_failing", float(references), n=len(items)),
    )


def by_kind(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Rates of success, format and content per kind, each in [0, 1]."""
    found = {}
    for kind in sorted({str(r["kind"]) for r in rows}):
        part = [r for r in rows if r["kind"] == kind]
        found[kind] = {
            "n": float(len(part)),
            **{
                aspect: sum(bool(r[aspect]) for r in part) / len(part)
                for aspect in ("success", "format_ok", "content_ok")
            },
        }
    return found


def _shown(row: Row) -> Row:
    return {f: row[f] for f in ("id", "instruction", "raw", "response", "failures")}
