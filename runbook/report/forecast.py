"""What a pilot foretells of the scale-up, and what a distinct row of it will cost; plain text.

What is read here is ``gates.forecast`` as it stands in the journal. Seconds and dollars follow from
the tokens at the pilot's own pace, its loading of the model and its critics included.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runbook.contract import Json
from runbook.report import figures as f
from runbook.report.facts import Table

_HEADER = ("", "at the worst", "expected", "at the best")
_HOUR = 3600
LEGEND = (
    "At the worst and at the best: one-sided 95 % bounds. The expected value is itself a cautious "
    "one where some instructions are far more common than others."
)


@dataclass(frozen=True)
class Pace:
    """What the pilot took; zeros where it was not told."""

    seconds: float = 0.0
    tokens: int = 0
    usd_per_hour: float = 0.0

    @property
    def per_token(self) -> float:
        """Seconds; 0 where they are not known."""
        return self.seconds / self.tokens if self.tokens else 0.0


NO_PACE = Pace()


def table(details: Mapping[str, Json], pace: Pace = NO_PACE) -> Table | None:
    """Yield and cost at the target; None where nothing was foretold.

    Args:
        details: of the gate's judgement.
        pace: without one the cost is told in tokens alone.
    """
    told = f.mapping(details.get("forecast"))
    yielded = _three(told.get("distinct_interval"), told.get("distinct"))
    # Of two runs of one pilot the better yield is the lower cost.
    tokens = _three(told.get("tokens_per_row_interval"), told.get("tokens_per_row"))
    raw, share = f.real(told.get("raw_at_target")), f.real(told.get("kept_share"))
    if yielded is None or tokens is None or not raw or not share:
        return None
    per_row = (tokens[2], tokens[1], tokens[0])
    kept = tuple(distinct * share for distinct in yielded)
    title = (
        f"Forecast at {f.number(told.get('target'))} kept rows and {f.number(raw)} raw "
        f"instructions, from a pilot of {f.number(told.get('raw'))}"
    )
    rows = [
        ("distinct, of the raw ones", *(f.fixed(distinct / raw) for distinct in yielded)),
        ("distinct kept rows", *(f.number(round(count)) for count in kept)),
        ("tokens for each distinct row", *(f.number(round(count)) for count in per_row)),
        *_costs(per_row, kept, pace),
    ]
    return Table(title, _HEADER, tuple(rows))


def _three(ends: Json, middle: Json) -> tuple[float, float, float] | None:
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return None
    low, high, between = f.real(ends[0]), f.real(ends[1]), f.real(middle)
    return None if low is None or high is None or between is None else (low, between, high)


def _costs(
    tokens: tuple[float, ...], kept: tuple[float, ...], pace: Pace
) -> Iterator[tuple[str, ...]]:
    if pace.per_token <= 0:
        return
    seconds = [count * pace.per_token for count in tokens]
    whole = [each * count for each, count in zip(seconds, kept, strict=True)]
    yield ("time for each distinct row", *(f"{f.number(each)} s" for each in seconds))
    yield ("time for all of them", *map(f.duration, whole))
    if pace.usd_per_hour > 0:
        price = pace.usd_per_hour / _HOUR
        yield ("USD for each distinct row", *(f.number(each * price) for each in seconds))
        yield ("USD for all of them", *(f"{each * price:.2f}" for each in whole))
