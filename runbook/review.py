"""What a reviewer is asked and what it answers. Providers live in ``agent/``; this is the seam."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runbook import events as ev
from runbook.contract import Json, Metric
from runbook.errors import ConfigError
from runbook.journal import Clock, Journal, facts
from runbook.machine import refuse_decision, replay
from runbook.plan import Plan, Range
from runbook.workspace import Workspace


@dataclass(frozen=True)
class ReviewRequest:
    """One question about one attempt at one gate."""

    review_id: str
    """``<step>-<attempt>``: at most one review per gate and attempt."""
    step: str
    attempt: int
    reason: str
    """sentinel, gate failed, closing, instrument or underpowered."""
    allowed: tuple[str, ...]
    """Of retry, stop, override; only a person may override."""
    run_id: str
    workspace: Path
    path: str
    """The review's own folder, relative to the workspace."""
    verdict: str
    criteria: tuple[Mapping[str, Json], ...]
    """The ``CriterionResult`` of each criterion, as JSON."""
    reasons: tuple[str, ...]
    metrics: tuple[Metric, ...]
    params: Mapping[str, Json]
    """As this attempt ran with them."""
    adjustable: Mapping[str, Range]
    """What a retry may change, and how far."""
    failures: int
    retries: int
    summary: Mapping[str, Json]
    flagged: tuple[Mapping[str, Json], ...]
    samples: tuple[Mapping[str, Json], ...]


@dataclass(frozen=True)
class Decision:
    """A reviewer's answer. One outside the request's bounds counts as no answer."""

    action: str
    reason: str
    author: str
    person: bool
    """Whether a human decided; a model's override is never accepted."""
    changes: Mapping[str, Json] = field(default_factory=dict)


Reviewer = Callable[[ReviewRequest], Decision | None]
"""None: a person must decide. Asked again after a crash, so it must not mind being repeated."""


def record_decision(
    plan: Plan, workspace: Workspace, decided: ev.ReviewDecided, *, clock: Clock = time.time
) -> None:
    """Append a person's decision while no executor runs; the next run acts on it.

    Raises:
        ConfigError: the decision cannot stand, or the plan is another one.
        LockedError: an executor is at work.
    """
    with workspace.lock(), Journal(workspace, clock) as journal:
        state = replay(plan, facts(journal.entries))
        refusal = refuse_decision(plan, state, decided)
        if refusal:
            raise ConfigError(
                refusal,
                where=f"review {decided.review_id}",
                fix="'runbook review show' says what may be answered",
            )
        journal.append(decided.to_body(), pin=True)
