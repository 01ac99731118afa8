"""Verbs that show a workspace's session and change nothing: status, watch, logs."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import WORKSPACE, AsJson, Folder, answer, say, write_lines
from runbook.errors import ConfigError

if TYPE_CHECKING:
    from runbook.control import Heartbeat
    from runbook.estimate import Run
    from runbook.events import Event
    from runbook.journal import Entry
    from runbook.owner import Owner
    from runbook.report.session import SessionView
    from runbook.report.spending import Outlook
    from runbook.report.status import Sight
    from runbook.workspace import Workspace

_TAIL = 1 << 16


def status(
    *,
    workspace: Folder = WORKSPACE,
    verify_pod: Annotated[
        bool,
        typer.Option(
            "--verify-pod",
            envvar="RUNBOOK_VERIFY_POD",
            help="Ask the runbook's pod.state command whether the pod still costs money; exit 1 "
            "unless it says that it does not.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where the workspace's session stands: steps, cost so far, and what comes next."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    show(place, as_json=as_json)
    if verify_pod:
        _verify_pod(read_session(place), as_json=as_json)


def _verify_pod(view: "SessionView", *, as_json: bool) -> None:
    from runbook.pod import pod_state  # noqa: PLC0415 - start-up stays light
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light

    if not view.runbook:
        raise ConfigError("no session was begun here, so no pod is declared", where="--verify-pod")
    state = pod_state(load_plan(Path(view.runbook), view.overrides).pod, 60.0)
    verdict = "verified: it is stopped" if state.is_gone else "NOT verified as stopped"
    say(f"Pod: {verdict}; {state.told}")
    if as_json:
        answer({"pod": state.told, "stopped": state.is_gone})
    if not state.is_gone:
        raise typer.Exit(1)


def watch(
    *,
    workspace: Folder = WORKSPACE,
    every: Annotated[
        float, typer.Option(envvar="RUNBOOK_EVERY", min=0.2, help="Seconds between two looks.")
    ] = 2.0,
) -> None:
    """Show the status again and again until the session ends; exit with its code."""
    from rich.console import Console  # noqa: PLC0415 - start-up stays light
    from rich.live import Live  # noqa: PLC0415 - start-up stays light
    from rich.text import Text  # noqa: PLC0415 - start-up stays light

    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    console = Console(file=sys.stderr)
    view, sight = look(place)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while view.outcome.state == "running":
                live.update(Text(_screen(view, sight, place)), refresh=True)
                time.sleep(every)
                view, sight = look(place)
    else:
        before = ""
        while view.outcome.state == "running":
            now = _screen(view, sight, place).split("\n", 1)[-1]
            if now != before:
                say(now)
            before = now
            time.sleep(every)
            view, sight = look(place)
    say(_screen(view, sight, place))
    raise typer.Exit(view.outcome.exit_code)


def logs(
    *,
    workspace: Folder = WORKSPACE,
    step: Annotated[
        str, typer.Option(envvar="RUNBOOK_STEP", help="Which step's log; the newest if not given.")
    ] = "",
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", envvar="RUNBOOK_FOLLOW", help="Print what is added, too."),
    ] = False,
) -> None:
    """Print the end of a log of the session on stdout; -f goes on until the session ends."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    path = _log(place, step)
    offset = max(0, path.stat().st_size - _TAIL)
    offset = _print_from(path, offset)
    while follow and read_session(place).outcome.state == "running":
        time.sleep(0.5)
        newest = _log(place, step)
        if newest != path:
            say(f"==> {newest}")
            path, offset = newest, 0
        offset = _print_from(path, offset)
    _print_from(path, offset)


def _log(place: "Workspace", step: str) -> Path:
    """Raises ConfigError where there is no such log."""
    if step:
        path = place.log(step)
        found = [path] if path.parent == place.logs and path.is_file() else []
    else:
        logs = (path for path in place.logs.glob("*.log") if path.is_file())
        found = sorted(logs, key=lambda p: p.stat().st_mtime)
    if not found:
        raise _no_log(place, step)
    return found[-1]


def _no_log(place: "Workspace", step: str) -> ConfigError:
    """What to do instead: name a step that has a log, begin a session, or wait for its first."""
    there = ", ".join(sorted(p.stem for p in place.logs.glob("*.log") if p.is_file()))
    if there:
        what, fix = f"there is no log of {step!r}", f"give one of these to --step: {there}"
    else:
        what = "there is no log yet"
        fix = (
            "a step's log begins with the step; 'runbook status' with the same --workspace tells "
            "where the session stands"
            if read_session(place).run_id
            else "name the folder of a session with --workspace; 'runbook run' begins one"
        )
    return ConfigError(what, where=str(place.logs), fix=fix)


def _print_from(path: Path, offset: int) -> int:
    """What stands behind the offset, made harmless for a terminal; the new offset."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    write_lines(_harmless(line) for line in whole.decode("utf-8", "replace").splitlines())
    return offset + len(whole)


def _harmless(line: str) -> str:
    """The line with its indentation, and nothing else that a terminal acts on."""
    from runbook.problems import printable  # noqa: PLC0415 - start-up stays light
    from runbook.report.safe_text import cut  # noqa: PLC0415 - start-up stays light

    parts = cut(line, 4000).split("\t")
    return "\t".join(printable(part, longest=len(part)) for part in parts)


def read_session(place: "Workspace") -> "SessionView":
    """What the journal tells; an empty view where no session was begun. Needs no lock.

    Raises:
        ConfigError: the journal cannot be read.
        CorruptError: it is not what was appended.
    """
    return view_of(read_whole(place), place)


def view_of(entries: "Sequence[Entry]", place: "Workspace") -> "SessionView":
    """What these entries tell, and a review's folder of its reviewer's silence."""
    from runbook.report.unanswered import with_unanswered  # noqa: PLC0415 - start-up stays light
    from runbook.report.view import build_view  # noqa: PLC0415 - start-up stays light

    return with_unanswered(build_view(entries), place)


def read_facts(place: "Workspace") -> "tuple[Event, ...]":
    """The session's facts; none where no session was begun. Raises as ``read_session`` does."""
    from runbook.journal import facts  # noqa: PLC0415 - start-up stays light

    return facts(read_whole(place))


def read_whole(place: "Workspace") -> "tuple[Entry, ...]":
    """The journal's entries. Raises as ``read_session`` does."""
    from runbook.journal import read_entries  # noqa: PLC0415 - start-up stays light

    with reading_errors(place):
        return read_entries(place)


@contextmanager
def reading_errors(place: "Workspace") -> Iterator[None]:
    """Where the system refuses to read a workspace, say so with a remedy.

    Raises:
        ConfigError: it refused.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"the workspace cannot be read: {error.strerror}",
            where=str(error.filename or place.root),
            fix="name the folder of a session with --workspace, or change its permissions",
        ) from error


def show(place: "Workspace", *, as_json: bool) -> None:
    """The session on one screen, or as one JSON object."""
    from runbook.codec import encode  # noqa: PLC0415 - start-up stays light

    view, sight = look(place)
    if as_json:
        told = {"alive": sight.alive, "heartbeat": encode(sight.beat)}
        told["outlook"] = encode(_outlook(view, sight))
        answer({"workspace": str(place.root), **encode(view), **told})
    else:
        say(_screen(view, sight, place))


def _screen(view: "SessionView", sight: "Sight", place: "Workspace") -> str:
    from runbook.report.status import render_status  # noqa: PLC0415 - start-up stays light

    return render_status(view, place.root, sight, _outlook(view, sight).lines)


def _outlook(view: "SessionView", sight: "Sight") -> "Outlook":
    from runbook.report.spending import outlook  # noqa: PLC0415 - start-up stays light

    return outlook(view, _history(view), sight.beat.progress if sight.beat else {})


def look(place: "Workspace") -> "tuple[SessionView, Sight]":
    """The session, and what is seen of its executor. Raises as ``read_session`` does."""
    from runbook.report.status import Sight  # noqa: PLC0415 - start-up stays light

    view, holder = _view_and_holder(place)
    alive = _is_alive(holder)
    if view.outcome.state == "running" and alive is False:
        # It may have ended the session since its journal was read.
        view, holder = _view_and_holder(place)
        alive = _is_alive(holder)
    if view.outcome.state != "running":
        return view, Sight(alive)
    return view, _sight(place, holder, alive=alive)


def _view_and_holder(place: "Workspace") -> "tuple[SessionView, Owner | None]":
    from runbook.journal import read_journal  # noqa: PLC0415 - start-up stays light

    with reading_errors(place):
        reading = read_journal(place)
    return view_of(reading.entries, place), reading.holder


def _is_alive(holder: "Owner | None") -> bool | None:
    """Whether anybody is at work; None for another machine's process, which cannot be seen."""
    if holder is None:
        return False
    return holder.is_alive_here if holder.is_here else None


def _sight(place: "Workspace", holder: "Owner | None", *, alive: bool | None) -> "Sight":
    from runbook.control import read_heartbeat  # noqa: PLC0415 - start-up stays light
    from runbook.report.status import Sight  # noqa: PLC0415 - start-up stays light

    if holder is None:
        return Sight(alive, "no executor is at work")
    states = {
        None: "has it: another machine, so its heartbeat alone tells if it lives",
        True: "is at work",
        False: "is gone",
    }
    who, now = f"{holder.name} {states[alive]}", time.time()
    beat = read_heartbeat(place)
    if beat is None or beat.pid != holder.pid:
        # One of an earlier executor says nothing of this one.
        return Sight(alive, who)
    return Sight(alive, who, beat, now, _progress(beat, now))


def _progress(beat: "Heartbeat", now: float) -> str:
    """What the step at hand told last, as ``run`` shows it."""
    from runbook.cli.reading import Reading, describe, observe  # noqa: PLC0415 - as above

    at = now - beat.age_s(now)
    return describe(observe(Reading(), beat.progress, at), at) if beat.progress else ""


def _history(view: "SessionView") -> "tuple[Run, ...]":
    """What this machine remembers, where anything is still to come."""
    from runbook.estimate import read_history  # noqa: PLC0415 - start-up stays light

    return read_history() if view.outcome.state in {"running", "stopped"} else ()
