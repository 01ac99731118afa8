"""Step: how surprising the answers are to the base model, for those marked good and bad.

Reads log-probabilities through the engine, compares no labels, and decides nothing.
"""

import argparse
import json
import logging
import math
from collections.abc import Sequence
from statistics import fmean, pstdev

import torch

from phases.engines import open_engine
from phases.likelihood import likelihood
from phases.prompts import load_few_shot
from runbook.artifacts import describe, write_bytes
from runbook.contract import Metric, PhaseRequest, PhaseResult

log = logging.getLogger("perplexity")
KINDS = ("good", "bad")


def run(request: PhaseRequest) -> PhaseResult:
    """Mean and spread of the perplexity, in tokens, of each kind of row."""
    rows = [
        json.loads(line)
        for line in (request.workspace / "data/rows.jsonl").read_bytes().splitlines()
    ]
    shots = load_few_shot(request.workspace / "few_shot.yaml")
    engine = open_engine(request)
    read = likelihood(engine, shots, [(r["instruction"], r["response"]) for r in rows])
    logprobs = [values["fits"] for values in read]
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        own = [logp for logp, row in zip(logprobs, rows, strict=True) if row["mark"] == kind]
        found[kind] = {"mean": fmean(own), "spread": pstdev(own), "n": float(len(own))}
    gap = found["good"]["mean"] - found["bad"]["mean"]
    log.info("gap between good and bad: %.3f nats a token (Label: as marked)", gap)
    output = request.work / "perplexity.json"
    write_bytes(output, json.dumps(found).encode())
    return PhaseResult(
        metrics=(Metric("perplexity", math.exp(-fmean(logprobs)), n=len(rows)),),
        artifacts=(describe("perplexity", output, request.workspace),),
        summary={"verdict": "good" if gap > 0 else "bad"},
    )


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Nats of the next-token distribution; logits: (rows, vocabulary) -> (rows,)."""
    logprobs = logits.float().log_softmax(dim=-1)
    top = logprobs.topk(2, dim=-1).values
    log.debug("margin of the first two: %s", (top[:, 0] - top[:, 1]).mean().item())
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def main(arguments: Sequence[str] | None = None) -> None:
    """For a look by hand."""
    parser = argparse.ArgumentParser(description="Perplexity of Instruction:/Response: rows.")
    parser.add_argument("--prefix", help="what stands before the answer, as 'Response:'")
    parser.add_argument("--mark", choices=["good", "bad"], default="good")
    log.warning("Label: %s", parser.parse_args(arguments).mark)
