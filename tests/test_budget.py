"""The budget: reserved before it is spent, never beyond a limit, counted over every resume."""

import math
from collections.abc import Callable
from itertools import cycle, pairwise
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook import events as ev
from runbook.budget import LEASE_S, Limits, Spent, review_left, seconds_left, spent
from runbook.clock import Clock
from runbook.control import Pulse
from runbook.ledger import Ledger
from runbook.metering import Metering
from runbook.supervision import Halt, Supervisor

HOUR = 3600.0


class Book:
    """The facts of a session, and one executor after another that adds to them."""

    def __init__(self, limits: Limits, request_usd: float = 0.0) -> None:
        self.facts: list[ev.Event] = []
        self.now = 0.0
        self._limits = limits
        self._request_usd = request_usd
        self.ledger = self.begin()

    def begin(self) -> Ledger:
        """A new executor; what the one before left open counts as spent."""
        self.facts.append(ev.SessionResumed())
        clock = Clock(monotonic=lambda: self.now)
        ledger = Ledger(
            self._limits,
            clock,
            lambda: self.facts,
            self.facts.append,
            request_usd=self._request_usd,
        )
        self.ledger = ledger
        return ledger

    def add(self, fact: ev.Event) -> None:
        self.facts.append(fact)

    def supervise(self) -> Supervisor:
        """A supervisor of the executor that began last, whose wall clock jumps at each look."""
        jumps = cycle((1.8e9, 1.8e9 + 30 * 24 * HOUR, 0.0))
        clock = Clock(wall=lambda: next(jumps), monotonic=lambda: self.now)
        pulse = Mock(spec=Pulse, **{"wish.return_value": ""})
        return Supervisor(clock, str, pulse, self.ledger, Mock(spec=Metering), check_fence=Mock())


def test_a_lease_never_reaches_beyond_the_limit() -> None:
    """The last slice is what is left, and behind it there is none."""
    book = Book(Limits(wall_clock_s=500.0))

    assert book.ledger.lease()
    assert book.ledger.deadline == 500.0
    book.now = 200.0
    assert book.ledger.lease()
    book.now = 360.0
    assert book.ledger.lease()

    assert spent(book.facts).seconds == 500.0
    assert book.ledger.deadline == 500.0
    book.now = 500.0
    assert not book.ledger.lease()
    assert book.ledger.exhausted(terminal=False) == "wall clock: 500 s of 500 s spent"


def test_what_was_spent_is_told_where_some_is_left_too() -> None:
    """A stop before any limit names them all, with more digits where cents do not say enough."""
    book = Book(Limits(wall_clock_s=6.0, usd=0.01, usd_per_hour=3.6))
    book.now = 4.3

    told = book.ledger.exhausted(terminal=True)

    assert told == "wall clock: 4 s of 6 s spent; money: $0.0043 of $0.01 spent"


def test_a_killed_executors_lease_is_spent_whole() -> None:
    """Nobody knows how long it lived, so it cost what it had reserved."""
    book = Book(Limits(wall_clock_s=1000.0))
    book.ledger.lease()
    book.now = 10.0

    book.begin()

    assert spent(book.facts).seconds == LEASE_S
    assert book.ledger.seconds_left(terminal=True) == 1000.0 - LEASE_S


@pytest.mark.parametrize(
    ("limits", "charged"),
    [
        ({"wall_clock_s": 1000.0, "reserve_s": 100.0}, 1000.0),
        ({"usd": 2.0, "usd_per_hour": 2.0}, HOUR),
        ({"wall_clock_s": 250.0}, LEASE_S + 20.0),
        ({}, LEASE_S + 20.0),
    ],
)
def test_an_executor_that_hung_until_a_limit_spent_what_was_left(
    limits: dict[str, float], charged: float
) -> None:
    """All of the limit that held then, and what a raised one allows is still there."""
    book = Book(Limits(wall_clock_s=9000.0))
    book.facts[:] = [ev.SessionResumed(limits), ev.TimeLeased(20.0, LEASE_S)]
    ledger = Ledger(book.ledger.limits, Clock(monotonic=lambda: 0.0), lambda: book.facts, book.add)

    for _ in range(2):
        ledger.charge_to_the_limit()
    book.add(ev.SessionResumed())

    assert spent(book.facts).seconds == pytest.approx(charged)
    assert ledger.seconds_left(terminal=True) == pytest.approx(9000.0 - charged)


def test_a_settled_lease_costs_what_was_used() -> None:
    """An executor that ends by itself gives the rest back."""
    book = Book(Limits(wall_clock_s=1000.0))
    book.ledger.lease()
    book.now = 10.0
    book.ledger.settle()

    assert spent(book.facts).seconds == 10.0


def test_the_terminal_reserve_is_for_terminal_steps_alone() -> None:
    """Other steps end before it; evaluation then still has it."""
    book = Book(Limits(wall_clock_s=200.0, reserve_s=60.0))

    assert book.ledger.lease()
    assert book.ledger.deadline == 140.0
    book.now = 140.0
    assert not book.ledger.lease()
    assert "60 s of it held back" in book.ledger.exhausted(terminal=False)
    assert book.ledger.lease(terminal=True)
    assert book.ledger.deadline == 200.0


def test_no_step_begins_without_a_lease() -> None:
    """What a step may take is on record before it starts; with nothing left it does not."""
    book = Book(Limits(wall_clock_s=100.0))
    supervisor = book.supervise()

    supervisor.begin(terminal=False)
    assert book.facts[-1] == ev.TimeLeased(0.0, 100.0)

    book.now = 100.0
    with pytest.raises(Halt, match="100 s of 100 s spent"):
        supervisor.begin(terminal=False)


def test_a_step_does_not_take_what_only_terminal_ones_may() -> None:
    """A retry behind a failed evaluation that drew on the reserve does not begin."""
    book = Book(Limits(wall_clock_s=3600.0, reserve_s=600.0))
    supervisor = book.supervise()
    supervisor.begin(terminal=False)
    book.now = 2940.0
    supervisor.begin(terminal=True)
    book.now = 3040.0
    supervisor.watch()
    assert spent(book.facts).seconds > book.now

    with pytest.raises(Halt, match="600 s of it held back") as halt:
        supervisor.begin(terminal=False)

    assert halt.value.reason == "budget"
    assert supervisor.watch() <= 0.0
    assert spent(book.facts).seconds == book.now


def test_an_executor_that_slept_through_its_lease_has_no_time_left() -> None:
    """Stopped until beyond its limit, it is at its deadline, and what it slept is on record."""
    book = Book(Limits(wall_clock_s=3600.0, reserve_s=600.0))
    supervisor = book.supervise()
    supervisor.begin(terminal=False)
    book.now = 3020.0

    assert supervisor.watch() <= 0.0
    assert supervisor.pause(0.0) is False
    assert supervisor.pause(0.1) is True
    assert spent(book.facts).seconds == 3020.0
    assert spent(book.facts[:-1]).seconds <= 3000.0
    with pytest.raises(Halt, match="the last batch took 0 s, and 0 s are left"):
        supervisor.check_pause("a")


def test_a_batch_that_cannot_end_in_time_is_not_begun() -> None:
    """However far the limit: a batch as long as the last one must fit into what is left."""
    book = Book(Limits(wall_clock_s=5000.0))
    supervisor = book.supervise()
    supervisor.begin(terminal=False)
    book.now = 2000.0
    assert not supervisor.pause(2000.0)
    book.now = 4000.0

    assert supervisor.pause(2000.0)
    with pytest.raises(Halt, match="the last batch took 2000 s, and 1000 s are left") as halt:
        supervisor.check_pause("a")
    assert halt.value.exit_code == 4


def test_a_step_that_pauses_itself_is_no_matter_of_the_budget() -> None:
    """Where time is left for a batch like the last, a pause is the step's own."""
    book = Book(Limits(wall_clock_s=5000.0))
    supervisor = book.supervise()
    supervisor.begin(terminal=False)
    assert not supervisor.pause(100.0)

    with pytest.raises(Halt, match="a paused itself") as halt:
        supervisor.check_pause("a")
    assert halt.value.exit_code == 75


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        (Limits(), math.inf),
        (Limits(wall_clock_s=HOUR), 1800.0),
        (Limits(gpu_hours=4.0, gpus=4), 1800.0),
        (Limits(gpu_hours=4.0), math.inf),
        (Limits(usd=2.0, usd_per_hour=2.0), 900.0),
        (Limits(usd=2.0), math.inf),
        (Limits(wall_clock_s=HOUR, gpu_hours=1.0, gpus=1, usd=9.0, usd_per_hour=1.0), 1800.0),
    ],
)
def test_the_nearest_limit_counts(limits: Limits, left: float) -> None:
    """Of wall clock, GPU-hours and dollars the one that ends first; half an hour, $0.50 spent."""
    assert seconds_left(limits, Spent(1800.0, 0.5, 1), terminal=True) == pytest.approx(left)


def test_reviews_have_a_limit_of_their_own_and_share_the_whole() -> None:
    """A review is refused by either, with the reserve's own price held back."""
    now = Spent(HOUR, 1.0, 2)

    assert review_left(Limits(review_usd=1.5), now) == 0.5
    assert review_left(Limits(usd=5.0, usd_per_hour=2.0), now) == 2.0
    assert review_left(Limits(usd=5.0, usd_per_hour=2.0, reserve_s=HOUR), now) == 0.0
    assert math.isinf(review_left(Limits(), now))


def test_a_request_is_on_record_before_it_leaves() -> None:
    """Reserve returns with the intent and its worst cost already among the facts."""
    book = Book(Limits(review_usd=1.0), request_usd=0.6)
    account = book.ledger.account("a-1")

    assert account.reserve("k") == ""
    assert book.facts[1:] == [ev.RequestSent("a-1", "k", 1, 0.6)]
    assert "may cost $0.60, and $0.40" in account.reserve("other")
    account.settle("k")
    assert book.facts[2:] == [ev.RequestSettled("a-1", "k", 1, 0.6)]
    assert spent(book.facts) == Spent(0.0, 0.6, 1)


def test_no_request_leaves_when_no_time_is_left() -> None:
    """Its answer could not be waited for, and would be paid."""
    book = Book(Limits(wall_clock_s=100.0, review_usd=1.0), request_usd=0.1)
    _work(book, 120.0)

    assert "no time is left" in book.ledger.account("a-1").reserve("k")
    assert not [f for f in book.facts if isinstance(f, ev.RequestSent)]


def test_no_settlement_exceeds_what_was_reserved() -> None:
    """What a provider would have us pay beyond it cannot break a limit that was held."""
    book = Book(Limits(review_usd=1.0), request_usd=0.6)
    account = book.ledger.account("a-1")
    account.reserve("k", 0.25)
    account.settle("k", 9.0, input_tokens=7, output_tokens=3)

    assert book.facts[-1] == ev.RequestSettled("a-1", "k", 1, 0.25, 7, 3)


def test_a_request_whose_end_is_unknown_is_repeated_once() -> None:
    """Killed twice between asking and hearing, a person must decide."""
    book = Book(Limits(), request_usd=0.5)
    told = []
    for _ in range(3):
        told.append(book.ledger.account("a-1").reserve("k"))
        book.begin()

    assert told[:2] == ["", ""]
    assert "asked 2 times and no end of that is known" in told[2]
    assert spent(book.facts).review_usd == 1.0


def _settle(book: Book) -> None:
    book.ledger.settle()
    book.begin()


def _work(book: Book, seconds: float) -> None:
    """Work as a supervised child does: it is ended at the deadline, and asks at each tick."""
    end = book.now + seconds
    while book.now < end and book.ledger.lease():
        book.now = min(end, book.ledger.deadline, book.now + 20.0)


Act = Callable[[Book], object]
ACTS: dict[str, Act] = {
    "work": lambda book: _work(book, 70.0),
    "work long": lambda book: _work(book, 400.0),
    "terminal": lambda book: book.ledger.lease(terminal=True),
    "kill": lambda book: book.begin(),
    "settle": _settle,
    "ask": lambda book: book.ledger.account("a-1").reserve(str(len(book.facts))),
}


LIMITS = st.builds(
    Limits,
    wall_clock_s=st.none() | st.floats(1, 3000),
    usd=st.none() | st.floats(0.01, 3),
    review_usd=st.none() | st.floats(0, 2),
    usd_per_hour=st.sampled_from([0.0, 2.0]),
    gpu_hours=st.none() | st.floats(0.01, 2),
    gpus=st.integers(0, 4),
    reserve_s=st.floats(0, 600),
)


@given(limits=LIMITS, acts=st.lists(st.sampled_from(sorted(ACTS)), max_size=12))
def test_no_prefix_of_the_journal_exceeds_a_limit(limits: Limits, acts: list[str]) -> None:
    """Spent and reserved together stay within every limit, whatever happens and whenever killed."""
    book = Book(limits, request_usd=0.3)
    for act in acts:
        ACTS[act](book)

    for length in range(len(book.facts) + 1):
        now = spent(book.facts[:length])
        near = 1e-6
        assert limits.wall_clock_s is None or now.seconds <= limits.wall_clock_s + near
        assert limits.review_usd is None or now.review_usd <= limits.review_usd + near
        if limits.usd is not None and limits.usd_per_hour:
            assert now.usd(limits) <= limits.usd + near
        if limits.gpu_hours is not None and limits.gpus:
            assert now.gpu_hours(limits) <= limits.gpu_hours + near


@given(limits=LIMITS, acts=st.lists(st.sampled_from(sorted(ACTS)), max_size=12))
def test_spend_never_goes_down_but_by_settling(limits: Limits, acts: list[str]) -> None:
    """What was spent stays spent over every resume; only an unused lease is given back."""
    book = Book(limits, request_usd=0.3)
    for act in acts:
        ACTS[act](book)

    totals = [spent(book.facts[:n]) for n in range(len(book.facts) + 1)]
    for (before, after), fact in zip(pairwise(totals), book.facts, strict=True):
        assert after.review_usd >= before.review_usd
        gives_back = isinstance(fact, ev.TimeLeased)
        assert gives_back or after.seconds >= before.seconds


class Life:
    """Executors one after another, as a supervisor moves them, and what they really used."""

    def __init__(self, limits: Limits) -> None:
        self.book = Book(limits)
        self._limits = limits
        self._supervisor = self.book.supervise()
        self._began = self._paid = 0.0

    @property
    def used(self) -> float:
        """Seconds, of all executors; a killed one's as its lease says."""
        return self._paid + self.book.now - self._began

    def cap(self, *, terminal: bool) -> float:
        return seconds_left(self._limits, Spent(), terminal=terminal)

    def next_executor(self, *, settles: bool) -> None:
        if settles:
            self.book.ledger.settle()
            self.check(terminal=True)
        self._paid, self._began = spent(self.book.facts).seconds, self.book.now
        self.book.begin()
        self._supervisor = self.book.supervise()

    def step(self, *, terminal: bool, work_s: float, asleep_s: float) -> None:
        """A step that is stopped for a while in its middle, and killed when its time is over."""
        left = self.cap(terminal=terminal) - self.used
        if abs(left) <= NEAR:
            return
        if left <= NEAR:
            with pytest.raises(Halt, match="spent"):
                self._supervisor.begin(terminal=terminal)
            self.check(terminal=terminal)
            return
        self._supervisor.begin(terminal=terminal)
        self.check(terminal=terminal)
        self._work(work_s / 2, terminal=terminal)
        self.book.now += asleep_s
        self._work(work_s / 2, terminal=terminal)

    def _work(self, seconds: float, *, terminal: bool) -> None:
        end = self.book.now + seconds
        while (left := self._supervisor.watch()) > NEAR and self.book.now < end:
            self.check(terminal=terminal)
            self.book.now = min(end, self.book.now + min(left, 20.0))
        self.check(terminal=terminal)

    def check(self, *, terminal: bool) -> None:
        """Nothing is reserved beyond what the work at hand may take; nothing used is left out."""
        on_record = spent(self.book.facts).seconds
        assert on_record <= max(self.cap(terminal=terminal), self.used) + NEAR
        assert on_record >= self.used - 1.0 - NEAR
        limited = math.isfinite(self.cap(terminal=terminal))
        assert math.isfinite(self.book.ledger.deadline) is limited


NEAR = 1e-6
STEPS = st.tuples(st.booleans(), st.floats(0, 1500), st.just(0.0) | st.floats(0, 3000))


@given(
    limits=LIMITS.filter(lambda limits: seconds_left(limits, Spent(), terminal=False) > 0),
    acts=st.lists(STEPS | st.sampled_from(["kill", "settle"]), max_size=9),
)
def test_no_order_of_steps_and_stops_takes_what_it_may_not(
    limits: Limits, acts: list[tuple[bool, float, float] | str]
) -> None:
    """Over terminal and other steps, long stops, kills and resumes each limit and reserve holds."""
    life = Life(limits)
    slept = 0.0
    for act in acts:
        before = life.used
        match act:
            case (terminal, work_s, asleep_s):
                life.step(terminal=terminal, work_s=work_s, asleep_s=asleep_s)
                slept = max(slept, asleep_s)
                may = max(before, life.cap(terminal=terminal))
                assert life.used <= may + asleep_s + NEAR
            case how:
                life.next_executor(settles=how == "settle")

    most = max(life.cap(terminal=True), 0.0) + slept + NEAR
    totals = [spent(life.book.facts[:n]).seconds for n in range(len(life.book.facts) + 1)]
    assert all(total <= most for total in totals)
