"""What the meter does next: one action in each situation."""

import itertools
from collections.abc import Iterator

import pytest

from runbook.meter_decision import (
    ABANDONED,
    DEADLINE,
    RENTAL,
    Action,
    Clear,
    End,
    Leave,
    Situation,
    Stop,
    Wait,
    Warn,
    decide,
)


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (Situation(), Wait(None)),
        (Situation(deadline=100.5), Wait(100.5)),
        (Situation(deadline=120.0, rental_end=110.0), Wait(110.0)),
        (Situation(deadline=100.0), Warn(DEADLINE)),
        (Situation(rental_end=99.0), Warn(RENTAL)),
        (Situation(deadline=99.0, rental_end=99.0), Warn(RENTAL)),
        (Situation(warned_at=99.0, warned_why=DEADLINE, grace_s=2), Wait(101.0)),
        (Situation(warned_at=98.0, warned_why=DEADLINE, grace_s=2), Clear(DEADLINE)),
        (Situation(warned_at=98.0, warned_why=DEADLINE, grace_s=2, cleared=True), Stop(DEADLINE)),
        (Situation(warned_at=99.0, warned_why=DEADLINE, gone_since=100.0), Clear(DEADLINE)),
        (Situation(deadline=100.0, gone_since=99.0), Clear(DEADLINE)),
        (Situation(gone_since=99.0), Wait(None)),
        (Situation(gone_since=99.0, abandoned_after_s=5), Wait(104.0)),
        (Situation(gone_since=95.0, abandoned_after_s=5), Clear(ABANDONED)),
        (Situation(gone_since=95.0, abandoned_after_s=5, cleared=True), Stop(ABANDONED)),
        (Situation(ended=End("done", stop_pod=True)), Stop("done")),
        (Situation(ended=End("done", stop_pod=False)), Leave("done")),
        (Situation(ended=End("done", stop_pod=False), deadline=99.0), Stop(DEADLINE)),
        (Situation(ended=End("done", stop_pod=True), dismissed=True), Stop("done")),
        (Situation(deadline=99.0, dismissed=True), Leave("SIGTERM")),
        (Situation(warned_at=99.0, warned_why=RENTAL, deadline=500.0), Wait(159.0)),
    ],
)
def test_what_is_next(situation: Situation, expected: Action) -> None:
    """Each situation at second 100 has one action."""
    assert expected == decide(situation, 100.0)


def situations() -> Iterator[Situation]:
    """Each combination of what is past, present and to come, seen at second 100."""
    for deadline, rental, gone, abandoned, warned, cleared, ended, dismissed in itertools.product(
        (None, 90.0, 100.0, 110.0),
        (None, 90.0, 110.0),
        (None, 50.0, 95.0),
        (None, 20.0),
        (None, 30.0, 95.0),
        (False, True),
        (None, End("e", stop_pod=False), End("e", stop_pod=True)),
        (False, True),
    ):
        yield Situation(
            deadline=deadline,
            rental_end=rental,
            grace_s=10.0,
            gone_since=gone,
            abandoned_after_s=abandoned,
            warned_at=warned,
            warned_why="" if warned is None else DEADLINE,
            cleared=cleared,
            ended=ended,
            dismissed=dismissed,
        )


def test_a_pod_is_stopped_for_a_reason_alone() -> None:
    """Only a limit, an end that asks for it or an executor long dead stops the pod."""
    for s in situations():
        limit = 100.0 in (s.deadline, s.rental_end) or 90.0 in (s.deadline, s.rental_end)
        abandoned = s.gone_since == 50.0 and s.abandoned_after_s is not None
        asked = s.ended is not None and s.ended.stop_pod
        if isinstance(decide(s, 100.0), Stop | Clear | Warn):
            assert limit or abandoned or asked or s.warned_at is not None, s


def test_a_living_executor_is_killed_after_its_grace_alone() -> None:
    """No executor is killed that lives and was not asked to end before."""
    for s in situations():
        if isinstance(decide(s, 100.0), Clear) and s.gone_since is None:
            assert s.warned_at == 30.0, s


def test_a_limit_that_was_reached_is_never_waited_out() -> None:
    """Past a limit the meter waits for nothing but the executor's grace."""
    for s in situations():
        if 90.0 in (s.deadline, s.rental_end) and isinstance(decide(s, 100.0), Wait):
            assert s.warned_at == 95.0, s
            assert s.gone_since is None, s


def test_the_meter_leaves_only_when_it_is_sent() -> None:
    """It leaves the pod running after an end in order or a SIGTERM, and never by itself."""
    for s in situations():
        if isinstance(decide(s, 100.0), Leave):
            assert s.ended is not None or s.dismissed, s


def test_a_wait_ends_at_its_date_and_not_before() -> None:
    """Nothing changes before the date of a wait, and something does at it."""
    waits = [(s, w) for s in situations() if isinstance(w := decide(s, 100.0), Wait)]
    for s, wait in waits:
        if wait.until is not None:
            assert decide(s, wait.until - 1e-6) == wait, s
            assert decide(s, wait.until) != wait, s
        else:
            assert decide(s, 1e12) == wait, s
    assert {wait.until for _, wait in waits} == {None, 105.0, 110.0, 115.0}
