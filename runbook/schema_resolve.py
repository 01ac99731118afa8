"""A checked runbook -> a ``Plan``: overrides applied, paths made absolute, fingerprints taken.

Reads nothing but the bytes of declared files and of the steps' modules. What is wrong has been
found before, in ``runbook.schema``; only an override of a parameter and a vanished file can still
fail here.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from runbook.artifacts import sha256_file
from runbook.contract import Criterion, Gate, Json, Range
from runbook.fingerprint import fingerprint, plan_document, step_fingerprint
from runbook.overrides import Override, set_in_params
from runbook.params import expand
from runbook.plan import Adjustment, Plan, PlannedPhase, PlannedStep
from runbook.problems import printable, to_error
from runbook.schema_checks import Slot, SpecFile
from runbook.schema_models import (
    STOP_CONDITIONS,
    AdjustmentModel,
    GateModel,
    PhaseModel,
    RunbookModel,
    SpecModel,
    StepModel,
)
from runbook.schema_reviewer import (
    API_KEY_ENVS,
    BASE_URLS,
    REVIEWER_TIMEOUT,
    ReviewerModel,
    ServedModel,
)
from runbook.schema_values import seconds
from runbook.step_code import code_of
from runbook.step_params import check_overridden


class Resolver:
    """Turns checked steps into planned ones, in order: a fingerprint rests on earlier ones."""

    def __init__(
        self,
        runbook: RunbookModel,
        slots: Sequence[Slot],
        asked: Sequence[Override],
        environ: Mapping[str, str],
        folder: Path,
    ) -> None:
        """``folder`` is the runbook's, where the steps' modules may lie."""
        self.environ = environ
        self.declared_model = runbook.model.model_dump(exclude_none=True)
        self.engine = runbook.engine.model_dump(exclude_none=True)
        self._seed = runbook.seed
        self._asked = asked
        self._slots = {slot.name: slot for slot in slots}
        self._fingerprints: dict[str, str] = {}
        self._folder = folder
        self._codes: dict[str, dict[str, str]] = {}

    def planned(self, phase: PhaseModel, step: StepModel) -> PlannedStep:
        """The step, resolved; the steps it reads must have been asked for before."""
        spec = self._slots[step.name].spec
        model = spec.model if spec and spec.model else SpecModel(spec=1)
        files = self._files(spec) if spec else {}
        params = self._overridden(step.name, model.params, files)
        draft = PlannedStep(
            name=step.name,
            phase=phase.name,
            enabled=phase.enabled,
            function=step.function,
            params=params,
            files=files,
            inputs=tuple(step.inputs),
            output=step.output,
            gate=_gate(model.gate) if model.gate else None,
            retries=step.retries,
            review_after=step.review_after,
            rerun_from=step.rerun_from or step.name,
            terminal=step.terminal,
            adjustable={name: Range(r.min, r.max) for name, r in step.adjustable.items()},
            adjustments=tuple(_adjustment(a) for a in step.adjustments),
            fingerprint="",
            file_sha256=_hashes(spec, files) if spec else {},
            code=self._code(step.function),
        )
        return replace(draft, fingerprint=self._fingerprint(draft))

    def _overridden(
        self, step: str, declared: dict[str, Json], files: Mapping[str, Path]
    ) -> dict[str, Json]:
        params = copy.deepcopy(declared) | dict.fromkeys(files, "")
        asked = [override for override in self._asked if override.first == step]
        for override in asked:
            params = set_in_params(params, files, override)
        params |= {name: str(path) for name, path in files.items()}
        model = self._slots[step].model
        if model and asked and (wrong := check_overridden(model, params, asked)):
            raise to_error(wrong)
        return params

    def _files(self, spec: SpecFile) -> dict[str, Path]:
        declared = spec.model.files if spec.model else {}
        folder = spec.path.parent
        return {n: (folder / expand(text, self.environ)).resolve() for n, text in declared.items()}

    def _code(self, function: str) -> dict[str, str]:
        """Read once, however many steps a module has."""
        if function not in self._codes:
            self._codes[function] = code_of(function, self._folder)
        return self._codes[function]

    def _fingerprint(self, step: PlannedStep) -> str:
        made = step_fingerprint(
            step,
            model=self.declared_model,
            engine=self.engine,
            seed=self._seed,
            inputs={name: self._fingerprints[name] for name in step.inputs},
        )
        self._fingerprints[step.name] = made
        return made


def _hashes(spec: SpecFile, files: Mapping[str, Path]) -> dict[str, str]:
    hashes = {}
    for name, path in files.items():
        try:
            hashes[name] = sha256_file(path)
        except OSError as error:
            what = f"{printable(str(path), longest=1000)} cannot be read: {error.strerror}"
            fix = "check the file and the disk it is on"
            raise to_error([spec.source.problem(("files", name), what, fix, key=True)]) from error
    return hashes


def _gate(gate: GateModel) -> Gate:
    return Gate(tuple(Criterion(**c.model_dump()) for c in gate.criteria), gate.extend, gate.smoke)


def _adjustment(adjustment: AdjustmentModel) -> Adjustment:
    change = {n: c.model_dump(exclude_none=True) for n, c in adjustment.change.items()}
    return Adjustment(adjustment.when, change, adjustment.why)


def make_plan(
    path: Path, runbook: RunbookModel, resolver: Resolver, overrides: tuple[str, ...]
) -> Plan:
    """The whole plan; ``path`` is the runbook's, ``overrides`` are recorded as they are."""
    steps = tuple(resolver.planned(phase, s) for phase in runbook.phases for s in phase.steps)
    plan = Plan(
        name=runbook.name,
        runbook=path.resolve(),
        seed=runbook.seed,
        phases=tuple(_phase(phase) for phase in runbook.phases),
        steps=steps,
        model=_located(resolver.declared_model, path.parent, resolver.environ),
        engine=resolver.engine,
        environment={n: expand(t, resolver.environ) for n, t in runbook.environment.items()},
        preflight=runbook.preflight.model_dump(),
        budget=_budget(runbook),
        pod=runbook.pod.model_dump() | {"abandoned_after_s": seconds(runbook.pod.abandoned_after)},
        watchdog={
            "heartbeat_s": seconds(runbook.watchdog.heartbeat),
            "stall_s": seconds(runbook.watchdog.stall),
        },
        stop_conditions=tuple(c for c in STOP_CONDITIONS if c in runbook.stop_conditions),
        reviewer=resolve_reviewer(runbook.reviewer),
        overrides=overrides,
        fingerprint="",
        declared_model=resolver.declared_model,
        notifications=runbook.notifications.model_dump() if runbook.notifications else {},
    )
    return replace(plan, fingerprint=fingerprint(plan_document(plan)))


def _budget(runbook: RunbookModel) -> dict[str, Json]:
    """``Plan.budget``: the fields of ``runbook.budget.Limits``, and what a request may cost."""
    declared, reviewer = runbook.budget, runbook.reviewer
    found = {
        "wall_clock_s": seconds(declared.wall_clock) if declared.wall_clock else None,
        "gpu_hours": declared.gpu_hours,
        "usd": declared.usd,
        "review_usd": declared.review_usd,
        "usd_per_hour": declared.usd_per_hour,
        "reserve_s": seconds(declared.terminal_reserve) if declared.terminal_reserve else None,
        "gpus": runbook.preflight.gpus or None,
        "request_usd": reviewer.max_usd or None,
        "unknown_requests": reviewer.unknown_requests if reviewer.provider != "human" else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def resolve_reviewer(reviewer: ReviewerModel) -> dict[str, Json]:
    """``Plan.reviewer``."""
    if reviewer.provider == "human":
        return {"provider": reviewer.provider}
    found: dict[str, Json] = {}
    if reviewer.command is not None:
        timeout_s = seconds(reviewer.timeout or REVIEWER_TIMEOUT)
        found = {"provider": reviewer.provider, "command": reviewer.command, "timeout_s": timeout_s}
    else:
        found = {**_served(reviewer), "tries": reviewer.tries}
    if reviewer.fallback is not None:
        found["fallback"] = _served(reviewer.fallback)
    if reviewer.canaries is not None:
        found["canaries"] = reviewer.canaries.model_dump()
    return found


def _served(model: ServedModel) -> dict[str, Json]:
    """The fields of ``agent.provider.Served``."""
    provider = model.provider
    found = {
        "provider": provider,
        "model": model.model,
        "base_url": model.base_url or BASE_URLS[provider],
        "api_key_env": model.api_key_env or API_KEY_ENVS[provider],
        "effort": model.effort.model_dump(exclude_none=True) or None,
        "timeout_s": seconds(model.timeout or REVIEWER_TIMEOUT),
        "usd_per_mtok": model.usd_per_mtok.model_dump() if model.usd_per_mtok else None,
        "max_output_tokens": model.max_output_tokens,
        "context_tokens": model.context_tokens,
        "max_usd": model.max_usd,
    }
    return {name: value for name, value in found.items() if value is not None}


def _phase(phase: PhaseModel) -> PlannedPhase:
    names = tuple(step.name for step in phase.steps)
    return PlannedPhase(phase.name, phase.title or phase.name, phase.enabled, names)


def _located(model: dict[str, Json], folder: Path, environ: Mapping[str, str]) -> dict[str, Json]:
    """The model section with its path made absolute; it starts from the runbook's folder."""
    source = model["source"]
    if "path" in source:
        # Unlike Path.resolve, it gives a loop of links back as it is: the step then finds nothing.
        source = {"path": os.path.realpath(folder / expand(source["path"], environ))}
    return {**model, "source": source}
