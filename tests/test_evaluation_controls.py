"""Real sessions on the fake engine: an honest gain passes, a lie stops at the first gate it meets.

A fault is planted by a step of the runbook's own, which breaks one thing and then runs the real
step.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from test_kill_phases import write_runbook

from gates.judge import judge_gate
from phases import evaluation_controls as controls
from phases.fake_engine import LEARNS
from runbook import events as ev
from runbook.executor import Seams, run_session
from runbook.journal import facts, read_entries
from runbook.schema import load_plan
from runbook.workspace import Workspace

SPECS = Path(__file__).parents[1] / "specs"
HELD_OUT = SPECS / "held_out.jsonl"

STEPS = """
from phases import baseline, evaluate, fake_engine, verifiers
from phases.verifiers import Score
from runbook.artifacts import complete_directory, describe, write_json
from runbook.contract import Metric, PhaseRequest, PhaseResult

honest = verifiers.score


def sft(request: PhaseRequest) -> PhaseResult:
    folder = request.output / f"attempt_{request.attempt}"
    write_json(folder / "adapter_config.json", {"seed": request.seed})
    complete_directory(folder)
    adapter = describe("adapter", folder, request.workspace)
    return PhaseResult((Metric("final_loss", 0.1),), (adapter,))


def run_baseline(request: PhaseRequest) -> PhaseResult:
    return baseline.run(request)


def run_evaluate(request: PhaseRequest) -> PhaseResult:
    return evaluate.run(request)


def wrong(why):
    return Score(success=False, format_ok=False, content_ok=False, failures=(why,))


def brief(item, response):
    return wrong("too long") if len(response) > 500 else honest(item, response)


def brief_baseline(request: PhaseRequest) -> PhaseResult:
    verifiers.score = brief
    return baseline.run(request)


def yes(item, response):
    return Score(success=True, format_ok=True, content_ok=True, failures=())


def yes_baseline(request: PhaseRequest) -> PhaseResult:
    verifiers.score = yes
    return baseline.run(request)


def terse(item, response):
    return wrong("too long") if len(response) > 12 else yes(item, response)


def terse_evaluate(request: PhaseRequest) -> PhaseResult:
    verifiers.score = terse
    return evaluate.run(request)


def wordy_evaluate(request: PhaseRequest) -> PhaseResult:
    verifiers.score = lambda item, text: (
        yes(item, text) if "verily" in text else honest(item, text)
    )
    return evaluate.run(request)


def bare_evaluate(request: PhaseRequest) -> PhaseResult:
    applied = evaluate.open_engine
    evaluate.open_engine = lambda request, quantization, adapter=None: applied(
        request, quantization=quantization
    )
    return evaluate.run(request)


def mixed_evaluate(request: PhaseRequest) -> PhaseResult:
    paired = evaluate.pair_rows

    def mixed(base, tuned):
        turned = [{**b, "success": t["success"]} for b, t in zip(base, base[1:] + base[:1])]
        return paired(turned, tuned)

    evaluate.pair_rows = mixed
    return evaluate.run(request)


def changed_evaluate(request: PhaseRequest) -> PhaseResult:
    read = evaluate.read_jsonl
    evaluate.read_jsonl = lambda path: [
        {**row, "success": row["success"] and at % 2 == 0} for at, row in enumerate(read(path))
    ]
    return evaluate.run(request)


def deaf_evaluate(request: PhaseRequest) -> PhaseResult:
    fake_engine._NONSENSE = {}
    return evaluate.run(request)


def other_evaluate(request: PhaseRequest) -> PhaseResult:
    continued = fake_engine._continue
    fake_engine._continue = lambda prompt, limit, draws: " Sure, " + continued(prompt, limit, draws)
    return evaluate.run(request)
"""
ORDER: tuple[tuple[str, str, list[str], str, str | None], ...] = (
    ("prepare_model", "phases.prepare_model:run", [], "models/base", None),
    (
        *("contamination", "phases.contamination:run", ["prepare_model"]),
        *("artifacts/contamination", "contamination"),
    ),
    (
        *("baseline", "planted:run_baseline", ["prepare_model", "contamination"]),
        *("results/baseline", "baseline"),
    ),
    ("sft", "planted:sft", ["prepare_model", "baseline"], "checkpoints/sft", None),
    (
        *("evaluate", "planted:run_evaluate", ["prepare_model", "baseline", "sft"]),
        *("results/eval", "evaluation"),
    ),
)


def write_session(folder: Path, seed: int = 1, **planted: str) -> Path:
    """The quickstart's baseline and evaluation behind a training that takes no time."""
    book = json.loads(write_runbook(folder).read_text("utf-8"))
    (folder / "planted.py").write_text(STEPS)
    yaml = YAML(typ="safe", pure=True)
    for name in ("contamination", "baseline", "evaluation"):
        spec = yaml.load(SPECS / "quickstart" / f"{name}.yaml")
        spec["files"] = {
            key: str((SPECS / "quickstart" / path).resolve())
            for key, path in spec.get("files", {}).items()
        }
        (folder / f"{name}.yaml").write_text(json.dumps(spec))
    steps = [
        {
            "name": name,
            "function": f"planted:{planted[name]}" if name in planted else function,
            "inputs": inputs,
            "output": output,
            **({"spec": f"{spec}.yaml"} if spec else {}),
        }
        for name, function, inputs, output, spec in ORDER
    ]
    book |= {"seed": seed, "phases": [{"name": "C", "steps": steps}]}
    book["environment"] = {LEARNS: str(HELD_OUT)}
    (folder / "runbook.yaml").write_text(json.dumps(book))
    return folder / "runbook.yaml"


def run(folder: Path, **planted: Any) -> dict[str, ev.GateJudged]:
    """The newest judgement of each gate that was reached."""
    place = Workspace.at(folder / "ws")
    place.root.mkdir()
    run_session(
        load_plan(write_session(folder, **planted)),
        place,
        Seams(
            gates=lambda gate, metrics, final: judge_gate(gate, metrics, place.root, final=final),
            reviewer=lambda _: None,
        ),
    )
    known = facts(read_entries(place))
    judged = {fact.step: fact for fact in known if isinstance(fact, ev.GateJudged)}
    assert judged.pop("contamination").verdict == "pass"
    return judged


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_honest_session_passes(tmp_path: Path, seed: int) -> None:
    """A real gain, whatever the seed, raises no alarm."""
    judged = run(tmp_path, seed=seed)
    assert {step: fact.verdict for step, fact in judged.items()} == {
        "baseline": "pass",
        "evaluate": "pass",
    }, [fact.reasons for fact in judged.values()]


@pytest.mark.parametrize(
    ("planted", "gate", "reason"),
    [
        ({"baseline": "brief_baseline"}, "baseline", "scorer_sensitivity: "),
        ({"baseline": "yes_baseline"}, "baseline", "scorer_specificity: "),
        ({"baseline": "yes_baseline"}, "baseline", "shuffled_references_passing: "),
        ({"baseline": "yes_baseline"}, "baseline", "empty_passing: "),
        ({"evaluate": "terse_evaluate"}, "evaluate", "base_outcomes_changed: "),
        ({"evaluate": "terse_evaluate"}, "evaluate", "scorer_answers_changed: "),
        ({"evaluate": "terse_evaluate"}, "evaluate", "scorer_sensitivity: "),
        ({"evaluate": "wordy_evaluate"}, "evaluate", "mcnemar_p: "),
        ({"evaluate": "bare_evaluate"}, "evaluate", "texts_changed: "),
        ({"evaluate": "bare_evaluate"}, "evaluate", "adapter_logit_shift: "),
        (
            {"evaluate": "mixed_evaluate"},
            "evaluate",
            "confounded: variant_readings cannot be read: the pair ",
        ),
        ({"evaluate": "changed_evaluate"}, "evaluate", "base_outcomes_changed: "),
        ({"evaluate": "deaf_evaluate"}, "evaluate", "damage_unseen: "),
        ({"evaluate": "other_evaluate"}, "evaluate", "aa_same_batch_changed: "),
    ],
)
def test_a_planted_fault_stops_at_the_first_gate(
    tmp_path: Path, planted: dict[str, str], gate: str, reason: str
) -> None:
    """Invalid, for the right reason, and nothing after it is run."""
    judged = run(tmp_path, **planted)
    assert list(judged)[-1] == gate
    assert judged[gate].verdict == "invalid"
    assert [told for told in judged[gate].reasons if told.startswith(reason)], judged[gate].reasons
    assert len(judged) == (1 if gate == "baseline" else 2)


def test_every_control_is_committed_once(tmp_path: Path) -> None:
    """So a resumed evaluation asks the model nothing twice."""
    run(tmp_path)
    known = facts(read_entries(Workspace.at(tmp_path / "ws")))
    keys = [f.key for f in known if isinstance(f, ev.BatchCommitted) and f.step == "evaluate"]
    assert len(keys) == len(set(keys))
    assert {key.partition("/")[0] for key in keys} == {
        *("aa_same", "aa_other", "references", "tuned", "damaged"),
    }


def test_a_probability_that_is_not_finite_has_no_shift() -> None:
    """A broken adapter is told from one that does nothing."""
    base = [{"id": "a", "logps": [-1.0, -2.0]}]

    def shift(*logps: float | None) -> tuple[float | None, str]:
        tuned = [{"id": "a", "logps": [*logps]}]
        metric, rows = controls.shift_metric(base, tuned, "rows.jsonl")
        assert (metric.n, metric.evidence) == (2, "rows.jsonl")
        assert rows == [{"control": "shift", "id": "a", "base": [-1.0, -2.0], "tuned": [*logps]}]
        return metric.value, metric.note

    assert shift(-1.5, -2.0) == (0.25, "")
    assert shift(-1.0, -2.0) == (0.0, "")
    assert shift(-1.0, None) == (None, "a log-probability is not finite")
