"""A review in a few words, the same ones in every place that names it. Plain text, not escaped."""

from collections.abc import Mapping
from datetime import datetime

from runbook import events as ev
from runbook.budget import dollars
from runbook.contract import Json
from runbook.report import figures as f
from runbook.report.session import Followed, ReviewView
from runbook.state import NEEDS_HUMAN, SMOKE

_ASKED = {
    "gate failed": "the gate failed",
    "closing": "the gate failed and its retries are used up",
    "sentinel": "a sentinel tripped",
    "instrument": "a reading cannot be believed",
    "underpowered": "the sample is too small to decide",
    "smoke": "a smoke did not show the change to help",
    "question": "the step asked a question of its own",
}
_ENDS = {
    "stop": "the session was stopped",
    "override": "the gate was passed by on a person's word",
    "proceed": "the session went on",
    NEEDS_HUMAN: "a person is to decide",
}


def why(review: ReviewView) -> str:
    """Why it was asked, as the end of ``because ...``."""
    return _ASKED.get(review.reason, review.reason)


def who(decided: ev.ReviewDecided) -> str:
    """``Ann (a person)``."""
    # A model's name begins with its provider's, a program's with that of the reviewer ``command``.
    is_program = decided.author.startswith("command ")
    kind = "a person" if decided.person else "a program" if is_program else "a model"
    return f"{decided.author} ({kind})"


def asked(review: ReviewView) -> str:
    """``review a-2, asked because the gate failed``."""
    return f"review {review.review_id}, asked because {why(review)}"


def decision(decided: ev.ReviewDecided) -> str:
    """``retry by Ann (a person): cooler``, on one line."""
    return " ".join(f"{decided.action} by {who(decided)}: {decided.reason}".split())


def state(review: ReviewView) -> str:
    """``open``, or what was decided and by whom."""
    last = review.last
    if review.superseded and not last:
        return "superseded by a changed plan"
    if last is None:
        return "open"
    if review.is_open:
        return f"open: {last.author} wants a person to decide"
    return f"{last.action} by {last.author}"


def options(review: ReviewView) -> tuple[str, ...]:
    """What a person may answer."""
    return tuple(action for action in review.allowed if action != NEEDS_HUMAN)


def ranges(adjustable: Mapping[str, Json]) -> str:
    """``t (0.1 to 1.0), rows (1 to 4)``: what a retry may change, and how far."""
    found = {name: f.mapping(ends) for name, ends in adjustable.items()}
    return ", ".join(f"{name} ({_end(r, 'min')} to {_end(r, 'max')})" for name, r in found.items())


def _end(ends: Mapping[str, Json], name: str) -> str:
    found = f.real(ends.get(name))
    return f.NOTHING if found is None else f"{found:g}"


def cost(review: ReviewView) -> str:
    """``$0.21 (1 request, 11,042 tokens)``; a request whose end nobody saw is named."""
    sent = review.requests
    if not sent:
        return "nothing"
    tokens = sum(r.input_tokens + r.output_tokens for r in sent)
    parts = [f.counted(len(sent), "request"), *([f.counted(tokens, "token")] if tokens else [])]
    told = f"{dollars(review.usd)} ({', '.join(parts)})"
    lost = [r for r in sent if not r.settled]
    if lost:
        at_worst = dollars(sum(r.usd for r in lost))
        told += f"; of {f.counted(len(lost), 'request')} no end is known, so {at_worst} is assumed"
    return told


def followed(review: ReviewView) -> str:
    """What came of it, in a clause; ``-`` while nothing was decided."""
    if review.last is None:
        return f.NOTHING
    if review.followed is None:
        return _ENDS.get(review.last.action, f.NOTHING)
    return aftermath(review.followed)


def aftermath(found: Followed) -> str:
    """``attempt 3 failed, worse than before``."""
    if found.outcome == "pending":
        return "not judged yet"
    name = f"attempt {found.attempt}{_look(found)}"
    if found.outcome == "passed":
        return f"{name} passed"
    verdict = {"fail": "failed", "pass": "was read"}.get(found.verdict, f"is {found.verdict}")
    return f"{name} {verdict}, {helped(found)}"


def _look(found: Followed) -> str:
    return {SMOKE: " (a smoke)", 2: " (extended)"}.get(found.look, "")


def helped(found: Followed) -> str:
    """``worse than before``; where criteria moved both ways, how many."""
    up, down = _moved(found)
    if up and down:
        return f"mixed: {f.counted(up, 'criterion', 'criteria')} better, {down} worse"
    if found.outcome == "unchanged":
        return "neither better nor worse"
    return f"{found.outcome} than before"


def judgement(found: Followed) -> str:
    """Whether it helped, in a short sentence."""
    if found.outcome not in ("passed", "better"):
        return "It did not help"
    return "It helped in part" if _moved(found)[1] else "It helped"


def _moved(found: Followed) -> tuple[int, int]:
    """How many criteria came nearer to passing, and how many went further from it."""
    changes = [effect.change for effect in found.effects]
    up = sum(change in ("better", "passed") for change in changes)
    return up, sum(change in ("worse", "failed") for change in changes)


def headline(review: ReviewView) -> str:
    """The decision and what came of it, in one line."""
    last = review.last
    if last is None:
        return state(review)
    if review.is_open:
        return "a person is to decide"
    told = f"{last.action}; {followed(review)}"
    return f"{told}; superseded by a changed plan" if review.superseded else told


def took(begin: str, end: str) -> str:
    """``after 12 s``; empty where the two times cannot be compared."""
    try:
        seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
    except (TypeError, ValueError):
        return ""
    return f"after {f.duration(seconds)}" if seconds >= 0 else ""
