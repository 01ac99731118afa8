"""What a set of preference pairs says of itself, read when it is made and again before DPO."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_data_checks import DATA_PARAMS, HELD_OUT, PARAMS, SPECS, make_request

from gates.thresholds import judge
from phases import dpo, preferences, prompts
from phases.data_checks import seal_held_out
from phases.held_out import load_items
from phases.pair_checks import CLEAN_PAIRS, is_equal, measure_pairs
from phases.records import Row
from runbook.artifacts import describe, read_jsonl, write_jsonl
from runbook.contract import Artifact, Criterion, Json, PhaseRequest, Verdict
from runbook.errors import ConfigError
from runbook.schema import load_plan

READINGS = {
    "end_of_turn_logp": -24.8,
    "completions_right": 0.875,
    "assistant_like": 0.0,
    "bare_endings": 0.0,
    "prefix_mismatch": 0.0,
    "template_left": 0.0,
    "fed_markup": 0.0,
}


def pair(instruction: str, chosen: str = "A kettle.", rejected: str = "A brick.") -> Row:
    """A complete and honest pair."""
    return {
        "instruction": instruction,
        "prompt": prompts.evaluation_prompt(instruction),
        "chosen": prompts.completion(chosen),
        "rejected": prompts.completion(rejected),
        "chosen_tokens": 3,
        "rejected_tokens": 3,
        "chosen_critique": {"is_good": True, "confident": True, "score": 1.5},
        "rejected_critique": {"is_good": False, "confident": True, "score": -2.0},
        "metadata": {
            "git_sha": "0" * 40,
            "fingerprint": "f",
            "model": "gemma-3-270m",
            "adapter_sha256": "1" * 64,
            "filter": {"name": "likelihood", "margin": 0.0},
            "loader_version": "1",
            "quantization": "none",
            "template_disabled": True,
            "prefix_matches": True,
            "generation": {"temperature": 0.9},
            "seed": 7,
            "sentinel": READINGS,
        },
    }


HONEST = [pair(f"What would a {who} keep there?") for who in ("baker", "miner", "tailor")]


def faults(folder: Path, *pairs: Row) -> dict[str, float | None]:
    """The counts that are not 0."""
    metrics = measure_pairs(make_request(folder), PARAMS, [*HONEST, *pairs])
    assert all(m.n == len(HONEST) + len(pairs) for m in metrics)
    return {m.name: m.value for m in metrics if m.name in CLEAN_PAIRS and m.value != 0}


def told(folder: Path) -> list[Row]:
    return read_jsonl(folder / "out" / "data_faults.jsonl")


def test_honest_pairs_have_no_fault(tmp_path: Path) -> None:
    """Every count is 0 over all pairs, and the file of faults is empty."""
    assert faults(tmp_path) == {}
    assert told(tmp_path) == []


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize(
    ("said", "readings"),
    [
        ("List three fruits.", {"exact", "normalised", "near", "quoted"}),
        ("Fruits: list three!", {"near"}),
        ("First, list three fruits; then rest.", {"quoted"}),
    ],
)
def test_a_leaked_answer_is_found_on_either_side(
    tmp_path: Path, side: str, said: str, readings: set[str]
) -> None:
    """The rejected answer is trained on too; the row says which side it was."""
    leaked = pair("What did the teacher say?", **{side: said})
    assert faults(tmp_path, leaked) == {f"overlap_{reading}": 1 for reading in readings}
    assert {(row["row"], row["part"], row["held_out_instruction"]) for row in told(tmp_path)} == {
        (3, side, "List three fruits.")
    }


def test_a_leaked_reference_is_found_by_its_words_in_a_row(tmp_path: Path) -> None:
    """Thirteen words of a reference within a rejected answer."""
    long = max(load_items(HELD_OUT), key=lambda item: len(item.reference.split())).reference
    assert len(long.split()) >= 13
    leaked = pair("Say something.", rejected=f"Well: {long}")
    assert faults(tmp_path, leaked)["overlap_13gram"] == 1


def test_a_leaked_instruction_is_told_once(tmp_path: Path) -> None:
    """Both sides have it in common; one pair is one row at fault."""
    assert faults(tmp_path, pair("List three fruits.")) == {
        f"overlap_{reading}": 1 for reading in ("exact", "normalised", "near", "quoted")
    }
    found = [(row["check"], row["part"]) for row in told(tmp_path)]
    assert len(found) == len(set(found)) == 4


def test_a_prompt_that_differs_from_the_instruction_is_read_too(tmp_path: Path) -> None:
    """Training takes the prompt, so a held-out item in it alone is a leak, and a contradiction."""
    asked = {**pair("Say something."), "prompt": prompts.evaluation_prompt("List three fruits.")}
    found = faults(tmp_path, asked)
    assert found.keys() >= {"overlap_exact", "incomplete_provenance"}


def test_answers_that_only_resemble_the_held_out_set_are_innocent(tmp_path: Path) -> None:
    """Its subject, a reference of few words, a run of numbers, or an order of its own."""
    item = next(i for i in load_items(HELD_OUT) if len(i.reference.split()) <= 3)
    innocent = [
        pair("What grows in an orchard?", "Fruits.", "Three of them."),
        pair("Answer as you like.", item.reference, "I would rather not."),
        pair("Count to fifteen.", " ".join(map(str, range(1, 16))), "1, 2, 3"),
        pair("Which list is longer, that of the fruits or that of the three nuts?"),
    ]
    assert faults(tmp_path, *innocent) == {}


@pytest.mark.parametrize(
    ("sentinel", "why"),
    [
        ({**READINGS, "ok": False}, "ok is false"),
        ({**READINGS, "template_left": 1.0}, "template_left is 1, which is out of"),
        ({**READINGS, "end_of_turn_logp": float("nan")}, "is NaN, which is no finite"),
        ({}, "sentinel is {}"),
    ],
)
def test_one_pair_with_a_bad_sentinel_is_found(tmp_path: Path, sentinel: Json, why: str) -> None:
    """False, out of its bound, no number or missing: the pair and the reason stand on disk."""
    bad = pair("Where is the lantern now?")
    bad["metadata"]["sentinel"] = sentinel
    assert faults(tmp_path, bad)["bad_sentinels"] == 1
    mine = [row for row in told(tmp_path) if row["check"] == "bad_sentinels"]
    assert {row["row"] for row in mine} == {3}
    assert any(why in row["why"] for row in mine), mine


@pytest.mark.parametrize(
    "field",
    [
        *("chosen", "rejected", "prompt", "chosen_critique", "rejected_critique"),
        *("git_sha", "adapter_sha256", "filter", "seed", "generation", "loader_version"),
    ],
)
def test_a_pair_without_a_field_is_incomplete(tmp_path: Path, field: str) -> None:
    """Of the pair itself and of its metadata, the adapter that answered included."""
    broken = pair("Where is the lantern now?")
    owner = broken if field in broken else broken["metadata"]
    del owner[field]
    assert faults(tmp_path, broken) == {"incomplete_provenance": 1}
    assert [row["why"].rpartition(".")[2] for row in told(tmp_path)] == [field]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"chosen": "A kettle."}, "chosen is no response with its delimiter"),
        ({"rejected": " A brick."}, "rejected is no response with its delimiter"),
        ({"chosen": " \n###END###"}, "chosen says nothing"),
        ({"chosen": " A.\n###END###\nB.\n###END###"}, "chosen holds a delimiter before its end"),
        ({"chosen_critique": {"score": float("inf")}}, "does not put chosen above rejected: nan"),
        ({"rejected": ["A brick."]}, 'rejected is ["A brick."], which is no text'),
        (
            {"chosen_critique": {"is_good": True, "confident": False, "score": 1.5}},
            "chosen_critique does not keep the row",
        ),
        (
            {"rejected_critique": {"is_good": True, "confident": True, "score": 1.5}},
            "does not put chosen above rejected: 1.5 and 1.5",
        ),
        ({"rejected_critique": {"score": float("nan")}}, "does not put chosen above rejected"),
        ({"rejected_critique": "bad"}, "does not put chosen above rejected: 1.5 and nan"),
        ({"metadata": "none"}, 'metadata is "none", which is no mapping'),
    ],
)
def test_a_pair_that_belies_itself_is_found(
    tmp_path: Path, change: dict[str, Json], why: str
) -> None:
    """Sides in the form that training takes, and critiques that agree with which is which."""
    found = faults(tmp_path, {**pair("Where is the lantern now?"), **change})
    assert found["incomplete_provenance"] == 1
    reasons = [row["why"] for row in told(tmp_path) if row["check"] == "incomplete_provenance"]
    assert any(why in reason for reason in reasons), reasons


@pytest.mark.parametrize(
    ("chosen", "rejected", "equal"),
    [
        ("A kettle.", "A kettle.", True),
        ("A kettle.", " a  KETTLE.", True),
        ("Caf\u00e9", "Cafe\u0301", True),
        ("-3", "3", False),
        ("1.5", "15", False),
        ("Yes", "Yes, very", False),
    ],
)
def test_a_pair_whose_answers_are_one_is_counted(
    tmp_path: Path, chosen: str, rejected: str, *, equal: bool
) -> None:
    """A sign or a point may be all the difference there is; case and spacing are none."""
    same = pair("How much is it?", chosen, rejected)
    assert is_equal(same) is equal
    assert faults(tmp_path, same) == ({"equal_pairs": 1} if equal else {})


def test_no_pairs_are_nothing_measured(tmp_path: Path) -> None:
    """A file without pairs passes no criterion: each count is None, so invalid."""
    metrics = measure_pairs(make_request(tmp_path), PARAMS, [])
    criteria = [Criterion(name, "census", at_most=0) for name in CLEAN_PAIRS]
    assert {m.value for m in metrics} == {None}
    assert judge(criteria, metrics, final=True).verdict is Verdict.INVALID


def test_another_held_out_set_is_refused(tmp_path: Path) -> None:
    """Than the one that the preferences were held against."""
    mine = tmp_path / "held_out.jsonl"
    mine.write_bytes(HELD_OUT.read_bytes())
    seal = seal_held_out(make_request(tmp_path), mine)
    mine.write_text("".join(mine.read_text("utf-8").splitlines(keepends=True)[:-1]))
    params = PARAMS.model_copy(update={"held_out": str(mine)})
    with pytest.raises(ConfigError, match="step 'preferences' read"):
        measure_pairs(make_request(tmp_path, preferences={"held_out_seal": seal}), params, HONEST)


def request_to_train(folder: Path, pairs: list[Row]) -> PhaseRequest:
    """Of the shipped spec, without a model that could be loaded."""
    params = load_plan(SPECS / "quickstart" / "runbook.yaml", environ={}).step("dpo").params
    write_jsonl(folder / "preferences.jsonl", pairs)
    made = describe("preferences", folder / "preferences.jsonl", folder)
    request = make_request(
        folder,
        preferences={"preferences": made},
        prepare_model={"base_model": Artifact("base_model", "no model", "", 0)},
        sft={"adapter": Artifact("adapter", "no adapter", "", 0)},
    )
    return replace(request, params=params)


@pytest.mark.parametrize(
    ("change", "metric"),
    [
        ({"rejected": prompts.completion("List three fruits.")}, "overlap_exact"),
        ({"metadata": {}}, "bad_sentinels"),
        ({"chosen_critique": None}, "incomplete_provenance"),
        ({"rejected": HONEST[0]["chosen"]}, "equal_pairs"),
    ],
)
@pytest.mark.parametrize("runbook", ["quickstart", "stage1"])
def test_nothing_is_trained_on_faulty_pairs(
    tmp_path: Path, change: dict[str, Json], metric: str, runbook: str
) -> None:
    """The gate refuses by the pairs' own count, before a model is loaded."""
    request = request_to_train(tmp_path, [*HONEST, {**pair("Where is it now?"), **change}])

    result = dpo.run(request)

    found = {m.name: m for m in result.metrics}
    assert set(found) == set(dpo.METRICS)
    assert found[metric].value == 1
    assert metric in found["adapter_shift"].note
    assert result.artifacts == ()
    gate = load_plan(SPECS / runbook / "runbook.yaml", environ={}).step("dpo").gate
    assert gate is not None
    judged = judge(gate.criteria, result.metrics, final=True)
    assert judged.verdict is Verdict.INVALID
    assert any(reason.startswith(f"{metric}: 1 does not satisfy") for reason in judged.reasons)


def test_honest_pairs_go_on_to_the_model(tmp_path: Path) -> None:
    """With nothing at fault the next thing is to load the model, which is not there."""
    with pytest.raises((ConfigError, OSError), match="no model"):
        dpo.run(request_to_train(tmp_path, HONEST))


@pytest.mark.parametrize("name", ["quickstart", "stage1"])
@pytest.mark.parametrize("step", ["preferences", "dpo"])
def test_the_shipped_gates_ask_for_every_count(name: str, step: str) -> None:
    """At the step that makes the pairs and at the one that trains on them, by the bounds of SFT."""
    plan = load_plan(SPECS / name / "runbook.yaml", environ={})
    gate, params, trained = plan.step(step).gate, plan.step(step).params, plan.step("sft").params
    assert gate is not None
    asked = {c.metric: c for c in gate.criteria}
    assert asked.keys() >= {*CLEAN_PAIRS, "largest_repeat"}
    assert all((asked[name].kind, asked[name].at_most) == ("census", 0) for name in CLEAN_PAIRS)
    assert {n: params[n] for n in DATA_PARAMS} == {n: trained[n] for n in DATA_PARAMS}
    module = {"preferences": preferences, "dpo": dpo}[step]
    assert {*CLEAN_PAIRS, "largest_repeat"} <= set(module.METRICS)


def test_a_pair_is_read_whatever_its_fields_hold(tmp_path: Path) -> None:
    """It ends in counts and reasons, not in a traceback."""
    found = faults(tmp_path, json.loads('{"chosen": 7, "rejected": null, "metadata": [1]}'))
    assert found["incomplete_provenance"] == found["bad_sentinels"] == 1
