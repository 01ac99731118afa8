"""What helps where no answer came: told by each reviewer, and shown where a session's end is read.

A remedy that is wrong sends a person to a command that does nothing.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_session import REVIEWED, call, write_runbook
from test_model_reviewer import BUSY, YES, ask, ledger, served

from agent import command
from agent.scripted_server import Says, Sends, scripted_server
from runbook import events as ev
from runbook.budget import Limits
from runbook.contract import Range, ReviewRequest
from runbook.testing import LocalAccount, make_review_request

Capture = pytest.CaptureFixture[str]
LOST = Sends(fault="close")


@pytest.fixture
def request_(tmp_path: Path) -> ReviewRequest:
    """A gate that failed twice."""
    return make_review_request(tmp_path, adjustable={"t": Range(0.1, 1.0)})


def remedy(request: ReviewRequest) -> Any:
    """``remedy.json``; None without one."""
    path = request.workspace / request.path / "remedy.json"
    return json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([Sends(b"", 401)], "ask"),
        ([BUSY, BUSY, BUSY, BUSY], "ask"),
        ([Says("no"), Says("no")], "decide"),
        ([Says("", "refused")], "decide"),
        ([Says("no"), Sends(b"", 401)], "ask"),
        ([LOST, LOST], "decide"),
    ],
)
def test_a_remedy_says_whether_the_same_command_sends_anything(
    request_: ReviewRequest, script: Sequence[Says | Sends], expected: str
) -> None:
    """Asked a second time, the model gets a request just where the remedy promises it."""
    known: list[ev.Event] = []
    request_ = replace(request_, account=ledger(known).account("a-2"))
    with scripted_server(*script, *script) as server:
        model = served("openai", server)
        assert ask(request_, model) is None
        before = len(server.received)
        assert remedy(request_) == {"remedy": expected, "usd": None}
        ask(request_, model)
        assert (len(server.received) > before) is (expected == "ask")


def test_without_a_key_it_is_asked_once_there_is_one(request_: ReviewRequest) -> None:
    """Then nothing tells of an error any more."""
    with scripted_server(YES) as server:
        model = replace(served("openai", server), base_url="https://192.0.2.1/v1")
        assert ask(request_, model, environ={}) is None
        assert remedy(request_) == {"remedy": "ask", "usd": None}
        assert ask(request_, served("openai", server)) is not None
    assert remedy(request_) is None


def test_the_worst_cost_is_told_where_money_is_missing(request_: ReviewRequest) -> None:
    """As much as the remedy says lets the request go."""
    poor = replace(request_, account=ledger([], Limits(review_usd=0.001)).account("a-2"))
    with scripted_server(YES) as server:
        model = served("openai", server)
        assert ask(poor, model) is None
        told = remedy(request_)
        assert told["remedy"] == "decide"
        rich = replace(request_, account=ledger([], Limits(review_usd=told["usd"])).account("a-2"))
        assert ask(rich, model) is not None


def test_what_the_runbook_forbids_needs_a_change_of_it(request_: ReviewRequest) -> None:
    """A cap on one request, or a context too small for the question."""
    with scripted_server() as server:
        assert ask(request_, served("openai", server, max_usd=0.001)) is None
        assert remedy(request_) == {"remedy": "change", "usd": None}
        (request_.workspace / request_.path / "remedy.json").unlink()
        assert ask(request_, served("openai", server, context_tokens=600)) is None
        assert remedy(request_) == {"remedy": "change", "usd": None}


def test_the_first_model_is_asked_again_though_the_fallback_was_refused(
    request_: ReviewRequest,
) -> None:
    """Nothing of the fallback is out, so the next command begins with the first model."""
    with scripted_server(Sends(b"", 401)) as one, scripted_server() as two:
        models = served("openai", one), served("anthropic", two, max_usd=0.001)
        assert ask(request_, *models) is None
    assert remedy(request_) == {"remedy": "ask", "usd": None}


def test_a_program_is_started_again_unless_its_account_says_no(request_: ReviewRequest) -> None:
    """What the account lacks is told by the journal, so then there is no remedy of the program."""
    reviewer = command.reviewer((sys.executable, "-c", "print('no')"), 30)
    assert reviewer(request_) is None
    assert remedy(request_) == {"remedy": "ask", "usd": None}

    assert reviewer(replace(request_, account=LocalAccount("nothing is left"))) is None
    assert remedy(request_) is None


def test_the_last_screen_of_a_run_and_its_report_say_why(tmp_path: Path, capfd: Capture) -> None:
    """A session whose reviewer answers nonsense says so first, and pasted again asks it again."""
    spec = write_runbook(tmp_path, REVIEWED)
    document = json.loads(spec.read_text())
    said = "open('../../asked', 'a').write('x'); print('no')"
    document["reviewer"] = {"provider": "command", "command": [sys.executable, "-c", said]}
    spec.write_text(json.dumps(document))
    place = tmp_path / "ws"

    screen = call(capfd, "run", spec, "--workspace", place)
    head = (place / "report.md").read_text().partition("## Steps")[0]
    (told,) = call(capfd, "diagnose", "--workspace", place, "--json").lines

    why = "Its reviewer gave no answer: not one JSON object"
    assert screen.code == 3
    assert f"  {why}" in screen.err
    assert "\n  The same command asks it again.\n" in screen.err
    assert f"\n{why}" in head
    assert "asked again" in told["fixes"][0]["why"]
    assert call(capfd, *told["fixes"][0]["command"].split()[1:]).code == 3
    assert (place / "asked").read_text() == "xx"
