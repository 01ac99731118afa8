"""runbook.yaml and the specs it names -> a ``Plan``.

Everything that is wrong in the runbook and its specs is told at once, each with
``file:line:column``. A step's module is not imported, and nothing is written.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from runbook.contract import Json
from runbook.errors import ConfigError
from runbook.gate_checks import check_alphas, check_criteria, check_targets
from runbook.overrides import TOP_LEVEL, Override, find_target, parse_override, set_in_head
from runbook.plan import Plan
from runbook.problems import Problem, from_error, to_error
from runbook.schema_checks import (
    Slot,
    SpecFile,
    check_files,
    check_names,
    check_steps,
    check_variables,
)
from runbook.schema_errors import find_problems
from runbook.schema_models import RunbookModel, SpecModel, StepModel
from runbook.schema_resolve import Resolver, make_plan
from runbook.schema_secrets import check_overrides, check_secrets
from runbook.step_params import check_contents, check_params, with_models
from runbook.yaml_source import Source, ValuePath, read_yaml, unreadable

_Model = TypeVar("_Model", bound=BaseModel)
_LONGEST_NAME = 200
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def load_plan(
    path: Path, overrides: Sequence[str] = (), *, environ: Mapping[str, str] | None = None
) -> Plan:
    """Read a runbook and all it names.

    Args:
        path: the runbook's YAML file.
        overrides: ``--set`` arguments; of two for one value the later holds.
        environ: what ``${NAME}`` is looked up in; the process's own where None.

    Raises:
        ConfigError: lists all that is wrong; ``where`` is the first position.
    """
    variables = os.environ if environ is None else environ
    _raise(list(check_overrides(overrides, variables)))
    asked = [_bounded(parse_override(arg)) for arg in overrides]
    source = read_yaml(path)
    slots, unread = _read_slots(source, path.parent)
    rewritten = any(_moves_model(o) for o in asked)
    head = _check_head(source, variables, model_too=not rewritten)
    slots, unnamed = with_models(source, slots, path.parent)
    steps = [*check_steps(source, slots, path.parent), *unnamed, *check_params(source, slots)]
    files = (p for spec in _specs(slots) for p in check_files(spec, variables))
    clear = check_secrets([source, *(spec.source for spec in _specs(slots))], variables)
    found = [*find_problems(RunbookModel, source.value(), source), *head, *steps, *unread, *files]
    _raise([*found, *clear, *check_criteria(slots)])
    names = [slot.name for slot in slots]
    _raise([p for o in asked if (p := find_target(o, names))])
    runbook = _overridden(source, [o for o in asked if o.first in TOP_LEVEL], variables)
    asked = [o for o in asked if o.first in names]
    resolver = Resolver(runbook, slots, asked, variables, path.parent)
    plan = make_plan(path, runbook, resolver, tuple(overrides))
    _raise([*check_targets(plan, slots), *check_alphas(plan, slots)])
    check_contents(plan, slots)
    return plan


def runbook_json_schema() -> dict[str, Json]:
    """JSON Schema of runbook.yaml, for editors."""
    return {"$schema": _DRAFT} | RunbookModel.model_json_schema()


def spec_json_schema() -> dict[str, Json]:
    """JSON Schema of a spec YAML, for editors."""
    return {"$schema": _DRAFT} | SpecModel.model_json_schema()


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        raise to_error(problems)


def _bounded(override: Override) -> Override:
    """An override that leads no deeper than a document can."""
    if len(override.rest) > _LONGEST_NAME:
        what = f"the name is longer than {_LONGEST_NAME} characters"
        _raise([override.problem(what, "name a parameter of a step, or a key of the runbook")])
    return override


def _read_slots(source: Source, folder: Path) -> tuple[list[Slot], list[Problem]]:
    """The runbook's steps with their specs, and what is wrong within the specs."""
    specs: dict[str, SpecFile | None] = {}
    slots, problems = [], []
    for path, enabled, raw in _raw_steps(source.value()):
        named = raw.get("spec")
        if isinstance(named, str) and named not in specs:
            specs[named], wrong = _read_spec(source, (*path, "spec"), folder / named)
            problems += wrong
        elif isinstance(named, str) and specs[named] is None:
            problems += _read_spec(source, (*path, "spec"), folder / named)[1]
        name = raw.get("name")
        step = _valid(StepModel, raw)
        spec = specs[named] if isinstance(named, str) else None
        slots.append(Slot(path, name if isinstance(name, str) else "", enabled, step, spec))
    return slots, problems


def _raw_steps(raw: Json) -> Iterator[tuple[ValuePath, bool, dict[str, Json]]]:
    """Each step's path, whether its phase is enabled, and its document, whatever its shape."""
    for i, phase in _raw_phases(raw):
        steps = phase.get("steps")
        for j, step in enumerate(steps if isinstance(steps, list) else []):
            if isinstance(step, dict):
                yield ("phases", i, "steps", j), phase.get("enabled") is not False, step


def _raw_phases(raw: Json) -> Iterator[tuple[int, dict[str, Json]]]:
    phases = raw.get("phases") if isinstance(raw, dict) else None
    for i, phase in enumerate(phases if isinstance(phases, list) else []):
        if isinstance(phase, dict):
            yield i, phase


def _read_spec(
    runbook: Source, key: ValuePath, file: Path
) -> tuple[SpecFile | None, list[Problem]]:
    wrong = unreadable(file)
    if wrong:
        return None, [runbook.problem(key, *wrong, key=True)]
    try:
        source = read_yaml(file)
    except ConfigError as error:
        return None, [from_error(error)]
    raw = source.value()
    model = _valid(SpecModel, raw)
    return SpecFile(file, source, model), find_problems(SpecModel, raw, source)


def _valid(model: type[_Model], raw: Json) -> _Model | None:
    try:
        return model.model_validate(raw)
    except ValidationError:
        return None


def _specs(slots: Sequence[Slot]) -> list[SpecFile]:
    """Each spec once."""
    return list({slot.spec.path: slot.spec for slot in slots if slot.spec}.values())


def _check_head(
    source: Source, environ: Mapping[str, str], *, model_too: bool
) -> Iterator[Problem]:
    """Phases named twice, and variables that are not set."""
    raw = source.value()
    phases = [(("phases", i), str(p.get("name") or "")) for i, p in _raw_phases(raw)]
    yield from check_names(source, phases, "phase")
    texts: dict[ValuePath, Json] = {}
    environment = raw.get("environment") if isinstance(raw, dict) else None
    if isinstance(environment, dict):
        texts |= {("environment", name): text for name, text in environment.items()}
    if model_too:
        texts["model", "source", "path"] = _model_path(raw)
    for path, text in texts.items():
        unset = check_variables(source, path, text, environ) if isinstance(text, str) else None
        if unset:
            yield unset


def _moves_model(override: Override) -> bool:
    return override.first == "model" and override.rest.partition(".")[0] in {"", "source"}


def _model_path(raw: Json) -> Json:
    for key in ("model", "source", "path"):
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw


def _overridden(
    source: Source, asked: Sequence[Override], environ: Mapping[str, str]
) -> RunbookModel:
    """The runbook with its top-level values set."""
    raw = source.value()
    for override in asked:
        raw = set_in_head(raw, override)
        wrong = find_problems(RunbookModel, raw, source)
        if _moves_model(override) and not wrong:
            path = _model_path(raw) or ""
            unset = check_variables(source, (), path, environ)
            wrong = [unset] if unset else []
        _raise([override.problem(p.what, p.fix) for p in wrong])
    return RunbookModel.model_validate(raw)
