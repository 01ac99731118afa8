"""Step, phase A: 100 to 200 kept examples, with everything QC needs to judge them."""

from pathlib import Path
from typing import Final

from phases import qc
from phases.certificates import certified
from phases.contamination import read_sentinels
from phases.data_checks import measure_data, seal_held_out
from phases.dedup import instruction_counts
from phases.engines import open_engine
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
from runbook.contract import Metric, PhaseRequest, PhaseResult

PARAMS: Final = "phases.generation:PilotParams"
METRICS: Final = (
    "runaway_rate",
    "token_limit_rate",
    "instruction_acceptance",
    "pair_acceptance",
    "delimiter_left",
    "median_tokens",
    "kept",
    "distinct_exact",
    "distinct_normalised",
    "distinct_near",
    "distinct_near_rate",
    "largest_repeat",
    "overlap_exact",
    "overlap_normalised",
    "overlap_13gram",
    "overlap_near",
    "overlap_quoted",
    "incomplete_provenance",
    "bad_sentinels",
    "forecast_target",
    "forecast_coverage",
    "forecast_distinct",
    "forecast_distinct_low",
    "forecast_distinct_high",
    "forecast_tokens_per_row",
    "end_of_turn_logp",
    "completions_right",
    "assistant_like",
    "bare_endings",
    "prefix_mismatch",
    "template_left",
    "fed_markup",
)
"""The five after the target the gate derives from the counts."""


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifacts ``dataset`` (kept records) and ``candidates`` (every row's fate).

    And ``instruction_counts``, what the gate's forecast rests on, and the seal of the held-out set.
    """
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
    return finished(request, params, rows, records, sentinels)


def finished(
    request: PhaseRequest,
    params: PilotParams,
    rows: list[Row],
    records: list[Row],
    sentinels: tuple[Metric, ...],
) -> PhaseResult:
    """Write dataset, candidates and counts, measure them."""
    dataset, candidates = request.output / "dataset.jsonl", request.output / "candidates.jsonl"
    counts = request.output / "instruction_counts.jsonl"
    write_jsonl(candidates, rows)
    write_jsonl(dataset, records)
    write_jsonl(counts, instruction_counts(rows, params.near_duplicate))
    paths = [path.relative_to(request.workspace).as_posix() for path in (candidates, dataset)]
    return PhaseResult(
        metrics=certified(
            request,
            (
                *qc.measure(rows, records, *paths),
                *measure_data(request, params, records),
                Metric(
                    "forecast_target",
                    float(params.forecast_target),
                    n=len(rows),
                    denominator="raw instructions",
                    evidence=counts.relative_to(request.workspace).as_posix(),
                ),
                *sentinels,
            ),
        ),
        artifacts=(
            describe("dataset", dataset, request.workspace),
            describe("candidates", candidates, request.workspace),
            describe("instruction_counts", counts, request.workspace),
            seal_held_out(request, Path(params.held_out)),
        ),
        tokens=generated_tokens(rows),
        summary={"qc": qc.summarise(rows, records)},
        flagged=qc.flagged(rows),
        judged_file="qc_summary.json",
        samples=qc.sample(records, request.seed),
    )


def generated_tokens(rows: list[Row]) -> int:
    """Tokens of the responses and of the lists that the instructions stood in."""
    return round(sum(float(r.get("tokens", 0)) + float(r["list_tokens"]) for r in rows))
