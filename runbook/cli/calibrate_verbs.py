"""The verb that measures the detectors here and now, without a model or a session.

Critics are measured by a session's calibration step, on its model; a certificate printed here
binds no session.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import WORKSPACE, AsJson, Folder, answer, say
from runbook.contract import Gate, Json, Metric
from runbook.errors import ConfigError, NeedsPersonError

if TYPE_CHECKING:
    from runbook.plan import Plan, PlannedStep

_STEP = "phases.calibration:run"
_SENTINELS = "phases.contamination:run"


def calibrate(
    *,
    spec: Annotated[
        Path | None,
        typer.Option(
            envvar="RUNBOOK_SPEC",
            help="A runbook: its own labelled rows and its calibration gate are used as well.",
        ),
    ] = None,
    workspace: Folder = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Measure the detectors on their labelled rows, here and now. Exit 3: one is below its bound.

    Where the workspace holds a session's certificate, it is told whether that still holds.
    """
    from phases.certificates import certify_detectors, sign  # noqa: PLC0415 - start-up stays light
    from phases.detectors import ALL, load_detector_probes, read  # noqa: PLC0415 - see above
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light

    steps = _calibrations(load_plan(spec)) if spec else []
    named = {name: path for step in steps for name, path in step.params.items()}
    added = {name: str(named.get(f"probe_{name}") or "") for name in ALL}
    rows = []
    for name, one in ALL.items():
        own = Path(added[name]) if added[name] else None
        rows += read(one, load_detector_probes(one, own))
    entries = certify_detectors(rows, added)
    earlier = _certified(workspace)
    say("\n".join(_table(entries, earlier)))
    reasons = [(step.name, reason) for step in steps for reason in _judged(step, rows)]
    for name, reason in reasons:
        say(f"the gate of step '{name}': {reason}")
    say(
        "Critics and filters are measured on a model: a session's step 'calibration' does it "
        f"({_STEP}), and its certificate is what later gates read."
    )
    if as_json:
        answer(sign(entries))
    if reasons or not all(entry["within_bounds"] for entry in entries.values()):
        raise typer.Exit(NeedsPersonError.code)


def _calibrations(plan: "Plan") -> list["PlannedStep"]:
    """The calibration step, and that of the sentinels where there is one."""
    found = [step for step in plan.steps if step.function in (_STEP, _SENTINELS)]
    if not any(step.function == _STEP for step in found):
        raise ConfigError(
            "the runbook has no calibration step",
            where=str(plan.runbook),
            fix=f"add a step with function: {_STEP}, or leave out --spec",
        )
    return found


def _judged(step: "PlannedStep", rows: list[dict[str, Json]]) -> list[str]:
    """What the step's gate has against the detectors; its criteria of filters are left out."""
    from tempfile import TemporaryDirectory  # noqa: PLC0415 - start-up stays light

    from gates.judge import judge_gate  # noqa: PLC0415 - start-up stays light
    from phases.detectors import DETECTORS, SENTINELS  # noqa: PLC0415 - start-up stays light
    from runbook.artifacts import write_jsonl  # noqa: PLC0415 - start-up stays light

    held = SENTINELS if step.function == _SENTINELS else DETECTORS
    names = {f"{name}_{side}" for name in held for side in ("sensitivity", "specificity")}
    criteria = tuple(c for c in (step.gate.criteria if step.gate else ()) if c.metric in names)
    if not criteria:
        return []
    with TemporaryDirectory() as folder:
        write_jsonl(Path(folder, "rows.jsonl"), rows)
        metric = Metric("detector_readings", float(len(rows)), len(rows), evidence="rows.jsonl")
        return [*judge_gate(Gate(criteria), [metric], Path(folder), final=True).reasons]


def _certified(workspace: Path) -> Mapping[str, Json]:
    """The newest that the workspace's session certified; none where there is no session."""
    from runbook.events import StepFinished  # noqa: PLC0415 - start-up stays light
    from runbook.journal import facts, read_entries  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    paths = {
        fact.step: artifact.path
        for fact in facts(read_entries(place))
        if isinstance(fact, StepFinished)
        for artifact in fact.artifacts
        if artifact.name == "certificate"
    }
    found: dict[str, Json] = {}
    for path in paths.values():
        with suppress(OSError, ValueError, KeyError, TypeError):
            found.update(json.loads(place.inside(path).read_text("utf-8"))["instruments"])
    return found


def _table(entries: Mapping[str, Json], earlier: Mapping[str, Json]) -> list[str]:
    from runbook.report.safe_text import columns  # noqa: PLC0415 - start-up stays light

    head = ("instrument", "n", "sensitivity (95 %)", "specificity (95 %)", "kappa", "state")
    rows: list[tuple[str, ...]] = [head]
    for name, entry in entries.items():
        kappa = "-" if entry["kappa"] is None else f"{entry['kappa']:.2f}"
        sides = [_shown(entry[s], entry["at_least"][s]) for s in ("sensitivity", "specificity")]
        rows.append((name, str(entry["n"]), *sides, kappa, _state(entry, earlier.get(name))))
    return columns(rows)


def _shown(rate: Mapping[str, Json], at_least: float) -> str:
    low, high = rate["interval"]
    share = f"{rate['successes']}/{rate['n']} [{low:.2f}, {high:.2f}]"
    return f"{share}, bound {rate['bound']:.2f} of {at_least:.2f}"


def _state(entry: Mapping[str, Json], earlier: Mapping[str, Json] | None) -> str:
    state = "within its bounds" if entry["within_bounds"] else "BELOW ITS BOUND"
    sides = ("sensitivity", "specificity")
    if not entry["within_bounds"] and all(entry[s]["bound"] >= entry["at_least"][s] for s in sides):
        state += " on the shipped rows alone"
    if earlier is None:
        return state
    same = all(earlier.get(f) == entry[f] for f in ("code_sha256", "probes_sha256"))
    return f"{state}; the session's certificate {'holds' if same else 'is STALE'}"
