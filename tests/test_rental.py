"""When the rental ends: as the runbook says it, and held against the clock."""

from datetime import UTC, datetime
from typing import Any

import pytest

from runbook.bootstrap import State
from runbook.errors import ConfigError
from runbook.rental import check_rental, rental_end

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp()
NAMED = {"rental_ends": "${RENTAL_END}"}


def test_it_is_read_with_its_offset() -> None:
    """The text itself or a variable's value, and none where the runbook says nothing."""
    assert rental_end({"rental_ends": "2026-12-01T14:00:00+02:00"}, {}) == NOON
    assert rental_end(NAMED, {"RENTAL_END": "2026-12-01T12:00:00Z"}) == NOON
    assert rental_end({"rental_ends": None}, {}) is None


@pytest.mark.parametrize(
    ("environ", "what"),
    [
        ({}, "RENTAL_END is not set"),
        ({"RENTAL_END": "canary"}, "the value of ${RENTAL_END} is not"),
    ],
)
def test_a_variable_that_is_no_time_is_refused(environ: dict[str, str], what: str) -> None:
    """Its name is told, and not its value."""
    with pytest.raises(ConfigError) as told:
        rental_end(NAMED, environ)

    assert what in str(told.value)
    assert "canary" not in str(told.value)


@pytest.mark.parametrize(
    ("pod", "environ", "state", "found"),
    [
        ({}, {}, State.SKIPPED, "does not say"),
        ({"rental_ends": "2026-12-01T15:30:00Z"}, {}, State.OK, "in 3.5 h"),
        ({"rental_ends": "2026-12-01T12:00:00Z"}, {}, State.FAILED, "it ended at 2026-12-01 12:00"),
        (NAMED, {"RENTAL_END": "soon"}, State.FAILED, "is not a time with an offset"),
        (NAMED, {}, State.FAILED, "RENTAL_END is not set"),
    ],
)
def test_the_row_says_whether_it_goes_on(
    pod: dict[str, Any], environ: dict[str, str], state: State, found: str
) -> None:
    """One that has passed, is malformed or stands in no variable fails, with what mends it."""
    row = check_rental(pod, environ, wall=lambda: NOON)

    assert row.state is state
    assert found in row.found
    assert bool(row.fix) is (state is State.FAILED)
