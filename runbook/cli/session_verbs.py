"""Verbs about a workspace's session: run, status."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from runbook.cli.options import WORKSPACE, AsJson, Folder, Overrides, Spec, answer, say
from runbook.errors import ConfigError

if TYPE_CHECKING:
    from runbook.contract import Gate, Judgement, Metric, Reviewer
    from runbook.executor import Gates
    from runbook.plan import Plan
    from runbook.report.view import SessionView
    from runbook.workspace import Workspace


def run(
    spec: Spec, *, workspace: Folder = WORKSPACE, overrides: Overrides, as_json: AsJson = False
) -> None:
    """Run the session, or go on with it: the same command continues after any stop."""
    from rich.console import Console  # noqa: PLC0415 - start-up stays light

    from runbook.cli.progress import Display  # noqa: PLC0415 - start-up stays light
    from runbook.executor import run_session  # noqa: PLC0415 - start-up stays light
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    plan = load_plan(spec, overrides)
    place = Workspace.at(workspace)
    if read_session(place).outcome.state == "done":
        say("This session was done before: nothing is run again.")
    steps = tuple(step.name for step in plan.steps if step.enabled)
    with Display(steps, Console(file=sys.stderr)) as display:
        code = run_session(
            plan,
            place,
            gates=_gates(place.root),
            reviewer=_reviewer(plan),
            dry=lambda: _dry_findings(plan),
            on_progress=display.tell,
        )
    _show(place, as_json=as_json)
    raise typer.Exit(code)


def _reviewer(plan: "Plan") -> "Reviewer":
    """Who answers reviews. A program named by a path starts from the runbook's folder."""
    if plan.reviewer["provider"] == "command":
        from agent.command import reviewer  # noqa: PLC0415 - start-up stays light

        program, *arguments = plan.reviewer["command"]
        if "/" in program:
            program = str(plan.runbook.parent / program)
        return reviewer([program, *arguments], plan.reviewer["timeout_s"])
    from agent.human import ask  # noqa: PLC0415 - start-up stays light

    return ask


def _gates(root: Path) -> "Gates":
    """The judge of this workspace's gates; scipy is slow to import, so not before the first."""

    def judge(gate: "Gate", metrics: "tuple[Metric, ...]", final: bool) -> "Judgement":  # noqa: FBT001 - the seam's shape
        from gates.judge import judge_gate  # noqa: PLC0415 - see above

        return judge_gate(gate, metrics, root, final=final)

    return judge


def _dry_findings(plan: "Plan") -> list[str]:
    """What the DRY sentinel finds in the project's phases and in modules beside the runbook.

    A step's own package there is read whole, whatever lies in it.
    """
    import phases  # noqa: PLC0415 - start-up stays light
    from gates.dry import find_violations  # noqa: PLC0415 - start-up stays light

    home = Path(phases.__path__[0])
    beside = plan.runbook.parent
    packages = {step.function.partition(":")[0].partition(".")[0] for step in plan.steps}
    own = [*beside.glob("*.py"), *(p for name in packages for p in beside.glob(f"{name}/**/*.py"))]
    return [str(finding) for finding in find_violations([*home.glob("*.py"), *own], home)]


def status(*, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """Show where the session of a workspace stands."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    _show(Workspace.at(workspace), as_json=as_json)


def read_session(place: "Workspace") -> "SessionView":
    """What the journal tells; an empty view where no session was begun. Needs no lock.

    Raises:
        ConfigError: the journal cannot be read.
        CorruptError: it is not what was appended.
    """
    from runbook.journal import read_entries  # noqa: PLC0415 - start-up stays light
    from runbook.report.view import build_view  # noqa: PLC0415 - start-up stays light

    try:
        return build_view(read_entries(place))
    except OSError as error:
        raise ConfigError(
            f"the workspace cannot be read: {error.strerror}",
            where=str(error.filename or place.root),
            fix="name the folder of a session with --workspace, or change its permissions",
        ) from error


def _show(place: "Workspace", *, as_json: bool) -> None:
    from runbook.events import encode  # noqa: PLC0415 - start-up stays light
    from runbook.report.status import render_status  # noqa: PLC0415 - start-up stays light

    view = read_session(place)
    if as_json:
        answer({"workspace": str(place.root), **encode(view)})
    else:
        say(render_status(view, place.root))
