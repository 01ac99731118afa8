"""A journal's entries to the view of its session, without the runbook file.

``SessionStarted.plan``, or what was accepted in its place, says what was planned, the other facts
what happened. Nothing is judged or computed anew here but sums, and differences between the
parameters of two attempts.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from runbook import budget
from runbook import events as ev
from runbook.artifacts import canonical_json
from runbook.budget import Limits
from runbook.changes import agreed_plan
from runbook.contract import Json
from runbook.control import STOP_REQUESTED
from runbook.errors import CorruptError, PausedError
from runbook.fingerprint import recorded_plan
from runbook.journal import Entry, seconds_spent
from runbook.machine import replay
from runbook.report.attempts import attempts_of
from runbook.report.figures import mapping
from runbook.report.held_out import count_scorings
from runbook.report.session import (
    AcceptanceView,
    Outcome,
    ReviewView,
    SessionView,
    StepView,
)
from runbook.report.stories import Story, reviews_of, stories_of
from runbook.state import NEEDS_HUMAN, Status

__all__ = ["SessionView", "Story", "build_stories", "build_view"]

T = TypeVar("T")
_ASKED = frozenset({"SIGTERM", "SIGINT", "SIGHUP", "paused after a committed batch"})
"""Causes of a ``StepInterrupted`` that lost no child."""


def build_view(entries: Sequence[Entry]) -> SessionView:
    """The view of a journal; an empty one where there are no entries.

    Raises:
        CorruptError: an entry is of a kind that this version does not know.
    """
    return _view(entries, _known(entries))


def build_stories(entries: Sequence[Entry]) -> tuple[Story, ...]:
    """The story of each review, in the order in which they were asked. Raises as ``build_view``."""
    known = _known(entries)
    return stories_of(entries, known, _view(entries, known).reviews)


def _known(entries: Sequence[Entry]) -> list[ev.Event]:
    """Key order is normalised: a line just appended must be shown like one read from disk."""
    return [ev.from_body(json.loads(canonical_json(dict(e.body)))) for e in entries]


def _view(entries: Sequence[Entry], known: Sequence[ev.Event]) -> SessionView:
    session = next(iter(_all(known, ev.SessionStarted)), None)
    agreed = agreed_plan(known)
    if session is None or agreed is None:
        return SessionView()
    plan = mapping(agreed.plan)
    resumed = _all(known, ev.SessionResumed)
    certificates = [session.certificate, *(fact.certificate for fact in resumed)]
    limits = [session.limits, *(fact.limits for fact in resumed)]
    # An evaluation's are items of the held-out set, and no rows that were kept.
    ends = _all(known, ev.StepFinished)
    sampled = [f for f in ends if f.samples and f.judged_file != "evaluation.json"]
    return SessionView(
        run_id=session.run_id,
        name=session.name,
        runbook=agreed.runbook,
        overrides=agreed.overrides,
        fingerprint=agreed.fingerprint,
        plan=plan,
        acceptances=tuple(_acceptances(entries, known)),
        versions=session.versions,
        began=entries[0].wall,
        updated=entries[-1].wall,
        seconds=seconds_spent(entries),
        spent=budget.spent(known),
        ahead=_ahead(known),
        limits=Limits.of(limits[-1]),
        request_usd=limits[-1].get("request_usd", 0.0),
        batch_s=_batch_s(entries, known),
        outcome=_outcome(known),
        certificate=certificates[-1],
        pod_stop=next(iter(reversed(_all(known, ev.PodStopRequested))), None),
        steps=_steps(plan, known, reviews_of(entries, known)),
        samples=sampled[-1].samples if sampled else (),
        samples_of=sampled[-1].step if sampled else "",
        scorings=count_scorings(known),
    )


def _all(known: Iterable[ev.Event], kind: type[T]) -> list[T]:
    return [fact for fact in known if isinstance(fact, kind)]


def _outcome(known: Iterable[ev.Event]) -> Outcome:
    now = Outcome("running")
    for fact in known:
        match fact:
            case ev.SessionResumed() | ev.PlanAccepted():
                now = Outcome("running")
            case ev.SessionStopped() if _adds_nothing(now, fact):
                now = replace(now, asked=fact.detail)
            case ev.SessionStopped():
                now = Outcome("stopped", fact.exit_code, fact.reason, fact.detail)
            case ev.SessionDone():
                now = Outcome("done", fact.exit_code, overrides=fact.overrides)
            case ev.ReviewDecided() if now.state == "stopped" and fact.action != NEEDS_HUMAN:
                now = replace(now, decided=fact)
    return now


def _adds_nothing(now: Outcome, stop: ev.SessionStopped) -> bool:
    """Whether a person asks for the stop of what has stopped, and waits for a person, already."""
    waits = now.state == "stopped" and now.exit_code != PausedError.code
    return waits and stop.reason == STOP_REQUESTED


def _acceptances(entries: Sequence[Entry], known: Sequence[ev.Event]) -> Iterator[AcceptanceView]:
    verdicts: dict[str, str] = {}
    owner: dict[str, str] = {}
    for entry, fact in zip(entries, known, strict=True):
        match fact:
            case ev.GateJudged():
                verdicts[fact.step] = fact.verdict
            case ev.ReviewRequested():
                owner[fact.review_id] = fact.step
            case ev.ReviewDecided(action="override", review_id=name) if name in owner:
                verdicts[owner[name]] = f"{verdicts.get(owner[name], '')}, overridden"
            case ev.PlanAccepted():
                again = tuple((name, verdicts.get(name, "")) for name in fact.rejudged)
                told = (fact.author, fact.reason, fact.changes, fact.invalidated)
                yield AcceptanceView(entry.wall, *told, again)


def _batch_s(entries: Sequence[Entry], known: Sequence[ev.Event]) -> float | None:
    """The first commit counts from none: what a step does before it says nothing of a batch."""
    times: list[float] = []
    for entry, fact in zip(entries, known, strict=True):
        match fact:
            case ev.StepStarted():
                times = []
            case ev.BatchCommitted():
                times.append(entry.mono)
    gaps = sorted(after - before for before, after in pairwise(times))
    return gaps[len(gaps) // 2] if gaps else None


def _ahead(known: Iterable[ev.Event]) -> float:
    ahead = 0.0
    for fact in known:
        match fact:
            case ev.SessionStarted() | ev.SessionResumed():
                ahead = 0.0
            case ev.TimeLeased():
                ahead = fact.ahead_s
    return ahead


def _steps(
    plan: Mapping[str, Json], known: Sequence[ev.Event], reviews: Sequence[ReviewView]
) -> tuple[StepView, ...]:
    documents = mapping(plan.get("steps"))
    facts: dict[str, list[ev.Event]] = {str(name): [] for name in plan.get("order") or ()}
    owner = {r.review_id: r.step for r in _all(known, ev.ReviewRequested)}
    superseded: set[str] = set()
    for fact in known:
        name = getattr(fact, "step", None) or owner.get(getattr(fact, "review_id", ""))
        if name:
            facts.setdefault(name, []).append(fact)
        if isinstance(fact, ev.PlanAccepted):
            for step in (*fact.invalidated, *fact.rejudged):
                mine = facts.setdefault(step, [])
                superseded |= {r.review_id for r in _all(mine, ev.ReviewRequested)}
            for step in fact.rejudged:
                facts[step] = _unjudged(facts[step])
    statuses = _statuses(plan, known, facts)
    return tuple(
        _step(
            name,
            mapping(documents.get(name)),
            mine,
            statuses.get(name, Status.PENDING),
            tuple(
                replace(r, superseded=r.review_id in superseded) for r in reviews if r.step == name
            ),
        )
        for name, mine in facts.items()
    )


def _unjudged(mine: list[ev.Event]) -> list[ev.Event]:
    """Without the verdict on the newest attempt, which is judged again by other rules."""
    newest = max((s.attempt for s in _all(mine, ev.StepStarted)), default=0)
    return [f for f in mine if not (isinstance(f, ev.GateJudged) and f.attempt == newest)]


def _statuses(
    plan: Mapping[str, Json], known: Sequence[ev.Event], facts: Mapping[str, Sequence[ev.Event]]
) -> dict[str, Status]:
    """How each step stands, as the machine says it.

    A journal of another version may be one that the machine cannot follow; then the last that each
    step told has to do, whatever was decided since about running it again.
    """
    try:
        # A batch moves no step from one status to another, and most facts are batches.
        moves = [fact for fact in known if not isinstance(fact, ev.BatchCommitted)]
        state = replay(recorded_plan(plan), moves)
    except (CorruptError, LookupError, ValueError):
        return {name: _last_told(mine) for name, mine in facts.items()}
    return {name: step.status for name, step in state.steps.items()}


def _last_told(mine: Sequence[ev.Event]) -> Status:
    for fact in reversed(mine):
        match fact:
            case ev.StepPassed() | ev.GateJudged(verdict="pass", sentinel=False):
                return Status.PASSED
            case ev.ReviewDecided(action="override"):
                return Status.PASSED
            case ev.GateJudged():
                return Status.JUDGED
            case ev.StepFinished():
                return Status.FINISHED
            case ev.StepFailed():
                return Status.FAILED
            case ev.StepInterrupted():
                return Status.INTERRUPTED
            case ev.StepSkipped():
                return Status.SKIPPED
            case ev.StepStarted():
                return Status.RUNNING
    return Status.PENDING


def _step(
    name: str,
    document: Mapping[str, Json],
    mine: list[ev.Event],
    status: Status,
    reviews: tuple[ReviewView, ...],
) -> StepView:
    finished = _all(mine, ev.StepFinished)
    skipped = _all(mine, ev.StepSkipped)
    written = _all(mine, ev.ManifestWritten)
    # A second look counts its first look's tokens again: of an attempt the last word holds.
    tokens = {f.attempt: f.tokens for f in finished}
    return StepView(
        name=name,
        phase=skipped[-1].phase if skipped else str(document.get("phase", "")),
        inputs=tuple(document.get("inputs") or ()),
        status=status,
        attempts=attempts_of(mine),
        adjustments=tuple(_all(mine, ev.Adjusted)),
        adjustable=mapping(document.get("adjustable")),
        reviews=reviews,
        losses=tuple(f.cause for f in _all(mine, ev.StepInterrupted) if not _was_asked(f.cause)),
        skipped=skipped[-1].why if skipped else "",
        tokens=sum(tokens.values()),
        seconds=sum(f.seconds for f in finished),
        artifacts=finished[-1].artifacts if finished else (),
        summary=finished[-1].summary if finished else {},
        manifest=written[-1].path if written else "",
        manifest_sha256=written[-1].sha256 if written else "",
        judged=written[-1].judged_path if written else "",
    )


def _was_asked(cause: str) -> bool:
    """Whether the executor, a person or the step itself wanted this interruption."""
    return cause in _ASKED or cause.startswith("a person asked for it")
