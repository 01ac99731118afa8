"""Step, phase B: shards of data generation, merged with the pilot into the training set.

Each shard is a stream of rounds with seeds of its own and a manifest under
``artifacts/data_gen_shards/``; a shard whose manifest is complete is never run again. The merge
drops exact and near-duplicates and whatever comes near a held-out item, and QC is measured anew
over the union.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import Field

from phases import qc
from phases.certificates import certified
from phases.contamination import read_sentinels
from phases.data_checks import measure_data, seal_held_out
from phases.engines import Engine, open_engine
from phases.filters import Filter, load_filters
from phases.generation import (
    GenerationParams,
    Generator,
    make_screen,
    to_record,
)
from phases.held_out import load_instructions
from phases.pilot import generated_tokens
from phases.prompts import load_few_shot, seen_instructions
from phases.records import Row, parse_params
from runbook.artifacts import (
    canonical_json,
    describe,
    read_jsonl,
    sha256_bytes,
    sha256_file,
    write_json,
    write_jsonl,
)
from runbook.contract import Artifact, Json, Metric, PhaseRequest, PhaseResult
from runbook.errors import CorruptError

PARAMS: Final = "phases.scale:ScaleParams"
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
    "end_of_turn_logp",
    "completions_right",
    "assistant_like",
    "bare_endings",
    "prefix_mismatch",
    "template_left",
    "fed_markup",
)
SHARDS: Final = "artifacts/data_gen_shards"


class ScaleParams(GenerationParams):
    """Parameters of phase B; ``target_kept`` counts the merged set, pilot included."""

    shards: int = Field(ge=1)
    kept_per_shard: int = Field(ge=1)
    """A little more than is missing, since the merge drops what two shards have in common."""


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifacts ``dataset`` (the merged set), ``candidates``, and one a shard."""
    params = parse_params(ScaleParams, request)
    filters = load_filters(request, Path(params.few_shot))
    engine = open_engine(request)
    sentinels, sentinel = read_sentinels(request, engine)
    pilot = read_jsonl(request.workspace / request.inputs["pilot"]["dataset"].path)
    shards = [
        _shard(request, engine, params, filters, pilot, sentinel, number)
        for number in range(1, params.shards + 1)
    ]
    return _merge(request, params, pilot, shards, sentinels)


def _shard(
    request: PhaseRequest,
    engine: Engine,
    params: ScaleParams,
    filters: tuple[Filter, Filter],
    pilot: Sequence[Row],
    sentinel: Json,
    number: int,
) -> Path:
    """The folder of a complete shard, made where it is not there yet."""
    folder = request.workspace / SHARDS / f"shard_{number:04d}"
    identity = _identity(request, params, number)
    if _complete(folder, identity):
        return folder
    shots = load_few_shot(Path(params.few_shot))
    seen = [*seen_instructions(shots), *(str(r["instruction"]) for r in pilot)]
    screen = make_screen(params.near_duplicate, seen, load_instructions(Path(params.held_out)))
    part = params.model_copy(update={"target_kept": params.kept_per_shard})
    prefix = f"shard-{number:04d}/"
    rows = Generator(request, engine, part, shots, filters, screen, prefix).run()
    kept = [r for r in rows if r["fate"] == "kept"][: params.kept_per_shard]
    records = [to_record(row, request, engine, part, sentinel) for row in kept]
    hashes = {
        "candidates.jsonl": write_jsonl(folder / "candidates.jsonl", rows),
        "dataset.jsonl": write_jsonl(folder / "dataset.jsonl", records),
    }
    manifest = {
        "shard": number,
        "step": request.step,
        "attempt": request.attempt,
        "identity": identity,
        "files": hashes,
        "records": len(records),
        "params": part.model_dump(),
        "provenance": dict(request.provenance),
        "qc": qc.summarise(rows, records),
    }
    write_json(folder / "manifest.json", manifest)
    return folder


def _identity(request: PhaseRequest, params: ScaleParams, number: int) -> str:
    """A hash of all that can change a shard's bytes; how many others there are is not in it."""
    fields = params.model_dump(exclude={"shards", "target_kept", "sentinels"})
    for name in ("few_shot", "held_out"):
        fields[name] = sha256_file(Path(fields[name]))
    earlier = {
        f"{step}/{name}": artifact.sha256
        for step, artifacts in request.inputs.items()
        for name, artifact in artifacts.items()
    }
    return sha256_bytes(
        canonical_json(
            [fields, request.seed, request.step, request.attempt, number, earlier]
        ).encode()
    )


def _complete(folder: Path, identity: str) -> bool:
    """Whether the shard is there, and is the one that would be made now."""
    path = folder / "manifest.json"
    if not path.is_file():
        return False
    manifest = json.loads(path.read_text("utf-8"))
    if manifest["identity"] != identity:
        return False
    _check_files(folder)
    return True


def _check_files(folder: Path) -> None:
    """Hold a complete shard's files against its manifest.

    Raises:
        CorruptError: one of them is missing, was cut short or otherwise changed.
    """
    path = folder / "manifest.json"
    for name, sha in json.loads(path.read_text("utf-8"))["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != sha:
            raise CorruptError(
                f"{name} of a complete shard is missing or was changed",
                where=str(folder / name),
                fix=f"restore the file with sha256 {sha}, or delete {path} to make the shard anew",
            )


def _merge(
    request: PhaseRequest,
    params: ScaleParams,
    pilot: Sequence[Row],
    shards: Sequence[Path],
    sentinels: tuple[Metric, ...],
) -> PhaseResult:
    request.channel.progress(stage="merge", done=0, total=1)
    screen = make_screen(params.near_duplicate, [], load_instructions(Path(params.held_out)))
    merged: list[Row] = []
    dropped: Counter[str] = Counter()
    for folder in shards:
        _check_files(folder)
    made = [record for folder in shards for record in read_jsonl(folder / "dataset.jsonl")]
    for record in [*pilot, *made]:
        fate = screen.fate(str(record["instruction"]))
        if fate:
            dropped[fate] += 1
        elif len(merged) == params.target_kept:
            dropped["beyond_target"] += 1
        else:
            merged.append(record)
    pilot_rows = read_jsonl(request.workspace / request.inputs["pilot"]["candidates"].path)
    rows = [*pilot_rows]
    rows += [row for folder in shards for row in read_jsonl(folder / "candidates.jsonl")]
    dataset = request.output / "stage1_sft_data.jsonl"
    candidates = request.output / "stage1_candidates.jsonl"
    write_jsonl(candidates, rows)
    write_jsonl(dataset, merged)
    paths = [path.relative_to(request.workspace).as_posix() for path in (candidates, dataset)]
    return PhaseResult(
        metrics=certified(
            request,
            (
                *qc.measure(rows, merged, *paths),
                *measure_data(request, params, merged),
                *sentinels,
            ),
        ),
        artifacts=(
            describe("dataset", dataset, request.workspace),
            describe("candidates", candidates, request.workspace),
            seal_held_out(request, Path(params.held_out)),
            *_shard_manifests(request, shards),
        ),
        tokens=generated_tokens(rows[len(pilot_rows) :]),
        summary={
            "qc": qc.summarise(rows, merged),
            "merge": {"pilot": len(pilot), "shards": len(made), "dropped": dict(dropped)},
        },
        flagged=qc.flagged(rows),
        judged_file="qc_summary.json",
        samples=qc.sample(merged, request.seed),
    )


def _shard_manifests(request: PhaseRequest, shards: Sequence[Path]) -> tuple[Artifact, ...]:
    return tuple(
        describe(folder.name, folder / "manifest.json", request.workspace) for folder in shards
    )
