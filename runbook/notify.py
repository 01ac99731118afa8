"""The executor's side of notifications: what is new is marked, put into words and handed over.

Rule: a mark is durable before a message leaves, so people are told at most once, over any kill and
resume. The executor never waits for a server but at its end, and then for a bounded time; nothing
that fails here fails a session. See ``runbook.courier`` for what sends.
"""

import importlib.util
import json
import os
import re
import select
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import runbook
from runbook import artifacts, courier
from runbook import events as ev
from runbook.contract import MARK, Json
from runbook.errors import RunbookError
from runbook.incidents import Incident, all_incidents, identity, new_incidents, unrecorded_end
from runbook.journal import Entry
from runbook.plan import Plan
from runbook.redact import Redactor, secrets_in, session_secrets
from runbook.state import State
from runbook.workspace import Workspace

WAIT_S = 5.0
"""So long the end of a session waits for what is on its way: the machine may go next."""
HURRIED_S = 0.5
"""So long after a signal."""
_LOOK_S = 0.05
_MOST_COMMANDS = 4
_TITLE_CHARS = 150
_LINE_CHARS = 400
_CAUSE_CHARS = 200
"""Of why a reviewer gave no answer: a server or a reply may have had a part in the words."""
_MARKUP = re.compile(r"[^\w .,:;\[\]'%+=-]|_")
_JOINT = re.compile(r"([.:])(?=[^\W\d])")
"""These two are what a chat could make a link, a mention or a format of."""
_STOPS = ("human_needed", "ended")
"""Kinds of what a stop brings about."""
_STARTS = 3
"""So often a courier that died is started again."""


class Notifier:
    """Tells people of one session; does nothing where that is not declared or not possible."""

    def __init__(
        self,
        plan: Plan,
        workspace: Workspace,
        entries: Callable[[], Sequence[Entry]],
        known: Sequence[ev.Event],
        *,
        warn: Callable[[str], None],
        hurried: Callable[[], bool],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Start nothing yet.

        Args:
            plan: of the session; ``notifications`` says of what, and names the variable.
            workspace: holds the marks and the log.
            entries: the journal's so far.
            known: its facts; grows as the executor appends to it.
            warn: shown to whoever watches, once.
            hurried: whether the executor was sent a signal.
            environ: where the address stands.
        """
        self._plan = plan
        self._workspace = workspace
        self._entries = entries
        self._known = known
        self._warn = warn
        self._hurried = hurried
        self._environ = environ
        self._variable = str(plan.notifications.get("url_env", ""))
        self._wanted = frozenset(plan.notifications.get("events", ()))
        self._is_on = False
        self._marked: set[str] = set()
        self._link: Link | None = None

    def start(self, state: State) -> None:
        """Begin, and tell what a killed executor did not come to tell.

        A session that began before anybody was to be told starts with what comes next.
        """
        if not self._plan.notifications:
            return
        if why := unavailable(self._plan, self._environ):
            self._warn(f"nobody will be notified: {why}")
            self._log(f"nobody is notified: {why}")
            return
        with self._guarded():
            self._is_on = True
            is_new = not self._workspace.notified.is_dir()
            artifacts.make_durable(artifacts.make_directories(self._workspace.notified))
            self._marked = {path.name for path in self._workspace.notified.iterdir()}
            self._link = Link(self._command(), self._environment())
            found = list(all_incidents(self._plan, state, self._known)) if state.session else []
            self._take(found, state, silent=is_new)

    def note(self, state: State) -> None:
        """A fact was appended: tell of what it brought about."""
        if self._is_on:
            with self._guarded():
                self._take(list(new_incidents(self._plan, state, self._known)), state)

    def end(self, state: State) -> None:
        """Nothing follows but the pod's stop: tell of an end that is not on record, and wait."""
        if self._is_on and not (state.stop or state.done):
            with self._guarded():
                self._take([unrecorded_end(self._known)], state)
        self.settle()

    def settle(self) -> None:
        """Wait for what is on its way, for a bounded time."""
        if self._link is not None:
            with self._guarded():
                self._link.wait(self._hurried)

    def close(self) -> None:
        """As ``settle``; then the courier ends by itself, and tells of the rest until it does."""
        self.settle()
        if self._link is not None:
            self._link.close()
        self._is_on, self._link = False, None

    def _take(self, found: Sequence[Incident], state: State, *, silent: bool = False) -> None:
        if not found or state.session is None:
            return
        run_id = state.session.run_id
        named = [(identity(run_id, incident), incident) for incident in found]
        for name, incident in named:
            if name in self._marked:
                continue
            self._marked.add(name)
            artifacts.write_text(self._workspace.notified / name, "")
            if not silent and incident.is_news and incident.kind in self._wanted:
                self._send(name, incident)

    def _send(self, name: str, incident: Incident) -> None:
        assert self._link is not None
        shown = self._redactor()
        title, body = compose(self._plan, self._workspace, self._entries(), incident, shown)
        message = {
            "id": name,
            "kind": incident.kind,
            "title": shown.text(title),
            "body": shown.text(body),
            "level": incident.level,
        }
        if not self._link.send(message):
            self._log(f"{incident.kind} {name}: the courier is gone; it was not sent")

    def _redactor(self) -> Redactor:
        secrets = session_secrets(self._environ, self._plan.environment)
        return Redactor({**secrets, self._variable: self._environ[self._variable]})

    def _command(self) -> list[str]:
        return [*courier_command(self._variable), str(self._workspace.log("notify"))]

    def _environment(self) -> dict[str, str]:
        """Without the other secrets, and without the mark by which orphans are found."""
        hidden = secrets_in(self._environ).keys() - {self._variable} | {MARK}
        return {n: v for n, v in self._environ.items() if n not in hidden} | own_path(self._environ)

    def _log(self, text: str) -> None:
        courier.note(self._workspace.log("notify"), text)

    def _guarded(self) -> "_Guard":
        return _Guard(self._log)


class _Guard:
    """Whatever goes wrong in notifying is a line in its log, and no more."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> bool:
        if kind is None or not issubclass(kind, Exception):
            return False
        # A message may quote what it failed on; of our own errors the words are known.
        said = error.what if isinstance(error, RunbookError) else kind.__name__
        self._log(f"not notified: {said}")
        return True


class Link:
    """The pipes to the courier."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._command = list(command)
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0
        self._unsent = b""
        self._heard = b""
        self._due: set[str] = set()
        """Messages of which no end is known."""
        self._gave_up = False
        self._start()

    def send(self, message: Mapping[str, Json]) -> bool:
        """Hand a message over, without waiting; whether there is anyone to take it."""
        process = self._process
        if process is None or process.poll() is not None:
            self._let_go()
            self._start()
        if self._process is None:
            return False
        self._due.add(str(message["id"]))
        self._unsent += json.dumps(message).encode() + b"\n"
        self._flush()
        return True

    def wait(self, hurried: Callable[[], bool]) -> None:
        """Until every message has found its end; a wait in vain is not repeated."""
        begin = time.monotonic()
        while self._due and not self._gave_up and self._flush() and self._hear():
            waited = time.monotonic() - begin
            self._gave_up = waited >= (HURRIED_S if hurried() else WAIT_S)

    def close(self) -> None:
        self._flush()
        self._let_go()

    def _start(self) -> None:
        if self._started >= _STARTS:
            return
        self._started += 1
        with suppress(OSError):
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                close_fds=True,
                start_new_session=True,
                env=self._environ,
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)

    def _flush(self) -> bool:
        """Hand over what the pipe takes; whether the courier still listens."""
        if self._process is None or self._process.stdin is None or self._process.stdin.closed:
            return False
        try:
            while self._unsent:
                written = os.write(self._process.stdin.fileno(), self._unsent)
                self._unsent = self._unsent[written:]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _hear(self) -> bool:
        """Take what the courier tells, waiting a moment for it; whether it can tell any more."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout
        if not select.select([pipe], [], [], _LOOK_S)[0]:
            return True
        data = os.read(pipe.fileno(), 1 << 16)
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._due.discard(str(json.loads(line)["id"]))
        return bool(data)

    def _let_go(self) -> None:
        process, self._process = self._process, None
        self._unsent = self._heard = b""
        self._due.clear()
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        # Reaped where this process lives on until then.
        threading.Thread(target=process.wait, daemon=True).start()


def unavailable(plan: Plan, environ: Mapping[str, str]) -> str:
    """Why nobody can be notified, though the runbook wants it; empty where they can."""
    variable = plan.notifications["url_env"]
    if not environ.get(variable, "").strip():
        return f"{variable} is not set; export it, or write it in .env"
    if importlib.util.find_spec("apprise") is None:
        return "apprise is not installed; pip install 'runbook[notify]'"
    return ""


def courier_command(variable: str) -> list[str]:
    """The beginning of the command that sends to the address in a variable."""
    # -P: the folder the command was typed in must not shadow a library.
    return [sys.executable, "-P", "-m", "runbook.courier", variable]


def notice_command(
    plan: Plan, workspace: Workspace, environ: Mapping[str, str]
) -> tuple[str, ...] | None:
    """What the meter runs where no executor is left to tell; why is one more argument."""
    if "ended" not in plan.notifications.get("events", ()) or unavailable(plan, environ):
        return None
    variable = str(plan.notifications["url_env"])
    shown = Redactor({**session_secrets(environ, plan.environment), variable: environ[variable]})
    title = shown.text(f"{plan.name}: ended without its executor")[:_TITLE_CHARS]
    command = shlex.join(["runbook", "status", "--workspace", str(workspace.root)])
    return (*courier_command(variable), "-", title, shown.text(f"Next:\n{command}"))


def own_path(environ: Mapping[str, str]) -> dict[str, str]:
    """Where a child finds this package."""
    own = str(Path(runbook.__file__).parent.parent)
    folders = filter(None, [own, environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": os.pathsep.join(folders)}


def compose(
    plan: Plan,
    workspace: Workspace,
    entries: Sequence[Entry],
    incident: Incident,
    shown: Redactor,
) -> tuple[str, str]:
    """Title and body: what, when, what it cost so far, and the command to go on with.

    ``shown`` takes secrets out of a line before it is cut: the half of one is none that is known.
    """
    from runbook.report import figures, outcome  # noqa: PLC0415 - nothing to tell, no need
    from runbook.report.safe_text import one_line  # noqa: PLC0415 - see above
    from runbook.report.view import build_view  # noqa: PLC0415 - see above

    view = build_view(entries)
    number = len(entries) - 1 if incident.fact is None else incident.fact
    is_repeated = incident.along in plan.notifications.get("events", ())
    told = [*incident.told]
    if incident.kind in _STOPS and not is_repeated:
        told += _unanswered(workspace, entries[: number + 1], shown)
    told.append(f"at {figures.moment(entries[number].wall)}")
    if incident.kind == "ended":
        told.append(_pod(plan))
    told.append(f"Cost so far: {outcome.cost(view)}")
    lines = [one_line(shown.text(line), _LINE_CHARS) for line in told]
    title = one_line(shown.text(f"{plan.name}: {incident.what}"), _TITLE_CHARS)
    place = ["--workspace", str(workspace.root)]
    commands = [s.command for s in outcome.next_steps(view, workspace.root, alive=True)]
    if incident.review:
        commands = [shlex.join(["runbook", "review", "show", incident.review, *place]), *commands]
    if not commands or is_repeated:
        commands = [shlex.join(["runbook", "status", *place])]
    commands = _few(list(dict.fromkeys(commands)), view.command(workspace.root))
    return title, "\n".join([*lines, "Next:", *(one_line(c, 10_000) for c in commands)])


def _unanswered(workspace: Workspace, entries: Sequence[Entry], shown: Redactor) -> Iterator[str]:
    """Why the reviewer gave no answer to the review that a stop, the newest entry, rests on."""
    from runbook.report.safe_text import one_line  # noqa: PLC0415 - as in ``compose``
    from runbook.report.unanswered import with_unanswered  # noqa: PLC0415 - see above
    from runbook.report.view import build_view  # noqa: PLC0415 - see above

    found = with_unanswered(build_view(entries), workspace).unanswered
    if found:
        cause = _JOINT.sub(r"\1 ", _MARKUP.sub(" ", shown.text(found.cause)))
        yield f"why there is no answer: {one_line(cause, _CAUSE_CHARS)}"


def _few(commands: list[str], goes_on: str) -> list[str]:
    """The first ones; the command that goes on with the session is never cut off."""
    first, rest = commands[:_MOST_COMMANDS], commands[_MOST_COMMANDS:]
    return [*first[:-1], goes_on] if goes_on in rest else first


def _pod(plan: Plan) -> str:
    if plan.pod.get("stop"):
        return "the pod is asked to stop now; another message says what came of it, if it can"
    return "no command stops this machine: if it is rented, it goes on to cost"
