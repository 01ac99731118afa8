"""What a report knows of a session: frozen data, filled by ``runbook.report.view``."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runbook import events as ev
from runbook.budget import Limits, Spent
from runbook.contract import Artifact, Json, Metric
from runbook.report.figures import mapping
from runbook.report.held_out import Scorings
from runbook.state import ALLOWED, NEEDS_HUMAN, Status


@dataclass(frozen=True)
class CriterionView:
    metric: str
    kind: str
    threshold: str
    verdict: str
    value: Json
    n: Json
    successes: Json
    """The numerator, where the step measured a rate."""
    bound: Json
    thin: bool
    reason: str


@dataclass(frozen=True)
class Change:
    """A parameter that differs from the attempt before."""

    name: str
    before: Json
    after: Json


@dataclass(frozen=True)
class AttemptView:
    number: int
    params: Mapping[str, Json]
    """Of the first look."""
    changes: tuple[Change, ...]
    extension: Mapping[str, Json]
    """Parameters of the second look; empty where there was none."""
    smoke: bool
    """Whether it was a few rows alone, made to see whether a change helps."""
    finished: bool
    """Whether a run of it came to its end."""
    verdict: str
    """Empty while not judged."""
    sentinel: bool
    criteria: tuple[CriterionView, ...]
    reasons: tuple[str, ...]
    details: Mapping[str, Json]
    metrics: tuple[Metric, ...]
    errors: tuple[ev.StepFailed, ...]
    batches: int
    records: int
    last_batch: str

    @property
    def thin(self) -> bool:
        """Whether a criterion passed on its rate alone."""
        return any(c.thin for c in self.criteria)


@dataclass(frozen=True)
class RequestView:
    """One request that a review sent to a reviewer that is paid."""

    sent_at: str
    """Wall time, UTC."""
    usd: float
    """What it cost; while its end is not known, what was reserved for it."""
    settled: bool
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Effect:
    """One criterion as it was reviewed, and in what was judged next."""

    before: CriterionView | None
    after: CriterionView | None
    """None: it is not of that gate."""
    change: str
    """passed, better, unchanged, worse, or failed where it had passed."""


@dataclass(frozen=True)
class Followed:
    """What came of a decision that had something made or judged again."""

    outcome: str
    """As ``runbook.contract.EarlierReview.outcome``."""
    attempt: int = 0
    """The one judged next; 0 while there is none."""
    look: int = 1
    verdict: str = ""
    at: str = ""
    """Wall time of that verdict, UTC."""
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True)
class ReviewView:
    review_id: str
    step: str
    attempt: int
    reason: str
    path: str
    decisions: tuple[ev.ReviewDecided, ...]
    superseded: bool = False
    """Whether a change of the plan has since taken back what it was asked about."""
    options: tuple[str, ...] = ()
    """What it may answer, as asked; empty in an older journal."""
    verdict: str = ""
    """Of the gate, when it was asked; empty without one."""
    asked_at: str = ""
    """Wall time, UTC."""
    decided_at: tuple[str, ...] = ()
    """Of each decision."""
    requests: tuple[RequestView, ...] = ()
    question: str = ""
    """The step's own."""
    followed: Followed | None = None
    """None where nothing is to be judged again."""

    @property
    def allowed(self) -> tuple[str, ...]:
        """What it may answer."""
        return self.options or ALLOWED.get(self.reason, ())

    @property
    def last(self) -> ev.ReviewDecided | None:
        """The decision that holds."""
        return self.decisions[-1] if self.decisions else None

    def time_of(self, decided: ev.ReviewDecided) -> str:
        """When this decision of it was made, UTC."""
        times = zip(self.decisions, self.decided_at, strict=False)
        return next((at for decision, at in times if decision == decided), "")

    @property
    def is_open(self) -> bool:
        """Whether an answer is still to come, if only a person's."""
        return not self.superseded and (self.last is None or self.last.action == NEEDS_HUMAN)

    @property
    def is_answered(self) -> bool:
        """Whether its reviewer, and not only a person, gave an answer."""
        return any(not decision.person for decision in self.decisions)

    @property
    def usd(self) -> float:
        """What its requests cost, those of unknown end at their worst."""
        return math.fsum(request.usd for request in self.requests)


@dataclass(frozen=True)
class StepView:
    name: str
    phase: str
    inputs: tuple[str, ...]
    """The steps it reads."""
    status: Status
    attempts: tuple[AttemptView, ...]
    adjustments: tuple[ev.Adjusted, ...]
    """Made after a failure of this step's gate."""
    adjustable: Mapping[str, Json]
    """What a review of this step may change: parameter -> ``min``, ``max``."""
    reviews: tuple[ReviewView, ...]
    losses: tuple[str, ...]
    """Why each child was lost that another one replaced, or was to."""
    skipped: str
    """Why; empty where it was not."""
    tokens: int
    seconds: float
    """Of the runs that finished, over all attempts."""
    artifacts: tuple[Artifact, ...]
    summary: Mapping[str, Json]
    manifest: str
    """Path of its manifest; empty while there is none."""
    manifest_sha256: str
    judged: str
    """Path of the judgement's own file; empty without one."""

    @property
    def last(self) -> AttemptView | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def override(self) -> ev.ReviewDecided | None:
        """A person's word that the newest attempt passed by."""
        number = self.last.number if self.last else 0
        held = [r for r in self.reviews if r.attempt == number and not r.superseded]
        mine = [d for r in held for d in r.decisions]
        return next((d for d in mine if d.action == "override"), None)

    @property
    def comparison(self) -> Mapping[str, Json]:
        """The paired comparison of the newest attempt; empty where there is none."""
        return mapping(self.last.details.get("comparison")) if self.last else {}

    def artifact(self, name: str) -> Artifact | None:
        """What the step made under this name."""
        return next((a for a in self.artifacts if a.name == name), None)


@dataclass(frozen=True)
class AcceptanceView:
    """A change of the plan while the session was under way, accepted on record."""

    at: str
    """Wall time, UTC."""
    author: str
    reason: str
    changes: tuple[str, ...]
    """Each changed field, as ``a.b: old -> new``."""
    invalidated: tuple[str, ...]
    """Steps that began anew."""
    rejudged: tuple[tuple[str, str], ...]
    """Steps whose gate is judged again, each with the verdict that went; empty without one."""


@dataclass(frozen=True)
class Unanswered:
    """Why a reviewer gave no answer that could be used, and what helps."""

    cause: str
    """The first line of what it left."""
    remedy: str = ""
    """ask: the same command asks it again; change: once the runbook is changed as the cause says;
    decide: only a person answers, unless money is missing. Empty where nothing tells it."""
    usd: float | None = None
    """What one more request may cost at worst; None where money is not what is missing."""


@dataclass(frozen=True)
class Outcome:
    state: str = "none"
    """none, running, stopped or done."""
    exit_code: int = 0
    reason: str = ""
    detail: str = ""
    overrides: int = 0
    decided: ev.ReviewDecided | None = None
    """A decision made since the stop; the next run acts on it."""
    asked: str = ""
    """Detail of a stop that a person asked for when it had stopped already."""


@dataclass(frozen=True)
class SessionView:
    run_id: str = ""
    name: str = ""
    runbook: str = ""
    """Path of the runbook's file."""
    overrides: tuple[str, ...] = ()
    fingerprint: str = ""
    plan: Mapping[str, Json] = field(default_factory=dict)
    """``runbook.fingerprint.plan_document``, as accepted last."""
    acceptances: tuple[AcceptanceView, ...] = ()
    """Where there are any, no one plan holds for the whole session."""
    versions: Mapping[str, Json] = field(default_factory=dict)
    """``runbook.manifest.provenance``."""
    began: str = ""
    updated: str = ""
    """Wall time of the newest line, UTC."""
    seconds: float = 0.0
    """Time in which an executor was at work."""
    spent: Spent = field(default_factory=Spent)
    """With what is reserved."""
    ahead: float = 0.0
    """Seconds of ``spent`` that are reserved and not worked yet."""
    limits: Limits = field(default_factory=Limits)
    """As the newest start of an executor declared them."""
    request_usd: float = 0.0
    """What one request to the reviewer may cost at worst, as declared there."""
    batch_s: float | None = None
    """Median seconds from one commit to the next, in the run that began last; None before two."""
    outcome: Outcome = Outcome()
    unanswered: Unanswered | None = None
    """Of the review that the stop rests on, by ``runbook.report.unanswered``: the journal does not
    tell it."""
    certificate: Mapping[str, Json] = field(default_factory=dict)
    """Summary of the volume's crash certificate; empty where none was made."""
    pod_stop: ev.PodStopRequested | None = None
    """The newest wish to stop the pod."""
    steps: tuple[StepView, ...] = ()
    """In the plan's order."""
    samples: tuple[Mapping[str, Json], ...] = ()
    """Of the step that finished last with any."""
    samples_of: str = ""
    scorings: tuple[Scorings, ...] = ()
    """How often each held-out set was scored."""

    @property
    def tokens(self) -> int:
        """Generated or trained on, over all steps."""
        return sum(step.tokens for step in self.steps)

    @property
    def model(self) -> str:
        """The base model's name."""
        return str(mapping(self.plan.get("model")).get("name", ""))

    @property
    def reviews(self) -> tuple[ReviewView, ...]:
        """Of all steps, in the order in which they were asked."""
        return tuple(sorted((r for s in self.steps for r in s.reviews), key=lambda r: r.asked_at))

    @property
    def waiting(self) -> ReviewView | None:
        """The review without which the session does not go on."""
        if self.outcome.reason != "review" or self.outcome.decided:
            return None
        return next((r for r in self.reviews if r.is_open and r.review_id), None)

    @property
    def deciding(self) -> ReviewView | None:
        """The review that the stop rests on; None where it rests on none."""
        now = self.outcome
        if now.decided:
            return next((r for r in self.reviews if r.review_id == now.decided.review_id), None)
        if self.waiting or now.state != "stopped" or self.current is None:
            return self.waiting
        asked = [r for r in self.current.reviews if not r.superseded]
        return asked[-1] if asked and asked[-1].reason == now.reason else None

    @property
    def current(self) -> StepView | None:
        """The first step that is neither passed nor skipped."""
        behind = (Status.PASSED, Status.SKIPPED)
        return next((s for s in self.steps if s.status not in behind), None)

    @property
    def evaluations(self) -> tuple[StepView, ...]:
        """The steps with a paired comparison."""
        return tuple(step for step in self.steps if step.comparison)

    @property
    def filters(self) -> tuple[Mapping[str, Json], ...]:
        """What each filter was measured to be worth; empty where none was."""
        tables = [step.last.details.get("filters") for step in self.steps if step.last]
        return next((tuple(t) for t in reversed(tables) if isinstance(t, list)), ())

    def command(self, root: Path, *extra: str) -> str:
        """What begins or continues this session in a workspace, as a shell reads it.

        ``extra`` are further ``--set`` arguments; one of theirs stands in place of an older one.
        """
        options = ["--workspace", str(root), *self.options(*extra)]
        return shlex.join(["runbook", "run", self.runbook, *options])

    def options(self, *extra: str) -> list[str]:
        """The ``--set`` arguments of the session, as ``command`` gives them."""
        new = {assignment.partition("=")[0] for assignment in extra}
        kept = [old for old in self.overrides if old.partition("=")[0] not in new]
        return [part for assignment in (*kept, *extra) for part in ("--set", assignment)]
