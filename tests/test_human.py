"""The human reviewer: what it lays down, and that it decides nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from agent.human import ask, render
from runbook.contract import Attempt, Range, ReviewRequest
from runbook.testing import make_review_request


@pytest.fixture
def asked(tmp_path: Path) -> ReviewRequest:
    return make_review_request(
        tmp_path,
        criteria=(
            {
                "metric": "token_limit_rate",
                "verdict": "fail",
                "value": 0.9,
                "n": 100,
                "threshold": "< 0.1",
                "reason": "0.9 does not satisfy < 0.1",
            },
        ),
        attempts=(
            Attempt(1, 1, "fail", ("token_limit_rate: 1 of 1",), {"max_new_tokens": 4}),
            Attempt(2, 2, "fail", ("token | limit\n# no heading",), {"max_new_tokens": 8}),
        ),
        adjustable={"max_new_tokens": Range(4, 100)},
        flagged=({"raw": "red\x1b[31m\u202e"},),
    )


def test_the_request_shows_verdict_parameters_and_escaped_rows(asked: ReviewRequest) -> None:
    """A person reads criteria, parameters and raw rows; control characters show as escapes."""
    ask(asked)
    text = (asked.workspace / asked.path / "request.md").read_text("utf-8")
    assert "| token_limit_rate | fail | 0.9 | 100 | < 0.1 |" in text
    first = text.index("### Attempt 1: fail")
    second = text.index("### Attempt 2, extended sample: fail")
    assert first < text.index("- `max_new_tokens`: 4\n") < second
    assert second < text.index("- `max_new_tokens`: 8\n")
    assert "\n# no heading" not in text
    assert "`max_new_tokens`: 4 to 100" in text
    assert "\\u001b[31m\\u202e" in text
    assert "\x1b" not in text


def test_a_change_is_offered_only_where_one_is_allowed(asked: ReviewRequest) -> None:
    """Ranges and the option stand together: with a retry and something to adjust, or not at all."""
    texts = (
        render(asked),
        render(replace(asked, adjustable={})),
        render(replace(asked, allowed=("stop", "override"))),
    )
    assert ["--change NAME=NUMBER" in text for text in texts] == [True, False, False]
    assert ["## What a retry may change" in text for text in texts] == [True, False, False]
