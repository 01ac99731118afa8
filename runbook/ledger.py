"""What an executor spends, on record before it is spent: leases of time, requests to reviewers.

The arithmetic is ``runbook.budget``'s; this keeps the clock and writes the facts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from runbook import budget
from runbook import events as ev
from runbook.budget import LEASE_S, Limits
from runbook.clock import Clock

_OVERRUN_S = 1.0
"""Time used beyond a lease goes on record in steps of this length, and at the end."""
_ROUNDING_S = 1e-6
"""By so much two sums of the same time may differ; less than this is no time."""


class Ledger:
    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        facts: Callable[[], Sequence[ev.Event]],
        append: Callable[[ev.Event], None],
        *,
        request_usd: float = 0.0,
        unknown_requests: int = 1,
    ) -> None:
        """Begin an executor's spending; what earlier ones spent is read from the facts.

        Args:
            limits: the runbook's.
            clock: only its monotonic time is used.
            facts: gives all so far.
            append: makes a fact durable.
            request_usd: what one request to the reviewer may cost at worst.
            unknown_requests: how many more are sent after one whose end is unknown.
        """
        self.limits = limits
        self._clock = clock
        self._facts = facts
        self._append = append
        self._request_usd = request_usd
        self._unknown_requests = unknown_requests
        self._began = clock.monotonic()
        self._leased_until = self._began
        self._terminal = False
        self._before = self._requested = budget.spent(facts())
        """Of earlier executors; and with the requests of this one."""

    def lease(self, *, terminal: bool = False) -> bool:
        """Keep a slice of time reserved ahead; whether there is any left to work in.

        Nothing stays reserved that the work at hand may not take. What was used beyond the last
        lease, by a process that was stopped for a while, goes on record too.

        Args:
            terminal: the work at hand may draw on the reserve.
        """
        self._terminal = terminal
        now = self._clock.monotonic()
        used = now - self._began
        left = self._left(used, terminal=terminal)
        ahead = min(LEASE_S, left) if left > _ROUNDING_S else 0.0
        reserved = self._leased_until - now
        is_short = bool(ahead) and reserved < min(LEASE_S / 2, ahead) - _ROUNDING_S
        is_too_long = reserved > ahead + _ROUNDING_S
        if is_short or is_too_long or reserved < -_OVERRUN_S:
            self._append(ev.TimeLeased(used, ahead))
            self._leased_until = now + ahead
        return ahead > 0

    def charge_to_the_limit(self) -> None:
        """The executor before this one worked until a limit of its time was reached.

        Its lease says less. Called before the session goes on, and before anything is leased.
        """
        if charge := budget.up_to_the_limit(self._facts()):
            self._append(charge)
            self._before = self._requested = self._spent()

    def seconds_left(self, *, terminal: bool) -> float:
        """What may still be worked from now on; infinite where nothing limits it."""
        return self._left(self._clock.monotonic() - self._began, terminal=terminal)

    def exhausted(self, *, terminal: bool) -> str:
        """Which limit is reached, in words."""
        now = self._used(self._clock.monotonic() - self._began)
        return budget.exhausted(self.limits, now, terminal=terminal)

    @property
    def deadline(self) -> float:
        """The monotonic time at which the work at hand must have ended; infinite without limits."""
        now = self._clock.monotonic()
        return now + max(0.0, self._left(now - self._began, terminal=self._terminal))

    def settle(self) -> None:
        """Give back what is left of the lease."""
        self._append(ev.TimeLeased(self._clock.monotonic() - self._began, 0.0))

    def account(self, review_id: str) -> "ReviewAccount":
        return ReviewAccount(self, review_id)

    def reserve(self, review_id: str, key: str, usd: float | None = None) -> str:
        """See ``runbook.contract.Account``."""
        usd = self._request_usd if usd is None else usd
        sent, settled = self._requests(key)
        unknown = sent - settled
        if unknown > self._unknown_requests:
            times = "once" if unknown == 1 else f"{unknown} times"
            return f"it was asked {times} and no end of that is known; decide yourself"
        if self.seconds_left(terminal=self._terminal) <= 0:
            # It would be cut off before its answer came, and paid.
            return (
                f"no time is left to wait for an answer: {self.exhausted(terminal=self._terminal)}"
            )
        left = budget.review_left(self.limits, self._spent())
        if not 0.0 <= usd <= left:
            what = f"one request may cost {budget.dollars(usd)}"
            may = f"{budget.dollars(max(0.0, left))} may still be spent"
            return f"{what}, and {may}; decide yourself"
        self._append(ev.RequestSent(review_id, key, sent + 1, usd))
        self._requested = self._spent()
        return ""

    def affords(self, requests: int, usd: float | None = None) -> bool:
        """See ``runbook.contract.Account``."""
        usd = self._request_usd if usd is None else usd
        return 0.0 <= requests * usd <= budget.review_left(self.limits, self._spent())

    def settle_request(
        self, review_id: str, key: str, usd: float | None, *, input_tokens: int, output_tokens: int
    ) -> None:
        """See ``runbook.contract.Account``."""
        sent, reserved = self._last_sent(key)
        # What would cost more than was reserved could break a limit that was held.
        cost = usd if usd is not None and 0.0 <= usd <= reserved else reserved
        tokens = max(0, input_tokens), max(0, output_tokens)
        self._append(ev.RequestSettled(review_id, key, sent, cost, *tokens))
        self._requested = self._spent()

    def _last_sent(self, key: str) -> tuple[int, float]:
        """Number and reserved cost of the newest request under this key."""
        sent = [f for f in self._facts() if isinstance(f, ev.RequestSent) and f.key == key]
        return (sent[-1].number, sent[-1].usd) if sent else (0, 0.0)

    def _left(self, used_s: float, *, terminal: bool) -> float:
        return budget.seconds_left(self.limits, self._used(used_s), terminal=terminal)

    def _used(self, mine_s: float) -> budget.Spent:
        """What is spent by the clock: without what is leased ahead."""
        return replace(self._requested, seconds=self._before.seconds + mine_s)

    def _spent(self) -> budget.Spent:
        return budget.spent(self._facts())

    def _requests(self, key: str) -> tuple[int, int]:
        """Sent and settled; one that a resumed review settles again counts once."""
        known = self._facts()
        sent = {f.number for f in known if isinstance(f, ev.RequestSent) and f.key == key}
        settled = {f.number for f in known if isinstance(f, ev.RequestSettled) and f.key == key}
        return len(sent), len(settled)


class ReviewAccount:
    """What one review's requests are paid from."""

    def __init__(self, ledger: Ledger, review_id: str) -> None:
        self._ledger = ledger
        self._review_id = review_id

    def affords(self, requests: int, usd: float | None = None) -> bool:
        return self._ledger.affords(requests, usd)

    def reserve(self, key: str, usd: float | None = None) -> str:
        return self._ledger.reserve(self._review_id, key, usd)

    def settle(
        self,
        key: str,
        usd: float | None = None,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        self._ledger.settle_request(
            self._review_id, key, usd, input_tokens=input_tokens, output_tokens=output_tokens
        )
