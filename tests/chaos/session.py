"""What the tests of whole sessions share: a process that runs one, and what it must come to.

The session is that of ``runbook.crash_session``. A process is forked, so that nothing is imported
anew; run as a command (``python -m chaos.session FOLDER``) it can be traced. An error is told as
the command line tells it.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from runbook import events as ev
from runbook.clock import SYSTEM, Clock
from runbook.crash_session import (
    REQUEST_USD,
    Result,
    crash_plan,
    paid_reviewer,
    result_of,
    without_spend,
)
from runbook.errors import RunbookError
from runbook.executor import Seams, run_session
from runbook.journal import facts, read_entries
from runbook.journal_writer import Journal
from runbook.plan import Plan
from runbook.takeover import Takeover
from runbook.testing import simple_gates
from runbook.verify import verify
from runbook.workspace import Workspace

TESTS = Path(__file__).parents[1]
JOBS = 2
T = TypeVar("T")
U = TypeVar("U")


def small_plan(sleep: float = 0.0, **fields: Any) -> Plan:
    """The crash session's plan, with a pause of ``sleep`` seconds before each batch."""
    plan = crash_plan()
    steps = tuple(replace(s, params={**s.params, "sleep": sleep}) for s in plan.steps)
    return replace(plan, steps=steps, **fields)


def go(
    root: Path, plan: Plan | None = None, clock: Clock = SYSTEM, takeover: Takeover | None = None
) -> int:
    """Run the session, or go on with it, in this process."""
    seams = Seams(simple_gates, paid_reviewer, clock=clock)
    return run_session(plan or small_plan(), Workspace.at(root), seams, takeover=takeover)


class Process:
    """A forked process, and what it said."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self._log = log
        self._code: int | None = None

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def ended(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is not None

    def wait(self, timeout: float = 60.0) -> int:
        """Its exit code, negative for a signal; one that is late is killed and is an error."""
        limit = time.monotonic() + timeout
        while not self.ended():
            if time.monotonic() > limit:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"not ended after {timeout} s: {self.said}")
            time.sleep(0.002)
        assert self._code is not None
        return self._code

    def wait_stopped(self) -> bool:
        """Wait until it was stopped by a signal; False where it ended instead."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self._code = os.waitstatus_to_exitcode(status)
        return False

    def send(self, number: signal.Signals) -> None:
        if self._code is None:
            os.kill(self.pid, number)


def fork(act: Callable[[], int], log: Path) -> Process:
    """Let ``act`` end in an exit code in a process of its own."""
    log.touch()
    pid = os.fork()
    if pid:
        return Process(pid, log)
    code = 70
    try:
        said = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        code = telling(act)
    finally:
        os._exit(code)


def telling(act: Callable[[], int]) -> int:
    """The exit code; an error is told on descriptor 2."""
    try:
        return act()
    except RunbookError as error:
        told, code = f"error: {error}\n", error.code
    except BaseException:  # noqa: BLE001 - the test reads it
        told, code = traceback.format_exc(), 70
    os.write(2, told.encode())
    return code


def ends(root: Path, log: Path, plan: Plan | None = None, **options: Any) -> int:
    """The exit code of the session in a process of its own."""
    return fork(lambda: go(root, plan, **options), log).wait()


def calm_result(folder: Path) -> Result:
    """What an undisturbed session comes to."""
    assert ends(folder / "calm", folder / "calm.log") == 0, (folder / "calm.log").read_text()
    return result_of(Workspace.at(folder / "calm"))


def cause(place: Workspace, said: str) -> str:
    """Why the session stopped: what the process said, and what it put on record."""
    try:
        stops = [f for f in facts(read_entries(place)) if isinstance(f, ev.SessionStopped)]
    except RunbookError as error:
        return f"{said}\n{error}"
    return f"{said}\n{stops[-1].detail if stops else ''}"


def difference(place: Workspace, calm: Result, *, unsettled: int = 0) -> str:
    """How a session that ended differs from the undisturbed one; empty where it does not.

    ``unsettled`` requests were cut short before the last resume: each may cost one more.
    """
    result = result_of(place)
    if without_spend(result) != without_spend(calm):
        return f"data, verdicts or end differ: {result}"
    if not calm.review_usd <= result.review_usd <= calm.review_usd + unsettled * REQUEST_USD:
        return f"${result.review_usd} were spent in place of ${calm.review_usd}"
    findings = verify(place).findings
    return f"verify finds {findings[0].where}: {findings[0].what}" if findings else ""


@contextmanager
def acknowledgements(file: Path) -> Iterator[None]:
    """Within it, each journal line of this process and its forks is noted once it is reported."""
    real = Journal.append

    def append(self: Journal, *arguments: Any, **options: Any) -> Any:
        entry = real(self, *arguments, **options)
        with file.open("a") as told:
            told.write(f"{entry.sha256}\n")
        return entry

    Journal.append = append  # type: ignore[method-assign]  # what was reported has no other seam
    try:
        yield
    finally:
        Journal.append = real  # type: ignore[method-assign]


def lost_lines(place: Workspace, file: Path) -> set[str]:
    """Journal lines that were acknowledged and are not there."""
    told = set(file.read_text().split()) if file.exists() else set()
    return told - {entry.sha256 for entry in read_entries(place)}


def spread_over(things: Sequence[T], act: Callable[[Sequence[T]], list[U]]) -> list[U]:
    """What ``act`` makes of the things, dealt out to as many processes as there are processors."""
    slices = [things[first::JOBS] for first in range(JOBS)]
    with ProcessPoolExecutor(JOBS, mp_context=get_context("fork")) as pool:
        return [made for mine in pool.map(act, slices) for made in mine]


def command(root: Path) -> list[str | Path]:
    """The session as a command of its own, to be run in ``TESTS``."""
    return [sys.executable, "-m", "chaos.session", root]


def run_command(root: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(root), cwd=TESTS, capture_output=True, text=True, check=False, timeout=60
    )


def keep_figure(name: str, **figures: Any) -> None:
    """Show what a test tried; the note quotes it."""
    sys.stdout.write(f"{name}: {json.dumps(figures, sort_keys=True)}\n")


if __name__ == "__main__":
    sys.exit(telling(lambda: go(Path(sys.argv[1]))))
