"""How a session stands, in words: the outcome, what is safe, what it cost, what to do next.

Plain text, escaped by whoever shows it. A command can be pasted as it is, but for the words in
capitals, which only a person can fill in.
"""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runbook.contract import Json
from runbook.events import ReviewDecided
from runbook.report import evaluation, review_words, spending
from runbook.report import figures as f
from runbook.report.session import AcceptanceView, AttemptView, ReviewView, SessionView, StepView
from runbook.state import Status
from runbook.workspace import Workspace

_CAUSES = {
    "review": "a review waits for a person's decision",
    "gate failed": "a gate failed, and its review decided to stop",
    "closing": "a gate failed, and its retries are used up",
    "instrument": "a reading cannot be believed, and its review decided to stop",
    "underpowered": "the sample is too small to decide, and its review decided to stop",
    "smoke": "a smoke did not show the change to help, and its review decided to stop",
    "question": "a step asked a question, and its review decided to stop",
    "sentinel": "a sentinel tripped",
    "error": "an error",
    "budget": "the budget is spent",
    "rental": "the machine's rental ends",
    "stop requested": "a person asked for it",
    "paused": "paused, nothing is wrong",
    "no progress": "a step was interrupted again and again",
    "missing manifest": "an input is missing or was changed",
    "changed input": "a file that a step reads or runs is not the one that was planned with",
    "dry": "phase code does a second time what has one canonical place",
}
"""Reason of a ``SessionStopped`` -> what it means."""
_TOO_LITTLE = "the budget's rest does not last for the next batch"
_AGAIN = {
    "ask": "The same command asks it again.",
    "change": "The same command asks it again, once that is changed in the runbook and accepted.",
}
"""``Unanswered.remedy`` -> what a person must know of it."""
HERE = Workspace(Path())
"""Makes paths relative to the workspace, wherever it is."""
_FINAL = frozenset(
    {"gate failed", "closing", "instrument", "underpowered", "smoke", "question", "sentinel"}
)
"""Stops after which the same command only stops again."""
_CURABLE = frozenset(
    {
        "error",
        "budget",
        "rental",
        "paused",
        "stop requested",
        "no progress",
        "missing manifest",
        "changed input",
        "dry",
    }
)
"""Stops after which the same command goes on where it was."""


@dataclass(frozen=True)
class NextStep:
    """What to do, and the command that does it."""

    why: str
    command: str


def title(view: SessionView) -> str:
    """How it stands, in a few words."""
    now = view.outcome
    match now.state:
        case "none":
            return "no session yet"
        case "running":
            return "running"
        case "done" if now.overrides:
            return f"all done, with {f.counted(now.overrides, 'override')} (exit {now.exit_code})"
        case "done":
            return f"all done (exit {now.exit_code})"
        case _ if now.decided:
            return f"stopped, and decided since: {now.decided.action} (exit {now.exit_code})"
        case _:
            return f"stopped: {cause(view)} (exit {now.exit_code})"


def cause(view: SessionView) -> str:
    """What a stop's reason means, in a clause; empty where nothing was stopped."""
    if view.outcome.reason == "budget" and spending.is_left_over(view):
        return _TOO_LITTLE
    return _CAUSES.get(view.outcome.reason, view.outcome.reason)


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


def _finished(view: SessionView) -> str:
    planned = [s for s in view.steps if s.status is not Status.SKIPPED]
    done = [s for s in planned if s.status is Status.PASSED and s.manifest]
    return f"{len(done)} of {f.counted(len(planned), 'step')} done, with manifests"


def word(step: StepView) -> str:
    """A step's standing in a word or two."""
    last = step.last
    match step.status:
        case Status.PASSED if step.override:
            return f"{last.verdict if last else ''}, overridden"
        case Status.PASSED if last and last.verdict:
            return "pass (thin)" if last.thin else "pass"
        case Status.PASSED:
            return "done"
        case Status.JUDGED if last:
            return _judged(last)
        case Status.FINISHED if step.reviews and step.reviews[-1].reason == "question":
            return "a question is open"
        case Status.FAILED:
            return "error"
        case Status.FINISHED:
            return "not judged yet"
        case Status.PENDING if last and last.extension and last.verdict:
            return "sample to be extended"
        case Status.PENDING:
            return "to run again" if last else "not started"
        case _:
            return str(step.status.value)


def _judged(last: AttemptView) -> str:
    """Of an attempt whose gate did not let the session go on."""
    if last.smoke:
        return "smoke judged"
    if last.sentinel:
        return "sentinel tripped"
    return "pass, with a question" if last.verdict == "pass" else last.verdict


def losses(step: StepView) -> str:
    """How many of a step's children were lost, and of what; empty where none was."""
    if not step.losses:
        return ""
    kinds = Counter(cause.replace(", so it was killed", "") for cause in step.losses)
    told = [cause if len(kinds) == 1 else f"{n} x {cause}" for cause, n in kinds.items()]
    return f"{f.counted(len(step.losses), 'loss', 'losses')} ({'; '.join(told)})"


def safe(view: SessionView) -> str:
    """What stands on disk, and whether the same command makes any of it again."""
    told = _finished(view)
    step = view.current
    if step and step.last and step.last.batches:
        batches = f.counted(step.last.batches, "committed batch", "committed batches")
        records = f.counted(step.last.records, "record")
        told += f"; of {step.name}, attempt {step.last.number}, {batches} ({records})"
    now = view.outcome
    if now.state == "done":
        return f"{told}."
    kept = now.state == "running" or now.reason in _CURABLE
    if not kept:
        return f"{told}. All of it stays."
    mended = now.reason == "error" and step and step.last
    unless = f", unless the code of {step.name} is changed" if step and mended else ""
    return f"{told}. The same command makes none of it again{unless}."


def cost(view: SessionView) -> str:
    """Time and tokens, and what was spent of each limit."""
    told = [f"{f.duration(view.seconds)} of work", f.counted(view.tokens, "token")]
    limits = spending.lines(view.spent, view.limits)
    spent = f" Spent, with what is reserved: {'; '.join(limits)}." if limits else ""
    return f"{', '.join(told)}.{spent}"


def certificate(view: SessionView) -> str:
    """What ``selftest --chaos`` found on this volume, and of which version."""
    found = view.certificate
    if not found:
        return "none; runbook selftest --chaos makes one"
    verdict = "nothing lost or done twice" if found.get("passed") is True else "FAILED"
    told = f"{verdict} in {found.get('tried')} of {found.get('places')} faults"
    told += f", {found.get('file_system')}, fsync {found.get('fsync_ms')} ms"
    return f"{told}; {str(found.get('wall'))[:10]}, {str(found.get('git_sha'))[:12]}"


def main_file(step: StepView) -> str:
    """The one file of a step to look at: its evaluation, or the first thing it made."""
    if step.comparison and step.judged:
        return step.judged
    return step.artifacts[0].path if step.artifacts else ""


def reading(view: SessionView) -> list[tuple[str, str]]:
    """What there is to read: a label, and a path relative to the workspace."""
    found = []
    if view.outcome.state in ("stopped", "done") or any(s.manifest for s in view.steps):
        found.append(("report", HERE.relative(HERE.report)))
    if review := view.deciding:
        found.append(("review", f"{review.path}/report.md"))
    stuck = view.current
    if stuck and stuck.judged and not stuck.comparison:
        found.append((f"verdict on {stuck.name}", stuck.judged))
    found += [("evaluation", step.judged) for step in view.evaluations if step.judged]
    datasets = [a for s in view.steps if (a := s.artifact("dataset"))]
    found += [("dataset", datasets[-1].path)] if datasets else []
    found += [("adapter", a.path) for s in view.steps if (a := s.artifact("adapter"))]
    return found


def next_steps(view: SessionView, root: Path, *, alive: bool | None = None) -> tuple[NextStep, ...]:
    """What to do now, in order; empty where nothing is left.

    ``alive`` says whether the executor of a running session is at work; None: nobody knows.
    """
    return tuple(_next_steps(view, root, alive=alive))


def _next_steps(view: SessionView, root: Path, *, alive: bool | None) -> Iterator[NextStep]:
    now = view.outcome
    run = view.command(root)
    if now.state in ("none", "done") or (now.state == "running" and alive):
        return
    if now.state == "running":
        told = "If it was killed, the" if alive is None else "The"
        yield NextStep(f"{told} same command goes on:", run)
    elif view.waiting:
        yield from _decide(view, view.waiting, root)
        if limits := spending.reached_by_reviews(view):
            told, sets = spending.allowance(limits, view)
            why = f"Or allow the reviewer one more request, {told}:"
            yield NextStep(why, view.command(root, *sets))
        told = "; without a decision it asks the reviewer again" if _is_asked_again(view) else ""
        yield NextStep(f"Then the same command goes on{told}:", run)
    elif now.decided and now.decided.action != "stop":
        yield NextStep("The decision is on record; the same command acts on it:", run)
    elif now.decided or now.reason in _FINAL:
        yield from _after_the_end(view, root)
    else:
        yield _again(view, root)


def _is_asked_again(view: SessionView) -> bool:
    return bool(view.unanswered and view.unanswered.remedy == "ask")


def _again(view: SessionView, root: Path) -> NextStep:
    """After a stop whose cause the same command, or one like it, gets over."""
    now, run = view.outcome, view.command(root)
    match now.reason:
        case "budget":
            limits = spending.reached(view.spent, view.limits) or ["wall_clock"]
            told, sets = spending.allowance(limits, view)
            return NextStep(f"Allow more {told}:", view.command(root, *sets))
        case "rental":
            told = "On a machine that is rented until later, with that time in pod.rental_ends:"
            return NextStep(told, run)
        case "stop requested":
            resume = shlex.join(["runbook", "resume", "--workspace", str(root)])
            return NextStep("It waits for a person, who goes on with:", resume)
        case "error" | "no progress":
            log = HERE.relative(HERE.log(broken(view)))
            told = (
                f"Read {log} and mend the cause. Where that changes the runbook, a file it "
                "names or a step's code, add --accept-changes REASON to the command that goes on:"
            )
            return NextStep(told, run)
        case "changed input":
            told = (
                "Restore what is named above, or add --accept-changes REASON to the command that "
                "goes on:"
            )
            return NextStep(told, run)
        case "missing manifest":
            return NextStep("Restore what is named above; the same command then goes on:", run)
        case _:
            return NextStep("The same command goes on:", run)


def _decide(view: SessionView, review: ReviewView, root: Path) -> Iterator[NextStep]:
    yield NextStep("Read the question:", review_command("show", review, root))
    told = f"Decide; ACTION is {f.listed(review_words.options(review))}, REASON is kept on record:"
    yield NextStep(told, review_command("decide", review, root, "ACTION"))
    bounds = next((s.adjustable for s in view.steps if s.name == review.step), {})
    if bounds and "retry" in review.allowed:
        told = f"Or retry with other parameters; NAME=NUMBER is one of {ranges(bounds)}:"
        retry = review_command("decide", review, root, "retry", "--change", "NAME=NUMBER")
        yield NextStep(told, retry)


def ranges(adjustable: Mapping[str, Json]) -> str:
    """``t (0.1 to 1.0), rows (1 to 4)``: what a retry may change, and how far."""
    found = {name: f.mapping(ends) for name, ends in adjustable.items()}
    return ", ".join(f"{name} ({_end(r, 'min')} to {_end(r, 'max')})" for name, r in found.items())


def _end(ends: Mapping[str, Json], name: str) -> str:
    found = f.real(ends.get(name))
    return f.NOTHING if found is None else f"{found:g}"


def _after_the_end(view: SessionView, root: Path) -> Iterator[NextStep]:
    """Nothing here runs again by itself: a person overrides, or begins anew."""
    step = view.current
    if step and step.reviews:
        review = step.reviews[-1]
        yield NextStep("Read the evidence:", review_command("show", review, root))
        if "override" in review.allowed:
            command = review_command("decide", review, root, "override")
            yield NextStep(_why_override(step, review), command)
            yield NextStep("After that the same command goes on:", view.command(root))
    show = ["runbook", "plan", view.runbook, "--workspace", str(root), *view.options()]
    told = "Or mend the runbook, see what of this session stays, and accept the change on record:"
    yield NextStep(told, shlex.join(show))
    told = "Else begin anew in another workspace:"
    yield NextStep(told, view.command(Path("NEW_WORKSPACE")))


def _why_override(step: StepView, review: ReviewView) -> str:
    if review.reason == "sentinel":
        return "If you know better, clear it on record; the session then ends with exit 6:"
    if step.last and step.last.smoke:
        return "If you know better, have the change run in full, on record:"
    return "If you know better, override it on record; the session then ends with exit 6:"


def review_command(
    verb: str, review: ReviewView, root: Path, action: str = "", *options: str
) -> str:
    """``runbook review VERB ID ...``; with an action, the reason is a person's to fill in.

    A sentinel is cleared by a command of its own.
    """
    if action == "override" and review.reason == "sentinel":
        words = ["runbook", "sentinel", "clear", "--reason", "REASON", "--workspace", str(root)]
        return shlex.join(words)
    answer = ["--action", action, *options, "--reason", "REASON"] if action else []
    words = ["runbook", "review", verb, review.review_id, *answer, "--workspace", str(root)]
    return shlex.join(words)


def broken(view: SessionView) -> str:
    """Whose log tells of an error: the step that failed, or else the executor itself."""
    steps = (s.name for s in view.steps if s.status in (Status.FAILED, Status.INTERRUPTED))
    return next(steps, "executor")
