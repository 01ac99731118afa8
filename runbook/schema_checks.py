"""Checks what ties a runbook's names together and to its files.

A step whose own shape is wrong is not checked further, but its name counts, so that one mistake
is told once. Disabled phases are checked like the others.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from runbook.contract import Json
from runbook.params import all_params, expand, find, is_number
from runbook.problems import Problem, printable, quoted, suggestion
from runbook.redact import is_secret_name
from runbook.schema_models import AdjustmentModel, RunbookModel, SpecModel, StepModel
from runbook.step_function import check_function
from runbook.yaml_source import Source, ValuePath, unreadable

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", re.ASCII)
_LONGEST_OUTPUT = 500
_OWN = re.compile(
    r"(logs|reviews|report\.md|artifacts/(work|session_manifest_[^/]*))(/|$)|artifacts$"
)
"""Places of a workspace that are the executor's own."""


@dataclass(frozen=True)
class SpecFile:
    """A spec as it was read."""

    path: Path
    source: Source
    model: SpecModel | None
    """None where its shape is wrong."""


@dataclass(frozen=True)
class Slot:
    """A step's place in the runbook."""

    path: ValuePath
    name: str
    """Empty where it is missing."""
    enabled: bool
    step: StepModel | None
    """None where its shape is wrong."""
    spec: SpecFile | None = None
    """None where there is none, or none that can be read."""
    model: type[BaseModel] | None = None
    """Of the step's parameters; None where its module declares none that can be used."""
    metrics: tuple[str, ...] | None = None
    """What a gate may ask for; None where the step's module does not say."""


def check_names(
    source: Source, named: Sequence[tuple[ValuePath, str]], noun: str
) -> Iterator[Problem]:
    """Names that stand twice."""
    seen: set[str] = set()
    for path, name in named:
        if name and name in seen:
            what = f"there is a {noun} {quoted(name)} already"
            yield source.problem((*path, "name"), what, "give it another name")
        seen.add(name)


def check_steps(source: Source, slots: Sequence[Slot], folder: Path) -> Iterator[Problem]:
    """All that is wrong between the steps, and between a step and its files.

    Args:
        source: the runbook.
        slots: its steps, in order.
        folder: the runbook's folder.
    """
    yield from check_names(source, [(s.path, s.name) for s in slots], "step")
    outputs: dict[str, str] = {}
    for i, slot in enumerate(slots):
        if slot.name in RunbookModel.model_fields:
            what = f"{quoted(slot.name)} is a key of the runbook itself, which --set could not tell"
            yield source.problem((*slot.path, "name"), what, "give the step another name")
        if slot.step is None:
            continue
        yield from _check_links(source, slots, i, slot.step)
        yield from _check_output(source, slot, slot.step, outputs)
        wrong = check_function(slot.step.function, folder)
        if wrong:
            yield source.problem((*slot.path, "function"), *wrong)
        spec = slot.spec.model if slot.spec else None
        if slot.step.spec is None:
            spec = SpecModel(spec=1)
        if spec is not None:
            yield from _check_adjusting(
                source, slot, slot.step, spec, _rerun_params(slots, i, spec)
            )
            yield from _check_smoke(source, slot, slot.step, spec)


def _check_links(
    source: Source, slots: Sequence[Slot], index: int, step: StepModel
) -> Iterator[Problem]:
    slot = slots[index]
    for i, name in enumerate(step.inputs):
        wrong = _check_link(slots, index, name, itself=name == slot.name)
        if wrong:
            yield source.problem((*slot.path, "inputs", i), *wrong)
    if step.rerun_from not in {None, slot.name}:
        wrong = _check_link(slots, index, str(step.rerun_from), itself=False)
        if wrong:
            yield source.problem((*slot.path, "rerun_from"), *wrong)
        elif slot.spec and slot.spec.model and slot.spec.model.gate and slot.spec.model.gate.smoke:
            start = quoted(str(step.rerun_from))
            what = f"a smoke is of one step, and a retry of this one begins at {start}"
            fix = f"take gate.smoke out of {step.spec}, or rerun_from away"
            yield source.problem((*slot.path, "rerun_from"), what, fix)


def _check_link(
    slots: Sequence[Slot], index: int, name: str, *, itself: bool
) -> tuple[str, str] | None:
    """What is wrong with a step's naming an earlier one."""
    earlier = {s.name: s for s in slots[:index]}
    if itself or (name not in earlier and name in {s.name for s in slots}):
        what = f"the step {quoted(name)} does not come earlier"
        return what, "name an earlier step, or move that one up"
    if name not in earlier:
        return f"there is no step {quoted(name)}", suggestion(name, earlier)
    if slots[index].enabled and not earlier[name].enabled:
        what = f"the step {quoted(name)} is in a phase that is not enabled"
        return what, "enable that phase, or take the name away"
    return None


def _check_output(
    source: Source, slot: Slot, step: StepModel, taken: dict[str, str]
) -> Iterator[Problem]:
    path = (*slot.path, "output")
    segments = step.output.replace("{time}", "0").split("/")
    if step.output.startswith("/") or ".." in segments:
        what = f"the output {quoted(step.output)} may lie outside the workspace"
        yield source.problem(path, what, "write a folder relative to the workspace, without ..")
    elif "{" in "".join(segments):
        what = f"the output {quoted(step.output)} has an unknown placeholder"
        yield source.problem(path, what, "the only placeholder is {time}")
    elif len(step.output) > _LONGEST_OUTPUT or not all(_SEGMENT.fullmatch(s) for s in segments):
        what = f"{quoted(step.output)} is not the name of a folder"
        fix = "use letters, digits, _, - and dots, with / between folders, as results/baseline"
        yield source.problem(path, what, fix)
    elif _OWN.match("/".join(segments)):
        what = f"the output {quoted(step.output)} is a place of the executor's own"
        fix = "write a folder of the step's own, as artifacts/pilot_{time} or results/baseline"
        yield source.problem(path, what, fix)
    elif step.output in taken:
        what = f"the step '{taken[step.output]}' has the same output"
        yield source.problem(path, what, "give each step a folder of its own")
    elif other := next((o for o in taken if _overlap(o, step.output)), None):
        what = f"the output lies within that of the step '{taken[other]}', or the other way round"
        yield source.problem(path, what, "give each step a folder of its own, beside the others")
    else:
        taken[step.output] = slot.name


def _overlap(one: str, other: str) -> bool:
    """Whether one folder lies within the other; a step may clear its own."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def rerun_slots(slots: Sequence[Slot], index: int) -> list[Slot]:
    """The steps that a retry of this one runs again, in order, itself last."""
    step = slots[index].step
    names = [slot.name for slot in slots[:index]]
    first = names.index(step.rerun_from) if step and step.rerun_from in names else index
    return list(slots[first : index + 1])


def _rerun_params(slots: Sequence[Slot], index: int, own: SpecModel) -> list[dict[str, Json]]:
    """What a retry may change, the step's own parameters first."""
    earlier = rerun_slots(slots, index)[:-1]
    return [own.params, *(s.spec.model.params for s in earlier if s.spec and s.spec.model)]


def _check_smoke(source: Source, slot: Slot, step: StepModel, spec: SpecModel) -> Iterator[Problem]:
    """A smoke whose own parameters would take the place of the change that it is to show."""
    few = (spec.gate.smoke if spec.gate else None) or {}
    for i, adjustment in enumerate(step.adjustments):
        for name in adjustment.change:
            hidden = [param for param in few if _is_of(name, param) or _is_of(param, name)]
            if hidden:
                what = f"the smoke sets {quoted(hidden[0])}, so it would not show this change"
                fix = f"take {hidden[0]} out of gate.smoke in {step.spec}"
                yield source.problem((*slot.path, "adjustments", i, "change", name), what, fix)


def _is_of(name: str, other: str) -> bool:
    """Whether a parameter is another one, or lies in it."""
    return name == other or name.startswith(f"{other}.")


def _check_adjusting(
    source: Source, slot: Slot, step: StepModel, spec: SpecModel, params: list[dict[str, Json]]
) -> Iterator[Problem]:
    """``params``: what a retry may change, the step's own first."""
    for name in step.adjustable:
        wrong = _check_number(params, name)
        if wrong:
            yield source.problem((*slot.path, "adjustable", name), *wrong, key=True)
    metrics = [c.metric for c in spec.gate.criteria] if spec.gate else []
    for i, adjustment in enumerate(step.adjustments):
        path = (*slot.path, "adjustments", i)
        if adjustment.when not in metrics:
            what = f"the gate of '{slot.name}' has no criterion on {quoted(adjustment.when)}"
            fix = suggestion(adjustment.when, metrics)
            yield source.problem((*path, "when"), what, fix)
        for name, wrong in _check_changes(step, params, adjustment):
            yield source.problem((*path, "change", name), *wrong, key=True)


def _check_changes(
    step: StepModel, params: list[dict[str, Json]], adjustment: AdjustmentModel
) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, change in adjustment.change.items():
        wrong = _check_number(params, name)
        allowed = step.adjustable.get(name)
        if wrong:
            yield name, wrong
        elif allowed is None:
            shown = printable(name)
            fix = f"add {shown}: {{min: ..., max: ...}} under adjustable"
            yield name, (f"'{shown}' is changed but not adjustable", fix)
        elif change.set is not None and not allowed.min <= change.set <= allowed.max:
            what = f"{change.set:g} is outside {allowed.min:g} to {allowed.max:g}"
            yield name, (what, "set a value inside its range under adjustable")


def _check_number(params: list[dict[str, Json]], name: str) -> tuple[str, str] | None:
    found = [value for part in params if (value := find(part, name)) is not None]
    if not found:
        numbers = [n for part in params for n, v in all_params(part) if is_number(v)]
        return f"the spec has no parameter {quoted(name)}", suggestion(name, numbers)
    if not is_number(found[0]):
        what = f"the parameter {quoted(name)} is {quoted(found[0])}, not a number"
        return what, "only numbers can be adjusted"
    return None


def check_files(spec: SpecFile, environ: Mapping[str, str]) -> Iterator[Problem]:
    """Files a spec names that are not there, or that its parameters name otherwise.

    The spec's shape may be wrong elsewhere.
    """
    raw = spec.source.value()
    files, params = (_mapping(raw, key) for key in ("files", "params"))
    for name, text in files.items():
        path = ("files", name)
        if not isinstance(text, str):
            continue
        unset = check_variables(spec.source, path, text, environ)
        if unset:
            yield unset
            continue
        wrong = unreadable(spec.path.parent / expand(text, environ))
        if wrong:
            yield spec.source.problem(path, *wrong, key=True)
        if params.get(name, text) != text:
            what = f"params and files give {quoted(name)} two values"
            fix = "take it away from params: the path under files lands there"
            yield spec.source.problem(("params", name), what, fix)


def _mapping(raw: Json, key: str) -> dict[str, Json]:
    value = raw.get(key) if isinstance(raw, dict) else None
    return value if isinstance(value, dict) else {}


def check_variables(
    source: Source, path: ValuePath, text: str, environ: Mapping[str, str]
) -> Problem | None:
    """The problem with a ``${NAME}`` that cannot be replaced, or that no path may hold."""
    is_path = path[:1] != ("environment",)
    usable = {n: v for n, v in environ.items() if not (is_path and is_secret_name(n))}
    try:
        expand(text, usable)
    except KeyError as error:
        name = printable(str(error.args[0]))
        if is_path and is_secret_name(name):
            what = f"by its name '{name}' is a secret, and a path is recorded"
            return source.problem(path, what, "name a variable that holds a path")
        fix = f"export {name}=... before the start, or write the value here"
        return source.problem(path, f"the environment variable '{name}' is not set", fix)
    return None
