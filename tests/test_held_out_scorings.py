"""The journal's facts to how often a held-out set was scored."""

from collections.abc import Mapping

from runbook import events as ev
from runbook.contract import Json
from runbook.report.held_out import Scorings, count_scorings, told


def started(held_out: str = "aa", **functions: str) -> ev.SessionStarted:
    steps: Mapping[str, Json] = {
        name: {"function": function, "params": {"held_out": {"sha256": held_out * 16}}}
        for name, function in {
            "pilot": "phases.pilot:run",
            "baseline": "phases.baseline:run",
            "evaluate": "phases.evaluate:run",
            **functions,
        }.items()
    }
    return ev.SessionStarted("run", "runbook.yaml", "t", "f", (), {"steps": steps}, {})


def batch(step: str, attempt: int, key: str) -> ev.BatchCommitted:
    return ev.BatchCommitted(step, attempt, key, "path", "sha", 1)


BASE = (batch("baseline", 1, "base/0000"), batch("baseline", 1, "base/0001"))
TUNED = (batch("evaluate", 1, "tuned/0000"), batch("evaluate", 1, "tuned/0001"))


def test_a_repeated_evaluation_shows_two() -> None:
    """Training and evaluation run again, the same items are looked at a second time."""
    again = (batch("sft", 2, "checkpoint-1"), batch("evaluate", 2, "tuned/0000"))
    found = count_scorings((started(), *BASE, *TUNED, *again))
    assert found == (Scorings("aa" * 16, {"baseline": 1, "evaluate": 2}),)
    assert told(found) == [
        "The held-out set aaaaaaaaaaaa was scored 3 times: baseline 1, evaluate 2"
    ]


def test_a_resumed_scoring_counts_once() -> None:
    """Killed between two batches and gone on, it is one scoring."""
    lost = ev.StepInterrupted("evaluate", 1, "SIGKILL")
    found = count_scorings((started(), TUNED[0], lost, ev.SessionResumed(), TUNED[1]))
    assert [one.by_step for one in found] == [{"evaluate": 1}]


def test_one_that_never_ended_counts() -> None:
    """Its answers were seen, whatever became of the step."""
    found = count_scorings((started(), TUNED[0], ev.StepFailed("evaluate", 1, "e", "", 1)))
    assert [one.total for one in found] == [1]


def test_data_steps_that_only_screen_do_not_count() -> None:
    """The pilot reads the held-out set so as to keep away from it; nothing is scored."""
    assert count_scorings((started(), batch("pilot", 1, "round-000/lists/0000"))) == ()
    assert told(()) == []


def test_another_held_out_set_is_counted_apart() -> None:
    """After an accepted change of the plan the counts of the first set stay its own."""
    changed = ev.PlanAccepted(
        "r", "a", (), started("bb").plan, "f", "runbook.yaml", (), ("evaluate",), ()
    )
    found = count_scorings((started(), *BASE, *TUNED, changed, batch("evaluate", 2, "tuned/0000")))
    assert [(one.sha256[:2], one.by_step) for one in found] == [
        ("aa", {"baseline": 1, "evaluate": 1}),
        ("bb", {"evaluate": 1}),
    ]


def test_controls_belong_to_their_scoring() -> None:
    """What an attempt scores beside its own model is no further look at the result."""
    found = count_scorings((started(), *TUNED, batch("evaluate", 1, "control/0000")))
    assert [one.by_step for one in found] == [{"evaluate": 1}]
