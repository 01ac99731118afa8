"""Step, phase A: 100 to 200 kept examples, with everything QC needs to judge them."""

from pathlib import Path
from typing import Final

from phases import contamination, qc
from phases.engines import Engine, open_engine
from phases.filters import load_filters
from phases.generation import (
    Generator,
    PilotParams,
    make_screen,
    to_record,
)
from phases.held_out import load_instructions
from phases.prompts import load_few_shot, seen_instructions
from phases.records import Row, parse_params
from runbook.artifacts import describe, write_jsonl
from runbook.contract import Json, Metric, PhaseRequest, PhaseResult

PARAMS: Final = "phases.generation:PilotParams"
METRICS: Final = (
    "runaway_rate",
    "token_limit_rate",
    "instruction_acceptance",
    "pair_acceptance",
    "delimiter_left",
    "median_tokens",
    "kept",
    "distinct_instructions",
    "end_of_turn_logp",
    "completions_right",
    "assistant_like",
    "prefix_mismatch",
    "template_left",
)


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifacts ``dataset`` (kept records) and ``candidates`` (every row's fate)."""
    params = parse_params(PilotParams, request)
    filters = load_filters(request, Path(params.few_shot))
    engine = open_engine(request)
    sentinels, sentinel = read_sentinels(request, engine)
    shots = load_few_shot(Path(params.few_shot))
    screen = make_screen(
        params.near_duplicate,
        seen_instructions(shots),
        load_instructions(Path(params.held_out)),
    )
    generator = Generator(request, engine, params, shots, filters, screen, "", params.raw_rows)
    rows = generator.run()
    kept = [r for r in rows if r["fate"] == "kept"][: params.target_kept]
    records = [to_record(row, request, engine, params, sentinel) for row in kept]
    return finished(request, rows, records, sentinels)


def read_sentinels(
    request: PhaseRequest, engine: Engine
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The contamination readings before generation, as metrics and as records carry them."""
    metrics, _ = contamination.measure(engine, str(request.model.get("family", "")))
    reading = {m.name: m.value if m.value is None else round(m.value, 4) for m in metrics}
    return metrics, reading


def finished(
    request: PhaseRequest, rows: list[Row], records: list[Row], sentinels: tuple[Metric, ...]
) -> PhaseResult:
    """Write dataset and candidates, measure them."""
    dataset, candidates = request.output / "dataset.jsonl", request.output / "candidates.jsonl"
    write_jsonl(candidates, rows)
    write_jsonl(dataset, records)
    evidence = candidates.relative_to(request.workspace).as_posix()
    return PhaseResult(
        metrics=(*qc.measure(rows, records, evidence), *sentinels),
        artifacts=(
            describe("dataset", dataset, request.workspace),
            describe("candidates", candidates, request.workspace),
        ),
        tokens=sum(int(r.get("tokens", 0)) for r in rows),
        summary={"qc": qc.summarise(rows, records)},
        flagged=qc.flagged(rows),
        judged_file="qc_summary.json",
        samples=qc.sample(records, request.seed),
    )
