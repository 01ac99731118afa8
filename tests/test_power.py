"""Before the training is paid: can these items show the lift that it is for?"""

import json
import math
from pathlib import Path

import pytest

from gates.judge import judge_gate
from gates.power import power_of
from runbook.contract import Criterion, Gate, Judgement, Metric, Verdict

GATE = Gate((Criterion("power", "power", at_least=0.8),))


def judge(folder: Path, right: int, n: int, effect: float | None, alpha: float = 0.01) -> Judgement:
    rows = [{"id": str(at), "success": at < right} for at in range(n)]
    (folder / "o").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = (
        Metric("base_rate", None, evidence="o"),
        Metric("declared_effect", effect),
        Metric("declared_alpha", alpha),
    )
    return judge_gate(GATE, metrics, folder, final=True)


@pytest.mark.parametrize("right", [0, 18, 40, 64, 80, 110])
def test_the_quickstart_can_show_what_it_declares(tmp_path: Path, right: int) -> None:
    """A lift of 0.2 on 160 items, wherever the base rate leaves room for it."""
    assert judge(tmp_path, right, 160, 0.20).verdict is Verdict.PASS


@pytest.mark.parametrize("right", [16, 37, 130, 163, 220])
def test_stage_1_can_show_what_it_declares(tmp_path: Path, right: int) -> None:
    """A lift of 0.15 on 325 items."""
    assert judge(tmp_path, right, 325, 0.15).verdict is Verdict.PASS


def test_a_set_too_small_for_its_effect_is_underpowered(tmp_path: Path) -> None:
    """200 items proved too few; the reason names effect, n and base rate."""
    judged = judge(tmp_path, 100, 200, 0.10)
    assert judged.verdict is Verdict.UNDERPOWERED
    assert "a lift of 0.1 at p < 0.01 on 200 items, base rate 0.5" in judged.reasons[0]


def test_a_base_that_leaves_no_room_has_no_power(tmp_path: Path) -> None:
    """From 99 % nothing rises by a tenth, however many items there are."""
    assert judge(tmp_path, 990, 1000, 0.10).verdict is Verdict.UNDERPOWERED


@pytest.mark.parametrize(
    ("n", "effect"), [(0, 0.2), (160, None), (160, math.nan), (160, 0.0), (160, 1.0)]
)
def test_what_cannot_be_computed_is_invalid(tmp_path: Path, n: int, effect: float | None) -> None:
    """No outcomes, or no effect that could be."""
    assert judge(tmp_path, 0, n, effect).verdict is Verdict.INVALID


def test_outcomes_without_a_value_are_invalid(tmp_path: Path) -> None:
    """An outcome is true or false."""
    (tmp_path / "o").write_text('{"id": "a", "success": null}\n')
    metrics = (
        Metric("base_rate", 0.5, evidence="o"),
        Metric("declared_effect", 0.2),
        Metric("declared_alpha", 0.01),
    )
    assert judge_gate(GATE, metrics, tmp_path, final=True).verdict is Verdict.INVALID


def test_power_grows_with_n_and_effect() -> None:
    """And with as many discordant pairs as independence gives, half way up is the worst."""
    assert power_of(0.3, 160, 0.2, 0.01) < power_of(0.3, 325, 0.2, 0.01)
    assert power_of(0.3, 160, 0.1, 0.01) < power_of(0.3, 160, 0.2, 0.01)
    assert power_of(0.4, 160, 0.2, 0.01) < power_of(0.1, 160, 0.2, 0.01)
