"""The shipped runbooks: both plan without a model, and the quickstart's gate fails as it should."""

from pathlib import Path

import pytest
from cli_session import Called, call
from test_kill_phases import write_runbook

from runbook import events as ev
from runbook.journal import facts, read_entries
from runbook.schema import load_plan
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]
SPECS = Path(__file__).parents[1] / "specs"
QUICKSTART = SPECS / "quickstart" / "runbook.yaml"
PHASE_D = {"preferences", "dpo", "evaluate_dpo"}


@pytest.mark.parametrize("name", ["quickstart", "stage1"])
def test_a_shipped_runbook_plans_without_a_model(name: str) -> None:
    """Both go through the same functions in the same order, phase D disabled."""
    plan = load_plan(SPECS / name / "runbook.yaml", environ={})
    reference = load_plan(QUICKSTART, environ={})
    assert [(s.name, s.function) for s in plan.steps] == [
        (s.name, s.function) for s in reference.steps
    ]
    assert {s.name for s in plan.steps if not s.enabled} == PHASE_D


def test_the_reference_keeps_the_seed_thresholds() -> None:
    """Stage 1 declares the seed's numbers: acceptance at half, 15,000 kept."""
    plan = load_plan(SPECS / "stage1" / "runbook.yaml", environ={})
    pilot, scale = plan.step("pilot"), plan.step("scale")
    assert pilot.gate is not None
    assert {c.metric: c.threshold for c in pilot.gate.criteria}.items() >= {
        "kept": ">= 100 and <= 200",
        "runaway_rate": "< 0.05",
        "token_limit_rate": "< 0.1",
        "delimiter_left": "<= 0",
        "median_tokens": "< 40",
        "instruction_acceptance": ">= 0.5",
        "pair_acceptance": ">= 0.5",
    }.items()
    assert scale.params["target_kept"] == 15_000


def judged(root: Path) -> list[tuple[str, int, str]]:
    known = facts(read_entries(Workspace.at(root)))
    return [(f.step, f.attempt, f.verdict) for f in known if isinstance(f, ev.GateJudged)]


@pytest.fixture
def failing(tmp_path: Path, capfd: Capture) -> Called:
    """The quickstart on the fake engine with one token an answer, up to its stop."""
    write_runbook(tmp_path)
    return call(
        capfd,
        *("run", QUICKSTART, "--workspace", tmp_path / "ws"),
        *("--set", "engine.name=fake", "--set", f"model.source={{path: {tmp_path / 'model'}}}"),
        *("--set", "pilot.max_new_tokens=1"),
    )


def test_a_token_limit_that_is_too_low_asks_a_person(tmp_path: Path, failing: Called) -> None:
    """It fails, four more help on a few rows, it fails again, and a person is asked: exit 3."""
    root = tmp_path / "ws"
    assert failing.code == 3, failing.err
    assert [j for j in judged(root) if j[0] == "pilot"] == [
        ("pilot", 1, "fail"),
        ("pilot", 2, "fail"),
        ("pilot", 3, "fail"),
    ]
    (request,) = (root / "reviews").glob("*/request.md")
    text = request.read_text("utf-8")
    assert "|  | attempt 1 | attempt 2, a few rows only | attempt 3 |\n" in text
    assert "| verdict | fail | fail | fail |\n" in text
    assert "| max_new_tokens | 1 | 5 | 5 |\n" in text
    rows = text.split("## Raw rows behind")[1].split("## ")[0]
    assert rows.count('"instruction": ') == 10
    assert rows.count('"raw": ') >= 8
    assert "review decide pilot-3" in failing.err


def test_a_retry_within_the_ranges_passes_the_gate(
    tmp_path: Path, failing: Called, capfd: Capture
) -> None:
    """No answer changes a threshold or leaves the range; one within it goes on and passes."""
    root, again = tmp_path / "ws", ("--reason", "cut short", "--workspace", tmp_path / "ws")
    assert failing.code == 3
    decide = ("review", "decide", "pilot-3", "--action", "retry")
    assert call(capfd, *decide, "--change", "max_new_tokens=500", *again).code == 2
    assert call(capfd, *decide, "--change", "token_limit_rate=1", *again).code == 2
    assert call(capfd, *decide, "--change", "max_new_tokens=64", *again).code == 0
    call(
        capfd,
        *("run", QUICKSTART, "--workspace", root),
        *("--set", "engine.name=fake", "--set", f"model.source={{path: {tmp_path / 'model'}}}"),
        *("--set", "pilot.max_new_tokens=1"),
    )
    assert ("pilot", 4, "pass") in judged(root)
