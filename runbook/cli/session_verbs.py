"""Verbs that run a workspace's session: run, resume, launch, stop."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import (
    WORKSPACE,
    AcceptChanges,
    AsJson,
    Author,
    Folder,
    Overrides,
    Spec,
    answer,
    check_reason,
    say,
)
from runbook.cli.showing import read_session, show
from runbook.errors import ConfigError, LockedError, OutputError

if TYPE_CHECKING:
    from rich.console import Console

    from runbook.changes import Acceptance
    from runbook.owner import Owner
    from runbook.plan import Plan
    from runbook.report.session import SessionView
    from runbook.takeover import Takeover
    from runbook.workspace import Workspace

LAUNCH_LIMIT_S = 120.0
_POLL_S = 0.05
_STATE_TIMEOUT_S = 60.0
TERMINAL_FORCED = frozenset({"FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"})
"""By each of these rich is told that what is no terminal is to be treated as one."""
TAKEOVERS = ("no", "yes", "if-owner-gone")


def _check_takeover(asked: str) -> str:
    """Raises ConfigError: it is none of the kinds, or an option that stands where one belongs."""
    if asked in TAKEOVERS:
        return asked
    if asked.startswith("-"):
        what, fix = f"it needs a word before {asked}", "write --takeover=yes"
    else:
        what, fix = f"{asked!r} is no kind of takeover", f"use one of: {', '.join(TAKEOVERS)}"
    raise ConfigError(what, where="--takeover", fix=fix)


def run(
    spec: Spec,
    *,
    workspace: Folder = WORKSPACE,
    overrides: Overrides,
    detach: Annotated[
        bool,
        typer.Option("--detach", envvar="RUNBOOK_DETACH", help="In the background, as 'launch'."),
    ] = False,
    accept_changes: AcceptChanges = None,
    author: Author = "unnamed",
    as_json: AsJson = False,
) -> None:
    """Run the session, or go on where it ended: the same command each time, except after 'stop'."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    if detach:
        launch(
            spec,
            workspace=workspace,
            overrides=overrides,
            accept_changes=accept_changes,
            author=author,
        )
        return
    acceptance = _acceptance(accept_changes, author)
    _execute(spec, Workspace.at(workspace), overrides, acceptance=acceptance, as_json=as_json)


def resume(
    *,
    workspace: Folder = WORKSPACE,
    spec: Annotated[
        Path | None,
        typer.Option(envvar="RUNBOOK_SPEC", help="The runbook, if it was moved since the start."),
    ] = None,
    overrides: Overrides,
    takeover: Annotated[
        str,
        typer.Option(
            envvar="RUNBOOK_TAKEOVER",
            callback=_check_takeover,
            metavar="|".join(TAKEOVERS),
            help="Take the workspace from an executor that may live: no, yes, if-owner-gone "
            "(asks the runbook's pod.state command; meant for what relaunches by itself, so a "
            "person's stop stands).",
        ),
    ] = "no",
    accept_changes: AcceptChanges = None,
    author: Author = "unnamed",
    as_json: AsJson = False,
) -> None:
    """Go on with the workspace's session, also after 'stop'; the runbook is on record."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    view = read_session(place)
    if not view.run_id:
        raise ConfigError(
            "no session was begun here",
            where=str(place.root),
            fix="runbook run SPEC --workspace DIR begins one",
        )
    _execute(
        spec or _recorded(view),
        place,
        overrides or list(view.overrides),
        # What relaunches by itself asks so, and must not go on over a person's stop.
        by_person=takeover != "if-owner-gone",
        takeover=takeover,
        acceptance=_acceptance(accept_changes, author),
        as_json=as_json,
    )


def _recorded(view: "SessionView") -> Path:
    """The runbook that is on record. Raises ConfigError: it is not there."""
    runbook = Path(view.runbook)
    if not runbook.exists():
        raise ConfigError(
            "the session's runbook is not there any more",
            where=view.runbook,
            fix="if it was moved, name its new place with --spec PATH",
        )
    return runbook


def _acceptance(reason: str | None, author: str) -> "Acceptance | None":
    """Raises ConfigError: the reason is none."""
    from runbook.changes import Acceptance  # noqa: PLC0415 - start-up stays light

    if reason is None:
        return None
    check_reason(reason, "an acceptance", "--accept-changes")
    return Acceptance(reason, author)


def _execute(
    spec: Path,
    place: "Workspace",
    overrides: Sequence[str],
    *,
    by_person: bool = False,
    takeover: str = "no",
    acceptance: "Acceptance | None" = None,
    as_json: bool,
) -> None:
    from runbook.cli.progress import Display  # noqa: PLC0415 - start-up stays light
    from runbook.cli.seams import (  # noqa: PLC0415 - start-up stays light
        dry_findings,
        gates_of,
        reviewer_of,
    )
    from runbook.executor import Seams, run_session  # noqa: PLC0415 - start-up stays light
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light

    plan = load_plan(spec, overrides)
    before = read_session(place)
    if before.outcome.state == "done" and before.fingerprint == plan.fingerprint:
        say("This session was done before: nothing is run again.")
    steps = tuple(step.name for step in plan.steps if step.enabled)
    with Display(steps, _console()) as display:
        seams = Seams(
            gates=gates_of(place.root),
            reviewer=reviewer_of(plan),
            dry=lambda: dry_findings(plan),
            on_progress=display.tell,
        )
        code = run_session(
            plan,
            place,
            seams,
            by_person=by_person,
            takeover=_takeover(takeover, plan),
            acceptance=acceptance,
        )
    with suppress(OSError, OutputError):
        # Nobody may be there to read it; a relauncher goes by the exit code.
        show(place, as_json=as_json)
    raise typer.Exit(code)


def _console() -> "Console | None":
    """The terminal that people watch; None where there is none, since rich is slow to import."""
    if not sys.stderr.isatty() and not os.environ.keys() & TERMINAL_FORCED:
        return None
    from rich.console import Console  # noqa: PLC0415 - see above

    return Console(file=sys.stderr)


def _takeover(asked: str, plan: "Plan") -> "Takeover | None":
    from runbook.takeover import forced  # noqa: PLC0415 - start-up stays light

    match asked:
        case "no":
            return None
        case "yes":
            return forced
        case _:
            return lambda owner: _if_gone(owner, plan)


def _if_gone(owner: "Owner", plan: "Plan") -> str:
    """Raises LockedError: the owner lives, or nothing says that it does not."""
    from runbook.pod import pod_state  # noqa: PLC0415 - start-up stays light

    if owner.is_here:
        raise LockedError(f"{owner.name} is alive", fix="'runbook stop' ends it at a batch")
    state = pod_state(plan.pod, _STATE_TIMEOUT_S)
    if state.is_gone:
        return f"{owner.name} is gone: its pod's state is {state.told}"
    declare = "" if plan.pod.get("state") else "declare pod.state, or "
    raise LockedError(
        f"{owner.name} may be alive: {state.told}",
        fix=f"{declare}'runbook resume --takeover=yes' if you know better",
    )


def launch(
    spec: Spec,
    *,
    workspace: Folder = WORKSPACE,
    overrides: Overrides,
    accept_changes: AcceptChanges = None,
    author: Author = "unnamed",
    as_json: AsJson = False,  # noqa: ARG001 - an error is then told so too; the answer always is
) -> None:
    """Run the session in the background; print, once it has begun, how to watch and stop it."""
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    _acceptance(accept_changes, author)
    load_plan(spec, overrides)
    place = Workspace.at(workspace)
    place.create()
    log = place.log("session")
    told = [part for override in overrides for part in ("--set", override)]
    if accept_changes is not None:
        told += ["--accept-changes", accept_changes, "--author", author]
    arguments = ["run", str(spec.resolve()), "--workspace", str(place.root), *told]
    pid, before = _spawn([sys.executable, "-P", "-m", "runbook", *arguments], log)
    _await_start(pid, place, log, before)
    options = shlex.join(["--workspace", str(place.root)])
    answer(
        {
            "run_id": read_session(place).run_id,
            "pid": pid,
            "workspace": str(place.root),
            "log": str(log),
            "watch": f"runbook watch {options}",
            "logs": f"runbook logs -f {options}",
            "status": f"runbook status {options}",
            "stop": f"runbook stop {options}",
        }
    )


def _spawn(command: list[str], log: Path) -> tuple[int, int]:
    """Start a process of its own session, with no terminal, that prints into the log.

    Returns:
        Its number, and how long the log is before it prints.

    Raises:
        ConfigError: the log is no file that can be written.
    """
    from runbook.regular_files import open_to_append  # noqa: PLC0415 - start-up stays light

    environment = {k: v for k, v in os.environ.items() if k != "RUNBOOK_DETACH"}
    # Ignored by the new process as well: it is to outlive every terminal.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with open_to_append(log) as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: launched\n".encode())
            length = file.tell()
            files = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, file.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ]
            pid = os.posix_spawn(command[0], command, environment, file_actions=files, setsid=True)
            return pid, length
    except OSError as error:
        fix = "move it away, or choose another --workspace"
        what = f"the session's log cannot be written: {error.strerror}"
        raise ConfigError(what, where=str(log), fix=fix) from error
    finally:
        signal.signal(signal.SIGHUP, before)


def _await_start(pid: int, place: "Workspace", log: Path, before: int) -> None:
    """Until the executor holds the workspace and has said so in the journal, or has ended.

    ``before`` bytes of the log are older than it.
    """
    from runbook.journal import read_journal  # noqa: PLC0415 - start-up stays light

    limit = time.monotonic() + LAUNCH_LIMIT_S
    while time.monotonic() < limit:
        ended, status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status)
        if ended and code == 0:
            return
        if ended:
            tail = log.read_bytes()[before:].decode("utf-8", "replace").splitlines()[-12:]
            say("\n".join(["the executor ended at its start:", *tail]))
            raise typer.Exit(code if code > 0 else 1)
        reading = read_journal(place)
        holder = reading.holder
        if (
            holder
            and holder.pid == pid
            and any(entry.epoch == reading.epochs[-1].number for entry in reading.entries)
        ):
            return
        time.sleep(_POLL_S)
    say(f"warning: the executor does not hold the workspace after {LAUNCH_LIMIT_S:g} s; see {log}")


def stop(
    *,
    workspace: Folder = WORKSPACE,
    reason: Annotated[
        str, typer.Option(envvar="RUNBOOK_REASON", help="Why; kept on record.")
    ] = "no reason given",
    as_json: AsJson = False,
) -> None:
    """Have the session finish its batch and end with exit 3; only 'resume' continues it."""
    from runbook.clock import SYSTEM  # noqa: PLC0415 - start-up stays light
    from runbook.control import record_stop, request_stop  # noqa: PLC0415 - start-up stays light
    from runbook.journal import read_journal  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    view = read_session(place)
    if not view.run_id or view.outcome.state == "done":
        told = "it is done" if view.run_id else "no session was begun here"
        fix = "name the folder of a session at work with --workspace"
        raise ConfigError(f"there is nothing to stop: {told}", where=str(place.root), fix=fix)
    holder = read_journal(place).holder
    if holder and not (holder.is_here and not holder.is_alive_here):
        request_stop(place, reason, SYSTEM)
        told = f"asked {holder.name}; it ends after the batch at hand"
    else:
        if untold := record_stop(place, reason):
            say(untold)
        told = "no executor is at work; the stop is on record"
    say(f"{told}. To go on: {shlex.join(['runbook', 'resume', '--workspace', str(place.root)])}")
    if as_json:
        answer({"workspace": str(place.root), "told": told})
