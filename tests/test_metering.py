"""Whether a session needs a meter, and what it is told to hold."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from runbook.budget import Limits
from runbook.clock import Clock
from runbook.ledger import Ledger
from runbook.meter_client import Meter, MeterConfig
from runbook.metering import Metering
from runbook.plan import Plan
from runbook.workspace import Workspace

ENDS = datetime(2026, 12, 1, 8, tzinfo=UTC)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[MeterConfig]:
    """What each meter was told that would have been started."""
    configs: list[MeterConfig] = []
    monkeypatch.setattr(Meter, "start", configs.append)
    return configs


def metering(place: Path, pod: dict[str, Any], limits: Limits) -> Metering:
    """An hour before the rental ends."""
    clock = Clock(wall=lambda: ENDS.timestamp() - 3600.0, monotonic=lambda: 0.0)
    ledger = Ledger(limits, clock, tuple, Mock())
    return Metering(Mock(spec=Plan, pod=pod), Workspace.at(place), ledger, clock)


@pytest.mark.parametrize(
    ("pod", "limits", "held"),
    [
        ({}, Limits(wall_clock_s=60.0), (60.0, None, None, 60.0)),
        ({"rental_ends": ENDS.isoformat()}, Limits(), (None, 3600.0, None, 60.0)),
        ({"stop": ["podctl"], "abandoned_after_s": 9}, Limits(), (None, None, ("podctl",), 9)),
    ],
)
def test_each_thing_to_hold_wants_a_meter(
    tmp_path: Path,
    started: list[MeterConfig],
    pod: dict[str, Any],
    limits: Limits,
    held: tuple[Any, ...],
) -> None:
    """A limit, the rental's end or a pod to stop is enough, each alone."""
    metering(tmp_path, pod, limits).start("r1")

    (told,) = started
    assert held == (told.deadline_s, told.rental_ends_s, told.stop_pod, told.abandoned_after_s)


@pytest.mark.parametrize("pod", [{}, {"state": ["podctl"], "abandoned_after_s": 9}])
def test_nothing_to_hold_wants_none(
    tmp_path: Path, started: list[MeterConfig], pod: dict[str, Any]
) -> None:
    """A command that only tells the pod's state gives a meter nothing to do."""
    made = metering(tmp_path, pod, Limits())
    made.start("r1")
    made.tick()

    assert started == []
    assert made.limit_reached() == ""
    assert made.end("done", stop_pod=True) is None
