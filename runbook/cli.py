"""The command line and composition root: verbs, exit codes. Heavy imports stay inside the verbs.

What people read goes to stderr, what programs read to stdout. See ``runbook.errors`` for codes.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from runbook.contract import Json
from runbook.errors import ConfigError, RunbookError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Spec = Annotated[Path, typer.Argument(help="The runbook's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="STEP.PARAM=VALUE; recorded with the run.")
]
Folder = Annotated[
    Path, typer.Option(envvar="RUNBOOK_WORKSPACE", help="Where everything is written.")
]
_WORKSPACE = Path("workspace")


@app.callback()
def _about() -> None:
    """Run a language model's post-training session unattended: phases, gates, resume."""


@app.command()
def validate(spec: Spec, overrides: Overrides = None) -> None:
    """Check a runbook and the specs it names; touch nothing."""
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light

    plan = load_plan(spec, overrides or [])
    _say(f"{spec}: good. {len(plan.steps)} steps, fingerprint {plan.fingerprint[:12]}.")


@app.command("plan")
def show_plan(spec: Spec, overrides: Overrides = None) -> None:
    """Show the steps in order, with their gates and retries; load no model."""
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light

    plan = load_plan(spec, overrides or [])
    for step in plan.steps:
        criteria = len(step.gate.criteria) if step.gate else 0
        state = "" if step.enabled else "  (disabled: will be skipped)"
        sys.stdout.write(
            f"{step.phase:10} {step.name:14} {step.function:28} "
            f"{criteria} criteria, {step.retries} retries{state}\n"
        )


@app.command()
def run(spec: Spec, workspace: Folder = _WORKSPACE, overrides: Overrides = None) -> None:
    """Run the session, or go on with it: the same command continues after any stop."""
    from agent.human import ask  # noqa: PLC0415 - start-up stays light
    from gates.judge import judge_gate  # noqa: PLC0415 - scipy is slow to import
    from runbook.executor import run_session  # noqa: PLC0415 - start-up stays light
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    plan = load_plan(spec, overrides or [])
    place = Workspace.at(workspace)
    code = run_session(
        plan,
        place,
        gates=lambda gate, metrics, final: judge_gate(gate, metrics, place.root, final=final),
        reviewer=ask,
        on_progress=_Progress(),
    )
    _say(_ending(place))
    raise typer.Exit(code)


review = typer.Typer(no_args_is_help=True, help="Reviews that wait for a person.")
app.add_typer(review, name="review")


@review.command("decide")
def decide(  # each option is one field of the decision
    review_id: Annotated[str, typer.Argument(help="As the stop names it, e.g. pilot-2.")],
    *,
    spec: Annotated[Path, typer.Option(help="The runbook the session was started with.")],
    action: Annotated[str, typer.Option(help="retry, stop or override.")],
    reason: Annotated[str, typer.Option(help="Kept on record.")],
    author: Annotated[str, typer.Option(envvar="USER", help="Who decides.")] = "unnamed",
    changes: Annotated[
        list[str] | None, typer.Option("--change", help="PARAM=VALUE, for a retry.")
    ] = None,
    workspace: Folder = _WORKSPACE,
    overrides: Overrides = None,
) -> None:
    """Record a person's decision; the next 'runbook run' acts on it."""
    from runbook.events import ReviewDecided  # noqa: PLC0415 - start-up stays light
    from runbook.review import record_decision  # noqa: PLC0415 - start-up stays light
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    changed = dict(_change(text) for text in changes or [])
    decided = ReviewDecided(review_id, action, changed, reason, author, person=True)
    plan = load_plan(spec, overrides or [])
    record_decision(plan, Workspace.at(workspace), decided)
    _say(f"{review_id}: {action} is on record. The same 'runbook run' goes on.")


def _change(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        raise ConfigError(
            "a change is PARAM=NUMBER", where=f"--change {text}", fix="e.g. max_new_tokens=48"
        ) from None
    return name, int(number) if number.is_integer() else number


@app.command()
def status(workspace: Folder = _WORKSPACE) -> None:
    """Show where the session of a workspace stands."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    _say(_ending(Workspace.at(workspace)))


def _ending(place: object) -> str:
    """Each step's last verdict, and how the session ended, out of the journal."""
    from runbook import events as ev  # noqa: PLC0415 - start-up stays light
    from runbook.journal import facts, read_entries  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    assert isinstance(place, Workspace)
    lines = []
    for fact in facts(read_entries(place)):
        match fact:
            case ev.GateJudged():
                lines.append(f"{fact.step} attempt {fact.attempt}: {fact.verdict}")
                lines += [f"    {reason}" for reason in fact.reasons]
            case ev.StepPassed():
                lines.append(f"{fact.step} attempt {fact.attempt}: done")
            case ev.StepSkipped():
                lines.append(f"{fact.step}: skipped, {fact.why}")
            case ev.StepFailed():
                lines.append(f"{fact.step} attempt {fact.attempt}: {fact.error}")
            case ev.SessionStopped():
                lines.append(f"stopped ({fact.reason}), exit {fact.exit_code}: {fact.detail}")
            case ev.SessionDone():
                lines.append(f"all done, exit {fact.exit_code}; artifacts are in {place.root}")
    return "\n".join(lines) or f"{place.root}: no session yet; 'runbook run' starts one"


class _Progress:
    """A line on stderr at each change of stage, and every ten seconds within one."""

    def __init__(self) -> None:
        self.stage = ""
        self.told = 0.0
        self.began = time.monotonic()
        self.tokens = 0

    def __call__(self, fields: Mapping[str, Json]) -> None:
        now = time.monotonic()
        stage = f"{fields.get('step')} {fields.get('stage', '')}"
        if stage != self.stage:
            self.stage, self.began, self.tokens, self.told = stage, now, 0, 0.0
        self.tokens += int(fields.get("tokens") or 0)
        if now - self.told < 10:
            return
        self.told = now
        done, total = fields.get("done"), fields.get("total")
        spent = now - self.began
        parts = [stage, f"batch {done}/{total}"]
        if self.tokens and spent > 1:
            parts.append(f"{self.tokens / spent:.0f} tokens/s")
        if "kept" in fields:
            parts.append(f"kept {fields['kept']} of {fields.get('target')}")
        if done and total and spent > 1:
            parts.append(f"ETA {spent / done * (total - done):.0f} s")
        _say(", ".join(parts))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """Entry point; an error a person can meet is told without a traceback."""
    try:
        app()
    except RunbookError as error:
        _say(f"error: {error}")
        sys.stdout.write(json.dumps({"error": error.what, "where": error.where}) + "\n")
        sys.exit(error.code)
