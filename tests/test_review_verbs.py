"""Reviews on the command line: read at any time, answered once, and only within bounds."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_session import REVIEWED, Called, call, write_runbook
from test_diagnose import snapshot

from runbook import artifacts, journal, review
from runbook import events as ev
from runbook.errors import ConfigError, NeedsPersonError
from runbook.journal import facts, read_entries
from runbook.plan import Plan
from runbook.projection import Pages
from runbook.schema import load_plan
from runbook.takeover import open_journal
from runbook.verify import Finding, verify
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]
KILLED = """
import os, signal
from pathlib import Path
from runbook.takeover import open_journal
from runbook.workspace import Workspace
with open_journal(Workspace(Path({root!r}))):
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Session:
    """A small runbook in a folder, and the commands a person types."""

    def __init__(self, folder: Path, capfd: Capture, params: dict[str, Any]) -> None:
        self.spec = write_runbook(folder, params)
        self.place = Workspace.at(folder / "ws")
        self.capfd = capfd

    def run(self, *more: str) -> Called:
        return call(self.capfd, "run", self.spec, "--workspace", self.place.root, *more)

    def review(self, *arguments: str) -> Called:
        return call(self.capfd, "review", *arguments, "--workspace", self.place.root)

    def call(self, verb: str, *more: str) -> Called:
        return call(self.capfd, verb, "--workspace", self.place.root, *more)

    def stop(self, reason: str) -> Called:
        return self.call("stop", "--reason", reason)

    def decide(self, action: str, *more: str, review: str = "a-2", reason: str = "why") -> Called:
        options = ("--action", action, "--reason", reason, "--author", "me")
        return self.review("decide", review, *options, *more)

    def facts(self) -> tuple[ev.Event, ...]:
        return facts(read_entries(self.place))

    def doubts(self) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
        found = verify(self.place)
        return found.findings, found.notes


@pytest.fixture
def waiting(tmp_path: Path, capfd: Capture) -> Session:
    """A session whose gate failed, was adjusted, failed again, and waits for a person."""
    session = Session(tmp_path, capfd, REVIEWED)
    assert session.run().code == 3
    return session


def test_a_review_is_listed_shown_and_answered_with_a_retry(waiting: Session) -> None:
    """Two failures ask a person; the retry takes the change, passes, and the session is done."""
    assert [f.changes for f in waiting.facts() if isinstance(f, ev.Adjusted)] == [{"t": 0.6}]

    listed = waiting.review("list")
    assert (listed.code, listed.out) == (0, "")
    assert listed.err.splitlines()[1].split()[:4] == ["a-2", "open", "gate", "failed"]

    shown = waiting.review("show", "a-2")
    assert (shown.code, shown.out) == (0, "")
    assert "# a, attempt 2: fail (gate failed)" in shown.err
    assert "may be answered with: retry, stop, override" in shown.err
    assert "a retry may change: batches (1 to 4), t (0.1 to 1)" in shown.err
    command = f"runbook review decide a-2 --workspace {waiting.place.root}"
    assert shown.err.endswith(f"  {command} --action ACTION --reason REASON\n")

    decided = waiting.decide("retry", "--change", "t=0.3", "--change", "batches=3.0")
    assert decided.code == 0
    assert f"runbook run {waiting.spec} --workspace {waiting.place.root}" in decided.err

    assert waiting.run().code == 0
    starts = [f for f in waiting.facts() if isinstance(f, ev.StepStarted)]
    third = next(start for start in starts if start.attempt == 3)
    assert (third.params["t"], third.params["batches"]) == (0.3, 3)
    assert isinstance(third.params["batches"], int)
    assert waiting.review("list").err.splitlines()[1].split()[:4] == ["a-2", "retry", "by", "me"]
    told = waiting.review("show", "a-2").err
    answer = r"retry by me \(a person\), 2\S+ \S+ UTC: why\n    batches = 3\n    t = 0.3\n"
    assert re.search(answer, told)
    assert "  what followed: attempt 3 passed\n" in told


def test_a_stop_ends_the_session_and_an_override_may_follow(waiting: Session) -> None:
    """Stopped stays stopped with 3; overridden on record, the run goes on and ends with 6."""
    assert waiting.decide("stop").code == 0
    assert waiting.run().code == 3
    assert waiting.run().code == 3

    assert waiting.decide("override", reason="a false alarm").code == 0
    ended = waiting.run()
    assert ended.code == 6
    assert "a false alarm" in ended.err
    assert waiting.run().code == 6


@pytest.mark.parametrize("action", ["stop", "retry", "override"])
def test_the_pages_tell_of_a_decision_at_once(waiting: Session, action: str) -> None:
    """Nothing may run after it; each file is vouched for, then and by the run that follows."""
    (page,) = waiting.place.reviews.glob("*/report.md")
    assert page.read_text("utf-8").startswith("# Review a-2: open\n")

    assert waiting.decide(action, reason="seen by eye").code == 0

    told, report = page.read_text("utf-8"), waiting.place.report.read_text("utf-8")
    assert told.startswith(f"# Review a-2: {action}; ")
    assert "> seen by eye" in told
    assert f"decided since: {action} (exit 3)" in report.split("\n")[0]
    assert f"{action} by me" in report
    assert waiting.doubts() == ((), ())
    waiting.run()
    assert waiting.doubts() == ((), ())


def test_the_pages_tell_of_a_persons_stop_at_once(waiting: Session) -> None:
    """No executor is there to write them; what the stop does not write stays vouched for."""
    (manifest,) = waiting.place.artifacts.glob("session_manifest_*.json")
    before = manifest.read_bytes()

    assert waiting.stop("enough").code == 0

    report = waiting.place.report.read_text("utf-8")
    told = (
        "It had stopped already when a person asked for it: enough. Only a person goes on with it."
    )
    assert told in report
    # Why it waits, and how that is answered, stay what is read first.
    assert report.startswith("# small: stopped: a review waits for a person's decision (exit 3)\n")
    assert "runbook review decide a-2 --action" in report
    assert manifest.read_bytes() == before
    assert waiting.doubts() == ((), ())
    assert waiting.call("resume").code == 3
    assert "a person asked" not in waiting.place.report.read_text("utf-8")
    assert waiting.doubts() == ((), ())


def test_what_a_decision_does_not_write_stays_vouched_for(waiting: Session) -> None:
    """The manifest is the executor's as before; it and the pages are missed when changed."""
    (manifest,) = waiting.place.artifacts.glob("session_manifest_*.json")
    before = manifest.read_bytes()
    waiting.decide("stop")
    assert manifest.read_bytes() == before

    (page,) = waiting.place.reviews.glob("*/report.md")
    for path in (manifest, page, waiting.place.report):
        path.write_bytes(path.read_bytes() + b" ")
    changed = {finding.where for finding in verify(waiting.place).findings}
    assert {waiting.place.root / where for where in changed} == {
        manifest,
        page,
        waiting.place.report,
    }


def test_after_a_writer_that_was_killed_the_pages_are_not_vouched_for(waiting: Session) -> None:
    """Nobody knows what it had shown, and the note that says so stays."""
    killed = [sys.executable, "-c", KILLED.format(root=str(waiting.place.root))]
    assert subprocess.run(killed, check=False, timeout=60).returncode == -signal.SIGKILL

    assert waiting.decide("stop").code == 0

    found = verify(waiting.place)
    assert found.findings == ()
    assert "report.md and the session manifest are written anew by a resume" in found.notes


@pytest.mark.parametrize("failing", [0, 1])
def test_of_pages_half_renewed_none_is_taken_for_damage(
    waiting: Session, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """One that could not be written is told of, and those that were are held by what they are."""
    write = artifacts.write_bytes
    pages = [waiting.place.report, next(waiting.place.reviews.glob("*/report.md"))]
    lost, written = pages[failing], pages[1 - failing]

    def half(path: Path, data: bytes) -> str:
        if path == lost:
            raise NeedsPersonError("no space left", where=str(path))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_bytes", half)
        decided = waiting.decide("retry")
        stopped = waiting.stop("enough")

    for called in (decided, stopped):
        assert called.code == 0
        assert "pages are not all renewed: no space left" in called.err
    assert waiting.doubts() == ((), ())
    written.write_bytes(written.read_bytes() + b" ")
    assert [waiting.place.root / f.where for f in waiting.doubts()[0]] == [written]


def test_a_stop_stands_whatever_its_page_runs_into(
    waiting: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the report's own code is told, and the stop is on record."""

    def broken(*_: object) -> str:
        raise ValueError("a fault")

    monkeypatch.setattr("runbook.projection.render_report", broken)
    stopped = waiting.stop("enough")
    assert stopped.code == 0
    assert "pages are not all renewed: ValueError('a fault')" in stopped.err
    assert "the stop is on record" in stopped.err


def test_a_disk_too_full_for_the_pages_takes_nothing_from_a_decision_or_a_stop(
    waiting: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is on record; the next run writes them."""

    def full(*_: object) -> None:
        raise NeedsPersonError("the volume is full")

    with monkeypatch.context() as patch:
        patch.setattr(Pages, "renew", full)
        assert waiting.decide("stop").code == 0
        assert waiting.stop("enough").code == 0

    assert waiting.review("list", "--json").lines[0]["open"] is False
    last = waiting.facts()[-1]
    assert isinstance(last, ev.SessionStopped)
    assert last.reason == "stop requested"
    waiting.call("resume")
    (page,) = waiting.place.reviews.glob("*/report.md")
    assert page.read_text("utf-8").startswith("# Review a-2: stop; ")


def test_a_stop_leaves_an_override_open_and_nothing_else(waiting: Session) -> None:
    """What is shown and what is refused agree, and the command can be pasted."""
    assert "## How to answer" in waiting.review("show", "a-2").err
    waiting.decide("stop", reason="enough")

    shown = waiting.review("show", "a-2").err
    assert shown.startswith("# a, attempt 2: fail (gate failed)")
    assert "## How to answer" not in shown
    assert "a retry may change" not in shown
    assert "may be answered with" not in shown
    command = "runbook review decide a-2 --action override --reason REASON"
    assert f"\nstill open to a person: override\n  {command} --workspace" in shown

    told = waiting.decide("retry").err
    assert "error: review a-2: it is decided already: stop by me: enough\n" in told
    assert f"fix: only an override is still open, to a person: {command} --workspace" in told
    (line,) = [part.strip() for part in shown.splitlines() if part.strip().startswith(command)]
    words = ["a false alarm" if word == "REASON" else word for word in shlex.split(line)]
    assert call(waiting.capfd, *words[1:]).code == 0

    shown = waiting.review("show", "a-2").err
    assert "still open" not in shown
    assert "'runbook review list'" in waiting.decide("override").err


def test_a_superseded_stop_leaves_nothing_open(waiting: Session) -> None:
    """A changed plan had it judged again, so its own review is the one to answer."""
    waiting.decide("stop")
    spec = waiting.spec.with_name("a.yaml")
    spec.write_text(spec.read_text().replace('"at_least": 0.5', '"at_least": 0.4'))
    assert waiting.run("--accept-changes", "too strict").code == 3

    assert "still open to a person" not in waiting.review("show", "a-2").err
    assert "'runbook review list'" in waiting.decide("override").err
    assert "may be answered with" in waiting.review("show", "a-2-2").err


def test_reviews_as_json_are_one_object_each(waiting: Session) -> None:
    """A program reads what may be answered, the ranges, the question and the decisions."""
    (listed,) = waiting.review("list", "--json").lines
    assert (listed["review_id"], listed["open"], listed["step"]) == ("a-2", True, "a")
    assert listed["allowed"] == ["retry", "stop", "needs_human", "override"]

    (shown,) = waiting.review("show", "a-2", "--json").lines
    assert shown["adjustable"]["t"] == {"min": 0.1, "max": 1.0}
    assert shown["request"].startswith("# a, attempt 2")

    (decided,) = waiting.decide("stop", "--json").lines
    assert decided["open"] is False
    assert [(d["action"], d["author"]) for d in decided["decisions"]] == [("stop", "me")]


def test_the_newest_review_is_listed_last(tmp_path: Path, capfd: Capture) -> None:
    """A retry that fails again opens the closing review, below the first."""
    session = Session(tmp_path, capfd, {**REVIEWED, "metrics": {"score": 0.1}})
    session.run()
    session.decide("retry")
    session.run()

    ids = [r["review_id"] for r in session.review("list", "--json").lines]
    assert ids == ["a-2", "a-3"]
    assert "may be answered with: stop, override" in session.review("show", "a-3").err


@pytest.mark.parametrize(
    ("action", "change", "said"),
    [
        ("proceed", "", "allowed: retry, stop, needs_human, override"),
        ("retry", "t=1.5", "must lie between 0.1 and 1.0, found 1.5"),
        ("retry", "metrics=1", "adjustable: t, batches"),
        ("retry", "batches=2.5", "is a whole number, found 2.5"),
        ("retry", "t=nan", "the number is finite"),
        ("retry", "t=-inf", "the number is finite"),
        ("retry", "t=1e999", "the number is finite"),
        ("retry", "t=cool", "PARAM=NUMBER"),
        ("retry", "=1", "PARAM=NUMBER"),
        ("stop", "t=0.3", "'stop' takes no changes"),
    ],
)
def test_a_decision_that_cannot_stand_is_not_recorded(
    waiting: Session, action: str, change: str, said: str
) -> None:
    """The person is told what would be allowed; exit 2, and not one byte is written."""
    before = snapshot(waiting.place.root)

    told = waiting.decide(action, *(["--change", change] if change else []))

    assert (told.code, told.out) == (2, "")
    assert said in told.err
    assert snapshot(waiting.place.root) == before


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (" ", "a decision needs a reason"),
        ("REASON", "REASON stands in the command for a person's own words"),
        (" TEXT ", "TEXT stands in the command for a person's own words"),
    ],
)
@pytest.mark.parametrize("action", ["override", "retry", "stop"])
def test_a_decision_needs_a_reason(waiting: Session, action: str, reason: str, said: str) -> None:
    """Who decides says why; nothing is recorded without, or with the word of the template."""
    before = snapshot(waiting.place.root)

    told = waiting.decide(action, reason=reason)

    assert told.code == 2
    assert f"error: --reason: {said}\n" in told.err
    assert snapshot(waiting.place.root) == before


def test_a_reason_may_hold_the_words_that_stand_for_one(waiting: Session) -> None:
    """Only the bare word is no reason."""
    assert waiting.decide("stop", reason="the REASON is in the TEXT").code == 0


def test_an_unknown_review_is_refused_with_those_there_are(waiting: Session) -> None:
    """A slip in the name is answered with the names."""
    told = waiting.decide("retry", review="a-1")

    assert told.code == 2
    assert "there is no review 'a-1'\n  fix: there are: a-2" in told.err


def test_a_parameter_changed_twice_is_refused(waiting: Session) -> None:
    """Of two values nobody knows which was meant."""
    told = waiting.decide("retry", "--change", "t=0.3", "--change", "t=0.4")

    assert told.code == 2
    assert "'t' is changed twice" in told.err


@pytest.mark.parametrize("goes_on_first", [True, False])
def test_a_review_is_decided_once(waiting: Session, goes_on_first: bool) -> None:
    """A second answer is refused with the first, also when that was acted on long ago."""
    waiting.decide("retry")
    if goes_on_first:
        waiting.run()
    before = snapshot(waiting.place.root)

    told = waiting.decide("stop")

    assert told.code == 2
    assert "decided already: retry by me: why" in told.err
    assert snapshot(waiting.place.root) == before


def test_the_overrides_of_the_start_hold_for_the_decision(tmp_path: Path, capfd: Capture) -> None:
    """A person need not repeat what the session was started with."""
    session = Session(tmp_path, capfd, REVIEWED)
    session.run("--set", "a.t=0.9")

    decided = session.decide("retry")

    assert decided.code == 0
    assert "--set a.t=0.9" in decided.err
    assert session.run("--set", "a.t=0.9").code == 0


def test_a_runbook_that_is_gone_is_named_and_can_be_given(waiting: Session) -> None:
    """The decision is refused while the runbook is not found, and stands once it is."""
    moved = waiting.spec.rename(waiting.spec.with_name("moved.yaml"))

    gone = waiting.decide("retry")
    assert gone.code == 2
    assert f"{waiting.spec}:1:1: {waiting.spec} does not exist" in gone.err

    assert waiting.decide("retry", "--spec", str(moved)).code == 0


def test_a_runbook_that_changed_is_refused_with_the_field(waiting: Session) -> None:
    """A decision about one plan does not count for another."""
    spec = waiting.spec.with_name("a.yaml")
    spec.write_text(spec.read_text().replace('"at_least": 0.5', '"at_least": 0.4'))
    before = snapshot(waiting.place.root)

    told = waiting.decide("retry")

    assert told.code == 2
    assert "the runbook changed since this session began" in told.err
    assert "at_least: 0.5 -> 0.4" in told.err
    assert snapshot(waiting.place.root) == before


def test_of_two_decisions_made_at_once_the_first_stands(
    waiting: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before the journal was opened is judged again with it open."""
    plan = load_plan(waiting.spec)
    known = read_entries(waiting.place)
    waiting.decide("stop")
    monkeypatch.setattr(review, "read_entries", lambda _: known)
    word = ev.ReviewDecided("a-2", "retry", {}, "why", "you", person=True)

    with pytest.raises(ConfigError, match=r"^review a-2: it is decided already: stop\n"):
        review.record_decision(plan, waiting.place, word)

    assert [f.action for f in waiting.facts() if isinstance(f, ev.ReviewDecided)] == ["stop"]


@pytest.mark.parametrize("verb", ["decide", "clear"])
def test_the_journal_is_read_once_before_it_is_opened(
    verb: str, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is passed on; what follows is told of the lines that were there at the end."""
    session = Session(tmp_path, capfd, REVIEWED)
    if verb == "clear":
        gated = json.loads((tmp_path / "a.yaml").read_text("utf-8"))
        gated["gate"]["criteria"][0]["kind"] = "sentinel"
        (tmp_path / "a.yaml").write_text(json.dumps(gated))
    session.run()
    real, reads = journal.read_journal, list[Workspace]()

    def counted(place: Workspace) -> journal.Reading:
        reads.append(place)
        return real(place)

    monkeypatch.setattr(journal, "read_journal", counted)

    if verb == "decide":
        told = session.decide("retry", "--json")
    else:
        options = ("--reason", "why", "--json", "--workspace", session.place.root)
        told = call(capfd, "sentinel", "clear", *options)

    assert told.code == 0, told.err
    assert told.lines[-1]["open"] is False
    assert len(reads) == 1


def test_a_decision_made_since_the_journal_was_read_stands(
    waiting: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is held against the journal as it stands once it is open."""
    word = ev.ReviewDecided("a-2", "stop", {}, "no use", "another", person=True)

    def late(*arguments: Any) -> Plan:
        plan = load_plan(*arguments)
        review.record_decision(plan, waiting.place, word)
        return plan

    monkeypatch.setattr("runbook.schema.load_plan", late)

    told = waiting.decide("retry")

    assert told.code == 2
    assert "error: review a-2: it is decided already: stop\n" in told.err
    assert [f.author for f in waiting.facts() if isinstance(f, ev.ReviewDecided)] == ["another"]


def test_a_reviewers_words_forge_no_line_of_an_error(waiting: Session) -> None:
    """A reason of two lines stands on one, and what moves a cursor is spelled out."""
    words = "no\n  fix: run 'rm -r ws'\x1b[2J"
    word = ev.ReviewDecided("a-2", "stop", {}, words, "model\n  fix: x", person=False)
    with open_journal(waiting.place) as journal:
        journal.append(word.to_body())

    told = waiting.decide("retry").err

    fixes = [line for line in told.splitlines() if line.lstrip().startswith("fix:")]
    assert len(fixes) == 1
    assert "only an override" in fixes[0]
    assert "no fix: run 'rm -r ws'\\x1b[2J" in told


def test_nobody_decides_while_an_executor_runs(waiting: Session) -> None:
    """The journal has one writer: exit 7."""
    with open_journal(waiting.place):
        assert waiting.decide("retry").code == 7


@pytest.mark.parametrize("verb", ["show", "decide"])
def test_a_workspace_without_a_session_has_no_review(
    verb: str, tmp_path: Path, capfd: Capture
) -> None:
    """The error says so, and the folder is not made."""
    place = tmp_path / "none"
    options = ["--action", "stop", "--reason", "why"] if verb == "decide" else []

    told = call(capfd, "review", verb, "a-1", *options, "--workspace", place)

    assert told.code == 2
    assert "none was asked for yet" in told.err
    assert not place.exists()


def test_a_question_is_shown_without_what_moves_a_cursor(waiting: Session) -> None:
    """The file is data: an escape sequence in it is spelled out, and a missing file is told."""
    (request,) = waiting.place.reviews.glob("*/request.md")
    request.write_text("red \x1b[31m\nnext")
    assert waiting.review("show", "a-2").err.startswith("red \\x1b[31m\nnext\n")

    request.unlink()
    assert f"{request} is not there" in waiting.review("show", "a-2").err


def left_open(session: Session) -> None:
    """As a model leaves it that wants a person to decide."""
    word = ev.ReviewDecided(
        "a-2",
        "needs_human",
        {},
        "I cannot tell",
        "model-x",
        person=False,
        concerns=("few rows",),
        action_items=("read them",),
        confidence=0.3,
    )
    sent = ev.RequestSent("a-2", "key", 1, 0.25)
    settled = ev.RequestSettled("a-2", "key", 1, 0.2, 900, 100)
    with open_journal(session.place) as journal:
        for fact in (sent, settled, word):
            journal.append(fact.to_body())


def test_what_a_model_left_open_is_shown_and_a_person_decides_it(waiting: Session) -> None:
    """Its concerns, items, confidence and cost stand there; the review waits as before."""
    left_open(waiting)

    (listed,) = waiting.review("list", "--json").lines
    assert (listed["open"], listed["state"]) == (True, "open: model-x wants a person to decide")
    assert listed["usd"] == pytest.approx(0.2)
    row = waiting.review("list").err.splitlines()[1]
    assert "model-x (a model)" in row
    assert "$0.20 (1 request, 1,000 tokens)" in row
    shown = waiting.review("show", "a-2").err
    assert "needs_human by model-x (a model), 2" in shown
    assert "    confidence: 0.300\n    concern: few rows\n    to do: read them\n" in shown
    assert "the verdict was fail" in shown
    assert "may be answered with: retry, stop, override" in shown

    again = waiting.decide("needs_human").err
    assert "a-2: it is decided already: needs_human by model-x: I cannot tell\n" in again
    assert "fix: it may be answered with: retry, stop, override" in again
    assert waiting.decide("retry", "--change", "t=0.3").code == 0
    assert waiting.run().code == 0
    authors = [d["author"] for d in waiting.review("list", "--json").lines[0]["decisions"]]
    assert authors == ["model-x", "me"]


def test_an_override_keeps_the_original_verdict(waiting: Session) -> None:
    """Author, time, reason and what was judged are shown after the session has ended with 6."""
    waiting.decide("override", reason="a false alarm")
    assert waiting.run().code == 6

    shown = waiting.review("show", "a-2").err
    assert "the verdict was fail" in shown
    assert re.search(r"override by me \(a person\), 2\S+ \S+ UTC: a false alarm", shown)
    assert "what followed: the gate was passed by on a person's word" in shown
    assert waiting.review("list", "--json").lines[0]["verdict"] == "fail"
