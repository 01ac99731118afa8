"""``--set a.b=c``: one value of a runbook or of a step's parameters, changed for this run.

Rule: an override changes what is there and keeps its type. What a gate is judged by is not set
from the command line: it is changed in the spec, where the change is on record.
"""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runbook.contract import Json
from runbook.errors import ConfigError
from runbook.params import all_params, find_param, is_number
from runbook.problems import Problem, printable, quoted, suggestion, to_error
from runbook.schema_models import CriterionModel, GateModel, StepModel
from runbook.yaml_source import parse_yaml

TOP_LEVEL = ("seed", "engine", "budget", "model")
"""The keys of a runbook that can be set."""
_JUDGED = {*StepModel.model_fields, *GateModel.model_fields, *CriterionModel.model_fields, "gate"}
_FIXED = ("reviewer", "stop_conditions", "phases", "gate")
_PATH = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*")


@dataclass(frozen=True)
class Override:
    """One ``--set`` argument, read."""

    arg: str
    first: str
    """A step's name or one of ``TOP_LEVEL``."""
    rest: str
    """The dotted path within it; empty if the argument named the first alone."""
    value: Json

    def problem(self, what: str, fix: str) -> Problem:
        """A problem with this argument."""
        return _problem(self.arg, what, fix)


def parse_override(arg: str) -> Override:
    """Read ``a.b=c``; c is YAML: a scalar, or a list or mapping in flow style.

    Raises:
        ConfigError: with ``where`` as ``--set ARG``.
    """
    path, equals, text = arg.partition("=")
    if not equals or not _PATH.fullmatch(path):
        fix = "write --set step.parameter=value, as pilot.max_new_tokens=4"
        raise to_error([_problem(arg, f"{quoted(path)} is not followed by =value", fix)])
    if not text.strip():
        raise to_error([_problem(arg, "the value is empty", 'write "" for an empty text')])
    try:
        value = parse_yaml(text, f"--set {arg}").value()
    except ConfigError as error:
        fix = "write a YAML scalar, or a list as [1, 2]"
        raise to_error([_problem(arg, error.what, fix)]) from error
    first, _, rest = path.partition(".")
    return Override(arg, first, rest, value)


def find_target(override: Override, steps: Iterable[str]) -> Problem | None:
    """The problem with what an override is aimed at, if it is neither a step nor a known key."""
    names = [*steps, *TOP_LEVEL]
    if override.first in names:
        return None
    if override.first in _FIXED:
        return _on_record(override, override.first)
    what = f"there is no step or key {quoted(override.first)} to set"
    return override.problem(what, suggestion(override.first, names))


def set_in_head(raw: Json, override: Override) -> Json:
    """The runbook's document with a top-level value set; the schema judges it afterwards.

    Raises:
        ConfigError: the path leads through something that is not a mapping.
    """
    changed = copy.deepcopy(raw)
    *above, last = [override.first, *filter(None, override.rest.split("."))]
    place = changed
    for key in above:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            fix = f"set {printable(key)} itself"
            raise to_error([override.problem(f"{quoted(key)} is not a mapping", fix)])
    place[last] = override.value
    return changed


def set_in_params(params: Json, files: Iterable[str], override: Override) -> Json:
    """A step's parameters with one of them set.

    Args:
        params: left as they are.
        files: names of parameters that hold the path of a declared file.
        override: its first part is the step.

    Raises:
        ConfigError: there is no such parameter, or the value is of another type.
    """
    name = override.rest
    head = name.partition(".")[0]
    if head in _JUDGED and head not in params:
        raise to_error([_on_record(override, head)])
    if head in set(files):
        what = f"{quoted(head)} is an input file, whose bytes are part of the plan"
        raise to_error([override.problem(what, "change its path under files: in the spec")])
    try:
        old = find_param(params, name)
    except KeyError as error:
        what = f"the step '{override.first}' has no parameter {quoted(name)}"
        fix = suggestion(name, [n for n, _ in all_params(params)])
        raise to_error([override.problem(what, fix)]) from error
    changed = copy.deepcopy(params)
    above, _, last = name.rpartition(".")
    place: Any = find_param(changed, above) if above else changed
    place[int(last) if isinstance(place, list) else last] = _fitted(old, override)
    return changed


def _fitted(old: Json, override: Override) -> Json:
    """The override's value, if it is of the old value's type; an int may stand for a float."""
    new = override.value
    wanted = _TYPE_NAMES.get(type(old))
    if wanted is None:
        what = f"{quoted(override.rest)} is a mapping"
        raise to_error([override.problem(what, "set the values in it one by one")])
    if isinstance(old, float) and is_number(new):
        return float(new)
    if old is not None and type(new) is not type(old):
        what = f"{quoted(override.rest)} is {wanted}, {quoted(new)} is not"
        fix = 'quote it within the argument: "..."' if wanted == "text" else f"write {wanted}"
        raise to_error([override.problem(what, fix)])
    return new


_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    type(None): "null",
}


def _on_record(override: Override, key: str) -> Problem:
    what = f"{quoted(key)} is not set from the command line: of a step, only its parameters are"
    fix = "change it in the spec or runbook: thresholds, retries and reviewers change on record"
    return override.problem(what, fix)


def _problem(arg: str, what: str, fix: str) -> Problem:
    return Problem(f"--set {arg}", 0, 0, what, fix)
