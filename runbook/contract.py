"""The types that cross folders: frozen data and closed enums.

A phase is ``def run(request: PhaseRequest) -> PhaseResult``, called in a child process. What it
commits goes through ``request.channel``; what it measured comes back as metrics with their
counts; a gate turns metrics into a ``Judgement``. Verdicts are compared by name and have no
truth value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, Protocol

Json = Any
"""A JSON value: None, bool, int, finite float, str, list or dict of these."""

MARK = "RUNBOOK_WORKER_OF"
"""Environment variable that says whose child a process is: the workspace's path. What carries it
is ended by the workspace's next executor."""


class _Named(Enum):
    """An enum that refuses to be used as a truth value."""

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} has no truth value; compare it by name")


class Verdict(_Named):
    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    UNDERPOWERED = "underpowered"
    INVALID = "invalid"


class Instrument(_Named):
    """The state of the instrument a metric was read from."""

    OK = "ok"
    UNCALIBRATED = "uncalibrated"
    BROKEN = "broken"


@dataclass(frozen=True)
class Metric:
    """One measured number."""

    name: str
    value: float | None
    """The reading; None where nothing could be measured."""
    n: int | None = None
    """The denominator of a rate, or the sample a statistic rests on."""
    successes: int | None = None
    """The numerator of a rate."""
    denominator: str = ""
    """What n counts, in words: 'raw generations', 'cleaned responses'."""
    instrument: Instrument = Instrument.OK
    evidence: str = ""
    """Path, relative to the workspace, of the rows behind the number."""
    note: str = ""
    bound: float | None = None
    """One-sided 95 % bound of a reading that brings its own, such as an AUC's."""


@dataclass(frozen=True)
class Artifact:
    """One finished file or folder."""

    name: str
    path: str
    """Relative to the workspace."""
    sha256: str
    """Of the file's bytes; of a folder, of the canonical JSON of its files' hashes."""
    bytes: int


@dataclass(frozen=True)
class Committed:
    """A batch that the journal holds."""

    key: str
    """Unique within the step's attempt, e.g. ``shard-1/round-0/responses/0003``."""
    path: str
    """Relative to the workspace."""
    sha256: str
    records: int


class Channel(Protocol):
    """The child's line to the executor. Faked in tests by ``runbook.testing.LocalChannel``."""

    def committed(self, key: str) -> Committed | None:
        """The batch under this key, if the journal already holds it."""

    def commit(self, batch: Committed) -> None:
        """Return once the batch is durable in the journal.

        Raises:
            PausedError: the executor wants the step to end after this batch.
        """

    def progress(self, **fields: Json) -> None:
        """Tell what goes on: ``stage, done, total, tokens, kept``. May be lost."""


@dataclass(frozen=True)
class PhaseRequest:
    """All that a step may know."""

    step: str
    attempt: int
    """1 for the first; a retry after a failed gate counts up."""
    look: int
    """1; 2 where an underpowered sample is being extended, 0 for a smoke of a few rows."""
    seed: int
    params: Mapping[str, Json]
    """The spec's parameters with overrides, adjustments and extension applied."""
    model: Mapping[str, Json]
    """The runbook's ``model`` section."""
    engine: Mapping[str, Json]
    """The runbook's ``engine`` section."""
    workspace: Path
    work: Path
    """Private folder of this attempt, for batches and checkpoints."""
    output: Path
    """Folder of the final files."""
    inputs: Mapping[str, Mapping[str, Artifact]]
    """Artifacts of earlier steps: step name, then artifact name."""
    provenance: Mapping[str, Json]
    """What every record carries: git sha, versions, runbook fingerprint."""
    channel: Channel = field(compare=False)


@dataclass(frozen=True)
class PhaseResult:
    metrics: tuple[Metric, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    tokens: int = 0
    """Tokens generated or trained on."""
    summary: Mapping[str, Json] = field(default_factory=dict)
    """Small facts for the report: counts, yields, tables."""
    flagged: tuple[Mapping[str, Json], ...] = ()
    """At most ten raw rows behind the worst readings, for the reviewer."""
    samples: tuple[Mapping[str, Json], ...] = ()
    """At most ten rows drawn at random, for the report."""
    judged_file: str = "gate.json"
    """Name, in the output folder, of the file in which the executor lays down the judgement."""
    question: str = ""
    """What the step cannot settle itself, of method or of statistics. Where its gate passes, a
    review answers it before the session goes on; elsewhere it stands in the gate's own review."""


@dataclass(frozen=True)
class Criterion:
    """One condition of a gate: ``metric`` compared with declared numbers."""

    metric: str
    kind: str
    """census, rate, statistic, p_value, instrument, control, power or sentinel.

    A control says whether the measurement can be believed, so a violation is ``invalid``; power,
    whether the sample can show the effect, so a violation is ``underpowered``.
    """
    below: float | None = None
    above: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    min_n: int = 1
    at_max_n: str = "rate"
    """What decides when the sample cannot grow any more: 'rate' or 'bound'."""

    @property
    def threshold(self) -> str:
        """The declared comparison, e.g. ``>= 100 and <= 200``."""
        bounds = ((">", self.above), (">=", self.at_least), ("<", self.below), ("<=", self.at_most))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


@dataclass(frozen=True)
class Gate:
    criteria: tuple[Criterion, ...]
    extend: Mapping[str, Json] | None = None
    """Parameters of the second look at an underpowered sample; None: there is none."""
    smoke: Mapping[str, Json] | None = None
    """Parameters of the few rows that show, before a full rerun, whether a declared change helps;
    None: the full rerun shows it."""


@dataclass(frozen=True)
class CriterionResult:
    """One criterion, judged."""

    metric: str
    kind: str
    """As the criterion's."""
    threshold: str
    """As declared, e.g. ``< 0.05``."""
    verdict: Verdict
    value: float | None
    n: int | None
    bound: float | None
    """The one-sided 95 % bound that had to clear the threshold, for a rate, an instrument or a
    control that is a rate."""
    thin: bool
    """Passed on the rate alone, at the declared maximum n."""
    reason: str
    evidence: str = ""


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    criteria: tuple[CriterionResult, ...]
    reasons: tuple[str, ...]
    details: Mapping[str, Json] = field(default_factory=dict)
    """What the gate computed on the way, e.g. the paired comparison; for the report."""

    @property
    def sentinel_tripped(self) -> bool:
        """Whether a sentinel criterion failed: exit 5, and only a person clears it."""
        return any(c.kind == "sentinel" and c.verdict is Verdict.FAIL for c in self.criteria)


@dataclass(frozen=True)
class Range:
    """What an adjustment or a reviewer may set a parameter to, both ends included."""

    min: float
    max: float


@dataclass(frozen=True)
class Attempt:
    """One judged run of a step, as a reviewer is told of it."""

    attempt: int
    look: int
    """2 where the sample was extended, 0 for a smoke of a few rows."""
    verdict: str
    reasons: tuple[str, ...]
    params: Mapping[str, Json]
    """As it ran with them."""
    changes: Mapping[str, Json] = field(default_factory=dict)
    """What of them differs from the plan: dotted parameter -> value."""
    criteria: tuple[Mapping[str, Json], ...] = ()
    """The ``CriterionResult`` of each criterion, as JSON."""
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class EarlierReview:
    """An earlier decision of this session, and what came of it."""

    review_id: str
    step: str
    attempt: int
    asked: str
    """Why it was asked: a reason of ``ReviewRequest.reason``."""
    action: str
    changes: Mapping[str, Json]
    reason: str
    """As its author gave it."""
    author: str
    outcome: str
    """better, worse, passed or unchanged; pending where nothing was judged since; none where the
    answer had nothing run."""
    effect: tuple[str, ...] = ()
    """What its attempt changed, a criterion a line: ``runaway_rate 0.209 -> 0.538 (< 0.05)``."""


class Account(Protocol):
    """What a review's requests are paid from. Faked by ``runbook.testing.LocalAccount``."""

    def affords(self, requests: int, usd: float | None = None) -> bool:
        """Whether so many requests may still be paid, each at its worst; nothing is reserved.

        Args:
            requests: how many, at least one.
            usd: as in ``reserve``.
        """

    def reserve(self, key: str, usd: float | None = None) -> str:
        """Make one request's intent and worst-case cost durable, before it leaves.

        Args:
            key: sha256 of run, gate, attempt, rendered prompt and model.
            usd: what it may cost at worst; None: what the runbook declares.

        Returns:
            Why it must not be sent; empty where it may.
        """

    def settle(
        self,
        key: str,
        usd: float | None = None,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        """The end of the request is known; one never settled counts as spent.

        Args:
            key: as reserved.
            usd: what it did cost; None, or more than was reserved: all that was.
            input_tokens: as the provider counted them.
            output_tokens: likewise.
        """


@dataclass(frozen=True)
class ReviewRequest:
    """One question about one attempt at one gate."""

    review_id: str
    """``<step>-<attempt>``: at most one review per gate and attempt; with ``-2`` behind it where a
    changed plan had the same attempt judged anew."""
    step: str
    attempt: int
    reason: str
    """sentinel, gate failed, closing, instrument, underpowered, smoke or question."""
    allowed: tuple[str, ...]
    """Of retry, extend, recalibrate, proceed, stop, needs_human and override, a person's alone."""
    run_id: str
    workspace: Path
    path: str
    """The review's own folder, relative to the workspace."""
    verdict: str
    criteria: tuple[Mapping[str, Json], ...]
    """The ``CriterionResult`` of each criterion, as JSON."""
    reasons: tuple[str, ...]
    metrics: tuple[Metric, ...]
    attempts: tuple[Attempt, ...]
    """Every judged run so far, the one in question last."""
    adjustable: Mapping[str, Range]
    """What a retry may change, and how far."""
    failures: int
    retries: int
    summary: Mapping[str, Json]
    flagged: tuple[Mapping[str, Json], ...]
    samples: tuple[Mapping[str, Json], ...]
    account: Account = field(compare=False, repr=False)
    """Asked before each request that may cost money."""
    stop: Callable[[], str] = field(default=str, compare=False)
    """Why the session is to end now, or ''. A reviewer that takes long asks it and gives up."""
    question: str = ""
    """The step's own, see ``PhaseResult.question``."""
    earlier: tuple[EarlierReview, ...] = ()
    """Of the whole session, the newest last."""
    certificates: tuple[Mapping[str, Json], ...] = ()
    """What vouches for the instruments that were read: ``name``, ``state``, ``sensitivity``,
    ``specificity``, ``auc`` and their bounds, where there are any."""
    log_tail: str = ""
    """The end of the step's log."""
    budget: Mapping[str, Json] = field(default_factory=dict)
    """Limit, as in ``budget:`` -> ``{"limit": x, "spent": y, "left": z}``."""
    whole: tuple[str, ...] = ()
    """Those of ``adjustable`` that take whole numbers alone."""
    costs: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    """Action -> what it would cost: ``{"what": text, "seconds": s, "usd": x}``; null: not known."""


@dataclass(frozen=True)
class Decision:
    """A reviewer's answer. One outside the request's bounds counts as no answer."""

    action: str
    reason: str
    author: str
    person: bool
    """Whether a human decided; a model's override is never accepted."""
    changes: Mapping[str, Json] = field(default_factory=dict)
    concerns: tuple[str, ...] = ()
    """What speaks against it, or could not be seen."""
    action_items: tuple[str, ...] = ()
    """What a person should do."""
    confidence: float | None = None
    """From 0 to 1, as the author gave it."""


Reviewer = Callable[[ReviewRequest], Decision | None]
"""None: a person must decide. Asked again after a crash, so it must not mind being repeated."""
