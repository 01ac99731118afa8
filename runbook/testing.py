"""Fakes for tests, a user's own included: plans, reviews, and a step that does as told."""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from runbook import artifacts, errors
from runbook.contract import (
    Committed,
    Criterion,
    CriterionResult,
    Gate,
    Instrument,
    Json,
    Judgement,
    Metric,
    PhaseRequest,
    PhaseResult,
    ReviewRequest,
    Verdict,
)
from runbook.plan import Plan, PlannedPhase, PlannedStep


def make_step(name: str, **fields: Json) -> PlannedStep:
    """A step of the fake phase, without a gate unless ``gate`` is given."""
    defaults: dict[str, Json] = {
        "name": name,
        "phase": "A",
        "enabled": True,
        "function": "runbook.testing:fake_phase",
        "params": {},
        "files": {},
        "inputs": (),
        "output": f"artifacts/{name}_{{time}}",
        "gate": None,
        "retries": 2,
        "review_after": 2,
        "rerun_from": name,
        "adjustable": {},
        "adjustments": (),
        "fingerprint": f"fingerprint of {name}",
    }
    return PlannedStep(**{**defaults, **fields})


def make_plan(*steps: PlannedStep, **fields: Json) -> Plan:
    """A plan of these steps, all in phase A, with a human reviewer and no budget."""
    defaults: dict[str, Json] = {
        "name": "test",
        "runbook": Path("/nowhere/runbook.yaml"),
        "seed": 7,
        "phases": (PlannedPhase("A", "Phase A", enabled=True, steps=tuple(s.name for s in steps)),),
        "steps": steps,
        "model": {},
        "engine": {},
        "environment": {},
        "preflight": {},
        "budget": {},
        "stop_conditions": (),
        "reviewer": {},
        "overrides": (),
        "fingerprint": "fingerprint of the plan",
    }
    return Plan(**{**defaults, **fields})


def simple_gates(gate: Gate, metrics: tuple[Metric, ...], final: bool) -> Judgement:  # noqa: FBT001
    """Judge by ``at_least`` and ``below`` alone; a missing reading is invalid, a small n too few.

    The real gates live in ``gates/``; this one keeps the executor's tests free of them.
    """
    readings = {metric.name: metric for metric in metrics}
    results = tuple(_judge(c, readings.get(c.metric), final=final) for c in gate.criteria)
    for verdict in (Verdict.INVALID, Verdict.FAIL, Verdict.UNDERPOWERED):
        if any(result.verdict is verdict for result in results):
            reasons = tuple(r.reason for r in results if r.verdict is verdict)
            return Judgement(verdict, results, reasons)
    return Judgement(Verdict.PASS, results, ())


def _judge(criterion: Criterion, metric: Metric | None, *, final: bool) -> CriterionResult:
    value = metric.value if metric else None
    n = metric.n if metric else None
    if value is None or (metric and metric.instrument is not Instrument.OK):
        verdict = Verdict.INVALID
    elif _violates(criterion, value):
        verdict = Verdict.FAIL
    elif n is not None and n < criterion.min_n and not final:
        verdict = Verdict.UNDERPOWERED
    else:
        verdict = Verdict.PASS
    reason = f"{criterion.metric} is {value}: {verdict.value}"
    return CriterionResult(
        criterion.metric, criterion.kind, "", verdict, value, n, None, thin=False, reason=reason
    )


def _violates(criterion: Criterion, value: float) -> bool:
    low = criterion.at_least is not None and value < criterion.at_least
    return low or (criterion.below is not None and value >= criterion.below)


GENERATIONS = "fake_generations.jsonl"
"""In ``logs/``: one line for each batch that a fake step made, committed or not."""


class LocalChannel:
    """A channel that keeps what it is told; it pauses after ``pause_after`` commits."""

    def __init__(
        self, committed: tuple[Committed, ...] = (), *, pause_after: int | None = None
    ) -> None:
        self.batches = {batch.key: batch for batch in committed}
        self.commits: list[Committed] = []
        self.reports: list[Mapping[str, Json]] = []
        self._pause_after = pause_after

    def committed(self, key: str) -> Committed | None:
        return self.batches.get(key)

    def commit(self, batch: Committed) -> None:
        self.batches[batch.key] = batch
        self.commits.append(batch)
        if self._pause_after is not None and len(self.commits) >= self._pause_after:
            raise errors.PausedError("paused by the test")

    def progress(self, **fields: Json) -> None:
        self.reports.append(fields)


class LocalAccount:
    """An account without a limit; it keeps what was reserved and settled, keys and dollars."""

    def __init__(self, refusal: str = "") -> None:
        self.reserved: list[str] = []
        self.settled: list[str] = []
        self.reserved_usd: list[float | None] = []
        self.settled_usd: list[float | None] = []
        self.tokens: list[tuple[int, int]] = []
        """Input and output of each settled request."""
        self._refusal = refusal

    def affords(self, requests: int, usd: float | None = None) -> bool:  # noqa: ARG002 - the seam's
        return not self._refusal

    def reserve(self, key: str, usd: float | None = None) -> str:
        if not self._refusal:
            self.reserved.append(key)
            self.reserved_usd.append(usd)
        return self._refusal

    def settle(
        self,
        key: str,
        usd: float | None = None,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        self.settled.append(key)
        self.settled_usd.append(usd)
        self.tokens.append((input_tokens, output_tokens))


def make_review_request(workspace: Path, **fields: Json) -> ReviewRequest:
    """The question after the second failure of step ``a``, for a reviewer's test; asking is free.

    A retry may change nothing unless ``adjustable`` is given.
    """
    defaults: dict[str, Json] = {
        "review_id": "a-2",
        "step": "a",
        "attempt": 2,
        "reason": "gate failed",
        "allowed": ("retry", "stop", "override"),
        "run_id": "20260101_000000",
        "workspace": workspace,
        "path": "reviews/a-2",
        "verdict": "fail",
        "criteria": (),
        "reasons": (),
        "metrics": (),
        "attempts": (),
        "adjustable": {},
        "failures": 2,
        "retries": 2,
        "summary": {},
        "flagged": (),
        "samples": (),
        "account": LocalAccount(),
    }
    return ReviewRequest(**{**defaults, **fields})


def fake_phase(request: PhaseRequest) -> PhaseResult:
    """Make ``batches`` batches of ``rows`` rows, deterministic in seed, step and attempt.

    Params: ``batches``, ``rows``, ``sleep`` (seconds a batch), ``metrics`` (name -> value, or a
    list with one value an attempt, or a mapping of ``Metric`` fields, where ``n_per_batch`` stands
    for an n that grows), ``trouble`` (``kind``: kill,
    exit, raise or pause; ``at``: the batch before whose commit it comes; ``times``; ``error``: a
    class of ``runbook.errors``), ``question`` (the step's own), ``certificate`` (true: it leaves
    one, as a step that calibrates does), ``flagged`` (rows behind its worst readings).
    """
    rows: list[dict[str, Json]] = []
    count = int(request.params.get("batches", 2))
    for index in range(count):
        path = _batch(request, index)
        rows += artifacts.read_jsonl(path)
        request.channel.progress(done=index + 1, total=count)
    _trouble(request, count)
    dataset = request.output / "dataset.jsonl"
    artifacts.write_jsonl(dataset, rows)
    made = {"dataset": dataset}
    if request.params.get("certificate"):
        made["certificate"] = request.output / "certificate.json"
        artifacts.write_json(made["certificate"], {"made_by_attempt": request.attempt})
    artifacts.complete_directory(request.output)
    metrics = request.params.get("metrics", {})
    return PhaseResult(
        metrics=tuple(
            _metric(name, value, request.attempt, count) for name, value in metrics.items()
        ),
        artifacts=tuple(
            artifacts.describe(name, path, request.workspace) for name, path in made.items()
        ),
        tokens=len(rows),
        summary={"rows": len(rows), "inputs": sorted(request.inputs), "pid": os.getpid()},
        flagged=tuple(request.params.get("flagged", ())),
        question=str(request.params.get("question", "")),
    )


def _batch(request: PhaseRequest, index: int) -> Path:
    key = f"{index:04d}"
    known = request.channel.committed(key)
    if known:
        return request.workspace / known.path
    _note(request, key)
    time.sleep(float(request.params.get("sleep", 0)))
    seed = f"{request.seed}/{request.step}/{request.attempt}"
    rows = [
        {"id": f"{key}-{row}", "text": artifacts.sha256_bytes(f"{seed}/{key}/{row}".encode())}
        for row in range(int(request.params.get("rows", 2)))
    ]
    path = request.work / f"{key}.jsonl"
    sha = artifacts.write_jsonl(path, rows)
    _trouble(request, index)
    relative = path.relative_to(request.workspace).as_posix()
    request.channel.commit(Committed(key, relative, sha, len(rows)))
    return path


def _note(request: PhaseRequest, key: str) -> None:
    line = artifacts.canonical_json([request.step, request.attempt, key])
    with (request.workspace / "logs" / GENERATIONS).open("a") as log:
        log.write(f"{line}\n")


def generations(workspace: Path) -> list[tuple[str, int, str]]:
    """The (step, attempt, key) of each batch that fake steps made, in order."""
    path = workspace / "logs" / GENERATIONS
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(str(step), int(attempt), str(key)) for step, attempt, key in rows]


def _trouble(request: PhaseRequest, index: int) -> None:
    trouble = request.params.get("trouble")
    if not trouble or int(trouble.get("at", 0)) != index:
        return
    counter = request.work / "fake_troubles"
    before = len(counter.read_bytes()) if counter.exists() else 0
    if before >= int(trouble.get("times", 1)):
        return
    counter.write_bytes(b"." * (before + 1))
    match trouble["kind"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(9)
        case "pause":
            raise errors.PausedError("paused by the step")
        case _:
            kind = getattr(errors, trouble.get("error", "PhaseError"))
            raise kind("the fake step was told to fail", where=request.step, fix="tell it not to")


def _metric(name: str, value: Json, attempt: int, batches: int) -> Metric:
    if isinstance(value, list):
        value = value[min(attempt, len(value)) - 1]
    if isinstance(value, Mapping):
        fields = {**value, "instrument": Instrument(value.get("instrument", "ok"))}
        if "n_per_batch" in fields:
            fields["n"] = fields.pop("n_per_batch") * batches
        return Metric(name=name, **fields)
    return Metric(name, value)
