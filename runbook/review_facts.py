"""What a reviewer is told beside the verdict: attempts, advice and its outcome, money, log.

Rule: all of it but the log and the certificates is read from the facts up to the review's request,
so that a review asked again after a crash is the same question.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from runbook import budget
from runbook import events as ev
from runbook.adjusting import missing
from runbook.artifacts import canonical_json, sha256_bytes
from runbook.budget import Limits
from runbook.contract import Artifact, Attempt, Criterion, EarlierReview, Json
from runbook.errors import ConfigError
from runbook.next_act import rerun_range
from runbook.params import all_params, find, is_number
from runbook.plan import Plan, PlannedStep
from runbook.regular_files import open_to_read
from runbook.state import CERTIFICATE, MAKES_ANEW, SMOKE
from runbook.workspace import Workspace

LOG_LINES = 40
LOG_BYTES = 16 * 1024
_LONGEST_CERTIFICATE = 4 * 1024 * 1024
_HOUR = 3600.0
_SAME = 1e-9

E = TypeVar("E", bound=ev.Event)


def facts_before(known: Sequence[ev.Event], review_id: str) -> Sequence[ev.Event]:
    """The facts up to the request of this review; all of them where it was not made."""
    for place, fact in enumerate(known):
        if isinstance(fact, ev.ReviewRequested) and fact.review_id == review_id:
            return known[:place]
    return known


def attempts_of(plan: Plan, known: Sequence[ev.Event], name: str) -> tuple[Attempt, ...]:
    """Each judged run of a step, as it was judged last; the newest one last."""
    found: dict[tuple[int, int], Attempt] = {}
    for place, fact in enumerate(known):
        if isinstance(fact, ev.GateJudged) and fact.step == name:
            key = fact.attempt, fact.look
            found.pop(key, None)
            found[key] = _attempt(plan, known[:place], fact)
    return tuple(found.values())


def _attempt(plan: Plan, before: Sequence[ev.Event], judged: ev.GateJudged) -> Attempt:
    started = _last(before, ev.StepStarted, judged.step, judged.attempt)
    finished = _last(before, ev.StepFinished, judged.step, judged.attempt)
    return Attempt(
        judged.attempt,
        judged.look,
        judged.verdict,
        judged.reasons,
        started.params if started else {},
        changes=dict(_changes(plan, before, judged)),
        criteria=judged.criteria,
        metrics=finished.metrics if finished else (),
    )


def _changes(
    plan: Plan, before: Sequence[ev.Event], judged: ev.GateJudged
) -> Iterator[tuple[str, Json]]:
    """What the attempt's steps ran with that the plan does not say."""
    for step in rerun_range(plan, plan.step(judged.step)):
        started = _last(before, ev.StepStarted, step.name, judged.attempt)
        if started:
            planned = dict(all_params(dict(step.params)))
            ran = all_params(dict(started.params))
            yield from ((n, v) for n, v in ran if n not in planned or planned[n] != v)


def _last(known: Sequence[ev.Event], kind: type[E], step: str, attempt: int) -> E | None:
    """The newest fact of this kind about one attempt of a step."""
    wanted = step, attempt
    mine = (f for f in reversed(known) if isinstance(f, kind) and _of(f) == wanted)
    return next(mine, None)


def _of(fact: ev.Event) -> tuple[Json, Json]:
    return getattr(fact, "step", None), getattr(fact, "attempt", None)


def earlier_reviews(plan: Plan, known: Sequence[ev.Event]) -> tuple[EarlierReview, ...]:
    """Every answered review, with what came of the answer."""
    found = []
    for place, asked in enumerate(known):
        if not isinstance(asked, ev.ReviewRequested):
            continue
        answers = (
            (at, fact)
            for at, fact in enumerate(known)
            if isinstance(fact, ev.ReviewDecided) and fact.review_id == asked.review_id
        )
        last = max(answers, key=lambda one: one[0], default=None)
        if last:
            found.append(_earlier(plan, known[:place], asked, last[1], known[last[0] :]))
    return tuple(found)


def _earlier(
    plan: Plan,
    before: Sequence[ev.Event],
    asked: ev.ReviewRequested,
    decided: ev.ReviewDecided,
    since: Sequence[ev.Event],
) -> EarlierReview:
    was = _last(before, ev.GateJudged, asked.step, asked.attempt)
    at_smoke = was is not None and was.look == SMOKE
    runs = decided.action in MAKES_ANEW or (decided.action == "override" and at_smoke)
    now = _judged_next(since, asked.step) if runs else None
    criteria = _criteria(plan, asked.step)
    so_far = "pending" if runs else "none"
    return EarlierReview(
        asked.review_id,
        asked.step,
        asked.attempt,
        asked.reason,
        decided.action,
        decided.changes,
        decided.reason,
        decided.author,
        outcome_of(criteria, was, now) if was and now else so_far,
        tuple(_effect(criteria, was, now)) if was and now else (),
    )


def _judged_next(since: Sequence[ev.Event], step: str) -> ev.GateJudged | None:
    """The next attempt's last verdict, before the step is asked about again.

    A smoke's where there is no other.
    """
    mine = [f for f in since if getattr(f, "step", None) == step]
    until = next((at for at, f in enumerate(mine) if isinstance(f, ev.ReviewRequested)), len(mine))
    judged = [f for f in mine[:until] if isinstance(f, ev.GateJudged)]
    whole = [f for f in judged if f.look != SMOKE]
    return next((f for f in reversed(whole) if f.attempt == whole[0].attempt), None) or next(
        iter(judged), None
    )


def _criteria(plan: Plan, step: str) -> Mapping[tuple[Json, Json], Criterion]:
    gate = next((s.gate for s in plan.steps if s.name == step), None)
    return {(c.metric, c.kind): c for c in gate.criteria} if gate else {}


def outcome_of(
    criteria: Mapping[tuple[Json, Json], Criterion], was: ev.GateJudged, now: ev.GateJudged
) -> str:
    """passed, better, worse or unchanged: by what cannot be read, then by how far the rest is off.

    What a verdict leaves open for want of rows counts last.
    """
    if now.verdict == "pass" and now.look != SMOKE:
        return "passed"
    first, second = (_rank(criteria, judged) for judged in (was, now))
    for before, after in zip(first, second, strict=True):
        if abs(after - before) > _SAME:
            return "better" if after < before else "worse"
    return "unchanged"


def _rank(
    criteria: Mapping[tuple[Json, Json], Criterion], judged: ev.GateJudged
) -> tuple[float, float, float]:
    verdicts = [c.get("verdict") for c in judged.criteria]
    far = sum(_far(criteria, c) for c in judged.criteria if c.get("verdict") == "fail")
    return verdicts.count("invalid"), far, verdicts.count("underpowered")


def _far(criteria: Mapping[tuple[Json, Json], Criterion], result: Mapping[str, Json]) -> float:
    criterion = criteria.get((result.get("metric"), result.get("kind")))
    return missing(criterion, result) if criterion else 0.0


def _effect(
    criteria: Mapping[tuple[Json, Json], Criterion], was: ev.GateJudged, now: ev.GateJudged
) -> Iterator[str]:
    """A line for each criterion that did not hold, before or after, and whose reading moved."""
    before = {(c.get("metric"), c.get("kind")): c for c in was.criteria}
    for after in now.criteria:
        key = after.get("metric"), after.get("kind")
        old = before.get(key, {})
        held = old.get("verdict") == "pass" == after.get("verdict")
        if held or old.get("value") == after.get("value"):
            continue
        threshold = criteria[key].threshold if key in criteria else ""
        must = f" ({threshold})" if threshold else ""
        yield f"{key[0]} {_figure(old.get('value'))} -> {_figure(after.get('value'))}{must}"


def _figure(value: Json) -> str:
    return f"{value:.4g}" if is_number(value) else "none"


def log_tail(workspace: Workspace, step: str) -> str:
    """The last lines of a step's log; '' where there is none. Bytes that are no text are escaped.

    Of a line that was drawn over, as a progress bar is, the last state counts.
    """
    try:
        with open_to_read(workspace.log(step)) as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - LOG_BYTES))
            data = log.read(LOG_BYTES)
    except (OSError, ValueError):
        return ""
    lines = data.decode("utf-8", "backslashreplace").rstrip("\n").split("\n")
    if size > LOG_BYTES and len(lines) > 1:
        # The first one may have begun before what was read.
        lines = lines[1:]
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines[-LOG_LINES:])


def certificates(
    plan: Plan, known: Sequence[ev.Event], workspace: Workspace, name: str
) -> tuple[dict[str, Json], ...]:
    """What vouches for each instrument of a step: by its inputs' certificates and by its own."""
    found: list[dict[str, Json]] = []
    for step in certifiers(plan, known, name):
        made = _made(known, step)
        found += _entries(workspace, step, made) if made else ()
    return tuple(found)


def certifiers(plan: Plan, known: Sequence[ev.Event], name: str) -> tuple[str, ...]:
    """The steps whose certificates a step reads, itself included."""
    return tuple(step for step in (*plan.step(name).inputs, name) if _made(known, step))


def _made(known: Sequence[ev.Event], step: str) -> Artifact | None:
    """The newest certificate of a step."""
    ends = [f for f in known if isinstance(f, ev.StepFinished) and f.step == step]
    artifacts = ends[-1].artifacts if ends else ()
    return next((artifact for artifact in artifacts if artifact.name == CERTIFICATE), None)


def _entries(workspace: Workspace, step: str, made: Artifact) -> list[dict[str, Json]]:
    try:
        with open_to_read(workspace.inside(made.path)) as file:
            data = file.read(_LONGEST_CERTIFICATE)
        if sha256_bytes(data) != made.sha256:
            return [{"name": step, "state": "the certificate was changed"}]
        document = json.loads(data)
        instruments = document["instruments"]
        body = {"certificate": 1, "instruments": instruments}
        if document != {**body, "sha256": sha256_bytes(canonical_json(body).encode())}:
            return [{"name": step, "state": "the certificate was changed"}]
        return [_entry(name, of) for name, of in sorted(instruments.items())]
    except (OSError, ConfigError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [{"name": step, "state": "the certificate cannot be read"}]


def _entry(name: str, of: Mapping[str, Json]) -> dict[str, Json]:
    entry: dict[str, Json] = {
        "name": name,
        "state": "ok" if of.get("within_bounds") is True else "below its bounds",
    }
    for side in ("sensitivity", "specificity"):
        rate = of.get(side, {})
        hits, n = rate.get("successes"), rate.get("n")
        entry[side] = hits / n if is_number(hits) and is_number(n) and n > 0 else None
        entry[f"{side}_bound"] = rate.get("bound") if entry[side] is not None else None
        entry[f"{side}_n"] = n
    entry["auc"] = of.get("auc")
    return entry


def budget_left(plan: Plan, known: Sequence[ev.Event]) -> dict[str, dict[str, float]]:
    """Each declared limit with what is spent, reservations included, and what is left of it."""
    limits, now = Limits.of(plan.budget), budget.spent(known)
    rows = {
        "wall_clock_s": (limits.wall_clock_s, now.seconds),
        "gpu_hours": (limits.gpu_hours, now.gpu_hours(limits)),
        "usd": (limits.usd, now.usd(limits)),
        "review_usd": (limits.review_usd, now.review_usd),
    }
    found = {
        name: {"limit": cap, "spent": used, "left": max(0.0, cap - used)}
        for name, (cap, used) in rows.items()
        if cap is not None
    }
    if limits.review_usd is not None:
        left = max(0.0, budget.review_left(limits, now))
        found["review_usd"]["left"] = left
    return found


def costs(
    plan: Plan, known: Sequence[ev.Event], name: str, allowed: Sequence[str]
) -> dict[str, dict[str, Json]]:
    """What each answer would cost, by what its steps took before; null where they never ran."""
    limits, step = Limits.of(plan.budget), plan.step(name)
    price = limits.usd_per_hour
    again = [s.name for s in rerun_range(plan, step)]
    certifying = certifiers(plan, known, name)
    waiting = f"a machine that waits costs {price:g} USD an hour" if price else "nothing more runs"
    found: dict[str, tuple[str, float | None]] = {
        "retry": (f"{', '.join(again)} again", _took(known, again)),
        "extend": (f"more rows of {name}", _more(known, step)),
        "recalibrate": (
            f"{', '.join(dict.fromkeys((*certifying, name)))} again",
            _took(known, dict.fromkeys((*certifying, name))) if certifying else None,
        ),
        "proceed": ("the steps that are left", None),
        "stop": ("nothing more runs", 0.0),
        "needs_human": (waiting, None),
        "override": ("the steps that are left", None),
    }
    return {
        action: {
            "what": what,
            "seconds": seconds,
            "usd": seconds / _HOUR * price if price and seconds is not None else None,
        }
        for action, (what, seconds) in found.items()
        if action in allowed
    }


def _took(known: Sequence[ev.Event], steps: Sequence[str] | Mapping[str, Json]) -> float | None:
    """Seconds of the steps' newest full attempts; None where one has none."""
    times = [_full(known, step) for step in steps]
    took = [time for time in times if time is not None]
    return sum(took) if len(took) == len(times) else None


def _full(known: Sequence[ev.Event], step: str) -> float | None:
    """Seconds of the newest attempt that was no smoke, all its looks together."""
    ends = [
        f for f in known if isinstance(f, ev.StepFinished) and f.step == step and f.look != SMOKE
    ]
    return sum(f.seconds for f in ends if f.attempt == ends[-1].attempt) if ends else None


def _more(known: Sequence[ev.Event], step: PlannedStep) -> float | None:
    """Seconds of an extension, where the one number that it raises says by how much."""
    extend = step.gate.extend if step.gate else None
    took = _full(known, step.name)
    if extend is None or took is None:
        return None
    raised = [
        (was, value)
        for name, value in extend.items()
        if is_number(value) and is_number(was := find(step.params, name)) and was > 0
    ]
    if len(raised) != 1 or raised[0][1] <= raised[0][0]:
        return None
    return took * float(raised[0][1] / raised[0][0] - 1)
