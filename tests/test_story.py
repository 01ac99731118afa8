"""The story of the first run, replayed: a pilot fails twice, two reviews steer it, and it passes.

The shipped steps and gates on the fake engine, whose flaws follow the sampling as they did then;
the reviewer is a served model whose answers are those that were given. Its first advice, tighter
sampling, makes the data worse; its second goes back and asks for stop sequences.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sabotage.session import Session, write_session

from agent.scripted_server import Says, scripted_server
from runbook import events as ev
from runbook.journal import facts, read_entries
from runbook.workspace import Workspace

FLAWS = """
from phases import fake_engine
tight = request.params["temperature"] < 0.4
flaws = {"endless": 34, "repeating": 63} if tight else {"new turn": 28}
fake_engine.FLAWS.update({"endless": 2, "new turn": 2, "repeating": 2} | flaws)
"""
"""Without stop sequences answers run on to the limit; tighter, more of them do, or loop."""
TIGHTER = {"temperature": 0.3, "max_new_tokens": 48}
REVERTED = {"temperature": 0.4, "max_new_tokens": 100, "stop_sequences": 1}
LESSONS = (
    "A third of the answers meet the token limit, so I draw more tightly.",
    "Tighter sampling made it worse; go back, and end answers by stop sequences.",
)
ANSWER_USD = 0.20


def answer(changes: dict[str, float], reason: str) -> Says:
    """As a served model gives it, for twenty cents."""
    text = {
        "action": "retry",
        "reason": reason,
        "changes": changes,
        "concerns": ["only one pilot was read"],
        "action_items": ["read ten raw rows"],
        "confidence": 0.7,
    }
    return Says(json.dumps(text), input_tokens=10_000, output_tokens=10_000)


def write_story(folder: Path, base_url: str) -> Session:
    session = write_session(folder)
    session.break_step("pilot", FLAWS)
    session.edit("pilot", lambda spec: spec["params"].update(stop_sequences=0, max_rounds=2))
    session.edit("pilot", lambda spec: spec["params"]["instructions"].update(lists_per_round=40))
    session.edit("pilot", lambda spec: spec["gate"].pop("smoke", None))
    ranges = {
        "temperature": {"min": 0.2, "max": 0.8},
        "max_new_tokens": {"min": 4, "max": 100},
        "stop_sequences": {"min": 0, "max": 1},
    }
    session.change_step("pilot", review_after=1, adjustable=ranges)

    def reviewed(book: dict[str, Any]) -> None:
        book["reviewer"] = {
            "provider": "openai",
            "model": "scripted",
            "base_url": base_url,
            "usd_per_mtok": {"input": 2.0, "output": 18.0},
            "max_output_tokens": 16_000,
        }
        book["budget"] = {**book.get("budget", {}), "review_usd": 2.0}

    session.edit("runbook", reviewed)
    return session


@pytest.mark.timeout(300)
def test_the_first_run_is_replayed_with_its_two_reviews(tmp_path: Path) -> None:
    """Fail, review, worse, review, pass: each decision, its cost and its lesson are in the report.

    The second dossier shows how the first advice turned out.
    """
    script = [answer(TIGHTER, LESSONS[0]), answer(REVERTED, LESSONS[1])]
    with scripted_server(*script) as server:
        session = write_story(tmp_path / "story", server.base_url("openai"))
        ended = session.run()
        asked = [json.dumps(request.body) for request in server.received]

    known = facts(read_entries(Workspace.at(session.root)))
    pilots = [f for f in known if isinstance(f, ev.GateJudged) and f.step == "pilot" and f.look]
    shown = [(f.attempt, f.verdict, f.reasons) for f in pilots]
    assert [f.verdict for f in pilots if f.attempt < 3] == ["fail", "fail"], shown
    assert pilots[-1].verdict == "pass", shown
    assert ended.exit_code == 0
    first, second = (_readings(f) for f in pilots[:2])
    assert second["runaway_rate"] > 0.3 > first["runaway_rate"]
    assert second["kept"] < first["kept"]

    decided = [f for f in known if isinstance(f, ev.ReviewDecided)]
    assert [dict(f.changes) for f in decided] == [TIGHTER, REVERTED]
    settled = [f for f in known if isinstance(f, ev.RequestSettled)]
    assert [f.usd for f in settled] == [pytest.approx(ANSWER_USD)] * 2
    assert LESSONS[0] not in asked[0]
    assert LESSONS[0] in asked[1]
    assert "worse" in asked[1]

    text = (session.root / "report.md").read_text()
    for lesson in LESSONS:
        assert lesson in text
    assert len(re.findall(r"\$0\.20", text)) >= 2
    stories = sorted(session.root.glob("reviews/*/report.md"))
    words = [re.search(r"worse|passed", path.read_text()) for path in stories]
    assert len(stories) == 2
    assert all(words)


def _readings(judged: ev.GateJudged) -> dict[str, float]:
    return {str(c["metric"]): float(c["value"] or 0) for c in judged.criteria}
