"""Identity: a hash of canonical JSON over what can change a step's bytes, or how it is judged.

Rule: paths, the clock, the budget, the environment and threads are not in it; the bytes of
declared files are. A step's code is part of the plan's identity and not of the step's: where a
person accepts other code, what was made before stands. What is hashed can be read
(``plan_document``), read back (``recorded_plan``) and compared (``differences``), so that a
refused resume can say which field changed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from runbook.artifacts import canonical_json, sha256_bytes
from runbook.codec import decode
from runbook.contract import Gate, Json, Range
from runbook.errors import CorruptError
from runbook.plan import Adjustment, Plan, PlannedPhase, PlannedStep
from runbook.problems import printable

_ENGINE = ("name", "device", "batch_size")
"""The fields of the engine that change bytes."""
_ABSENT = "(absent)"
_DIGITS = 12
"""Of a source's hash, as many as are shown."""


@dataclass(frozen=True)
class Difference:
    """A field in which two plan documents differ; ``str()`` is ``a.b: old -> new``."""

    path: tuple[str, ...]
    before: str
    """JSON, cut if long; ``(absent)`` where the field is not there."""
    after: str

    def __str__(self) -> str:
        return f"{printable('.'.join(self.path), longest=200)}: {self.before} -> {self.after}"


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
    document = bytes_document(step, step.params) | {
        "name": step.name,
        "model": dict(model),
        "engine": engine_document(engine),
        "seed": seed,
        "inputs": dict(inputs),
    }
    return fingerprint(document)


def plan_document(plan: Plan) -> dict[str, Json]:
    """The resolved plan as JSON: what ``plan.fingerprint`` is taken over."""
    document = {
        "seed": plan.seed,
        "model": dict(plan.declared_model or plan.model),
        "engine": engine_document(plan.engine),
        "stop_conditions": plan.stop_conditions,
        "reviewer": dict(plan.reviewer),
        "order": [s.name for s in plan.steps],
        "phases": {p.name: {"enabled": p.enabled, "steps": p.steps} for p in plan.phases},
        "steps": {s.name: _step_document(s) for s in plan.steps},
    }
    return cast("dict[str, Json]", json.loads(canonical_json(document)))


def recorded_plan(document: Mapping[str, Json]) -> Plan:
    """The plan of a document, as far as ``runbook.machine`` looks at one: no files, no budget.

    Raises:
        CorruptError: it is no plan's document.
    """
    try:
        phases = document["phases"].items()
        return Plan(
            name="",
            runbook=Path(),
            seed=document["seed"],
            phases=tuple(PlannedPhase(n, n, p["enabled"], tuple(p["steps"])) for n, p in phases),
            steps=tuple(_recorded_step(n, document["steps"][n]) for n in document["order"]),
            model=document["model"],
            engine=document["engine"],
            environment={},
            preflight={},
            budget={},
            stop_conditions=tuple(document["stop_conditions"]),
            reviewer=document["reviewer"],
            overrides=(),
            fingerprint=fingerprint(document),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fix = "read it with the version of runbook that wrote it"
        what = f"the plan on record cannot be read: {error!r}"
        raise CorruptError(what, where="journal", fix=fix) from None


def differences(old: Mapping[str, Json], new: Mapping[str, Json]) -> tuple[Difference, ...]:
    """The fields in which two plan documents differ, the new one as ``comparable`` has it.

    The steps' fingerprints are left out: they follow from the other fields.
    """
    before, after = dict(_leaves(old)), dict(_leaves(comparable(new, old)))
    names = [n for n in dict.fromkeys([*before, *after]) if not _is_derived(n)]
    return tuple(
        Difference(n, _shown(n, before.get(n)), _shown(n, after.get(n)))
        for n in names
        if before.get(n) != after.get(n)
    )


def comparable(new: Mapping[str, Json], old: Mapping[str, Json]) -> dict[str, Json]:
    """The new document without the code of steps that were recorded without theirs.

    Plans recorded before code was an input say nothing of it, so any code agrees with them.
    """
    recorded = old.get("steps", {})
    steps = {
        name: step if "code" in recorded.get(name, step) else _without_code(step)
        for name, step in new.get("steps", {}).items()
    }
    return {**new, "steps": steps}


def _without_code(step: Mapping[str, Json]) -> dict[str, Json]:
    return {field: value for field, value in step.items() if field != "code"}


def changed_fields(old: Mapping[str, Json], new: Mapping[str, Json]) -> tuple[str, ...]:
    """The fields in which two plan documents differ, as ``a.b: old -> new``."""
    return tuple(map(str, differences(old, new)))


def bytes_document(step: PlannedStep, params: Mapping[str, Json]) -> dict[str, Json]:
    """What of a step itself can change its bytes, run with these parameters.

    A declared file stands in it with its hash, not with its path.
    """
    hashes = {name: step.file_sha256.get(name, path.name) for name, path in step.files.items()}
    told = dict(params) | {name: {"sha256": h} for name, h in hashes.items()}
    return {"function": step.function, "params": told, "output": step.output}


def engine_document(engine: Mapping[str, Json]) -> dict[str, Json]:
    """The fields of the engine that can change bytes."""
    return {key: engine[key] for key in _ENGINE if key in engine}


def _recorded_step(name: str, document: Mapping[str, Json]) -> PlannedStep:
    gate, adjustable = document["gate"], document["adjustable"]
    return PlannedStep(
        name=name,
        phase=document["phase"],
        enabled=document["enabled"],
        function=document["function"],
        params=document["params"],
        files={},
        inputs=tuple(document["inputs"]),
        output=document["output"],
        gate=decode(Gate, gate) if gate else None,
        retries=document["retries"],
        review_after=document["review_after"],
        rerun_from=document["rerun_from"],
        adjustable={param: decode(Range, ends) for param, ends in adjustable.items()},
        adjustments=tuple(decode(Adjustment, a) for a in document["adjustments"]),
        fingerprint=document["fingerprint"],
        code=document.get("code", {}),
    )


def _step_document(step: PlannedStep) -> dict[str, Json]:
    return bytes_document(step, step.params) | {
        **({"code": dict(step.code)} if step.code else {}),
        "phase": step.phase,
        "enabled": step.enabled,
        "inputs": step.inputs,
        "gate": _gate_document(step.gate) if step.gate else None,
        "retries": step.retries,
        "review_after": step.review_after,
        "rerun_from": step.rerun_from,
        "adjustable": {name: asdict(r) for name, r in step.adjustable.items()},
        "adjustments": [asdict(a) for a in step.adjustments],
        "fingerprint": step.fingerprint,
    }


def _gate_document(gate: Gate) -> dict[str, Json]:
    """Without a smoke that is not declared: plans recorded before there were any say nothing."""
    document = asdict(gate)
    if gate.smoke is None:
        del document["smoke"]
    return document


def _leaves(value: Json, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    items: list[tuple[str, Json]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = [(str(i), item) for i, item in enumerate(value)]
    if not items:
        yield path, json.dumps(value)
    for key, item in items:
        yield from _leaves(item, (*path, key))


def _is_derived(path: tuple[str, ...]) -> bool:
    return len(path) == 3 and path[0] == "steps" and path[2] == "fingerprint"


def _shown(path: tuple[str, ...], leaf: str | None) -> str:
    if leaf is None:
        return _ABSENT
    is_code = path[:1] == ("steps",) and path[2:3] == ("code",)
    return printable(leaf.strip('"')[:_DIGITS] if is_code else leaf)
