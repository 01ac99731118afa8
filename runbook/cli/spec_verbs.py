"""Verbs that read a runbook and touch nothing: validate, plan."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from runbook.cli.options import AsJson, Overrides, Spec, answer, say
from runbook.contract import Criterion, Json

if TYPE_CHECKING:
    from runbook.plan import Plan, PlannedStep


def validate(spec: Spec, *, overrides: Overrides, as_json: AsJson = False) -> None:
    """Check a runbook and the specs it names; touch nothing."""
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light

    plan = load_plan(spec, overrides)
    say(f"{spec}: good. {len(plan.steps)} steps, fingerprint {plan.fingerprint[:12]}.")
    if as_json:
        answer({"valid": True, "steps": len(plan.steps), "fingerprint": plan.fingerprint})


def show_plan(spec: Spec, *, overrides: Overrides, as_json: AsJson = False) -> None:
    """Show the steps in order, with their gates and retries; load no model."""
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light

    plan = load_plan(spec, overrides)
    if as_json:
        for step in plan.steps:
            answer(_document(step))
    else:
        say(_table(plan))


def _document(step: "PlannedStep") -> dict[str, Json]:
    from runbook.events import encode  # noqa: PLC0415 - start-up stays light

    gate = encode(step.gate)
    if step.gate:
        for shown, criterion in zip(gate["criteria"], step.gate.criteria, strict=True):
            shown["threshold"] = criterion.threshold
    return {
        "phase": step.phase,
        "name": step.name,
        "function": step.function,
        "enabled": step.enabled,
        "inputs": list(step.inputs),
        "output": step.output,
        "gate": gate,
        "retries": step.retries,
        "rerun_from": step.rerun_from,
        "adjustable": encode(step.adjustable),
        "fingerprint": step.fingerprint,
    }


def _table(plan: "Plan") -> str:
    from runbook.report.safe_text import columns  # noqa: PLC0415 - start-up stays light

    rows = [("phase", "step", "function", "retries", "gate")]
    rows += [row for step in plan.steps for row in _rows(step)]
    return "\n".join(
        [
            f"{plan.name}: {len(plan.steps)} steps, fingerprint {plan.fingerprint[:12]}",
            f"budget: {_budget(plan)}",
            "",
            *columns(rows),
        ]
    )


def _budget(plan: "Plan") -> str:
    from runbook.report.figures import duration  # noqa: PLC0415 - start-up stays light

    limit = plan.budget.get("wall_clock_s")
    return "no limit is declared" if limit is None else f"{duration(limit)} of wall clock"


def _rows(step: "PlannedStep") -> Iterator[tuple[str, str, str, str, str]]:
    """The step's row; each further line of its gate stands below in a row of its own."""
    gate = _gate_lines(step)
    phase = step.phase if step.enabled else f"{step.phase} (skipped)"
    again = f", from {step.rerun_from}" if step.retries and step.rerun_from != step.name else ""
    yield phase, step.name, step.function, f"{step.retries}{again}", gate[0]
    yield from (("", "", "", "", line) for line in gate[1:])


def _gate_lines(step: "PlannedStep") -> list[str]:
    if step.gate is None:
        return ["none"]
    lines = [_criterion(criterion) for criterion in step.gate.criteria]
    if step.gate.extend is not None:
        more = ", ".join(f"{name}: {value}" for name, value in step.gate.extend.items())
        lines.append(f"if underpowered, a second look with {more}")
    return lines


def _criterion(criterion: Criterion) -> str:
    least = f", n >= {criterion.min_n}" if criterion.min_n > 1 else ""
    return f"{criterion.metric} {criterion.threshold} ({criterion.kind}{least})"
