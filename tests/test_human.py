"""The human reviewer: what it lays down, and that it decides nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
from dossier_example import example
from hostile_texts import HOSTILE

from agent.human import HOW_TO_ANSWER, ask, fence_of, question, render
from runbook.contract import ReviewRequest


@pytest.fixture
def asked(tmp_path: Path) -> ReviewRequest:
    return example(tmp_path)


def written(request: ReviewRequest) -> str:
    return (request.workspace / request.path / "request.md").read_text("utf-8")


def test_the_request_is_the_dossier_and_the_command(asked: ReviewRequest) -> None:
    """A person reads what a model reads, may override as well, and is told how to answer."""
    ask(asked)
    text = written(asked)
    assert text.startswith("# pilot, attempt 2: fail (gate failed)\n")
    assert "| token_limit_rate | fail | 0.5667 |" in text
    assert "| `override` | passes the gate on record" in text
    answer = "review decide pilot-2 --action ACTION --reason REASON"
    assert f"{answer} \\\n        --workspace {asked.workspace}" in text
    assert text.index("## What is left of the budget") < text.index("## How to answer")


def test_a_program_reads_nothing_that_is_a_persons(asked: ReviewRequest) -> None:
    """Neither the override nor the command; all else is the same."""
    assert "override" not in question(asked)
    assert "review decide" not in question(asked)
    person = render(asked).split("\n## How to answer")[0].rstrip().split("\n")
    missing = [line for line in person if line not in question(asked).split("\n")]
    assert [line.split(" | ")[0] for line in missing] == ["| `override`"]


def test_one_word_stands_for_a_persons_reason(asked: ReviewRequest) -> None:
    """The same in both commands, and the one that is refused as a reason."""
    text = render(replace(asked, reason="sentinel"))
    assert text.count("--reason REASON") == 2
    assert "TEXT" not in text.partition(HOW_TO_ANSWER)[2]


def test_a_change_is_offered_only_where_one_is_allowed(asked: ReviewRequest) -> None:
    """Ranges and the option stand together: with a retry and something to adjust, or not at all."""
    texts = (
        render(asked),
        render(replace(asked, adjustable={})),
        render(replace(asked, allowed=("stop", "override"))),
    )
    assert ["--change NAME=NUMBER" in text for text in texts] == [True, False, False]
    assert ["| temperature | 0.2 | 0.1 | 0.8 |" in text for text in texts] == [True, False, False]


def test_secrets_are_taken_out_before_it_is_written(asked: ReviewRequest) -> None:
    """What a row holds of a secret never reaches the file."""
    rows = ({"raw": "token hf_0123456789abcdef"},)
    ask(
        replace(asked, flagged=rows), lambda data: data.replace(b"hf_0123456789abcdef", b"[secret]")
    )
    assert '{"raw": "token [secret]"}' in written(asked)
    assert "hf_0123456789abcdef" not in written(asked)


def test_asking_again_writes_the_same(asked: ReviewRequest) -> None:
    """After a crash the question has not changed, so an answer to it still holds."""
    ask(asked)
    before = written(asked)
    ask(replace(asked, stop=lambda: "a stop"))
    assert written(asked) == before


def test_the_fence_hangs_on_no_order_of_mappings(asked: ReviewRequest) -> None:
    """Read back from the journal, the same question has its fields in another order."""
    one = replace(asked, summary={"a": 1, "b": [{"x": 1, "y": 2.0}]}, flagged=({"p": 1, "q": 2},))
    other = replace(asked, summary={"b": [{"y": 2.0, "x": 1}], "a": 1}, flagged=({"q": 2, "p": 1},))
    assert fence_of(one) == fence_of(other)
    assert fence_of(one) != fence_of(replace(one, summary={"a": 1, "b": [{"x": 2.0, "y": 1}]}))


def test_the_fence_hangs_on_what_it_fences(asked: ReviewRequest) -> None:
    """A row cannot have been written to hold it: with the row it is another."""
    fence = fence_of(asked)
    copied = replace(asked, flagged=({"raw": f"<<END {fence}>>"},))
    assert fence_of(asked) == fence
    assert fence_of(copied) != fence
    assert f"<<END {fence}>>" not in render(copied)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_moves_a_cursor(asked: ReviewRequest, text: str) -> None:
    """Whatever a row says, the page is printable lines."""
    ask(replace(asked, flagged=({"raw": text},), log_tail=text, question=text))
    assert all(c.isprintable() for c in written(asked).replace("\n", ""))
