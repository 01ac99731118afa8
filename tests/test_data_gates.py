"""Faults in the data, planted in sessions on the fake engine: the first gate that sees one stops.

Steps and gates are the real ones; a fault is planted by a step's function beside the runbook, as
wrong phase code of a user would be.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_kill_phases import Play, write_runbook

from phases.held_out import load_instructions
from runbook import events as ev

Book = dict[str, Any]
FAULTY = """
from phases import prompts, {step}

LEAK = {leak!r}


def as_trained(found, **more):
    prompt = prompts.evaluation_prompt(found["instruction"])
    said = prompts.completion(found["response"])
    return {{**found, "prompt": prompt, "completion": said, **more}}


def run(request):
    real, made = {step}.{name}, []

    def planted(*args, **options):
        found = real(*args, **options)
        made.append(found)
        {fault}
        return found

    {step}.{name} = planted
    return {step}.run(request)
"""
FIFTH_RECORD = "found = as_trained({change}) if len(made) == 5 else found"


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Play]:
    """Plays a session in which one step runs with a fault, and gives what came of it."""

    def run(step: str, name: str, fault: str, **gate: Any) -> Play:
        book_path = write_runbook(tmp_path)
        leak = load_instructions(tmp_path / "held_out.jsonl")[0]
        source = FAULTY.format(step=step, name=name, fault=fault, leak=leak)
        (tmp_path / "faulty.py").write_text(source)
        book = json.loads(book_path.read_text())
        for entry in book["phases"][0]["steps"]:
            if entry["name"] == step:
                entry["function"] = "faulty:run"
            if entry["name"] == "pilot":
                entry |= {"retries": 0, "adjustments": [], "adjustable": {}}
        book_path.write_text(json.dumps(book))
        spec_path = tmp_path / "pilot.yaml"
        spec = json.loads(spec_path.read_text())
        spec["params"] |= {"max_new_tokens": 44, "raw_rows": 24}
        spec["gate"]["extend"] = {"raw_rows": 36}
        spec["gate"]["criteria"] += [gate] if gate else []
        spec_path.write_text(json.dumps(spec))
        play = Play(book_path, tmp_path / "ws")
        assert play.run("calls") == 3
        return play

    return run


def stopped(play: Play) -> tuple[str, str, tuple[str, ...]]:
    """The step, the verdict and the reasons that ended the session."""
    step, _, _, verdict, reasons = play.verdicts()[-1]
    return step, verdict, reasons


@pytest.mark.parametrize(
    ("step", "change", "metrics"),
    [
        ("pilot", "made[3]", {"largest_repeat"}),
        (
            "pilot",
            "{**found, 'instruction': LEAK}",
            {"overlap_exact", "overlap_normalised", "overlap_near", "overlap_quoted"},
        ),
        (
            "pilot",
            "{**found, 'instruction': ' '.join(sorted(LEAK.split(), reverse=True))}",
            {"overlap_near"},
        ),
        ("pilot", "{**found, 'response': 'Say: ' + LEAK}", {"overlap_quoted"}),
        ("scale", "{**found, 'response': 'As I was asked, ' + LEAK}", {"overlap_quoted"}),
        (
            "scale",
            "found, prompt=prompts.evaluation_prompt('Say: ' + LEAK)",
            {"overlap_quoted", "incomplete_provenance"},
        ),
        (
            "pilot",
            "{**found, 'pair_critique': {**found['pair_critique'], 'is_good': False}}",
            {"incomplete_provenance"},
        ),
        (
            "scale",
            "{**found, 'metadata': {**found['metadata'], 'sentinel': {'template_left': False}}}",
            {"bad_sentinels"},
        ),
        (
            "scale",
            "{**found, 'metadata': {**found['metadata'], 'sentinel': None}}",
            {"bad_sentinels", "incomplete_provenance"},
        ),
    ],
    ids=[
        "a row twice",
        "a leaked item",
        "a leaked item reworded",
        "a leaked item in a response",
        "a leaked item in a shard's response",
        "a leaked item in a prompt alone",
        "a row that its critic refused",
        "a false sentinel",
        "a missing sentinel",
    ],
)
def test_one_faulty_record_stops_the_session(
    plant: Callable[..., Play], step: str, change: str, metrics: set[str]
) -> None:
    """Of all records one is wrong, and the gate after its step names what, and that it is one."""
    play = plant(step, "to_record", FIFTH_RECORD.format(change=change))
    at, verdict, reasons = stopped(play)
    failed = {reason.partition(":")[0] for reason in reasons}
    assert (at, verdict) == (step, "fail")
    assert metrics <= failed, reasons
    assert failed <= metrics | {"overlap_near"}, reasons


def test_a_merge_that_lets_repeats_through_is_seen(plant: Callable[..., Play]) -> None:
    """With a screen that drops nothing, the merged set is counted by other means, and fails."""
    play = plant(
        "scale",
        "read_jsonl",
        "found = found + found[:1] if len(made) == 1 else found; "
        "scale.make_screen = lambda *_: type('Open', (), {'fate': lambda *_: ''})()",
    )
    at, verdict, reasons = stopped(play)
    assert (at, verdict) == ("scale", "fail")
    assert any(reason.startswith("largest_repeat: 2 ") for reason in reasons), reasons
    assert any(reason.startswith("distinct_near: 13 ") for reason in reasons), reasons


def test_a_shard_cut_short_after_its_manifest_is_refused(plant: Callable[..., Play]) -> None:
    """Half a shard is no smaller dataset: the merge reads none of it, and names the file."""
    cut = "(found / 'dataset.jsonl').write_text((found / 'dataset.jsonl').read_text()[:900])"
    play = plant("scale", "_shard", cut)
    (failed,) = [fact for fact in play.facts() if isinstance(fact, ev.StepFailed)]
    assert "dataset.jsonl of a complete shard is missing or was changed" in failed.error
    assert not any(step == "scale" for step, *_ in play.verdicts())


def test_a_tiny_pilot_forecasts_nothing(plant: Callable[..., Play]) -> None:
    """Thirty raw instructions, extended once, are too few for the declared 300: no pass."""
    asked = {"metric": "forecast_distinct", "kind": "statistic", "at_least": 0.5, "min_n": 300}
    at, verdict, reasons = stopped(plant("pilot", "to_record", "pass", **asked))
    assert (at, verdict) == ("pilot", "underpowered")
    assert any("the criterion asks for 300" in reason for reason in reasons), reasons
