"""What a session has come to, and the acts that may follow: frozen data, no rules.

``runbook.machine`` folds the journal into a ``State``; ``runbook.next_act`` names the ``Action``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from runbook import events as ev
from runbook.contract import Json


class Status(Enum):
    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"
    JUDGED = "judged"
    PASSED = "passed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Review:
    review_id: str
    reason: str
    path: str
    allowed: tuple[str, ...]
    """What may be answered; part of it by a person alone."""
    decision: ev.ReviewDecided | None = None


SMOKE = 0
"""The look at a few rows that shows whether a change helps; nothing of it can pass."""


@dataclass(frozen=True)
class Tried:
    """An attempt that a gate failed, or a smoke that did not show a change to help."""

    attempt: int
    changes: Mapping[str, Json]
    """All that it differed by from the plan, by dotted parameter; a smoke's size is not in it."""
    judged: ev.GateJudged


@dataclass(frozen=True)
class StepState:
    status: Status = Status.PENDING
    attempt: int = 1
    look: int = 1
    changes: Mapping[str, Json] = field(default_factory=dict)
    """Adjustments and a reviewer's changes so far, by dotted parameter."""
    extension: Mapping[str, Json] = field(default_factory=dict)
    failures: int = 0
    """Of this step's gate, over all attempts."""
    tried: tuple[Tried, ...] = ()
    """The attempts before this one that its gate failed, and the smokes that showed no help."""
    interruptions: int = 0
    started: ev.StepStarted | None = None
    finished: ev.StepFinished | None = None
    failed: ev.StepFailed | None = None
    judged: ev.GateJudged | None = None
    review: Review | None = None
    overridden: bool = False
    recalibrated: bool = False
    """On a reviewer's word, the instruments behind this step's gate were certified anew."""
    manifest: ev.ManifestWritten | None = None
    manifest_owed: bool = False
    """A verdict stands, and the manifest that says so is not written yet."""


@dataclass(frozen=True)
class State:
    steps: Mapping[str, StepState]
    session: ev.SessionStarted | None = None
    stop: ev.SessionStopped | None = None
    done: ev.SessionDone | None = None

    @property
    def overrides(self) -> int:
        """How many gates stand passed by a person's word."""
        return sum(step.overridden for step in self.steps.values())

    @property
    def open_review(self) -> str | None:
        """The step whose review has no decision yet."""
        waiting = (n for n, s in self.steps.items() if s.review and s.review.decision is None)
        return next(waiting, None)


@dataclass(frozen=True)
class RunStep:
    step: str
    attempt: int
    look: int
    params: Mapping[str, Json]


@dataclass(frozen=True)
class JudgeGate:
    step: str


@dataclass(frozen=True)
class PassStep:
    step: str


@dataclass(frozen=True)
class SkipStep:
    step: str
    phase: str
    why: str


@dataclass(frozen=True)
class Extend:
    step: str
    params: Mapping[str, Json]


@dataclass(frozen=True)
class Adjust:
    step: str
    changes: Mapping[str, Json]
    """Parameter -> its new value."""
    why: str
    smoke: Mapping[str, Json] = field(default_factory=dict)
    """Parameters of the smoke that is to show whether it helps; empty: a full rerun."""


@dataclass(frozen=True)
class AskReview:
    step: str
    attempt: int
    reason: str
    allowed: tuple[str, ...]


@dataclass(frozen=True)
class Stop:
    reason: str
    exit_code: int
    detail: str


@dataclass(frozen=True)
class Finish:
    exit_code: int


Action = RunStep | JudgeGate | PassStep | SkipStep | Extend | Adjust | AskReview | Stop | Finish

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "gate failed": ("retry", "extend", "stop", "needs_human", "override"),
    "closing": ("stop", "needs_human", "override"),
    "sentinel": ("stop", "needs_human", "override"),
    "instrument": ("recalibrate", "stop", "needs_human", "override"),
    "underpowered": ("stop", "needs_human", "override"),
    "smoke": ("retry", "stop", "needs_human", "override"),
    "question": ("proceed", "stop", "needs_human"),
}
"""Why a review is asked -> what it may answer at most; ``extend`` and ``recalibrate`` stand in a
review's own list only where there is something to do. At a smoke, override has the change run in
full; ``needs_human`` leaves the rest of the list to a person.
"""
NEEDS_HUMAN = "needs_human"
CERTIFICATE = "certificate"
"""The artifact by which a step vouches for the instruments that later steps use."""
MAKES_ANEW = frozenset({"retry", "extend", "recalibrate"})
"""Answers that have something made or judged again; at a smoke ``override`` does so too."""
ADVISORY = frozenset({"sentinel", "closing"})
"""Reviews that nobody waits for: the session is stopped for its own reason."""
