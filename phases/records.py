"""Batches and records: the unit of commit, seeds, and what one kept row carries.

A batch is made once: where the journal holds it, it is read back and checked; where not, it is
made, written, and committed before the next begins. Records carry no time, path or run id, so a
resumed dataset has the bytes of an undisturbed one.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from runbook.artifacts import sha256_file, write_json
from runbook.contract import Committed, Json, PhaseRequest
from runbook.errors import ConfigError, CorruptError

Row = dict[str, Json]
Params = TypeVar("Params", bound=BaseModel)


class NoParams(BaseModel):
    """The parameters of a step that takes none."""

    model_config = ConfigDict(extra="forbid", strict=True)


def batch(request: PhaseRequest, key: str, make: Callable[[int], Sequence[Row]]) -> list[Row]:
    """The rows of a batch: read back if the journal holds it, else made and committed.

    Args:
        request: the step's.
        key: unique within the attempt, e.g. ``shard-1/round-0/responses/0003``.
        make: called with the batch's seed.

    Raises:
        CorruptError: the file of a committed batch is gone or was changed, or JSON has no form for
            what was made, as for a number that is not finite.
    """
    path = request.work / f"{key}.json"
    known = request.channel.committed(key)
    if known is not None:
        return _read_back(path, known)
    rows = list(make(batch_seed(request, key)))
    try:
        sha = write_json(path, {"key": key, "rows": rows})
    except ValueError as error:
        raise CorruptError(
            f"the batch {key!r} cannot be written: {error}",
            where=request.step,
            fix="where a number is not finite, the model's weights or its engine are broken",
        ) from error
    relative = path.relative_to(request.workspace).as_posix()
    request.channel.commit(Committed(key, relative, sha, len(rows)))
    return rows


def _read_back(path: Path, known: Committed) -> list[Row]:
    if not path.is_file() or sha256_file(path) != known.sha256:
        raise CorruptError(
            f"the committed batch {known.key!r} is missing or was changed",
            where=str(path),
            fix=f"restore the file with sha256 {known.sha256}, or start in a new workspace",
        )
    rows: list[Row] = json.loads(path.read_text("utf-8"))["rows"]
    return rows


def batch_seed(request: PhaseRequest, key: str) -> int:
    """A 63-bit seed of (session seed, step, attempt, batch)."""
    name = f"{request.seed}|{request.step}|{request.attempt}|{key}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def parse_params(model: type[Params], request: PhaseRequest) -> Params:
    """A step's parameters, checked.

    Raises:
        ConfigError: names the parameter and what is wrong with it.
    """
    try:
        return model.model_validate(dict(request.params))
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()
        )
        raise ConfigError(
            f"parameters of step {request.step!r}: {told}",
            where=request.step,
            fix="mend them in the step's spec",
        ) from error


def chunks(items: Sequence[Row], size: int) -> list[list[Row]]:
    """Consecutive groups of at most ``size``."""
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
