"""What a step's progress messages say: how far the stage is, how fast, how long still. Pure.

Rule: messages may be lost, so rates rest on how far the count moved between two of them, not on
how many came. The time left is of the stage alone: nobody knows how many stages a step will need.
What a step sends is foreign text and may hold anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from runbook.contract import Json
from runbook.params import is_number
from runbook.problems import printable
from runbook.report.figures import duration

QUIET_S = 60.0
"""After so long without news the display says so."""
_SAMPLES = 20
_SENSELESS = 1e12


@dataclass(frozen=True)
class Sample:
    """One message of a stage."""

    at: float
    done: int
    tokens: int | None
    """Of the batch just done."""


@dataclass(frozen=True)
class Reading:
    """Where the session stands, as far as it was told."""

    step: str = ""
    attempt: int = 1
    stage: str = ""
    samples: tuple[Sample, ...] = ()
    total: int | None = None
    kept: int | None = None
    target: int | None = None
    loss: float | None = None

    @property
    def pace(self) -> float | None:
        """Seconds a batch; the median, since batches of an earlier run pass in no time."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        paces = [(b.at - a.at) / (b.done - a.done) for a, b in pairs if b.done > a.done]
        return median(paces) or None if paces else None

    @property
    def tokens_per_s(self) -> float | None:
        """A batch's mean tokens over its pace; None where no tokens are told."""
        told = [s.tokens for s in self.samples if s.tokens]
        return fmean(told) / self.pace if told and self.pace else None

    def stage_eta(self, now: float) -> float | None:
        """Seconds until the stage is done, at the pace so far; None where nobody can know.

        It counts down between two messages, but never below what is left after this batch.
        """
        if self.pace is None or self.total is None:
            return None
        last = self.samples[-1]
        left = self.total - last.done
        if left <= 0:
            return None
        return max(left * self.pace - (now - last.at), (left - 1) * self.pace)


def observe(reading: Reading, fields: Mapping[str, Json], now: float) -> Reading:
    """The reading after one message; a new step, attempt or stage begins anew."""
    step = printable(str(fields.get("step", "")))
    stage = printable(str(fields.get("stage", "")))
    attempt = _count(fields, "attempt") or 1
    done = _count(fields, "done")
    before = reading.samples
    same = (step, attempt, stage) == (reading.step, reading.attempt, reading.stage)
    if not same or (before and done is not None and done < before[-1].done):
        before = ()
    if done is not None:
        before = (*before, Sample(now, done, _count(fields, "tokens")))[-_SAMPLES:]
    return Reading(
        step,
        attempt,
        stage,
        before,
        total=_count(fields, "total"),
        kept=_count(fields, "kept"),
        target=_count(fields, "target"),
        loss=_number(fields, "loss"),
    )


def _count(fields: Mapping[str, Json], name: str) -> int | None:
    value = _number(fields, name)
    return None if value is None else int(value)


def _number(fields: Mapping[str, Json], name: str) -> float | None:
    """The number of this name; one that nobody could mean is none, NaN among them."""
    value: Json = fields.get(name)
    return value if is_number(value) and abs(value) < _SENSELESS else None


def describe(reading: Reading, now: float) -> str:
    """The stage in one line: batch, speed, what was kept, time left."""
    parts = []
    last = reading.samples[-1] if reading.samples else None
    if last and reading.total:
        parts.append(f"batch {last.done:,.0f}/{reading.total:,.0f}")
    if reading.tokens_per_s is not None:
        parts.append(f"{reading.tokens_per_s:,.0f} tokens/s")
    if reading.kept is not None:
        of = "" if reading.target is None else f" of {reading.target:,.0f}"
        parts.append(f"kept {reading.kept:,.0f}{of}")
    if reading.loss is not None:
        parts.append(f"loss {reading.loss:.3g}")
    eta = reading.stage_eta(now)
    if eta is not None:
        parts.append(f"stage ETA {duration(round(eta))}")
    if last and now - last.at >= QUIET_S:
        parts.append(f"no news for {duration(now - last.at)}")
    told = ", ".join(parts)
    return f"{reading.stage}: {told}" if reading.stage and told else reading.stage or told


def headline(reading: Reading, steps: Sequence[str]) -> str:
    """The overall line: which step it is, and how many are behind it."""
    return f"{named(reading)}: {behind(reading, steps)} of {len(steps)} steps done"


def named(reading: Reading) -> str:
    """The step, and which attempt it is on if not the first."""
    again = f", attempt {reading.attempt}" if reading.attempt > 1 else ""
    return f"{reading.step}{again}"


def behind(reading: Reading, steps: Sequence[str]) -> int:
    """How many steps are done: they run in order, so those before this one."""
    return steps.index(reading.step) if reading.step in steps else 0
