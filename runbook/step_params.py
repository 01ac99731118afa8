"""Checks a step's parameters against the pydantic model that its module names in ``PARAMS``.

``PARAMS = "module:ClassName"`` is read without importing the step's module, which may need torch;
the module it names must be light, since that one is imported. No ``PARAMS``, no check. Whatever a
session may set later is checked too: overrides, a gate's extension, both ends of each range.
``METRICS = ("name", ...)`` is read the same way, and a gate's criteria are held against it.
"""

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from runbook.contract import Json
from runbook.errors import ConfigError
from runbook.overrides import Override
from runbook.params import find, is_number, overlay
from runbook.plan import Plan
from runbook.problems import Problem, printable, quoted, suggestion
from runbook.schema_checks import Slot, rerun_slots
from runbook.schema_errors import Fault, find_faults
from runbook.schema_models import GateModel, SpecModel
from runbook.step_function import check_function, declared
from runbook.yaml_source import Source, ValuePath

CHECK = "check_files"
"""Method of a step's model that reads the files its parameters name."""

_Declared = tuple[type[BaseModel] | None, tuple[str, ...] | None, ConfigError | None]
"""Of a step's module: the model of its parameters, its metrics, what is wrong with them."""
_FORM = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*", re.ASCII)


def with_models(
    source: Source, slots: Sequence[Slot], folder: Path
) -> tuple[list[Slot], list[Problem]]:
    """The steps with the models of their parameters, and what is wrong with naming those."""
    found, problems = [], []
    known: dict[str, _Declared] = {}
    for slot in slots:
        function = slot.step.function if slot.step else ""
        if function not in known:
            known[function] = _declared_by(function, folder)
        model, metrics, error = known[function]
        if error:
            problems.append(source.problem((*slot.path, "function"), error.what, error.fix))
        found.append(replace(slot, model=model, metrics=metrics))
    return found, problems


def _declared_by(function: str, folder: Path) -> _Declared:
    """What the function's module declares; nothing where there is no such function."""
    model, metrics = None, None
    if check_function(function, folder):
        return None, None, None
    try:
        model = params_model(function, folder)
        metrics = metric_names(function, folder)
    except ConfigError as error:
        return model, metrics, error
    return model, metrics, None


def params_model(function: str, folder: Path) -> type[BaseModel] | None:
    """The model that the step's module declares; None where it declares none.

    Args:
        function: one that ``check_function`` passed.
        folder: the runbook's folder, searched after ``sys.path``.

    Raises:
        ConfigError: PARAMS is there and leads to no pydantic model.
    """
    named = declared("PARAMS", function, folder)
    if named is None:
        return None
    if not isinstance(named, str) or not _FORM.fullmatch(named):
        what = f"PARAMS of '{function.partition(':')[0]}' is not the name of a class"
        raise ConfigError(what, where=function, fix='write PARAMS: Final = "module:ClassName"')
    try:
        found = _load(named, folder)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        what = f"PARAMS {quoted(named)} cannot be imported: {printable(str(error), longest=200)}"
        fix = "name a module that is there and imports nothing heavy, as module:ClassName"
        raise ConfigError(what, where=function, fix=fix) from error
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        what = f"PARAMS names {quoted(named)}, which is no pydantic model"
        fix = "name a class derived from pydantic.BaseModel"
        raise ConfigError(what, where=function, fix=fix)
    return found


def metric_names(function: str, folder: Path) -> tuple[str, ...] | None:
    """What a gate after the step may ask for, as its module says in ``METRICS``; None: not said.

    Raises:
        ConfigError: METRICS is there and is no list of names.
    """
    named = declared("METRICS", function, folder)
    if named is None:
        return None
    if not isinstance(named, tuple | list) or not all(isinstance(name, str) for name in named):
        what = f"METRICS of '{function.partition(':')[0]}' is no list of names"
        raise ConfigError(what, where=function, fix='write METRICS: Final = ("name", ...)')
    return tuple(named)


def _load(named: str, folder: Path) -> object:
    module, _, name = named.partition(":")
    with _searched(folder):
        found: object = getattr(importlib.import_module(module), name)
        if isinstance(found, type) and issubclass(found, BaseModel):
            # Later its module can no longer be asked for the names in its annotations.
            found.model_rebuild()
    return found


@contextmanager
def _searched(folder: Path) -> Iterator[None]:
    """The folder last on ``sys.path``; afterwards it is gone, and so are its modules.

    A file beside another runbook may have the same name. No bytecode is written beside this one.
    """
    entry, known, writes = str(folder.resolve()), {*sys.modules}, sys.dont_write_bytecode
    sys.path.append(entry)
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        with suppress(ValueError):
            # From the end: the folder may have been there before.
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(entry)]
        if entry not in sys.path:
            for name in [n for n in sys.modules if n not in known and _stands_in(n, Path(entry))]:
                del sys.modules[name]


def _stands_in(module: str, folder: Path) -> bool:
    """Whether the module was found there, and not in an environment that lies below."""
    found = sys.modules[module]
    places = [getattr(found, "__file__", None), *getattr(found, "__path__", ())]
    top = folder / module.partition(".")[0]
    return any(
        Path(place).is_relative_to(top) or Path(place) == top.with_suffix(".py")
        for place in places
        if place
    )


def check_params(source: Source, slots: Sequence[Slot]) -> Iterator[Problem]:
    """All that the steps' models have against their specs, gates and ranges."""
    for i, slot in enumerate(slots):
        spec = slot.spec.model if slot.spec else None
        if slot.metrics is not None and slot.spec and spec and spec.gate:
            yield from _check_metrics(slot.spec.source, spec.gate, slot.metrics)
        if slot.model and slot.spec and spec:
            yield from _check_spec(slot.spec.source, spec, slot.model)
            yield from _check_samples(slot.spec.source, spec, slot.model)
        elif slot.model and slot.step and slot.step.spec is None:
            for fault in find_faults(slot.model, {})[:1]:
                what = f"the step has no spec, and its function needs parameters: {fault.what}"
                yield source.problem((*slot.path, "function"), what, "add spec: with them")
        yield from _check_ranges(source, slots, i)


def _check_metrics(source: Source, gate: GateModel, known: Sequence[str]) -> Iterator[Problem]:
    for at, criterion in enumerate(gate.criteria):
        if criterion.metric not in known:
            what = f"the step measures no {quoted(criterion.metric)}"
            fix = suggestion(criterion.metric, known)
            yield source.problem(("gate", "criteria", at, "metric"), what, fix)


def check_contents(plan: Plan, slots: Sequence[Slot]) -> None:
    """Have each step's model read the files that its parameters name.

    A model may have a method ``check_files``; it gets the parameters as the step will, and raises
    ConfigError for a file that the step could not use.
    """
    for slot in slots:
        if slot.enabled and slot.model is not None and hasattr(slot.model, CHECK):
            _check_content(slot.model, plan.step(slot.name).params, slot.name)


def _check_content(model: type[BaseModel], params: Mapping[str, Json], step: str) -> None:
    """What a file holds is foreign text, so nothing of it reaches a terminal as it is."""
    try:
        getattr(model.model_validate(dict(params)), CHECK)()
    except ConfigError as error:
        what, where, fix = map(_escaped, (error.what, error.where, error.fix))
        raise ConfigError(what, where=where, fix=fix) from error
    except (Exception, SystemExit) as error:  # a user's check may raise anything
        said = printable(f"{type(error).__name__}: {error}", longest=500)
        what = f"the files of the step '{step}' cannot be checked: {said}"
        fix = f"mend the file, or {CHECK} of {model.__name__}: it says what is wrong by ConfigError"
        raise ConfigError(what, where=step, fix=fix) from error


def _escaped(text: str) -> str:
    return "\n".join(printable(line, longest=2000) for line in text.split("\n"))


def _values(spec: SpecModel) -> dict[str, Json]:
    """What the step is given, but for the absolute paths."""
    return {**spec.params, **spec.files}


def _check_spec(source: Source, spec: SpecModel, model: type[BaseModel]) -> Iterator[Problem]:
    for fault in find_faults(model, _values(spec)):
        section = "files" if fault.path and fault.path[0] in spec.files else "params"
        yield source.problem((section, *fault.path), fault.what, fault.fix, key=fault.key)


def _check_samples(source: Source, spec: SpecModel, model: type[BaseModel]) -> Iterator[Problem]:
    """The parameters of a second look and of a smoke."""
    gate = spec.gate
    for field, given in (("extend", gate.extend), ("smoke", gate.smoke)) if gate else ():
        changes = given or {}
        for fault in _new_faults(model, _values(spec), changes):
            name = _owner(fault.path, changes)
            inner: ValuePath = (name, *fault.path[len(name.split(".")) :]) if name else ()
            yield source.problem(("gate", field, *inner), fault.what, fault.fix, key=fault.key)


def _check_ranges(source: Source, slots: Sequence[Slot], index: int) -> Iterator[Problem]:
    slot = slots[index]
    for name, allowed in slot.step.adjustable.items() if slot.step else ():
        for end, bound in (("min", allowed.min), ("max", allowed.max)):
            for owner in rerun_slots(slots, index):
                for fault in _bound_faults(owner, name, bound):
                    what = f"{end} of {quoted(name)} cannot be set: {fault.what}"
                    path = (*slot.path, "adjustable", name)
                    yield source.problem(path, what, fault.fix, key=True)


def _bound_faults(owner: Slot, name: str, bound: float) -> list[Fault]:
    """What a step's model has against a parameter at one end of its range."""
    spec = owner.spec.model if owner.spec else None
    current = find(spec.params, name) if spec else None
    if owner.model is None or spec is None or not is_number(current):
        return []
    whole = isinstance(current, int) and bound.is_integer()
    return _new_faults(owner.model, _values(spec), {name: int(bound) if whole else bound})


def _new_faults(
    model: type[BaseModel], values: Mapping[str, Json], changes: Mapping[str, Json]
) -> list[Fault]:
    """What the changes bring; what was wrong before is told elsewhere."""
    known = find_faults(model, dict(values))
    return [f for f in find_faults(model, overlay(values, changes)) if f not in known]


def check_overridden(
    model: type[BaseModel], params: Mapping[str, Json], asked: Sequence[Override]
) -> list[Problem]:
    """What the model has against a sound step's parameters, once these overrides are applied."""
    problems = []
    for fault in find_faults(model, dict(params)):
        # The later of two holds.
        name = _owner(fault.path, [o.rest for o in reversed(asked)])
        blamed = next((o for o in reversed(asked) if o.rest == name), asked[-1])
        problems.append(blamed.problem(fault.what, fault.fix))
    return problems


def _owner(path: ValuePath, names: Iterable[str]) -> str:
    """The first of the dotted names that the path lies at or within; empty where none is."""
    dotted = ".".join(str(part) for part in path)
    return next((n for n in names if dotted == n or dotted.startswith(f"{n}.")), "")
