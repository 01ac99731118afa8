"""Why an executor must stop, and how soon: a signal, a person's wish, the budget.

Asked at every tick while a child works, and between the executor's own acts.
"""

from collections.abc import Callable, Mapping

from runbook.clock import Clock
from runbook.contract import Json
from runbook.control import STOP_REQUESTED, Pulse
from runbook.errors import BudgetError, NeedsPersonError, PausedError
from runbook.ledger import Ledger
from runbook.meter_decision import RENTAL
from runbook.metering import Metering

GRACE_S = 2.5
"""What a child has to reach its next commit once the executor was sent a signal."""


class Halt(Exception):  # noqa: N818 - a stop is not an error
    """A stop whose cause is not in the journal: a signal, the clock, the disk."""

    def __init__(self, reason: str, exit_code: int, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.exit_code = exit_code
        self.detail = detail


class Supervisor:
    def __init__(
        self,
        clock: Clock,
        signal: Callable[[], str],
        pulse: Pulse,
        ledger: Ledger,
        metering: Metering,
        check_fence: Callable[[], None],
    ) -> None:
        """Watch over one executor.

        Args:
            clock: its monotonic time alone is used.
            signal: names the signal that the executor was sent, or ''.
            pulse: shows that the executor lives, and hears of a person's wish.
            ledger: what may still be spent.
            metering: the meter process.
            check_fence: raises LockedError where another executor has taken over, so that no child
                works on beside that one's.
        """
        self._clock = clock
        self._signal = signal
        self._pulse = pulse
        self._ledger = ledger
        self._metering = metering
        self._check_fence = check_fence
        self._terminal = False
        self._signalled: float | None = None
        self._too_long = ""
        """Why the next batch would not fit into what may still be spent."""

    def begin(self, *, terminal: bool) -> None:
        """The step at hand may, or may not, draw on the budget's reserve. Raises Halt."""
        self._terminal, self._too_long = terminal, ""
        self._check_budget()

    def tell(self, fields: Mapping[str, Json]) -> None:
        """What the heartbeat shows of the step at hand."""
        self._pulse.progress = fields

    def reason(self) -> str:
        """Why the session is to end now, or ''."""
        self._tick()
        wish, signal = self._wish_and_signal()
        return wish or signal

    def hurried(self) -> bool:
        """Whether the executor was sent a signal: nothing more is waited for that can be spared."""
        if self._signalled is None and self._signal():
            self._signalled = self._clock.monotonic()
        return self._signalled is not None

    def trouble(self) -> str:
        """What a GPU reported last; empty where none did."""
        return self._pulse.trouble()

    def watch(self) -> float:
        """Seconds that a child still has; infinite while nothing hurries it."""
        self._tick()
        now = self._clock.monotonic()
        left = self._ledger.deadline - now
        if self.hurried():
            assert self._signalled is not None
            left = min(left, self._signalled + GRACE_S - now)
        return left

    def pause(self, took_s: float) -> bool:
        """Whether to pause at this commit: the next batch, as long as this one, may not end."""
        stopped = bool(self.reason())
        left = self._ledger.deadline - self._clock.monotonic()
        if left < took_s:
            self._too_long = f"the last batch took {took_s:.0f} s, and {left:.0f} s are left"
        return stopped or bool(self._too_long)

    def check(self) -> None:
        """Raises Halt where the session is to end now."""
        if limit := self._metering.limit_reached():
            if self._ledger.seconds_left(terminal=True) <= 0:
                raise self._spent()
            reason = "rental" if limit == RENTAL else "budget"
            raise Halt(reason, BudgetError.code, f"the meter asked for it: {limit}")
        wish, signal = self._wish_and_signal()
        if wish:
            # Before the signal: after a pause the next machine would go on over it.
            raise Halt(STOP_REQUESTED, NeedsPersonError.code, wish)
        if signal:
            raise Halt("paused", PausedError.code, f"{signal}; the same command goes on")
        self._tick()

    def check_pause(self, step: str) -> None:
        """A step paused though no signal was sent. Raises Halt with the cause."""
        if self._too_long:
            spent = self._ledger.exhausted(terminal=self._terminal)
            raise Halt("budget", BudgetError.code, f"{spent}; {self._too_long}")
        raise Halt("paused", PausedError.code, f"{step} paused itself")

    def _wish_and_signal(self) -> tuple[str, str]:
        """A person's wish to stop in words, and the signal's name; '' where there is none."""
        signal = self._signal()
        wish = self._pulse.wish(fresh=bool(signal))
        return f"a person asked for it: {wish}" if wish else "", signal

    def _check_budget(self) -> None:
        if not self._ledger.lease(terminal=self._terminal):
            raise self._spent()

    def _spent(self) -> Halt:
        return Halt("budget", BudgetError.code, self._ledger.exhausted(terminal=self._terminal))

    def _tick(self) -> None:
        self._check_fence()
        self._pulse.beat()
        self._metering.tick()
        self._ledger.lease(terminal=self._terminal)
