"""Metrics against criteria: what passes, and all that does not."""

import math

import pytest

from gates.thresholds import judge
from runbook.contract import Criterion, Instrument, Metric, Verdict

RATE = Criterion("r", "rate", below=0.05, min_n=60)


def _rate(successes: int, n: int) -> Metric:
    return Metric("r", successes / n if n else None, n, successes)


def _verdict(criterion: Criterion, *metrics: Metric, final: bool = False) -> Verdict:
    return judge([criterion], metrics, final=final).verdict


def test_a_rate_passes_when_its_bound_clears() -> None:
    """0 of 150 is below 5 % with evidence enough to say so."""
    assert _verdict(RATE, _rate(0, 150)) is Verdict.PASS


def test_a_rate_on_the_right_side_without_evidence_is_underpowered() -> None:
    """2 of 70 is below 5 %, its upper bound is not."""
    assert _verdict(RATE, _rate(2, 70)) is Verdict.UNDERPOWERED


def test_at_the_largest_sample_the_declared_rule_decides() -> None:
    """With the rule 'rate' it passes and is marked thin; with 'bound' it fails."""
    judged = judge([RATE], [_rate(2, 70)], final=True)
    assert judged.verdict is Verdict.PASS
    assert judged.criteria[0].thin
    strict = Criterion("r", "rate", below=0.05, min_n=60, at_max_n="bound")
    assert _verdict(strict, _rate(2, 70), final=True) is Verdict.FAIL


def test_a_rate_on_the_wrong_side_fails() -> None:
    """A measured violation is a fail, whatever the interval says."""
    assert _verdict(RATE, _rate(10, 100)) is Verdict.FAIL


def test_too_small_a_sample_is_underpowered_even_at_the_end() -> None:
    """The minimum n is part of the criterion."""
    assert _verdict(RATE, _rate(0, 30), final=True) is Verdict.UNDERPOWERED


@pytest.mark.parametrize(
    "metric",
    [
        Metric("other", 0.0, 100, 0),
        Metric("r", None, 100, 0),
        Metric("r", math.nan, 100, 0),
        Metric("r", math.inf, 100, 0),
        Metric("r", 0.0, 0, 0),
        Metric("r", 0.0, 100, None),
        Metric("r", 0.0, 100, 4),
        Metric("r", -0.01, 100, -1),
        Metric("r", 0.0, 100, 0, instrument=Instrument.BROKEN),
        Metric("r", 0.0, 100, 0, instrument=Instrument.UNCALIBRATED),
    ],
)
def test_what_cannot_be_believed_is_invalid(metric: Metric) -> None:
    """Missing, empty, not finite, inconsistent or badly instrumented never passes."""
    assert _verdict(RATE, metric) is Verdict.INVALID


def test_a_metric_reported_twice_is_invalid() -> None:
    """Which of the two would count is not guessed."""
    assert _verdict(RATE, _rate(0, 150), _rate(0, 150)) is Verdict.INVALID


def test_a_tripped_sentinel_comes_before_everything() -> None:
    """Even an uncalibrated instrument's trip counts, and its silence does not."""
    sentinel = Criterion("s", "sentinel", below=-6.0)
    loud = Metric("s", -0.1, 1, instrument=Instrument.UNCALIBRATED)
    quiet = Metric("s", -20.0, 1, instrument=Instrument.UNCALIBRATED)
    judged = judge([sentinel, RATE], [loud], final=False)
    assert judged.verdict is Verdict.FAIL
    assert judged.sentinel_tripped
    assert _verdict(sentinel, quiet) is Verdict.INVALID


def test_a_gate_without_criteria_is_invalid() -> None:
    """Nothing passes by default."""
    assert judge([], [], final=True).verdict is Verdict.INVALID


def test_a_census_may_have_two_ends() -> None:
    """100 to 200 kept: both ends count."""
    size = Criterion("kept", "census", at_least=100, at_most=200)
    found = [_verdict(size, Metric("kept", float(v), v)) for v in (99, 100, 200, 201)]
    assert [v.name for v in found] == ["FAIL", "PASS", "PASS", "FAIL"]
