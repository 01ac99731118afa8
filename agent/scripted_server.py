"""A model's server that says what it is told to: both protocols, faults, and what it was asked.

For tests, a user's own included: it listens on loopback, needs no key, and plays its script in
order, one entry a request. A request beyond the script is answered with status 410.
"""

import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Literal

from runbook.contract import Json

Ending = Literal["complete", "cut off", "refused", "filtered", "failed"]
Fault = Literal["", "reset", "close", "reset in the body", "hang", "drip", "endless"]
_CHUNK = b" " * 65536
_DRIP_S = 0.02


@dataclass(frozen=True)
class Says:
    """A model's text, in the envelope of whichever protocol asks."""

    text: str
    ended: Ending = "complete"
    input_tokens: int = 100
    output_tokens: int = 20


@dataclass(frozen=True)
class Sends:
    """Raw bytes with a status, and what goes wrong on the way."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Fault = ""
    """reset and close: no answer comes; hang: none until the server ends; drip: a byte at a time;
    endless: the body has no end; reset in the body: half of it comes."""


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Json


class ScriptedServer:
    """A running server; made by ``scripted_server``."""

    def __init__(self, script: Sequence[Says | Sends]) -> None:
        self.received: list[Received] = []
        self._script = tuple(script)
        self._lock = Lock()
        self.ended = Event()
        self.most_at_once = 0
        """Requests that were under way together."""
        self.at_once = 0
        """Requests that are under way now."""
        self.port = 0

    def base_url(self, provider: str) -> str:
        """As ``base_url`` is written in a runbook."""
        root = f"http://127.0.0.1:{self.port}"
        return f"{root}/v1" if provider == "openai" else root

    def next(self, received: Received) -> Says | Sends:
        """The script's next entry."""
        with self._lock:
            index = len(self.received)
            self.received.append(received)
        beyond = Sends(b'{"error": {"message": "the script is at its end"}}', 410)
        return self._script[index] if index < len(self._script) else beyond

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count a request while it is answered."""
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self._lock:
                self.at_once -= 1


@contextmanager
def scripted_server(
    *script: Says | Sends, answering: ScriptedServer | None = None
) -> Iterator[ScriptedServer]:
    """A server on a free port of loopback that plays this script.

    Args:
        script: an entry a request.
        answering: in its place, a ``ScriptedServer`` whose own ``next`` answers.
    """
    scripted = answering or ScriptedServer(script)
    server = _Listener(("127.0.0.1", 0), _handler(scripted))
    scripted.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield scripted
    finally:
        scripted.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Listener(ThreadingHTTPServer):
    # Each connection's thread is waited for at the end, so that none outlives its server.
    daemon_threads = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gives up is no fault of the server's."""


def _handler(scripted: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            size = int(self.headers.get("content-length", 0))
            names = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.path, names, json.loads(self.rfile.read(size)))
            with scripted.under_way():
                _play(self, scripted, scripted.next(received))
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Nothing goes to stderr."""

    return Handler


def _play(handler: BaseHTTPRequestHandler, scripted: ScriptedServer, entry: Says | Sends) -> None:
    if isinstance(entry, Says):
        body = openai_body(entry) if handler.path.endswith("/responses") else anthropic_body(entry)
        entry = Sends(json.dumps(body).encode())
    match entry.fault:
        case "reset":
            _reset(handler.connection)
            return
        case "close":
            return
        case "hang":
            _until_gone(handler.connection, scripted.ended)
            return
        case _:
            _head(handler, entry)
    with suppress(OSError):
        _body(handler, entry, scripted.ended)


def _head(handler: BaseHTTPRequestHandler, entry: Sends) -> None:
    handler.send_response(entry.status)
    handler.send_header("content-type", "application/json")
    handler.send_header("connection", "close")
    if entry.fault != "endless":
        handler.send_header("content-length", str(len(entry.body)))
    for name, value in entry.headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def _body(handler: BaseHTTPRequestHandler, entry: Sends, ended: Event) -> None:
    out = handler.wfile
    match entry.fault:
        case "reset in the body":
            out.write(entry.body[: len(entry.body) // 2])
            out.flush()
            _reset(handler.connection)
        case "drip":
            for i in range(len(entry.body)):
                if ended.wait(_DRIP_S):
                    return
                out.write(entry.body[i : i + 1])
        case "endless":
            out.write(entry.body)
            while not ended.is_set():
                out.write(_CHUNK)
        case _:
            out.write(entry.body)


def _reset(connection: socket.socket) -> None:
    """End a connection so that the other side sees a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _until_gone(connection: socket.socket, ended: Event) -> None:
    """Until the client hangs up or the server ends."""
    connection.settimeout(0)
    while not ended.is_set():
        try:
            if not connection.recv(1):
                return
        except BlockingIOError:
            time.sleep(_DRIP_S)
        except OSError:
            return


def openai_body(says: Says) -> dict[str, Json]:
    """A response of the Responses API."""
    part: dict[str, Json] = {"type": "output_text", "text": says.text, "annotations": []}
    if says.ended == "refused":
        part = {"type": "refusal", "refusal": says.text}
    reasons = {"cut off": "max_output_tokens", "filtered": "content_filter"}
    reason = reasons.get(says.ended)
    message = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "incomplete" if reason else "completed",
        "content": [part],
    }
    failed = says.ended == "failed"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 0,
        "status": "failed" if failed else "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "error": {"code": "server_error", "message": "it failed"} if failed else None,
        "model": "scripted",
        "output": [{"type": "reasoning", "id": "rs_1", "summary": []}, message],
        "usage": {
            "input_tokens": says.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": says.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": says.input_tokens + says.output_tokens,
        },
    }


def anthropic_body(says: Says) -> dict[str, Json]:
    """A message of the Messages API."""
    reasons = {
        "complete": "end_turn",
        "cut off": "max_tokens",
        "refused": "refusal",
        "filtered": "refusal",
        "failed": "pause_turn",
    }
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [{"type": "text", "text": says.text}] if says.text else [],
        "stop_reason": reasons[says.ended],
        "stop_sequence": None,
        "usage": {
            "input_tokens": says.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": says.output_tokens,
        },
    }
