"""Identity: a hash of canonical JSON over what can change a step's bytes, or how it is judged.

Rule: paths, the clock, the budget, the environment and threads are not in it; the bytes of
declared files are. What is hashed can be read (``plan_document``) and compared
(``changed_fields``), so that a refused resume can say which field changed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import cast

from runbook.artifacts import canonical_json, sha256_bytes
from runbook.contract import Json
from runbook.plan import Plan, PlannedStep
from runbook.problems import printable

_ENGINE = ("name", "device", "batch_size")
"""The fields of the engine that change bytes."""
_ABSENT = "(absent)"


def fingerprint(value: Json) -> str:
    """sha256, in hex, of the canonical JSON. Raises ValueError: a number is not finite."""
    return sha256_bytes(canonical_json(value).encode("utf-8", "surrogatepass"))


def step_fingerprint(
    step: PlannedStep,
    *,
    model: Mapping[str, Json],
    engine: Mapping[str, Json],
    seed: int,
    inputs: Mapping[str, str],
) -> str:
    """The identity of a step's bytes; its gate has no part in it.

    Args:
        step: its own fingerprint is not looked at.
        model: the model section as declared.
        engine: the engine section.
        seed: the runbook's.
        inputs: the fingerprints of the steps it reads.
    """
    document = _bytes_document(step) | {
        "name": step.name,
        "model": dict(model),
        "engine": _engine(engine),
        "seed": seed,
        "inputs": dict(inputs),
    }
    return fingerprint(document)


def plan_document(plan: Plan) -> dict[str, Json]:
    """The resolved plan as JSON: what ``plan.fingerprint`` is taken over."""
    document = {
        "seed": plan.seed,
        "model": dict(plan.declared_model or plan.model),
        "engine": _engine(plan.engine),
        "stop_conditions": plan.stop_conditions,
        "reviewer": dict(plan.reviewer),
        "order": [s.name for s in plan.steps],
        "phases": {p.name: {"enabled": p.enabled, "steps": p.steps} for p in plan.phases},
        "steps": {s.name: _step_document(s) for s in plan.steps},
    }
    return cast("dict[str, Json]", json.loads(canonical_json(document)))


def changed_fields(old: Mapping[str, Json], new: Mapping[str, Json]) -> tuple[str, ...]:
    """The fields in which two plan documents differ, as ``a.b: old -> new``.

    The steps' fingerprints are left out: they follow from the other fields.
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    names = [n for n in dict.fromkeys([*before, *after]) if not _is_derived(n)]
    return tuple(
        f"{_dotted(n)}: {before.get(n, _ABSENT)} -> {after.get(n, _ABSENT)}"
        for n in names
        if before.get(n) != after.get(n)
    )


def _step_document(step: PlannedStep) -> dict[str, Json]:
    return _bytes_document(step) | {
        "phase": step.phase,
        "enabled": step.enabled,
        "inputs": step.inputs,
        "gate": asdict(step.gate) if step.gate else None,
        "retries": step.retries,
        "review_after": step.review_after,
        "rerun_from": step.rerun_from,
        "adjustable": {name: asdict(r) for name, r in step.adjustable.items()},
        "adjustments": [asdict(a) for a in step.adjustments],
        "fingerprint": step.fingerprint,
    }


def _bytes_document(step: PlannedStep) -> dict[str, Json]:
    hashes = {name: step.file_sha256.get(name, path.name) for name, path in step.files.items()}
    params = dict(step.params) | {name: {"sha256": h} for name, h in hashes.items()}
    return {"function": step.function, "params": params, "output": step.output}


def _engine(engine: Mapping[str, Json]) -> dict[str, Json]:
    return {key: engine[key] for key in _ENGINE if key in engine}


def _leaves(value: Json, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    items: list[tuple[str, Json]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = [(str(i), item) for i, item in enumerate(value)]
    if not items:
        yield path, printable(json.dumps(value))
    for key, item in items:
        yield from _leaves(item, (*path, key))


def _is_derived(path: tuple[str, ...]) -> bool:
    return len(path) == 3 and path[0] == "steps" and path[2] == "fingerprint"


def _dotted(path: tuple[str, ...]) -> str:
    return printable(".".join(path), longest=200)
