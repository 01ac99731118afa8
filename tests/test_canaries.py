"""Canaries beside a real review: what is sent, what is counted, and whose word then counts."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_session import call, write_runbook

from agent.answer import Answer, open_actions
from agent.canaries import (
    FALSE_ALARM,
    FALSE_APPROVAL,
    NO_ANSWER,
    RECORD,
    REFUSED,
    RIGHT,
    Canaries,
    dearest,
    is_drawn,
    score,
    with_canaries,
)
from agent.canary_dossiers import make_pair
from agent.dossier import render
from agent.model_reviewer import reviewer as model
from agent.provider import OVERHEAD_TOKENS, QUOTED_TOKENS, Served
from agent.scripted_server import Says, ScriptedServer, Sends, scripted_server
from runbook import events as ev
from runbook import review_facts
from runbook.artifacts import canonical_json, describe, sha256_bytes, write_json
from runbook.budget import Limits
from runbook.cli.seams import reviewer_of
from runbook.clock import Clock
from runbook.contract import (
    Account,
    Attempt,
    Decision,
    EarlierReview,
    Instrument,
    Metric,
    Range,
    ReviewRequest,
)
from runbook.ledger import Ledger
from runbook.testing import LocalAccount, make_plan, make_review_request, make_step
from runbook.workspace import Workspace

RATE = {
    "metric": "runaway_rate",
    "kind": "rate",
    "threshold": "< 0.05",
    "verdict": "fail",
    "value": 0.2,
    "n": 100,
    "bound": None,
    "thin": False,
    "reason": "0.2 does not satisfy < 0.05",
}
KEPT = {
    **RATE,
    "metric": "kept",
    "kind": "census",
    "threshold": ">= 100 and <= 200",
    "verdict": "pass",
    "value": 120.0,
    "n": None,
    "reason": "120 satisfies >= 100 and <= 200",
}
ROWS = tuple({"instruction": f"Name {n} rivers.", "response": f"Rivers of {n}."} for n in range(3))
CERTIFIED = {
    "state": "ok",
    **{f"{side}{part}": 0.9 for side in ("sensitivity", "specificity") for part in ("", "_bound")},
    **{f"{side}_n": 100 for side in ("sensitivity", "specificity")},
}
FULL: dict[str, Any] = {
    "flagged": ROWS,
    "samples": ROWS[::-1],
    "certificates": (
        {"name": "runaway", **CERTIFIED, "auc": None},
        {"name": "pairs", **CERTIFIED, "auc": 0.93},
    ),
    "summary": {"qc": {"kept": 120, "shares": [0.4, 1], "model": "tiny"}, "rows": 240.0},
    "log_tail": "pilot: began\npilot: 240 rows\npilot: ended",
}
BARE: dict[str, Any] = dict.fromkeys(("flagged", "samples", "certificates"), ()) | {
    "summary": {},
    "log_tail": "",
}
ALLOWED = {
    "gate failed": ("retry", "stop", "needs_human", "override"),
    "smoke": ("retry", "stop", "needs_human", "override"),
    "instrument": ("recalibrate", "stop", "needs_human", "override"),
    "question": ("proceed", "stop", "needs_human"),
}


def ask_about(workspace: Path, reason: str = "question", **fields: Any) -> ReviewRequest:
    """A review of two attempts of the pilot."""
    criteria = (RATE, KEPT) if reason != "question" else (KEPT,)
    metrics = (Metric("runaway_rate", 0.2, 100, 20), Metric("kept", 120.0))
    runs = tuple(
        Attempt(
            number,
            1,
            "fail",
            ("runaway_rate: 0.2 does not satisfy < 0.05",),
            {"temperature": 0.5},
            changes={"temperature": 0.4} if number > 1 else {},
            criteria=criteria,
            metrics=metrics,
        )
        for number in (1, 2)
    )
    given = {
        "review_id": "pilot-2",
        "step": "pilot",
        "path": "reviews/20260101_000000_pilot",
        "reason": reason,
        "allowed": ALLOWED[reason],
        "criteria": criteria,
        "metrics": metrics,
        "attempts": runs,
        "adjustable": {"temperature": Range(0.2, 0.8)},
        "question": "May it go on?" if reason == "question" else "",
        **FULL,
        **fields,
    }
    return make_review_request(workspace, **given)


def decide(action: str, author: str = "openai small") -> Decision:
    return Decision(action, "because", author, person=False)


class Scripted:
    """A reviewer that answers the bad, the good and the real one as told, and keeps the order."""

    def __init__(self, real: ReviewRequest, /, **answers: str) -> None:
        self.real = real
        self.answers = answers
        self.asked: list[str] = []
        self.requests: list[ReviewRequest] = []

    def kind(self, request: ReviewRequest) -> str:
        known = {"real": self.real} | {k.kind: k.request for k in make_pair(self.real)}
        return next(name for name, of in known.items() if facts(of) == facts(request))

    def __call__(self, request: ReviewRequest) -> Decision | None:
        self.requests.append(request)
        self.asked.append(self.kind(request))
        action = self.answers.get(self.asked[-1], "stop")
        if not action and not request.stop():
            # It was asked, and said nothing that counts.
            request.account.reserve(request.path)
            request.account.settle(request.path)
        return decide(action) if action else None


def facts(request: ReviewRequest) -> tuple[Any, ...]:
    return (
        request.samples,
        request.flagged,
        request.certificates,
        request.question,
        request.log_tail,
    )


def outcomes(request: ReviewRequest) -> dict[str, str]:
    """Kind -> outcome, as kept in the review's folder."""
    path = request.workspace / request.path / RECORD
    return {row["kind"]: row["outcome"] for row in json.loads(path.read_text())["canaries"]}


@pytest.mark.parametrize("reason", sorted(ALLOWED))
def test_both_are_of_the_real_ones_shape(tmp_path: Path, reason: str) -> None:
    """Step, attempt, reason, vocabulary, criteria, ranges and attempts are the real review's."""
    real = ask_about(tmp_path, reason)
    bad, good = make_pair(real)
    assert (bad.kind, good.kind) == ("bad", "good")
    for known in (bad.request, good.request):
        same = ("step", "attempt", "reason", "allowed", "adjustable", "failures", "retries")
        assert [getattr(known, n) for n in same] == [getattr(real, n) for n in same]
        names = [(c["metric"], c["kind"], c["threshold"]) for c in known.criteria]
        assert names == [(c["metric"], c["kind"], c["threshold"]) for c in real.criteria]
        assert [a.attempt for a in known.attempts] == [1, 2]
        assert bool(known.question) == bool(real.question)
    assert bad.request != good.request
    assert make_pair(real) == (bad, good)


@pytest.mark.parametrize("reason", sorted(ALLOWED))
def test_the_prompt_does_not_tell_a_canary(tmp_path: Path, reason: str) -> None:
    """Nothing of the dossier that a model is sent says what is being asked, or under which id."""
    real = ask_about(tmp_path, reason)
    asker = Scripted(real)
    with_canaries(asker, Canaries())(real)
    assert len(asker.requests) == 3
    for request in asker.requests:
        page = render(request, fence="a1b2c3d4e5f6")
        told = page.lower()
        assert not [w for w in ("canar", "known-", "/canaries", request.path) if w in told]
        assert request.review_id not in page


SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "bare": BARE,
    "rows alone": {**BARE, "samples": ROWS},
    "no log": {"log_tail": ""},
    "no rows": {"flagged": (), "samples": ()},
    "nothing may be changed": {"adjustable": {}},
    "one attempt": {"attempt": 1, "attempts": ()},
    "asked before": {
        "earlier": (
            EarlierReview(
                "pilot-1",
                "pilot",
                1,
                "gate failed",
                "retry",
                {"temperature": 0.4},
                "r",
                "x",
                "worse",
                ("runaway_rate 0.1 -> 0.2 (< 0.05)",),
            ),
        )
    },
}
"""What of a dossier is there or is not."""


def pages(real: ReviewRequest) -> list[str]:
    """What a model is sent: the real one, the bad one and the good one."""
    requests = [real, *(known.request for known in make_pair(real))]
    return [render(r, fence="a1b2c3d4e5f6") for r in requests]


def real_one(tmp_path: Path, reason: str, shape: str) -> ReviewRequest:
    """A review as a session would ask it; an instrument's has readings in doubt."""
    real = ask_about(tmp_path, reason, **SHAPES[shape])
    real = (
        real if real.attempts else replace(real, attempts=ask_about(tmp_path, reason).attempts[:1])
    )
    if reason != "instrument":
        return real
    why = "runaway: the certificate is stale: its code changed since"
    told = f"read 0.2 from an instrument that is uncalibrated: {why}"
    criteria = ({**RATE, "verdict": "invalid", "reason": told}, KEPT)
    metrics = (
        replace(real.metrics[0], instrument=Instrument.UNCALIBRATED, note=why),
        *real.metrics[1:],
    )
    given = {"criteria": criteria, "metrics": metrics, "reasons": (f"runaway_rate: {told}",)}
    runs = tuple(replace(run, verdict="invalid", **given) for run in real.attempts)  # type: ignore[arg-type]
    return replace(real, verdict="invalid", attempts=runs, **given)  # type: ignore[arg-type]


def own_words(page: str) -> list[str]:
    """The page's headings and sentences, without data between fences, rows and figures."""
    kept, is_data = [], False
    for line in page.splitlines():
        is_data = line.startswith("    <<DATA") or (is_data and not line.startswith("    <<END"))
        if line and not is_data and line[0] not in "|- " and not line.startswith("# "):
            kept.append(line)
    return kept


def states_and_figures(page: str) -> list[list[bool | str]]:
    """Of each certificate its name, its state, and which figures it has."""
    rows = page.partition("## What vouches")[2].partition("## Raw rows")[0].splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows if row.startswith("| ")][1:]
    return [[*row[:2], *(cell != "-" for cell in row[2:])] for row in cells]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reason", sorted(ALLOWED))
def test_the_three_pages_have_the_same_parts(tmp_path: Path, reason: str, shape: str) -> None:
    """Headings and the page's own sentences are the same, whatever the real one has or lacks."""
    real = real_one(tmp_path, reason, shape)
    first, *made = pages(real)
    assert len(made) == 2
    # The bad one needs a line of log where it has neither flagged rows nor certificates.
    is_bare = shape in ("bare", "rows alone") and reason in ("gate failed", "smoke")
    may_have_a_log = {"It is empty."} if is_bare else set()
    for page in made:
        missing = [w for w in own_words(first) if w not in own_words(page)]
        assert set(missing) <= may_have_a_log
        assert own_words(page) == [w for w in own_words(first) if w not in missing]


def test_a_log_is_made_where_a_retry_would_have_no_ground(tmp_path: Path) -> None:
    """Where nothing may be changed, the good one says what was wrong and is so no more."""
    for fields in ({}, BARE):
        real = ask_about(tmp_path, "gate failed", **{**fields, "adjustable": {}})
        _, good = make_pair(real)
        lines = good.request.log_tail.splitlines()
        assert len(lines) == (1 if fields else 3)
        assert "batch 3 of 8 was lost" in lines[-1]


@pytest.mark.parametrize("reason", sorted(ALLOWED))
def test_certificates_are_told_as_real_ones_are(tmp_path: Path, reason: str) -> None:
    """State, keys and figures are those that a session's own certificates lead to."""
    rate = {"successes": 40, "n": 50, "bound": 0.69}
    rows = {
        name: {"within_bounds": ok, "sensitivity": rate, "specificity": rate, **more}
        for name, ok, more in (("pairs", False, {"auc": 0.4}), ("runaway", True, {}))
    }
    body = {"certificate": 1, "instruments": rows}
    path = tmp_path / "certificate.json"
    write_json(path, {**body, "sha256": sha256_bytes(canonical_json(body).encode())})
    steps = make_step("calibration"), make_step("pilot", inputs=("calibration",))
    made = describe("certificate", path, tmp_path)
    known = [ev.StepFinished("calibration", 1, 1, (), (made,), 0, 1.0, {}, (), ())]
    told = review_facts.certificates(make_plan(*steps), known, Workspace.at(tmp_path), "pilot")
    real = replace(real_one(tmp_path, reason, "full"), certificates=told)
    vocabulary = {str(of["state"]) for of in told}
    assert vocabulary == {"ok", "below its bounds"}
    first, *others = (states_and_figures(page) for page in pages(real))
    for found, state in zip(others, ("below its bounds", "ok"), strict=True):
        assert found == [[name, state, *figures] for name, _, *figures in first]
    for known_one in make_pair(real):
        keys = [of.keys() for of in known_one.request.certificates]
        assert keys == [of.keys() for of in told]
        assert {of["state"] for of in known_one.request.certificates} <= vocabulary


@pytest.mark.parametrize("state", ["the certificate cannot be read", "the certificate was changed"])
def test_a_certificate_without_figures_is_made_with_some(tmp_path: Path, state: str) -> None:
    """It bears an instrument's name: a step's stands only where nothing can be read."""
    real = ask_about(
        tmp_path, "gate failed", certificates=({"name": "calibration", "state": state},)
    )
    found = [known.request.certificates[0] for known in make_pair(real)]
    assert [of["name"] for of in found] == ["runaway"] * 2
    assert [of["state"] for of in found] == ["below its bounds", "ok"]


def shape_of(value: Any) -> Any:
    """Keys, lengths and types."""
    match value:
        case dict():
            return {name: shape_of(inner) for name, inner in value.items()}
        case list() | tuple():
            return [shape_of(inner) for inner in value]
    return type(value)


@pytest.mark.parametrize("reason", sorted(ALLOWED))
def test_counts_have_the_real_keys_and_other_values(tmp_path: Path, reason: str) -> None:
    """No text of the real ones is taken over; a reading told twice is told alike."""
    text = "the detector is known to be wrong"
    counted = {
        "kept": 3,
        "by kind": {"lists": [12, 0.5, None, True], "note": text},
        "steps": 240.0,
        "empty": {},
    }
    for known in make_pair(ask_about(tmp_path, reason, summary=counted)):
        made = known.request.summary
        assert shape_of(made) == shape_of(counted)
        assert text not in str(made)
        assert made["kept"] == 120
        assert 0.9 * 240 <= made["steps"] <= 1.1 * 240


def test_counts_of_any_kind_can_be_made_anew(tmp_path: Path) -> None:
    """Neither depth nor size of what a step counted keeps the canaries from being asked."""
    deep: Any = 1
    for _ in range(400):
        deep = {"a": [deep]}
    odd = {"deep": deep, "huge": 10**400, "far": -1e308, "none": float("nan"), "kept": None}
    for known in make_pair(ask_about(tmp_path, summary=odd)):
        assert list(known.request.summary) == list(odd)
        assert known.request.summary["huge"] == 10**400
        assert "nested too deeply" in render(known.request, fence="a1b2c3d4e5f6")


def plainly(request: ReviewRequest) -> bool:
    """What anyone would say who reads the page: whether to go on with it."""
    first, last = (request.attempts[place].criteria[0] for place in (0, -1))
    broken = any(of["state"] != "ok" for of in request.certificates)
    drawn = request.samples or (request.flagged if request.reason == "question" else ())
    spoilt = any(
        len(set(row["response"].split())) * 3 < len(row["response"].split()) for row in drawn
    )
    doubts = any(m.instrument is Instrument.BROKEN for m in request.metrics)
    told = any(w in request.log_tail + request.question for w in ("no difference", "not one can"))
    return not (broken or spoilt or doubts or told or last["value"] > first["value"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reason", sorted(ALLOWED))
def test_the_answer_follows_from_the_page(tmp_path: Path, reason: str, shape: str) -> None:
    """Whatever the real one lacks, one who reads refuses the bad one and not the good one."""
    bad, good = make_pair(real_one(tmp_path, reason, shape))
    assert (plainly(bad.request), plainly(good.request)) == (False, True)


@pytest.mark.parametrize("reason", ["gate failed", "smoke"])
def test_the_readings_agree_with_their_verdicts(tmp_path: Path, reason: str) -> None:
    """The good one nears its threshold; in the bad one every change makes it worse."""
    bad, good = make_pair(ask_about(tmp_path, reason))
    nearing = [a.criteria[0]["value"] for a in good.request.attempts]
    worsening = [a.criteria[0]["value"] for a in bad.request.attempts]
    assert nearing[1] < nearing[0]
    assert worsening[1] > worsening[0]
    verdicts = [k.request.attempts[-1].verdict for k in (bad, good)]
    assert verdicts == ["fail", "underpowered" if reason == "smoke" else "fail"]
    for known in (bad, good):
        for run in known.request.attempts:
            for c in run.criteria:
                holds = c["value"] < 0.05 if c["metric"] == "runaway_rate" else c["value"] == 120
                assert holds == (c["verdict"] != "fail")
            worst = {c["verdict"] for c in run.criteria} - {"pass"}
            assert worst == {run.verdict}
            assert [m.value for m in run.metrics] == [c["value"] for c in run.criteria]


@pytest.mark.parametrize(
    ("threshold", "kind", "n"),
    [
        ("<= 0", "census", None),
        (">= 100", "census", None),
        ("> 0", "statistic", None),
        ("< 0.05", "rate", 5),
        (">= 0.5", "rate", 5),
        ("< -6", "statistic", None),
        ("< 0.01", "p_value", None),
    ],
)
def test_a_failing_reading_is_on_the_wrong_side(
    tmp_path: Path, threshold: str, kind: str, n: int | None
) -> None:
    """Whatever the criterion, a failing value does violate it, rounded as its kind is."""
    c = {**RATE, "threshold": threshold, "kind": kind, "n": n}
    runs = (Attempt(1, 1, "fail", (), {}, criteria=(c,)),)
    real = ask_about(tmp_path, "gate failed", criteria=(c,), attempts=runs, attempt=1)
    sign, bound = threshold.split()
    tests = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}
    for known in make_pair(real):
        value = float(known.request.criteria[0]["value"])
        assert not tests[sign](value, float(bound))


@pytest.mark.parametrize("reason", ["sentinel", "closing", "underpowered"])
def test_what_releases_nothing_gets_no_canary(tmp_path: Path, reason: str) -> None:
    """Where no answer could be a false approval, only the real question is asked."""
    real = replace(ask_about(tmp_path), reason=reason, allowed=("stop", "needs_human"), question="")
    asker = Scripted(real, real="stop")
    assert with_canaries(asker, Canaries())(real) == decide("stop")
    assert asker.asked == ["real"]


@pytest.mark.parametrize(
    ("bad", "good", "expected"),
    [
        ("stop", "proceed", (RIGHT, RIGHT)),
        ("proceed", "proceed", (FALSE_APPROVAL, RIGHT)),
        ("needs_human", "needs_human", (RIGHT, FALSE_ALARM)),
        ("", "", (NO_ANSWER, NO_ANSWER)),
        ("override", "retry", (NO_ANSWER, NO_ANSWER)),
    ],
)
def test_outcomes_are_what_the_answers_say(
    tmp_path: Path, bad: str, good: str, expected: tuple[str, str]
) -> None:
    """Approval of the bad one, refusal of the good one; an answer out of bounds is none."""
    real = ask_about(tmp_path)
    decision = with_canaries(Scripted(real, bad=bad, good=good, real="stop"), Canaries())(real)
    assert decision == decide("stop")
    assert outcomes(real) == dict(zip(("bad", "good"), expected, strict=True))


def test_they_are_recorded_before_the_real_one_is_asked(tmp_path: Path) -> None:
    """The real review is asked last, when both outcomes are on disk."""
    real = ask_about(tmp_path)
    seen: list[dict[str, str]] = []

    def ask(request: ReviewRequest) -> Decision | None:
        if request is real:
            seen.append(outcomes(real))
        return decide("stop")

    with_canaries(ask, Canaries())(real)
    assert seen == [{"bad": RIGHT, "good": FALSE_ALARM}]


def test_the_order_differs_from_review_to_review(tmp_path: Path) -> None:
    """Neither place says which one it is; asked again, the order is the same."""
    first = set()
    for number in range(24):
        real = ask_about(tmp_path, review_id=f"pilot-{number}", path=f"reviews/{number}")
        asker = Scripted(real)
        with_canaries(asker, Canaries())(real)
        first.add((asker.asked[0], asker.requests[0].path.rpartition("/")[2]))
    assert first == {("bad", "a"), ("good", "a")}


def test_a_repeated_review_asks_no_canary_twice(tmp_path: Path) -> None:
    """After a kill the record stands, and only what is missing in it is asked."""
    real = ask_about(tmp_path)
    with_canaries(Scripted(real, bad="proceed"), Canaries())(real)
    again = Scripted(real, bad="stop")
    with_canaries(again, Canaries())(real)
    assert again.asked == ["real"]
    path = tmp_path / real.path / RECORD
    rows = json.loads(path.read_text())["canaries"]
    path.write_text(json.dumps({"canaries": rows[:1]}))
    third = Scripted(real, bad="proceed")
    with_canaries(third, Canaries())(real)
    assert third.asked == [rows[1]["kind"], "real"]
    assert outcomes(real) == {"bad": FALSE_APPROVAL, "good": FALSE_ALARM}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"canaries": [1]}', '{"canaries": [{"a": 1}]}'])
def test_a_record_that_was_touched_is_made_anew(tmp_path: Path, text: str) -> None:
    """What cannot be read vouches for nobody: the canaries are asked again."""
    real = ask_about(tmp_path)
    path = tmp_path / real.path / RECORD
    path.parent.mkdir(parents=True)
    path.write_text(text)
    asker = Scripted(real, bad="stop", good="proceed")
    with_canaries(asker, Canaries())(real)
    assert sorted(asker.asked) == ["bad", "good", "real"]
    assert outcomes(real) == {"bad": RIGHT, "good": RIGHT}


def test_a_stop_in_between_records_nothing(tmp_path: Path) -> None:
    """A canary that was given up for the session's stop is asked again, and the real one waits."""
    real = ask_about(tmp_path, stop=lambda: "asked to")
    asker = Scripted(real, bad="", good="")
    assert with_canaries(asker, Canaries())(real) is None
    assert len(asker.asked) == 1
    assert not (tmp_path / real.path / RECORD).exists()


def buys(usd: float, action: str = "stop") -> Callable[[ReviewRequest], Decision | None]:
    """A reviewer that pays for each question."""

    def ask(request: ReviewRequest) -> Decision | None:
        if request.account.reserve(request.path, usd):
            return None
        request.account.settle(request.path, usd / 2, input_tokens=3, output_tokens=1)
        return decide(action)

    return ask


def test_canaries_are_paid_from_the_real_account(tmp_path: Path) -> None:
    """Three questions, three requests of one account, with what each did cost."""
    account = LocalAccount()
    real = ask_about(tmp_path, account=account)
    with_canaries(buys(0.2), Canaries())(real)
    paths = [f"{real.path}/canaries/a", f"{real.path}/canaries/b", real.path]
    assert (account.reserved, account.settled) == (paths, paths)
    assert account.reserved_usd == [0.2] * 3
    assert account.settled_usd == [0.1] * 3
    assert account.tokens == [(3, 1)] * 3


def test_a_canary_without_money_does_not_block_the_review(tmp_path: Path) -> None:
    """The refusal is on record as such, and the real question is asked."""
    real = ask_about(tmp_path)
    poor = replace(real, account=LocalAccount("nothing is left"))

    def ask(request: ReviewRequest) -> Decision | None:
        if request.path == real.path:
            return decide("stop")
        return buys(0.2)(request)

    assert with_canaries(ask, Canaries())(poor) == decide("stop")
    assert outcomes(real) == {"bad": REFUSED, "good": REFUSED}


def account_of(facts: list[Any], *, request_usd: float = 0.0, **limits: Any) -> Account:
    """A real session's account, its facts in this list."""
    ledger = Ledger(
        Limits(**limits),
        Clock(monotonic=lambda: 0.0),
        lambda: facts,
        facts.append,
        request_usd=request_usd,
    )
    return ledger.account("pilot-2")


def sent_in(facts: list[Any]) -> list[str]:
    """Which of the three was paid for, in order: a, b or the review's folder."""
    return [f.key.rpartition("/")[2] for f in facts if isinstance(f, ev.RequestSent)]


@pytest.mark.parametrize("limit", ["review_usd", "usd"])
@pytest.mark.parametrize("names_a_price", [True, False])
@pytest.mark.parametrize(
    ("left", "expected"),
    [(0.85, ["a", "b", "real"]), (0.65, ["a", "real"]), (0.55, ["real"]), (0.1, [])],
)
def test_canaries_keep_back_what_the_review_needs(
    tmp_path: Path, limit: str, names_a_price: bool, left: float, expected: list[str]
) -> None:
    """At 0.20 USD a canary is sent where 0.60 are left: itself, the question and one repair."""
    known: list[Any] = []
    account = account_of(known, request_usd=0.2, **{limit: left})
    real = ask_about(tmp_path, account=account, path="reviews/real")
    decision = with_canaries(pays(0.2 if names_a_price else None), Canaries())(real)
    assert sent_in(known) == expected
    assert (decision == decide("stop")) == ("real" in expected)


def pays(usd: float | None) -> Callable[[ReviewRequest], Decision | None]:
    """A reviewer that pays half of what it reserved at 0.20 USD."""

    def ask(request: ReviewRequest) -> Decision | None:
        if request.account.reserve(request.path, usd):
            return None
        request.account.settle(request.path, 0.1)
        return decide("stop")

    return ask


def record_of(request: ReviewRequest) -> list[tuple[str, str]]:
    """Name and outcome of each canary that has one."""
    path = request.workspace / request.path / RECORD
    rows = json.loads(path.read_text())["canaries"] if path.exists() else []
    return [(row["name"], row["outcome"]) for row in rows]


def served_by(server: ScriptedServer, provider: str = "openai", **fields: Any) -> Served:
    """A tiny model of this server, at 2 and 10 dollars per million tokens."""
    given = {"timeout_s": 20.0, "max_output_tokens": 500, "context_tokens": 20_000}
    prices = {"usd_per_mtok": {"input": 2.0, "output": 10.0}}
    where = server.base_url(provider)
    return Served(provider, "tiny", where, "THE_API_KEY", **{**given, **prices, **fields})


def declared_of(*models: Served) -> dict[str, Any]:
    """Those models as ``Plan.reviewer`` has them: the first, and its fallback."""
    first, *rest = [{**vars(served)} for served in models]
    return {**first, **({"fallback": rest[0]} if rest else {})}


NO = {"action": "stop", "reason": "no", "changes": {}, "confidence": 0.5}
STOP = Says(json.dumps({**NO, "concerns": [], "action_items": []}))


def ask_models(
    real: ReviewRequest, *models: Served, key: str = "k", canaries: bool = True
) -> Decision | None:
    """The real reviewer with what it keeps back, as the command line puts it together."""
    ask = model(models, environ={"THE_API_KEY": key} if key else {}, sleep=lambda _: None)
    if canaries:
        ask = with_canaries(ask, Canaries(), dearest(declared_of(*models)))
    return ask(real)


@pytest.mark.parametrize("given", [{}, {"usd_per_mtok": None, "max_usd": 0.1}, {"max_usd": 0.03}])
def test_what_is_kept_back_is_a_full_context_of_the_dearest_model(given: dict[str, Any]) -> None:
    """Three bytes a token of the longest prompt, all of the answer, and never above max_usd."""
    cheap = Served("openai", "a", "https://x/v1", "K", 1.0, 500, 20_000, max_usd=0.01)
    dear = {"usd_per_mtok": {"input": 2.0, "output": 10.0}, **given}
    other = Served("anthropic", "b", "https://y", "K", 1.0, 500, 90_000, **dear)

    def full(prompt_tokens: int) -> float:
        usd = ((3 * prompt_tokens + OVERHEAD_TOKENS) * 2.0 + 500 * 10.0) / 1e6
        return min(usd, float(given.get("max_usd", usd)))

    # Beside a smaller context its question is no longer than that allows, but for what it quotes.
    both = given.get("max_usd", 1.0) if "usd_per_mtok" in given else full(19_500 + QUOTED_TOKENS)
    assert dearest(declared_of(cheap, other)) == pytest.approx(both)
    alone = both if "usd_per_mtok" in given else full(89_500)
    assert dearest(declared_of(other)) == pytest.approx(alone)
    assert dearest(declared_of(cheap)) == 0.01
    assert dearest({"provider": "command", "command": ["x"]}) is None


@pytest.mark.parametrize("cost", [0.2, None])
def test_a_dear_real_question_is_kept_the_money_for(tmp_path: Path, cost: float | None) -> None:
    """A cheap canary is not sent where the real question and its repair would lack the money."""
    for left, expected in ((1.3, ["a", "b", "real"]), (0.99, ["real"])):
        known: list[Any] = []
        account = account_of(known, request_usd=0.2, review_usd=left)
        real = ask_about(tmp_path / str(left), account=account, path="reviews/real")
        with_canaries(pays(cost), Canaries(), 0.5)(real)
        assert sent_in(known) == expected


def test_a_long_real_dossier_is_not_starved_by_short_canaries(tmp_path: Path) -> None:
    """Money for the real question alone goes to it, though each canary would be affordable."""
    rows = tuple({"raw": f"{n} " + "some words of a row " * 150} for n in range(10))
    long = {"flagged": rows, "samples": rows}

    def go(folder: str, money: float, *, canaries: bool) -> tuple[Decision | None, list[float]]:
        known: list[Any] = []
        account = account_of(known, review_usd=money)
        real = ask_about(tmp_path / folder, "gate failed", account=account, **long)
        with scripted_server(*[STOP] * 3) as server:
            found = ask_models(real, served_by(server), canaries=canaries)
        return found, [f.usd for f in known if isinstance(f, ev.RequestSent)]

    decision, (usd,) = go("alone", 9.0, canaries=False)
    assert decision is not None
    for share in (1.001, 1.999):
        decision, sent = go(f"with {share}", usd * share, canaries=True)
        assert decision is not None
        assert sent == pytest.approx([usd], rel=0.01)
    assert len(go("rich", 9.0, canaries=True)[1]) == 3


def test_a_declared_model_is_kept_the_money_for(tmp_path: Path) -> None:
    """The reviewer that the command line makes knows what a full context costs."""
    account = account_of([], review_usd=0.25)
    real = ask_about(tmp_path, "gate failed", account=account)
    with scripted_server(STOP) as server:
        canaries = {"share": 1.0, "max_false_rate": 0.5, "min_n": 1}
        declared = {**declared_of(served_by(server)), "tries": 1, "canaries": canaries}
        decision = reviewer_of(make_plan(reviewer=declared))(real)
    assert decision is not None
    assert record_of(real) == [("a", REFUSED), ("b", REFUSED)]


def test_a_dear_fallback_is_kept_the_money_for(tmp_path: Path) -> None:
    """Canaries that a cheap model would answer leave the fallback what the real question costs."""
    for canaries in (False, True):
        known: list[Any] = []
        account = account_of(known, review_usd=1.0)
        real = ask_about(tmp_path / str(canaries), "gate failed", account=account)
        with scripted_server(Sends(b"", 401)) as first, scripted_server(STOP) as second:
            dear = {"usd_per_mtok": {"input": 30.0, "output": 300.0}}
            models = served_by(first), served_by(second, "anthropic", **dear)
            decision = ask_models(real, *models, canaries=canaries)
        assert decision is not None
        assert decision.author == "anthropic tiny"
    assert record_of(real) == [("a", REFUSED), ("b", REFUSED)]


def test_without_a_key_no_canary_is_used_up(tmp_path: Path) -> None:
    """Nothing was asked, so nothing is on record; once the key is there all three are asked."""
    account = LocalAccount()
    real = ask_about(tmp_path, "gate failed", account=account)
    with scripted_server(*[STOP] * 3) as server:
        far = replace(served_by(server), base_url="https://192.0.2.1/v1")
        assert ask_models(real, far, key="") is None
        assert (record_of(real), account.reserved) == ([], [])
        assert ask_models(real, served_by(server)) is not None
        assert len(server.received) == 3
        again = ask_models(real, served_by(server))
        assert len(server.received) == 3
    assert again is not None
    assert sorted(outcomes(real)) == ["bad", "good"]
    assert [name for name, _ in record_of(real)] == ["a", "b"]


@pytest.mark.parametrize("fault", [Sends(b"", 401), Sends(b"", 503), Sends(fault="close")])
def test_an_outage_uses_up_no_canary(tmp_path: Path, fault: Sends) -> None:
    """A server that is down answers none of them; afterwards each is asked, and recorded once."""
    known: list[Any] = []
    real = ask_about(tmp_path, "gate failed", account=account_of(known))
    with scripted_server(*[fault] * 12) as server:
        assert ask_models(real, served_by(server)) is None
        assert record_of(real) == []
    real = replace(real, account=account_of(known))
    with scripted_server(*[STOP] * 3) as server:
        other = replace(served_by(server), model="other")
        decision = ask_models(real, other)
        assert decision is not None
        assert len(server.received) == 3
    assert [name for name, _ in record_of(real)] == ["a", "b"]
    assert outcomes(real) == {"bad": RIGHT, "good": FALSE_ALARM}


def test_lost_connections_are_not_told_as_a_lack_of_money(tmp_path: Path) -> None:
    """After them the account refuses for another reason, and the real question is asked."""
    known: list[Any] = []
    real = ask_about(tmp_path, "gate failed", account=account_of(known))
    with scripted_server(*[Sends(fault="close")] * 4, *[STOP] * 3) as server:
        decision = ask_models(real, served_by(server))
    assert decision is not None
    assert record_of(real) == []


def test_what_was_asked_and_cannot_be_read_is_on_record(tmp_path: Path) -> None:
    """Text that is no answer, twice, is the reviewer's own doing; it is not asked for again."""
    real = ask_about(tmp_path, "gate failed")
    with scripted_server(*[Says("yes")] * 4, STOP) as server:
        decision = ask_models(real, served_by(server))
        assert len(server.received) == 5
    assert decision is not None
    assert record_of(real) == [("a", NO_ANSWER), ("b", NO_ANSWER)]


def test_one_canary_without_an_answer_leaves_the_others_record(tmp_path: Path) -> None:
    """It alone is asked again at the review's next run."""
    real = ask_about(tmp_path)

    def is_down(request: ReviewRequest) -> Decision | None:
        return decide("stop") if request.path.endswith("/a") else None

    assert with_canaries(is_down, Canaries())(real) is None
    ((name, _),) = before = record_of(real)
    assert name == "a"
    asker = Scripted(real)
    assert with_canaries(asker, Canaries())(real) == decide("stop")
    assert [r.path.rpartition("/")[2] for r in asker.requests[:-1]] == ["b"]
    assert record_of(real)[0] == before[0]
    assert [name for name, _ in record_of(real)] == ["a", "b"]


def test_a_resumed_canary_looks_at_what_is_left_by_then(tmp_path: Path) -> None:
    """A kill in its midst leaves what it reserved spent, whatever the dossier says was left."""
    known: list[Any] = []
    told = {"review_usd": {"limit": 0.75, "spent": 0.0, "left": 0.75}}

    def killed(request: ReviewRequest) -> Decision | None:
        request.account.reserve(request.path, 0.2)
        raise KeyboardInterrupt

    for _ in range(3):
        account = account_of(known, review_usd=0.75)
        real = ask_about(tmp_path, account=account, path="reviews/real", budget=told)
        with pytest.raises(KeyboardInterrupt):
            with_canaries(killed, Canaries())(real)
    assert sent_in(known) == ["a"]
    assert account.affords(2, 0.2)


@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.0, 0, 0), (0.25, 200, 300), (1.0, 1000, 1000)]
)
def test_a_share_of_the_reviews_is_drawn(tmp_path: Path, share: float, low: int, high: int) -> None:
    """By run and review alone, so that a resume draws the same."""
    names = [f"pilot-{n}" for n in range(1000)]
    drawn = [is_drawn(make_review_request(tmp_path, review_id=name), share) for name in names]
    assert low <= sum(drawn) <= high
    again = [is_drawn(make_review_request(tmp_path, review_id=name), share) for name in names]
    assert drawn == again


def test_a_review_that_is_not_drawn_is_asked_alone(tmp_path: Path) -> None:
    """No folder, no record, one question."""
    real = ask_about(tmp_path)
    asker = Scripted(real)
    with_canaries(asker, Canaries(share=0.0))(real)
    assert asker.asked == ["real"]
    assert not (tmp_path / real.path).exists()


def review_many(tmp_path: Path, bad: list[str], settings: Canaries) -> Decision | None:
    """Reviews one after the other, each with its answer to the bad one; the last decision."""
    decision = None
    for number, action in enumerate(bad):
        real = ask_about(tmp_path, review_id=f"pilot-{number}", path=f"reviews/{number}")
        asker = Scripted(real, bad=action, good="proceed", real="proceed")
        decision = with_canaries(asker, settings)(real)
    return decision


def test_proceed_of_a_reviewer_that_approves_anything_is_not_acted_on(tmp_path: Path) -> None:
    """Above the declared rate a person decides, and reads what the reviewer had said."""
    found = review_many(tmp_path, ["stop", "proceed", "proceed"], Canaries(1.0, 0.5, 3))
    assert found is not None
    assert (found.action, found.author, found.person) == ("needs_human", "openai small", False)
    assert found.action_items[0] == "its own answer, not acted on: proceed: because"
    assert "Trust in the reviewer" in found.action_items[1]


def test_later_dossiers_do_not_tell_that_canaries_were_the_cause(tmp_path: Path) -> None:
    """The held answer's reason is told again to the same model, in words that give nothing away."""
    found = review_many(tmp_path, ["proceed"], Canaries(1.0, 0.5, 1))
    assert found is not None
    assert not [c for c in found.reason if c.isdigit()]
    told = EarlierReview(
        "pilot-0", "pilot", 1, "question", found.action, {}, found.reason, found.author, "pending"
    )
    real = ask_about(tmp_path, earlier=(told,))
    page = render(real, fence="a1b2c3d4e5f6")
    assert found.reason in page
    assert [w for w in ("known-", "canar", "trust in", "approved") if w in page.lower()] == []


@pytest.mark.parametrize(
    ("bad", "settings"),
    [
        (["stop", "stop", "proceed"], Canaries(1.0, 0.5, 3)),
        (["stop", "proceed"], Canaries(1.0, 0.5, 2)),
        (["proceed", "proceed"], Canaries(1.0, 0.5, 3)),
        (["", "", "proceed"], Canaries(1.0, 0.5, 2)),
    ],
    ids=["below the rate", "at the rate", "too few", "no answer counts neither way"],
)
def test_proceed_stands_below_the_declared_rate(
    tmp_path: Path, bad: list[str], settings: Canaries
) -> None:
    """The rate must be above what is declared, over so many as are declared."""
    assert review_many(tmp_path, bad, settings) == decide("proceed")


def test_other_answers_and_people_keep_their_word(tmp_path: Path) -> None:
    """Only a model's proceed is held; a stop, and a person's proceed, are acted on."""
    review_many(tmp_path, ["proceed"] * 3, Canaries(1.0, 0.1, 1))
    real = ask_about(tmp_path, path="reviews/last")
    settings = Canaries(0.0, 0.1, 1)
    assert with_canaries(lambda _: decide("stop"), settings)(real) == decide("stop")
    person = Decision("proceed", "I looked", "openai small", person=True)
    assert with_canaries(lambda _: person, settings)(real) == person
    other = decide("proceed", "anthropic large")
    assert with_canaries(lambda _: other, settings)(real) == other


def test_scores_are_kept_by_author(tmp_path: Path) -> None:
    """One model's false approvals are not another's."""
    review_many(tmp_path, ["proceed", "stop"], Canaries())
    reviews = tmp_path / "reviews"
    assert (score(reviews, "openai small").answered, score(reviews, "openai small").approved) == (
        2,
        1,
    )
    assert score(reviews, "anthropic large").answered == 0


def test_history_of_the_same_step_agrees_with_the_made_readings(tmp_path: Path) -> None:
    """What came of this step's advice is told of the made series; other steps' stays as it is."""
    of = {"attempt": 1, "asked": "gate failed", "action": "retry", "changes": {"temperature": 0.4}}
    earlier = tuple(
        EarlierReview(f"{step}-1", step, reason="r", author="x", outcome=outcome, effect=told, **of)  # type: ignore[arg-type]
        for step, outcome, told in (
            ("pilot", "passed", ("runaway_rate 0.9 -> 0.2 (< 0.05)",)),
            ("contamination", "worse", ()),
        )
    )
    real = ask_about(tmp_path, "gate failed", earlier=earlier)
    for known, outcome in zip(make_pair(real), ("worse", "better"), strict=True):
        mine, other = known.request.earlier
        assert other == earlier[1]
        first, last = (a.criteria[0]["value"] for a in known.request.attempts)
        assert (mine.outcome, mine.effect) == (
            outcome,
            (f"runaway_rate {first:.4g} -> {last:.4g} (< 0.05)",),
        )
        assert mine.changes == known.request.attempts[-1].changes
        assert (mine.author, mine.action, mine.reason == "r") == ("x", "retry", False)
        assert set(open_actions(known.request)) == {"retry", "stop", "needs_human"}


def test_a_reading_that_was_never_made_is_made_for_both(tmp_path: Path) -> None:
    """At an instrument's review both dossiers give a number and its doubt, and nothing else."""
    missing = {**RATE, "verdict": "invalid", "value": None, "reason": "was not measured"}
    runs = (Attempt(1, 1, "invalid", ("runaway_rate: was not measured",), {}, criteria=(missing,)),)
    real = ask_about(tmp_path, "instrument", criteria=(missing,), attempts=runs, attempt=1)
    for known, state in zip(make_pair(real), ("broken", "uncalibrated"), strict=True):
        (metric,), (reason,) = known.request.metrics, known.request.reasons
        assert (metric.value, metric.instrument.value) == (0.01, state)
        told = f"runaway_rate: read 0.01 from an instrument that is {state}: {metric.note}"
        assert reason == told


def says_proceed(folder: Path) -> tuple[list[str], Path]:
    """A program that always goes on, and the file in which it leaves a dot for each start."""
    program, started = folder / "reviewer.py", folder / "started"
    known = {"action": "proceed", "reason": "fine", "changes": {}, "confidence": 0.5}
    answer = {name: known.get(name, []) for name in Answer.model_fields}
    program.write_text(
        f"import json, sys\nsys.stdin.read()\nopen({str(started)!r}, 'a').write('.')\n"
        f"print(json.dumps({answer!r}))\n"
    )
    return [sys.executable, "-I", "-S", str(program)], started


def test_a_runbook_that_declares_canaries_gets_them(tmp_path: Path) -> None:
    """A real program is started for all three; after a kill that lost the record, for none."""
    command, started = says_proceed(tmp_path)
    declared = {
        "provider": "command",
        "command": command,
        "timeout_s": 60.0,
        "canaries": {"share": 1.0, "max_false_rate": 0.5, "min_n": 1},
    }
    reviewer = reviewer_of(make_plan(reviewer=declared))
    real = ask_about(tmp_path)
    for _ in range(2):
        decision = reviewer(real)
        assert decision is not None
        assert decision.action == "needs_human"
        assert outcomes(real) == {"bad": FALSE_APPROVAL, "good": RIGHT}
        assert started.read_text() == "..."
        (tmp_path / real.path / RECORD).unlink()
    plain = reviewer_of(make_plan(reviewer={k: v for k, v in declared.items() if k != "canaries"}))
    decision = plain(real)
    assert decision is not None
    assert decision.action == "proceed"


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_model_cannot_tell_the_three_apart(tmp_path: Path, provider: str) -> None:
    """What goes over the wire names no canary, no id and no folder, and each one is paid for."""
    account = LocalAccount()
    real = ask_about(tmp_path, "gate failed", account=account)
    says = {"action": "stop", "reason": "no", "changes": {}, "confidence": 0.5}
    says |= {"concerns": [], "action_items": []}
    with scripted_server(*[Says(json.dumps(says))] * 3) as server:
        where = server.base_url(provider)
        given = {"timeout_s": 20.0, "max_output_tokens": 500, "context_tokens": 20_000}
        served = Served(provider, "tiny", where, "THE_API_KEY", max_usd=0.1, **given)  # type: ignore[arg-type]
        ask = model([served], environ={"THE_API_KEY": "k"}, sleep=lambda _: None)
        decision = with_canaries(ask, Canaries())(real)
    assert decision is not None
    assert decision.action == "stop"
    assert outcomes(real) == {"bad": RIGHT, "good": FALSE_ALARM}
    sent = [json.dumps(one.body) for one in server.received]
    assert len(set(sent)) == len(account.reserved) == len(account.settled) == 3
    for told in sent:
        assert [
            w for w in ("canar", "known-", real.path, real.review_id) if w in told.lower()
        ] == []
    texts = {"input", "instructions", "messages", "system"}
    settings = [{k: v for k, v in r.body.items() if k not in texts} for r in server.received]
    assert settings[0]["model"] == "tiny"
    assert settings[0] == settings[1] == settings[2]


@pytest.mark.parametrize(("limit", "code"), [(0.5, 3), (1.0, 0)])
def test_a_session_waits_for_a_person_where_the_reviewer_approves_anything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], limit: float, code: int
) -> None:
    """A whole run: above the declared rate its proceed is held, and at that rate it is not."""
    path = write_runbook(tmp_path, {"metrics": {"score": 0.9}, "question": "May it go on?"})
    document = json.loads(path.read_text())
    command, started = says_proceed(tmp_path)
    canaries = {"max_false_rate": limit, "min_n": 1}
    document["reviewer"] = {"provider": "command", "command": command, "canaries": canaries}
    path.write_text(json.dumps(document))
    workspace = tmp_path / "w"
    done = call(capfd, "run", path, "--workspace", workspace)
    assert (done.code, started.read_text()) == (code, "..."), done.err
    again = call(capfd, "run", path, "--workspace", workspace)
    assert (again.code, started.read_text()) == (code, "...")
    report = (workspace / "report.md").read_text()
    assert "## Trust in the reviewer" in report
    assert "1.000 (1/1)" in report
    page = next((workspace / "reviews").glob("*/report.md")).read_text()
    assert ("not acted on: proceed: fine" in page) == (limit < 1)
    assert ("Trust in the reviewer" in page) == (limit < 1)
    assert call(capfd, "verify", "--workspace", workspace).code == 0
