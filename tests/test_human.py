"""The human reviewer: what it lays down, and that it decides nothing."""

from pathlib import Path

from agent.human import ask
from runbook.contract import Attempt, Range, ReviewRequest


def test_the_request_shows_verdict_parameters_and_escaped_rows(tmp_path: Path) -> None:
    """A person reads criteria, parameters and raw rows; control characters show as escapes."""
    (tmp_path / "reviews" / "r").mkdir(parents=True)
    request = ReviewRequest(
        review_id="pilot-2",
        step="pilot",
        attempt=2,
        reason="gate failed",
        allowed=("retry", "stop", "override"),
        run_id="x",
        workspace=tmp_path,
        path="reviews/r",
        verdict="fail",
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
        reasons=(),
        metrics=(),
        attempts=(
            Attempt(1, 1, "fail", ("token_limit_rate: 1 of 1",), {"max_new_tokens": 4}),
            Attempt(2, 2, "fail", ("token | limit\n# no heading",), {"max_new_tokens": 8}),
        ),
        adjustable={"max_new_tokens": Range(4, 100)},
        failures=2,
        retries=2,
        summary={},
        flagged=({"raw": "red\x1b[31m\u202e"},),
        samples=(),
    )
    ask(request)
    text = (tmp_path / "reviews" / "r" / "request.md").read_text("utf-8")
    assert "| token_limit_rate | fail | 0.9 | 100 | < 0.1 |" in text
    first = text.index("### Attempt 1: fail")
    second = text.index("### Attempt 2, extended sample: fail")
    assert first < text.index("- `max_new_tokens`: 4\n") < second
    assert second < text.index("- `max_new_tokens`: 8\n")
    assert "\n# no heading" not in text
    assert "`max_new_tokens`: 4 to 100" in text
    assert "\\u001b[31m\\u202e" in text
    assert "\x1b" not in text
