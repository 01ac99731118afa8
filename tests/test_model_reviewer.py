"""The reviewers behind an API: an answer within bounds counts, is paid once, and nothing else does.

Everything goes over loopback through the real SDKs, against a server that plays a script.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cli_session import REVIEWED, call, write_runbook

from agent import review_files
from agent.answer import NOTE_LIMIT, NOTES_LIMIT, REASON_LIMIT, answer_schema
from agent.dossier import estimate_tokens
from agent.model_reviewer import reviewer
from agent.provider import OVERHEAD_TOKENS, QUOTED_TOKENS, Served
from agent.scripted_server import (
    Says,
    ScriptedServer,
    Sends,
    anthropic_body,
    openai_body,
    scripted_server,
)
from runbook import events as ev
from runbook.artifacts import canonical_json
from runbook.budget import Limits, spent
from runbook.cli.seams import reviewer_of
from runbook.clock import Clock
from runbook.contract import Decision, Range, ReviewRequest
from runbook.journal import facts, read_entries
from runbook.ledger import Ledger
from runbook.redact import Redactor
from runbook.schema_reviewer import ReviewerModel
from runbook.testing import LocalAccount, make_plan, make_review_request
from runbook.workspace import Workspace
from runbook.yaml_source import parse_yaml

Capture = pytest.CaptureFixture[str]
NAMES = ("openai", "anthropic")
GOOD: dict[str, Any] = {
    "reason": "cooler",
    "concerns": ["few rows"],
    "action": "retry",
    "changes": {"t": 0.3},
    "action_items": [],
    "confidence": 0.75,
}
GOOD_TEXT = json.dumps(GOOD)
YES = Says(GOOD_TEXT)
PRICES = {"input": 2.0, "output": 10.0}
BUSY = Sends(b"", 429, {"retry-after": "0"})
KEY = "sk-canary-of-this-test-0123456789"


@pytest.fixture(autouse=True, scope="module")
def _import_both() -> None:
    """A first request imports its SDK, which takes seconds that count towards its time limit."""
    for name in NAMES:
        import_module(name)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def request_(tmp_path: Path) -> ReviewRequest:
    """A gate that failed twice."""
    return make_review_request(tmp_path, adjustable={"t": Range(0.1, 1.0)})


def served(name: str, server: ScriptedServer, **fields: Any) -> Served:
    """A model of this provider at the scripted server."""
    given = {
        "timeout_s": 20.0,
        "max_output_tokens": 500,
        "context_tokens": 20_000,
        "usd_per_mtok": PRICES,
        **fields,
    }
    model = given.pop("model", "tiny")
    return Served(name, model, server.base_url(name), "THE_API_KEY", **given)


def ask(
    request: ReviewRequest, *models: Served, slept: list[float] | None = None, **fields: Any
) -> Decision | None:
    """Ask these models; no wait between two tries takes time."""
    waits: list[float] = [] if slept is None else slept
    given = {"environ": {"THE_API_KEY": KEY}, "sleep": waits.append, **fields}
    return reviewer(models, **given)(request)


def account_of(request: ReviewRequest) -> LocalAccount:
    assert isinstance(request.account, LocalAccount)
    return request.account


def folder_of(request: ReviewRequest) -> Path:
    return request.workspace / request.path


def kept(request: ReviewRequest, name: str) -> str:
    return (folder_of(request) / name).read_text()


def decided(name: str) -> Decision:
    """GOOD, as the executor gets it."""
    return Decision(
        "retry",
        "cooler",
        f"{name} tiny",
        person=False,
        changes={"t": 0.3},
        concerns=("few rows",),
        confidence=0.75,
    )


def tokens_of(body: Mapping[str, Any]) -> int:
    """What the messages of a request and its schema come to."""
    schema = body["text"] if "text" in body else body["output_config"]
    texts = [m["content"] for m in body.get("input", body.get("messages"))]
    return sum(map(estimate_tokens, texts)) + estimate_tokens(
        canonical_json(schema["format"]["schema"])
    )


def is_without_answer(request: ReviewRequest, decision: Decision | None) -> str:
    """There is no decision, here or on disk; the cause that was left."""
    assert decision is None
    assert not (folder_of(request) / "decision.json").exists()
    return kept(request, "error.txt")


class TestAccepted:
    def test_an_answer(self, request_: ReviewRequest, name: str) -> None:
        """One request, and all of it on disk before the answer is acted on."""
        with scripted_server(YES) as server:
            assert ask(request_, served(name, server)) == decided(name)
            assert len(server.received) == 1

        files = {path.name for path in folder_of(request_).iterdir()}
        stored = {"request.md", "prompt.md", "prompt.json", "requests.json", "response-1.json"}
        assert files == stored | {"decision.json"}
        document = json.loads(kept(request_, "decision.json"))
        assert document["answer"] == GOOD
        assert document["author"] == f"{name} tiny"
        body = openai_body(YES) if name == "openai" else anthropic_body(YES)
        assert json.loads(kept(request_, "response-1.json")) == body

    def test_what_is_stored_is_what_was_sent(self, request_: ReviewRequest, name: str) -> None:
        """The prompt on disk is the only message, byte for byte, under a fence of its own."""
        with scripted_server(YES, YES) as server:
            ask(request_, served(name, server))
            other = replace(request_, path="reviews/b-2")
            ask(other, served(name, server))
            messages = [r.body.get("input", r.body.get("messages")) for r in server.received]

        prompt = kept(request_, "prompt.md")
        assert messages[0] == [{"role": "user", "content": prompt}]
        assert messages[1] != messages[0]
        assert '{"actions": ["retry", "stop"], "adjustable": {"t": {"min": 0.1, "max": 1.0}}}' in (
            prompt
        )
        assert "review decide" not in prompt

    def test_the_schema_offers_what_is_open(self, request_: ReviewRequest) -> None:
        """The actions of this very review but a person's, and the parameters that may change."""
        schema = answer_schema(request_)

        assert schema["properties"]["action"] == {"type": "string", "enum": ["retry", "stop"]}
        assert list(schema["properties"]["changes"]["properties"]) == ["t"]
        asked = replace(request_, allowed=("proceed", "stop", "override"), adjustable={})
        schema = answer_schema(asked)
        assert schema["properties"]["action"]["enum"] == ["proceed", "stop"]
        assert schema["properties"]["changes"]["properties"] == {}

    def test_every_object_of_the_schema_is_closed(self, request_: ReviewRequest) -> None:
        """As strict structured output wants it: all keys required, none besides, no bounds."""

        def objects(schema: Any) -> Iterator[Mapping[str, Any]]:
            if isinstance(schema, dict):
                yield from [schema] if schema.get("type") == "object" else []
                for value in schema.values():
                    yield from objects(value)

        found = list(objects(answer_schema(request_)))
        assert len(found) == 2
        for each in found:
            assert each["required"] == list(each["properties"])
            assert each["additionalProperties"] is False
        text = canonical_json(found)
        assert not [w for w in ("minimum", "maxItems", "maxLength", "pattern") if w in text]

    def test_a_null_changes_nothing(self, request_: ReviewRequest, name: str) -> None:
        """A schema that names every parameter lets a model leave each as it is."""
        text = json.dumps({**GOOD, "changes": {"t": None}})
        with scripted_server(Says(text)) as server:
            decision = ask(request_, served(name, server))
        assert decision is not None
        assert decision.changes == {}

    def test_effort_by_stake(self, request_: ReviewRequest, name: str) -> None:
        """A gate's review is asked at high effort, a step's question at medium."""
        effort = {"high": "xhigh", "medium": "low"}
        question = replace(
            request_, reason="question", question="which?", path="reviews/b", review_id="b"
        )
        with scripted_server(YES, YES) as server:
            model = served(name, server, effort=effort)
            ask(request_, model)
            ask(question, model)
            sent = [
                (r.body.get("reasoning") or r.body["output_config"])["effort"]
                for r in server.received
            ]
        assert sent == ["xhigh", "low"]

    def test_nothing_is_asked_where_only_a_person_may_answer(
        self, request_: ReviewRequest, name: str
    ) -> None:
        """A review that only a person can answer costs nothing."""
        with scripted_server(YES) as server:
            closed = replace(request_, allowed=("override",))
            assert ask(closed, served(name, server)) is None
            assert server.received == []


def text(**changed: Any) -> str:
    return json.dumps({**GOOD, **changed})


def without(key: str) -> str:
    return json.dumps({name: value for name, value in GOOD.items() if name != key})


FENCED = f"```json\n{GOOD_TEXT}\n```"
TEXTS: dict[str, tuple[str, str]] = {
    "prose": ("I approve, retry.", "not one JSON object"),
    "the word alone": ("retry", "not one JSON object"),
    "a quoted word": ('"retry"', "valid dictionary"),
    "two objects": (f"{GOOD_TEXT}\n{GOOD_TEXT}", "Extra data"),
    "leading text": (f"Sure! {GOOD_TEXT}", "not one JSON object"),
    "trailing text": (f"{GOOD_TEXT} Good luck.", "Extra data"),
    "half an object": (GOOD_TEXT[:-9], "not one JSON object"),
    "two blocks": (f"{FENCED}\n{FENCED}", "exactly one"),
    "an unclosed block": (f"```json\n{GOOD_TEXT}", "exactly one"),
    "a block of another language": (f"```python\n{GOOD_TEXT}\n```", "exactly one"),
    "a list": (f"[{GOOD_TEXT}]", "valid dictionary"),
    "null": ("null", "valid dictionary"),
    "a text in a text": (json.dumps(GOOD_TEXT), "valid dictionary"),
    "NaN": (GOOD_TEXT.replace("0.3", "NaN"), "not JSON: NaN"),
    "Infinity": (GOOD_TEXT.replace("0.75", "Infinity"), "not JSON: Infinity"),
    "beyond a float": (GOOD_TEXT.replace("0.3", "1e999"), "finite"),
    "a huge number": (text(changes={"t": 10**400}), "valid number"),
    "endless digits": (GOOD_TEXT.replace("0.3", "9" * 5000), "not one JSON object"),
    "true as a number": (text(changes={"t": True}), "valid number"),
    "a text as a number": (text(changes={"t": "0.3"}), "valid number"),
    "changes in a list": (text(changes=[{"parameter": "t", "value": 0.3}]), "valid dictionary"),
    "an unknown key": (text(threshold=0.5), "Extra inputs"),
    "a key twice": ('{"action": "stop", ' + GOOD_TEXT[1:], "stands twice"),
    "a change twice": (GOOD_TEXT.replace('"t": 0.3', '"t": 0.3, "t": 0.4'), "stands twice"),
    **{f"without {key}": (without(key), f"'{key}'") for key in GOOD},
    "override": (text(action="override", changes={}), "'override' is not allowed"),
    "proceed": (text(action="proceed", changes={}), "'proceed' is not allowed"),
    "pass": (text(action="pass", changes={}), "'pass' is not allowed"),
    "another case": (text(action="Retry"), "'Retry' is not allowed"),
    "a space behind": (text(action="retry "), "'retry ' is not allowed"),
    "a letter that looks the same": (text(action="r\u0435try"), "is not allowed"),
    "two actions": (text(action="retry|stop"), "is not allowed"),
    "an action in a list": (text(action=["retry"]), "valid string"),
    "no action": (text(action=None), "valid string"),
    "too high": (text(changes={"t": 1.01}), "between 0.1 and 1"),
    "too low": (text(changes={"t": -0.3}), "between 0.1 and 1"),
    "a threshold": (text(changes={"gate.score": 0.0}), "is not adjustable"),
    "a budget": (text(changes={"t": 0.3, "budget.usd": 1e6}), "is not adjustable"),
    "a path": (text(changes={"../runbook.yaml": 1}), "is not adjustable"),
    "a stop with changes": (text(action="stop"), "takes no changes"),
    "no reason": (text(reason=""), "'reason'"),
    "a blank reason": (text(reason=" \n"), "'reason'"),
    "an endless reason": (text(reason="x" * (REASON_LIMIT + 1)), "at most 4000"),
    "half a character": (GOOD_TEXT.replace("cooler", "\\ud800"), "unicode"),
    "concerns in a text": (text(concerns="none"), "valid list"),
    "an endless concern": (text(concerns=["x" * (NOTE_LIMIT + 1)]), "at most 1000"),
    "endless concerns": (text(concerns=["x"] * (NOTES_LIMIT + 1)), "at most 20"),
    "a number as action item": (text(action_items=[1]), "valid string"),
    "certain beyond doubt": (text(confidence=1.1), "less than or equal to 1"),
    "confidence in words": (text(confidence="high"), "valid number"),
    "nested deeply": ("[" * 100_000, "nested too deeply"),
}
"""Texts that are no answer, with a word of why: asked for once more, then a person's."""


class TestRefused:
    @pytest.mark.parametrize("what", TEXTS)
    def test_a_text_that_is_no_answer(self, request_: ReviewRequest, name: str, what: str) -> None:
        """It is quoted back once; where the next is none either, a person decides on the draft."""
        said, cause = TEXTS[what]
        with scripted_server(Says(said), Says(said), YES) as server:
            told = is_without_answer(request_, ask(request_, served(name, server)))
            assert len(server.received) == 2

        assert cause in told
        assert told.startswith(f"{name} tiny: ")
        assert (folder_of(request_) / "draft.txt").stat().st_size > 0
        assert account_of(request_).settled == account_of(request_).reserved

    @pytest.mark.parametrize(
        ("entry", "cause"),
        [
            (Says("", "complete"), "it is empty"),
            (Says(" \n", "complete"), "it is empty"),
            (Says("I will not", "refused"), "the model refused"),
            (Says(GOOD_TEXT, "refused"), "the model refused"),
            (Says(GOOD_TEXT, "failed"), "did not c"),
            (Sends(b""), "the response is not one JSON object"),
            (Sends(b"<html>retry</html>"), "the response is not one JSON object"),
            (Sends(b"null"), "the response is not a JSON object"),
            (Sends(b"[]"), "the response is not a JSON object"),
            (Sends(b'{"id": 1'), "the response is not one JSON object"),
            (Sends(b"\xff\xfe"), "the response is not UTF-8"),
            (Sends(b"{}"), "the body is no"),
            (Sends(b"[" * 100_000), "nested too deeply"),
            (Sends(GOOD_TEXT.encode()), "the body is no"),
            (Sends(b"{", fault="endless"), "the response is not one JSON object"),
        ],
    )
    def test_a_response_without_a_text_that_counts(
        self, request_: ReviewRequest, name: str, entry: Says | Sends, cause: str
    ) -> None:
        """It is not asked again: what it was is on disk, and a person decides."""
        with scripted_server(entry, YES) as server:
            told = is_without_answer(request_, ask(request_, served(name, server)))
            assert len(server.received) == 1

        assert cause in told
        assert (folder_of(request_) / "response-1.json").exists()
        assert len(account_of(request_).settled) == 1

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("output", None),
            ("output", {}),
            ("output", ["retry"]),
            ("output", [{"type": "function_call", "name": "retry", "arguments": GOOD_TEXT}]),
            ("output", [{"type": "message", "role": "user", "content": []}]),
            ("output", [{"type": "message", "role": "assistant", "content": GOOD_TEXT}]),
            ("output", [{"type": "message", "role": "assistant", "content": [{"type": "x"}]}]),
            ("output", []),
            ("object", "chat.completion"),
            ("status", "queued"),
            ("status", None),
            ("status", ["completed"]),
        ],
    )
    def test_a_response_of_another_shape(
        self, request_: ReviewRequest, key: str, value: Any
    ) -> None:
        """Where the Responses API would not put a text, none is looked for."""
        body = json.dumps({**openai_body(YES), key: value}).encode()
        with scripted_server(Sends(body), YES) as server:
            assert is_without_answer(request_, ask(request_, served("openai", server)))
            assert len(server.received) == 1

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("content", None),
            ("content", GOOD_TEXT),
            ("content", [GOOD_TEXT]),
            ("content", [{"type": "tool_use", "name": "retry", "input": GOOD}]),
            ("content", [{"type": "text", "text": GOOD}]),
            ("content", [{"type": "text", "text": GOOD_TEXT}] * 2),
            ("content", []),
            ("type", "error"),
            ("role", "user"),
            ("stop_reason", None),
            ("stop_reason", "tool_use"),
            ("stop_reason", ["end_turn"]),
        ],
    )
    def test_a_message_of_another_shape(
        self, request_: ReviewRequest, key: str, value: Any
    ) -> None:
        """Where the Messages API would not put a text, none is looked for."""
        body = json.dumps({**anthropic_body(YES), key: value}).encode()
        with scripted_server(Sends(body), YES) as server:
            assert is_without_answer(request_, ask(request_, served("anthropic", server)))
            assert len(server.received) == 1

    def test_what_the_provider_held_back(self, request_: ReviewRequest) -> None:
        """A content filter's word is final."""
        with scripted_server(Says(GOOD_TEXT, "filtered"), YES) as server:
            told = is_without_answer(request_, ask(request_, served("openai", server)))
            assert len(server.received) == 1
        assert "content filter" in told

    def test_no_terminal_acts_on_what_a_model_says(
        self, request_: ReviewRequest, name: str
    ) -> None:
        """Control and bidi characters are shown as escapes, in the answer and in the cause."""
        said = text(reason="\x1b[31mred\u202e", concerns=["\x9b"], action_items=["\u2066"])
        with scripted_server(Says(said)) as server:
            decision = ask(request_, served(name, server))
        assert decision is not None
        assert decision.reason == "\\x1b[31mred\\u202e"
        assert (decision.concerns, decision.action_items) == (("\\x9b",), ("\\u2066",))


class TestRepaired:
    def test_a_second_answer_counts(self, request_: ReviewRequest, name: str) -> None:
        """The same conversation goes on: what was said, what was wrong with it, once."""
        bad = text(action="override", changes={})
        with scripted_server(Says(bad), YES) as server:
            assert ask(request_, served(name, server)) == decided(name)
            first, second = [r.body.get("input", r.body.get("messages")) for r in server.received]

        assert second[:2] == [*first, {"role": "assistant", "content": bad}]
        assert second[2]["role"] == "user"
        assert "'override' is not allowed; allowed: retry, stop" in second[2]["content"]
        assert len(set(account_of(request_).reserved)) == 2
        assert not (folder_of(request_) / "draft.txt").exists()

    def test_an_answer_that_was_cut_off(self, request_: ReviewRequest, name: str) -> None:
        """However whole it looks, and even where nothing of it came."""
        for said in (GOOD_TEXT, ""):
            other = replace(request_, path=f"reviews/{len(said)}")
            with scripted_server(Says(said, "cut off"), YES) as server:
                assert ask(other, served(name, server)) == decided(name)
                last = server.received[-1].body
            assert "cut off at max_output_tokens" in json.dumps(last)

    def test_a_hostile_draft_is_quoted_as_escapes(self, request_: ReviewRequest, name: str) -> None:
        """What goes back is bounded, and holds nothing that could not be sent."""
        with scripted_server(Says("\ud800\x1b" + "x" * 50_000), YES) as server:
            assert ask(request_, served(name, server)) == decided(name)
            body = server.received[-1].body
        quoted = body.get("input", body.get("messages"))[1]["content"]
        assert quoted.startswith("\\ud800\\x1bxxx")
        assert estimate_tokens(quoted) == QUOTED_TOKENS

    @pytest.mark.parametrize("said", ["{'a': 1} [%$] 0.12345 " * 400, text(action="\u20ac" * 900)])
    def test_it_fits_the_context(self, request_: ReviewRequest, name: str, said: str) -> None:
        """Question, reply, cause, schema and the longest answer: what does not fit is cut."""
        rows = tuple({"raw": f"row {i} {'the quick brown fox 123 <x> ' * 60}"} for i in range(10))
        with scripted_server(Says(said), YES) as server:
            model = served(name, server, context_tokens=4500, max_output_tokens=1000)
            assert ask(replace(request_, samples=rows, flagged=rows), model) == decided(name)
            first, second = (tokens_of(r.body) for r in server.received)
        assert 3500 - 1000 < first < second <= 3500

    def test_it_is_asked_once_whatever_fits(self, request_: ReviewRequest, name: str) -> None:
        """Another context cuts the quoted reply elsewhere, and pays for no second repair."""
        with scripted_server(Says("x" * 9000), Says("no"), YES) as server:
            for context_tokens in (8000, 6000):
                model = served(name, server, context_tokens=context_tokens)
                is_without_answer(request_, ask(request_, model))
            assert len(server.received) == 2

    def test_a_repair_beyond_the_budget_is_not_sent(
        self, request_: ReviewRequest, name: str
    ) -> None:
        """It is reserved like any request, and the draft is kept."""
        known: list[ev.Event] = []
        with scripted_server(Says("no", output_tokens=500), YES) as server:
            model = served(name, server, usd_per_mtok={"input": 0.0, "output": 100.0})
            limits = Limits(review_usd=0.09)
            paid = replace(request_, account=ledger(known, limits).account("a-2"))
            told = is_without_answer(request_, ask(paid, model))
            assert len(server.received) == 1

        assert "one request may cost" in told
        assert spent(known).review_usd == pytest.approx(0.05)
        assert kept(request_, "draft.txt") == "no"


def ledger(known: list[ev.Event], limits: Limits | None = None, unknown: int = 1) -> Ledger:
    """The executor's own account, over these facts."""
    return Ledger(
        limits or Limits(), Clock(), lambda: known, known.append, unknown_requests=unknown
    )


def until_idle(server: ScriptedServer) -> Callable[[float], None]:
    """A wait between two tries that lasts until the server has noticed that the first is over."""

    def wait(_: float) -> None:
        deadline = time.monotonic() + 30
        while server.at_once and time.monotonic() < deadline:
            time.sleep(0.01)

    return wait


class TestTries:
    @pytest.mark.parametrize("entry", [BUSY, Sends(b"", 503), Sends(b"", 529)])
    def test_a_busy_server_is_asked_again(
        self, request_: ReviewRequest, name: str, entry: Sends
    ) -> None:
        """A failure that cost nothing is settled so, and waited out."""
        with scripted_server(entry, entry, YES) as server:
            assert ask(request_, served(name, server)) == decided(name)
            assert len(server.received) == 3

        account = account_of(request_)
        assert account.settled == account.reserved
        assert account.settled_usd[:2] == [0.0, 0.0]

    def test_as_often_as_declared(self, request_: ReviewRequest, name: str) -> None:
        """A server that stays busy leaves it to a person; the next run asks again."""
        with scripted_server(*[BUSY] * 3, YES) as server:
            model = served(name, server)
            told = is_without_answer(request_, ask(request_, model, tries=3))
            assert len(server.received) == 3
            assert told == f"{name} tiny: HTTP 429: too many requests\n"
            assert ask(request_, model) == decided(name)
            assert not (folder_of(request_) / "error.txt").exists()

    def test_the_wait_that_the_server_asks_for(self, request_: ReviewRequest, name: str) -> None:
        """Its seconds are kept to; without them each wait is longer than the one before."""
        slept: list[float] = []
        with scripted_server(Sends(b"", 429, {"retry-after": "7"}), YES) as server:
            ask(request_, served(name, server), slept=slept)
        assert sum(slept) == pytest.approx(7)

        slept = []
        with scripted_server(*[Sends(b"", 500)] * 3, YES) as server:
            ask(replace(request_, path="reviews/b"), served(name, server), slept=slept)
        assert 14 <= sum(slept) <= 17

    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404])
    def test_what_will_not_mend_is_not_asked_again(
        self, request_: ReviewRequest, name: str, status: int
    ) -> None:
        """A wrong key or model costs one request; a person is told which."""
        with scripted_server(Sends(b"", status), YES) as server:
            told = is_without_answer(request_, ask(request_, served(name, server)))
            assert len(server.received) == 1
        assert f"HTTP {status}" in told
        assert account_of(request_).settled_usd == [0.0]

    def test_an_exhausted_quota_is_not_waited_for(self, request_: ReviewRequest, name: str) -> None:
        """It looks like a busy server and is none."""
        body = b'{"error": {"type": "insufficient_quota", "message": "pay"}}'
        with scripted_server(Sends(body, 429), YES) as server:
            told = is_without_answer(request_, ask(request_, served(name, server)))
            assert len(server.received) == 1
        assert told == f"{name} tiny: HTTP 429: the quota is exhausted: pay\n"

    @pytest.mark.parametrize("fault", ["close", "reset", "reset in the body", "hang"])
    def test_after_an_unknown_outcome_one_more(
        self, request_: ReviewRequest, name: str, fault: Any
    ) -> None:
        """What may have been charged stays reserved; by default one more is sent, one at a time."""
        known: list[ev.Event] = []
        lost = Sends(b"x" * 100, fault=fault)
        with scripted_server(lost, lost, YES) as server:
            model = served(name, server, timeout_s=5.0 if fault == "hang" else 20.0)
            paid = replace(request_, account=ledger(known).account("a-2"))
            told = is_without_answer(request_, ask(paid, model, sleep=until_idle(server)))
            assert len(server.received) == 2
            assert server.most_at_once == 1

        assert "asked 2 times and no end of that is known" in told
        assert "the last try: " in told
        reserved = [f.usd for f in known if isinstance(f, ev.RequestSent)]
        assert spent(known).review_usd == pytest.approx(sum(reserved))
        assert not [f for f in known if isinstance(f, ev.RequestSettled)]

    @pytest.mark.parametrize("allowed", [0, 1, 2])
    def test_as_many_unknown_outcomes_as_declared(
        self, request_: ReviewRequest, name: str, allowed: int
    ) -> None:
        """So many follow the first, and no more, over every resume."""
        known: list[ev.Event] = []
        with scripted_server(*[Sends(fault="close")] * 9) as server:
            for _ in range(3):
                account = ledger(known, unknown=allowed).account("a-2")
                assert ask(replace(request_, account=account), served(name, server)) is None
            assert len(server.received) == 1 + allowed

    def test_a_stop_between_two_tries(self, request_: ReviewRequest, name: str) -> None:
        """A wait is given up within a slice of it, and nothing more is sent."""
        slept: list[float] = []
        with scripted_server(Sends(b"", 429, {"retry-after": "100"}), YES) as server:
            stopped = replace(request_, stop=lambda: "SIGTERM" if len(slept) == 3 else "")
            told = is_without_answer(request_, ask(stopped, served(name, server), slept=slept))
            assert len(server.received) == 1

        assert told == f"{name} tiny: the session was asked to stop: SIGTERM\n"
        assert sum(slept) < 1

    def test_a_stop_while_the_model_thinks(self, request_: ReviewRequest, name: str) -> None:
        """The request is given up and stays reserved; the next run may ask once more."""
        known: list[ev.Event] = []
        paid = replace(request_, account=ledger(known).account("a-2"))
        with scripted_server(Sends(fault="hang"), YES) as server:
            stopped = replace(paid, stop=lambda: "SIGTERM" if server.received else "")
            is_without_answer(request_, ask(stopped, served(name, server, timeout_s=300)))
            assert not [f for f in known if isinstance(f, ev.RequestSettled)]
            assert ask(paid, served(name, server)) == decided(name)
            assert len(server.received) == 2


class TestPaid:
    def test_by_what_is_counted(self, request_: ReviewRequest, name: str) -> None:
        """Before: each byte a token, and the longest answer. After: the provider's count."""
        with scripted_server(Says(GOOD_TEXT, input_tokens=1000, output_tokens=300)) as server:
            ask(request_, served(name, server))

        size = len(kept(request_, "prompt.md").encode())
        size += len(canonical_json(answer_schema(request_)).encode())
        worst = ((size + OVERHEAD_TOKENS) * 2.0 + 500 * 10.0) / 1e6
        account = account_of(request_)
        assert account.reserved_usd == [pytest.approx(worst)]
        assert account.settled_usd == [pytest.approx((1000 * 2.0 + 300 * 10.0) / 1e6)]
        assert account.tokens == [(1000, 300)]
        (sent,) = json.loads(kept(request_, "requests.json"))["requests"]
        assert (sent["outcome"], sent["input_tokens"]) == ("answered", 1000)
        assert sent["usd"] == account.settled_usd[0]

    @pytest.mark.parametrize(
        "usage",
        [
            None,
            {"input_tokens": -5, "output_tokens": 1},
            {"input_tokens": 0, "output_tokens": 0},
            {"input_tokens": 0, "output_tokens": 20},
            {"input_tokens": 100, "output_tokens": 0},
        ],
    )
    def test_without_a_count_all_that_was_reserved(
        self, request_: ReviewRequest, name: str, usage: Any
    ) -> None:
        """A server that does not say what it took, or says nothing, took the most."""
        body = openai_body(YES) if name == "openai" else anthropic_body(YES)
        with scripted_server(Sends(json.dumps({**body, "usage": usage}).encode())) as server:
            assert ask(request_, served(name, server)) == decided(name)
        assert account_of(request_).settled_usd == [None]
        assert account_of(request_).tokens == [(0, 0)]

    def test_where_no_text_came_none_is_counted(self, request_: ReviewRequest, name: str) -> None:
        """A reply without a text may have cost its question alone."""
        with scripted_server(Says("", "refused", output_tokens=0)) as server:
            is_without_answer(request_, ask(request_, served(name, server)))
        assert account_of(request_).settled_usd == [pytest.approx(100 * 2.0 / 1e6)]

    def test_a_count_beyond_what_is_possible(self, request_: ReviewRequest, name: str) -> None:
        """No server can have more spent than was reserved, and its count goes on no record."""
        with scripted_server(Says(GOOD_TEXT, output_tokens=10**12)) as server:
            assert ask(request_, served(name, server)) == decided(name)
        assert account_of(request_).settled_usd == [None]
        assert account_of(request_).tokens == [(0, 0)]
        (sent,) = json.loads(kept(request_, "requests.json"))["requests"]
        assert (sent["usd"], sent["input_tokens"], sent["output_tokens"]) == (None, 0, 0)

    def test_without_prices_what_is_declared_of_a_request(
        self, request_: ReviewRequest, name: str
    ) -> None:
        """It is reserved and settled whole."""
        with scripted_server(YES) as server:
            ask(request_, served(name, server, usd_per_mtok=None, max_usd=0.5))
        assert account_of(request_).reserved_usd == [0.5]
        assert account_of(request_).settled_usd == [None]

    def test_more_than_the_cap_is_not_sent(self, request_: ReviewRequest, name: str) -> None:
        """Where prices say that a request may cost more, a person decides."""
        with scripted_server(YES) as server:
            told = is_without_answer(request_, ask(request_, served(name, server, max_usd=0.001)))
            assert server.received == []
        assert "more than max_usd: 0.001" in told
        assert account_of(request_).reserved == []

    def test_more_than_the_budget_is_not_sent(self, request_: ReviewRequest, name: str) -> None:
        """The account has the last word."""
        poor = replace(request_, account=LocalAccount("nothing is left"))
        with scripted_server(YES) as server:
            told = is_without_answer(request_, ask(poor, served(name, server)))
            assert server.received == []
        assert told == f"{name} tiny: nothing is left\n"

    def test_a_server_of_ones_own_is_free(self, request_: ReviewRequest, name: str) -> None:
        """Prices of 0, and no key: the SDKs are given one that says so."""
        with scripted_server(YES) as server:
            model = served(name, server, usd_per_mtok={"input": 0.0, "output": 0.0})
            assert ask(request_, model, environ={}) == decided(name)
            assert server.received[0].headers["authorization"] == "Bearer none-needed"
        assert account_of(request_).settled_usd == [0.0]


class TestKeys:
    @pytest.mark.parametrize("value", [None, "", "  ", "two words", "b\u00e4d", "a\nb"])
    def test_without_a_key_nothing_is_sent(
        self, request_: ReviewRequest, name: str, value: str | None
    ) -> None:
        """The variable is named, and its value is not."""
        environ = {} if value is None else {"THE_API_KEY": value}
        with scripted_server(YES) as server:
            model = replace(served(name, server), base_url="https://192.0.2.1/v1")
            told = is_without_answer(request_, ask(request_, model, environ=environ))
        assert "environment variable THE_API_KEY" in told
        assert not (value and value.strip()) or value not in told
        assert account_of(request_).reserved == []

    def test_no_file_holds_a_secret(self, request_: ReviewRequest, name: str) -> None:
        """Neither the key that a server repeats, nor one in a row, in what is kept or sent."""
        row = {"raw": f"token {KEY}"}
        error = json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()
        entries = (Sends(error, 503), Says(f"your key is {KEY}"), Says(text(reason=KEY)))
        with scripted_server(*entries) as server:
            decision = ask(
                replace(request_, flagged=(row,)),
                served(name, server),
                redact=Redactor({"THE_API_KEY": KEY}).data,
            )
            bodies = json.dumps([r.body for r in server.received])

        assert decision is not None
        assert decision.reason == "[secret THE_API_KEY]"
        assert KEY not in bodies
        files = folder_of(request_).iterdir()
        assert [p.name for p in files if KEY.encode() in p.read_bytes()] == []
        assert b"[secret THE_API_KEY]" in (folder_of(request_) / "prompt.md").read_bytes()
        assert "[secret THE_API_KEY]" in kept(request_, "requests.json")

    @pytest.mark.parametrize("where", ["reason", "concerns", "action_items"])
    def test_a_secret_in_escapes_is_none_once_it_is_read(
        self, request_: ReviewRequest, name: str, where: str
    ) -> None:
        r"""What a model spells as \uXXXX becomes plain where its answer is parsed."""
        spelled = "".join(f"\\u{ord(c):04x}" for c in KEY)
        said = text(**{where: "MARK" if where == "reason" else ["MARK"]}).replace("MARK", spelled)
        with scripted_server(Says(said)) as server:
            redact = Redactor({"THE_API_KEY": KEY}).data
            decision = ask(request_, served(name, server), redact=redact)

        assert decision is not None
        assert KEY not in repr(decision)
        assert "[secret THE_API_KEY]" in repr(decision)
        files = folder_of(request_).iterdir()
        assert [p.name for p in files if KEY.encode() in p.read_bytes()] == []

    @pytest.mark.parametrize("secret", ["pass`word<x>1234", "p\u00e4ssw\u00f6rd-\u202e-12345"])
    def test_a_secret_that_would_be_escaped_is_not_sent(
        self, request_: ReviewRequest, name: str, secret: str
    ) -> None:
        """It goes before the dossier spells it, from every text that a step or a person wrote."""
        told = replace(
            request_,
            flagged=({secret: f"a {secret} b"},),
            reasons=(f"because {secret}",),
            question=f"is {secret} fine?",
            log_tail=f"export DB_PASSWORD={secret}",
        )
        with scripted_server(YES) as server:
            ask(told, served(name, server), redact=Redactor({"DB_PASSWORD": secret}).data)
            sent = json.dumps([r.body for r in server.received])

        spellings = {secret, json.dumps(secret)[1:-1], "word<", "\\u0060word", "ssw\u00f6rd"}
        for place in (sent, kept(request_, "request.md"), kept(request_, "prompt.md")):
            assert not [form for form in spellings if form in place]
        assert kept(request_, "prompt.md").count("[secret DB_PASSWORD]") >= 4

    def test_a_secret_is_not_cut_in_two(self, request_: ReviewRequest, name: str) -> None:
        """What a server says of its error is shortened after its secrets are gone."""
        error = json.dumps({"error": {"message": "x" * 290 + KEY}}).encode()
        with scripted_server(Sends(error, 401)) as server:
            ask(request_, served(name, server), redact=Redactor({"THE_API_KEY": KEY}).data)
        for path in folder_of(request_).iterdir():
            assert KEY[:8].encode() not in path.read_bytes(), path.name

    def test_headers_of_the_environment_are_not_sent(
        self, request_: ReviewRequest, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The runbook says where the key goes and whose it is; an SDK's variables do not."""
        others = "authorization: Bearer other\nx-api-key: other\nx-trace: 1"
        for variable in ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS"):
            monkeypatch.setenv(variable, others)
        monkeypatch.setenv("OPENAI_ORG_ID", "org-other")
        monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-other")
        monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "other")
        with scripted_server(YES) as server:
            assert ask(request_, served(name, server)) == decided(name)
            (received,) = server.received

        assert received.headers["authorization"] == f"Bearer {KEY}"
        assert not [v for v in received.headers.values() if "other" in v]
        assert "x-trace" not in received.headers


class TestPrompt:
    def test_another_bound_has_it_written_anew(self, request_: ReviewRequest, name: str) -> None:
        """What a person lowers after a refusal counts at the next run."""
        told = replace(request_, samples=({"raw": "word " * 200},) * 10)
        with scripted_server(Sends(b"{}", 413), YES) as server:
            ask(told, served(name, server))
            ask(told, served(name, server, context_tokens=4000))
            long, short = (json.dumps(r.body) for r in server.received)
        assert len(short) < len(long) - 1000

    def test_not_while_an_answer_may_have_been_paid(
        self, request_: ReviewRequest, name: str
    ) -> None:
        """A request without a known end counts for the very prompt that it sent."""
        told = replace(request_, samples=({"raw": "word " * 200},) * 10)
        with scripted_server(Sends(fault="close"), YES) as server:
            ask(told, served(name, server), tries=1)
            ask(told, served(name, server, context_tokens=4000), tries=1)
            first, second = (r.body for r in server.received)
        assert json.dumps(first) == json.dumps(second)

    @pytest.mark.parametrize("change", ["context_tokens", "max_output_tokens", "fallback"])
    @pytest.mark.parametrize("lost", ["", "decision.json", "requests.json"])
    def test_not_once_an_answer_came(
        self, request_: ReviewRequest, name: str, change: str, lost: str
    ) -> None:
        """However the bounds change before it is acted on, no second opinion is asked for."""
        told = replace(request_, samples=({"raw": "word " * 200},) * 10)
        with scripted_server(Says(text(action="stop", changes={})), YES) as server:
            model = served(name, server)
            first = ask(told, model)
            assert first is not None
            assert first.action == "stop"
            if lost:
                (folder_of(told) / lost).unlink()
            other = served(name, server, model="other", context_tokens=4000)
            if change != "fallback":
                model = replace(model, **{change: getattr(model, change) // 4})
            models = (model, other) if change == "fallback" else (model,)
            assert ask(told, *models) == first
            assert len(server.received) == 1

    def test_not_once_a_reply_came_that_was_none(self, request_: ReviewRequest, name: str) -> None:
        """A longer context does not make another question of it: a person decides."""
        with scripted_server(Sends(b"{}"), YES) as server:
            is_without_answer(request_, ask(request_, served(name, server)))
            again = ask(request_, served(name, server, context_tokens=30_000))
            is_without_answer(request_, again)
            assert len(server.received) == 1

    def test_the_form_of_the_answer_is_counted(self, request_: ReviewRequest, name: str) -> None:
        """So is its schema, however many parameters a retry may change."""
        ranges = {f"a{i}.b_{i * 79}": Range(0.000123 * i, 1234.5678 * i + 1) for i in range(40)}
        rows = ({"raw": "0123456789 %$ " * 20},) * 10
        told = replace(request_, adjustable=ranges, flagged=rows, samples=rows)
        with scripted_server(Says(text(changes={}))) as server:
            assert ask(told, served(name, server, context_tokens=10_000)) is not None
            (received,) = server.received
        assert 8000 < tokens_of(received.body) <= 9500


class TestFallback:
    @pytest.mark.parametrize("first", [Sends(b"", 401), BUSY])
    def test_where_the_first_cannot_answer(
        self, request_: ReviewRequest, name: str, first: Sends
    ) -> None:
        """It failed for good, or stayed busy: the second is asked, and signs."""
        other = NAMES[NAMES.index(name) - 1]
        with scripted_server(first, first) as one, scripted_server(YES) as two:
            models = (served(name, one), served(other, two))
            assert ask(request_, *models, tries=2) == decided(other)

    def test_where_the_first_has_no_key(self, request_: ReviewRequest) -> None:
        """Nothing was sent to it."""
        with scripted_server() as one, scripted_server(YES) as two:
            first = replace(served("openai", one), base_url="https://192.0.2.1/v1")
            first = replace(first, api_key_env="NO_API_KEY")
            assert ask(request_, first, served("anthropic", two)) == decided("anthropic")

    def test_both_causes_are_told(self, request_: ReviewRequest) -> None:
        """A person mends whichever is easier."""
        with scripted_server(Sends(b"", 402)) as one, scripted_server(Sends(b"", 404)) as two:
            models = (served("openai", one), served("anthropic", two))
            told = is_without_answer(request_, ask(request_, *models))
        assert told.splitlines() == [
            "openai tiny: HTTP 402: the account has no credit",
            "anthropic tiny: HTTP 404: there is no such model or path",
        ]

    @pytest.mark.parametrize(
        "script",
        [
            (Says("no"), Says("no")),
            (Says("", "refused"),),
            (Says(text(action="stop", changes={})),),
            (Sends(b"{}"),),
            (Sends(fault="close"), Sends(fault="close"), Sends(b"", 401)),
            (Sends(fault="close"), Sends(b"", 401)),
        ],
    )
    def test_never_after_an_answer_or_an_unknown_outcome(
        self, request_: ReviewRequest, script: tuple[Says | Sends, ...]
    ) -> None:
        """A second opinion is not bought, and no question is paid twice."""
        with scripted_server(*script) as one, scripted_server(YES) as two:
            decision = ask(request_, served("openai", one), served("anthropic", two))
            assert decision is None or decision.action == "stop"
            assert two.received == []

    def test_after_a_crash_it_is_asked_on(self, request_: ReviewRequest) -> None:
        """Where the second was under way, the first is not asked again: it might answer too."""
        with (
            scripted_server(Sends(b"", 401), YES) as one,
            scripted_server(Sends(fault="hang"), YES) as two,
        ):
            models = (served("openai", one), served("anthropic", two))
            stopped = replace(request_, stop=lambda: "SIGTERM" if two.received else "")
            assert ask(stopped, *models) is None
            assert ask(request_, *models) == decided("anthropic")
            assert len(one.received) == 1


class KilledError(BaseException):
    """The process ends here."""


class _Knife:
    """Ends the process before or after the nth durable act."""

    def __init__(self, at: int, *, before: bool) -> None:
        self.at = at
        self.before = before
        self.acts = 0

    def cut(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*args: Any, **fields: Any) -> Any:
            self.acts += 1
            mine = self.acts == self.at
            if mine and self.before:
                raise KilledError
            result = act(*args, **fields)
            if mine:
                raise KilledError
            return result

        return acted


def killed_at(
    knife: _Knife, request: ReviewRequest, monkeypatch: pytest.MonkeyPatch, *models: Served
) -> Decision | None:
    """Ask, with every durable act under the knife: files, reservations, settlements."""
    with monkeypatch.context() as patch:
        for name in ("write_bytes", "write_json"):
            patch.setattr(review_files, name, knife.cut(getattr(review_files, name)))
        for name in ("reserve", "settle"):
            patch.setattr(request.account, name, knife.cut(getattr(request.account, name)))
        return ask(request, *models)


class TestKilled:
    """Killed at each durable act of a review, then asked again."""

    @pytest.mark.parametrize("before", [True, False])
    @pytest.mark.parametrize("at", range(1, 10))
    def test_at_every_act(
        self,
        request_: ReviewRequest,
        name: str,
        at: int,
        before: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One verdict; a response that was stored is read, and its question not sent again."""
        known: list[ev.Event] = []
        paid = replace(request_, account=ledger(known).account("a-2"))
        knife = _Knife(at, before=before)
        # The list of requests, prompt and its seal, reservation, its note, [sent], response,
        # settlement, its note, answer
        lost = at == 6 and before
        with scripted_server(YES, YES) as server:
            model = served(name, server)
            with pytest.raises(KilledError):
                killed_at(knife, paid, monkeypatch, model)
            after = replace(paid, account=ledger(known).account("a-2"))
            assert ask(after, model) == decided(name)
            assert ask(after, model) == decided(name)
            assert len(server.received) == 1 + lost
        sent = {f.number for f in known if isinstance(f, ev.RequestSent)}
        settled = {f.number for f in known if isinstance(f, ev.RequestSettled)}
        assert max(sent) in settled
        assert len(sent - settled) <= 1

    @pytest.mark.parametrize("at", range(10, 15))
    def test_at_every_act_of_a_repair(
        self, request_: ReviewRequest, name: str, at: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The reply that was none stays so: its repair goes on where it was."""
        known: list[ev.Event] = []
        paid = replace(request_, account=ledger(known).account("a-2"))
        bad = Says(text(action="override", changes={}))
        with scripted_server(bad, YES, YES) as server:
            model = served(name, server)
            # Of a repair: reservation, its note, [sent], response, settlement, its note, answer
            with pytest.raises(KilledError):
                killed_at(_Knife(at - 1, before=False), paid, monkeypatch, model)
            after = replace(paid, account=ledger(known).account("a-2"))
            assert ask(after, model) == decided(name)
            assert len(server.received) == 2

    @pytest.mark.parametrize(
        ("at", "before"), [(6, False), (7, True), (7, False), (8, True), (8, False), (9, True)]
    )
    def test_at_every_act_of_a_failure(
        self,
        request_: ReviewRequest,
        name: str,
        at: int,
        before: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What is known to have failed stays so: it is settled, and the fallback is asked."""
        known: list[ev.Event] = []
        paid = replace(request_, account=ledger(known).account("a-2"))
        other = NAMES[NAMES.index(name) - 1]
        with scripted_server(*[Sends(b"", 401)] * 2) as one, scripted_server(YES) as two:
            models = (served(name, one), served(other, two))
            # Of the failure: note, settlement, note of that; then the fallback's reservation
            with pytest.raises(KilledError):
                killed_at(_Knife(at, before=before), paid, monkeypatch, *models)
            after = replace(paid, account=ledger(known).account("a-2"))
            assert ask(after, *models) == decided(other)
            assert len(two.received) == 1
        sent = {(f.key, f.number) for f in known if isinstance(f, ev.RequestSent)}
        settled = {(f.key, f.number) for f in known if isinstance(f, ev.RequestSettled)}
        assert sent == settled
        assert spent(known).review_usd == pytest.approx((100 * 2.0 + 20 * 10.0) / 1e6)

    def test_every_act_is_covered(
        self, request_: ReviewRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A review has nine durable acts, and each of them is killed above."""
        knife = _Knife(0, before=True)
        with scripted_server(YES) as server:
            killed_at(knife, request_, monkeypatch, served("openai", server))
        assert knife.acts == 9

    def test_a_settlement_twice_counts_once(
        self, request_: ReviewRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed between a settlement and its note, it is settled again and spent once."""
        known: list[ev.Event] = []
        paid = replace(request_, account=ledger(known).account("a-2"))
        with scripted_server(YES) as server:
            model = served("openai", server)
            with pytest.raises(KilledError):
                killed_at(_Knife(8, before=True), paid, monkeypatch, model)
            ask(paid, model)
        assert len([f for f in known if isinstance(f, ev.RequestSettled)]) == 2
        assert spent(known).review_usd == pytest.approx((100 * 2.0 + 20 * 10.0) / 1e6)

    def test_a_settlement_twice_allows_no_more_requests(self) -> None:
        """One that is settled again does not make up for another whose end is not known."""
        account = ledger([]).account("a-2")
        account.reserve("key", 0.1)
        account.settle("key", 0.1)
        account.settle("key", 0.1)
        assert [bool(account.reserve("key", 0.1)) for _ in range(3)] == [False, False, True]


class TestAskedAgain:
    def test_the_prompt_is_the_same_whatever_moved(
        self, request_: ReviewRequest, name: str
    ) -> None:
        """Budget and log go on while a review waits; it stays the same question."""
        with scripted_server(Sends(b"", 401), YES) as server:
            model = served(name, server)
            assert ask(request_, model) is None
            before = kept(request_, "prompt.md")
            budget = {"usd": {"limit": 1.0, "spent": 0.5, "left": 0.5}}
            assert ask(replace(request_, log_tail="later", budget=budget), model)
            assert kept(request_, "prompt.md") == before
        assert len(set(account_of(request_).reserved)) == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"run_id": "y"},
            {"attempt": 3},
            {"failures": 1},
            {"allowed": ("stop", "retry")},
            {"adjustable": {"t": Range(0.1, 0.9)}},
            {"whole": ("u",)},
        ],
    )
    def test_another_question_is_asked_anew(
        self, request_: ReviewRequest, change: dict[str, Any]
    ) -> None:
        """An answer holds for its own review alone."""
        with scripted_server(YES, YES) as server:
            model = served("openai", server)
            assert ask(request_, model)
            assert ask(replace(request_, **change), model)
            assert len(server.received) == 2

    def test_another_model_is_asked_anew(self, request_: ReviewRequest) -> None:
        """The model is part of the review key."""
        with scripted_server(YES, YES) as server:
            model = served("openai", server)
            ask(request_, model)
            ask(request_, replace(model, model="other"))
            assert len(server.received) == 2

    @pytest.mark.parametrize("forged", ["", "[]", "{", "override", "too high"])
    def test_a_decision_file_that_cannot_stand(self, request_: ReviewRequest, forged: str) -> None:
        """What is on disk is held against the bounds again; the stored response still counts."""
        path = folder_of(request_) / "decision.json"
        with scripted_server(YES, YES) as server:
            model = served("openai", server)
            ask(request_, model)
            document = json.loads(path.read_text())
            changed = {
                "override": {**GOOD, "action": "override", "changes": {}},
                "too high": {**GOOD, "changes": {"t": 7}},
            }
            answer = changed.get(forged)
            path.write_text(json.dumps({**document, "answer": answer}) if answer else forged)
            assert ask(request_, model) == decided("openai")
            assert len(server.received) == 1

    def test_a_reply_that_was_none_stays_none(self, request_: ReviewRequest, name: str) -> None:
        """Asked again, the stored replies are read again, and nothing is paid."""
        with scripted_server(Says("no"), Says("no"), YES) as server:
            for _ in range(3):
                is_without_answer(request_, ask(request_, served(name, server)))
            assert len(server.received) == 2

    def test_a_dossier_that_does_not_fit(self, request_: ReviewRequest, name: str) -> None:
        """What cannot be shown whole enough is not asked at all."""
        with scripted_server(YES) as server:
            model = served(name, server, context_tokens=900)
            assert "the dossier: " in is_without_answer(request_, ask(request_, model))
            assert server.received == []


def replaced_by(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A damage that puts something else in a file's place."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


JUNK: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_text(""),
    "cut off": lambda path: path.write_text(path.read_text()[:50]),
    "a list": lambda path: path.write_text("[]"),
    "no requests": lambda path: path.write_text("{}"),
    "a number for a request": lambda path: path.write_text('{"requests": [1]}'),
    "gone": Path.unlink,
    "a folder": replaced_by(Path.mkdir),
    "a pipe": replaced_by(os.mkfifo),
    "a link to nothing": replaced_by(lambda path: path.symlink_to("nowhere")),
}
"""What may have become of a file."""


class TestDamaged:
    """A file that says what was sent and paid is gone, or is not as it was written."""

    @pytest.mark.parametrize("how", JUNK)
    @pytest.mark.parametrize("script", [(Says("no"), Says("no")), (Sends(fault="close"),)])
    def test_the_list_of_requests(
        self, request_: ReviewRequest, name: str, how: str, script: tuple[Says | Sends, ...]
    ) -> None:
        """Nothing is sent, to the fallback neither: a person decides."""
        known: list[ev.Event] = []
        paid = replace(request_, account=ledger(known).account("a-2"))
        with scripted_server(*script, Sends(b"", 401)) as one, scripted_server(YES) as two:
            models = (served(name, one), served("openai", two))
            ask(paid, *models, tries=1)
            asked = len(one.received)
            JUNK[how](folder_of(request_) / "requests.json")
            for _ in range(2):
                told = is_without_answer(request_, ask(paid, *models))
                assert told.startswith("requests.json ")
            assert (len(one.received), two.received) == (asked, [])

    @pytest.mark.parametrize(
        "change",
        [
            {"number": "1"},
            {"number": None},
            {"number": 1.5},
            {"number": True},
            {"key": ["x"]},
            {"cause": 3},
            {"outcome": None},
            {"outcome": "lost"},
            {"reserved_usd": "x"},
            {"usd": "0"},
            {"output_tokens": None},
            {"more": 1},
        ],
    )
    def test_a_request_of_other_types(
        self, request_: ReviewRequest, change: dict[str, Any]
    ) -> None:
        """It is no request, and none is sent in its place."""
        with scripted_server(Sends(b"{}"), YES) as server:
            model = served("openai", server)
            ask(request_, model)
            path = folder_of(request_) / "requests.json"
            document = json.loads(path.read_text())
            document["requests"][0].update(change)
            path.write_text(json.dumps(document))
            told = is_without_answer(request_, ask(request_, model))
            assert len(server.received) == 1
        assert told.startswith("requests.json is not as it was written; ")

    def test_an_answer_that_was_taken_stands(self, request_: ReviewRequest, name: str) -> None:
        """It needs no list of requests."""
        with scripted_server(YES) as server:
            ask(request_, served(name, server))
            (folder_of(request_) / "requests.json").write_text("[]")
            assert ask(request_, served(name, server)) == decided(name)

    @pytest.mark.parametrize("how", ["gone", "a folder", "a pipe", "a link to nothing"])
    @pytest.mark.parametrize("number", [1, 2])
    def test_a_response(self, request_: ReviewRequest, name: str, how: str, number: int) -> None:
        """What was answered is not asked again, over any number of runs."""
        with scripted_server(Says("no"), Says("no"), YES) as server:
            ask(request_, served(name, server))
            JUNK[how](folder_of(request_) / f"response-{number}.json")
            for _ in range(2):
                told = is_without_answer(request_, ask(request_, served(name, server)))
                assert told.startswith(f"response-{number}.json cannot be read ")
            assert len(server.received) == 2

    def test_an_empty_response(self, request_: ReviewRequest, name: str) -> None:
        """It reads as any body that is none."""
        with scripted_server(Says("no"), Says("no"), YES) as server:
            ask(request_, served(name, server))
            (folder_of(request_) / "response-1.json").write_text("")
            told = is_without_answer(request_, ask(request_, served(name, server)))
            assert len(server.received) == 2
        assert "the response is not one JSON object" in told

    @pytest.mark.parametrize("how", JUNK)
    @pytest.mark.parametrize("file", ["prompt.md", "prompt.json"])
    def test_the_prompt(self, request_: ReviewRequest, name: str, file: str, how: str) -> None:
        """Another would be another question, under another key: it is not asked."""
        with scripted_server(Sends(b"{}"), YES) as server:
            ask(request_, served(name, server))
            JUNK[how](folder_of(request_) / file)
            told = is_without_answer(request_, ask(request_, served(name, server)))
            assert len(server.received) == 1
        assert told.startswith("prompt.md is not what was sent; ")

    def test_a_prompt_that_nobody_paid_for(self, request_: ReviewRequest, name: str) -> None:
        """Where nothing but failures came of it, it is written anew."""
        with scripted_server(Sends(b"", 401), YES) as server:
            ask(request_, served(name, server))
            (folder_of(request_) / "prompt.md").unlink()
            assert ask(request_, served(name, server)) == decided(name)

    @pytest.mark.parametrize("file", ["error.txt", "draft.txt"])
    def test_a_folder_in_the_place_of_a_failure(
        self, request_: ReviewRequest, name: str, file: str
    ) -> None:
        """It hinders no answer."""
        (folder_of(request_) / file).mkdir(parents=True)
        with scripted_server(YES) as server:
            assert ask(request_, served(name, server)) == decided(name)

    def test_what_is_redacted_breaks_no_list_of_requests(
        self, request_: ReviewRequest, name: str
    ) -> None:
        """A secret ends with the text that it stands in."""
        causes = ("see http://a", "mail b@c")
        failures = [
            Sends(json.dumps({"error": {"message": cause}}).encode(), 503) for cause in causes
        ]

        def redact(data: bytes) -> bytes:
            return re.sub(rb"http://[^@]*@", b"[secret]", data)

        with scripted_server(*failures, YES) as server:
            assert ask(request_, served(name, server), redact=redact) == decided(name)
        known = json.loads(kept(request_, "requests.json"))["requests"]
        assert [sent["outcome"] for sent in known] == ["failed", "failed", "answered"]

    def test_a_secret_in_a_cause(self, request_: ReviewRequest, name: str) -> None:
        """It stands in no list of requests, whoever gave the cause."""
        with scripted_server(Sends(fault="hang")) as server:
            told = replace(request_, stop=lambda: KEY if server.received else "")
            redact = Redactor({"THE_API_KEY": KEY}).data
            is_without_answer(request_, ask(told, served(name, server), redact=redact))
        assert "[secret THE_API_KEY]" in kept(request_, "requests.json")
        assert KEY not in kept(request_, "requests.json")

    def test_the_draft_of_an_earlier_failure(self, request_: ReviewRequest, name: str) -> None:
        """It goes where the next failure has none, so that it is not read as that one's."""
        with scripted_server(Says("no"), Says("no"), Sends(b"", 401)) as server:
            ask(request_, served(name, server))
            assert kept(request_, "draft.txt") == "no"
            told = is_without_answer(request_, ask(request_, served(name, server, model="b")))
        assert "HTTP 401" in told
        assert not (folder_of(request_) / "draft.txt").exists()


def terminate_once_asked(server: ScriptedServer) -> None:
    deadline = time.monotonic() + 30
    while not server.received and time.monotonic() < deadline:
        time.sleep(0.01)
    if server.received:
        os.kill(os.getpid(), signal.SIGTERM)


class TestSession:
    """A small runbook whose reviewer is a model, run from the command line."""

    @pytest.fixture
    def book(self, tmp_path: Path) -> Path:
        return write_runbook(tmp_path, REVIEWED)

    def run(self, book: Path, capfd: Capture, declared: dict[str, Any]) -> int:
        document = json.loads(book.read_text())
        document["reviewer"] = declared
        document["budget"]["review_usd"] = 1.0
        book.write_text(json.dumps(document))
        return call(capfd, "run", book, "--workspace", book.parent / "ws").code

    def declared(self, name: str, server: ScriptedServer) -> dict[str, Any]:
        return {
            "provider": name,
            "model": "tiny",
            "base_url": server.base_url(name),
            "usd_per_mtok": PRICES,
            "effort": "off",
        }

    def test_a_retry_goes_on_and_passes(self, book: Path, capfd: Capture, name: str) -> None:
        """Two failures, one answer, a pass: the decision and its cost are in the journal."""
        with scripted_server(YES) as server:
            assert self.run(book, capfd, self.declared(name, server)) == 0

        known = facts(read_entries(Workspace(book.parent / "ws")))
        (found,) = [f for f in known if isinstance(f, ev.ReviewDecided)]
        assert (found.author, found.person, found.action) == (f"{name} tiny", False, "retry")
        assert (found.concerns, found.confidence) == (("few rows",), 0.75)
        (settled,) = [f for f in known if isinstance(f, ev.RequestSettled)]
        assert settled.usd == pytest.approx((100 * 2.0 + 20 * 10.0) / 1e6)
        assert (settled.input_tokens, settled.output_tokens) == (100, 20)

    def test_an_exhausted_quota_waits_for_a_person(self, book: Path, capfd: Capture) -> None:
        """Exit 3, with the cause on disk; the next run asks again."""
        body = b'{"error": {"code": "insufficient_quota"}}'
        with scripted_server(Sends(body, 429), YES) as server:
            declared = self.declared("openai", server)
            assert self.run(book, capfd, declared) == 3
            (error,) = (book.parent / "ws" / "reviews").glob("*/error.txt")
            assert "the quota is exhausted" in error.read_text()
            assert self.run(book, capfd, declared) == 0

    def test_a_stop_does_not_wait_for_the_model(self, book: Path, capfd: Capture) -> None:
        """SIGTERM gives the request up and ends the session with 75; the next run asks again."""
        with scripted_server(Sends(fault="hang"), YES) as server:
            Thread(target=terminate_once_asked, args=(server,), daemon=True).start()
            declared = self.declared("openai", server)
            assert self.run(book, capfd, declared) == 75
            assert self.run(book, capfd, declared) == 0
            assert len(server.received) == 2

    def test_the_key_of_the_plans_own_variable(
        self, request_: ReviewRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The seam hands the key to the provider and takes it out of every file."""
        monkeypatch.setenv("OUR_OWN_API_KEY", KEY)
        with scripted_server(Says(text(reason=f"I saw {KEY}"))) as server:
            declared = {
                "provider": "openai",
                "model": "tiny",
                "base_url": server.base_url("openai"),
                "api_key_env": "OUR_OWN_API_KEY",
                "timeout_s": 20.0,
                "max_output_tokens": 500,
                "context_tokens": 20_000,
                "max_usd": 0.1,
                "tries": 1,
            }
            decision = reviewer_of(make_plan(reviewer=declared))(request_)
            assert server.received[0].headers["authorization"] == f"Bearer {KEY}"

        assert decision is not None
        assert decision.reason == "I saw [secret OUR_OWN_API_KEY]"
        kept_here = [p for p in folder_of(request_).iterdir() if KEY in p.read_text()]
        assert kept_here == []


def test_providers_are_imported_when_they_are_asked() -> None:
    """Declaring a model loads no SDK and no template engine."""
    heavy = {"openai", "anthropic", "httpx2", "jinja2"}
    code = f"import sys, agent.model_reviewer; print(sorted({heavy!r} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert told.stdout == "[]\n"


def test_the_documented_runbooks_are_valid() -> None:
    """Each reviewer in the documentation's examples is one that the schema takes."""
    page = Path(__file__).parents[1] / "docs" / "reviewer.md"
    blocks = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    whole = [block for block in blocks if "..." not in block]
    read = [parse_yaml(block, page.name).value() for block in whole]
    found = [ReviewerModel.model_validate(block["reviewer"]) for block in read]
    assert len(found) >= 2
    assert found[1].fallback is not None
