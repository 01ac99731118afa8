"""What a person must know of a session before anything else, in whole sentences.

Plain text, escaped by whoever shows it. Each sentence rests on the journal, but for why a reviewer
gave no answer, which its folder tells.
"""

from collections.abc import Iterator

from runbook.events import ReviewDecided
from runbook.report import evaluation, review_words
from runbook.report import figures as f
from runbook.report.session import AcceptanceView, SessionView, StepView
from runbook.report.step_words import word

_AGAIN = {
    "ask": "The same command asks it again.",
    "change": "The same command asks it again, once that is changed in the runbook and accepted.",
}
"""``Unanswered.remedy`` -> what a person must know of it."""


def sentences(view: SessionView) -> list[str]:
    """What a person must know first: why it stopped, what training gave, who overrode what."""
    told = [_accepted(acceptance) for acceptance in view.acceptances]
    now = view.outcome
    if now.state == "running":
        told.append(_running(view))
    told += _stopped(view)
    told += [f"{_trained(view, s)}: {evaluation.sentence(s.comparison)}." for s in view.evaluations]
    for step in view.steps:
        if step.override:
            told.append(_overridden(step, step.override))
    if now.state == "done":
        told.append(_gates(view))
    return [*told, *_pod(view)]


def _stopped(view: SessionView) -> Iterator[str]:
    """Why it stopped, and what its reviewer said of that."""
    now, review = view.outcome, view.deciding
    if now.decided and review:
        yield f"It stopped for {review_words.asked(review)}."
    else:
        first, *rest = now.detail.splitlines() or [""]
        if first:
            yield f"Cause: {first}"
        yield from (line.strip().replace("fix: ", "Fix: ", 1) for line in rest if line.strip())
    if now.asked:
        yield f"It had stopped already when {now.asked}. Only a person goes on with it."
    if view.unanswered:
        yield f"Its reviewer gave no answer: {view.unanswered.cause}"
        if view.waiting and (again := _AGAIN.get(view.unanswered.remedy)):
            yield again
    elif review and review.last:
        yield f"Decided: {review_words.decision(review.last)}"


def _overridden(step: StepView, override: ReviewDecided) -> str:
    """By whom, when and why; the verdict that was passed by stays on record."""
    at = next((f.moment(r.time_of(override)) for r in step.reviews if override in r.decisions), "")
    verdict = f" ({step.last.verdict})" if step.last and step.last.verdict else ""
    who = f"{override.author} overrode it"
    return f"{step.name} did not pass{verdict}, and {who}: {override.reason} ({at})"


def _pod(view: SessionView) -> list[str]:
    """What was seen of the pod's end. Only another machine can verify it."""
    stop = view.pod_stop
    if stop is None or view.outcome.state == "running":
        return []
    told = f"Pod: stop requested at {f.moment(stop.requested_at)}, "
    told += f"last state {stop.state}" if stop.state else "its state was not asked or not told"
    if stop.rc != 0:
        told += f"; the command {'did not end' if stop.rc is None else f'exited with {stop.rc}'}"
    return [f"{told}. 'runbook status --verify-pod' elsewhere asks again."]


def _accepted(acceptance: AcceptanceView) -> str:
    """That the session is not of one plan, since when, by whose word, in what."""
    most = 3
    fields = "; ".join(acceptance.changes[:most])
    more = len(acceptance.changes) - most
    told = f"{fields}; and {more} more" if more > 0 else fields
    anew = [f"made anew: {', '.join(acceptance.invalidated)}"] if acceptance.invalidated else []
    if acceptance.rejudged:
        again = [f"{name} (it was: {was})" if was else name for name, was in acceptance.rejudged]
        anew.append(f"judged again: {', '.join(again)}")
    follows = "; ".join(anew) or "nothing was made or judged again for it"
    who = f"{acceptance.author} accepted a changed plan at {f.moment(acceptance.at)}"
    return f"{who} ({acceptance.reason}): {told}. {follows[0].upper()}{follows[1:]}."


def _running(view: SessionView) -> str:
    step = view.current
    if step is None:
        return "Every step is finished; the session is being closed."
    if step.last is None:
        return f"{step.name} is next."
    return f"At {step.name}, attempt {step.last.number}: {word(step)}."


def _trained(view: SessionView, step: StepView) -> str:
    """Which model an evaluation is of, and what trained it: a session may train twice."""
    by = [s.name for s in view.steps if s.name in step.inputs and s.artifact("adapter")]
    return f"{view.model or 'The model'} trained by {' and '.join(by) or 'this session'}"


def _gates(view: SessionView) -> str:
    """How many gates stand behind the result, and how firmly."""
    judged = [s for s in view.steps if s.last and s.last.verdict]
    overridden = [s for s in judged if s.override]
    thin = dict.fromkeys(c.metric for s in judged if s.last for c in s.last.criteria if c.thin)
    if not judged:
        return "No step has a gate."
    told = f"{len(judged) - len(overridden)} of {f.counted(len(judged), 'gate')} passed"
    told += f", {len(overridden)} overridden" if overridden else ""
    if thin:
        told += f", thin on {', '.join(thin)}: the rate holds, its 95 % bound does not"
    return f"{told}."
