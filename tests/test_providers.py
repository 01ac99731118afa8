"""Requests to a model's server: what is sent, which failure is which, and how one is given up."""

import json
import math
from collections.abc import Callable
from contextlib import closing
from email.utils import formatdate
from socket import create_server
from typing import Any

import pytest

from agent.answer import UnusableError
from agent.exchange import BODY_LIMIT, fetch
from agent.failures import (
    LONGEST_WAIT_S,
    PermanentError,
    ProviderError,
    StoppedError,
    TransientError,
    UnknownOutcomeError,
    of_status,
    retry_after,
)
from agent.model_reviewer import PROVIDERS
from agent.provider import Call, Served, Tokens, load_body
from agent.scripted_server import (
    Ending,
    Says,
    Sends,
    anthropic_body,
    openai_body,
    scripted_server,
)

NAMES = ("openai", "anthropic")
SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
KEY = "sk-the-key-of-this-test"


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def served(name: str, base_url: str, **fields: Any) -> Served:
    """A model of this provider behind this address."""
    given = {"timeout_s": 20.0, "max_output_tokens": 500, "context_tokens": 8000, **fields}
    return Served(name, "tiny", base_url, "THE_API_KEY", **given)


def ask(
    name: str, base_url: str, *, stop: Callable[[], str] = str, effort: str = "", **fields: Any
) -> bytes:
    """The body that one request brings."""
    model = served(name, base_url, **fields)
    messages = (("user", "what now?"), ("assistant", "no"), ("user", "again"))
    call = Call(model, messages, SCHEMA, effort or None)
    send = PROVIDERS[name].send
    return fetch(
        lambda http: send(call, KEY, http),
        timeout_s=model.timeout_s,
        stop=stop,
        key=KEY,
    )


def failing(name: str, *script: Says | Sends, **fields: Any) -> ProviderError:
    """How a request to this script fails; it is sent once."""
    with scripted_server(*script) as server:
        with pytest.raises(ProviderError) as caught:
            ask(name, server.base_url(name), **fields)
        assert len(server.received) == 1
    return caught.value


class TestSent:
    def test_to_the_responses_api(self) -> None:
        """The conversation, a strict schema, the bound on the answer; nothing is kept there."""
        with scripted_server(Says("yes")) as server:
            ask("openai", server.base_url("openai"), effort="high")
            (received,) = server.received

        assert received.path == "/v1/responses"
        assert received.headers["authorization"] == f"Bearer {KEY}"
        assert received.body == {
            "model": "tiny",
            "input": [
                {"role": "user", "content": "what now?"},
                {"role": "assistant", "content": "no"},
                {"role": "user", "content": "again"},
            ],
            "max_output_tokens": 500,
            "reasoning": {"effort": "high"},
            "store": False,
            "text": {
                "format": {
                    "type": "json_schema",
                    "name": "decision",
                    "schema": SCHEMA,
                    "strict": True,
                }
            },
        }

    def test_to_the_messages_api(self) -> None:
        """The conversation, the schema as output format, the bound on the answer."""
        with scripted_server(Says("yes")) as server:
            ask("anthropic", server.base_url("anthropic"), effort="max")
            (received,) = server.received

        assert received.path == "/v1/messages"
        assert received.headers["authorization"] == f"Bearer {KEY}"
        assert received.body == {
            "model": "tiny",
            "messages": [
                {"role": "user", "content": "what now?"},
                {"role": "assistant", "content": "no"},
                {"role": "user", "content": "again"},
            ],
            "max_tokens": 500,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "max"},
        }

    def test_effort_is_left_out_where_none_is_declared(self, name: str) -> None:
        """A server that knows no effort is not told of one."""
        with scripted_server(Says("yes")) as server:
            ask(name, server.base_url(name))
            (received,) = server.received

        assert "effort" not in json.dumps(received.body)

    def test_the_environment_changes_no_address_and_no_key(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the SDKs read of the environment does not override what the runbook declares."""
        for variable in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
            monkeypatch.setenv(variable, "http://127.0.0.1:9")
        for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
            monkeypatch.setenv(variable, "another")
        with scripted_server(Says("yes")) as server:
            ask(name, server.base_url(name))

        assert server.received[0].headers["authorization"] == f"Bearer {KEY}"

    def test_what_comes_is_given_back_as_it_came(self, name: str) -> None:
        """The raw body, not what the SDK makes of it."""
        with scripted_server(Sends(b'{"any": [1, 1.0] }')) as server:
            assert ask(name, server.base_url(name)) == b'{"any": [1, 1.0] }'


STATUSES: list[tuple[int, str, type[ProviderError]]] = [
    (302, "", PermanentError),
    (400, "invalid_request_error", PermanentError),
    (401, "authentication_error", PermanentError),
    (402, "billing_error", PermanentError),
    (403, "permission_error", PermanentError),
    (404, "not_found_error", PermanentError),
    (408, "", TransientError),
    (409, "", TransientError),
    (413, "request_too_large", PermanentError),
    (422, "", PermanentError),
    (429, "rate_limit_error", TransientError),
    (429, "insufficient_quota", PermanentError),
    (429, "billing_hard_limit_reached", PermanentError),
    (500, "api_error", TransientError),
    (502, "", TransientError),
    (503, "", TransientError),
    (504, "", TransientError),
    (529, "overloaded_error", TransientError),
]


class TestFailures:
    @pytest.mark.parametrize(("status", "kind", "expected"), STATUSES)
    def test_each_status(
        self, name: str, status: int, kind: str, expected: type[ProviderError]
    ) -> None:
        """A status has one meaning, over either SDK, and is told with the server's words."""
        body = json.dumps({"error": {"type": kind, "message": "so it\x1b is"}}).encode()
        error = failing(name, Sends(body, status, {"location": "http://127.0.0.1:9/"}))

        assert type(error) is expected
        assert f"HTTP {status}" in str(error)
        assert str(error).endswith(": so it\\x1b is")

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b'{"error": "x"}', b"\xff"])
    def test_a_status_counts_whatever_its_body(self, name: str, body: bytes) -> None:
        """An error page of a proxy is as good as one of the provider's."""
        assert type(failing(name, Sends(body, 503))) is TransientError

    @pytest.mark.parametrize("fault", ["reset", "close", "reset in the body"])
    def test_an_answer_lost_after_the_request_went(self, name: str, fault: Any) -> None:
        """Nobody knows whether it was worked on."""
        error = failing(name, Sends(b"x" * 100, fault=fault))

        assert type(error) is UnknownOutcomeError
        assert "the answer was lost" in str(error)

    @pytest.mark.parametrize("fault", ["hang", "drip"])
    def test_no_answer_in_time(self, name: str, fault: Any) -> None:
        """The limit is for the whole answer, however slowly it comes; the request is cut off."""
        error = failing(name, Sends(b"x" * 1000, fault=fault), timeout_s=3.0)

        assert type(error) is UnknownOutcomeError
        assert str(error) == "no answer within 3 s"

    def test_no_server(self, name: str) -> None:
        """Where nothing listens, nothing was sent, and another try may help."""
        with closing(create_server(("127.0.0.1", 0))) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(TransientError, match="no connection"):
            ask(name, f"http://127.0.0.1:{port}/v1")

    def test_no_such_protocol(self, name: str) -> None:
        """An address that cannot be sent to is a person's to mend."""
        with pytest.raises(PermanentError, match="cannot be sent"):
            ask(name, "gopher://127.0.0.1/v1")

    def test_an_endless_answer(self, name: str) -> None:
        """So much of it is read and no more."""
        with scripted_server(Sends(b"{", fault="endless")) as server:
            assert len(ask(name, server.base_url(name))) == BODY_LIMIT

    def test_a_packed_answer_is_not_unpacked(self, name: str) -> None:
        """None is asked for, and a small one could become a huge one."""
        with scripted_server(Sends(b"\x1f\x8b", headers={"content-encoding": "gzip"})) as server:
            assert ask(name, server.base_url(name)) == b"\x1f\x8b"
            assert server.received[0].headers["accept-encoding"] == "identity"

    def test_a_stop_gives_the_request_up(self, name: str) -> None:
        """A request under way does not hold up a session that is to end."""
        with scripted_server(Sends(fault="hang")) as server:

            def stop() -> str:
                return "SIGTERM" if server.received else ""

            with pytest.raises(StoppedError, match="asked to stop: SIGTERM"):
                ask(name, server.base_url(name), stop=stop, timeout_s=300)

    def test_an_error_of_our_own_is_an_unknown_outcome(self) -> None:
        """What is not understood is not taken for free."""

        def send(_: object) -> bytes:
            raise KeyError("what?")

        with pytest.raises(UnknownOutcomeError, match="KeyError"):
            fetch(send, timeout_s=5, stop=str, key=KEY)


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("said", "expected"),
        [
            ("7", 7.0),
            ("0.5", 0.5),
            ("0", 0.0),
            ("-5", 0.0),
            ("100000", LONGEST_WAIT_S),
            ("inf", LONGEST_WAIT_S),
            ("nan", None),
            ("soon", None),
            ("", None),
            (formatdate(1_000_030, usegmt=True), 30.0),
            (formatdate(999_000, usegmt=True), 0.0),
            (formatdate(2_000_000, usegmt=True), LONGEST_WAIT_S),
            ("Mon, 99 Foo 2026", None),
        ],
    )
    def test_seconds_or_a_date(self, said: str, expected: float | None) -> None:
        """Both forms are read, and neither keeps a session waiting without end."""
        assert retry_after(said, now=1_000_000.0) == expected

    def test_it_reaches_the_failure(self, name: str) -> None:
        """Over either SDK."""
        error = failing(name, Sends(b"", 429, {"Retry-After": "7"}))
        assert isinstance(error, TransientError)
        assert error.retry_after_s == 7.0

    def test_a_permanent_failure_has_none(self) -> None:
        """An exhausted quota does not come back by waiting."""
        body = b'{"error": {"code": "insufficient_quota", "type": 5}}'
        assert isinstance(of_status(429, {"retry-after": "7"}, body), PermanentError)


BODIES: dict[str, Callable[[Says], dict[str, Any]]] = {
    "openai": openai_body,
    "anthropic": anthropic_body,
}


class TestRead:
    @pytest.mark.parametrize(
        ("ended", "told"),
        [
            ("complete", ""),
            ("cut off", "it was cut off at max_output_tokens"),
            ("refused", "the model refused"),
        ],
    )
    def test_each_end(self, name: str, ended: Ending, told: str) -> None:
        """Only a text that came to its end counts as one."""
        reply = PROVIDERS[name].read(BODIES[name](Says("{}", ended)))
        assert reply.ended == told
        assert reply.cut_off == (ended == "cut off")

    def test_thinking_is_no_answer(self) -> None:
        """What a model thought stands beside its text, and is not read."""
        thought = {"type": "thinking", "thinking": "stop", "signature": "x"}
        body = anthropic_body(Says("yes"))
        body["content"].insert(0, thought)
        assert PROVIDERS["anthropic"].read(body).text == "yes"

        body = openai_body(Says("yes"))
        spoken = {**body["output"][1], "phase": "commentary"}
        body["output"].insert(0, spoken)
        assert PROVIDERS["openai"].read(body).text == "yes"

    @pytest.mark.parametrize(
        "usage",
        [
            None,
            [],
            {},
            {"input_tokens": 5},
            {"input_tokens": -1, "output_tokens": 1},
            {"input_tokens": True, "output_tokens": 1},
            {"input_tokens": 1.5, "output_tokens": 1},
            {"input_tokens": "5", "output_tokens": 1},
            {"input_tokens": 2**60, "output_tokens": 1},
        ],
    )
    def test_a_usage_that_says_nothing(self, name: str, usage: Any) -> None:
        """What cannot be a count is none."""
        assert PROVIDERS[name].tokens({"usage": usage}) is None

    def test_cached_tokens_count(self) -> None:
        """One protocol counts them within the input, the other beside it."""
        cached = {"cache_read_input_tokens": 70, "cache_creation_input_tokens": None}
        usage = {"input_tokens": 30, "output_tokens": 5, **cached}
        assert PROVIDERS["anthropic"].tokens({"usage": usage}) == Tokens(100, 5)
        assert PROVIDERS["openai"].tokens({"usage": usage}) == Tokens(30, 5)

    @pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}'])
    def test_a_body_that_is_no_object(self, body: bytes) -> None:
        """It is told as the response's fault."""
        with pytest.raises(UnusableError, match="the response"):
            load_body(body)


class TestServed:
    @pytest.fixture
    def model(self) -> Served:
        return served("openai", "https://x/v1", usd_per_mtok={"input": 2.0, "output": 10.0})

    def test_cost(self, model: Served) -> None:
        """Dollars per million tokens."""
        cost = model.cost(Tokens(1_000_000, 100_000))
        assert cost is not None
        assert math.isclose(cost, 3.0)

    def test_no_prompt_has_more_tokens_than_bytes(self, model: Served) -> None:
        """The bound holds for any tokenizer that works on bytes."""
        schema: dict[str, Any] = {}
        assert model.most_input((("user", "\u00e4" * 100),), schema) == 200 + 2 + 2000

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("http://localhost:1/v1", True),
            ("http://127.0.0.9:1", True),
            ("http://[::1]:1/v1", True),
            ("https://127.evil.example/v1", False),
            ("https://api.openai.com/v1", False),
        ],
    )
    def test_local(self, url: str, expected: bool) -> None:
        """Only this machine's own server may go without a key."""
        assert served("openai", url).is_local is expected

    def test_effort_by_stake(self) -> None:
        """A question is of medium stake, all that releases money of high."""
        model = served("openai", "https://x", effort={"high": "xhigh", "medium": "low"})
        assert [model.effort_for(r) for r in ("question", "sentinel", "gate failed")] == [
            "low",
            "xhigh",
            "xhigh",
        ]
        assert served("openai", "https://x", effort={"high": "a"}).effort_for("question") is None
        assert served("openai", "https://x").effort_for("closing") is None
