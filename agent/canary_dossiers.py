"""Two dossiers of the same shape as a real one, whose right answers are known.

Rule: step, gate, criteria, reason, vocabulary and money are the real review's; readings, rows,
counts, certificates and history are made here, so that one of the two can only be refused and the
other is plainly what a retry, a recalibration or an answered question is for. Nothing in them says
what they are: what the real one holds they hold, in the same words and with the same keys, and what
it does not hold they do not. The same review gives the same two, over any kill and resume.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent import comparing
from agent.answer import open_actions
from agent.canary_readings import (
    doubted,
    judged,
    metrics_of,
    reasons_of,
    score_bound,
    shuffler,
    similar,
    too_few,
)
from runbook.contract import Attempt, EarlierReview, Instrument, Json, Range, ReviewRequest

PLAIN = {
    "gate failed": "retry",
    "smoke": "retry",
    "instrument": "recalibrate",
    "question": "proceed",
}
"""Reason -> the answer that the known-good one is for; of other reasons none releases anything."""

_FINE = (
    ("Name three colours of the rainbow.", "Red, green and violet."),
    ("What is the opposite of 'early'?", "Late."),
    ("How many minutes are in two hours?", "There are 120 minutes in two hours."),
    ("Write a short thank-you note to a neighbour.", "Thank you for watering my plants, Ruth."),
    ("Which season follows winter?", "Spring follows winter."),
    ("Give one use of a thermometer.", "A thermometer shows how warm a room is."),
    ("Translate 'good morning' into French.", "Bonjour."),
    ("Sort these by size: melon, cherry, apple.", "Cherry, apple, melon."),
    ("What do bees make?", "Bees make honey."),
    ("Name a tool for cutting wood.", "A saw."),
    ("Complete: the sun rises in the ...", "east."),
    ("What is 9 plus 6?", "15"),
    ("Name two animals that lay eggs.", "Hens and turtles."),
    ("What is ice made of?", "Ice is frozen water."),
    ("Name a planet with rings.", "Saturn."),
    ("What is the past tense of 'go'?", "Went."),
    ("Give a reason to wear a helmet.", "It protects the head in a fall."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("Name a dairy product.", "Butter."),
    ("Write a title for a story about a lost key.", "The Door That Waited"),
)
_BROKEN = (
    "and and and and and and and and and and and and and and and and",
    "Name a river. Name a river. Name a river. Name a river. Name a river.",
    "The list is the list is the list is the list is the list is the list is",
    "1. one 1. one 1. one 1. one 1. one 1. one 1. one 1. one",
    "Q: What is it?\nA: What is it?\nQ: What is it?\nA: What is it?",
    "the of the of the of the of the of the of the of the of the of the",
    "%%%% %%%% %%%% %%%% %%%% %%%% %%%% %%%%",
    "said said said said said said said said said said said said said said",
    "no no no no no no no no no no no no no no no no no no no no",
    "It was. It was. It was. It was. It was. It was. It was. It was.",
)
_ROWS = 10
_LABELLED = 60
"""Rows behind a made certificate, where the real one's are fewer or unknown."""
_FEW = 30
_WORTH = {"sensitivity": (0.36, 0.97), "specificity": (0.08, 0.98)}
"""Of a broken instrument and of a sound one."""
_AREAS = (0.37, 0.98)
_OK = "ok"
_BELOW = "below its bounds"
"""The two states of a certificate that can be read, as ``runbook.review_facts`` words them."""
_ADVISED = "by the readings so far this may bring it nearer to its threshold"
_ASKED = "Can the session go on from these readings, and how?"
"""In place of a step's own question, where the gate's review was asked for another reason."""


@dataclass(frozen=True)
class Known:
    """A dossier whose right answer is known."""

    kind: str
    """bad or good."""
    request: ReviewRequest
    """With the real review's id, path and account."""


def make_pair(real: ReviewRequest) -> tuple[Known, ...]:
    """The known-bad and the known-good one; none where no answer could release anything."""
    plain = PLAIN.get(real.reason, "")
    if plain not in open_actions(real):
        return ()
    make = _question if plain == "proceed" else _recalibration if plain != "retry" else _retry
    return Known("bad", make(real, False)), Known("good", make(real, True))  # noqa: FBT003 - bad, good


def _retry(real: ReviewRequest, good: bool) -> ReviewRequest:  # noqa: FBT001 - one of two kinds
    """Good: certified instruments, broken rows, a reading that nears its threshold. Bad: an
    instrument that flags fine rows, and a reading that every change left as it was or made worse.
    """
    name = _failing(real.criteria)
    at_work = _at_work(real)
    runs = [
        _run(real, run, name, place / len(at_work), good=good, last=place == len(at_work))
        for place, run in enumerate(at_work, 1)
    ]
    is_causeless = good and not real.adjustable and real.reason != "smoke"
    told = _lost_batch() if is_causeless else _finished(real) if good else _no_help(real, name)
    needed = is_causeless or not (good or real.certificates or real.flagged)
    return replace(
        _made(real, runs, name, good=good),
        verdict=runs[-1].verdict,
        flagged=tuple(_rows(real, len(real.flagged), broken=good)),
        samples=tuple(_rows(real, len(real.samples), broken=False, place=1)),
        log_tail=_log(real, told, needed=needed),
        question=_ASKED if real.question else "",
    )


def _lost_batch() -> str:
    cause = "batch 3 of 8 was lost when another program took the memory; that one is gone"
    return f"{cause}; a smoke since then ended clean"


def _finished(real: ReviewRequest) -> str:
    return f"{real.step}: attempt {real.attempt} ended"


def _no_help(real: ReviewRequest, name: str) -> str:
    told = f"{name} was read again with no change at all and with each change: no difference"
    return f"{told}; the flagged rows were read by two people as good" if real.flagged else told


def _at_work(real: ReviewRequest) -> list[Attempt]:
    """The attempts up to the one in question; what is known of it, where none stands there."""
    known = [a for a in real.attempts if a.attempt <= real.attempt]
    only = Attempt(real.attempt, 1, real.verdict, real.reasons, {}, criteria=real.criteria)
    return known or [replace(only, metrics=real.metrics)]


def _made(real: ReviewRequest, runs: Sequence[Attempt], name: str, *, good: bool) -> ReviewRequest:
    """What follows from the attempts: they stand as all of the history of this step."""
    last = runs[-1]
    readings = {str(c["metric"]): c.get("value") for c in last.criteria}
    return replace(
        real,
        attempts=tuple(runs),
        criteria=last.criteria,
        reasons=last.reasons,
        metrics=last.metrics,
        certificates=_certificates(real, name, good=good),
        earlier=tuple(_earlier(real, runs)),
        summary=similar(real.summary, _salt(real), readings),
    )


def _failing(criteria: Sequence[Mapping[str, Json]]) -> str:
    """The criterion that a dossier is about: one that fails, a rate before anything else."""
    failing = [c for c in criteria if c.get("verdict") == "fail"] or list(criteria)
    rates = [c for c in failing if c.get("kind") == "rate"]
    return str((rates or failing)[0]["metric"]) if failing else "reading"


def _run(
    real: ReviewRequest, run: Attempt, name: str, share: float, *, good: bool, last: bool
) -> Attempt:
    """An attempt with readings of this kind; ``share`` is how far the series has come."""
    helped = good and last and real.reason == "smoke"
    far = 1.0 + (1.0 - share) * 2 + (0.0 if helped else 0.4) if good else 3.0 + 2.0 * share
    units = {m.name: m.denominator for m in run.metrics}
    criteria = tuple(
        _reading(c, far if str(c.get("metric")) == name else 0.0, units, helped=helped)
        for c in run.criteria or real.criteria
    )
    verdicts = {c["verdict"] for c in criteria}
    worst = (v for v in ("fail", "underpowered") if v in verdicts)
    planned = comparing.leaves(_at_work(real)[0])
    changes = dict(_moved(run, planned, real.adjustable, share))
    return replace(
        run,
        verdict=next(worst, "underpowered"),
        reasons=reasons_of(criteria),
        criteria=criteria,
        metrics=metrics_of(run, criteria, _salt(real)),
        changes=changes,
        params={**run.params, **{n: v for n, v in changes.items() if n in run.params}},
    )


def _reading(
    criterion: Mapping[str, Json], far: float, units: Mapping[str, str], *, helped: bool
) -> dict[str, Json]:
    n = criterion.get("n")
    if far and helped and criterion.get("kind") == "rate" and isinstance(n, int):
        return too_few(criterion, n)
    return judged(criterion, far, units.get(str(criterion.get("metric")), ""))


def _moved(
    run: Attempt, planned: Mapping[str, Json], adjustable: Mapping[str, Range], share: float
) -> Iterator[tuple[str, Json]]:
    """What may be adjusted, so far on its way to the upper end; the rest as it was."""
    for name, was in run.changes.items():
        limits = adjustable.get(name)
        if limits is None:
            yield name, was
            continue
        value = limits.min + (limits.max - limits.min) * share / 2
        made = math.floor(value) if isinstance(was, int) else round(value, 6)
        # A change that changes nothing would be none.
        yield name, was if made == planned.get(name) else made


def _earlier(real: ReviewRequest, runs: Sequence[Attempt]) -> Iterator[EarlierReview]:
    """Other steps' as they are; what was told of this one is told of the made readings."""
    made = {run.attempt: run for run in runs}
    for one in real.earlier:
        if one.step != real.step:
            yield one
            continue
        was, now = made.get(one.attempt), made.get(one.attempt + 1)
        better, worse = comparing.moves(was, now) if was and now else ([], [])
        ran = "worse" if worse else "better" if better else "unchanged"
        yield replace(
            one,
            changes={n: now.changes.get(n, v) if now else v for n, v in one.changes.items()},
            reason=_ADVISED,
            outcome=one.outcome if one.outcome in ("none", "pending") else ran,
            effect=(*better, *worse) if one.effect else (),
        )


def _certificates(real: ReviewRequest, name: str, *, good: bool) -> tuple[Mapping[str, Json], ...]:
    """One for each of the real ones."""
    return tuple(_certificate(of, name, good=good) for of in real.certificates)


def _certificate(of: Mapping[str, Json], reading: str, *, good: bool) -> dict[str, Json]:
    """As ``runbook.review_facts`` tells of one; an area only where the real one has one."""
    # What stands for a certificate that cannot be read bears the name of a step.
    is_read = "sensitivity" in of
    made: dict[str, Json] = {
        "name": of.get("name") if is_read else reading.removesuffix("_rate"),
        "state": _OK if good else _BELOW,
    }
    for side, shares in _WORTH.items():
        n = _labelled(of, side)
        hits = round(n * shares[good])
        made[side] = hits / n
        made[f"{side}_bound"] = score_bound(hits, n, is_upper=False)
        made[f"{side}_n"] = n
    return {**made, "auc": _AREAS[good] if of.get("auc") is not None else None}


def _labelled(of: Mapping[str, Json], side: str) -> int:
    n = of.get(f"{side}_n")
    return n if isinstance(n, int) and n >= _FEW else _LABELLED


def _recalibration(real: ReviewRequest, good: bool) -> ReviewRequest:  # noqa: FBT001 - see _retry
    """Good: the certificate is of other code, and nothing else is wrong. Bad: the instrument fails
    its labelled rows, and another calibration of the same code said so too.
    """
    name = _failing([c for c in real.criteria if c.get("verdict") == "invalid"] or real.criteria)
    state = Instrument.UNCALIBRATED if good else Instrument.BROKEN
    vouched = _certificates(real, name, good=good) or (_certificate({}, name, good=good),)
    why = f"{vouched[0]['name']}: {_stale() if good else _failed(vouched[0])}"
    attempts = [_in_doubt(real, a, state, why) for a in real.attempts or _at_work(real)]
    mended = "the detector's file was mended after its certificate was made; its labelled rows lie"
    told = (
        f"{mended} ready, and it was not yet read against them"
        if good
        else "calibrated twice on the same labelled rows and the same code: the same figures"
    )
    return replace(
        _made(real, attempts, name, good=good),
        flagged=tuple(_rows(real, len(real.flagged), broken=good)),
        samples=tuple(_rows(real, len(real.samples), broken=False, place=1)),
        log_tail=_log(real, told),
        question=_ASKED if real.question else "",
    )


def _stale() -> str:
    return "the certificate is stale: its code changed since, by a mend; measure what is there now"


def _failed(of: Mapping[str, Json]) -> str:
    figures = "; ".join(
        f"{side} {round(of[side] * of[f'{side}_n'])} of {of[f'{side}_n']}"
        for side in ("sensitivity", "specificity")
    )
    return f"below its bound, with the certified code: {figures}; mend the detector"


def _in_doubt(real: ReviewRequest, run: Attempt, state: Instrument, why: str) -> Attempt:
    """The attempt with a number wherever one could not be believed, and with this for the cause."""
    units = {m.name: m.denominator for m in run.metrics}
    criteria = tuple(
        doubted(c, state.value, why, units.get(str(c.get("metric")), "")) for c in run.criteria
    )
    in_doubt = {str(c["metric"]) for c in criteria if c.get("verdict") == "invalid"}
    metrics = metrics_of(run, criteria, _salt(real))
    marked = (replace(m, instrument=state, note=why) if m.name in in_doubt else m for m in metrics)
    return replace(run, criteria=criteria, metrics=tuple(marked), reasons=reasons_of(criteria))


def _question(real: ReviewRequest, good: bool) -> ReviewRequest:  # noqa: FBT001 - see _retry
    """The same words, over rows and certificates that bear the readings out or belie them."""
    criteria = tuple(judged(c, far=0.0) for c in real.criteria)
    readings = {str(c["metric"]): c.get("value") for c in criteria}
    return replace(
        real,
        question=_asked(real, good=good),
        criteria=criteria,
        reasons=reasons_of(criteria),
        certificates=_certificates(real, _failing(real.criteria), good=good),
        flagged=tuple(_rows(real, len(real.flagged), broken=not good, place=1)),
        samples=tuple(_rows(real, len(real.samples), broken=not good)),
        log_tail=_log(real, _finished(real)),
        earlier=tuple(_earlier(real, real.attempts)),
        summary=similar(real.summary, _salt(real), readings),
    )


def _asked(real: ReviewRequest, *, good: bool) -> str:
    """The step's question; it says itself what the rows are like only where none stand below."""
    rest = "The readings rest on the instruments whose certificates are given. "
    rows = "The rows below are of what the later steps would build on. "
    kind = "all can be used" if good else "not one can be used, since all are one word repeated"
    said = f"Two people read 30 rows of what the later steps would build on: {kind}. "
    shown = rows if real.samples or real.flagged else said
    return (
        f"Every criterion holds. {rest if real.certificates else ''}{shown}"
        "May the session go on with them?"
    )


def _log(real: ReviewRequest, told: str, *, needed: bool = False) -> str:
    """As many lines as the real one has, this the last; none where it has none, unless needed."""
    lines = real.log_tail.count("\n") + 1 if real.log_tail else int(needed)
    before = [f"{real.step}: part {part} of {lines - 1} done" for part in range(1, lines)]
    return "\n".join([*before, told][:lines])


def _rows(
    real: ReviewRequest, count: int, *, broken: bool, place: int = 0
) -> Iterator[dict[str, Json]]:
    """So many of the first or the second ten rows, the same for the same review."""
    order = shuffler(_salt(real))
    fine = sorted(_FINE, key=order)[place * _ROWS :][:_ROWS]
    spoilt = sorted(_BROKEN, key=order)
    for (instruction, response), said in [*zip(fine, spoilt, strict=True)][:count]:
        yield {"instruction": instruction, "response": said if broken else response}


def _salt(real: ReviewRequest) -> str:
    return f"{real.run_id}/{real.review_id}"
