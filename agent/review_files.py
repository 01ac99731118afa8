"""What a model's review leaves in its folder, so that it can be asked again after a crash.

Rule: each file is complete before what follows from it. ``prompt.md`` is what is sent, the same
over every resume; ``requests.json`` says of each request that it is about to leave, then how it
ended; ``response-<n>.json`` is the body of request n; ``decision.json`` the answer taken. All of
them without secrets: ``redact`` is applied to bytes before they are written.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from runbook.artifacts import canonical_json, sha256_bytes, write_bytes, write_json
from runbook.contract import Json, ReviewRequest
from runbook.regular_files import read

SENT = "sent"
"""The outcome of a request whose end is not known."""
ANSWERED = "answered"
FAILED = "failed"

_OF = (
    "run_id",
    "review_id",
    "step",
    "attempt",
    "reason",
    "allowed",
    "verdict",
    "criteria",
    "reasons",
    "failures",
    "retries",
    "question",
)
"""What makes a review this one. What moves while it waits is not here: budget, costs, log."""


@dataclass(frozen=True)
class Sent:
    """One request, in ``requests.json``."""

    number: int
    key: str
    """What it was reserved under."""
    review_key: str
    """What the answer holds for; another than ``key`` where it asks to mend a reply."""
    provider: str
    model: str
    reserved_usd: float | None
    """None: what the runbook declares."""
    outcome: str = SENT
    """sent, answered or failed."""
    cause: str = ""
    """Why it failed, or why its end is not known."""
    usd: float | None = None
    """What it was settled at; None: all that was reserved, or nothing is known yet."""
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class ReviewFiles:
    """The folder of one review."""

    folder: Path
    redact: Callable[[bytes], bytes]

    def prompt(self, request: ReviewRequest, limit: int, render: Callable[[], str]) -> str:
        """What is sent: as it was stored for this review, or else rendered and stored.

        Another ``limit`` of its tokens has it rendered anew, but not while a request with the
        stored one may have been charged: that one's answer is still to come, or known as lost.
        """
        of = {name: getattr(request, name) for name in _OF}
        of["adjustable"] = {name: [r.min, r.max] for name, r in request.adjustable.items()}
        basis = _sha256(of)
        stored = _bytes(self.folder / "prompt.md")
        seal = _mapping(self.folder / "prompt.json")
        is_whole = (seal.get("of"), seal.get("sha256")) == (basis, sha256_bytes(stored))
        is_out = any(sent.outcome == SENT for sent in self.requests())
        if is_whole and (is_out or seal.get("limit") == limit):
            return stored.decode("utf-8", "replace")
        data = self.redact(render().encode("utf-8", "backslashreplace"))
        text = data.decode("utf-8", "replace")
        sha256 = write_bytes(self.folder / "prompt.md", text.encode())
        seal = {"of": basis, "limit": limit, "sha256": sha256}
        write_json(self.folder / "prompt.json", seal)
        return text

    def requests(self, key: str | None = None) -> tuple[Sent, ...]:
        """All requests of this review, or those under one key, the newest last."""
        known = _mapping(self.folder / "requests.json").get("requests")
        try:
            found = [Sent(**entry) for entry in known] if isinstance(known, list) else []
        except TypeError:
            found = []
        return tuple(sent for sent in found if key in {None, sent.key})

    def begin(
        self, key: str, review_key: str, provider: str, model: str, usd: float | None
    ) -> Sent:
        """Record that a request is about to leave."""
        before = self.requests()
        number = max((sent.number for sent in before), default=0) + 1
        while (self.folder / f"response-{number}.json").exists():
            number += 1
        sent = Sent(number, key, review_key, provider, model, usd)
        self._write((*before, sent))
        return sent

    def end(self, sent: Sent, outcome: str, cause: str = "", **known: Json) -> None:
        """Record how a request ended."""
        ended = replace(sent, outcome=outcome, cause=cause, **known)
        self._write([ended if s.number == sent.number else s for s in self.requests()])

    def _write(self, requests: Sequence[Sent]) -> None:
        text = json.dumps({"requests": [asdict(sent) for sent in requests]}, indent=2)
        write_bytes(self.folder / "requests.json", self.redact(text.encode()))

    def keep_response(self, sent: Sent, body: bytes) -> bytes:
        """Store what came; what may be read of it."""
        data = self.redact(body)
        write_bytes(self.folder / f"response-{sent.number}.json", data)
        return data

    def response(self, key: str) -> tuple[Sent, bytes] | None:
        """The stored response to the newest request under this key that has one."""
        for sent in reversed(self.requests(key)):
            path = self.folder / f"response-{sent.number}.json"
            if sent.outcome != FAILED and path.is_file():
                return sent, _bytes(path)
        return None

    def decision(self) -> Mapping[str, Json]:
        """``decision.json``; empty where there is none that can be read."""
        return _mapping(self.folder / "decision.json")

    def decide(self, document: Mapping[str, Json]) -> None:
        """Store the answer taken; what told of an earlier failure goes."""
        write_json(self.folder / "decision.json", document)
        for name in ("error.txt", "draft.txt"):
            (self.folder / name).unlink(missing_ok=True)

    def fail(self, causes: Sequence[str], draft: str) -> None:
        """Store why there is no answer, and the last text that was none."""
        if draft:
            write_bytes(self.folder / "draft.txt", self._redacted(draft))
        write_bytes(self.folder / "error.txt", self._redacted("\n".join(causes) + "\n"))

    def _redacted(self, text: str) -> bytes:
        return self.redact(text.encode("utf-8", "backslashreplace"))


def _sha256(value: Json) -> str:
    return sha256_bytes(canonical_json(value).encode("utf-8", "surrogatepass"))


def _bytes(path: Path) -> bytes:
    try:
        return read(path)
    except OSError:
        return b""


def _mapping(path: Path) -> Mapping[str, Json]:
    try:
        value = json.loads(_bytes(path))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
