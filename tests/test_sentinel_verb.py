"""A sentinel stops a session until a person clears it, by a command of its own and on record."""

import json
import shlex
from pathlib import Path

import pytest
from cli_session import REVIEWED, Called, call, write_runbook

from runbook import events as ev
from runbook.journal import facts, read_entries
from runbook.workspace import Workspace

SHOW = ("review", "show", "a-1")
Capture = pytest.CaptureFixture[str]


class Tripped:
    """A session that a sentinel stopped, and the commands a person types."""

    def __init__(self, folder: Path, capfd: Capture) -> None:
        self.spec = write_runbook(folder, {"metrics": {"score": 0.1}})
        gated = json.loads((folder / "a.yaml").read_text("utf-8"))
        gated["gate"]["criteria"][0]["kind"] = "sentinel"
        (folder / "a.yaml").write_text(json.dumps(gated))
        self.place = Workspace.at(folder / "ws")
        self._capfd = capfd

    def call(self, *words: str) -> Called:
        return call(self._capfd, *words, "--workspace", self.place.root)

    def run(self) -> Called:
        return self.call("run", str(self.spec))

    def decided(self) -> list[ev.ReviewDecided]:
        known = facts(read_entries(self.place))
        return [fact for fact in known if isinstance(fact, ev.ReviewDecided)]


@pytest.fixture
def tripped(tmp_path: Path, capfd: Capture) -> Tripped:
    session = Tripped(tmp_path, capfd)
    assert session.run().code == 5
    return session


def test_a_person_clears_it_and_the_session_ends_with_six(tripped: Tripped) -> None:
    """Author and reason are on record, and the exit code tells it from a pass."""
    told = tripped.call("sentinel", "clear", "--reason", "seen by eye", "--author", "me")

    assert told.code == 0, told.err
    (decided,) = tripped.decided()
    assert (decided.review_id, decided.action, decided.person) == ("a-1", "override", True)
    assert (decided.reason, decided.author) == ("seen by eye", "me")
    assert tripped.run().code == 6


@pytest.mark.parametrize("verb", ["run", "diagnose", "review show a-1"])
def test_the_command_is_told_and_can_be_pasted(tripped: Tripped, verb: str) -> None:
    """Wherever a person looks, the line stands as it is to be typed, but for the reason."""
    screen = tripped.run().err if verb == "run" else tripped.call(*verb.split()).err
    lines = [part.strip() for part in screen.splitlines()]
    (line,) = [part for part in lines if part.startswith("runbook sentinel clear")]
    command = shlex.split(line.partition(" && ")[0])
    assert command[:5] == ["runbook", "sentinel", "clear", "--reason", "REASON"]
    assert tripped.call(*command[1:4], "seen by eye").code == 0
    assert tripped.run().code == 6


def test_it_is_not_overridden_as_a_gate_is(tripped: Tripped) -> None:
    """There is one way, and the error names it; nothing is on record."""
    told = tripped.call("review", "decide", "a-1", "--action", "override", "--reason", "why")
    assert told.code == 2
    assert "runbook sentinel clear --reason REASON" in told.err
    assert tripped.decided() == []
    (request,) = tripped.place.reviews.glob("*/request.md")
    assert "runbook sentinel clear --reason" in request.read_text("utf-8")


def test_after_a_stop_it_can_still_be_cleared(tripped: Tripped) -> None:
    """The answer to the review is advice; clearing is another act, and the review names it."""
    decide = ("review", "decide", "a-1", "--reason", "bad base", "--action")
    assert (tripped.call(*decide, "stop").code, tripped.run().code) == (0, 5)
    command = "runbook sentinel clear --reason REASON"
    assert f"still open to a person: override\n  {command}" in tripped.call(*SHOW).err
    assert f"to a person: {command}" in tripped.call(*decide, "stop").err
    assert tripped.call("sentinel", "clear", "--reason", "found harmless").code == 0
    assert tripped.run().code == 6


@pytest.mark.parametrize("reason", ["", " \n", "REASON"])
def test_it_needs_a_reason(tripped: Tripped, reason: str) -> None:
    """Without one, or with the word that stands for it, nothing is recorded."""
    told = tripped.call("sentinel", "clear", "--reason", reason)
    assert (told.code, tripped.decided()) == (2, [])
    assert "--reason: " in told.err


def test_where_none_tripped_there_is_nothing_to_clear(tmp_path: Path, capfd: Capture) -> None:
    """Neither without a session, nor before a gate that failed, nor twice."""
    place = tmp_path / "ws"
    words = ("sentinel", "clear", "--reason", "why", "--workspace", place)
    assert call(capfd, *words).code == 2
    assert not place.exists()

    assert call(capfd, "run", write_runbook(tmp_path, REVIEWED), "--workspace", place).code == 3
    told = call(capfd, *words, "--json")
    assert told.code == 2
    assert told.lines[-1]["error"] == "no sentinel stopped this session"


def test_it_is_cleared_once(tripped: Tripped) -> None:
    """What is on record is not said again."""
    assert tripped.call("sentinel", "clear", "--reason", "first").code == 0
    assert tripped.call("sentinel", "clear", "--reason", "second").code == 2
    assert [decided.reason for decided in tripped.decided()] == ["first"]
