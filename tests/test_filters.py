"""Filters and their calibration: cuts, choice, what the gate reads, and what is refused."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kill_phases import DERIVED

from gates import confounds, controls, instruments, scorer, significance
from gates.judge import judge_gate
from gates.stats import auc, auc_bound
from phases import calibration, filters, likelihood, prompts
from phases.calibration import MIN_KEPT, find_margin, find_zero
from phases.detectors import DETECTORS, load_detector_probes, read
from phases.fake_engine import LABELS, FakeEngine
from phases.filters import Filter
from phases.linear_probe import cross_fitted, fit
from phases.prompts import load_few_shot
from runbook.artifacts import read_jsonl
from runbook.contract import (
    Artifact,
    Criterion,
    Gate,
    Instrument,
    Metric,
    PhaseRequest,
    Verdict,
)
from runbook.errors import ConfigError, PausedError
from runbook.testing import LocalChannel

SPECS = Path(__file__).parents[1] / "specs"
PROBE = SPECS / "probe"
FEW_SHOT = SPECS / "few_shot.yaml"
BAR = Gate(
    (
        Criterion("instruction_filter_auc", "instrument", at_least=0.8, min_n=80),
        Criterion("pair_filter_auc", "instrument", above=0.6, min_n=80),
    )
)
Make = Callable[..., PhaseRequest]


@pytest.fixture
def make_request(tmp_path: Path) -> Make:
    def make(**params: Any) -> PhaseRequest:
        return PhaseRequest(
            step="calibration",
            attempt=1,
            look=1,
            seed=1,
            params={
                "few_shot": str(FEW_SHOT),
                "probe_instructions": str(PROBE / "instructions.jsonl"),
                "probe_pairs": str(PROBE / "pairs.jsonl"),
                "probe_generated": str(PROBE / "generated.jsonl"),
                "instructions": ["critic", "linear_probe"],
                "pairs": ["critic", "likelihood"],
                "good_share": 0.8,
                **params,
            },
            model={"name": "fake"},
            engine={"name": "fake", "batch_size": 32},
            workspace=tmp_path,
            work=tmp_path / "work",
            output=tmp_path / "out",
            inputs={"prepare_model": {"base_model": Artifact("base_model", "model", "", 1)}},
            provenance={},
            channel=LocalChannel(),
        )

    return make


# --- the cut


def test_zero_lies_where_good_and_bad_part_best() -> None:
    """Midway between the two scores on either side, with Youden's J there."""
    labelled = [(1.0, False), (2.0, False), (3.0, True), (2.5, False), (4.0, True), (2.2, True)]
    zero, separation = find_zero(labelled)
    assert zero == pytest.approx(2.75)
    assert separation == pytest.approx(2 / 3)


def test_of_equal_cuts_the_stricter_is_taken() -> None:
    """What is in doubt is bad."""
    labelled = [(1.0, False), (2.0, True), (3.0, False), (4.0, True)]
    assert find_zero(labelled) == (3.5, 0.5)


def test_a_filter_that_reads_one_value_separates_nothing() -> None:
    """All scores alike: no cut, and J is 0."""
    assert find_zero([(1.0, True), (1.0, False)]) == (1.0, 0.0)


def test_the_margin_is_the_smallest_that_keeps_enough_good_ones() -> None:
    """Twenty kept at half good, ten above 2 all good: the margin is where four fifths are good."""
    low = [(1 + at / 100, at % 2 == 0) for at in range(20)]
    high = [(2 + at / 100, True) for at in range(10)]
    margin = find_margin([*low, *high, (-1.0, True)], 0.8)
    assert margin is not None
    kept = [good for score, good in low + high if score >= margin]
    assert sum(kept) / len(kept) >= 0.8
    smaller = [good for score, good in low + high if score >= margin - 0.011]
    assert sum(smaller) / len(smaller) < 0.8


def test_too_few_kept_rows_set_no_margin() -> None:
    """Nine good rows above everything prove no share."""
    rows = [(5.0 + at, True) for at in range(MIN_KEPT - 1)] + [(1.0, False)] * 20
    assert find_margin(rows, 0.8) is None
    assert find_margin([*rows, (4.0, True)], 0.8) == 4.0


def test_a_critique_is_good_above_zero_and_confident_from_the_margin_on() -> None:
    """On zero it is bad; the parts it rests on stand beside it."""
    one = Filter("pairs", "critic", {"margin": (0.0, 1.0)}, zero=0.5, margin=1.0)
    found = [one.critique({"logp_a": -1.0, "logp_b": -2.0, "margin": m}) for m in (0.5, 1.0, 1.5)]
    assert [c["score"] for c in found] == [0.0, 0.5, 1.0]
    assert [(c["is_good"], c["confident"]) for c in found] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    assert [filters.keeps(c) for c in found] == [False, False, True]
    assert found[2]["by"] == "critic"
    assert found[2]["predicted_label"] == "A"
    assert found[2]["logp_a"] == -1.0


def test_several_parts_are_standardised_before_they_are_averaged() -> None:
    """A part of a larger scale does not outvote the others."""
    scale = {"fits": (-4.0, 2.0), "gain": (1.0, 0.5), "ends": (-1.0, 1.0)}
    one = Filter("pairs", "likelihood", scale, zero=0.0, margin=0.0)
    assert one.raw({"fits": -2.0, "gain": 1.5, "ends": 0.0}) == pytest.approx(1.0)


# --- what the filters read


def test_likelihood_reads_response_gain_and_ending() -> None:
    """Means a token, the difference that the instruction makes, and the first token of the end."""

    class Scored(FakeEngine):
        def text_logps(self, prefix: str, texts: Any) -> list[list[list[float]]]:
            shown = prefix.startswith(prompts.INSTRUCTION)
            full = [[-1.0, -2.0], [-0.25, -9.0]] if shown else [[-4.0, -5.0]]
            assert all(len(text) == len(full) + 1 for text in texts)
            return [full for _ in texts]

    (parts,) = likelihood.likelihood(Scored(), load_few_shot(FEW_SHOT), [("Name a fruit.", "Pear")])
    assert parts == {"fits": -1.5, "gain": 3.0, "ends": -0.25}


def test_a_linear_probe_finds_the_direction_that_tells_good_from_bad() -> None:
    """Fitted on noise of many dimensions and one that matters, it scores new rows by that one."""
    draw = random.Random(5)

    def rows(count: int) -> tuple[list[list[float]], list[bool]]:
        good = [at % 2 == 0 for at in range(count)]
        states = [[draw.gauss(0, 1) for _ in range(40)] for _ in good]
        for state, label in zip(states, good, strict=True):
            state[7] += 3 if label else -3
        return states, good

    weights = fit(*rows(120))
    states, good = rows(200)
    scores = [weights.score(state) for state in states]
    right = [score > 0 for score in scores]
    assert sum(a is b for a, b in zip(right, good, strict=True)) >= 190
    assert max(range(40), key=lambda at: abs(weights.slope[at])) == 7


def test_a_linear_probe_does_not_learn_labels_by_heart_unseen() -> None:
    """On pure noise the fit knows its own rows; cross-fitted scores are no better than chance."""
    draw = random.Random(7)
    states = [[draw.gauss(0, 1) for _ in range(60)] for _ in range(100)]
    good = [draw.random() < 0.5 for _ in states]
    weights = fit(states, good)

    def area(scores: list[float]) -> float:
        return auc(
            [s for s, g in zip(scores, good, strict=True) if g],
            [s for s, g in zip(scores, good, strict=True) if not g],
        )

    assert area([weights.score(state) for state in states]) > 0.9
    assert 0.3 < area(cross_fitted(states, good)) < 0.7


def test_rows_that_are_always_fitted_get_no_score() -> None:
    """The few-shot file's own rows help and are not judged."""
    states = [[float(at), 1.0] for at in range(30)]
    good = [at > 14 for at in range(30)]
    assert len(cross_fitted(states, good, always=10)) == 20


# --- the step


def test_the_calibration_measures_every_filter_and_uses_the_best(make_request: Make) -> None:
    """The fake is told the labels, so all parts separate, and the gate passes."""
    request = make_request()
    result = calibration.run(request)
    rows = read_jsonl(request.output / "readings.jsonl")
    assert {(r["kind"], r["filter"]) for r in rows} == {
        ("instructions", "critic"),
        ("instructions", "linear_probe"),
        ("pairs", "critic"),
        ("pairs", "likelihood"),
    }
    judged = judge_gate(BAR, result.metrics, request.workspace, final=True)
    assert judged.verdict is Verdict.PASS
    assert [e["in_use"] for e in judged.details["filters"]] == [True, False, True, False]
    for entry in judged.details["filters"]:
        assert entry["all"]["auc"] == 1.0
        assert entry["all"]["bound"] < 1.0
        assert entry["generated"]["good_before"]["n"] == 150


def test_only_the_tuning_half_sets_the_cut(make_request: Make, tmp_path: Path) -> None:
    """With the labels of the other half turned round, the cuts stay as they were."""
    calibration.run(make_request())
    before = json.loads((tmp_path / "out" / "filters.json").read_text())
    lines = [json.loads(x) for x in (PROBE / "instructions.jsonl").read_text("utf-8").splitlines()]
    turned = [{**row, "good": row["good"] ^ (row["half"] == "test")} for row in lines]
    path = tmp_path / "turned.jsonl"
    path.write_text("\n".join(map(json.dumps, turned)))
    request = replace(make_request(probe_instructions=str(path)), work=tmp_path / "other")
    result = calibration.run(request)
    assert json.loads((tmp_path / "out" / "filters.json").read_text()) == before
    judged = judge_gate(BAR, result.metrics, request.workspace, final=True)
    assert judged.verdict is Verdict.INVALID
    assert judged.criteria[0].value == 0.0


def test_an_interrupted_calibration_reads_no_batch_twice(
    make_request: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed is read back, and the result is the same."""
    whole = calibration.run(make_request())
    clean = (make_request().output / "readings.jsonl").read_bytes()
    paused = LocalChannel(pause_after=5)
    request = replace(make_request(), work=make_request().work / "again", channel=paused)
    with pytest.raises(PausedError):
        calibration.run(request)
    resumed = LocalChannel(tuple(paused.commits))
    asked: list[int] = []
    real = FakeEngine.label_logps

    def label_logps(self: FakeEngine, prefix: str, suffixes: Any, labels: Any) -> Any:
        asked.append(len(suffixes))
        return real(self, prefix, suffixes, labels)

    monkeypatch.setattr(FakeEngine, "label_logps", label_logps)
    assert calibration.run(replace(request, channel=resumed)).metrics == whole.metrics
    assert (request.output / "readings.jsonl").read_bytes() == clean
    made = [batch for batch in resumed.commits if "/critic/" in batch.key]
    assert len(asked) == 2 * len(made)
    assert not {batch.key for batch in made} & {batch.key for batch in paused.commits}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("", "the row"),
        ("not json", "the row"),
        ('{"id": "x", "text": "Go.", "good": "yes", "half": "tune"}', "good"),
        ('{"id": "x", "text": "", "good": true, "half": "tune"}', "text"),
        ('{"id": "x", "text": "Go.", "good": true, "half": "both"}', "half"),
    ],
)
def test_a_bad_probe_row_is_named(make_request: Make, tmp_path: Path, line: str, what: str) -> None:
    """File, line and field, before anything is read off the model."""
    path = tmp_path / "probe.jsonl"
    path.write_text((PROBE / "instructions.jsonl").read_text("utf-8") + line + "\n")
    count = len(path.read_text("utf-8").splitlines())
    with pytest.raises(ConfigError, match=what) as refused:
        calibration.run(make_request(probe_instructions=str(path)))
    assert refused.value.where == f"{path}:{count}"


@pytest.mark.parametrize("keep", [0, 1, 30])
def test_too_small_a_probe_is_refused(make_request: Make, tmp_path: Path, keep: int) -> None:
    """Empty, one row, or too few of a label in a half."""
    path = tmp_path / "probe.jsonl"
    lines = (PROBE / "instructions.jsonl").read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:keep]))
    with pytest.raises(ConfigError, match="fewer than 10"):
        calibration.run(make_request(probe_instructions=str(path)))


def test_what_is_missing_is_counted_by_label_and_half(make_request: Make, tmp_path: Path) -> None:
    """Without the bad rows of the half that judges, the refusal says which rows to label."""
    path = tmp_path / "probe.jsonl"
    rows = read_jsonl(PROBE / "pairs.jsonl")
    kept = [row for row in rows if row["good"] or row["half"] == "tune"]
    path.write_text("\n".join(map(json.dumps, kept)))
    with pytest.raises(ConfigError) as refused:
        calibration.run(make_request(probe_pairs=str(path)))
    assert refused.value.what == "0 bad rows of half test; fewer than 10 show nothing"


@pytest.mark.parametrize("name", ["instructions", "pairs", "generated"])
def test_an_id_that_stands_twice_is_named(make_request: Make, tmp_path: Path, name: str) -> None:
    """In any of the three files, before anything is read off the model."""
    path = tmp_path / "probe.jsonl"
    rows = read_jsonl(PROBE / f"{name}.jsonl")
    path.write_text("\n".join(map(json.dumps, [*rows, rows[2]])))
    with pytest.raises(ConfigError) as refused:
        calibration.run(make_request(**{f"probe_{name}": str(path)}))
    assert refused.value.what == f"the id {rows[2]['id']!r} stands twice"
    assert refused.value.where == str(path)


def test_a_single_generated_row_is_reported(make_request: Make, tmp_path: Path) -> None:
    """It judges nothing, so no number is required, and the gate passes without its AUC."""
    path = tmp_path / "generated.jsonl"
    row = {"id": "g", "instruction": "Name a fruit.", "response": "Pear"}
    path.write_text(json.dumps({**row, "instruction_good": True, "good": False}))
    request = make_request(probe_generated=str(path))
    judged = judge_gate(BAR, calibration.run(request).metrics, request.workspace, final=True)
    assert judged.verdict is Verdict.PASS
    for entry in judged.details["filters"]:
        assert entry["generated"]["all"] == {"n": 1, "auc": None, "bound": None}
        good = entry["generated"]["good_before"]["successes"]
        assert good == (1 if entry["kind"] == "instructions" else 0)


def test_filters_hold_for_their_few_shot_file_alone(make_request: Make, tmp_path: Path) -> None:
    """Another file, no calibration among the inputs, or no margin: refused with the way out."""
    request = make_request()
    with pytest.raises(ConfigError, match="no calibration"):
        filters.load_filters(request, FEW_SHOT)
    made = Artifact("filters", "out/filters.json", "", 1)
    request = replace(request, inputs={"calibration": {"filters": made}})
    calibration.run(make_request())
    instructions, pairs = filters.load_filters(request, FEW_SHOT)
    assert (instructions.kind, pairs.kind) == ("instructions", "pairs")
    other = tmp_path / "few.yaml"
    other.write_text(FEW_SHOT.read_text("utf-8") + "# mine\n")
    with pytest.raises(ConfigError, match="another few-shot file"):
        filters.load_filters(request, other)
    document = json.loads((tmp_path / "out" / "filters.json").read_text())
    document["filters"]["pairs"]["margin"] = None
    (tmp_path / "out" / "filters.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="no cut of the filter of pairs"):
        filters.load_filters(request, FEW_SHOT)


def test_without_labels_the_fake_does_not_calibrate(
    make_request: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that guesses is invalid, never a fail of the data."""
    from phases import fake_engine  # noqa: PLC0415 - its cache is emptied here

    fake_engine._labels.cache_clear()
    monkeypatch.delenv(LABELS)
    try:
        request = make_request()
        judged = judge_gate(BAR, calibration.run(request).metrics, request.workspace, final=True)
    finally:
        fake_engine._labels.cache_clear()
    assert judged.verdict is Verdict.INVALID
    assert {c.verdict for c in judged.criteria} == {Verdict.INVALID}


# --- what the gate makes of it


def readings(good: list[float], bad: list[float], **fields: Any) -> list[dict[str, Any]]:
    head = {"filter": "linear_probe", "in_use": True, "kept": True, **fields}
    return [
        {**head, "kind": kind, "id": f"{kind}{half}{label}{at}", "half": half}
        | {"group": group(kind, label=label), "good": label, "score": score}
        for kind in ("instructions", "pairs")
        for half in ("tune", "test")
        for label, scores in ((True, good), (False, bad))
        for at, score in enumerate(scores)
    ]


def group(kind: str, *, label: bool) -> str:
    return "good" if kind == "pairs" and label else "easy"


def judge(tmp_path: Path, rows: list[dict[str, Any]], gate: Gate = BAR) -> Any:
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metric = Metric(instruments.READINGS, float(len(rows)), n=len(rows), evidence="r.jsonl")
    return judge_gate(gate, [metric], tmp_path, final=True)


def test_the_lower_bound_decides_not_the_area(tmp_path: Path) -> None:
    """An area of 0.87 over 84 rows has a bound below 0.8; over 800 rows it clears."""
    draw = random.Random(3)
    few = [[draw.gauss(mean, 1) for _ in range(42)] for mean in (1.5, 0)]
    many = [[draw.gauss(mean, 1) for _ in range(400)] for mean in (1.5, 0)]
    small, large = judge(tmp_path, readings(*few)), judge(tmp_path, readings(*many))
    for judged, verdict in ((small, Verdict.INVALID), (large, Verdict.PASS)):
        (instruction, _) = judged.criteria
        assert 0.82 < instruction.value < 0.9
        assert instruction.verdict is verdict
        assert (instruction.bound >= 0.8) is (verdict is Verdict.PASS)


@pytest.mark.parametrize(
    "fields",
    [{"kept": False}, {"in_use": False}, {"score": None}, {"score": "1"}, {"good": None}],
)
def test_readings_that_show_nothing_are_invalid(tmp_path: Path, fields: dict[str, Any]) -> None:
    """No cut, no filter in use, no score, no label: never a pass, never a fail."""
    rows = [{**row, **fields} for row in readings([2.0] * 60, [1.0] * 60)]
    assert judge(tmp_path, rows).verdict is Verdict.INVALID


def test_a_probe_that_stands_twice_is_invalid(tmp_path: Path) -> None:
    """Copies would narrow the interval for nothing."""
    rows = readings([2.0] * 60, [1.0] * 60)
    assert judge(tmp_path, rows).verdict is Verdict.PASS
    assert judge(tmp_path, [*rows, rows[-1]]).verdict is Verdict.INVALID


def test_too_few_probes_are_invalid_not_underpowered(tmp_path: Path) -> None:
    """A probe set does not grow by running longer."""
    judged = judge(tmp_path, readings([2.0] * 12, [1.0] * 12))
    assert {c.verdict for c in judged.criteria} == {Verdict.INVALID}
    assert "n is 24" in judged.reasons[0]


def test_what_the_gate_derives_is_what_the_steps_promise(tmp_path: Path) -> None:
    """The names in METRICS that no step measures itself."""
    rows = readings([2.0] * 12, [1.0] * 12)
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.jsonl").write_text('{"id": "a", "kind": "k", "base": false, "tuned": true}\n')
    said = [row for one in DETECTORS.values() for row in read(one, load_detector_probes(one))]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    found = [
        Metric(instruments.READINGS, 1.0, n=len(rows), evidence="r.jsonl"),
        Metric(instruments.DETECTORS, 1.0, n=len(said), evidence="d.jsonl"),
    ]
    known, _ = instruments.derive(found, tmp_path)
    assert {m.name for m in known} - {m.name for m in found} == DERIVED["calibration"]
    paired = Metric(significance.PAIRED, 1.0, n=1, evidence="p.jsonl")
    bare = (controls.FLIPS, confounds.VARIANTS, scorer.SCORED)
    named = (paired, *(Metric(name, 1.0) for name in bare))
    known = named
    for derive in (significance.derive, controls.derive, confounds.derive, scorer.derive):
        known, _ = derive(known, tmp_path)
    assert {m.name for m in known} - {m.name for m in named} == DERIVED["evaluate"]


def test_a_missing_file_of_readings_is_invalid(tmp_path: Path) -> None:
    """Nothing is measured where nothing can be read."""
    metric = Metric(instruments.READINGS, 3.0, n=3, evidence="gone.jsonl")
    assert judge_gate(BAR, [metric], tmp_path, final=True).verdict is Verdict.INVALID


@pytest.mark.parametrize(
    "metric",
    [
        Metric("a", 0.9, n=100),
        Metric("a", 0.9, n=100, bound=float("nan")),
        Metric("a", 0.9, n=100, bound=0.95),
        Metric("a", 1.2, n=100, bound=0.9),
        Metric("a", 0.9, bound=0.85),
        Metric("a", 0.9, n=100, bound=0.85, instrument=Instrument.UNCALIBRATED),
        Metric("a", 0.9, n=100, bound=0.79),
    ],
)
def test_an_instrument_never_fails_it_is_invalid(tmp_path: Path, metric: Metric) -> None:
    """No bound, an impossible one, no n, not calibrated, or below: the data is not what is bad."""
    gate = Gate((Criterion("a", "instrument", at_least=0.8),))
    assert judge_gate(gate, [metric], tmp_path, final=True).verdict is Verdict.INVALID
    sound = replace(metric, value=0.9, n=100, bound=0.85, instrument=Instrument.OK)
    assert judge_gate(gate, [sound], tmp_path, final=True).verdict is Verdict.PASS


# --- the statistics


SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_auc_is_the_share_of_pairs_won(good: list[float], bad: list[float]) -> None:
    """By counting every pair, ties by half."""
    won = sum((g > b) + (g == b) / 2 for g in good for b in bad)
    assert auc(good, bad) == pytest.approx(won / (len(good) * len(bad)))


@pytest.mark.parametrize(
    ("good", "bad"), [([], [1.0]), ([1.0], []), ([float("nan")], [1.0]), ([1.0], [float("inf")])]
)
def test_auc_refuses_what_it_cannot_rank(good: list[float], bad: list[float]) -> None:
    """Nothing to compare, or a score that is no number."""
    with pytest.raises(ValueError, match="auc"):
        auc(good, bad)


def test_the_bound_of_an_auc_solves_its_equation() -> None:
    """At the bound the measured area lies 1.645 of Hanley and McNeil's standard errors above."""
    for area, m, n in ((0.85, 60, 60), (0.6, 20, 50), (1.0, 30, 30), (0.99, 500, 40)):
        low = auc_bound(area, m, n)
        spread = ((m + n) / 2 - 1) * ((1 - low) / (2 - low) + low / (1 + low))
        error = (low * (1 - low) * (1 + spread) / (m * n)) ** 0.5
        assert (area - low) / error == pytest.approx(1.6449, abs=1e-3)
        assert low < area


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Of 400 samples from a known area, its lower bound lies below that area in about 95 %."""
    draw = random.Random(11)
    true = 0.8556  # of two normals 1.5 apart: Phi(1.5 / sqrt 2)
    held = 0
    for _ in range(400):
        good = [draw.gauss(1.5, 1) for _ in range(40)]
        bad = [draw.gauss(0.0, 1) for _ in range(40)]
        held += auc_bound(auc(good, bad), 40, 40) <= true
    assert 0.91 <= held / 400 <= 0.99


@pytest.mark.parametrize(("area", "m", "n"), [(1.1, 3, 3), (-0.1, 3, 3), (0.5, 0, 3), (0.5, 3, 0)])
def test_the_bound_refuses_impossible_counts(area: float, m: int, n: int) -> None:
    """An area is a share, and there are items of both labels."""
    with pytest.raises(ValueError, match="auc_bound"):
        auc_bound(area, m, n)
