"""One HTTP request through a provider's SDK, given up at its time limit or when asked to.

Rule: one request, one answer of bounded size. Nothing is retried or redirected here. A failure
before the connection stood is transient; after it, its outcome is unknown. What is given up is cut
off at its socket, so that no request goes on behind the next one's back.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from agent.failures import (
    PermanentError,
    ProviderError,
    StoppedError,
    TransientError,
    UnknownOutcomeError,
    of_status,
)

if TYPE_CHECKING:
    import httpx2

_HEADERS = frozenset(
    {
        "accept",
        "anthropic-beta",
        "anthropic-version",
        "connection",
        "content-length",
        "content-type",
        "host",
        "user-agent",
    }
)
"""What is sent, the key's own header aside: variables of the environment name others."""
_SDK = "x-stainless-"
"""By these an SDK tells its version, and itself what to make of the response."""
BODY_LIMIT = 1 << 20
"""Bytes of a response; what follows is not read."""
_CONNECT_S = 20.0
_LATER_S = 5.0
"""By so much the limit on one read comes after the limit on the whole answer."""
_TICK_S = 0.05
_LAST_S = 1.0


def fetch(
    send: Callable[["httpx2.Client"], bytes],
    *,
    timeout_s: float,
    stop: Callable[[], str],
    key: str,
    redact: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """The body of a successful response.

    Args:
        send: asks through this client; runs in a thread of its own.
        timeout_s: for all of it.
        stop: why the session is to end now, or ''.
        key: stands in every header for a key, whatever the environment has an SDK put there.
        redact: takes secrets out of an error's body before it is quoted.

    Raises:
        ProviderError: there is none; its class says what can be done.
        StoppedError: the session is to end; the outcome is unknown.
    """
    wire = _Wire(key)
    came: SimpleQueue[bytes | BaseException] = SimpleQueue()
    thread = Thread(target=_run, args=(wire, send, timeout_s, came), daemon=True)
    thread.start()
    try:
        found = _await(came, timeout_s, stop)
    finally:
        wire.cut()
        thread.join(_LAST_S)
    if isinstance(found, bytes):
        return found
    raise _failure(found, redact) from found


def _run(
    wire: "_Wire",
    send: Callable[["httpx2.Client"], bytes],
    timeout_s: float,
    came: "SimpleQueue[bytes | BaseException]",
) -> None:
    try:
        with wire.client(timeout_s) as http:
            came.put(send(http))
    except Exception as error:  # noqa: BLE001 - told apart by whoever waits
        came.put(error)


def _await(
    came: "SimpleQueue[bytes | BaseException]", timeout_s: float, stop: Callable[[], str]
) -> bytes | BaseException:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return came.get(timeout=_TICK_S)
        except Empty:
            if reason := stop():
                raise StoppedError(reason) from None
            if time.monotonic() > deadline:
                raise UnknownOutcomeError(f"no answer within {timeout_s:g} s") from None


@cache
def _tls() -> ssl.SSLContext:
    """Which servers are believed; made once, since it reads every authority's certificate."""
    import httpx2  # noqa: PLC0415 - as the SDKs that stand on it

    return httpx2.create_ssl_context()


class _Wire:
    """The sockets of a request, so that it can be cut off from another thread."""

    def __init__(self, key: str) -> None:
        self._auth = {"authorization": f"Bearer {key}", "x-api-key": key}
        self._sockets: list[socket.socket] = []
        self._is_cut = False

    def client(self, timeout_s: float) -> "httpx2.Client":
        import httpx2  # noqa: PLC0415 - as the SDKs that stand on it

        return httpx2.Client(
            verify=_tls(),
            timeout=httpx2.Timeout(timeout_s + _LATER_S, connect=min(_CONNECT_S, timeout_s)),
            follow_redirects=False,
            event_hooks={"request": [self._watch], "response": [_bound]},
        )

    def _watch(self, request: "httpx2.Request") -> None:
        for name in list(request.headers):
            if name.lower() in self._auth:
                request.headers[name] = self._auth[name.lower()]
            elif name.lower() not in _HEADERS and not name.lower().startswith(_SDK):
                del request.headers[name]
        request.headers["accept-encoding"] = "identity"
        request.extensions["trace"] = self._note

    def _note(self, event: str, info: Mapping[str, Any]) -> None:
        """Every stream that is opened tells its socket; TLS wraps it in another."""
        tell = getattr(info.get("return_value"), "get_extra_info", None)
        if event.endswith(".complete") and tell is not None:
            found = tell("socket")
            if isinstance(found, socket.socket):
                self._sockets.append(found)
                if self._is_cut:
                    self.cut()

    def cut(self) -> None:
        self._is_cut = True
        for found in list(self._sockets):
            try:
                # Past TLS, whose own shutdown would change an object another thread reads from.
                socket.socket.shutdown(found, socket.SHUT_RDWR)
            except OSError:
                continue


def _bound(response: "httpx2.Response") -> None:
    """Only so many bytes of the body are read, and none is unpacked."""
    import httpx2  # noqa: PLC0415 - as above

    class Bounded(httpx2.SyncByteStream):
        def __init__(self, stream: httpx2.SyncByteStream) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            left = BODY_LIMIT
            for chunk in self._stream:
                yield chunk[:left]
                left -= len(chunk)
                if left <= 0:
                    return

        def close(self) -> None:
            self._stream.close()

    if "content-encoding" in response.headers:
        del response.headers["content-encoding"]
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = Bounded(response.stream)


def _failure(error: BaseException, redact: Callable[[bytes], bytes]) -> ProviderError:
    """What an SDK's error means. One that is not known may have come after the request went."""
    import httpx2  # noqa: PLC0415 - as above

    never_sent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
    never_will = (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.LocalProtocolError)
    for cause in _causes(error):
        if isinstance(cause, ProviderError):
            return cause
        response = getattr(cause, "response", None)
        if isinstance(response, httpx2.Response):
            return of_status(response.status_code, dict(response.headers), response.content, redact)
        if isinstance(cause, never_sent):
            return TransientError(f"no connection: {_told(cause)}")
        if isinstance(cause, never_will):
            return PermanentError(f"the request cannot be sent: {_told(cause)}")
    return UnknownOutcomeError(f"the answer was lost: {_told(list(_causes(error))[-1])}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _told(error: BaseException) -> str:
    words = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {ascii(words)[1:-1]}" if words else type(error).__name__
