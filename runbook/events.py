"""The journal's vocabulary: one frozen class per fact, and nothing that is not a fact.

A body names its class; an unknown one is refused, since skipping a fact would change the state.
A field added later needs a default, so that old journals stay readable.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from runbook.codec import decode, encode
from runbook.contract import Artifact, Json, Metric
from runbook.errors import CorruptError


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    def to_body(self) -> dict[str, Json]:
        return {"type": type(self).__name__, **encode(self)}


E = TypeVar("E", bound=Event)
_REGISTRY: dict[str, type[Event]] = {}


def _fact(kind: type[E]) -> type[E]:
    _REGISTRY[kind.__name__] = kind
    return kind


def from_body(body: Mapping[str, Json]) -> Event:
    """The event of a journal body.

    Raises:
        CorruptError: an unknown type, or fields that are not its own.
    """
    fields = dict(body)
    name = fields.pop("type", None)
    kind = _REGISTRY.get(name) if isinstance(name, str) else None
    if kind is None:
        raise CorruptError(
            f"unknown event {name!r}",
            where="journal",
            fix="read it with the version of runbook that wrote it",
        )
    try:
        return decode(kind, fields)
    except (TypeError, ValueError) as error:
        raise CorruptError(
            f"not a valid {name}: {error}",
            where="journal",
            fix="read it with the version of runbook that wrote it",
        ) from None


@_fact
@dataclass(frozen=True)
class SessionStarted(Event):
    run_id: str
    runbook: str
    name: str
    fingerprint: str
    overrides: tuple[str, ...]
    plan: Json
    """``runbook.fingerprint.plan_document``: what a later plan is compared with."""
    versions: Mapping[str, Json]
    """``runbook.manifest.provenance``."""
    limits: Mapping[str, Json] = field(default_factory=dict)
    """``Plan.budget``."""
    certificate: Mapping[str, Json] = field(default_factory=dict)
    """Of the volume, by ``selftest --chaos``; empty where it was not run."""


@_fact
@dataclass(frozen=True)
class SessionResumed(Event):
    limits: Mapping[str, Json] = field(default_factory=dict)
    """``Plan.budget`` as it is now; it may be raised between two runs."""
    certificate: Mapping[str, Json] = field(default_factory=dict)


@_fact
@dataclass(frozen=True)
class PlanAccepted(Event):
    """A person goes on with a changed runbook: from here on this plan holds."""

    reason: str
    author: str
    changes: tuple[str, ...]
    """Each changed field, as ``a.b: old -> new``."""
    plan: Json
    """``runbook.fingerprint.plan_document``: what a later plan is compared with."""
    fingerprint: str
    runbook: str
    overrides: tuple[str, ...]
    invalidated: tuple[str, ...]
    """Steps that begin anew under another attempt number, or are not skipped any more."""
    rejudged: tuple[str, ...]
    """Steps whose bytes stand and whose gate is judged again."""


@_fact
@dataclass(frozen=True)
class TimeLeased(Event):
    """Time reserved before it is spent; the line also settles the one before it."""

    used_s: float
    """By this executor, since it began."""
    ahead_s: float
    """Reserved from here on; 0 at the end."""


@_fact
@dataclass(frozen=True)
class RequestSent(Event):
    """A reviewer is about to be asked: durable before the request leaves."""

    review_id: str
    key: str
    """sha256 of run, gate, attempt, rendered prompt and model."""
    number: int
    """Of the requests under this key, from 1."""
    usd: float
    """What it may cost at worst."""


@_fact
@dataclass(frozen=True)
class RequestSettled(Event):
    """The request's end is known, whether or not its answer could be used."""

    review_id: str
    key: str
    number: int
    usd: float
    input_tokens: int = 0
    output_tokens: int = 0


@_fact
@dataclass(frozen=True)
class PodStopRequested(Event):
    """The declared command that stops the pod was run; only another machine can verify it."""

    requested_at: str
    """UTC, ISO 8601."""
    rc: int | None
    """Exit code of the command; None where it could not be run or did not end."""
    state: str
    """What the declared ``pod_state`` command said last; empty where none is declared."""


@_fact
@dataclass(frozen=True)
class StepStarted(Event):
    step: str
    attempt: int
    look: int
    params: Mapping[str, Json]
    output: str
    """Relative to the workspace; an interrupted attempt keeps it."""
    started_at: str
    """UTC, ISO 8601."""
    code: Mapping[str, str] = field(default_factory=dict)
    """``PlannedStep.code`` that it runs; empty where that is not known."""


@_fact
@dataclass(frozen=True)
class BatchCommitted(Event):
    step: str
    attempt: int
    key: str
    path: str
    sha256: str
    records: int


@_fact
@dataclass(frozen=True)
class StepFinished(Event):
    step: str
    attempt: int
    look: int
    metrics: tuple[Metric, ...]
    artifacts: tuple[Artifact, ...]
    tokens: int
    seconds: float
    summary: Mapping[str, Json]
    flagged: tuple[Mapping[str, Json], ...]
    samples: tuple[Mapping[str, Json], ...]
    judged_file: str = "gate.json"
    """Name, in the output folder, of the file that holds the judgement."""
    markers: Mapping[str, str] | None = None
    """Folder, of the output and of each artifact that is one -> SHA-256 of its ``COMPLETE.json``;
    one without such a file is not in it. None: not recorded."""
    question: str = ""
    """``PhaseResult.question``."""


@_fact
@dataclass(frozen=True)
class StepFailed(Event):
    """The step's own code raised."""

    step: str
    attempt: int
    error: str
    traceback_tail: str
    exit_code: int


@_fact
@dataclass(frozen=True)
class StepInterrupted(Event):
    """The step ended through no fault of its own."""

    step: str
    attempt: int
    cause: str


@_fact
@dataclass(frozen=True)
class GateJudged(Event):
    step: str
    attempt: int
    look: int
    verdict: str
    criteria: tuple[Mapping[str, Json], ...]
    reasons: tuple[str, ...]
    sentinel: bool
    """A sentinel criterion failed: only a person goes on from here."""
    details: Mapping[str, Json] = field(default_factory=dict)
    """What the gate computed on the way, e.g. the paired comparison."""


@_fact
@dataclass(frozen=True)
class StepPassed(Event):
    """A step without a gate is done."""

    step: str
    attempt: int


@_fact
@dataclass(frozen=True)
class ManifestWritten(Event):
    """The step's manifest stands on disk; from now on it must not be missing."""

    step: str
    attempt: int
    path: str
    sha256: str
    judged_path: str = ""
    """Of the judgement on its own; empty for a step without a gate."""


@_fact
@dataclass(frozen=True)
class SampleExtended(Event):
    step: str
    attempt: int
    params: Mapping[str, Json]


@_fact
@dataclass(frozen=True)
class Adjusted(Event):
    step: str
    attempt: int
    """The attempt that failed, or the smoke that shows that the change helps."""
    changes: Mapping[str, Json]
    why: str
    smoke: Mapping[str, Json] = field(default_factory=dict)
    """Parameters of a smoke, where the next attempt is one; it is look 0 of that attempt."""


@_fact
@dataclass(frozen=True)
class ReviewRequested(Event):
    review_id: str
    step: str
    attempt: int
    reason: str
    path: str
    allowed: tuple[str, ...] = ()
    """What may be answered; empty in an older journal: what its reason allows."""


@_fact
@dataclass(frozen=True)
class ReviewDecided(Event):
    review_id: str
    action: str
    changes: Mapping[str, Json]
    reason: str
    author: str
    person: bool
    """Whether a human decided; nothing else may override."""
    concerns: tuple[str, ...] = ()
    action_items: tuple[str, ...] = ()
    confidence: float | None = None


@_fact
@dataclass(frozen=True)
class StepSkipped(Event):
    step: str
    phase: str
    why: str


@_fact
@dataclass(frozen=True)
class SessionStopped(Event):
    reason: str
    exit_code: int
    detail: str


@_fact
@dataclass(frozen=True)
class SessionDone(Event):
    exit_code: int
    overrides: int
