"""At the pilot's gate a person reads what the scale-up will yield and what a row will cost."""

from typing import Any

import pytest

from gates.forecast import forecast
from runbook.report.forecast import NO_PACE, Pace, table

ROWS: list[dict[str, Any]] = [
    {
        "instruction": f"text {place}",
        "count": 1 if place else 100,
        "known": False,
        "kept": place % 2 == 0,
        "tokens": 10,
        "list_tokens": 8.0,
    }
    for place in range(301)
]
TOLD = {"forecast": forecast(ROWS, 1000)}


def rows(pace: Pace = NO_PACE) -> dict[str, tuple[str, ...]]:
    found = table(TOLD, pace)
    assert found is not None
    return {row[0]: row[1:] for row in found.rows}


def numbers(cells: tuple[str, ...]) -> list[float]:
    return [float(cell.removesuffix(" s").replace(",", "")) for cell in cells]


def test_yield_and_cost_are_told_from_the_worst_to_the_best() -> None:
    """The share, the rows and the tokens; without a pace nothing in seconds."""
    found = rows()
    assert [*found] == [
        "distinct, of the raw ones",
        "distinct kept rows",
        "tokens for each distinct row",
    ]
    for name in ("distinct, of the raw ones", "distinct kept rows"):
        assert numbers(found[name]) == sorted(numbers(found[name]))
    cost = numbers(found["tokens for each distinct row"])
    assert cost == sorted(cost, reverse=True)
    assert cost[1] == round(TOLD["forecast"]["tokens_per_row"])


def test_seconds_and_dollars_follow_from_the_pilots_pace() -> None:
    """Half a second a token, at 7.20 an hour: a tenth of a cent a token."""
    found = rows(Pace(seconds=500.0, tokens=1000, usd_per_hour=7.2))
    tokens = TOLD["forecast"]["tokens_per_row"]
    assert numbers(found["time for each distinct row"])[1] == pytest.approx(tokens / 2, rel=0.01)
    assert numbers(found["USD for each distinct row"])[1] == pytest.approx(tokens / 1000, rel=0.01)
    whole = TOLD["forecast"]["kept_at_target"] * tokens / 1000
    assert numbers(found["USD for all of them"])[1] == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("pace", [Pace(0.0, 1000, 7.2), Pace(500.0, 0, 7.2)])
def test_what_was_not_measured_is_left_out(pace: Pace) -> None:
    """No seconds or no tokens: no cost in time, and none in dollars."""
    assert [*rows(pace)] == [*rows()]


def test_without_a_price_no_dollars_are_told() -> None:
    """The time alone."""
    found = rows(Pace(500.0, 1000))
    assert "time for all of them" in found
    assert not any(name.startswith("USD") for name in found)


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"forecast": None},
        {"forecast": {"distinct": 3}},
        {"forecast": {**TOLD["forecast"], "distinct_interval": [1]}},
        {"forecast": {**TOLD["forecast"], "tokens_per_row": None}},
        {"forecast": {n: v for n, v in TOLD["forecast"].items() if not n.endswith("interval")}},
    ],
)
def test_where_nothing_was_foretold_there_is_no_table(details: dict[str, Any]) -> None:
    """Nor where it stands in the journal of an earlier version, or is no forecast."""
    assert table(details) is None
