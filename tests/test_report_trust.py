"""The report's section on what the reviewers are worth."""

import json
from pathlib import Path

import pytest

from agent.canaries import Canaries, with_canaries
from runbook.contract import Decision, ReviewRequest
from runbook.report.trust import trust_section
from runbook.testing import make_review_request
from runbook.workspace import Workspace


def keep_canaries(place: Workspace, review: str, *rows: tuple[str, str, str]) -> Path:
    """A review's record: author, kind and outcome of each."""
    path = place.reviews / review / "canaries.json"
    path.parent.mkdir(parents=True)
    keys = ("author", "kind", "outcome")
    path.write_text(json.dumps({"canaries": [dict(zip(keys, row, strict=True)) for row in rows]}))
    return path


def cells(lines: list[str], first: str) -> list[str]:
    """A table's row by its first cell."""
    (row,) = [line for line in lines if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_without_measurements_there_is_no_section(tmp_path: Path) -> None:
    """A report says nothing of what was not measured."""
    assert trust_section(Workspace(tmp_path)) == []


def test_each_author_has_its_rates(tmp_path: Path) -> None:
    """False approvals of the bad ones, false alarms of the good ones; no answer in neither."""
    place = Workspace(tmp_path)
    keep_canaries(place, "1", ("m", "bad", "false approval"), ("m", "good", "right"))
    keep_canaries(place, "2", ("m", "bad", "right"), ("m", "good", "false alarm"))
    keep_canaries(place, "3", ("m", "bad", "right"), ("", "good", "no answer"))
    keep_canaries(place, "4", ("n", "bad", "right"), ("", "good", "refused"))
    keep_canaries(place, "5", ("m", "bad", "no answer"))
    lines = trust_section(place)
    assert lines[0] == "## Trust in the reviewer"
    assert cells(lines, "m") == ["m", "0.333 (1/3)", "0.500 (1/2)", "1", "0"]
    assert cells(lines, "n") == ["n", "0.000 (0/1)", "-", "0", "0"]
    assert cells(lines, "(nobody answered)")[3:] == ["1", "1"]


def test_it_reads_what_canaries_write(tmp_path: Path) -> None:
    """The two agree on the file: one review of a reviewer that always goes on."""
    given = {"reason": "question", "allowed": ("proceed", "stop"), "question": "May it?"}
    request = make_review_request(tmp_path, **given)

    def ask(asked: ReviewRequest) -> Decision | None:
        return Decision("proceed", f"attempt {asked.attempt}", "m", person=False)

    with_canaries(ask, Canaries())(request)
    lines = trust_section(Workspace(tmp_path))
    assert cells(lines, "m") == ["m", "1.000 (1/1)", "0.000 (0/1)", "0", "0"]


def test_a_kept_bench_is_shown(tmp_path: Path) -> None:
    """With the interval that was computed when it was run."""
    place = Workspace(tmp_path)
    path = place.review_bench / "x" / "bench.json"
    path.parent.mkdir(parents=True)
    total = {
        "right": {"hits": 30, "of": 35, "interval": [0.706, 0.937]},
        "false_approvals": {"hits": 2, "of": 19, "interval": [0, 1]},
        "false_alarms": {"hits": 3, "of": 16, "interval": [0, 1]},
        "no_answer": 0,
        "not_asked": 4,
        "usd": 1.234,
    }
    path.write_text(json.dumps({"reviewer": "openai <b>x", "total": total}))
    row = cells(trust_section(place), "openai")
    assert row[0] == "openai &lt;b>x"
    assert row[1:] == [
        "0.857 (30/35)",
        "0.706 to 0.937",
        "0.105 (2/19)",
        "0.188 (3/16)",
        "0",
        "4",
        "$1.23",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"canaries": [{"author": "m", "kind": "bad", "outcome": "pass"}]}',
    ],
)
def test_what_cannot_be_read_is_told_and_not_counted(tmp_path: Path, text: str) -> None:
    """Neither a torn file nor an outcome that nobody writes is taken for one."""
    place = Workspace(tmp_path)
    keep_canaries(place, "1").write_text(text)
    lines = trust_section(place)
    assert any("`reviews/1/canaries.json` cannot be read" in line for line in lines)
    assert not any(line.startswith("|") for line in lines)


@pytest.mark.parametrize("value", ["1e999", "NaN", '"many"', "null"])
def test_a_bench_with_a_figure_that_is_none_is_told(tmp_path: Path, value: str) -> None:
    """A report is written whatever stands in a file of results."""
    place = Workspace(tmp_path)
    path = place.review_bench / "x" / "bench.json"
    path.parent.mkdir(parents=True)
    rate = '{"hits": 1, "of": 2, "interval": [0, 1]}'
    rates = ", ".join(f'"{name}": {rate}' for name in ("right", "false_approvals", "false_alarms"))
    path.write_text(f'{{"reviewer": "m", "total": {{{rates}, "usd": 1, "no_answer": {value}}}}}')
    (told,) = [line for line in trust_section(place) if "cannot be read" in line]
    assert "results/review_bench/x/bench.json" in told
