"""Scores a reviewer on recorded situations: what it answered, and whether that was right.

Rule: it is asked as a session would ask it, one question at a time, each in a folder of its own
whose name tells nothing, and each request is on record with its worst-case cost before it leaves;
beyond the cap nothing is sent, and a situation that it kept from being asked counts in no rate. The
same folder again asks nothing twice that was answered.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.situations import APPROVING, Situation, outside
from runbook.artifacts import sha256_bytes, write_json
from runbook.contract import Decision, Json, Reviewer, ReviewRequest
from runbook.errors import CorruptError
from runbook.regular_files import open_to_read, read

RESULT = "bench.json"
REQUESTS = "requests.json"
RIGHT, WRONG, NO_ANSWER, NOT_ASKED = "right", "wrong", "no answer", "not asked"
_ERROR = "error.txt"
"""Where a reviewer says why it did not answer."""
_LONGEST_CAUSE = 1000


@dataclass(frozen=True)
class Answered:
    """One situation, and what came of it."""

    situation: str
    topic: str
    known: str
    """good or bad: whether an approving answer is right."""
    outcome: str
    action: str
    changes: Mapping[str, Json]
    mistake: str
    """The mistake's name; empty where there is none to name."""
    author: str
    reason: str
    cause: str
    """Why there is no answer that counts, or why it was not asked; empty where there is one."""
    usd: float
    """Spent on it in this folder; what was reserved and never settled counts."""

    @property
    def is_false_approval(self) -> bool:
        return self.known == "bad" and self.outcome == WRONG and self.action in APPROVING

    @property
    def is_false_alarm(self) -> bool:
        return self.known == "good" and self.outcome == WRONG and self.action not in APPROVING


@dataclass(frozen=True)
class Count:
    """So many of so many."""

    hits: int
    of: int


@dataclass(frozen=True)
class Tally:
    """A reviewer's result over some situations."""

    right: Count
    """Of all that were asked; no answer is not right."""
    false_approvals: Count
    """Of known-bad ones that were answered."""
    false_alarms: Count
    """Of known-good ones that were answered."""
    no_answer: int
    not_asked: int
    """The money did not last for them."""
    usd: float


def tally(answers: Iterable[Answered]) -> Tally:
    """Count."""
    found = list(answers)
    asked = [a for a in found if a.outcome != NOT_ASKED]
    given = [a for a in asked if a.outcome != NO_ANSWER]
    return Tally(
        Count(sum(a.outcome == RIGHT for a in asked), len(asked)),
        Count(sum(a.is_false_approval for a in asked), sum(a.known == "bad" for a in given)),
        Count(sum(a.is_false_alarm for a in asked), sum(a.known == "good" for a in given)),
        len(asked) - len(given),
        len(found) - len(asked),
        sum(a.usd for a in found),
    )


def by_topic(answers: Sequence[Answered]) -> dict[str, Tally]:
    """A tally for each topic, by name."""
    topics = sorted({a.topic for a in answers})
    return {t: tally(a for a in answers if a.topic == t) for t in topics}


def run_bench(
    ask: Reviewer, situations: Sequence[Situation], folder: Path, purse: "Purse"
) -> tuple[Answered, ...]:
    """Ask them one after the other, in the order given."""
    return tuple(_asked(ask, situation, folder, purse) for situation in situations)


def _asked(ask: Reviewer, situation: Situation, folder: Path, purse: "Purse") -> Answered:
    place = sha256_bytes(situation.name.encode())[:12]
    account = purse.account(place)
    request = situation.make_request(folder, f"reviews/{place}", account)
    decision = ask(request)
    blank = Answered(
        situation=situation.name,
        topic=situation.topic,
        known=situation.known,
        outcome=NO_ANSWER,
        action="",
        changes={},
        mistake="",
        author=decision.author if decision else "",
        reason=decision.reason if decision else "",
        cause=outside(request, decision) if decision else _cause(request),
        usd=purse.spent_on(place),
    )
    if decision is None:
        never = account.unpaid and not purse.was_asked(place)
        return replace(blank, outcome=NOT_ASKED, cause=account.unpaid) if never else blank
    return blank if blank.cause else _judged(blank, situation, decision)


def _cause(request: ReviewRequest) -> str:
    """What the reviewer left word of, in one line, each model's cause after the other."""
    try:
        with open_to_read(request.workspace / request.path / _ERROR) as file:
            told = file.read(_LONGEST_CAUSE).decode("utf-8", "replace")
    except OSError:
        return "no cause was left"
    return "; ".join(line.strip() for line in told.splitlines() if line.strip())


def _judged(blank: Answered, situation: Situation, decision: Decision) -> Answered:
    is_right = situation.is_right(decision.action, decision.changes)
    return replace(
        blank,
        outcome=RIGHT if is_right else WRONG,
        action=decision.action,
        changes=dict(decision.changes),
        mistake=situation.mistake(decision.action, decision.changes),
    )


class Purse:
    """What a bench may spend, over every time it is run in one folder."""

    def __init__(
        self, folder: Path, max_usd: float, *, request_usd: float = 0.0, unknown_requests: int = 1
    ) -> None:
        """Read what was spent before.

        Args:
            folder: the bench's.
            max_usd: the cap.
            request_usd: what a request costs at worst where its reviewer does not say.
            unknown_requests: how many more are sent after one whose end is unknown.

        Raises:
            CorruptError: the record cannot be read, so nobody knows what was spent.
        """
        self._path = folder / REQUESTS
        self._max_usd = max_usd
        self._request_usd = request_usd
        self._unknown_requests = unknown_requests
        self._sent = _requests(self._path)

    @property
    def spent(self) -> float:
        """Dollars, with what is reserved."""
        return sum(float(sent["usd"]) for sent in self._sent)

    def spent_on(self, place: str) -> float:
        """Dollars of one question."""
        return sum(float(sent["usd"]) for sent in self._sent if sent["place"] == place)

    def was_asked(self, place: str) -> bool:
        """Whether any request of one question left, now or before."""
        return any(sent["place"] == place for sent in self._sent)

    def account(self, place: str) -> "BenchAccount":
        """What one question's requests are paid from."""
        return BenchAccount(self, place)

    def affords(self, requests: int, usd: float | None) -> bool:
        """See ``runbook.contract.Account``."""
        cost = self._request_usd if usd is None else usd
        return 0.0 <= requests * cost <= self._max_usd - self.spent

    def reserve(self, place: str, key: str, usd: float | None) -> str:
        """See ``runbook.contract.Account``."""
        cost = self._request_usd if usd is None else usd
        unknown = sum(s["place"] == place and s["key"] == key and not s["done"] for s in self._sent)
        if unknown > self._unknown_requests:
            return f"it was asked {unknown} times and no end of that is known"
        if not self.affords(1, usd):
            left = max(0.0, self._max_usd - self.spent)
            return f"one request may cost ${cost:.4f}, and ${left:.4f} of the cap are left"
        self._sent.append(
            {"place": place, "key": key, "usd": cost, "done": False, "tokens": [0, 0]}
        )
        self._keep()
        return ""

    def settle(self, place: str, key: str, usd: float | None, tokens: tuple[int, int]) -> None:
        """See ``runbook.contract.Account``."""
        mine = [s for s in self._sent if (s["place"], s["key"], s["done"]) == (place, key, False)]
        if not mine:
            return
        mine[-1].update(done=True, tokens=list(tokens))
        if usd is not None:
            mine[-1]["usd"] = usd
        self._keep()

    def _keep(self) -> None:
        write_json(self._path, {"requests": self._sent})


class BenchAccount:
    """One question's share of a purse."""

    def __init__(self, purse: Purse, place: str) -> None:
        self._purse = purse
        self._place = place
        self.unpaid = ""
        """Why a request could not be paid; empty where each could."""

    def affords(self, requests: int, usd: float | None = None) -> bool:
        return self._purse.affords(requests, usd)

    def reserve(self, key: str, usd: float | None = None) -> str:
        refusal = self._purse.reserve(self._place, key, usd)
        if refusal and not self.affords(1, usd):
            self.unpaid = refusal
        return refusal

    def settle(
        self,
        key: str,
        usd: float | None = None,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        self._purse.settle(self._place, key, usd, (input_tokens, output_tokens))


def _requests(path: Path) -> list[dict[str, Json]]:
    try:
        found = json.loads(read(path))["requests"]
        checked = [
            {
                "place": str(sent["place"]),
                "key": str(sent["key"]),
                "usd": float(sent["usd"]),
                "done": sent["done"] is True,
                "tokens": list(sent["tokens"]),
            }
            for sent in found
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"what was spent cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            fix="restore the file, or give another folder",
        ) from error
    return checked
