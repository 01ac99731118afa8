"""Verbs that read a runbook, or a session of it, and touch nothing: validate, plan."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runbook.cli.options import WORKSPACE, AsJson, Folder, Overrides, Spec, answer, say
from runbook.contract import Criterion, Json

if TYPE_CHECKING:
    from runbook.budget import Limits, Spent
    from runbook.changes import Comparison, StepChange
    from runbook.estimate import Estimate, Interval, Projection
    from runbook.plan import Plan, PlannedStep
    from runbook.workspace import Workspace

_RUNS = ("redo", "invalidated")
"""What becomes of a step that is to run."""


def validate(spec: Spec, *, overrides: Overrides, as_json: AsJson = False) -> None:
    """Check a runbook and the specs it names; touch nothing."""
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light

    plan = load_plan(spec, overrides)
    say(f"{spec}: good. {len(plan.steps)} steps, fingerprint {plan.fingerprint[:12]}.")
    if as_json:
        answer({"valid": True, "steps": len(plan.steps), "fingerprint": plan.fingerprint})


def show_plan(
    spec: Spec, *, workspace: Folder = WORKSPACE, overrides: Overrides, as_json: AsJson = False
) -> None:
    """Show steps, gates, time and cost; with a session in the workspace, what it would redo."""
    from runbook.budget import spent  # noqa: PLC0415 - start-up stays light
    from runbook.changes import compare_plan  # noqa: PLC0415 - start-up stays light
    from runbook.cli.showing import read_facts  # noqa: PLC0415 - start-up stays light
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    plan = load_plan(spec, overrides)
    place = Workspace.at(workspace)
    known = read_facts(place)
    found = compare_plan(plan, known) if known else None
    outlook = _estimated(plan, found, spent(known))
    if as_json:
        _answer_rows(plan, found, outlook)
        return
    say(_table(plan))
    if found:
        say("\n".join(_changes(plan, found, place)))
    say("\n".join(_outlook(outlook)))


@dataclass(frozen=True)
class _Outlook:
    """What the steps that would run take, and what each limit will have been charged."""

    steps: "tuple[Estimate, ...]"
    seconds: "Interval"
    limits: "Limits"
    projections: "tuple[Projection, ...]"


def _estimated(plan: "Plan", found: "Comparison | None", spent: "Spent") -> _Outlook:
    """Of the steps that would run now: all that are enabled, or what a session has left."""
    from runbook import estimate  # noqa: PLC0415 - start-up stays light
    from runbook.budget import Limits  # noqa: PLC0415 - start-up stays light
    from runbook.fingerprint import plan_document  # noqa: PLC0415 - start-up stays light

    runs = [step.name for step in plan.steps if step.enabled]
    if found and found.steps:
        runs = [change.step for change in found.steps if change.fate.value in _RUNS]
    steps = estimate.estimate_steps(plan_document(plan), runs, estimate.read_history())
    more, limits = estimate.total(steps), Limits.of(plan.budget)
    return _Outlook(steps, more, limits, tuple(estimate.project(limits, spent, more)))


def _answer_rows(plan: "Plan", found: "Comparison | None", outlook: _Outlook) -> None:
    """One object a step, and one for the whole."""
    from runbook.codec import encode  # noqa: PLC0415 - start-up stays light

    changes = {change.step: change for change in found.steps} if found else {}
    estimates = {estimate.step: estimate for estimate in outlook.steps}
    for step in plan.steps:
        row = {"estimate": encode(estimates.get(step.name))}
        if step.name in changes:
            row["change"] = _change_document(plan, changes[step.name])
        answer(_document(step) | row)
    whole = {"plan": plan.name, "fingerprint": plan.fingerprint, "seconds": encode(outlook.seconds)}
    if found:
        whole |= {"changes": list(found.fields), "refused": list(found.refused)}
    answer(whole | {"limits": encode(outlook.projections)})


def _change_document(plan: "Plan", change: "StepChange") -> dict[str, Json]:
    from runbook.codec import encode  # noqa: PLC0415 - start-up stays light

    told: dict[str, Json] = encode(change)
    return told | {"usd": _usd(plan, change.seconds)}


def _usd(plan: "Plan", seconds: float | None) -> float | None:
    price = plan.budget.get("usd_per_hour")
    return None if price is None or seconds is None else seconds / 3600 * price


def _changes(plan: "Plan", found: "Comparison", place: "Workspace") -> Iterator[str]:
    """What the session in the workspace keeps under this plan, and what it makes again."""
    from runbook.report.safe_text import columns, one_line  # noqa: PLC0415 - start-up stays light

    yield ""
    if found.refused:
        yield f"{place.root} holds another session: {one_line('; '.join(found.refused))}."
        yield "Undo that, or begin in another workspace."
        return
    yield f"The session in {place.root} under this plan:"
    rows = [("step", "what becomes of it", "took before", "because of")]
    yield from columns(
        [*rows, *(row for change in found.steps for row in _fate_rows(plan, change))]
    )
    if found.fields:
        where = [str(plan.runbook), "--workspace", str(place.root)]
        options = [part for assignment in plan.overrides for part in ("--set", assignment)]
        accept = ["runbook", "run", *where, *options, "--accept-changes", "REASON"]
        yield f"{len(found.fields)} field(s) changed, so it goes on only where that is accepted:"
        yield f"  {shlex.join(accept)}"


def _fate_rows(plan: "Plan", change: "StepChange") -> Iterator[tuple[str, str, str, str]]:
    from runbook.report.figures import duration  # noqa: PLC0415 - start-up stays light

    took = "" if change.seconds is None else duration(change.seconds)
    usd = _usd(plan, change.seconds)
    took += "" if usd is None else f", ${usd:.2f}"
    through = f" (through {', '.join(change.through)})" if change.through else ""
    causes = [*change.fields]
    if change.earlier_code:
        causes.append(f"stays, made with earlier code of {', '.join(change.earlier_code)}")
    causes = causes or [""]
    yield change.step, change.fate.value, took, f"{causes[0]}{through}"
    yield from (("", "", "", cause) for cause in causes[1:])
    for shards in change.shards:
        yield f"  shards {shards.first} to {shards.last}", shards.fate.value, "", ""


def _outlook(outlook: _Outlook) -> Iterator[str]:
    from runbook.report import spending  # noqa: PLC0415 - start-up stays light
    from runbook.report.figures import duration  # noqa: PLC0415 - start-up stays light
    from runbook.report.safe_text import columns, one_line  # noqa: PLC0415 - start-up stays light

    yield ""
    if not outlook.steps:
        yield "Nothing is left to run."
        return
    if not any(estimate.runs for estimate in outlook.steps):
        yield "Time: not measured; no step of this plan has run to its end on this machine."
        return
    rows = [("step", "time, without retries", "runs on this machine")]
    for estimate in outlook.steps:
        time = spending.interval(estimate.seconds, duration) if estimate.runs else "not measured"
        other = "" if estimate.same_params or not estimate.runs else ", with other parameters"
        rows.append((estimate.step, time, f"{estimate.runs}{other}"))
    yield from columns(rows)
    ahead = spending.ahead(outlook.steps, outlook.seconds, outlook.limits)
    yield one_line(f"In all: {ahead}.")
    yield from (one_line(f"{line}.") for line in spending.projected(outlook.projections))


def _document(step: "PlannedStep") -> dict[str, Json]:
    from runbook.codec import encode  # noqa: PLC0415 - start-up stays light

    gate = encode(step.gate)
    if step.gate:
        for shown, criterion in zip(gate["criteria"], step.gate.criteria, strict=True):
            shown["threshold"] = criterion.threshold
    return {
        "phase": step.phase,
        "name": step.name,
        "function": step.function,
        "code": dict(step.code),
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
    from runbook.budget import Limits  # noqa: PLC0415 - start-up stays light
    from runbook.report.figures import duration  # noqa: PLC0415 - start-up stays light

    limits = Limits.of(plan.budget)
    told = [] if limits.wall_clock_s is None else [f"{duration(limits.wall_clock_s)} of wall clock"]
    told += [] if limits.gpu_hours is None else [f"{limits.gpu_hours:g} GPU-hours"]
    told += [] if limits.usd is None else [f"${limits.usd:.2f} in all"]
    told += [] if limits.review_usd is None else [f"${limits.review_usd:.2f} on reviews"]
    return ", ".join(told) or "no limit is declared"


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
    if step.gate.smoke is not None and step.adjustments:
        few = ", ".join(f"{name}: {value}" for name, value in step.gate.smoke.items())
        lines.append(f"before a changed rerun, a smoke with {few}")
    return lines


def _criterion(criterion: Criterion) -> str:
    least = f", n >= {criterion.min_n}" if criterion.min_n > 1 else ""
    return f"{criterion.metric} {criterion.threshold} ({criterion.kind}{least})"
