"""The meter's kill reaches all that an executor started, and nobody else."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from runbook.kill import end_processes
from runbook.owner import process_start

SOON_S = 20.0
NOBODY = ("RUNBOOK_TEST_MARK", "nobody carries this")


@dataclass
class Session:
    """A leader, and a member that it started."""

    leader: subprocess.Popen[bytes]
    start: int
    member: int

    def is_gone(self) -> bool:
        """Whether its member dies within the time for what must happen."""
        limit = time.monotonic() + SOON_S
        while process_start(self.member) is not None and time.monotonic() < limit:
            time.sleep(0.01)
        return process_start(self.member) is None


@pytest.fixture
def session() -> Iterator[Session]:
    script = ["/bin/sh", "-c", "sleep 60 >/dev/null & echo $!; wait"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        member = int(leader.stdout.readline())
        yield Session(leader, process_start(leader.pid) or 0, member)
        for pid in (leader.pid, member):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def die(leader: subprocess.Popen[bytes]) -> None:
    """Leave a zombie."""
    leader.kill()
    os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("is_waited_for", [False, True])
def test_a_dead_leaders_session_is_killed(session: Session, *, is_waited_for: bool) -> None:
    """What it left is found by the session's number, whether or not somebody waited for it."""
    die(session.leader)
    if is_waited_for:
        session.leader.wait()

    end_processes(session.leader.pid, session.start, NOBODY, leader=True)

    assert session.is_gone()


@pytest.mark.parametrize("is_dead", [False, True])
def test_another_process_of_the_number_is_spared(session: Session, *, is_dead: bool) -> None:
    """Where the number was given again, neither that process nor its session is touched."""
    if is_dead:
        die(session.leader)

    end_processes(session.leader.pid, session.start - 1, NOBODY, leader=True)

    assert process_start(session.member) is not None
    assert (process_start(session.leader.pid) is None) is is_dead


def test_what_carries_the_mark_is_killed() -> None:
    """Wherever it stands, and nothing that carries another value."""
    name, value = NOBODY
    sleep = ["sleep", "60"]
    with (
        subprocess.Popen(sleep, env={name: value}, start_new_session=True) as marked,
        subprocess.Popen(sleep, env={name: f"{value} too"}) as other,
    ):
        end_processes(1 << 30, 1, NOBODY, leader=False)

        assert marked.wait(SOON_S) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
