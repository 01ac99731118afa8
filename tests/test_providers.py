"""Requests to a model's server: what is sent, which failure is which, and how one is given up."""

import json
import math
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import create_server
from threading import Event, Thread
from threading import enumerate as threads
from typing import Any

import httpx2
import pytest

from agent.answer import UnusableError
from agent.exchange import BODY_LIMIT, _tls, fetch
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
from agent.provider import OVERHEAD_TOKENS, Call, Served, Tokens, load_body, request_size
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


@pytest.fixture(autouse=True, scope="module")
def _import_both() -> None:
    """A first request imports its SDK, which takes seconds that count towards its time limit."""
    for name in NAMES:
        with scripted_server(Says("yes")) as server:
            ask(name, server.base_url(name), timeout_s=300)


def served(name: str, base_url: str, **fields: Any) -> Served:
    """A model of this provider behind this address."""
    given = {"timeout_s": 20.0, "max_output_tokens": 500, "context_tokens": 8000, **fields}
    return Served(name, "tiny", base_url, "THE_API_KEY", **given)


def ask(
    name: str,
    base_url: str,
    *,
    stop: Callable[[], str] = str,
    effort: str = "",
    redact: Callable[[bytes], bytes] = bytes,
    **fields: Any,
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
        redact=redact,
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
            "stream": False,
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
            "stream": False,
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

    def test_the_environment_changes_no_header(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither by a name of its own nor by a value for a name that is sent."""
        theirs = (
            "Host: evil.example",
            "Accept: text/event-stream",
            "Content-Type: text/plain",
            "Content-Length: 5",
            "Connection: upgrade",
            "User-Agent: another",
            "X-Stainless-Raw-Response: stream",
            "X-Stainless-Another: 1",
            "X-Another: 1",
            f"{name}-beta: another",
            f"{name}-version: 1999-01-01",
        )
        with scripted_server(Says("yes"), Says("yes")) as server:
            ask(name, server.base_url(name))
            monkeypatch.setenv(f"{name.upper()}_CUSTOM_HEADERS", "\n".join(theirs))
            ask(name, server.base_url(name))
            usual, told = (received.headers for received in server.received)

        assert told == usual
        mode = {"openai": "true", "anthropic": "raw"}[name]
        version = {"anthropic-version": "2026-10-21"} if name == "anthropic" else {}
        assert told == {
            "accept": "application/json",
            "accept-encoding": "identity",
            "authorization": f"Bearer {KEY}",
            "connection": "keep-alive",
            "content-length": told["content-length"],
            "content-type": "application/json",
            "host": f"127.0.0.1:{server.port}",
            "user-agent": "runbook",
            "x-stainless-raw-response": mode,
            **version,
        }

    @pytest.mark.parametrize(
        "proxy", ["http://127.0.0.1:{port}", "socks5h://127.0.0.1:9", "ftp://127.0.0.1:9", "no://x"]
    )
    def test_the_environment_names_no_proxy(
        self, name: str, proxy: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Key and dossier go where the runbook says, a server on this machine included."""
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with scripted_server(Says("yes")) as server, scripted_server(Says("no")) as other:
            for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
                monkeypatch.setenv(variable, proxy.format(port=other.port))
            ask(name, server.base_url(name).replace("127.0.0.1", "localhost"))

        assert (len(server.received), len(other.received)) == (1, 0)

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
    (504, "", UnknownOutcomeError),
    (504, "insufficient_quota", UnknownOutcomeError),
    (520, "", TransientError),
    (524, "", UnknownOutcomeError),
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

    @pytest.mark.parametrize("depth", [450, 600, 900])
    def test_an_error_deeply_nested(self, name: str, depth: int) -> None:
        """Of an error's body only what is quoted is looked through."""
        nested = b"[" * depth + b"]" * depth
        body = b'{"error": {"message": "no", "code": %b, "x": %b}}' % (nested, nested)
        assert type(failing(name, Sends(body, 401))) is PermanentError

    @pytest.mark.parametrize("charset", ["hex", "zlib", "rot13", "undefined", "utf-7"])
    def test_an_odd_charset(self, name: str, charset: str) -> None:
        """A body is UTF-8 JSON or none, whatever it is said to be, and is not unpacked."""
        headers = {"content-type": f"application/json; charset={charset}"}
        body = b'{"error": {"message": "so it is"}}'
        error = failing(name, Sends(body, 401, headers))

        assert type(error) is PermanentError
        assert str(error).endswith(": so it is")
        with scripted_server(Sends(b"{}", headers=headers)) as server:
            assert ask(name, server.base_url(name)) == b"{}"

    def test_an_error_that_cannot_be_read(self, name: str) -> None:
        """Whatever goes wrong over an error's body, the request's end is then unknown."""

        def redact(_: bytes) -> bytes:
            raise LookupError("what?")

        error = failing(name, Sends(b'{"error": {"message": "x"}}', 401), redact=redact)
        assert type(error) is UnknownOutcomeError
        assert str(error) == "the answer was lost: LookupError: what?"

    @pytest.mark.parametrize("fault", ["reset", "close", "reset in the body"])
    def test_an_answer_lost_after_the_request_went(self, name: str, fault: Any) -> None:
        """Nobody knows whether it was worked on."""
        error = failing(name, Sends(b"x" * 100, fault=fault))

        assert type(error) is UnknownOutcomeError
        assert "the answer was lost" in str(error)

    @pytest.mark.parametrize(
        ("name", "fault"), [("openai", "hang"), ("anthropic", "hang"), ("openai", "drip")]
    )
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

    def test_a_connection_that_does_not_stand_in_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing was sent, and nothing is once it could be."""
        gone_on, look_up = Event(), socket.getaddrinfo

        def hanging(*args: Any, **kwargs: Any) -> Any:
            gone_on.wait(60)
            return look_up(*args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", hanging)
        monkeypatch.setattr("agent.exchange._LAST_S", 0.1)
        with scripted_server(Says("yes")) as server:
            before = threads()
            with pytest.raises(TransientError, match="no connection within 3 s"):
                ask("openai", server.base_url("openai"), timeout_s=3.0)
            gone_on.set()
            for thread in set(threads()) - set(before):
                thread.join(60)
            assert server.received == []

    def test_a_request_that_does_not_begin_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slow disk may hold up the SDK's import: the request that comes late is not sent."""
        gone_on, was_refused = Event(), Event()
        monkeypatch.setattr("agent.exchange._LAST_S", 0.1)
        with scripted_server(Says("yes")) as server:

            def send(http: httpx2.Client) -> bytes:
                gone_on.wait(60)
                with pytest.raises(TransientError, match="given up before it was sent"):
                    http.post(server.base_url("openai"), json={})
                was_refused.set()
                return b""

            before = threads()
            with pytest.raises(TransientError, match="no connection within 3 s"):
                fetch(send, timeout_s=3, stop=str, key=KEY)
            gone_on.set()
            for thread in set(threads()) - set(before):
                thread.join(60)
            assert was_refused.is_set()
            assert server.received == []

    def test_an_sdk_that_is_not_there(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fault of this machine before anything was sent cost nothing, and stays until mended."""
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(PermanentError, match="the request cannot be sent: ModuleNotFound"):
            ask(name, "http://127.0.0.1:9/v1")

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
        with scripted_server(Says("yes")) as server:

            def send(http: httpx2.Client) -> bytes:
                http.post(server.base_url("openai"), json={})
                raise KeyError("what?")

            with pytest.raises(UnknownOutcomeError, match="the answer was lost: KeyError"):
                fetch(send, timeout_s=20, stop=str, key=KEY)


class YesToAll(BaseHTTPRequestHandler):
    """Reads a request to its end before it answers: closing earlier resets the connection."""

    def do_POST(self) -> None:
        """An empty object, whatever was asked."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing on the test's stderr."""


@contextmanager
def encrypted_server(certificate: Path) -> Iterator[int]:
    """The port of a server that gives every request over TLS one answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with HTTPServer(("127.0.0.1", 0), YesToAll) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class TestCertificates:
    @pytest.fixture(autouse=True)
    def _read_anew(self) -> Iterator[None]:
        _tls.cache_clear()
        yield
        _tls.cache_clear()

    @pytest.mark.skipif(not shutil.which("openssl"), reason="makes the certificate")
    def test_a_server_is_believed_by_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that the environment's own authorities vouch for, and no other."""
        path = tmp_path / "both.pem"
        made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=mine"
        names = ["-addext", "subjectAltName=DNS:localhost"]
        command = ["openssl", *made.split(), *names, "-keyout", str(path), "-out", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        with encrypted_server(path) as port:
            with pytest.raises(TransientError, match=r"no connection: .*CERTIFICATE_VERIFY_FAILED"):
                ask("openai", f"https://localhost:{port}/v1")
            monkeypatch.setenv("SSL_CERT_FILE", str(path))
            _tls.cache_clear()
            assert ask("openai", f"https://localhost:{port}/v1") == b"{}"

    def test_they_cannot_be_read(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is sent; the variable to look at is named, and once mended it goes on."""
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        with scripted_server(Says("yes")) as server:
            with pytest.raises(PermanentError, match=r"SSL_CERT_FILE .*: FileNotFoundError"):
                ask(name, server.base_url(name))
            monkeypatch.delenv("SSL_CERT_FILE")
            assert ask(name, server.base_url(name))
            assert len(server.received) == 1


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
        """A request is reserved by its bytes, which bound any tokenizer that works on them."""
        size = request_size((("user", "\u00e4" * 100),), {})
        assert size == 200 + 2
        most = Tokens(size + OVERHEAD_TOKENS, model.max_output_tokens)
        assert model.worst_usd(size) == model.cost(most)
        assert replace(model, usd_per_mtok=None, max_usd=0.1).worst_usd(size) == 0.1
        assert replace(model, usd_per_mtok=None).worst_usd(size) is None

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
