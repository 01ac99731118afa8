"""What no single step's parameters can tell of its gate is told before anything is spent."""

import shutil
from pathlib import Path

import pytest

from runbook.errors import ConfigError
from runbook.schema import load_plan

ROOT = Path(__file__).parents[1]
RATE = "{metric: runaway_rate, kind: rate, below: 0.05, min_n: 100}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the quickstart's runbook and specs."""
    shutil.copytree(ROOT / "specs", tmp_path / "specs")
    return tmp_path / "specs" / "quickstart"


def change(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / f"{name}.yaml"
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), "utf-8")


def refused(folder: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_plan(folder / "runbook.yaml", overrides, environ={})
    assert caught.value.code == 2
    return caught.value


@pytest.mark.parametrize(
    ("threshold", "advice"),
    [
        ("at_most: 0", "at_most: 0.01"),
        ("below: 0.0", "below: 0.01"),
        ("at_least: 1", "at_least: 0.99"),
        ("above: 1.0", "above: 0.99"),
    ],
)
def test_a_rate_that_no_sample_could_clear_is_refused(
    folder: Path, threshold: str, advice: str
) -> None:
    """Its bound never reaches 0 or 1; what may not happen at all is counted instead."""
    change(folder, "pilot", RATE, RATE.replace("below: 0.05", threshold))
    error = refused(folder)
    line = (
        (folder / "pilot.yaml")
        .read_text("utf-8")
        .splitlines()
        .index(f"    - {RATE}".replace("below: 0.05", threshold))
    )
    assert error.where.rpartition(":")[0] == f"{folder / 'pilot.yaml'}:{line + 1}"
    assert "'runaway_rate' stays underpowered" in error.what
    assert "of kind census with at_most: 0" in error.fix
    assert error.fix.endswith(advice)


@pytest.mark.parametrize("threshold", ["at_most: 0.001", "at_least: 0.999", "at_least: 0"])
def test_a_rate_that_leaves_room_is_innocent(folder: Path, threshold: str) -> None:
    """However little; and a census or a control may ask for none at all, as the shipped ones do."""
    change(folder, "pilot", RATE, RATE.replace("below: 0.05", threshold))
    load_plan(folder / "runbook.yaml", environ={})


def test_a_forecast_for_another_target_is_refused(folder: Path) -> None:
    """In the specs; both numbers and both steps are named."""
    change(folder, "scale", "target_kept: 200", "target_kept: 260")
    error = refused(folder)
    assert error.where.startswith(f"{folder / 'pilot.yaml'}:")
    assert "forecast_target of 'pilot' is 200" in error.what
    assert "target_kept of 'scale' is 260" in error.what
    assert error.fix.endswith("--set pilot.forecast_target=260")


def test_a_target_changed_on_the_command_line_is_held_against_too(folder: Path) -> None:
    """One of two overrides is refused; both together are as good as both specs."""
    refused(folder, "scale.target_kept=300")
    both = ("scale.target_kept=300", "pilot.forecast_target=300")
    plan = load_plan(folder / "runbook.yaml", both, environ={})
    assert plan.step("pilot").params["forecast_target"] == 300


def test_only_the_step_that_scales_the_pilot_up_is_held(folder: Path) -> None:
    """The pilot's own target_kept is of the pilot, and another step's may be anything."""
    change(folder, "pilot", "target_kept: 110", "target_kept: 111")
    load_plan(folder / "runbook.yaml", environ={})


def test_a_power_of_another_test_is_refused(folder: Path) -> None:
    """The baseline's alpha is the evaluation's threshold; both are named, with the place."""
    change(folder, "baseline", "alpha: 0.01", "alpha: 0.5")
    error = refused(folder)
    line = (folder / "baseline.yaml").read_text("utf-8").splitlines().index("  alpha: 0.5")
    assert error.where.startswith(f"{folder / 'baseline.yaml'}:{line + 1}:")
    assert "alpha of 'baseline' is 0.5, and the gate of 'evaluate' asks for mcnemar_p 0.01" in (
        error.what
    )
    assert "--set baseline.alpha=0.01" in error.fix


def test_the_evaluations_threshold_moves_with_the_alpha(folder: Path) -> None:
    """One of the two alone is refused, whichever it is and wherever it is set."""
    refused(folder, "baseline.alpha=0.05")
    change(folder, "evaluation", "below: 0.01,", "below: 0.05,")
    refused(folder)
    plan = load_plan(folder / "runbook.yaml", ("baseline.alpha=0.05",), environ={})
    assert plan.step("baseline").params["alpha"] == 0.05


def test_an_alpha_that_is_not_written_is_the_default(folder: Path) -> None:
    """It is 0.01, so an evaluation at 0.05 is refused, and the shipped one is not."""
    change(folder, "baseline", "  alpha: 0.01\n", "")
    load_plan(folder / "runbook.yaml", environ={})
    change(folder, "evaluation", "below: 0.01,", "below: 0.05,")
    assert "alpha of 'baseline' is 0.01" in refused(folder).what


@pytest.mark.parametrize("where", ["extend", "adjustable"])
def test_an_alpha_that_a_later_attempt_may_set_counts(folder: Path, where: str) -> None:
    """A second look or a retry would judge the power of another test as well."""
    if where == "extend":
        change(folder, "baseline", "gate:\n", "gate:\n  extend: {alpha: 0.2}\n")
    else:
        old = "output: results/baseline}"
        allowed = "adjustable: {alpha: {min: 0.01, max: 0.2}}}"
        change(folder, "runbook", old, f"output: results/baseline, retries: 1, {allowed}")
    assert "alpha of 'baseline' is 0.2" in refused(folder).what


def test_power_that_no_gate_asks_for_is_not_held(folder: Path) -> None:
    """Nothing is judged by it then."""
    change(folder, "baseline", "    - {metric: power, kind: power, at_least: 0.8}\n", "")
    change(folder, "baseline", "alpha: 0.01", "alpha: 0.5")
    load_plan(folder / "runbook.yaml", environ={})
