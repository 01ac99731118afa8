"""Metrics against criteria: what passes, and all that does not."""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest

from gates import thresholds
from gates.thresholds import judge
from runbook.codec import decode
from runbook.contract import Criterion, Instrument, Metric, Verdict
from runbook.schema_models import CriterionModel

HUGE = 10**400
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


CONTROL = Criterion("c", "control", at_most=0)
SHARE = Criterion("c", "control", below=0.05)


def test_a_control_that_does_not_hold_is_invalid() -> None:
    """It says that the measurement is wrong, so it comes before a fail of what was measured."""
    judged = judge([CONTROL, RATE], [Metric("c", 1.0, note="why"), _rate(50, 100)], final=True)
    assert judged.verdict is Verdict.INVALID
    assert judged.reasons[0] == "c: 1 does not satisfy <= 0; why"
    assert _verdict(CONTROL, Metric("c", 0.0)) is Verdict.PASS


@pytest.mark.parametrize(
    ("successes", "n", "verdict"),
    [
        (3, 320, Verdict.PASS),
        (12, 320, Verdict.UNDERPOWERED),
        (0, 30, Verdict.UNDERPOWERED),
        (16, 320, Verdict.INVALID),
    ],
)
def test_a_control_that_is_a_rate_is_held_to_its_bound(
    successes: int, n: int, verdict: Verdict
) -> None:
    """On the right side without evidence nothing was found wrong, and nothing is shown either."""
    for final in (False, True):
        found = _verdict(SHARE, Metric("c", successes / n, n, successes), final=final)
        assert found is verdict


@pytest.mark.parametrize(
    "metric",
    [
        Metric("c", None),
        Metric("c", math.nan),
        Metric("c", 0.0, n=0),
        Metric("c", 0.0, instrument=Instrument.BROKEN),
        Metric("c", 0.0, n=4, successes=1),
        Metric("other", 0.0),
    ],
)
def test_a_control_that_was_not_read_is_invalid(metric: Metric) -> None:
    """Missing, empty, not finite, inconsistent."""
    assert _verdict(CONTROL, metric) is Verdict.INVALID


def test_a_control_on_too_few_is_invalid() -> None:
    """A broken measurement does not grow whole by extending the sample."""
    control = Criterion("c", "control", at_most=0, min_n=30)
    assert _verdict(control, Metric("c", 0.0, n=29)) is Verdict.INVALID
    assert _verdict(control, Metric("c", 0.0, n=30)) is Verdict.PASS


def test_too_little_power_is_underpowered() -> None:
    """And a power that cannot be, or of a sample that is not told, is invalid."""
    power = Criterion("p", "power", at_least=0.8)
    assert _verdict(power, Metric("p", 0.79, n=160, note="why")) is Verdict.UNDERPOWERED
    assert _verdict(power, Metric("p", 0.8, n=160)) is Verdict.PASS
    assert _verdict(power, Metric("p", 0.8)) is Verdict.INVALID
    assert _verdict(power, Metric("p", 0.8, n=0)) is Verdict.INVALID
    assert _verdict(power, Metric("p", 1.2, n=160)) is Verdict.INVALID
    assert _verdict(power, Metric("p", None, n=160)) is Verdict.INVALID


@pytest.mark.parametrize(
    ("criterion", "best", "too_few", "enough"),
    [
        (Criterion("r", "rate", below=0.05), 0.0, 51, 52),
        (Criterion("r", "rate", at_least=0.5), 1.0, 2, 3),
        (Criterion("r", "rate", at_least=0.4, at_most=0.6), 0.5, 60, 70),
        (Criterion("r", "rate", below=0.05, at_max_n="bound"), 0.0, 51, 52),
    ],
)
def test_a_sample_that_could_show_nothing_never_passes_thin(
    criterion: Criterion, best: float, too_few: int, enough: int
) -> None:
    """Also without a min_n: where not even the best count clears by its bound."""
    for n, verdict in ((1, Verdict.UNDERPOWERED), (too_few, Verdict.UNDERPOWERED)):
        hits = round(best * n)
        if criterion.at_most is None or n > 1:
            assert _verdict(criterion, _rate(hits, n), final=True) is verdict
    assert _verdict(criterion, _rate(round(best * enough), enough), final=True) is Verdict.PASS


def test_a_rate_that_could_have_cleared_still_passes_thin() -> None:
    """1 of 60 does not clear 5 %, 0 of 60 would have."""
    judged = judge([Criterion("r", "rate", below=0.05)], [_rate(1, 60)], final=True)
    assert judged.verdict is Verdict.PASS
    assert judged.criteria[0].thin


def test_any_metric_reported_twice_makes_the_gate_invalid() -> None:
    """It may be the one from which others were derived."""
    judged = judge([RATE], [_rate(0, 150), Metric("s", 1.0), Metric("s", 1.0)], final=True)
    assert judged.verdict is Verdict.INVALID
    assert judged.reasons == ("s: the metric was reported twice",)
    sentinel = Criterion("t", "sentinel", at_most=0)
    twice = [Metric("t", 1.0), Metric("s", 1.0), Metric("s", 1.0)]
    assert judge([sentinel], twice, final=True).sentinel_tripped


@pytest.mark.parametrize(
    "kind",
    ["census", "rate", "statistic", "p_value", "instrument", "control", "power", "sentinel"],
)
def test_counts_that_cannot_be_are_invalid_whatever_the_kind(kind: str) -> None:
    """A negative n, a numerator outside it, a value that is not their quotient."""
    criterion = Criterion("r", kind, at_least=0.5)
    sound = Metric("r", 1.0, n=80, successes=80, bound=0.9)
    needs_its_bound = kind in {"census", "statistic"}
    if needs_its_bound:
        assert _verdict(criterion, replace(sound, successes=None)) is Verdict.PASS
    found = _verdict(criterion, sound, final=True)
    assert found is (Verdict.INVALID if needs_its_bound else Verdict.PASS)
    broken: tuple[dict[str, Any], ...] = (
        {"n": -80},
        {"n": 80, "successes": 81},
        {"n": 80, "successes": -1},
        {"n": 80, "successes": 8},
        {"n": -80, "successes": -80},
        {"successes": 80},
    )
    for fields in broken:
        metric = Metric("r", 1.0, bound=0.9, **fields)
        assert _verdict(criterion, metric, final=True) is Verdict.INVALID, fields


def test_the_bound_of_an_instrument_follows_from_its_counts() -> None:
    """A bound that was only claimed does not count beside them."""
    criterion = Criterion("i", "instrument", at_least=0.95)
    claimed = Metric("i", 1.0, n=3, successes=3, bound=0.99)
    judged = judge([criterion], [claimed], final=True)
    assert judged.verdict is Verdict.INVALID
    assert judged.criteria[0].bound == pytest.approx(0.526, abs=0.001)


def test_what_doubts_a_pass_leaves_a_fail() -> None:
    """Invalid where all else passes; a fail stays one; what was not read is invalid in any case."""
    doubt = Criterion("d", "control", at_most=0)
    for reading, rate, verdict in (
        (1.0, _rate(0, 150), Verdict.INVALID),
        (1.0, _rate(50, 100), Verdict.FAIL),
        (1.0, _rate(0, 30), Verdict.INVALID),
        (None, _rate(50, 100), Verdict.INVALID),
        (0.0, _rate(0, 150), Verdict.PASS),
    ):
        metrics = (Metric("d", reading), rate)
        judged = judge([doubt, RATE], metrics, final=True, doubts_a_pass=("d",))
        assert judged.verdict is verdict


@pytest.mark.parametrize(
    "criterion",
    [
        Criterion("r", "statistic"),
        Criterion("r", "sentinel"),
        Criterion("r", "statistic", below=math.inf),
        Criterion("r", "statistic", above=-math.inf),
        Criterion("r", "statistic", below=math.nan),
        Criterion("r", "sentinel", below=math.nan),
        Criterion("r", "statistic", at_most=HUGE),
        Criterion("r", "statistic", above=0, below=math.inf),
        Criterion("r", "statistic", at_most=True),
        Criterion("r", "ratio", below=1),
        Criterion("r", "", below=1),
        Criterion("r", "statistic", below=1, min_n=0),
        Criterion("r", "rate", below=1, at_max_n="never"),
    ],
)
def test_a_criterion_that_cannot_be_judged_is_invalid(criterion: Criterion) -> None:
    """No threshold, one that is no finite number, or a kind that is not known."""
    metric = Metric("r", 0.0, n=100, successes=0 if criterion.kind == "rate" else None)
    judged = judge([criterion], [metric], final=True)
    assert judged.verdict is Verdict.INVALID
    assert not judged.sentinel_tripped
    assert judge([criterion], [], final=True).verdict is Verdict.INVALID


def test_the_kinds_are_those_that_a_spec_may_declare() -> None:
    """Neither list can grow without the other."""
    assert get_args(CriterionModel.model_fields["kind"].annotation) == thresholds.KINDS


def test_a_census_that_is_not_whole_is_invalid() -> None:
    """Half a row was not counted."""
    assert _verdict(Criterion("c", "census", at_least=100), Metric("c", 120.5)) is Verdict.INVALID
    assert _verdict(Criterion("c", "census", at_least=100), Metric("c", 120.0)) is Verdict.PASS


@pytest.mark.parametrize("kind", thresholds.KINDS)
@pytest.mark.parametrize(
    "fields",
    [
        {"value": HUGE},
        {"value": -HUGE},
        {"value": "1"},
        {"n": HUGE},
        {"n": HUGE, "successes": HUGE},
        {"n": 80.0},
        {"n": True},
        {"successes": 80.0},
    ],
)
def test_numbers_beyond_all_counting_are_invalid(kind: str, fields: dict[str, Any]) -> None:
    """A number that no float holds, or none at all, raises nothing."""
    metric = Metric(**{"name": "r", "value": 1.0, "n": 80, **fields})
    assert _verdict(Criterion("r", kind, at_least=0.5), metric) is Verdict.INVALID


def test_a_reading_beyond_all_floats_comes_from_a_step_as_not_measured() -> None:
    """The executor reads it, and the gate finds it invalid."""
    for value in (HUGE, -HUGE):
        read = decode(Metric, {"name": "r", "value": value, "evidence": "rows.jsonl"})
        assert read.value == (math.inf if value > 0 else -math.inf)
        assert _verdict(Criterion("r", "statistic", at_least=0.5), read) is Verdict.INVALID


@pytest.mark.parametrize("kind", ["statistic", "census"])
def test_a_rate_is_not_judged_by_its_point_alone(kind: str) -> None:
    """139 of 160 lies below 0.87, and its bound does not: only a rate asks for that."""
    metric = Metric("r", 139 / 160, 160, 139)
    judged = judge([Criterion("r", kind, below=0.87)], [metric], final=True)
    assert judged.verdict is Verdict.INVALID
    strict = Criterion("r", "rate", below=0.87, at_max_n="bound")
    assert _verdict(strict, metric, final=True) is Verdict.FAIL


def test_a_count_beyond_64_bits_is_refused_where_it_is_read() -> None:
    """With its place, before anything reckons with it."""
    for field in ("n", "successes"):
        with pytest.raises(ValueError, match=f"Metric.{field}: a whole number beyond 64 bits"):
            decode(Metric, {"name": "r", "value": 1.0, field: HUGE})
