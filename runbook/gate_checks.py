"""Checks what no single step's parameters can tell of its gate: criteria and targets that agree.

A criterion that no sample could satisfy would stop every session after its step was paid for, and
a forecast for another target than the one that is made says nothing of it. Nor does the power of
another test than the one which the evaluation is judged by.
"""

from collections.abc import Iterator, Sequence

from runbook.contract import Gate, Json
from runbook.plan import Plan, PlannedStep
from runbook.problems import Problem, quoted
from runbook.schema_checks import Slot
from runbook.schema_models import CriterionModel
from runbook.yaml_source import Source

FORECAST = "forecast_target"
TARGET = "target_kept"
POWER = "power"
ALPHA = "alpha"
"""The parameter that the metric ``POWER`` is computed with."""
P_VALUE = "mcnemar_p"


def check_criteria(slots: Sequence[Slot]) -> Iterator[Problem]:
    """Rates held to a threshold that their confidence bound cannot reach."""
    for slot in slots:
        gate = slot.spec.model.gate if slot.spec and slot.spec.model else None
        for at, criterion in enumerate(gate.criteria if gate else ()):
            if slot.spec and criterion.kind == "rate":
                yield from _unreachable(slot.spec.source, at, criterion)


def _unreachable(source: Source, at: int, criterion: CriterionModel) -> Iterator[Problem]:
    """Of any finite sample the bounds lie above 0 and below 1."""
    ends = {"at_most": 0, "below": 0, "at_least": 1, "above": 1}
    for name, end in ends.items():
        if getattr(criterion, name) == end:
            what = (
                f"no sample can pass {name}: {end} as a rate: its 95 % bound never reaches {end}, "
                f"so {quoted(criterion.metric)} stays underpowered"
            )
            fix = (
                "where not one case may be, count the cases: a metric of kind census with "
                f"at_most: 0; else leave room, as {name}: {0.01 if end == 0 else 0.99}"
            )
            yield source.problem(("gate", "criteria", at, name), what, fix)


def check_targets(plan: Plan, slots: Sequence[Slot]) -> Iterator[Problem]:
    """Forecasts for another target than that of the step which is made after them.

    Read from the plan, where overrides are applied.
    """
    written = {slot.name: slot.spec for slot in slots}
    for step in plan.steps:
        for name in step.inputs:
            earlier = plan.step(name)
            told, made = earlier.params.get(FORECAST), step.params.get(TARGET)
            spec = written[name]
            if told is None or made is None or told == made or spec is None:
                continue
            what = (
                f"{FORECAST} of '{name}' is {quoted(told)}, and {TARGET} of '{step.name}' is "
                f"{quoted(made)}: the forecast is for a set that is not made"
            )
            both = f"--set {name}.{FORECAST}={quoted(made)}"
            fix = f"give both the same number, on the command line too: {both}"
            yield spec.source.problem(("params", FORECAST), what, fix)


def check_alphas(plan: Plan, slots: Sequence[Slot]) -> Iterator[Problem]:
    """Power computed for another p-value than that which a later step's gate asks for.

    Read from the plan, where overrides are applied; one that the gate's extension or a retry may
    set counts too.
    """
    written = {slot.name: slot for slot in slots}
    for step in plan.steps:
        asked = _p_asked(step.gate)
        for name in step.inputs if asked is not None else ():
            earlier = plan.step(name)
            if not any(c.metric == POWER for c in (earlier.gate.criteria if earlier.gate else ())):
                continue
            slot = written[name]
            told = next((a for a in _alphas(earlier, slot) if a != asked), None)
            if told is None or slot.spec is None:
                continue
            what = (
                f"{ALPHA} of '{name}' is {quoted(told)}, and the gate of '{step.name}' asks for "
                f"{P_VALUE} {asked:g}: the power at '{name}' is that of another test"
            )
            both = f"--set {name}.{ALPHA}={asked:g}"
            fix = f"give both the same number, on the command line too: {both}"
            yield slot.spec.source.problem(("params", ALPHA), what, fix)


def _p_asked(gate: Gate | None) -> float | None:
    """The p-value below which the gate passes; the strictest, where there are several."""
    criteria = [c for c in (gate.criteria if gate else ()) if c.metric == P_VALUE]
    ends = [end for c in criteria for end in (c.below, c.at_most) if end is not None]
    return min(ends, default=None)


def _alphas(step: PlannedStep, slot: Slot) -> Iterator[Json]:
    """Every value that the step may compute its power with."""
    field = slot.model.model_fields.get(ALPHA) if slot.model else None
    default = None if field is None else field.default
    extended = step.gate.extend if step.gate else None
    given = (step.params.get(ALPHA, default), (extended or {}).get(ALPHA))
    allowed = step.adjustable.get(ALPHA)
    ends = (allowed.min, allowed.max) if allowed else ()
    yield from (value for value in (*given, *ends) if value is not None)
