"""The second review in the story of seed 004: tighter sampling, as advised, made it worse."""

from pathlib import Path
from typing import Literal

from gates.stats import wilson_bound
from runbook.contract import Attempt, EarlierReview, Json, Metric, Range, ReviewRequest
from runbook.testing import make_review_request

SAME = {
    "few_shot": "specs/stage1/few_shot.jsonl",
    "held_out": "specs/stage1/held_out.jsonl",
    "near_duplicate": 0.7,
    "raw_rows": 90,
    "target_kept": 150,
}


def criterion(metric: str, threshold: str, reading: Metric, verdict: str) -> dict[str, Json]:
    """As a ``CriterionResult`` stands in the journal."""
    how = "does not satisfy" if verdict == "fail" else "satisfies"
    return {
        "metric": metric,
        "kind": "rate" if reading.successes is not None else "census",
        "threshold": threshold,
        "verdict": verdict,
        "value": reading.value,
        "n": reading.n,
        "bound": _bound(reading, "lower" if threshold.startswith(">") else "upper"),
        "thin": False,
        "reason": f"{reading.value:.4g} {how} {threshold}",
        "evidence": reading.evidence,
    }


def _bound(reading: Metric, side: Literal["lower", "upper"]) -> float | None:
    if reading.successes is None or reading.n is None:
        return None
    return wilson_bound(reading.successes, reading.n, side=side)


def attempt(number: int, readings: tuple[Metric, ...], params: dict[str, Json]) -> Attempt:
    """The pilot, judged by the criteria of stage 1."""
    bounds = {
        "runaway_rate": "< 0.05",
        "token_limit_rate": "< 0.1",
        "pair_acceptance": ">= 0.5",
        "kept": ">= 100 and <= 200",
    }
    fine = {"pair_acceptance"}
    criteria = tuple(
        criterion(m.name, bounds[m.name], m, "pass" if m.name in fine else "fail")
        for m in readings
        if m.name in bounds
    )
    reasons = tuple(f"{c['metric']}: {c['reason']}" for c in criteria if c["verdict"] == "fail")
    return Attempt(number, 1, "fail", reasons, {**SAME, **params}, params, criteria, readings)


def readings(runaway: int, cleaned: int, limit: int, raw: int, kept: int) -> tuple[Metric, ...]:
    """What a pilot measures, from its counts."""
    evidence = "artifacts/data_gen_pilot_20251007_175412/candidates.jsonl"
    return (
        Metric("runaway_rate", runaway / cleaned, cleaned, runaway, "cleaned", evidence=evidence),
        Metric("token_limit_rate", limit / raw, raw, limit, "raw generations", evidence=evidence),
        Metric("pair_acceptance", 0.62, 50, 31, "pairs judged", evidence=evidence),
        Metric("kept", float(kept), kept, evidence=evidence),
        Metric("median_tokens", 61.5, kept, evidence=evidence),
    )


def example(workspace: Path) -> ReviewRequest:
    """Everything that a dossier can hold."""
    first = attempt(1, readings(14, 67, 47, 90, 43), {"temperature": 0.4, "max_new_tokens": 80})
    second = attempt(2, readings(35, 65, 51, 90, 13), {"temperature": 0.2, "max_new_tokens": 64})
    long = "The water cycle has four stages. First, the sun warms the sea and water evaporates. "
    flagged = [
        {
            "instruction": f"Explain the water cycle in {n} sentences.",
            "raw": f"{long * 3}Then it rains.\n###END###\nInstruction: name {n} rivers",
            "response": f"{long * 3}Then it rains.",
            "runaway": True,
            "hit_limit": n % 2 == 0,
            "fate": "runaway",
        }
        for n in range(1, 11)
    ]
    samples = [
        {"instruction": f"Name {n} colours.", "response": ", ".join(["red", "blue", "green"][:n])}
        for n in range(1, 11)
    ]
    return make_review_request(
        workspace,
        review_id="pilot-2",
        step="pilot",
        attempt=2,
        allowed=("retry", "extend", "stop", "needs_human", "override"),
        path="reviews/20251007_183000_pilot_2_gate_failed",
        criteria=second.criteria,
        reasons=second.reasons,
        metrics=second.metrics,
        attempts=(first, second),
        adjustable={"temperature": Range(0.1, 0.8), "max_new_tokens": Range(48, 160)},
        failures=2,
        retries=3,
        summary={"fates": {"runaway": 35, "rejected_pair": 17, "kept": 13}, "candidates": 90},
        flagged=tuple(flagged),
        samples=tuple(samples),
        question="Is a sample of 13 kept rows enough to compare the two attempts by?",
        earlier=(
            EarlierReview(
                "pilot-1",
                "pilot",
                1,
                "gate failed",
                "retry",
                {"temperature": 0.2, "max_new_tokens": 64},
                "Runaway comes of sampling that is too free; tighten it.",
                "openai gpt-5",
                "worse",
                (
                    "runaway_rate 0.209 -> 0.5385 (< 0.05)",
                    "token_limit_rate 0.5222 -> 0.5667 (< 0.1)",
                    "kept 43 -> 13 (>= 100 and <= 200)",
                ),
            ),
        ),
        certificates=(
            {
                "name": "runaway",
                "state": "ok",
                "sensitivity": 0.98,
                "sensitivity_bound": 0.94,
                "specificity": 0.97,
                "specificity_bound": 0.93,
                "auc": None,
            },
            {"name": "pairs", "state": "ok", "auc": 0.91, "sensitivity": 0.8, "specificity": 0.85},
        ),
        log_tail="\n".join(f"18:{m:02d}:00 round {m} of 40: kept {m // 3}" for m in range(40)),
        budget={
            "usd": {"limit": 300.0, "spent": 3.7, "left": 296.3},
            "review_usd": {"limit": 5.0, "spent": 0.2, "left": 4.8},
        },
        costs={
            "retry": {"what": "pilot again", "seconds": 1800.0, "usd": 1.5},
            "extend": {"what": "more rows of pilot", "seconds": 2000.0, "usd": 1.67},
            "stop": {"what": "nothing more runs", "seconds": 0.0, "usd": 0.0},
            "needs_human": {
                "what": "a machine that waits costs 3 USD an hour",
                "seconds": None,
                "usd": None,
            },
        },
    )
