"""Diagnosing a session: its cause, what shows it, and fixes whose commands can be pasted."""

import json
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer
from cli_session import REVIEWED, Called, call, write_runbook
from test_report import HOSTILE, entries_of, judged, ran, result, started

from runbook import events as ev
from runbook.cli import app
from runbook.cli.diagnose_verb import examine
from runbook.contract import Criterion, Gate, Json, Range, Verdict
from runbook.control import Heartbeat
from runbook.errors import PhaseError
from runbook.plan import PlannedStep
from runbook.report.diagnosis import Diagnosis, diagnose, render
from runbook.report.evidence import Traces
from runbook.report.review_folder import Folder
from runbook.report.session import SessionView, Unanswered
from runbook.report.status import Sight
from runbook.report.view import build_view
from runbook.state import ADVISORY, ALLOWED
from runbook.takeover import open_journal
from runbook.testing import make_step
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]
GATE = Gate((Criterion("m", "statistic", at_least=0.5),))
ROOT = Path("/my disk/it's && here")
LIMITS = {"wall_clock_s": 3600.0, "usd": 10.0, "usd_per_hour": 3.5, "review_usd": 1.0}
STOPS = {
    "error": 1,
    "budget": 4,
    "rental": 4,
    "stop requested": 3,
    "paused": 75,
    "no progress": 1,
    "missing manifest": 3,
    "changed input": 3,
    "dry": 5,
    "of a later version": 3,
}
"""Reasons that rest on no review, with their exit codes."""
SILENT = Sight(
    alive=True, who="pid 7 is at work", beat=Heartbeat(7, "2026-01-01T00:00:00+00:00", {}, ())
)


def stopped(reason: str, code: int, *facts: ev.Event, detail: str = "a: why") -> SessionView:
    begun = replace(started(make_gated(), overrides=("a.rows=2",)), limits=LIMITS)
    spent = ev.TimeLeased(3600.0, 0.0)
    return build_view(entries_of(begun, *facts, spent, ev.SessionStopped(reason, code, detail)))


def make_gated() -> PlannedStep:
    return make_step("a", gate=GATE, adjustable={"t": Range(0.1, 1.0)})


def failing(reason: str, allowed: tuple[str, ...] = ()) -> tuple[ev.Event, ...]:
    """A verdict that does not let the session go on, and the review about it."""
    low = result("m", Verdict.FAIL, value=0.1, threshold=">= 0.5", reason="too low")
    asked = ev.ReviewRequested("a-1", "a", 1, reason, "reviews/x", allowed)
    return (*ran("a"), judged("a", low, verdict="fail"), asked)


def reviewed(reason: str, *more: ev.Event, allowed: tuple[str, ...] = ()) -> SessionView:
    """Stopped for a review, or by one."""
    waits = not more and reason not in ADVISORY
    code = 5 if reason == "sentinel" else 3
    return stopped("review" if waits else reason, code, *failing(reason, allowed), *more)


def found(view: SessionView, **traces: Any) -> Diagnosis:
    return diagnose(view, ROOT, Traces(**traces))


def commands(diagnosis: Diagnosis) -> list[list[str]]:
    """Each single command of the fixes, as a shell would split it."""
    single = []
    for fix in diagnosis.fixes:
        words = shlex.split(fix.command)
        while "&&" in words:
            single.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        single.append(words)
    return single


def parse(words: list[str]) -> dict[str, Any]:
    """The arguments as the command line reads them. Raises UsageError where it does not."""
    assert words[0] == "runbook"
    node: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(node, "commands"):
        node, rest = node.commands[rest[0]], rest[1:]
    with node.make_context(node.name, list(rest)) as context:
        return dict(context.params)


def every_case() -> dict[str, Diagnosis]:
    """One diagnosis for each way a session does not go on."""
    cases = {reason: found(stopped(reason, code)) for reason, code in STOPS.items()}
    for reason in ALLOWED:
        word = ev.ReviewDecided("a-1", "stop", {}, "no use", "model-x", person=False)
        unsure = replace(word, action="needs_human")
        cases[f"{reason}, waiting"] = found(reviewed(reason))
        cases[f"{reason}, unsure"] = found(
            stopped("review", 3, *failing(reason), unsure), folder=Folder("401: bad key")
        )
        cases[f"{reason}, stopped"] = found(reviewed(reason, word))
        for remedy in ("ask", "change", "decide", ""):
            cases[f"{reason}, no answer, {remedy}"] = found(unanswered(reason, remedy))
        cases[f"{reason}, decided"] = found(build_view(entries_of(*decided_since(reason))))
    cases["storage"] = found(stopped("error", 3, detail="/d: no space left while writing (0 free)"))
    cases["damage"] = found(stopped("error", 3, detail="/d: a line is damaged"))
    cases["bad runbook"] = found(stopped("error", 2, detail="/r.yaml:1:1: no"))
    running = build_view(entries_of(started(make_gated()), *ran("a")))
    for name, sight in {
        "gone": Sight(alive=False, who="no executor is at work"),
        "elsewhere": Sight(alive=None),
        "silent": replace(SILENT, now=1_900_000_000.0),
    }.items():
        cases[name] = found(running, sight=sight)
    return cases


def unanswered(reason: str, remedy: str, usd: float | None = None) -> SessionView:
    """Waiting for a person, since the reviewer gave no answer."""
    why = Unanswered("the API key is not accepted (401)", remedy, usd)
    return replace(stopped("review", 3, *failing(reason)), unanswered=why)


def decided_since(reason: str) -> tuple[ev.Event, ...]:
    """Stopped for a review that a person decided since."""
    word = ev.ReviewDecided("a-1", "retry", {}, "again", "Ann", person=True)
    return (
        started(make_gated()),
        *failing(reason),
        ev.SessionStopped("review", 3, "a: why"),
        word,
    )


CASES = every_case()


@pytest.mark.parametrize("case", CASES)
def test_every_command_is_one_that_the_command_line_takes(case: str) -> None:
    """Pasted as it stands, each is parsed, with the workspace in one piece whatever its name."""
    diagnosis = CASES[case]

    assert 1 <= len(diagnosis.fixes) <= 3
    for words in commands(diagnosis):
        told = parse(words)
        if "workspace" in told:
            assert str(told["workspace"]) in {str(ROOT), "NEW_WORKSPACE"}


@pytest.mark.parametrize("case", CASES)
def test_every_diagnosis_tells_cause_safety_and_cost(case: str) -> None:
    """No part of the answer is empty, and no fix is told twice."""
    diagnosis = CASES[case]
    told = render(diagnosis)

    assert diagnosis.cause
    assert diagnosis.safe
    assert diagnosis.cost
    assert len({fix.command for fix in diagnosis.fixes}) == len(diagnosis.fixes)
    assert all(fix.command in told for fix in diagnosis.fixes)


def test_the_check_refuses_what_the_command_line_does_not_take() -> None:
    """The parser is the real one: a verb or an option that is not there is no command."""
    with pytest.raises(KeyError):
        parse(["runbook", "mend"])
    with pytest.raises(Exception, match="No such option"):
        parse(["runbook", "status", "--mend"])


@pytest.mark.parametrize(
    ("case", "first"),
    [
        ("gate failed, waiting", "--action retry --change NAME=NUMBER"),
        ("instrument, waiting", "--action recalibrate"),
        ("question, waiting", "--action proceed"),
        ("underpowered, waiting", "--accept-changes REASON"),
        ("sentinel, waiting", "--accept-changes REASON"),
        ("closing, waiting", "--action override"),
        ("smoke, waiting", "--action retry"),
        ("budget", "--set budget.wall_clock=90m"),
        ("stop requested", "runbook resume"),
        ("missing manifest", "runbook verify"),
        ("error", "--accept-changes REASON"),
        ("dry", "runbook gate dry --spec"),
        ("elsewhere", "--takeover=if-owner-gone"),
        ("silent", "runbook logs -f"),
        ("gate failed, decided", "runbook run"),
    ],
)
def test_the_likeliest_fix_comes_first(case: str, first: str) -> None:
    """What cures this very cause stands above what is always possible."""
    assert first in CASES[case].fixes[0].command


def test_only_what_this_review_may_answer_is_offered() -> None:
    """A gate without instruments to certify offers no recalibration."""
    view = reviewed("instrument", allowed=("stop", "needs_human", "override"))
    actions = [parse(c).get("action") for c in commands(found(view)) if c[1] == "review"]

    assert actions == ["override", "stop"]


def test_a_reviewer_without_an_answer_is_part_of_the_cause() -> None:
    """Its error is told, and to have it asked again comes before deciding oneself."""
    folder = Folder("the API key is not accepted (401)", (("as it came", "response-1.json"),))
    diagnosis = found(unanswered("gate failed", "ask"), folder=folder)

    assert "gave no answer (the API key is not accepted (401))" in diagnosis.cause
    assert "asked again" in diagnosis.fixes[0].why
    assert diagnosis.fixes[0].command.startswith("runbook run ")
    assert "response-1.json" in render(diagnosis)


@pytest.mark.parametrize("remedy", ["decide", ""])
def test_a_reviewer_that_would_send_nothing_more_is_not_offered(remedy: str) -> None:
    """What was answered and is stored is not asked for again, so a person's answer comes first."""
    diagnosis = found(unanswered("gate failed", remedy))

    assert "asked" not in " ".join(fix.why for fix in diagnosis.fixes)
    assert commands(diagnosis)[0][:2] == ["runbook", "review"]


def test_a_reviewer_that_its_runbook_keeps_from_asking_needs_a_change() -> None:
    """The command accepts the change, since without that it is refused."""
    fix = found(unanswered("gate failed", "change")).fixes[0]

    assert "Mend the runbook as the error says" in fix.why
    assert "--accept-changes REASON" in fix.command


@pytest.mark.parametrize(("usd", "limit"), [(2.25, "4.5"), (0.9, "")])
def test_what_the_refused_request_would_cost_says_which_limit_is_raised(
    usd: float, limit: str
) -> None:
    """Of $1.00 for the reviews, for two requests; where one fits, money is not what is missing."""
    diagnosis = found(unanswered("gate failed", "decide", usd))

    assert ("Raise budget.review_usd" in diagnosis.fixes[0].why) is bool(limit)
    assert (f"--set budget.review_usd={limit}" in diagnosis.fixes[0].command) is bool(limit)


def test_money_that_does_not_last_for_a_request_is_asked_for_first() -> None:
    """Where the reviews' limit kept the reviewer from being asked, that limit is raised."""
    limits = {**LIMITS, "request_usd": 0.5, "usd": 100.0}
    begun = replace(started(make_gated()), limits=limits)
    sent = ev.RequestSent("a-1", "k", 1, 0.8)
    end = ev.SessionStopped("review", 3, "a: why")
    view = build_view(entries_of(begun, *failing("gate failed"), sent, end))

    fix = found(view, folder=Folder("no money")).fixes[0]
    assert "--set budget.review_usd=1.8" in fix.command
    assert fix.why == ("Raise budget.review_usd from $1.00 to $1.80, and have the reviewer asked")


def test_a_raised_limit_is_named_with_both_amounts() -> None:
    """What the words promise is what the command sets."""
    limits = {**LIMITS, "wall_clock_s": 3600.0}
    end = ev.SessionStopped("budget", 3, "wall clock: 3600 s of 3600 s spent")
    begun = replace(started(make_gated()), limits=limits)
    fix = found(build_view(entries_of(begun, ev.TimeLeased(3600.0, 0.0), end))).fixes[0]

    assert "--set budget.wall_clock=90m" in fix.command
    assert "budget.wall_clock from 1 h 00 min to 1 h 30 min" in fix.why


def test_the_verdict_and_the_review_are_the_evidence() -> None:
    """The failed criterion with value and threshold, and what was decided by whom."""
    word = ev.ReviewDecided("a-1", "stop", {}, "no use", "model-x", person=False)
    told = render(found(reviewed("gate failed", word)))

    assert ">= 0.5" in told
    assert "stop by model-x (a model): no use" in told


def test_a_reason_of_two_lines_is_told_on_one() -> None:
    """No escape stands in for a line's end, in the reason as in the reviewer's error."""
    word = ev.ReviewDecided("a-1", "stop", {}, "no use\n at all", "command x", person=False)
    told = render(found(reviewed("gate failed", word)))
    error = render(found(unanswered("gate failed", "ask"), folder=Folder("401\nand 402")))

    assert "stop by command x (a program): no use at all" in told
    assert "could be used: 401 and 402" in error
    assert r"\n" not in told + error


@pytest.mark.parametrize("action", ["retry", "override", "stop"])
@pytest.mark.parametrize("first", ["", "stop"])
def test_a_decision_since_the_stop_keeps_verdict_and_review(first: str, action: str) -> None:
    """Cause and evidence are of what was decided, also where the session has moved on."""
    stop = ev.ReviewDecided("a-1", "stop", {}, "no use", "model-x", person=False)
    word = ev.ReviewDecided("a-1", action, {}, "I know", "Ann", person=True)
    facts = (*failing("gate failed"), *([stop] if first else []))
    end = ev.SessionStopped("gate failed" if first else "review", 3, "a: low (awaits a person)")
    begun = started(make_gated(), make_step("b"))
    diagnosis = found(build_view(entries_of(begun, *facts, end, word)))
    told = render(diagnosis)

    cause = "It had stopped for review a-1, asked because the gate failed; a person decided since."
    assert diagnosis.cause == cause
    assert ">= 0.5" in told
    assert "a, attempt 1, was judged fail" in told
    assert f"{action} by Ann (a person): I know" in told
    assert "/my disk/it's && here/reviews/x/report.md" in told
    assert "awaits" not in told
    assert "::" not in told


def test_a_rest_that_is_too_small_is_not_called_spent() -> None:
    """Headline and cause say the same of a budget."""
    begun = replace(started(make_gated()), limits={"wall_clock_s": 6.0})
    end = ev.SessionStopped("budget", 4, "wall clock: 5 s of 6 s spent")
    diagnosis = found(build_view(entries_of(begun, ev.TimeLeased(5.3, 0.0), end)))

    assert "the budget's rest does not last for the next batch" in diagnosis.headline
    assert diagnosis.cause.startswith("the budget's rest does not last for the next batch: ")


def test_an_error_shows_the_end_of_its_traceback_and_of_its_log() -> None:
    """Both, the last lines of each."""
    tail = "\n".join(f"  line {n}" for n in range(50))
    failed = ev.StepFailed("a", 1, "a: broken\n  fix: mend it", tail, PhaseError.code)
    begun, _ = ran("a")
    view = stopped("error", 1, begun, failed)
    told = render(found(view, log="\n".join(f"said {n}" for n in range(50))))

    assert "    line 49" in told
    assert "line 41" not in told
    assert "  said 49" in told
    assert "said 41" not in told


def test_a_log_that_ends_with_the_traceback_is_not_told_twice() -> None:
    """The same lines once are enough."""
    begun, _ = ran("a")
    failed = ev.StepFailed("a", 1, "a: broken", "Traceback\n  x = 1\nValueError: odd", 1)
    view = stopped("error", 1, begun, failed)

    assert render(found(view, log="hello\nTraceback\n  x = 1\nValueError: odd")).count("odd") == 1


def test_a_command_keeps_every_blank_of_a_path() -> None:
    """What is shown is what can be pasted."""
    root = Path("/a  b")
    view = stopped("paused", 75)

    assert "--workspace '/a  b'" in render(diagnose(view, root, Traces()))


def test_hostile_text_moves_no_cursor() -> None:
    """What steps, models and files say is shown on lines of its own, spelled out."""
    view = stopped("error", 1, *failing(HOSTILE), detail=HOSTILE)
    diagnosis = diagnose(view, Path(f"/ws/{HOSTILE}"), Traces(Folder(HOSTILE), HOSTILE))

    assert all(c.isprintable() or c == "\n" for c in render(diagnosis))


def test_a_session_at_work_has_nothing_to_mend() -> None:
    """Nor has one that is done."""
    running = build_view(entries_of(started(make_gated()), *ran("a")))

    assert found(running, sight=Sight(alive=True)).fixes == ()
    assert "Nothing is to be mended." in render(found(running, sight=Sight(alive=True)))


class Session:
    """A small real session, and the commands a person types."""

    def __init__(self, folder: Path, capfd: Capture, params: dict[str, Json], **step: Any) -> None:
        self.spec = write_runbook(folder, params, **step)
        self.place = Workspace.at(folder / "ws")
        self._capfd = capfd

    def call(self, *words: str) -> Called:
        return call(self._capfd, *words, "--workspace", self.place.root)

    def run(self, *more: str) -> Called:
        return self.call("run", str(self.spec), *more)

    def diagnosis(self) -> dict[str, Any]:
        (told,) = self.call("diagnose", "--json").lines
        return told

    def paste(self, command: str) -> int:
        """Run what stands between the ``&&``; the last exit code."""
        code = 0
        for words in " ".join(shlex.quote(w) for w in shlex.split(command)).split(" '&&' "):
            code = call(self._capfd, *shlex.split(words)[1:]).code
        return code


@pytest.mark.parametrize(
    ("params", "more", "code", "reason"),
    [
        ({"trouble": {"kind": "pause", "at": 1}, "metrics": {"score": 0.9}}, [], 75, "paused"),
        ({"metrics": {"score": 0.9}}, ["--set", "budget.wall_clock=1s"], 4, "budget"),
        (REVIEWED, [], 3, "review"),
    ],
)
def test_the_first_fix_pasted_goes_on_to_the_end(
    tmp_path: Path,
    capfd: Capture,
    params: dict[str, Json],
    more: list[str],
    code: int,
    reason: str,
) -> None:
    """Nothing but the words in capitals is filled in, and the session is done."""
    slow = {"sleep": 0.4, "batches": 4} if reason == "budget" else {}
    session = Session(tmp_path, capfd, {**params, **slow})
    assert session.run(*more).code == code
    told = session.diagnosis()
    assert (told["state"], told["reason"]) == ("stopped", reason)

    command = told["fixes"][0]["command"].replace("NAME=NUMBER", "t=0.3")
    command = command.replace("REASON", "cooler")

    assert session.paste(command) == 0


def test_an_error_can_be_gone_on_with_as_it_is(tmp_path: Path, capfd: Capture) -> None:
    """Traceback and log are there, and the second fix is the plain command."""
    params = {"trouble": {"kind": "raise", "at": 1}, "metrics": {"score": 0.9}}
    session = Session(tmp_path, capfd, params)
    assert session.run().code == 1

    shown = session.call("diagnose")
    assert (shown.code, shown.out) == (0, "")
    assert "the fake step was told to fail" in shown.err
    assert str(session.place.log("a")) in shown.err
    assert session.paste(session.diagnosis()["fixes"][1]["command"]) == 0


def test_a_persons_stop_hides_no_cause(tmp_path: Path, capfd: Capture) -> None:
    """Of a session that waited for a decision already, both are told, and the decision is asked."""
    session = Session(tmp_path, capfd, REVIEWED)
    session.run()
    session.call("stop", "--reason", "dinner")
    told = session.diagnosis()

    assert told["reason"] == "review"
    assert told["cause"].startswith("a review waits for a person's decision: a, attempt 2: ")
    assert told["cause"].endswith(" It had stopped already when a person asked for it: dinner.")
    assert any("review decide" in fix["command"] for fix in told["fixes"])


def test_an_executor_that_is_gone_without_a_stop_is_told() -> None:
    """No line of the journal says that it ended, and the headline does not call it running."""
    diagnosis = CASES["gone"]

    assert diagnosis.headline == "test: not at work: its executor is gone"
    assert "ended without a word" in diagnosis.cause
    assert diagnosis.fixes[0].command.startswith("runbook run ")


@pytest.mark.parametrize(("free", "cause"), [(1 << 15, "is full"), (1 << 30, "without a word")])
def test_a_full_volume_is_the_cause_where_no_word_could_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, cause: str
) -> None:
    """What is in the way now is told, and to make room comes first."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(free=free))
    view = build_view(entries_of(started(make_gated()), *ran("a")))

    diagnosis = examine(Workspace(tmp_path), view, Sight(alive=False))

    assert cause in diagnosis.cause
    assert diagnosis.fixes[0].why.startswith("Free space") == ("full" in cause)


def test_a_workspace_without_a_session_is_told(tmp_path: Path, capfd: Capture) -> None:
    """Exit 0, and the folder is not made."""
    place = tmp_path / "none"

    told = call(capfd, "diagnose", "--workspace", place, "--json")

    assert (told.code, told.lines) == (0, [{"workspace": str(place), "state": "none"}])
    assert not place.exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "no HEAD"])
def test_a_damaged_journal_is_diagnosed(tmp_path: Path, capfd: Capture, damage: str) -> None:
    """Where, what lies beside it, and a first fix that, pasted with a copy's place, mends it."""
    folder = tmp_path / "it's"
    folder.mkdir()
    session = Session(folder, capfd, {"metrics": {"score": 0.9}})
    assert session.run().code == 0
    copy, segment = tmp_path / "copy", session.place.segment(1)
    shutil.copytree(session.place.root, copy)
    data = segment.read_bytes()
    if damage == "flipped":
        segment.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    elif damage == "cut":
        segment.write_bytes(data[: len(data) // 2])
    else:
        session.place.head(1).unlink()
    before = snapshot(session.place.root)

    told = session.diagnosis()
    screen = session.call("diagnose").err

    assert told["state"] == "damaged"
    assert snapshot(session.place.root) == before
    where = session.place.head(1) if damage == "no HEAD" else segment
    assert str(where) in told["evidence"][0]["lines"][0]
    assert "The journal is not what was appended to it: " in screen
    assert f"{segment.name}: {segment.stat().st_size} bytes" in screen
    manifests = [line for part in told["evidence"][2:] for line in part["lines"]]
    assert manifests == [str(p.relative_to(copy)) for p in sorted(copy.rglob("manifest.json"))]
    assert len(told["fixes"]) == 3
    away, restore, check = told["fixes"][0]["command"].split(" && ")
    assert session.paste(check) != 0
    (session.place.hidden / "journal.2.jsonl").write_text("of a later time than the copy")
    shutil.copytree(copy / session.place.hidden.name, tmp_path / "COPY" / ".runbook")
    for command in (away, restore):
        subprocess.run(shlex.split(command), cwd=tmp_path, check=True)
    assert session.paste(check) == 0
    assert session.diagnosis()["state"] == "done"


def test_a_diagnosis_changes_nothing(tmp_path: Path, capfd: Capture) -> None:
    """Not one byte of the workspace, also while an executor holds it."""
    session = Session(tmp_path, capfd, REVIEWED)
    session.run()
    with open_journal(session.place):
        before = snapshot(session.place.root)
        assert json.dumps(session.diagnosis())
        assert snapshot(session.place.root) == before


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with the time of its last change and its bytes."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
