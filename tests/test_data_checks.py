"""What a dataset's own rows say of it: provenance, sentinels, leaks, the sealed held-out set."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gates.thresholds import judge
from phases import sft
from phases.data_checks import (
    CLEAN,
    Bound,
    DataParams,
    bad_sentinels,
    check_sealed,
    measure_data,
    seal_held_out,
)
from phases.pilot import METRICS
from phases.training_params import SftParams
from runbook.artifacts import describe, read_jsonl, write_json, write_jsonl
from runbook.contract import Artifact, Criterion, Json, PhaseRequest, Verdict
from runbook.errors import ConfigError
from runbook.schema import load_plan
from runbook.testing import LocalChannel

SPECS = Path(__file__).parents[1] / "specs"
HELD_OUT = SPECS / "held_out.jsonl"
PARAMS = DataParams(
    held_out=str(HELD_OUT),
    near_duplicate=0.8,
    sentinels={"end_of_turn_logp": Bound(below=-6.0), "template_left": Bound(at_most=0)},
)


DATA_PARAMS = PARAMS.model_dump(exclude_none=True)
"""As a step that trains is given them."""


KEPT: dict[str, Json] = {"is_good": True, "confident": True}


def record(instruction: str, **fields: Json) -> dict[str, Json]:
    """A complete and honest record; ``fields`` are its own, or of its metadata."""
    names = [name for name in ("response", "prompt", "completion") if name in fields]
    own: dict[str, Json] = {name: fields.pop(name) for name in names}
    said = own.get("response", "A kettle.")
    return {
        "instruction": instruction,
        "response": "A kettle.",
        "prompt": f"Instruction: {instruction}\nResponse:",
        "completion": f" {said}\n###END###",
        "instruction_critique": KEPT,
        "pair_critique": KEPT,
        "metadata": {
            "git_sha": "0" * 40,
            "fingerprint": "f",
            "model": "gemma-3-270m",
            "loader_version": "1",
            "quantization": "none",
            "template_disabled": True,
            "prefix_matches": True,
            "generation": {"temperature": 0.4},
            "seed": 7,
            "sentinel": {"end_of_turn_logp": -24.8, "template_left": 0.0, "completions_right": 0.9},
            **fields,
        },
        **own,
    }


HONEST = [record(f"What would a {who} keep there?") for who in ("baker", "miner", "tailor")]


def make_request(folder: Path, **inputs: Mapping[str, Artifact]) -> PhaseRequest:
    (folder / "out").mkdir(exist_ok=True)
    return PhaseRequest(
        step="sft",
        attempt=1,
        look=1,
        seed=7,
        params={},
        model={},
        engine={},
        workspace=folder,
        work=folder / "work",
        output=folder / "out",
        inputs=inputs,
        provenance={},
        channel=LocalChannel(),
    )


def faults(folder: Path, *records: dict[str, Json]) -> dict[str, float | None]:
    """The counts that are not 0."""
    metrics = measure_data(make_request(folder), PARAMS, [*HONEST, *records])
    assert all(m.n == len(HONEST) + len(records) for m in metrics)
    return {m.name: m.value for m in metrics if m.name in CLEAN and m.value != 0}


def test_an_honest_dataset_has_no_fault(tmp_path: Path) -> None:
    """Every count is 0 over all rows, and the file of faults is empty."""
    assert faults(tmp_path) == {}
    assert read_jsonl(tmp_path / "out" / "data_faults.jsonl") == []


@pytest.mark.parametrize(
    ("sentinel", "why"),
    [
        ({"end_of_turn_logp": -0.2, "template_left": 0.0}, "end_of_turn_logp is -0.2, which is"),
        ({"end_of_turn_logp": -24.8, "template_left": 1.0}, "template_left is 1, which is out of"),
        ({"end_of_turn_logp": -24.8}, "template_left is missing"),
        (
            {"end_of_turn_logp": -24.8, "template_left": False},
            "template_left is false, which is no",
        ),
        ({"end_of_turn_logp": -24.8, "template_left": 0, "ok": False}, "ok is false"),
        ({"end_of_turn_logp": float("nan"), "template_left": 0}, "is NaN, which is no finite"),
        (
            {"end_of_turn_logp": -24.8, "template_left": 0, "ok": None},
            "ok is null, which is neither",
        ),
        ({"end_of_turn_logp": -24.8, "template_left": 0, "ok": "false"}, 'ok is "false", which is'),
        ({"end_of_turn_logp": -24.8, "template_left": 0, "ok": {"ok": True}}, "ok is {"),
        ({"end_of_turn_logp": -24.8, "template_left": 0, "ok": float("inf")}, "ok is Infinity"),
        ({"end_of_turn_logp": 10**400, "template_left": 0}, "which is no finite number"),
        ({}, "end_of_turn_logp is missing"),
        ({}, "sentinel is {}"),
        (False, "sentinel is false"),
        (None, "sentinel is null"),
    ],
)
def test_one_record_with_a_bad_sentinel_is_found(tmp_path: Path, sentinel: Json, why: str) -> None:
    """False, missing, out of its bound or no number: the row and the reason stand on disk."""
    found = faults(tmp_path, record("Where is the lantern now?", sentinel=sentinel))
    assert found["bad_sentinels"] == 1
    told = read_jsonl(tmp_path / "out" / "data_faults.jsonl")
    mine = [row for row in told if row["check"] == "bad_sentinels"]
    assert {row["row"] for row in mine} == {3}
    assert any(why in row["why"] for row in mine), mine


@pytest.mark.parametrize("field", ["template_disabled", "prefix_matches"])
def test_a_loader_that_says_no_is_a_bad_sentinel(tmp_path: Path, field: str) -> None:
    """What the loader states of a record's making counts as its sentinel does."""
    assert faults(tmp_path, record("Where is the lantern now?", **{field: False})) == {
        "bad_sentinels": 1
    }


def test_readings_of_another_machine_are_innocent(tmp_path: Path) -> None:
    """A reading may differ between records; its bound is what it keeps to. Zero is a reading."""
    other = {"end_of_turn_logp": -6.01, "template_left": 0, "assistant_like": 0, "ok": True, "n": 3}
    assert faults(tmp_path, record("Where is the lantern now?", sentinel=other)) == {}


@pytest.mark.parametrize(
    "field", ["response", "pair_critique", "git_sha", "seed", "generation", "loader_version"]
)
def test_a_record_without_a_field_is_incomplete(tmp_path: Path, field: str) -> None:
    """Of the record itself and of its metadata; nobody could tell how it was made."""
    broken = record("Where is the lantern now?")
    owner = broken if field in broken else broken["metadata"]
    del owner[field]
    assert faults(tmp_path, broken) == {"incomplete_provenance": 1}
    (told,) = read_jsonl(tmp_path / "out" / "data_faults.jsonl")
    assert told["why"].endswith(field)


def test_a_seed_of_zero_and_an_installed_version_are_complete(tmp_path: Path) -> None:
    """Outside git the version tells the code, and no number is mistaken for nothing."""
    bare = record("Where is the lantern now?", seed=0, git_sha="", versions={"runbook": "0.1.0"})
    assert faults(tmp_path, bare) == {}


@pytest.mark.parametrize(
    ("instruction", "response", "readings"),
    [
        ("List three fruits.", "kettle", {"exact", "normalised", "near", "quoted"}),
        ("Fruits: list three!", "kettle", {"near"}),
        ("Make up a quiz.", "First, list three fruits; then rest.", {"quoted"}),
    ],
)
def test_a_leaked_item_is_found(
    tmp_path: Path, instruction: str, response: str, readings: set[str]
) -> None:
    """As it stands, reworded, and within a response."""
    leaked = record(instruction, response=response)
    assert faults(tmp_path, leaked) == {f"overlap_{reading}": 1 for reading in readings}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"prompt": "Instruction: Who came?\nResponse:"}, "prompt is not the instruction's"),
        ({"prompt": "Where is the lantern now?"}, "prompt is not the instruction's"),
        ({"completion": " A kettle."}, "completion is not the response"),
        ({"completion": " A lamp.\n###END###"}, "completion is not the response"),
        ({"response": ["A kettle."]}, 'response is ["A kettle."], which is no text'),
        ({"pair_critique": {"is_good": False, "confident": True}}, "pair_critique does not keep"),
        ({"instruction_critique": {"is_good": True}}, "instruction_critique does not keep"),
        ({"pair_critique": "good"}, "pair_critique does not keep"),
    ],
)
def test_a_record_that_belies_itself_is_found(
    tmp_path: Path, change: dict[str, Json], why: str
) -> None:
    """Training takes prompt and completion, so they follow from what the other checks read."""
    found = faults(tmp_path, {**record("Where is the lantern now?"), **change})
    assert found == {"incomplete_provenance": 1}
    told = [row["why"] for row in read_jsonl(tmp_path / "out" / "data_faults.jsonl")]
    assert any(why in reason for reason in told), told


@pytest.mark.parametrize("metadata", [[1], "x", None, 7])
def test_metadata_that_is_no_mapping_is_counted(tmp_path: Path, metadata: Json) -> None:
    """It ends in a count and a reason, not in a traceback."""
    found = faults(tmp_path, {**record("Where is the lantern now?"), "metadata": metadata})
    assert found == {"incomplete_provenance": 1, "bad_sentinels": 1}
    told = [row["why"] for row in read_jsonl(tmp_path / "out" / "data_faults.jsonl")]
    assert f"metadata is {json.dumps(metadata)}, which is no mapping" in told


def test_an_empty_sentinel_is_a_fault_where_no_bound_is_declared() -> None:
    """Nothing was read, so nothing is sound."""
    nothing: tuple[Json, ...] = ({}, None, [], "ok")
    for sentinel in nothing:
        told = list(bad_sentinels(record("Where is the lantern?", sentinel=sentinel), {}))
        assert told == [f"sentinel is {json.dumps(sentinel)}"]


def test_no_rows_are_nothing_measured(tmp_path: Path) -> None:
    """A dataset without rows passes no criterion: each count is None, so invalid."""
    metrics = measure_data(make_request(tmp_path), PARAMS, [])
    criteria = [Criterion(name, "census", at_most=0) for name in CLEAN]
    assert {m.value for m in metrics} == {None}
    assert judge(criteria, metrics, final=True).verdict is Verdict.INVALID


def test_a_bound_says_something() -> None:
    """Without a comparison, or with one against NaN, it would let everything pass."""
    for wrong in ({}, {"below": float("nan")}, {"at_most": "0"}):
        with pytest.raises(ValidationError):
            Bound.model_validate(wrong)


def test_the_held_out_set_is_sealed(tmp_path: Path) -> None:
    """Its hash and size are written down, and a later step with another file is refused."""
    mine = tmp_path / "held_out.jsonl"
    shutil.copy(HELD_OUT, mine)
    seal = seal_held_out(make_request(tmp_path), mine)
    told = json.loads((tmp_path / seal.path).read_text("utf-8"))
    assert (told["items"], told["bytes"]) == (325, mine.stat().st_size)
    later = make_request(tmp_path, scale={"held_out_seal": seal})
    check_sealed(later, mine)

    mine.write_text("".join(mine.read_text("utf-8").splitlines(keepends=True)[:-1]))

    with pytest.raises(ConfigError, match=r"held_out\.jsonl: .*not the one that step 'scale' read"):
        check_sealed(later, mine)
    with pytest.raises(ConfigError, match="scale"):
        seal_held_out(later, mine)


def test_what_the_baseline_scored_is_a_seal_too(tmp_path: Path) -> None:
    """Training is refused on rows that were screened against another set than the one scored."""
    write_json(tmp_path / "conditions.json", {"held_out_sha256": "0" * 64})
    scored = describe("conditions", tmp_path / "conditions.json", tmp_path)
    with pytest.raises(ConfigError, match="step 'baseline' read"):
        measure_data(make_request(tmp_path, baseline={"conditions": scored}), PARAMS, HONEST)


def request_to_train(folder: Path, rows: list[dict[str, Json]]) -> PhaseRequest:
    """Of the shipped spec, without a model that could be loaded."""
    plan = load_plan(SPECS / "quickstart" / "runbook.yaml", environ={})
    write_jsonl(folder / "dataset.jsonl", rows)
    dataset = describe("dataset", folder / "dataset.jsonl", folder)
    return replace(
        make_request(
            folder,
            scale={"dataset": dataset},
            prepare_model={"base_model": Artifact("base_model", "no model", "", 0)},
        ),
        params=plan.step("sft").params,
    )


@pytest.mark.parametrize(
    ("change", "metric"),
    [
        ({"instruction": "List three fruits."}, "overlap_exact"),
        ({"metadata": {}}, "bad_sentinels"),
        ({"prompt": ""}, "incomplete_provenance"),
    ],
)
def test_nothing_is_trained_on_faulty_data(
    tmp_path: Path, change: dict[str, Json], metric: str
) -> None:
    """The gate fails by the data's own count, before a model is loaded."""
    request = request_to_train(tmp_path, [*complete(), {**complete()[0], **change}])

    result = sft.run(request)

    found = {m.name: m for m in result.metrics}
    assert set(found) == set(sft.METRICS)
    assert found[metric].value == 1
    assert metric in found["adapter_norm"].note
    assert result.artifacts == ()
    gate = load_plan(SPECS / "quickstart" / "runbook.yaml", environ={}).step("sft").gate
    assert gate is not None
    judged = judge(gate.criteria, result.metrics, final=True)
    assert judged.verdict is Verdict.INVALID
    assert any(reason.startswith(f"{metric}: 1 does not satisfy") for reason in judged.reasons)


def test_honest_data_goes_on_to_the_model(tmp_path: Path) -> None:
    """With nothing at fault the next thing is to load the model, which is not there."""
    with pytest.raises((ConfigError, OSError), match="no model"):
        sft.run(request_to_train(tmp_path, complete()))


def complete() -> list[dict[str, Json]]:
    """Honest rows with every sentinel that the quickstart declares."""
    readings = {
        "end_of_turn_logp": -24.8,
        "completions_right": 0.875,
        "assistant_like": 0.0,
        "bare_endings": 0.0,
        "prefix_mismatch": 0.0,
        "template_left": 0.0,
        "fed_markup": 0.0,
    }
    return [record(row["instruction"], sentinel=readings) for row in HONEST]


@pytest.mark.parametrize("name", ["quickstart", "stage1"])
def test_the_shipped_specs_agree(name: str) -> None:
    """One bound for a sentinel wherever it is declared, one held-out set, one forecast target."""
    plan = load_plan(SPECS / name / "runbook.yaml", environ={})
    gate = plan.step("contamination").gate
    assert gate is not None
    bounds: dict[str, Any] = {
        c.metric: Bound(below=c.below, above=c.above, at_most=c.at_most, at_least=c.at_least)
        for c in gate.criteria
        if c.kind == "sentinel"
    }
    steps = [plan.step(step).params for step in ("pilot", "scale", "sft")]
    for params in steps:
        declared = SftParams.model_fields["sentinels"].annotation
        assert declared == dict[str, Bound]
        held = {n: Bound.model_validate(b) for n, b in params["sentinels"].items()}
        assert held.items() <= bounds.items()
        assert set(held) <= set(METRICS)
        of_the_step = {"undeclared_chat_template", "end_of_turn_logp"}
        assert set(bounds) - set(held) <= of_the_step
    assert len({params["held_out"] for params in steps}) == 1
    assert len({params["near_duplicate"] for params in steps}) == 1
    assert steps[0]["forecast_target"] == steps[1]["target_kept"]
