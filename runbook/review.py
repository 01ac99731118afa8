"""The question put to a reviewer, and a person's answer to it recorded while no executor runs.

Both are types of ``runbook.contract``; providers live in ``agent/``.
"""

from collections.abc import Sequence

from runbook import events as ev
from runbook import review_facts
from runbook.changes import check_same_plan
from runbook.clock import SYSTEM, Clock
from runbook.contract import Account, ReviewRequest
from runbook.errors import ConfigError
from runbook.journal import Entry, facts, read_entries
from runbook.machine import refuse_decision, replay
from runbook.next_act import params_of, rerun_range
from runbook.params import whole_numbers
from runbook.plan import Plan
from runbook.state import State
from runbook.takeover import open_journal
from runbook.workspace import Workspace


def review_name(known: Sequence[ev.Event], step: str, attempt: int) -> str:
    """The id of this attempt's next review: a changed plan may have its gate judged again."""
    asked = [f for f in known if isinstance(f, ev.ReviewRequested)]
    before = sum((fact.step, fact.attempt) == (step, attempt) for fact in asked)
    return f"{step}-{attempt}-{before + 1}" if before else f"{step}-{attempt}"


def make_request(
    plan: Plan,
    state: State,
    known: Sequence[ev.Event],
    workspace: Workspace,
    name: str,
    account: Account,
) -> ReviewRequest:
    """The question about a step whose review is open; one without a gate has no verdict."""
    mine, step = state.steps[name], plan.step(name)
    review, judged, finished = mine.review, mine.judged, mine.finished
    assert review is not None
    assert finished is not None
    before = review_facts.facts_before(known, review.review_id)
    return ReviewRequest(
        review_id=review.review_id,
        step=name,
        attempt=mine.attempt,
        reason=review.reason,
        allowed=review.allowed,
        run_id=state.session.run_id if state.session else "",
        workspace=workspace.root,
        path=review.path,
        verdict=judged.verdict if judged else "",
        criteria=judged.criteria if judged else (),
        reasons=judged.reasons if judged else (),
        metrics=finished.metrics,
        attempts=review_facts.attempts_of(plan, before, name),
        adjustable=step.adjustable,
        whole=whole_numbers(
            step.adjustable, [params_of(plan, state, s.name) for s in rerun_range(plan, step)]
        ),
        failures=mine.failures,
        retries=step.retries,
        summary=finished.summary,
        flagged=finished.flagged,
        samples=finished.samples,
        account=account,
        question=finished.question,
        earlier=review_facts.earlier_reviews(plan, before),
        certificates=review_facts.certificates(plan, before, workspace, name),
        log_tail=review_facts.log_tail(workspace, name),
        budget=review_facts.budget_left(plan, before),
        costs=review_facts.costs(plan, before, name, review.allowed),
    )


def record_decision(
    plan: Plan,
    workspace: Workspace,
    decided: ev.ReviewDecided,
    *,
    known: Sequence[ev.Event] | None = None,
    clock: Clock = SYSTEM,
) -> tuple[tuple[Entry, ...], str]:
    """Append a person's decision while no executor runs; the next run acts on it.

    Nothing is written for one that cannot stand. After one that can, report and reviews' pages
    tell of it; what keeps them from being written takes nothing from the decision.

    Args:
        plan: the session's.
        workspace: where.
        decided: the decision.
        known: the facts, where they were just read; it is judged again by those that stand there
            once the journal is open.
        clock: of the journal's times.

    Returns:
        The journal's entries, with the decision; and why the pages do not tell of it, empty where
        they do.

    Raises:
        ConfigError: the decision cannot stand, or the plan is another one.
        LockedError: an executor is at work.
    """
    from runbook.projection import renew_pages  # noqa: PLC0415 - a run without a decision needs none

    before = facts(read_entries(workspace)) if known is None else known
    _check_decision(plan, workspace, before, decided)
    with open_journal(workspace, clock) as journal:
        # Another decision may have been recorded since.
        now = facts(journal.entries)
        _check_decision(plan, workspace, now, decided)
        journal.append(decided.to_body(), pin=True)
        return tuple(journal.entries), renew_pages(workspace, journal)


def _check_decision(
    plan: Plan, workspace: Workspace, known: Sequence[ev.Event], decided: ev.ReviewDecided
) -> None:
    """Raises ConfigError: the decision cannot stand, or the plan is another one."""
    check_same_plan(plan, known, workspace.root)
    refusal = refuse_decision(plan, replay(plan, known), decided)
    if refusal:
        raise ConfigError(
            refusal,
            where=f"review {decided.review_id}",
            fix="'runbook review show' says what may be answered",
        )
