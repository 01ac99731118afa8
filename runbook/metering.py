"""The executor's dealings with the meter process: when there is one, what it holds, its end.

The meter itself (``runbook.meter``) lives on when the executor hangs or is killed. There is one
where the runbook sets a limit, says when the rental ends or how the pod is stopped. A former one
is ended in any case, and its record read first.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from runbook import events as ev
from runbook.clock import Clock
from runbook.contract import Json
from runbook.errors import ConfigError
from runbook.ledger import Ledger
from runbook.meter_decision import DEADLINE
from runbook.meter_folder import MeterRecords
from runbook.meter_handover import end_former_meters
from runbook.meter_record import MeterRecord
from runbook.owner import Owner
from runbook.params import expand
from runbook.plan import Plan
from runbook.rental import rental_end
from runbook.workspace import Workspace

if TYPE_CHECKING:
    from runbook.meter_client import Meter

_ARM_EVERY_S = 10.0
_NOTHING_TO_STOP_S = 60.0
"""So long a meter outlives its executor where it has no pod to stop."""


class Metering:
    """Nothing runs before ``start``, and nothing at all where there is nothing to hold."""

    def __init__(
        self,
        plan: Plan,
        workspace: Workspace,
        ledger: Ledger,
        clock: Clock,
        notice: tuple[str, ...] | None = None,
    ) -> None:
        """``notice`` is the meter's, see ``runbook.meter.Terms``.

        Raises ConfigError: a command or the rental's end cannot be read.
        """
        self._workspace = workspace
        self._ledger = ledger
        self._clock = clock
        self._stop = _command(plan.pod, "stop")
        self._state = _command(plan.pod, "state")
        self._abandoned_after_s = plan.pod.get("abandoned_after_s")
        self._rental_ends = rental_end(plan.pod)
        self._notice = notice
        self._wanted = ledger.limits.any or bool(self._stop) or self._rental_ends is not None
        self._meter: Meter | None = None
        self._armed = -math.inf
        self._former: MeterRecord | None = None

    def take_over(self, run_id: str | None) -> None:
        """End the former executor's meter, at once and whether or not a new one is wanted.

        Where there was one, this session's is started too, so that there is no time without.

        Args:
            run_id: of the session; None where it has not begun.

        Raises:
            ConfigError: there is no local folder for the meter's record.
        """
        records = MeterRecords.find(self._workspace.root)
        if records is None:
            return
        newest = records.newest()
        self._former = newest if newest and newest.run_id == run_id else None
        if end_former_meters(records) and run_id is not None:
            self.start(run_id)

    @property
    def saw_limit(self) -> bool:
        """Whether the former meter saw its executor work until a limit of the budget."""
        return self._former is not None and self._former.limit == DEADLINE

    def watched(self, owner: Owner) -> bool:
        """Whether that executor was this one."""
        former = self._former
        return former is not None and (
            (former.executor_pid, former.executor_start, former.boot_id)
            == (owner.pid, owner.started, owner.boot)
        )

    def start(self, run_id: str) -> None:
        """Does nothing where it runs. Raises ConfigError as ``take_over`` does."""
        if not self._wanted or self._meter is not None:
            return
        from runbook.meter_client import Meter, MeterConfig  # noqa: PLC0415 - many have none

        ends = self._rental_ends
        self._meter = Meter.start(
            MeterConfig(
                run_id,
                self._workspace.root,
                deadline_s=self._deadline(),
                rental_ends_s=None if ends is None else ends - self._clock.wall(),
                stop_pod=self._stop,
                pod_state=self._state,
                abandoned_after_s=self._abandoned_after_s if self._stop else _NOTHING_TO_STOP_S,
                notice=self._notice,
            )
        )

    def tick(self) -> None:
        """Show that the executor lives, and keep the meter's limit where the ledger's is."""
        if self._meter is None:
            return
        self._meter.beat()
        now = self._clock.monotonic()
        if now - self._armed >= _ARM_EVERY_S:
            self._armed = now
            self._meter.ensure()
            self._meter.arm(self._deadline())

    def limit_reached(self) -> str:
        """Why the meter asked this executor to end; empty where it did not."""
        return (self._meter.limit_reached() or "") if self._meter else ""

    def end(self, why: str, *, stop_pod: bool) -> ev.PodStopRequested | None:
        """End the meter; what became of the pod, where it was to be stopped."""
        if self._meter is None:
            return None
        meter, self._meter = self._meter, None
        done = meter.end(why, stop_pod=stop_pod and self._stop is not None)
        if done is None or done.command is None:
            return None
        return ev.PodStopRequested(done.requested_at, done.last_rc, done.last_state or "")

    def leave(self, why: str) -> ev.PodStopRequested | None:
        """Have the meter watch on: nobody resumes in time, and it stops the pod.

        What became of the pod, where a limit was reached already.
        """
        if self._meter is None or self._stop is None or self.limit_reached():
            return self.end(why, stop_pod=False)
        self._meter.leave(why)
        self._meter = None
        return None

    def let_go(self) -> None:
        """Another executor has taken over: its meter ends this one, unless it is elsewhere."""
        if self._meter is not None:
            self._meter.let_go()
            self._meter = None

    def _deadline(self) -> float | None:
        left = self._ledger.seconds_left(terminal=True)
        return left if math.isfinite(left) else None


def owes_stop(pod: Mapping[str, Json], workspace: Workspace, known: Sequence[ev.Event]) -> bool:
    """Whether a kill, after a session's last line, kept this machine's pod from being stopped.

    It did where neither the journal nor the meter's record has a stop since the last start, and
    that record is of this machine: on another one, after a new start of this one, and where
    somebody ended the meter there is nothing to make up for.

    Args:
        pod: ``Plan.pod``.
        workspace: of the session.
        known: the session's facts, in order; it has begun.
    """
    last_run = ev.PodStopRequested | ev.SessionStarted | ev.SessionResumed
    if isinstance(next(f for f in reversed(known) if isinstance(f, last_run)), ev.PodStopRequested):
        return False
    records = MeterRecords.find(workspace.root) if pod.get("stop") else None
    record = records.newest() if records else None
    run_id = next(f.run_id for f in known if isinstance(f, ev.SessionStarted))
    if record is None or record.run_id != run_id or not record.is_of_this_boot:
        return False
    stop = record.stop
    is_begun = stop is not None and (stop.finished or record.is_running)
    return not is_begun and record.left is None


def _command(pod: Mapping[str, Json], name: str) -> tuple[str, ...] | None:
    if not pod.get(name):
        return None
    try:
        return tuple(expand(part, os.environ) for part in pod[name])
    except KeyError as error:
        raise ConfigError(
            f"the environment variable {error.args[0]} is not set",
            where=f"pod.{name}",
            fix=f"export {error.args[0]}, or take it out of the command",
        ) from None
