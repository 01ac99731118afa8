"""``runbook report``: all reports of a session, or one review's, and not one byte written."""

import json
from pathlib import Path

import pytest
from cli_session import REVIEWED, call, write_runbook
from test_diagnose import snapshot
from test_showing import begin

from runbook import events as ev
from runbook.takeover import open_journal
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path, capfd: Capture) -> Workspace:
    """A session whose gate failed twice, and that waits for a person."""
    spec = write_runbook(tmp_path, REVIEWED)
    found = Workspace.at(tmp_path / "ws")
    assert call(capfd, "run", spec, "--workspace", found.root).code == 3
    return found


def test_every_report_is_listed_with_where_it_lies(place: Workspace, capfd: Capture) -> None:
    """Headline and path of the session's, each step's, each review's with state and cost."""
    told = call(capfd, "report", "--workspace", place.root)

    assert (told.code, told.out) == (0, "")
    lines = told.err.splitlines()
    assert lines[0] == "small: stopped: a review waits for a person's decision (exit 3)"
    assert lines[1].strip() == str(place.report)
    assert "/gate.json" in told.err
    (review,) = [line for line in lines if line.strip().startswith("a-2")]
    assert review.split()[:3] == ["a-2", "open", "nothing"]
    assert review.endswith("/report.md")


def test_programs_read_one_object_a_report(place: Workspace, capfd: Capture) -> None:
    """Each path that is named leads to a file."""
    found = call(capfd, "report", "--json", "--workspace", place.root).lines

    assert [one["kind"] for one in found] == ["session", "step", "review"]
    session, step, review = found
    assert Path(session["path"]).is_file()
    assert (place.root / step["manifest"]).is_file()
    assert Path(review["path"]).is_file()
    assert (review["name"], review["open"], review["usd"]) == ("a-2", True, 0.0)


def test_a_reviews_page_is_printed_as_the_journal_has_it_now(
    place: Workspace, capfd: Capture
) -> None:
    """What is printed tells of a decision, also where the file beside it could not be written."""
    word = ev.ReviewDecided("a-2", "stop", {}, "enough", "Ann", person=True)
    with open_journal(place) as journal:
        journal.append(word.to_body())

    told = call(capfd, "report", "a-2", "--workspace", place.root)

    assert told.err.startswith("# Review a-2: stop; the session was stopped\n")
    assert "> enough" in told.err
    (document,) = call(capfd, "report", "a-2", "--json", "--workspace", place.root).lines
    assert document["report"].strip() == told.err.strip()


def test_nothing_is_written_and_no_lock_is_needed(place: Workspace, capfd: Capture) -> None:
    """It may be asked while an executor is at work, and on a volume that only reads."""
    with open_journal(place):
        before = snapshot(place.root)
        for words in (["report"], ["report", "--json"], ["report", "a-2"], ["review", "list"]):
            assert call(capfd, *words, "--workspace", place.root).code == 0
        assert snapshot(place.root) == before


def test_a_session_whose_executor_is_gone_is_not_told_to_run(
    tmp_path: Path, capfd: Capture
) -> None:
    """The headline is the one that ``status`` has, for people and for programs."""
    left = Workspace.at(tmp_path / "ws")
    left.create()
    with open_journal(left) as journal:
        begin(journal)

    told = call(capfd, "report", "--workspace", left.root).err
    (session, step) = call(capfd, "report", "--json", "--workspace", left.root).lines

    status = call(capfd, "status", "--workspace", left.root).err.splitlines()[0]
    assert status == "small: not at work (its executor is gone); the same command goes on"
    assert told.splitlines()[0] == status
    assert f"small: {session['headline']}" == status
    assert step["verdict"] == "interrupted"
    assert "running" not in told


def test_what_canaries_measured_is_told(place: Workspace, capfd: Capture) -> None:
    """The section on trust stands where there is any."""
    (folder,) = place.reviews.iterdir()
    one = {"author": "model-x", "kind": "bad", "outcome": "false approval"}
    (folder / "canaries.json").write_text(json.dumps({"canaries": [one]}))

    assert "model-x" in call(capfd, "report", "--workspace", place.root).err
    kinds = [d["kind"] for d in call(capfd, "report", "--json", "--workspace", place.root).lines]
    assert kinds[-1] == "trust"


def test_an_unknown_review_is_refused_with_those_there_are(
    place: Workspace, capfd: Capture
) -> None:
    """A slip in the name is answered with the names."""
    told = call(capfd, "report", "a-9", "--workspace", place.root)

    assert told.code == 2
    said = "runbook report: there is no review 'a-9'\n  fix: there are: a-2"
    assert said in told.err


def test_a_workspace_without_a_session_has_no_report(tmp_path: Path, capfd: Capture) -> None:
    """It says so, and the folder is not made."""
    told = call(capfd, "report", "--workspace", tmp_path / "none")

    assert told.code == 0
    assert "no session yet" in told.err
    assert not (tmp_path / "none").exists()
