"""One HTTP request through a provider's SDK, given up at its time limit or when asked to.

Rule: one request, one answer of bounded size. Nothing is retried or redirected here, and the
environment names no proxy and no header. What fails on this machine before the request begins is
permanent; a failure before the connection stood is transient; after it, its outcome is unknown.
What is given up is cut off at its socket, so that no request goes on behind the next one's back.
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

_HEADERS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "connection": "keep-alive",
    "content-type": "application/json",
    "user-agent": "runbook",
}
"""What is sent, besides host, length, key and version: an SDK takes others from variables."""
_VERSION = {"anthropic-version": "2026-10-21"}
"""Sent where an SDK sends one: the protocol whose messages are read here."""
_MODE = "x-stainless-raw-response"
"""By this an SDK tells itself what to make of the response."""
BODY_LIMIT = 1 << 20
"""Bytes of a response; what follows is not read."""
_CONNECTING = ("connection.connect_tcp.", "connection.start_tls.")
"""Events before the first byte of a request."""
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
    if found is not None:
        raise _failure(found, redact, has_begun=wire.has_begun) from found
    if wire.is_unsent:
        raise TransientError(f"no connection within {timeout_s:g} s")
    raise UnknownOutcomeError(f"no answer within {timeout_s:g} s")


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
) -> bytes | BaseException | None:
    """What came of it; None: nothing did in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return came.get(timeout=_TICK_S)
        except Empty:
            if reason := stop():
                raise StoppedError(reason) from None
            if time.monotonic() > deadline:
                return None


@cache
def _tls() -> ssl.SSLContext:
    """Which servers are believed; made once, since it reads every authority's certificate.

    Raises:
        PermanentError: the certificates cannot be read.
    """
    import httpx2  # noqa: PLC0415 - as the SDKs that stand on it

    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        what = "the certificates that servers are held against cannot be read"
        fix = "see the variables SSL_CERT_FILE and SSL_CERT_DIR"
        raise PermanentError(f"{what}; {fix}: {_told(error)}") from error


class _Wire:
    """How far a request came, and its sockets, so that another thread can cut it off."""

    def __init__(self, key: str) -> None:
        self._wanted = {"authorization": f"Bearer {key}", "x-api-key": key, **_VERSION}
        self._sockets: list[socket.socket] = []
        self._is_cut = False
        self._at = ""
        """The last event before it was cut; empty before the request was handed on."""

    @property
    def has_begun(self) -> bool:
        """Whether the request was handed on to be sent."""
        return bool(self._at)

    @property
    def is_unsent(self) -> bool:
        """Whether it is known, once it is cut, that nothing of it left or will leave."""
        return not self._at or self._at.startswith(_CONNECTING)

    def client(self, timeout_s: float) -> "httpx2.Client":
        import httpx2  # noqa: PLC0415 - as the SDKs that stand on it

        return httpx2.Client(
            verify=_tls(),
            trust_env=False,
            timeout=httpx2.Timeout(timeout_s + _LATER_S, connect=min(_CONNECT_S, timeout_s)),
            follow_redirects=False,
            event_hooks={"request": [self._watch], "response": [_bound]},
        )

    def _watch(self, request: "httpx2.Request") -> None:
        import httpx2  # noqa: PLC0415 - as above

        given = request.headers
        host, length = request.url.netloc.decode("ascii"), str(len(request.content))
        headers = {"host": host, **_HEADERS, "content-length": length}
        headers |= {name: value for name, value in self._wanted.items() if name in given}
        headers |= {_MODE: given[_MODE]} if _MODE in given else {}
        request.headers = httpx2.Headers(headers)
        request.extensions["trace"] = self._note
        # Told before it is asked: whoever cuts it asks in the other order, and one of both sees it.
        self._at = "begun"
        if self._is_cut:
            raise TransientError("it was given up before it was sent")

    def _note(self, event: str, info: Mapping[str, Any]) -> None:
        """Every stream that is opened tells its socket; TLS wraps it in another."""
        if not self._is_cut:
            # What comes after does not leave: every socket is shut down, or will be as it opens.
            self._at = event
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

    for name in ("content-encoding", "content-type"):
        # A charset can be one that unpacks, or that cannot be decoded.
        response.headers.pop(name, None)
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = Bounded(response.stream)


def _failure(
    error: BaseException, redact: Callable[[bytes], bytes], *, has_begun: bool
) -> ProviderError:
    """What an SDK's error means. One that is not known may have come after the request went."""
    last = _told(list(_causes(error))[-1])
    try:
        known = _known(error, redact)
    except Exception as wrong:  # noqa: BLE001 - whatever a body does to its reader
        known, last = None, _told(wrong)
    if known is not None:
        return known
    if not has_begun:
        return PermanentError(f"the request cannot be sent: {last}")
    return UnknownOutcomeError(f"the answer was lost: {last}")


def _known(error: BaseException, redact: Callable[[bytes], bytes]) -> ProviderError | None:
    import httpx2  # noqa: PLC0415 - as above

    never_sent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
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
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _told(error: BaseException) -> str:
    words = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {ascii(words)[1:-1]}" if words else type(error).__name__
