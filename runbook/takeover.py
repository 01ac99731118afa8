"""Becoming the one writer of a workspace: the lock, its former owner, and taking over from it.

On one machine the kernel's lock tells whether the owner lives; across machines nobody can know, so
a person says so, or the declared ``pod_state`` command does. Safety rests on neither: a writer
that lives on is fenced off by the next epoch of the journal (``runbook.journal``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runbook import durable
from runbook.clock import SYSTEM, Clock
from runbook.errors import LockedError
from runbook.journal import Reading, read_journal
from runbook.journal_writer import Journal
from runbook.owner import Owner, this_process
from runbook.workspace import Workspace

if TYPE_CHECKING:
    from filelock import BaseFileLock

Takeover = Callable[[Owner], str]
"""Why this owner may be superseded. Raises LockedError where it may not."""
_PATIENCE_S = 5.0


def forced(_: Owner) -> str:
    """The takeover that a person asked for."""
    return "taken over by a person's command"


@contextmanager
def open_journal(
    workspace: Workspace, clock: Clock = SYSTEM, *, takeover: Takeover | None = None
) -> Iterator[Journal]:
    """The journal, open for writing by this process alone.

    An owner of this machine that is gone needs no takeover.

    Raises:
        LockedError: another process holds the workspace, or may hold it on another machine.
        CorruptError: the journal is not what was appended.
        NeedsPersonError: the volume is full or failing.
    """
    lock, asked = _acquire(workspace, takeover)
    try:
        reading = read_journal(workspace)
        why = asked or _succession(workspace, reading, takeover)
        with (
            durable.holding(workspace.root),
            Journal(workspace, clock, why=why, reading=reading) as journal,
            durable.fenced(workspace.root, journal.check_fence),
        ):
            try:
                yield journal
            except OSError:
                # Whoever took over has cleared up what this one had half written.
                journal.check_fence()
                raise
    finally:
        lock.release()


def _acquire(workspace: Workspace, takeover: Takeover | None) -> "tuple[BaseFileLock, str]":
    """The lock, and why it was taken from its holder; empty where nobody held it."""
    from filelock import FileLock, Timeout  # noqa: PLC0415 - reading takes no lock

    lock = FileLock(workspace.lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = read_journal(workspace).holder
        if takeover is None or holder is None:
            raise _held(workspace, holder) from None
        why = takeover(holder)
    else:
        return lock, ""
    if holder.is_here:
        holder.end(_PATIENCE_S)
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout:
        # Held on another machine, by one that was found gone or is to be superseded.
        workspace.lock_file.unlink(missing_ok=True)
        lock.acquire(timeout=0)
    return lock, why


def _succession(workspace: Workspace, reading: Reading, takeover: Takeover | None) -> str:
    """Why the next epoch opens. Raises LockedError: the last one's owner may be at work."""
    holder = reading.holder
    if holder is None:
        return "resume" if reading.epochs else "start"
    if holder == this_process() or (holder.is_here and not holder.is_alive_here):
        # This process has the lock, so it is not at work on an earlier session itself.
        return f"{holder.name} did not end its session"
    if takeover is None:
        raise _held(workspace, holder)
    why = takeover(holder)
    if holder.is_here:
        holder.end(_PATIENCE_S)
    return why


def _held(workspace: Workspace, holder: Owner | None) -> LockedError:
    if holder is None or holder.is_here:
        fix = "wait for it or stop it ('runbook stop'); 'runbook status' reads without the lock"
    else:
        fix = "if that machine is gone: 'runbook resume --takeover=yes'; else use it there"
    who = holder.name if holder else "another process"
    return LockedError(f"{who} holds the workspace", where=str(workspace.root), fix=fix)
