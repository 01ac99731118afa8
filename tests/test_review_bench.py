"""The recorded situations, what is made of them, and the verb that scores a reviewer."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_session import call, write_runbook

from agent.bench import (
    NO_ANSWER,
    NOT_ASKED,
    REQUESTS,
    RIGHT,
    WRONG,
    Answered,
    Count,
    Purse,
    by_topic,
    run_bench,
    tally,
)
from agent.dossier import render
from agent.scripted_server import Says, scripted_server
from agent.situations import APPROVING, Situation, load, load_all, outside
from gates.stats import wilson
from gates.thresholds import judge
from runbook.contract import Decision, Instrument, Metric, Reviewer, ReviewRequest
from runbook.errors import ConfigError, CorruptError
from runbook.testing import LocalAccount

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "specs" / "review_bench"
ALL = load_all(FOLDER)
GOOD = [s for s in ALL if s.known == "good"]
BAD = [s for s in ALL if s.known == "bad"]
Choice = Callable[[ReviewRequest], tuple[str, dict[str, float]]]


def answering(choose: Choice) -> Reviewer:
    """A reviewer by a rule."""

    def ask(request: ReviewRequest) -> Decision | None:
        action, changes = choose(request)
        return Decision(action, "by rule", "rule", person=False, changes=changes)

    return ask


def approving(request: ReviewRequest) -> tuple[str, dict[str, float]]:
    """Says yes to all, and changes nothing."""
    return next(a for a in request.allowed if a in APPROVING), {}


def oracle(request: ReviewRequest) -> tuple[str, dict[str, float]]:
    """Knows the examples; it finds the situation by its raw figures."""
    (found,) = [
        s
        for s in ALL
        if (r := s.make_request(request.workspace, request.path, request.account)) == request
        and r.flagged == request.flagged
    ]
    return found.example.action, dict(found.example.changes)


def score(tmp_path: Path, ask: Reviewer) -> tuple[Answered, ...]:
    return run_bench(ask, ALL, tmp_path, Purse(tmp_path, 0.0))


# --- the situations as they are shipped


def test_there_are_enough_of_each_kind() -> None:
    """At least 24, neither mostly good nor mostly bad, over the topics of the gates' proof."""
    assert len(ALL) >= 24
    assert len(GOOD) >= 10
    assert len(BAD) >= 10
    topics = {s.topic for s in ALL}
    wanted = {"contamination", "data", "instrument", "leak", "sample", "sampling", "statistics"}
    assert topics >= wanted


@pytest.mark.parametrize("situation", ALL, ids=lambda s: s.name)
def test_its_verdicts_are_those_of_the_gates(situation: Situation) -> None:
    """What a situation says of its readings is what the project's gates say of them today."""
    grows = "extend" in situation.request.allowed
    for run in situation.request.attempts:
        metrics = [
            Metric(
                r.metric,
                r.value,
                r.n,
                r.successes,
                r.denominator,
                Instrument(r.instrument),
                note=r.note,
                bound=r.lower_bound,
            )
            for r in run.readings
        ]
        judged = judge([r.criterion for r in run.readings], metrics, final=not grows)
        found = [(c.verdict.value, c.reason, c.thin) for c in judged.criteria]
        assert found == [(r.verdict, r.reason, r.thin) for r in run.readings]
        assert [c.bound for c in judged.criteria] == pytest.approx([r.bound for r in run.readings])
        assert (judged.verdict.value, judged.reasons) == (run.verdict, run.reasons)
    verdicts = {"gate failed": {"fail"}, "question": {"pass"}, "instrument": {"invalid"}}
    allowed = verdicts.get(situation.request.reason, {"fail", "underpowered"})
    assert situation.request.attempts[-1].verdict in allowed


@pytest.mark.parametrize("situation", ALL, ids=lambda s: s.name)
def test_its_dossier_can_be_shown_and_tells_no_answer(tmp_path: Path, situation: Situation) -> None:
    """The whole request renders, and neither name, reasoning nor mistakes stand in it."""
    request = situation.make_request(tmp_path, "reviews/0123", LocalAccount())
    page = render(request, fence="a1b2c3d4e5f6")
    secrets = [situation.name, situation.why[:40], situation.source[:40], "0123"]
    assert [s for s in (*secrets, *(m.name for m in situation.wrong)) if s in page] == []
    for action in request.allowed:
        assert action == "override" or f"`{action}`" in page
    assert all(name in page for name in request.adjustable) or "retry" not in request.allowed


@pytest.mark.parametrize("situation", ALL, ids=lambda s: s.name)
def test_it_can_be_answered_wrongly(tmp_path: Path, situation: Situation) -> None:
    """Each example is right, and each named mistake is an answer within bounds."""
    assert situation.is_right(situation.example.action, situation.example.changes)
    request = situation.make_request(tmp_path, "reviews/x", LocalAccount())
    wrong = [a for a in request.allowed if a != "override" and not situation.is_right(a, {})]
    assert wrong
    assert outside(request, Decision(wrong[0], "", "", person=False)) == ""
    assert situation.mistake(wrong[0], {}) or situation.known == "good"


def test_planted_faults_are_those_of_the_gates_proof() -> None:
    """A situation that names a planted fault names one that stands in the table."""
    table = (ROOT / "docs" / "sabotage.md").read_text()
    named = {s.source.partition("Planted fault: ")[2].partition(".")[0] for s in ALL}
    faults = {name for name in named if name}
    assert len(faults) >= 8
    assert [f for f in faults if f"| {f} |" not in table] == []


# --- the loader

SMALL: dict[str, Any] = {
    "topic": "sampling",
    "source": "made for this test",
    "request": {
        "step": "pilot",
        "reason": "gate failed",
        "allowed": ["retry", "stop", "needs_human", "override"],
        "failures": 1,
        "retries": 2,
        "adjustable": {"t": {"min": 0.1, "max": 0.9}},
        "attempts": [
            {
                "attempt": 1,
                "verdict": "fail",
                "params": {"t": 0.5},
                "readings": [
                    {
                        "metric": "x",
                        "kind": "statistic",
                        "below": 1,
                        "value": 2,
                        "verdict": "fail",
                        "reason": "2 does not satisfy < 1",
                    }
                ],
            }
        ],
    },
    "right": [{"action": "retry", "after": {"t": {"at_least": 0.6}}}],
    "wrong": [{"name": "lower", "action": "retry", "after": {"t": {"below": 0.5}}}],
    "example": {"action": "retry", "changes": {"t": 0.7}},
    "why": "since it is so",
}


def write(tmp_path: Path, **changed: Any) -> Path:
    """The small situation with these values; ``a__b`` is key b under a."""
    document = json.loads(json.dumps(SMALL))
    for name, value in changed.items():
        *above, last = name.split("__")
        place = document
        for part in above:
            place = place[int(part)] if part.isdigit() else place[part]
        if value is None:
            del place[last]
        else:
            place[last] = value
    path = tmp_path / "one.yaml"
    path.write_text(json.dumps(document))
    return path


def test_a_small_situation_is_read(tmp_path: Path) -> None:
    """Its rules hold of what is in force after the decision, set or left as it was."""
    found = load(write(tmp_path))
    assert (found.name, found.known) == ("one", "good")
    assert found.is_right("retry", {"t": 0.6})
    assert not found.is_right("retry", {})
    assert not found.is_right("stop", {})
    assert found.mistake("retry", {"t": 0.2}) == "lower"
    assert found.mistake("retry", {"t": 0.5}) == ""


def test_a_named_mistake_is_never_right(tmp_path: Path) -> None:
    """Also where a rule of what is right would take it."""
    high = {"name": "too high", "action": "retry", "after": {"t": {"above": 0.8}}}
    found = load(write(tmp_path, wrong=[high]))
    assert (found.is_right("retry", {"t": 0.8}), found.is_right("retry", {"t": 0.85})) == (
        True,
        False,
    )


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"why": None}, "why"),
        ({"whyy": "x"}, "whyy"),
        ({"right": []}, "right"),
        ({"right__0__action": "extend"}, "right.0.action"),
        ({"right__0__after": {"u": {"above": 1}}}, "right.0"),
        ({"right__0__after": {"t": {"over": 1}}}, "right.0.after.t.over"),
        ({"wrong__0__action": "proceed"}, "wrong.0.action"),
        ({"wrong__0__action": "stop"}, "wrong.0"),
        ({"wrong__0__name": None}, "wrong.0.name"),
        ({"example__changes": {"t": 0.95}}, "example"),
        ({"example__changes": {"t": 0.5}}, "example"),
        ({"example__action": "stop"}, "example"),
        ({"request__reason": "mood"}, "request.reason"),
        ({"request__question": "May it?"}, "request.question"),
        ({"request__attempts": []}, "request.attempts"),
        ({"request__adjustable__u": {"min": 0, "max": 1}}, "request.adjustable"),
        ({"request__attempts__0__readings__0__value": "2"}, "request.attempts.0.readings.0.value"),
        ({"request__attempts__0__readings__0__n": -3}, "request.attempts.0.readings.0.n"),
        (
            {"request__attempts__0__readings__0__successes": -1},
            "request.attempts.0.readings.0.successes",
        ),
        (
            {
                "request__attempts__0__readings__0__n": 5,
                "request__attempts__0__readings__0__successes": 6,
            },
            "request.attempts.0.readings.0.successes",
        ),
        ({"request__failures": True}, "request.failures"),
        (
            {"right": [{"action": a} for a in ("retry", "stop", "needs_human")], "wrong": []},
            "right",
        ),
    ],
    ids=str,
)
def test_a_wrong_file_is_refused_by_name_and_key(
    tmp_path: Path, changed: dict[str, Any], key: str
) -> None:
    """The error says which file, and which key of it."""
    path = write(tmp_path, **changed)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert refused.value.where == f"{path}: {key}"
    assert refused.value.fix


@pytest.mark.parametrize("text", ["", "- a", "a: 1\na: 2", "a: [", "\x00", "[" * 4000])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    """So is a repeated key."""
    path = tmp_path / "one.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load(path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """A bench of nothing would score everybody alike."""
    with pytest.raises(ConfigError, match="no situation"):
        load_all(tmp_path)


# --- reference reviewers


def test_an_oracle_is_right_on_all(tmp_path: Path) -> None:
    """So each situation has an answer, and the scoring takes it."""
    total = tally(score(tmp_path, answering(oracle)))
    assert total.right == Count(len(ALL), len(ALL))
    assert (total.false_approvals, total.false_alarms) == (Count(0, len(BAD)), Count(0, len(GOOD)))


def test_one_that_stops_is_right_on_every_bad_one_alone(tmp_path: Path) -> None:
    """It approves nothing, and refuses each good one."""
    total = tally(score(tmp_path, answering(lambda _: ("stop", {}))))
    assert total.right == Count(len(BAD), len(ALL))
    assert (total.false_approvals, total.false_alarms) == (
        Count(0, len(BAD)),
        Count(len(GOOD), len(GOOD)),
    )


def test_one_that_approves_all_is_wrong_on_every_bad_one(tmp_path: Path) -> None:
    """Of the good ones it is right where no parameter had to change."""
    answers = score(tmp_path, answering(approving))
    total = tally(answers)
    first = [next(a for a in s.request.allowed if a in APPROVING) for s in GOOD]
    plain = sum(s.is_right(action, {}) for s, action in zip(GOOD, first, strict=True))
    assert 0 < plain < len(GOOD)
    assert total.right == Count(plain, len(ALL))
    assert (total.false_approvals, total.false_alarms) == (
        Count(len(BAD), len(BAD)),
        Count(0, len(GOOD)),
    )
    assert {a.situation for a in answers if a.is_false_approval} == {s.name for s in BAD}


def test_no_answer_is_not_right_and_counts_in_no_rate(tmp_path: Path) -> None:
    """Nor is an answer out of bounds an answer."""
    for ask in (lambda _: None, answering(lambda _: ("override", {}))):
        answers = score(tmp_path, ask)
        assert {a.outcome for a in answers} == {NO_ANSWER}
        assert tally(answers).false_approvals == Count(0, 0)
        assert (tally(answers).right, tally(answers).no_answer) == (Count(0, len(ALL)), len(ALL))


def test_each_topic_is_counted_by_itself(tmp_path: Path) -> None:
    """The topics' counts add up to the whole."""
    answers = score(tmp_path, answering(approving))
    topics = by_topic(answers)
    assert sum(t.right.of for t in topics.values()) == len(ALL)
    assert sum(t.right.hits for t in topics.values()) == tally(answers).right.hits
    assert topics["hostile"].false_approvals == Count(1, 1)


def test_a_named_mistake_is_told(tmp_path: Path) -> None:
    """The first review of the original project, tighter sampling, is a mistake by name."""
    (known,) = [s for s in ALL if s.name == "length_taken_for_runaway"]
    cooler = answering(lambda _: ("retry", {"temperature": 0.3}))
    (found,) = run_bench(cooler, [known], tmp_path, Purse(tmp_path, 0.0))
    assert (found.outcome, found.is_false_approval) == (WRONG, True)
    assert found.mistake == "tighter sampling on a lying number"


# --- money


def paying(usd: float | None) -> Reviewer:
    """A reviewer that stops, for money; each request costs a quarter of its worst case."""

    def ask(request: ReviewRequest) -> Decision | None:
        if request.account.reserve(request.path, usd):
            return None
        request.account.settle(request.path, usd and usd / 4, input_tokens=5, output_tokens=2)
        return Decision("stop", "by rule", "rule", person=False)

    return ask


def test_nothing_is_sent_beyond_the_cap(tmp_path: Path) -> None:
    """At 0.40 worst and 0.10 in truth, a cap of 0.75 USD pays for four requests."""
    answers = run_bench(paying(0.4), ALL, tmp_path, Purse(tmp_path, 0.75))
    assert [a.outcome for a in answers[4:]] == [NOT_ASKED] * (len(ALL) - 4)
    assert {a.cause for a in answers[4:]} == {
        "one request may cost $0.4000, and $0.3500 of the cap are left"
    }
    total = tally(answers)
    assert (total.right.of, total.no_answer, total.not_asked) == (4, 0, len(ALL) - 4)
    assert total.usd == pytest.approx(0.4)
    again = run_bench(paying(0.4), ALL, tmp_path, Purse(tmp_path, 0.75))
    assert [a.outcome for a in again] == [NO_ANSWER] * 4 + [NOT_ASKED] * (len(ALL) - 4)
    assert tally(again).usd == pytest.approx(0.4)


def test_the_declared_worst_case_holds_where_a_reviewer_names_none(tmp_path: Path) -> None:
    """Unsettled or settled without a figure, all that was reserved counts."""
    answers = run_bench(paying(None), ALL, tmp_path, Purse(tmp_path, 1.0, request_usd=0.3))
    assert sum(a.outcome != NOT_ASKED for a in answers) == 3
    assert tally(answers).usd == pytest.approx(0.9)


def test_money_that_ends_amid_a_question_leaves_it_without_an_answer(tmp_path: Path) -> None:
    """What was asked once counts, though what would have mended it could not be paid."""

    def ask(request: ReviewRequest) -> Decision | None:
        refused = [request.account.reserve(key, 0.6) for key in ("question", "repair")]
        (request.workspace / request.path).mkdir(parents=True)
        (request.workspace / request.path / "error.txt").write_text(f"unread\n{refused[1]}\n")
        return None

    first, second = run_bench(ask, ALL[:2], tmp_path, Purse(tmp_path, 1.0))
    assert (first.outcome, second.outcome) == (NO_ANSWER, NOT_ASKED)
    assert first.cause.startswith("unread; one request may cost ")


def test_a_request_whose_end_is_unknown_is_repeated_once(tmp_path: Path) -> None:
    """By another process too: the record is on disk before the request leaves."""
    for expected in ("", "", "it was asked 2 times and no end of that is known"):
        account = Purse(tmp_path, 1.0).account("a")
        assert account.reserve("key", 0.1) == expected
    assert Purse(tmp_path, 1.0).spent == pytest.approx(0.2)


@pytest.mark.parametrize("text", ["", "[]", '{"requests": [{"usd": "x"}]}', '{"requests": [1]}'])
def test_a_record_of_spending_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    """Otherwise the cap would begin anew."""
    (tmp_path / REQUESTS).write_text(text)
    with pytest.raises(CorruptError, match=re.escape(REQUESTS)):
        Purse(tmp_path, 1.0)


# --- the verb


def runbook_of(tmp_path: Path, script: str, **reviewer: Any) -> Path:
    """A runbook whose reviewer is this Python program."""
    path = write_runbook(tmp_path, {"metrics": {"score": 0.9}})
    program = tmp_path / "reviewer.py"
    program.write_text(script)
    document = json.loads(path.read_text())
    command = [sys.executable, "-I", "-S", str(program)]
    document["reviewer"] = {"provider": "command", "command": command, **reviewer}
    path.write_text(json.dumps(document))
    return path


STOPS = """\
import json, sys
sys.stdin.read()
print(json.dumps(ANSWER))
"""


def stops() -> str:
    """A program that answers in the form the question asks for, whatever keys that has."""
    from agent.answer import Answer  # noqa: PLC0415 - its fields are the program's

    known = {"action": "stop", "reason": "by rule", "changes": {}, "confidence": 0.5}
    answer = {name: known.get(name, []) for name in Answer.model_fields}
    return STOPS.replace("ANSWER", repr(answer))


def test_the_verb_scores_a_program_and_keeps_the_result(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 0 though it is bad; rows and totals as JSON, the table for people, a file to keep."""
    path = runbook_of(tmp_path, stops(), canaries="on")
    place = tmp_path / "w"
    named = ("review", "bench", "--runbook", path, "--workspace", place, "--limit", "6", "--json")
    done = call(capfd, *named)
    assert done.code == 0, done.err
    *rows, summary = done.lines
    assert len(rows) == summary["situations"] == 6
    assert summary["reviewer"] == f"command {Path(sys.executable).name}"
    assert {row["action"] for row in rows} == {"stop"}
    bad = sum(row["known"] == "bad" for row in rows)
    right = summary["total"]["right"]
    assert (right["hits"], right["of"]) == (bad, 6)
    assert right["interval"] == pytest.approx(wilson(bad, 6))
    (kept,) = place.glob("results/review_bench/*/bench.json")
    assert json.loads(kept.read_text())["total"] == summary["total"]
    assert "false alarms" in done.err
    assert not list(place.rglob("canaries.json"))
    assert {row["outcome"] for row in rows} <= {RIGHT, WRONG}
    assert done.err.endswith(f"shown by: runbook report --workspace {place}\n")


def test_without_a_workspace_nothing_is_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works in a temporary folder, and a reviewer that says nonsense scores nothing."""
    path = runbook_of(tmp_path, "print('approved')")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    done = call(capfd, "review", "bench", "--runbook", path, "--limit", "2", "--json")
    assert done.code == 0
    assert done.lines[-1]["total"]["no_answer"] == 2
    assert list(scratch.iterdir()) == []


def test_why_there_is_no_answer_is_told_with_its_count(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The distinct causes for people, the cause of each for programs; exit 0 as ever."""
    path = runbook_of(tmp_path, "raise SystemExit(7)")
    done = call(capfd, "review", "bench", "--runbook", path, "--limit", "4", "--json")
    assert done.code == 0
    assert done.err.endswith("no answer:\n  4 x the program exited with code 7\n")
    assert "not right:" not in done.err
    assert {row["cause"] for row in done.lines[:-1]} == {"the program exited with code 7"}


def test_what_the_money_did_not_last_for_is_told_apart(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither wrong nor without an answer: it was not asked, and stands in no rate."""
    path = runbook_of(tmp_path, stops(), max_usd=0.1)
    named = ("review", "bench", "--runbook", path, "--limit", "5", "--max-usd", "0.15", "--json")
    done = call(capfd, *named)
    total = done.lines[-1]["total"]
    assert (total["right"]["of"], total["no_answer"], total["not_asked"]) == (1, 0, 4)
    assert "5 situations, $0.10\n" in done.err
    told = "not asked:\n  4 x one request may cost $0.1000, and $0.0500 of the cap are left\n"
    assert done.err.endswith(told)


@pytest.mark.parametrize("key", [None, "", "  ", "two words"])
def test_without_its_key_nothing_is_asked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """It ends with 2 and names the variable, where a table of zeros would be taken for a score."""
    monkeypatch.delenv("BENCH_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("BENCH_API_KEY", key)
    named = ("review", "bench", "--provider", "openai", "--model", "tiny")
    with scripted_server() as server:
        # Not this machine by its name, though nothing listens elsewhere.
        where = server.base_url("openai").replace("127.0.0.1", "bench.internal")
        done = call(capfd, *named, "--base-url", where, "--api-key-env", "BENCH_API_KEY")
        assert server.received == []
    assert (done.code, done.out) == (2, "")
    assert "nothing was asked: BENCH_API_KEY " in done.err
    assert "fix: export BENCH_API_KEY=..." in done.err
    assert "two words" not in done.err


def test_without_its_program_nothing_is_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A program named by a path starts from the runbook's folder, and must be there."""
    path = runbook_of(tmp_path, stops(), command=["./review.sh"])
    done = call(capfd, "review", "bench", "--runbook", path)
    assert (done.code, "there is no program ./review.sh" in done.err) == (2, True)


@pytest.mark.parametrize("provider", ["human", "command", "oracle"])
def test_only_providers_of_models_are_named_by_options(
    capfd: pytest.CaptureFixture[str], provider: str
) -> None:
    """The fix offers what the option takes, and speaks of no option that was not given."""
    done = call(capfd, "review", "bench", "--provider", provider)
    assert done.code == 2
    assert f"--provider: '{provider}' is no provider of models behind an API" in done.err
    assert "use one of: openai, anthropic; a program is scored with --runbook" in done.err
    assert "max_usd" not in done.err


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_model_behind_an_api_is_scored_without_a_runbook(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], provider: str
) -> None:
    """Over loopback, through the real SDK; the same command again asks nothing twice."""
    says = {"action": "stop", "reason": "by rule", "changes": {}, "confidence": 0.5}
    says |= {"concerns": [], "action_items": []}
    named = ("review", "bench", "--provider", provider, "--model", "tiny", "--limit", "3")
    more = ("--request-usd", "0.1", "--workspace", tmp_path / "w", "--json")
    with scripted_server(*[Says(json.dumps(says))] * 3) as server:
        where = ("--base-url", server.base_url(provider))
        done = call(capfd, *named, *where, *more)
        again = call(capfd, *named, *where, *more)
    assert (done.code, again.code) == (0, 0), done.err
    assert len(server.received) == 3
    *rows, summary = done.lines
    assert {row["author"] for row in rows} == {f"{provider} tiny"}
    assert summary["total"]["no_answer"] == 0
    assert summary["total"]["usd"] == pytest.approx(0.3)
    assert again.lines == done.lines
    sent = json.dumps([one.body for one in server.received])
    assert [row["situation"] for row in rows if row["situation"] in sent] == []


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--provider", "openai"),
        ("--provider", "oracle", "--model", "x"),
        ("--provider", "human"),
        ("--model", "x"),
        ("--provider", "openai", "--model", "x", "--base-url", "nowhere"),
        ("--provider", "openai", "--model", "x", "--situations", "/nowhere"),
        ("--runbook", "/nowhere.yaml"),
    ],
    ids=" ".join,
)
def test_a_bad_configuration_ends_with_2(
    options: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is asked of anybody."""
    done = call(capfd, "review", "bench", *options)
    assert done.code == 2
    assert "fix: " in done.err


def test_a_person_is_not_scored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A runbook whose reviewer is human is a bad configuration here."""
    path = write_runbook(tmp_path, {"metrics": {"score": 0.9}})
    done = call(capfd, "review", "bench", "--runbook", path)
    assert (done.code, "cannot be scored" in done.err) == (2, True)


def test_a_new_workspace_holds_no_copy_of_the_situations(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are the project's own, and their answers with them."""
    assert call(capfd, "init", tmp_path / "w").code == 0
    assert not list((tmp_path / "w").rglob("review_bench"))
