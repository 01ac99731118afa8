"""A review from its question to what came of it, as data. Pure: the journal's facts and no more.

Rule: what a decision brought is read from the verdict that came next, by that gate's own
thresholds; what was not judged since is pending, and no reading is called better without a bound
to measure it by.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from runbook import events as ev
from runbook.codec import decode
from runbook.contract import Criterion, Gate, Json
from runbook.journal import Entry
from runbook.report.attempts import attempts_of
from runbook.report.criteria import criterion_view
from runbook.report.figures import mapping, real
from runbook.report.session import (
    AttemptView,
    CriterionView,
    Effect,
    Followed,
    RequestView,
    ReviewView,
)
from runbook.review_facts import outcome_of
from runbook.state import MAKES_ANEW, SMOKE

_BOUND = re.compile(r"(>=|<=|>|<) (\S+)")
E = TypeVar("E", bound=ev.Event)


@dataclass(frozen=True)
class Story:
    """A review with the evidence on both sides of it."""

    review: ReviewView
    attempts: tuple[AttemptView, ...]
    """Of the step when it was asked, the one in question last."""
    after: AttemptView | None
    """The one judged next, where a decision had anything made or judged again."""
    adjustable: Mapping[str, Json]
    """What a retry might change: parameter -> ``min``, ``max``."""
    keys: tuple[str, ...]
    """Under which each of the review's requests was sent, in their order."""

    @property
    def shown(self) -> tuple[AttemptView, ...]:
        """All of them, side by side."""
        return (*self.attempts, self.after) if self.after else self.attempts

    @property
    def failed(self) -> tuple[CriterionView, ...]:
        """The criteria that did not pass when it was asked."""
        criteria = self.attempts[-1].criteria if self.attempts else ()
        return tuple(c for c in criteria if c.verdict != "pass")


@dataclass(frozen=True)
class _Dated:
    at: str
    fact: ev.Event


def reviews_of(entries: Sequence[Entry], known: Sequence[ev.Event]) -> tuple[ReviewView, ...]:
    """Every review of a journal, in the order in which they were asked; ``known`` are its facts."""
    dated = [_Dated(entry.wall, fact) for entry, fact in zip(entries, known, strict=True)]
    return tuple(_review(dated, at) for at in _asked(dated))


def stories_of(
    entries: Sequence[Entry], known: Sequence[ev.Event], reviews: Iterable[ReviewView]
) -> tuple[Story, ...]:
    """The stories of these reviews of a journal."""
    dated = [_Dated(entry.wall, fact) for entry, fact in zip(entries, known, strict=True)]
    wanted = {review.review_id: review for review in reviews}
    found = []
    for at in _asked(dated):
        asked = dated[at].fact
        assert isinstance(asked, ev.ReviewRequested)
        if review := wanted.get(asked.review_id):
            found.append(_story(dated, at, review))
    return tuple(found)


def _asked(dated: Sequence[_Dated]) -> list[int]:
    """Where each review stands in the journal."""
    return [at for at, one in enumerate(dated) if isinstance(one.fact, ev.ReviewRequested)]


def _story(dated: Sequence[_Dated], at: int, review: ReviewView) -> Story:
    mine = [d.fact for d in dated[:at] if getattr(d.fact, "step", None) == review.step]
    after = None
    if review.followed and review.followed.attempt:
        end = _followed_at(dated, at, review.step, review.decisions[-1])
        until = [d.fact for d in dated[: end + 1] if getattr(d.fact, "step", None) == review.step]
        after = next(a for a in attempts_of(until) if a.number == review.followed.attempt)
    document = _document([d.fact for d in dated[:at]], review.step)
    keys = tuple(key for key, _ in _requests(dated[at:], review.review_id))
    return Story(review, attempts_of(mine), after, mapping(document.get("adjustable")), keys)


def _document(known: Iterable[ev.Event], step: str) -> Mapping[str, Json]:
    """The step in the plan that held last."""
    plans = [f.plan for f in known if isinstance(f, ev.SessionStarted | ev.PlanAccepted)]
    steps = mapping(mapping(plans[-1]).get("steps")) if plans else {}
    return mapping(steps.get(step))


def _declared(known: Iterable[ev.Event], step: str) -> dict[tuple[Json, Json], Criterion]:
    """The gate's criteria by metric and kind; none where an older journal has them otherwise."""
    try:
        gate = decode(Gate, _document(known, step).get("gate") or {"criteria": ()})
    except (TypeError, ValueError):
        return {}
    return {(c.metric, c.kind): c for c in gate.criteria}


def _review(dated: Sequence[_Dated], at: int) -> ReviewView:
    asked = dated[at].fact
    assert isinstance(asked, ev.ReviewRequested)
    before, since = dated[:at], dated[at:]
    answers = [
        (d.at, d.fact)
        for d in since
        if isinstance(d.fact, ev.ReviewDecided) and d.fact.review_id == asked.review_id
    ]
    judged = _newest(before, asked.step, ev.GateJudged)
    finished = _newest(before, asked.step, ev.StepFinished)
    decisions = tuple(decision for _, decision in answers)
    view = ReviewView(
        asked.review_id,
        asked.step,
        asked.attempt,
        asked.reason,
        asked.path,
        decisions,
        options=asked.allowed,
        verdict=judged.verdict if judged and judged.attempt == asked.attempt else "",
        asked_at=dated[at].at,
        decided_at=tuple(moment for moment, _ in answers),
        requests=tuple(_requests(since, asked.review_id).values()),
        question=finished.question if finished and finished.attempt == asked.attempt else "",
    )
    if decisions and _is_judged_again(decisions[-1], judged):
        return replace(view, followed=_followed(dated, at, decisions[-1], judged))
    return view


def _newest(dated: Sequence[_Dated], step: str, kind: type[E]) -> E | None:
    found = (d.fact for d in reversed(dated) if isinstance(d.fact, kind))
    return next((fact for fact in found if getattr(fact, "step", None) == step), None)


def _is_judged_again(decided: ev.ReviewDecided, judged: ev.GateJudged | None) -> bool:
    at_smoke = judged is not None and judged.look == SMOKE
    return decided.action in MAKES_ANEW or (decided.action == "override" and at_smoke)


def _requests(since: Iterable[_Dated], review_id: str) -> dict[tuple[str, int], RequestView]:
    """By key and number, in the order in which they were sent."""
    found: dict[tuple[str, int], RequestView] = {}
    for one in since:
        match one.fact:
            case ev.RequestSent(review_id=of) as sent if of == review_id:
                found[sent.key, sent.number] = RequestView(one.at, sent.usd, False, 0, 0)  # noqa: FBT003
            case ev.RequestSettled(review_id=of) as end if of == review_id:
                before = found.get((end.key, end.number))
                sent_at = before.sent_at if before else one.at
                tokens = (end.input_tokens, end.output_tokens)
                found[end.key, end.number] = RequestView(sent_at, end.usd, True, *tokens)  # noqa: FBT003
    return found


def _followed(
    dated: Sequence[_Dated], at: int, decided: ev.ReviewDecided, judged: ev.GateJudged | None
) -> Followed:
    asked = dated[at].fact
    assert isinstance(asked, ev.ReviewRequested)
    end = _followed_at(dated, at, asked.step, decided)
    if end < 0:
        return Followed("pending")
    now = dated[end].fact
    assert isinstance(now, ev.GateJudged)
    effects = tuple(compare(_criteria(dated, at, judged), _criteria(dated, end, now)))
    declared = _declared([d.fact for d in dated[:at]], asked.step)
    outcome = outcome_of(declared, judged, now) if judged else "unchanged"
    return Followed(outcome, now.attempt, now.look, now.verdict, dated[end].at, effects)


def _followed_at(dated: Sequence[_Dated], at: int, step: str, decided: ev.ReviewDecided) -> int:
    """Where the last verdict stands on the attempt judged next; -1 where none was since.

    It counts up to the next review of the step: that one has a story of its own.
    """
    found = -1
    is_decided = False
    for place, one in enumerate(dated[at + 1 :], at + 1):
        match one.fact:
            case ev.ReviewDecided() as fact if fact == decided:
                is_decided = True
            case ev.ReviewRequested(step=of) if is_decided and of == step:
                break
            case ev.GateJudged(step=of) as fact if is_decided and of == step:
                first = dated[found].fact if found >= 0 else fact
                assert isinstance(first, ev.GateJudged)
                found = place if fact.attempt == first.attempt else found
    return found


def _criteria(
    dated: Sequence[_Dated], at: int, judged: ev.GateJudged | None
) -> tuple[CriterionView, ...]:
    if judged is None:
        return ()
    finished = _newest(dated[:at], judged.step, ev.StepFinished)
    metrics = finished.metrics if finished else ()
    return tuple(criterion_view(c, metrics) for c in judged.criteria)


def compare(before: Iterable[CriterionView], after: Iterable[CriterionView]) -> Iterator[Effect]:
    """Each criterion of two verdicts, one line each, in the order of the first."""
    old = {(c.metric, c.kind, c.threshold): c for c in before}
    new = {(c.metric, c.kind, c.threshold): c for c in after}
    for key in dict.fromkeys((*old, *new)):
        was, now = old.get(key), new.get(key)
        yield Effect(was, now, _change(was, now))


def _change(was: CriterionView | None, now: CriterionView | None) -> str:
    if was is None or now is None:
        return "unchanged"
    if was.verdict == "pass":
        return "unchanged" if now.verdict == "pass" else "failed"
    if now.verdict == "pass":
        return "passed"
    old, new = _excess(was), _excess(now)
    if old is None or new is None:
        return "unchanged" if old is new else "worse" if new is None else "better"
    return "better" if new < old else "worse" if new > old else "unchanged"


def _excess(c: CriterionView) -> float | None:
    """By how much it violates its threshold, its confidence where that alone does; None: unread."""
    if real(c.value) is None:
        return None
    over = (_beyond(c.threshold, x) for x in map(real, (c.value, c.bound)) if x is not None)
    return next((far for far in over if far > 0), 0.0)


def _beyond(threshold: str, reading: float) -> float:
    far = [b - reading if sign in (">", ">=") else reading - b for sign, b in bounds(threshold)]
    return max(0.0, *far, 0.0)


def bounds(threshold: str) -> list[tuple[str, float]]:
    """Sign and number of each comparison in ``Criterion.threshold``."""
    found = []
    for sign, text in _BOUND.findall(threshold):
        with suppress(ValueError):
            found.append((sign, float(text)))
    return found
