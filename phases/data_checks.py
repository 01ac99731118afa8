"""What a dataset's own rows say of it, read after they were made and again before training.

Counts of rows that do not tell how they were made or belie it, whose sentinel is false, missing or
out of bounds, or with a held-out item in them; and how many instructions are distinct. The rows
behind a count stand in ``data_faults.jsonl``. The held-out set is sealed by the first step that
reads it.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from phases import prompts
from phases.dedup import distinct_metrics
from phases.held_out import load_items
from phases.leakage import OVERLAPS, find_overlaps, overlap_metrics
from phases.records import Row
from phases.verifiers import HeldOutItem
from runbook.artifacts import describe, sha256_file, write_json, write_jsonl
from runbook.contract import Artifact, Json, Metric, PhaseRequest
from runbook.errors import ConfigError

CLEAN: Final = (*OVERLAPS, "incomplete_provenance", "bad_sentinels")
"""Counts of rows at fault; nothing is trained on where one of them is not 0."""
FAULTS: Final = "data_faults.jsonl"
SEAL: Final = "held_out_seal"

_TEXTS: Final = ("instruction", "response", "prompt", "completion")
_CRITIQUES: Final = ("instruction_critique", "pair_critique")
_RECORD: Final = (*_TEXTS, *_CRITIQUES)
METADATA: Final = (
    "model",
    "loader_version",
    "quantization",
    "template_disabled",
    "generation",
    "seed",
    "sentinel",
    "fingerprint",
)
_STATED: Final = ("template_disabled", "prefix_matches")
"""What the loader states of itself; each must be true."""


class Bound(BaseModel):
    """What a reading must keep to; every comparison that is given holds."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    below: float | None = None
    above: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _is_bound(self) -> "Bound":
        if not self.model_dump(exclude_none=True):
            raise ValueError("a bound needs one of below, above, at_most, at_least")
        return self

    def holds(self, value: float) -> bool:
        """Whether a finite reading keeps to it."""
        return (
            (self.below is None or value < self.below)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.at_least is None or value >= self.at_least)
        )


class DataParams(BaseModel):
    """Parameters of every step that makes a dataset or trains on one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    held_out: str
    near_duplicate: float = Field(gt=0, le=1)
    """Jaccard index of word sets from which two instructions are near-duplicates."""
    sentinels: dict[str, Bound] = Field(min_length=1)
    """Readings that each record carries, with the bounds that they keep to."""


def measure_data(
    request: PhaseRequest, params: DataParams, records: Sequence[Row]
) -> tuple[Metric, ...]:
    """Every count of the module; writes the rows behind them beside the step's files.

    Raises:
        ConfigError: the held-out set cannot be read, or is not the one that was sealed.
    """
    leaks = find_overlaps(records, held_out_items(request, params), params.near_duplicate)
    return count_faults(request, params, records, [*leaks], missing_provenance)


def held_out_items(request: PhaseRequest, params: DataParams) -> tuple[HeldOutItem, ...]:
    """The items that the data is held against, once it is clear that they are the sealed ones."""
    check_sealed(request, Path(params.held_out))
    return load_items(Path(params.held_out))


def count_faults(
    request: PhaseRequest,
    params: DataParams,
    records: Sequence[Row],
    found: Sequence[Row],
    untold: Callable[[Row], Iterator[str]],
) -> tuple[Metric, ...]:
    """What was found with what the records say of themselves; writes the rows behind it all.

    Args:
        request: the step's.
        params: the bounds.
        records: of the dataset.
        found: a row for each overlap: ``check`` names it, ``row`` is the record's place.
        untold: what a record does not tell of its making, or belies.
    """
    others = [
        {"check": check, "row": place, "instruction": record.get("instruction"), "why": why}
        for place, record in enumerate(records)
        for check, told in (
            ("incomplete_provenance", untold(record)),
            ("bad_sentinels", bad_sentinels(record, params.sentinels)),
        )
        for why in told
    ]
    path = request.output / FAULTS
    evidence = path.relative_to(request.workspace).as_posix()
    distinct, repeats = distinct_metrics(records, params.near_duplicate, evidence)
    write_jsonl(path, [*found, *others, *repeats])
    n = len(records)
    return (
        *distinct,
        *overlap_metrics(found, n, evidence),
        *(
            count_rows(name, others, n, evidence)
            for name in ("incomplete_provenance", "bad_sentinels")
        ),
    )


def count_rows(name: str, faults: Sequence[Row], n: int, evidence: str) -> Metric:
    """How many of ``n`` records a check found something in."""
    rows = {fault["row"] for fault in faults if fault["check"] == name}
    return Metric(name, float(len(rows)) if n else None, n=n, evidence=evidence)


def missing_provenance(record: Row) -> Iterator[str]:
    """The fields without which nobody could tell how a record was made, and what belies them."""
    yield from missing(record, _RECORD)
    yield from missing_metadata(record, METADATA)
    yield from _contradictions(record)


def missing_metadata(record: Row, names: Sequence[str]) -> Iterator[str]:
    """What the metadata of a record does not tell of these, and of the code that made it."""
    metadata = record.get("metadata")
    if not isinstance(metadata, Mapping):
        yield f"metadata is {json.dumps(metadata)}, which is no mapping"
    stated = _mapping(metadata)
    yield from (f"metadata.{name}" for name in missing(stated, names))
    # Outside git there is no commit; the installed version then says which code it was.
    if not stated.get("git_sha") and not _mapping(stated.get("versions")).get("runbook"):
        yield "metadata.git_sha"


def missing(owner: Mapping[str, Json], names: Sequence[str]) -> Iterator[str]:
    """Names without a value, or with an empty one; zero and false are values."""
    for name in names:
        value = owner.get(name)
        if value in (None, {}) or (isinstance(value, str) and not value.strip()):
            yield name


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


def _contradictions(record: Row) -> Iterator[str]:
    """Where what is trained on is not what the row says, or its own critiques did not keep it.

    A field that is missing contradicts nothing; it was told already.
    """
    asked, said = record.get("instruction"), record.get("response")
    yield from no_texts(record, _TEXTS)
    if asked and record.get("prompt") not in (None, "", prompts.evaluation_prompt(str(asked))):
        yield "prompt is not the instruction's evaluation prompt"
    if said and record.get("completion") not in (None, "", prompts.completion(str(said))):
        yield "completion is not the response with its delimiter"
    for name in _CRITIQUES:
        yield from unkept(record, name)


def no_texts(record: Row, names: Sequence[str]) -> Iterator[str]:
    """Fields that hold something else than a text."""
    for name in names:
        if record.get(name) is not None and not isinstance(record[name], str):
            yield f"{name} is {json.dumps(record[name])}, which is no text"


def unkept(record: Row, name: str) -> Iterator[str]:
    """A critique that is there and did not keep the row."""
    critique = record.get(name)
    if critique in (None, "", {}):
        return
    told = _mapping(critique)
    if told.get("is_good") is not True or told.get("confident") is not True:
        yield f"{name} does not keep the row"


def bad_sentinels(record: Row, bounds: Mapping[str, Bound]) -> Iterator[str]:
    """What of a record's own sentinels is missing, false, no number, or out of its bound.

    Without a declared bound a finite number is sound, zero included: what it ought to be nobody
    has said.
    """
    metadata = _mapping(record.get("metadata"))
    readings = _mapping(metadata.get("sentinel"))
    if not readings:
        yield f"sentinel is {json.dumps(metadata.get('sentinel'))}"
    for name in _STATED:
        if metadata.get(name) is not True:
            yield f"{name} is {json.dumps(metadata.get(name))}"
    for name, value in readings.items():
        if name not in bounds and value is not True and not _is_number(value):
            yield f"{name} is {json.dumps(value)}, which is neither true nor a finite number"
    for name, bound in bounds.items():
        if fault := _fault(readings.get(name), bound):
            yield f"{name} {fault}"


def _is_number(value: Json) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


def _fault(value: Json, bound: Bound) -> str:
    if value is None:
        return "is missing"
    if not _is_number(value):
        return f"is {json.dumps(value)}, which is no finite number"
    told = json.dumps(bound.model_dump(exclude_none=True))
    return "" if bound.holds(value) else f"is {value:.4g}, which is out of {told}"


def seal_held_out(request: PhaseRequest, path: Path) -> Artifact:
    """Write down which held-out set this step read: its hash, size, items and kinds.

    Raises:
        ConfigError: an earlier step read another one.
    """
    check_sealed(request, path)
    kinds = [item.kind for item in load_items(path)]
    seal = {
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "items": len(kinds),
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }
    written = request.output / f"{SEAL}.json"
    write_json(written, seal)
    return describe(SEAL, written, request.workspace)


def check_sealed(request: PhaseRequest, path: Path) -> None:
    """Hold a held-out file against what each input step read or scored.

    Raises:
        ConfigError: one of them read another file.
    """
    now = sha256_file(path)
    for step, artifacts in request.inputs.items():
        for name, field in ((SEAL, "sha256"), ("conditions", "held_out_sha256")):
            if name not in artifacts:
                continue
            stated = json.loads((request.workspace / artifacts[name].path).read_text("utf-8"))
            if stated[field] != now:
                raise ConfigError(
                    f"the held-out set is not the one that step {step!r} read: its sha256 is "
                    f"{now[:12]}, there it was {stated[field][:12]}",
                    where=str(path),
                    fix="name the same held_out file in every spec, unchanged",
                )
