"""What a model's review leaves in its folder, so that it can be asked again after a crash.

Rule: each file is complete before what follows from it. ``prompt.md`` is what is sent, the same
over every resume; ``requests.json`` says of each request that it is about to leave, then how it
ended; ``response-<n>.json`` is the body of request n; ``decision.json`` the answer taken. All of
them without secrets: ``redact`` is applied before they are written. Where a file is gone or was
changed that says what was sent and paid, nothing more is sent: a person decides.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from agent import redaction
from agent import remedy as remedies
from agent.remedy import Remedy
from runbook.artifacts import (
    canonical_json,
    sha256_bytes,
    storage_errors,
    write_bytes,
    write_json,
)
from runbook.contract import Json, ReviewRequest
from runbook.regular_files import read

Outcome = Literal["sent", "answered", "failed"]
SENT: Final = "sent"
"""The outcome of a request whose end is not known."""
ANSWERED: Final = "answered"
FAILED: Final = "failed"

_OF = (
    "run_id",
    "review_id",
    "step",
    "attempt",
    "reason",
    "allowed",
    "whole",
    "verdict",
    "criteria",
    "reasons",
    "failures",
    "retries",
    "question",
)
"""What makes a review this one. What moves while it waits is not here: budget, costs, log."""


class DamagedError(Exception):
    """A file is not as it was written, so that another request might pay for one answer twice."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}; nothing is sent, so that no answer is paid twice: decide yourself"
        )


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
    outcome: Outcome = SENT
    cause: str = ""
    """Why it failed, or why its end is not known."""
    usd: float | None = None
    """What it was settled at; None: all that was reserved, or nothing is settled yet."""
    input_tokens: int = 0
    output_tokens: int = 0


class _Requests(BaseModel):
    """``requests.json``."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    requests: tuple[Sent, ...]


@dataclass(frozen=True)
class ReviewFiles:
    """The folder of one review."""

    folder: Path
    redact: Callable[[bytes], bytes]

    def prompt(self, request: ReviewRequest, limit: int, render: Callable[[], str]) -> str:
        """What is sent: as it was stored for this review, or else rendered and stored.

        Another ``limit`` of its tokens has it rendered anew, but not once a request with the
        stored one may have been charged: that one's answer is known, still to come, or lost.

        Raises:
            DamagedError: what was sent is not there any more.
        """
        of = {name: getattr(request, name) for name in _OF}
        of["adjustable"] = {name: [r.min, r.max] for name, r in request.adjustable.items()}
        basis = _sha256(of)
        stored = _bytes(self.folder / "prompt.md")
        seal = _mapping(self.folder / "prompt.json")
        is_whole = (seal.get("of"), seal.get("sha256")) == (basis, sha256_bytes(stored))
        is_out = bool(self.decision()) or any(s.outcome != FAILED for s in self.requests())
        if is_whole and (is_out or seal.get("limit") == limit):
            return stored.decode("utf-8", "replace")
        if is_out and (seal.get("of") or basis) == basis:
            raise DamagedError("prompt.md is not what was sent")
        if not os.path.lexists(self.folder / "requests.json"):
            # From now on it is there, so that its loss shows.
            self._write(())
        data = self.redact(render().encode("utf-8", "backslashreplace"))
        text = data.decode("utf-8", "replace")
        sha256 = write_bytes(self.folder / "prompt.md", text.encode())
        seal = {"of": basis, "limit": limit, "sha256": sha256}
        write_json(self.folder / "prompt.json", seal)
        return text

    def requests(self, key: str | None = None) -> tuple[Sent, ...]:
        """All requests of this review, or those under one key, the newest last.

        Raises:
            DamagedError: nobody knows.
        """
        path = self.folder / "requests.json"
        if not os.path.lexists(path) and not os.path.lexists(self.folder / "prompt.json"):
            return ()
        try:
            found = _Requests.model_validate_json(read(path)).requests
        except OSError as error:
            raise DamagedError(f"requests.json cannot be read ({error.strerror})") from error
        except ValidationError as error:
            raise DamagedError("requests.json is not as it was written") from error
        return tuple(sent for sent in found if key in {None, sent.key})

    def begin(
        self, key: str, review_key: str, provider: str, model: str, usd: float | None
    ) -> Sent:
        """Record that a request is about to leave."""
        before = self.requests()
        number = max((sent.number for sent in before), default=0) + 1
        while os.path.lexists(self._response(number)):
            number += 1
        sent = Sent(number, key, review_key, provider, model, usd)
        self._write((*before, sent))
        return sent

    def end(self, sent: Sent, outcome: Outcome, cause: str = "", **known: Json) -> None:
        """Record how a request ended."""
        ended = replace(sent, outcome=outcome, cause=cause, **known)
        self._write([ended if s.number == sent.number else s for s in self.requests()])

    def _write(self, requests: Sequence[Sent]) -> None:
        # Text by text: over the whole, what is taken out might be more than a text.
        entries = [redaction.of_value(asdict(sent), self.redact) for sent in requests]
        text = json.dumps({"requests": entries}, indent=2)
        write_bytes(self.folder / "requests.json", text.encode())

    def keep_response(self, sent: Sent, body: bytes) -> bytes:
        """Store what came; what may be read of it."""
        data = self.redact(body)
        write_bytes(self._response(sent.number), data)
        return data

    def response(self, key: str) -> tuple[Sent, bytes] | None:
        """The stored response to the newest request under this key that has one.

        Raises:
            DamagedError: there was one, and it is gone.
        """
        for sent in reversed(self.requests(key)):
            path = self._response(sent.number)
            if sent.outcome == ANSWERED or (sent.outcome == SENT and os.path.lexists(path)):
                try:
                    return sent, read(path)
                except OSError as error:
                    what = f"{path.name} cannot be read ({error.strerror})"
                    raise DamagedError(what) from error
        return None

    def _response(self, number: int) -> Path:
        return self.folder / f"response-{number}.json"

    def decision(self) -> Mapping[str, Json]:
        """``decision.json``; empty where there is none that can be read."""
        return _mapping(self.folder / "decision.json")

    def decide(self, document: Mapping[str, Json]) -> None:
        """Store the answer taken; what told of an earlier failure goes."""
        write_json(self.folder / "decision.json", document)
        for name in ("error.txt", remedies.NAME, "draft.txt"):
            self._remove(name)

    def fail(self, causes: Sequence[str], draft: str, remedy: Remedy) -> None:
        """Store why there is no answer, what helps, and the last text that was none."""
        if draft:
            write_bytes(self.folder / "draft.txt", self._redacted(draft))
        else:
            self._remove("draft.txt")
        remedies.write(self.folder, remedy)
        write_bytes(self.folder / "error.txt", self._redacted("\n".join(causes) + "\n"))

    def _remove(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            # None of ours, and no reason to end the session.
            return
        with storage_errors(path):
            path.unlink(missing_ok=True)

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
