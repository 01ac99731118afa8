"""A review's report: what was asked, on what evidence, what was decided, and whether it helped."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_report import HOSTILE, entries_of, judged, ran, result, shape, started

from agent.canaries import Canaries, with_canaries
from agent.review_files import ANSWERED, FAILED, ReviewFiles
from gates.judge import judge_gate
from runbook import events as ev
from runbook.clock import SYSTEM
from runbook.contract import (
    Criterion,
    Decision,
    Gate,
    Json,
    Judgement,
    Metric,
    Range,
    ReviewRequest,
    Verdict,
)
from runbook.executor import Seams, run_session
from runbook.journal import facts, read_entries
from runbook.plan import Plan
from runbook.projection import Projector
from runbook.report import plot
from runbook.report.markdown import render_report
from runbook.report.review_folder import Folder, read_folder
from runbook.report.review_report import render_plot, render_review
from runbook.report.review_requests import Note, paired, read_notes
from runbook.report.view import Story, build_stories, build_view
from runbook.review import record_decision
from runbook.takeover import open_journal
from runbook.testing import make_plan, make_step
from runbook.verify import verify
from runbook.workspace import Workspace

GATE = Gate(
    (
        Criterion("runaway_rate", "rate", below=0.05, min_n=50),
        Criterion("median_tokens", "statistic", at_least=20, at_most=200),
    )
)
TIGHTER = Decision(
    "retry",
    "Runaway is high.\n\nTighten the sampling.",
    "model-x",
    person=False,
    changes={"temperature": 0.4},
    concerns=("only a number was seen",),
    action_items=("read ten rows by hand",),
    confidence=0.7,
)
STOPS = Decision(
    "retry",
    "Go back, and end answers by stop sequences.",
    "model-x",
    person=False,
    changes={"temperature": 0.9, "stop": 1},
)
LINKS = ("link_open", "image")
Reviewer = Callable[[ReviewRequest], Decision | None]


def share(hits: int) -> dict[str, Json]:
    """A rate of 200."""
    return {"value": hits / 200, "n": 200, "successes": hits, "denominator": "cleaned responses"}


def pilot_plan(*runaway: int, tokens: Sequence[int] = (61, 12, 64), **step: Any) -> Plan:
    """A pilot that reads these numbers, an attempt each, and asks after its first failure."""
    metrics = {"runaway_rate": [share(hits) for hits in runaway], "median_tokens": list(tokens)}
    ranges = {"temperature": Range(0.1, 1.0), "stop": Range(0, 2)}
    params = {"temperature": 0.9, "stop": 0, "metrics": metrics}
    fields = {"gate": GATE, "retries": 3, "review_after": 1, "adjustable": ranges, **step}
    return make_plan(make_step("pilot", params=params, **fields))


def judge(gate: Gate, metrics: tuple[Metric, ...], final: bool) -> Judgement:
    return judge_gate(gate, metrics, None, final=final)


def run(plan: Plan, root: Path, reviewer: Reviewer) -> Workspace:
    place = Workspace.at(root)
    run_session(plan, place, Seams(judge, reviewer))
    return place


def paid(*answers: Decision | None) -> Reviewer:
    """Answers in this order, each for twenty cents."""
    left = list(answers)

    def ask(request: ReviewRequest) -> Decision | None:
        assert not request.account.reserve(f"key {request.attempt}", 0.25)
        request.account.settle(
            f"key {request.attempt}", 0.2, input_tokens=11_000, output_tokens=600
        )
        return left.pop(0)

    return ask


def noted(fails: str = "") -> Reviewer:
    """Stops, as a model whose provider notes each request; before it another that fails."""

    def ask(request: ReviewRequest) -> Decision:
        files = ReviewFiles(request.workspace / request.path, bytes)
        for model, cause in [("big", fails), ("small", "")] if fails else [("small", "")]:
            key = f"{model} of {request.review_id}"
            assert not request.account.reserve(key, 0.25)
            sent = files.begin(key, key, "openai", model, 0.25)
            request.account.settle(key, 0.0 if cause else 0.2)
            files.end(sent, FAILED if cause else ANSWERED, cause)
        return Decision("stop", "It is no use.", "openai small", person=False)

    return ask


def requests_of(page: str) -> list[list[str]]:
    """The cells of the table of requests, without the time and the tokens."""
    section = page.partition("## What it cost\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| \d", line)]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [[row[2], row[3], *row[6:]] for row in cells]


def report_of(place: Workspace, name: str) -> str:
    (path,) = place.reviews.glob(f"*{name}*/report.md")
    return path.read_text()


def story_of(*known: ev.Event) -> Story:
    return build_stories(entries_of(*known))[-1]


def failed_pilot(**review: Any) -> tuple[ev.Event, ...]:
    """Facts up to the review of a first failure."""
    step = make_step("a", gate=Gate((Criterion("m", "statistic", at_least=0.5),)))
    low = result("m", Verdict.FAIL, value=0.1, threshold=">= 0.5", reason="too low")
    fields = {"reason": "gate failed", "path": "reviews/x", **review}
    asked = ev.ReviewRequested("a-1", "a", 1, fields["reason"], fields["path"])
    return (started(step), *ran("a"), judged("a", low, verdict="fail"), asked)


def again(value: float, verdict: Verdict, attempt: int = 2, **fields: Any) -> tuple[ev.Event, ...]:
    found = result("m", verdict, value=value, threshold=">= 0.5")
    return (
        *ran("a", attempt),
        judged("a", found, attempt=attempt, verdict=verdict.value, **fields),
    )


RETRY = ev.ReviewDecided("a-1", "retry", {"t": 0.4}, "cooler", "model-x", person=False)


def test_two_reviews_tell_how_their_advice_turned_out(tmp_path: Path) -> None:
    """The first made it worse and the second passed: each with evidence, cost and reasoning."""
    place = run(pilot_plan(42, 108, 1), tmp_path / "ws", paid(TIGHTER, STOPS))
    first, second = report_of(place, "pilot_1"), report_of(place, "pilot_2")

    assert first.startswith("# Review pilot-1: retry; attempt 2 failed, worse than before\n")
    assert "**It did not help.**" in first
    assert re.search(
        r"`runaway_rate` +\| < 0.05 +\| 0.21 \(n 200\) \| 0.54 \(n 200\) \| \*\*worse", first
    )
    assert re.search(r"`median_tokens` .*\| 61 +\| 12 +\| \*\*failed\*\*", first)
    assert "**retry** with `temperature` = 0.4, by model-x (a model), 20" in first
    assert "> Runaway is high.\n>\n> Tighten the sampling.\n" in first
    assert "Concerns:\n\n- only a number was seen\n" in first
    assert "What a person should do:\n\n- read ten rows by hand\n" in first
    assert "Confidence, as its author gave it: 0.700." in first
    assert "In all $0.20 (1 request, 11,600 tokens)." in first
    assert "![runaway\\_rate" in first.replace("runaway_rate over", "runaway\\_rate over")

    assert second.startswith("# Review pilot-2: retry; attempt 3 passed\n")
    assert "**It helped.**" in second
    assert re.search(r"`temperature` +\| 0.9 +\| \*\*0.4\*\* +\| \*\*0.9\*\* \|", second)
    assert re.search(r"runaway_rate < 0.05 +\| 0.21 \(fail\) \| 0.54 \(fail\) \| 0.005 \|", second)


def test_the_session_report_lists_its_reviews_and_links_each(tmp_path: Path) -> None:
    """A line a review with decision, cost and what followed, and a link that leads to its page."""
    place = run(pilot_plan(42, 108, 1), tmp_path / "ws", paid(TIGHTER, STOPS))

    section = place.report.read_text().partition("## Reviews\n")[2].partition("\n## ")[0]
    assert re.search(
        r"`pilot-1` \| the gate failed \| retry by model-x \| \$0.20 .* worse", section
    )
    links = re.findall(r"\]\(\./(\S+)\)", section)
    assert len(links) == 2
    assert all((place.root / path).is_file() for path in links)


def test_the_page_is_there_while_the_reviewer_is_asked(tmp_path: Path) -> None:
    """A person may read what is being asked; nothing is called decided yet."""
    seen = []

    def ask(request: ReviewRequest) -> None:
        seen.append((request.workspace / request.path / "report.md").read_text())

    run(pilot_plan(42), tmp_path / "ws", ask)

    assert seen[0].startswith("# Review pilot-1: open\n")
    assert "A person may still answer: retry, stop or override." in seen[0]


def test_a_reviewer_without_an_answer_leaves_its_cause_and_its_draft(tmp_path: Path) -> None:
    """Why there is none, what it sent back, and that a person may still answer."""

    def ask(request: ReviewRequest) -> None:
        folder = request.workspace / request.path
        (folder / "error.txt").write_text("the answer is no JSON: <b>go on</b>\n")
        (folder / "response-1.json").write_text("{}")

    place = run(pilot_plan(42), tmp_path / "ws", ask)
    text = report_of(place, "pilot_1")

    assert "The reviewer gave no answer that could be used:\n\n    the answer is no JSON" in text
    assert "What it sent back is kept beside this page: `response-1.json`." in text
    assert "[response-1.json](./response-1.json)" in text
    assert "What followed\n\nNothing yet." in text


def test_an_override_tells_the_verdict_that_it_passed_by(tmp_path: Path) -> None:
    """Author, time and reason, and the original verdict, in page, report and view."""
    plan = pilot_plan(42)
    place = run(plan, tmp_path / "ws", lambda _: None)
    word = ev.ReviewDecided("pilot-1", "override", {}, "the detector errs", "Ann", person=True)
    record_decision(plan, place, word)
    run(plan, place.root, lambda _: None)
    text = report_of(place, "pilot_1")

    assert re.search(r"\*\*override\*\*, by Ann \(a person\), 20\S+ \S+ UTC, after", text)
    assert "The verdict was fail and stays on record: this gate did not pass." in text
    assert "> the detector errs" in text
    assert "The gate was passed by on a person's word." in text
    head = place.report.read_text().partition("## Steps")[0]
    assert "pilot did not pass (fail), and Ann overrode it: the detector errs (20" in head


def test_a_person_may_answer_what_a_model_left_open(tmp_path: Path) -> None:
    """Both answers stand, the model's first; what followed is of the person's."""
    plan = pilot_plan(42, 1, tokens=(61, 64))
    unsure = Decision("needs_human", "I cannot tell.", "model-x", person=False)
    place = run(plan, tmp_path / "ws", lambda _: unsure)
    waiting = build_view(read_entries(place)).waiting
    assert waiting is not None
    assert report_of(place, "pilot_1").startswith("# Review pilot-1: a person is to decide\n")

    word = ev.ReviewDecided("pilot-1", "retry", {"stop": 1}, "stops", "Ann", person=True)
    record_decision(plan, place, word)
    run(plan, place.root, lambda _: None)
    text = report_of(place, "pilot_1")

    assert text.index("**needs_human**") < text.index("**retry** with `stop` = 1, by Ann")
    assert text.startswith("# Review pilot-1: retry; attempt 2 passed\n")


def test_a_decision_not_judged_since_is_pending() -> None:
    """Nothing is said to have helped before the next verdict."""
    story = story_of(*failed_pilot(), RETRY)

    assert story.review.followed is not None
    assert story.review.followed.outcome == "pending"
    assert "Not judged yet." in render_review(story, Folder())


@pytest.mark.parametrize(
    ("value", "verdict", "outcome"),
    [
        (0.9, Verdict.PASS, "passed"),
        (0.3, Verdict.FAIL, "better"),
        (0.1, Verdict.FAIL, "unchanged"),
        (0.05, Verdict.FAIL, "worse"),
    ],
)
def test_help_is_measured_by_the_gates_own_threshold(
    value: float, verdict: Verdict, outcome: str
) -> None:
    """A reading nearer to its threshold is better, one further off is worse."""
    story = story_of(*failed_pilot(), RETRY, *again(value, verdict))

    assert story.review.followed is not None
    assert story.review.followed.outcome == outcome
    assert (story.after.number if story.after else 0) == 2


def test_an_extended_attempt_counts_as_it_was_judged_last() -> None:
    """After a thin first look the second one says whether the advice helped."""
    thin = again(0.4, Verdict.UNDERPOWERED)
    more = ev.SampleExtended("a", 2, {"rows": 9})
    look = result("m", Verdict.PASS, value=0.6, threshold=">= 0.5")
    second = replace(judged("a", look, attempt=2), look=2)

    story = story_of(*failed_pilot(), RETRY, *thin, more, *ran("a", 2, look=2), second)

    assert story.review.followed is not None
    assert (story.review.followed.outcome, story.review.followed.look) == ("passed", 2)


def test_the_next_review_ends_the_story_of_the_one_before() -> None:
    """What a later decision brought is not credited to an earlier one."""
    second = ev.ReviewRequested("a-2", "a", 2, "gate failed", "reviews/y")
    extend = ev.ReviewDecided("a-2", "extend", {}, "more", "model-x", person=False)
    look = result("m", Verdict.PASS, value=0.6, threshold=">= 0.5")
    facts_ = (
        *failed_pilot(),
        RETRY,
        *again(0.3, Verdict.FAIL),
        second,
        extend,
        *ran("a", 2, look=2),
        replace(judged("a", look, attempt=2), look=2),
    )

    first, last = build_stories(entries_of(*facts_))

    assert first.review.followed is not None
    assert last.review.followed is not None
    assert (first.review.followed.outcome, last.review.followed.outcome) == ("better", "passed")


def test_a_request_of_unknown_end_is_named_and_counted_at_its_worst() -> None:
    """Of two requests one was settled: the other's reservation stands in the sum."""
    sent = (ev.RequestSent("a-1", "k", 1, 0.25), ev.RequestSent("a-1", "k", 2, 0.25))
    story = story_of(*failed_pilot(), *sent, ev.RequestSettled("a-1", "k", 2, 0.1, 900, 100))
    text = render_review(story, Folder())

    assert story.review.usd == pytest.approx(0.35)
    assert "of 1 request no end is known, so $0.25 is assumed" in text
    assert "its end is not known; the worst is assumed" in text
    assert "| 900 " in text


def test_a_request_that_failed_tells_its_cause_and_its_model(tmp_path: Path) -> None:
    """After a fallback has answered the page still says who failed, and of what."""
    place = run(pilot_plan(42), tmp_path / "ws", noted(fails="HTTP 401: the key is wrong"))

    assert requests_of(report_of(place, "pilot_1")) == [
        ["the review", "openai big", "$0.00", "failed: HTTP 401: the key is wrong"],
        ["the review", "openai small", "$0.20", "answered"],
    ]
    assert verify(place).findings == ()


def test_the_requests_of_canaries_are_told_from_the_real_one(tmp_path: Path) -> None:
    """Of three rows that are alike two are marked."""
    place = run(pilot_plan(42), tmp_path / "ws", with_canaries(noted(), Canaries()))

    asked = [row[0] for row in requests_of(report_of(place, "pilot_1"))]
    assert asked == ["a canary", "a canary", "the review"]


@pytest.mark.parametrize(
    ("decisions", "told"),
    [
        (("canaries/a", "canaries/b"), ["a canary", "a canary", "the review"]),
        (("canaries/a",), ["a canary", "-", "-"]),
        ((), ["the review"] * 3),
    ],
)
def test_a_programs_requests_are_known_by_the_answers_that_were_taken(
    tmp_path: Path, decisions: tuple[str, ...], told: list[str]
) -> None:
    """It notes no more than a key; where one canary has no answer, the others may be either."""
    for name in ("canaries/a", "canaries/b") if decisions else ():
        (tmp_path / name).mkdir(parents=True)
    for name in decisions:
        (tmp_path / name / "decision.json").write_text(json.dumps({"key": name}))
    sent = [ev.RequestSent("a-1", key, 1, 0.1) for key in ("canaries/a", "canaries/b", "mine")]

    page = render_review(story_of(*failed_pilot(), *sent), read_folder(tmp_path))

    assert [row[0] for row in requests_of(page)] == told


@pytest.mark.parametrize(
    ("notes", "settled", "told"),
    [
        ([("sent", "lost"), ("answered", "")], [False, True], ["lost", "answered"]),
        ([("answered", "")], [False, True], ["", "answered"]),
        ([("failed", "401")], [True, False], ["401", ""]),
        ([("sent", "lost")], [False, False], ["", ""]),
        ([("sent", ""), ("failed", "429")], [True, True, False], ["", "", ""]),
        ([], [True], [""]),
    ],
)
def test_no_cause_is_put_to_a_request_that_may_not_be_its_own(
    notes: list[tuple[str, str]], settled: list[bool], told: list[str]
) -> None:
    """Killed before a request left, its reservation has no note: the others keep theirs."""
    known = [Note("k", "the review", "m", outcome, cause) for outcome, cause in notes]

    found = paired(["k"] * len(settled), settled, known)

    assert [note.cause or note.outcome for note in found] == told
    assert {note.asks for note in found} == {"the review"}


def test_the_journal_alone_says_whether_a_request_ended() -> None:
    """A note of an answer of which no end is on record makes it no settled one."""
    story = story_of(*failed_pilot(), ev.RequestSent("a-1", "k", 1, 0.25))
    notes = (Note("k", "the review", "m", "answered"),)

    page = render_review(story, Folder(requests=notes))

    ends = ["the review", "m", "$0.25", "its end is not known; the worst is assumed"]
    assert requests_of(page) == [ends]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"requests": 1}',
        '{"requests": [1, null, {"key": 1}, {"key": ["k"]}, {"provider": "p"}]}',
        '{"requests": [{"key": "k", "model": "m"}], "more": "' + "x" * (1 << 20) + '"}',
    ],
    ids=range(6),
)
def test_notes_that_have_not_their_form_are_none(tmp_path: Path, text: str) -> None:
    """Another type, another shape, or more than such a file ever holds."""
    (tmp_path / "requests.json").write_text(text)

    assert read_notes(tmp_path) == ()


def test_a_pipe_in_place_of_the_notes_is_not_waited_for(tmp_path: Path) -> None:
    """Neither in the review's folder nor in a canary's."""
    (tmp_path / "canaries/a").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "canaries/a"):
        os.mkfifo(folder / "requests.json")

    assert read_notes(tmp_path) == (Note("", "a canary"),)


def test_a_steps_own_question_is_shown_with_its_answer() -> None:
    """It stands as it was asked, and the session went on."""
    step = make_step("a")
    begun, ended = ran("a", question="Is a paired test right here?\nItems repeat.")
    asked = ev.ReviewRequested("a-1", "a", 1, "question", "reviews/x", ("proceed", "stop"))
    answer = ev.ReviewDecided("a-1", "proceed", {}, "it is", "model-x", person=False)

    text = render_review(story_of(started(step), begun, ended, asked, answer), Folder())

    assert "    Is a paired test right here?\n    Items repeat.\n" in text
    assert "No gate was judged: there are no criteria to show." in text
    assert text.startswith("# Review a-1: proceed; the session went on\n")


def test_a_review_that_a_changed_plan_took_back_says_so() -> None:
    """The original verdict still stands in its page."""
    known = failed_pilot()
    first = known[0]
    assert isinstance(first, ev.SessionStarted)
    accepted = ev.PlanAccepted("looser", "Ann", (), first.plan, "f", "r", (), (), ("a",))

    story = story_of(*known, accepted)

    assert story.review.superseded
    assert story.review.verdict == "fail"
    assert "took back what was asked about" in render_review(story, Folder())


def hostile_story(text: str) -> tuple[Story, Folder]:
    begun, ended = ran("a", question=text, params={"p": text})
    bad = result(text, Verdict.FAIL, threshold=text, reason=text)
    word = ev.ReviewDecided("a-1", "retry", {text: 1}, text, text, False, (text,), (text,), 0.5)
    known = (
        started(make_step("a")),
        begun,
        ended,
        judged("a", bad, verdict="fail"),
        ev.ReviewRequested("a-1", "a", 1, text, text, (text, "retry")),
        ev.RequestSent("a-1", "k", 1, 0.25),
        ev.RequestSettled("a-1", "k", 1, 0.0),
        ev.RequestSent("a-1", "k", 2, 0.25),
        word,
        ev.StepStarted("a", 2, 1, {"p": text + "2"}, "o", ""),
        replace(ended, attempt=2),
        judged("a", bad, attempt=2, verdict="fail"),
    )
    notes = tuple(Note("k", "the review", text, outcome, text) for outcome in ("failed", "sent"))
    return story_of(*known), Folder(text, (("as it came", f"response-{text}"),), notes)


def links_of(page: str) -> list[str]:
    """Where its links and pictures lead, as a Markdown reader sees them."""
    tokens = [t for block in MarkdownIt().parse(page) for t in block.children or ()]
    return [str(t.attrs.get("href") or t.attrs.get("src")) for t in tokens if t.type in LINKS]


def test_hostile_text_stays_data() -> None:
    """No markup, tag or link of its own, nothing that a terminal acts on, and no script."""
    hostile = f"{HOSTILE} ![x](http://e/) [y](javascript:z) <img src=x onerror=a>"
    story, folder = hostile_story(hostile)
    text, drawn = render_review(story, folder), render_plot(story)

    assert all(c.isprintable() or c == "\n" for c in text + drawn)
    assert shape(text) == shape(render_review(*hostile_story("plain\n" * 3 + "plain")))
    assert set(links_of(text)) == {"plot.svg", f"./{quote('response-' + hostile)}"}
    names = {node.tag.rpartition("}")[2] for node in ET.fromstring(drawn).iter()}
    assert names <= {"svg", "title", "style", "rect", "g", "path", "circle", "text"}


@pytest.mark.parametrize("address", ["https://evil.example/x", "HTTP://e.co", "www.evil.example"])
def test_an_address_in_foreign_text_is_no_link(address: str) -> None:
    """What readers of GitHub's Markdown would turn into a link by itself stands there as text."""
    story, folder = hostile_story(f"see {address} now")
    page = render_review(story, folder)
    lines = [line for line in page.splitlines() if not line.startswith("    ")]

    assert not re.search(r"://|(?i:www)\.", re.sub(r"`[^`]*`|\]\([^)]*\)", "", "\n".join(lines)))
    read = [c.content for block in MarkdownIt().parse(page) for c in block.children or ()]
    assert f"see {address} now" in "".join(read)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1).map(lambda text: f"x{text}"))
def test_no_text_changes_the_shape_of_a_page(text: str) -> None:
    """Whatever is written, a Markdown reader sees the blocks that plain text would give."""
    lines = text.splitlines()
    plain = "\n".join("plain" if line.strip() else "" for line in lines)

    page = render_review(*hostile_story(text))

    assert all(c.isprintable() or c == "\n" for c in page)
    assert shape(page) == shape(render_review(*hostile_story(plain)))


def texts_of(drawn: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(drawn).iter() if node.tag[-4:] == "text"]


def test_the_plot_shows_readings_against_their_thresholds(tmp_path: Path) -> None:
    """A panel for each criterion that failed, over all attempts, with the review between them."""
    place = run(pilot_plan(42, 108, 1), tmp_path / "ws", paid(TIGHTER, STOPS))
    (path,) = place.reviews.glob("*pilot_2*/plot.svg")
    told = texts_of(path.read_text())

    assert [t for t in told if t.endswith(("rate", "tokens"))] == ["runaway_rate", "median_tokens"]
    assert told.count("review") == 2
    assert {"0.21", "0.54", "0.005", "< 0.05", ">= 20", "<= 200", "attempt 3"} <= set(told)
    assert "prefers-color-scheme:dark" in path.read_text()
    assert "(plot.svg)" in report_of(place, "pilot_2")


def test_a_reading_that_is_missing_is_said_and_not_drawn() -> None:
    """Over a gap no line is drawn; without any reading there is no plot."""
    gap = plot.Panel(
        "m", "< 1", (("<", 1.0),), tuple(plot.Point(v, "fail") for v in (2.0, None, 3.0))
    )
    drawn = plot.render_plot("m", ["1", "2", "3"], [gap], 2)

    assert texts_of(drawn).count("not measured") == 1
    assert 'class="line"' not in drawn
    assert not plot.render_plot("m", ["1"], [replace(gap, points=(plot.Point(None, ""),))], 1)


@settings(max_examples=80, deadline=None)
@given(
    st.text(),
    st.lists(st.none() | st.floats(), min_size=1, max_size=6),
    st.lists(st.tuples(st.sampled_from(["<", "<=", ">", ">="]), st.floats())),
)
def test_any_plot_is_well_formed(
    name: str, values: list[float | None], bounds: list[tuple[str, float]]
) -> None:
    """Whatever was read, the picture parses as XML and no number in it is NaN."""
    points = tuple(plot.Point(plot.drawable(v), "fail") for v in values)
    panel = plot.Panel(name, "", tuple(bounds), points)
    drawn = plot.render_plot(name, [name] * len(points), [panel], 1)

    if any(p.value is not None for p in points):
        assert ET.fromstring(drawn).tag.endswith("svg")
        assert not re.search(r'="[^"]*(nan|inf)', drawn.replace(name, ""))
    else:
        assert not drawn


def test_a_page_that_says_nothing_new_is_not_written_again(tmp_path: Path) -> None:
    """A second look leaves the file as it is; a page that was changed by hand is mended."""
    plan = pilot_plan(42, 1, tokens=(61, 64))
    place = run(plan, tmp_path / "ws", paid(STOPS))
    (page,) = place.reviews.glob("*/report.md")
    before, text = page.stat().st_ino, page.read_text()

    with open_journal(place) as journal:
        projector = Projector(plan, place, journal, facts(journal.entries), SYSTEM)
        projector.reviews()
        assert page.stat().st_ino == before
        page.write_text("mine")
        projector.reviews()

    assert page.read_text() == text


def test_verify_holds_a_reviews_page_to_what_was_written(tmp_path: Path) -> None:
    """One byte more is damage, like in the session's report."""
    place = run(pilot_plan(42, 1, tokens=(61, 64)), tmp_path / "ws", paid(STOPS))
    assert verify(place).findings == ()
    (page,) = place.reviews.glob("*/report.md")
    page.write_text(page.read_text() + " ")

    assert [finding.where for finding in verify(place).findings] == [place.relative(page)]


def test_a_folder_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """A pipe in a file's place is not waited for."""
    os.mkfifo(tmp_path / "error.txt")

    assert read_folder(tmp_path) == Folder()
    assert read_folder(tmp_path / "none") == Folder()


def test_a_session_without_a_review_has_no_section(tmp_path: Path) -> None:
    """Nothing is told of what was not asked."""
    place = run(pilot_plan(1), tmp_path / "ws", lambda _: None)

    assert "## Reviews" not in render_report(build_view(read_entries(place)))
