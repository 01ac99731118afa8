"""A lift that hangs on length raises a question, which a review answers and no gate decides."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_evaluation_controls import write_session

from gates.judge import judge_gate
from phases.length_question import length_question
from runbook import events as ev
from runbook.contract import Decision, ReviewRequest
from runbook.errors import ConfigError
from runbook.executor import Seams, run_session
from runbook.journal import facts, read_entries
from runbook.schema import load_plan
from runbook.workspace import Workspace

Row = dict[str, Any]


def pairs(count: int, base: int, tuned: int, base_chars: int, tuned_chars: int) -> list[Row]:
    """So many pairs of these lengths, of which so many are right on either side."""
    return [
        {
            "base": at < base,
            "tuned": at < tuned,
            "base_chars": base_chars,
            "tuned_chars": tuned_chars,
        }
        for at in range(count)
    ]


@pytest.mark.parametrize(
    ("alike", "other", "asks"),
    [
        (pairs(40, 10, 10, 50, 50), pairs(60, 10, 40, 400, 40), True),
        (pairs(40, 10, 5, 50, 50), pairs(60, 10, 40, 400, 40), True),
        (pairs(50, 10, 20, 50, 50), pairs(50, 10, 40, 400, 40), False),
        (pairs(50, 10, 15, 50, 50), pairs(50, 10, 25, 400, 40), False),
        (pairs(50, 10, 14, 50, 50), pairs(50, 10, 26, 400, 40), True),
        ([], pairs(50, 10, 40, 400, 40), True),
        (pairs(50, 10, 40, 400, 200), [], False),
        (pairs(50, 10, 40, 400, 199), [], True),
        (pairs(50, 10, 40, 0, 0), [], False),
        (pairs(50, 10, 40, 0, 1), [], True),
    ],
)
def test_asked_where_pairs_of_like_length_show_less_than_half(
    alike: Sequence[Row], other: Sequence[Row], *, asks: bool
) -> None:
    """Half of the whole lift is enough; a response of half the length is still alike."""
    assert bool(length_question([*alike, *other], 0.5)) == asks


@pytest.mark.parametrize(("count", "asks"), [(1, True), (29, True), (30, False)])
def test_few_pairs_of_like_length_do_not_answer_it(count: int, *, asks: bool) -> None:
    """However well they do: one gained pair has a matched lift of 1."""
    far = pairs(130, 80, 130, 900, 20)
    asked = length_question([*far, *pairs(count, 0, count, 50, 40)], 0.5)
    assert bool(asked) == asks
    assert ("fewer than 30 show nothing" in asked) == asks


@pytest.mark.parametrize("rows", [[], pairs(50, 20, 20, 50, 50), pairs(50, 20, 10, 400, 40)])
def test_without_a_gain_there_is_nothing_to_ask(rows: Sequence[Row]) -> None:
    """A loss is the gate's business."""
    assert length_question(rows, 0.5) == ""


def test_the_question_names_its_figures() -> None:
    """Whoever is asked sees both lifts with the counts behind them."""
    rows = [*pairs(38, 12, 12, 50, 60), *pairs(122, 6, 36, 400, 40)]
    asked = length_question(rows, 0.5)
    assert "+0.188 over 160 pairs (18 to 48 right)" in asked
    assert "Among the 38 pairs whose responses are of like length it is +0.000 (12 to 12 " in asked
    assert "the shorter one in 122 pairs" in asked
    assert "there is nothing to compare" in length_question(rows[38:], 0.5)


class Session:
    """An evaluation on the fake engine whose reviewer gives this answer, and what is on record."""

    def __init__(self, folder: Path, action: str | None, below: Any, **planted: Any) -> None:
        self.place = Workspace.at(folder / "ws")
        self.place.root.mkdir()
        self.asked: list[ReviewRequest] = []
        self.action = action
        book = write_session(folder, **planted)
        spec = json.loads((folder / "evaluation.yaml").read_text("utf-8"))
        spec["params"]["ask_if_matched_below"] = below
        (folder / "evaluation.yaml").write_text(json.dumps(spec))
        plan, root = load_plan(book), self.place.root
        gates = lambda gate, known, final: judge_gate(gate, known, root, final=final)  # noqa: E731
        self.code = run_session(plan, self.place, Seams(gates, self._review))
        self.facts = facts(read_entries(self.place))

    def _review(self, request: ReviewRequest) -> Decision | None:
        self.asked.append(request)
        return Decision(self.action, "as asked", "script", person=False) if self.action else None

    def verdict(self) -> str:
        return [f.verdict for f in self.facts if isinstance(f, ev.GateJudged)][-1]


@pytest.mark.parametrize(("action", "code"), [("proceed", 0), ("stop", 3), (None, 3)])
def test_a_gain_that_passed_is_asked_about(tmp_path: Path, action: str | None, code: int) -> None:
    """The verdict stays a pass whatever the answer; a person may be the one who gives it."""
    session = Session(tmp_path, action, 1.0)

    assert (session.code, session.verdict()) == (code, "pass")
    (request,) = session.asked
    assert (request.step, request.reason) == ("evaluate", "question")
    assert set(request.allowed) == {"proceed", "stop", "needs_human"}
    assert "pairs whose responses are of like length" in request.question
    assert request.flagged


@pytest.mark.parametrize("below", [None, 0.0])
def test_nothing_is_asked_where_nothing_is_declared(tmp_path: Path, below: float | None) -> None:
    """By default no review, and none at 0, while the pairs of like length show any gain."""
    session = Session(tmp_path, "stop", below)
    assert (session.code, session.asked) == (0, [])


def test_a_gain_that_is_no_pass_is_not_asked_about(tmp_path: Path) -> None:
    """A gate that cannot be believed is reviewed for that; its answers hold no 'proceed'."""
    session = Session(tmp_path, "stop", 1.0, evaluate="changed_evaluate")
    assert session.verdict() != "pass"
    (request,) = session.asked
    assert request.reason != "question"
    assert "proceed" not in request.allowed


@pytest.mark.parametrize("below", [-0.1, 1.1, "half", True])
def test_a_share_is_a_share(tmp_path: Path, below: Any) -> None:
    """What is no share is refused where it stands, before anything runs."""
    book = write_session(tmp_path)
    text = book.read_text("utf-8").replace("planted:run_evaluate", "phases.evaluate:run")
    book.write_text(text)
    spec = json.loads((tmp_path / "evaluation.yaml").read_text("utf-8"))
    spec["params"]["ask_if_matched_below"] = below
    (tmp_path / "evaluation.yaml").write_text(json.dumps(spec))
    with pytest.raises(ConfigError) as caught:
        load_plan(book)
    assert str(tmp_path / "evaluation.yaml") in caught.value.where
