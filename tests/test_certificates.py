"""Certificates: an instrument is believed while it is what was calibrated, and good enough."""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_session import Called, call
from test_kill_phases import write_runbook

from phases import (
    calibration,
    chat_signs,
    clean,
    contamination,
    detectors,
    filters,
    generation,
    leakage,
    qc,
)
from phases.certificates import READ_BY, agreement, certified, sign
from phases.code_hash import code_hash
from phases.detectors import DETECTORS
from phases.linear_probe import Weights
from runbook import events as ev
from runbook.artifacts import describe, sha256_file
from runbook.contract import Artifact, Instrument, Metric, PhaseRequest
from runbook.journal import facts, read_entries
from runbook.testing import LocalChannel
from runbook.text import NearDuplicates
from runbook.workspace import Workspace

SPECS = Path(__file__).parents[1] / "specs"
PROBE = SPECS / "probe"
OF_DATA = {name for name, by in READ_BY.items() if "scorer" not in by}
"""What a pilot may read; the scorer is certified by the baseline."""
METRICS = tuple(Metric(name, 0.5, n=2, successes=1) for name in READ_BY if name in OF_DATA)
SENTINEL = {"completions_right", "assistant_like", "fed_markup"}
"""What is read with instruments that the contamination step certifies."""
CRITICS = {"instruction_acceptance", "pair_acceptance"}


@pytest.fixture
def pilot(tmp_path: Path) -> PhaseRequest:
    """The request of a step after a calibration that has run."""
    few_shot = tmp_path / "few_shot.yaml"
    few_shot.write_bytes((SPECS / "few_shot.yaml").read_bytes())
    base = Artifact("base_model", "model", "f00d", 1)
    request = PhaseRequest(
        step="calibration",
        attempt=1,
        look=1,
        seed=1,
        params={
            "few_shot": str(few_shot),
            "probe_instructions": str(PROBE / "instructions.jsonl"),
            "probe_pairs": str(PROBE / "pairs.jsonl"),
            "instructions": ["linear_probe"],
            "pairs": ["likelihood"],
            "good_share": 0.8,
        },
        model={"name": "none", "prefix": "bos"},
        engine={"name": "fake", "batch_size": 64},
        workspace=tmp_path,
        work=tmp_path / "work",
        output=tmp_path / "out",
        inputs={"prepare_model": {"base_model": base}},
        provenance={},
        channel=LocalChannel(),
    )
    made = {artifact.name: artifact for artifact in calibration.run(request).artifacts}
    first = replace(request, step="contamination", params={}, output=tmp_path / "first")
    read = {artifact.name: artifact for artifact in contamination.run(first).artifacts}
    return replace(
        request,
        step="pilot",
        params={"few_shot": str(few_shot)},
        inputs={**request.inputs, "contamination": read, "calibration": made},
    )


def states(request: PhaseRequest) -> dict[str, Instrument]:
    return {metric.name: metric.instrument for metric in certified(request, METRICS)}


def notes(request: PhaseRequest) -> set[str]:
    return {metric.note for metric in certified(request, METRICS)}


def wrong(request: PhaseRequest) -> dict[str, Instrument]:
    return {n: state for n, state in states(request).items() if state is not Instrument.OK}


def edit(request: PhaseRequest, change: Callable[[dict[str, Any]], None]) -> PhaseRequest:
    """The request with the certificate's entries changed, and signed again."""
    path = request.workspace / "out" / "certificate.json"
    entries = json.loads(path.read_text())["instruments"]
    change(entries)
    path.write_text(json.dumps(sign(entries)))
    made = {
        **request.inputs["calibration"],
        "certificate": describe("certificate", path, request.workspace),
    }
    return replace(request, inputs={**request.inputs, "calibration": made})


# --- what a certificate says


def test_a_certificate_names_every_instrument_with_its_figures(pilot: PhaseRequest) -> None:
    """Detectors and the filters in use; what binds them; sensitivity, specificity, kappa, AUC."""
    entries = json.loads((pilot.workspace / "out" / "certificate.json").read_text())["instruments"]
    assert {*entries} == {*DETECTORS, "instructions", "pairs"}
    for entry in entries.values():
        assert re.fullmatch(r"[0-9a-f]{64}", entry["code_sha256"])
        assert re.fullmatch(r"[0-9a-f]{64}", entry["probes_sha256"])
        assert entry["within_bounds"] is True
        assert 0 < entry["kappa"] <= 1
        for side in ("sensitivity", "specificity"):
            low, high = entry[side]["interval"]
            rate = entry[side]["successes"] / entry[side]["n"]
            assert low < entry[side]["bound"] < rate <= high
    assert entries["pairs"]["model"]["snapshot_sha256"] == "f00d"
    assert entries["pairs"]["auc"] == 1.0
    assert str(pilot.workspace) not in json.dumps(entries)


# --- whether it still holds


def test_what_was_calibrated_is_believed(pilot: PhaseRequest) -> None:
    """Every metric that an instrument reads, and nothing else of it is touched."""
    assert certified(pilot, METRICS) == METRICS
    other = Metric("kept", 3.0)
    assert certified(pilot, [other]) == (other,)


def test_without_a_certificate_nothing_is_believed(pilot: PhaseRequest) -> None:
    """No calibration among the inputs, or an older one without a certificate."""
    none: tuple[dict[str, dict[str, Artifact]], ...] = ({}, {"calibration": {}})
    for inputs in none:
        request = replace(pilot, inputs=inputs)
        assert {*states(request).values()} == {Instrument.UNCALIBRATED}
        assert {note.partition("put a ")[2].partition(" before")[0] for note in notes(request)} == {
            "step 'calibration'",
            "step 'contamination'",
        }


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[1]", '{"instruments": {}}', "\udcff"),
        *('{"instruments": []}', '{"instruments": {"runaway": [1]}}', "[" * 100_000),
    ],
)
def test_a_certificate_that_cannot_be_read_is_none(pilot: PhaseRequest, text: str) -> None:
    """Empty, of another form, not signed, no text, nested without end."""
    path = pilot.workspace / "out" / "certificate.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert wrong(pilot) == dict.fromkeys(OF_DATA - SENTINEL, Instrument.UNCALIBRATED)


def test_a_certificate_that_was_changed_is_none(pilot: PhaseRequest) -> None:
    """Figures that were mended by hand."""
    path = pilot.workspace / "out" / "certificate.json"
    path.write_text(path.read_text().replace('"successes": 15', '"successes": 18'))
    assert wrong(pilot) == dict.fromkeys(OF_DATA - SENTINEL, Instrument.UNCALIBRATED)
    assert all("was changed" in note for note in notes(pilot) - {""})


def test_the_sentinels_certificate_is_another_steps(pilot: PhaseRequest) -> None:
    """What judges a base's words is certified before there is a calibration."""
    (pilot.workspace / "first" / "certificate.json").write_text("{}")
    assert wrong(pilot) == dict.fromkeys(SENTINEL, Instrument.UNCALIBRATED)


def test_an_instrument_that_is_not_named_is_not_believed(pilot: PhaseRequest) -> None:
    """A certificate of before the instrument was there."""
    request = edit(pilot, lambda entries: entries.pop("runaway"))
    assert wrong(request) == {"runaway_rate": Instrument.UNCALIBRATED}


def test_a_replaced_detector_is_stale(pilot: PhaseRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is of other code; the note says what changed and what to do."""
    monkeypatch.setattr(clean, "is_runaway", lambda _: False)
    assert wrong(pilot) == {"runaway_rate": Instrument.UNCALIBRATED}
    (note,) = {metric.note for metric in certified(pilot, METRICS)} - {""}
    assert note.startswith("runaway: the certificate is stale: its code changed since")
    assert "'runbook plan' shows what --accept-changes makes again" in note


@pytest.mark.parametrize(
    ("holder", "name", "value", "metric"),
    [
        (clean, "repeats_itself", lambda _: False, "runaway_rate"),
        (chat_signs, "is_assistant", lambda _: False, "assistant_like"),
        (chat_signs, "_MARKUP", re.compile("x"), "fed_markup"),
        (chat_signs, "_DENIALS", frozenset(), "completions_right"),
        (clean, "_RESIDUE", re.compile("###END###"), "delimiter_left"),
        (qc, "holds_piece", lambda _: False, "delimiter_left"),
        (qc, "left_over", lambda _: False, "delimiter_left"),
        (generation, "read_raw", lambda _: {"runaway": False}, "runaway_rate"),
        (clean, "_ENDED", re.compile("x"), "token_limit_rate"),
        (clean.Cleaned, "opens_a_turn", property(lambda _: False), "runaway_rate"),
        (clean, "is_runaway", functools.wraps(clean.is_runaway)(lambda _: False), "runaway_rate"),
        (leakage.HeldOut, "_quoted", lambda *_, **__: None, "overlap_quoted"),
        (leakage.HeldOut, "_quoted", eval("lambda *_, **__: None"), "overlap_quoted"),
        (NearDuplicates, "find", functools.partial(print), "overlap_near"),
    ],
)
def test_a_helper_or_a_pattern_that_was_replaced_counts(
    pilot: PhaseRequest,
    monkeypatch: pytest.MonkeyPatch,
    holder: Any,
    name: str,
    value: Any,
    metric: str,
) -> None:
    """However deep it lies below the detector."""
    monkeypatch.setattr(holder, name, value)
    assert wrong(pilot)[metric] is Instrument.UNCALIBRATED
    assert not CRITICS & {*wrong(pilot)}


def test_changed_probes_make_it_stale(
    pilot: PhaseRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it was measured on is not what is there."""
    folder = tmp_path / "detectors"
    folder.mkdir()
    for path in detectors.SHIPPED.glob("*.jsonl"):
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(detectors, "SHIPPED", folder)
    assert wrong(pilot) == {}
    with (folder / "runaway.jsonl").open("a") as file:
        file.write('{"id": "x", "raw": "x", "label": false}\n')
    assert wrong(pilot) == {"runaway_rate": Instrument.UNCALIBRATED}
    assert any("its probes changed" in note for note in notes(pilot))


def test_another_model_makes_the_filters_stale(pilot: PhaseRequest) -> None:
    """Another snapshot, another declaration, another engine; the detectors need no model."""
    snapshot = {"prepare_model": {"base_model": Artifact("base_model", "model", "beef", 1)}}
    for request in (
        replace(pilot, inputs={**pilot.inputs, **snapshot}),
        replace(pilot, model={**pilot.model, "quantization": "nf4"}),
        replace(pilot, engine={"name": "transformers"}),
    ):
        assert wrong(request) == dict.fromkeys(CRITICS, Instrument.UNCALIBRATED)
        assert any("the model changed" in note for note in notes(request))


def test_another_few_shot_file_makes_the_filters_stale(pilot: PhaseRequest) -> None:
    """What a judge is shown is part of it."""
    path = Path(str(pilot.params["few_shot"]))
    path.write_text(path.read_text("utf-8") + "# mine\n", "utf-8")
    assert wrong(pilot) == dict.fromkeys(CRITICS, Instrument.UNCALIBRATED)


def test_a_replaced_judge_is_stale(pilot: PhaseRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes everything for good, put in after the calibration."""
    sure = {"fits": 0.0, "gain": 9.0, "ends": 0.0}
    monkeypatch.setitem(filters.READERS["pairs"], "likelihood", lambda *asked: [sure] * len(asked))
    assert wrong(pilot) == {"pair_acceptance": Instrument.UNCALIBRATED}


def test_a_linear_probe_that_scores_otherwise_is_stale(
    pilot: PhaseRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its score is made of the states after the reading."""
    monkeypatch.setattr(Weights, "score", lambda *_: 9.0)
    assert wrong(pilot)["instruction_acceptance"] is Instrument.UNCALIBRATED


@pytest.mark.parametrize("field", ["zero", "margin", "scale", "weights"])
def test_a_filter_that_cuts_elsewhere_is_stale(pilot: PhaseRequest, field: str) -> None:
    """Its figures are of the cut that was measured."""
    path = pilot.workspace / "out" / "filters.json"
    document = json.loads(path.read_text())
    document["filters"]["instructions"][field] = None
    path.write_text(json.dumps(document))
    assert wrong(pilot) == {"instruction_acceptance": Instrument.UNCALIBRATED}
    assert any("its cut changed" in note for note in notes(pilot))


def test_filters_that_cannot_be_read_are_stale(pilot: PhaseRequest) -> None:
    """There is no cut to hold against the certificate."""
    (pilot.workspace / "out" / "filters.json").write_text("{")
    assert wrong(pilot) == dict.fromkeys(CRITICS, Instrument.UNCALIBRATED)


def test_a_certificate_by_other_bounds_is_stale(pilot: PhaseRequest) -> None:
    """Of a detector, lowered; and of a filter that there is none of by that name."""
    request = edit(pilot, lambda e: e["runaway"]["at_least"].update(sensitivity=0.0))
    assert wrong(request) == {"runaway_rate": Instrument.UNCALIBRATED}
    request = edit(pilot, lambda e: e["pairs"].update(kind="detector", filter="none"))
    assert wrong(request) == dict.fromkeys(
        ("runaway_rate", "pair_acceptance"), Instrument.UNCALIBRATED
    )


def test_an_instrument_below_its_bound_is_broken(pilot: PhaseRequest) -> None:
    """Though its code is the same; the note has the figures."""

    def lower(entries: dict[str, Any]) -> None:
        entries["runaway"] |= agreement([{"label": at % 2 == 0, "said": False} for at in range(40)])
        entries["runaway"]["within_bounds"] = False

    request = edit(pilot, lower)
    assert wrong(request) == {"runaway_rate": Instrument.BROKEN}
    (note,) = notes(request) - {""}
    assert note.startswith("runaway: below its bound: sensitivity 0 of 20")


def test_a_metric_that_is_marked_already_stays(pilot: PhaseRequest) -> None:
    """What the measurement itself found out is not overwritten."""
    found = Metric("token_limit_rate", 0.1, instrument=Instrument.BROKEN, note="the engine lies")
    assert certified(pilot, [found]) == (found,)
    assert certified(replace(pilot, inputs={}), [found]) == (found,)


# --- the code's hash


def test_comments_and_docstrings_are_no_code(tmp_path: Path) -> None:
    """Nor is layout; a changed number is."""
    plain = "def f(x):\n    return x + 1\n"
    told = 'def f(x):\n    """Adds one."""\n\n    # by hand\n    return (x +\n        1)\n'
    other = "def f(x):\n    return x + 2\n"
    hashes = []
    for name, text in (("plain", plain), ("told", told), ("other", other)):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        space: dict[str, Any] = {"__name__": "mine"}
        exec(compile(text, str(path), "exec"), space)
        hashes.append(code_hash(space["f"]))
    assert hashes[0] == hashes[1] != hashes[2]


def test_code_without_a_source_is_told_apart() -> None:
    """By its bytecode."""
    hashes = []
    for text in ("def f(x): return x + 1", "def f(x): return x + 2", "def f(x): return x + 1"):
        space: dict[str, Any] = {"__name__": "mine"}
        exec(text, space)
        hashes.append(code_hash(space["f"]))
    assert hashes[0] == hashes[2] != hashes[1]


# --- a detector that lies, in a session


LIES = """
from phases import clean
clean.is_runaway = lambda cleaned: False
"""
LIES_LATER = """
import phases.pilot
from phases import clean
real = phases.pilot.run
def run(request):
    clean.is_runaway = lambda cleaned: False
    return real(request)
phases.pilot.run = run
"""


@pytest.fixture
def play(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Called]:
    """Runs the small session with something planted in every process of it."""

    def run(planted: str) -> Called:
        hooks = tmp_path / "hooks"
        hooks.mkdir()
        (hooks / "sitecustomize.py").write_text(planted)
        monkeypatch.setenv("PYTHONPATH", str(hooks))
        book = write_runbook(tmp_path)
        return call(capfd, "run", book, "--workspace", tmp_path / "ws")

    return run


def judged(root: Path) -> list[tuple[str, int, str, tuple[str, ...]]]:
    known = facts(read_entries(Workspace.at(root)))
    found = [f for f in known if isinstance(f, ev.GateJudged)]
    return [(f.step, f.attempt, f.verdict, f.reasons) for f in found]


def test_a_lying_detector_is_stopped_at_the_calibration(
    tmp_path: Path, play: Callable[[str], Called]
) -> None:
    """It calls nothing a runaway: the gate is invalid, and no data is made."""
    assert play(LIES).code == 3
    *_, (step, attempt, verdict, reasons) = judged(tmp_path / "ws")
    assert (step, attempt, verdict) == ("calibration", 1, "invalid")
    assert len(reasons) == 1
    assert reasons[0].startswith("runaway_sensitivity: 0, its lower 95 % bound 0 does not satisfy")


def test_a_detector_that_was_replaced_later_is_stale_at_the_pilot(
    tmp_path: Path, play: Callable[[str], Called]
) -> None:
    """The gate is invalid once; the data is not made again, though a retry was declared."""
    assert play(LIES_LATER).code == 3
    found = judged(tmp_path / "ws")
    assert [j[:3] for j in found if j[0] == "calibration"] == [("calibration", 1, "pass")]
    ((step, attempt, verdict, reasons),) = [j for j in found if j[0] == "pilot"]
    assert (step, attempt, verdict) == ("pilot", 1, "invalid")
    told = [reason for reason in reasons if reason.startswith("runaway_rate")]
    assert len(told) == 1
    assert "uncalibrated: runaway: the certificate is stale: its code changed" in told[0]


LIKES_ALL = """
from phases import chat_signs
chat_signs.is_assistant = lambda text: False
"""


def test_a_lying_sentinel_is_stopped_at_the_bootstrap(
    tmp_path: Path, play: Callable[[str], Called]
) -> None:
    """It finds no assistant, whatever it is shown: its passing reading is not believed."""
    assert play(LIKES_ALL).code == 3
    ((step, attempt, verdict, reasons),) = judged(tmp_path / "ws")
    assert (step, attempt, verdict) == ("contamination", 1, "invalid")
    assert len(reasons) == 1
    assert reasons[0].startswith("assistant_like: ")
    assert "assistant: below its bound: sensitivity 0 of 28" in reasons[0]


def test_own_rows_of_a_filter_count(pilot: PhaseRequest, tmp_path: Path) -> None:
    """The certificate has their hash, and their readings among its n."""
    path = tmp_path / "mine.jsonl"
    own = {"id": "m1", "instruction": "Name a city.", "response": "7", "good": False}
    path.write_text(json.dumps({**own, "half": "test", "negative": "other"}) + "\n")
    shipped = {
        "probe_instructions": str(PROBE / "instructions.jsonl"),
        "probe_pairs": str(PROBE / "pairs.jsonl"),
    }
    params = {**pilot.params, **shipped, "instructions": ["linear_probe"], "pairs": ["likelihood"]}
    params |= {"good_share": 0.8, "own_pairs": str(path)}
    again = replace(
        pilot,
        step="calibration",
        params=params,
        output=tmp_path / "again",
        work=tmp_path / "w",
        channel=LocalChannel(),
    )
    calibration.run(again)
    before, after = (
        json.loads((tmp_path / folder / "certificate.json").read_text())["instruments"]["pairs"]
        for folder in ("out", "again")
    )
    assert (before["added_probes_sha256"], after["added_probes_sha256"]) == ("", sha256_file(path))
    assert after["n"] == before["n"] + 1
