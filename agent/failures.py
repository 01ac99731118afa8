"""Why a provider gave no answer, one class per remedy, and how an HTTP status is told apart.

Rule: what is known to have failed cost nothing and is settled so; what may have been worked on
stays reserved. A status is read by its number and its error's code, never by words.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

from agent import redaction
from agent.answer import shown
from agent.remedy import Remedy
from runbook.contract import Json

LONGEST_WAIT_S = 120.0
"""What a server may have us wait between two tries."""
_WORDS = 300
"""Characters of what a server says of its error."""
_QUOTA = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "quota_exceeded",
        "billing_error",
    }
)
"""Codes and types by which a 429 says that waiting does not help."""
_BUSY = frozenset({408, 409, 425, 429})
_GIVEN_UP = frozenset({504, 524})
"""A gateway waited no longer: what it waited for may still end, and be charged."""
_MEANING = {
    400: "the request is invalid",
    401: "the API key is not accepted",
    402: "the account has no credit",
    403: "the API key may not do this",
    404: "there is no such model or path",
    413: "the request is too large",
    422: "the request is invalid",
    429: "too many requests",
    504: "a gateway waited no longer for the answer",
    524: "a gateway waited no longer for the answer",
    529: "the provider is overloaded",
}


class ProviderError(Exception):
    """No answer came; ``str()`` is the cause, in one line."""


class TransientError(ProviderError):
    """It failed and cost nothing: try again later."""

    def __init__(self, cause: str, retry_after_s: float | None = None) -> None:
        super().__init__(cause)
        self.retry_after_s = retry_after_s


class PermanentError(ProviderError):
    """It failed and will fail again until a person mends something."""


class UnknownOutcomeError(ProviderError):
    """The request was sent and its end is not known: it may have been charged."""


class StoppedError(Exception):
    """The session is to end now."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the session was asked to stop: {reason}")


class RefusedError(Exception):
    """The request must not be sent: the account or the runbook's cap says no."""

    def __init__(self, cause: str, remedy: Remedy) -> None:
        super().__init__(cause)
        self.remedy = remedy


def of_status(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    redact: Callable[[bytes], bytes] = bytes,
    *,
    now: float | None = None,
) -> ProviderError:
    """What a status other than 2xx means.

    Args:
        status: of HTTP.
        headers: their names in lower case.
        body: may hold ``{"error": {"type", "code", "message"}}``.
        redact: takes secrets out of what the body says, before that is cut.
        now: seconds since the epoch, for a ``retry-after`` that is a date.
    """
    error = _error(body)
    named = {said for name in ("code", "type") if isinstance(said := error.get(name), str)}
    exhausted = bool(named & _QUOTA)
    cause = _cause(status, error, redact, exhausted=exhausted)
    if status in _GIVEN_UP:
        return UnknownOutcomeError(cause)
    if (status in _BUSY or status >= 500) and not exhausted:
        return TransientError(cause, retry_after(headers.get("retry-after", ""), now=now))
    return PermanentError(cause)


def retry_after(said: str, *, now: float | None = None) -> float | None:
    """Seconds to wait, by a ``retry-after`` of seconds or of an HTTP date; None: it says nothing.

    Never more than ``LONGEST_WAIT_S``.
    """
    try:
        wait_s = float(said)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(said).timestamp() - (time.time() if now is None else now)
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(0.0, wait_s), LONGEST_WAIT_S) if not math.isnan(wait_s) else None


def _error(body: bytes) -> Mapping[str, Json]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def _cause(
    status: int, error: Mapping[str, Json], redact: Callable[[bytes], bytes], *, exhausted: bool
) -> str:
    meaning = "the quota is exhausted" if exhausted else _MEANING.get(status, "")
    said = error.get("message")
    clean = redaction.of_text(said, redact) if isinstance(said, str) else ""
    words = " ".join(shown(clean, _WORDS).split())
    return ": ".join(part for part in (f"HTTP {status}", meaning, words) if part)
