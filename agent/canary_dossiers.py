"""Two dossiers of the same shape as a real one, whose right answers are known.

Rule: step, gate, criteria, reason, vocabulary and money are the real review's; readings, rows,
certificates and history are made here, so that one of the two can only be refused and the other
is plainly what a retry, a recalibration or an answered question is for. Nothing in them says what
they are. The same review gives the same two, over any kill and resume.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.answer import open_actions
from runbook.artifacts import canonical_json
from runbook.contract import Attempt, EarlierReview, Instrument, Json, Metric, Range, ReviewRequest

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
    base = replace(real, summary={}, log_tail="", earlier=_elsewhere(real))
    return Known("bad", make(base, False)), Known("good", make(base, True))  # noqa: FBT003 - bad, good


def _elsewhere(real: ReviewRequest) -> tuple[EarlierReview, ...]:
    """Of other steps: what was told of this one would not agree with other readings."""
    return tuple(e for e in real.earlier if e.step != real.step)


def _retry(real: ReviewRequest, good: bool) -> ReviewRequest:  # noqa: FBT001 - one of two kinds
    """Good: certified instruments, true rows, one reading that nears its threshold. Bad: a broken
    instrument that flags fine rows, and a reading that every change left as it was or made worse.
    """
    name = _failing(real.criteria)
    smoke = real.reason == "smoke"
    at_work = [a for a in real.attempts if a.attempt <= real.attempt] or [_only(real)]
    runs = [
        _run(real, run, name, place / len(at_work), good=good, last=place == len(at_work))
        for place, run in enumerate(at_work, 1)
    ]
    last = runs[-1]
    made = replace(
        real,
        attempts=tuple(runs),
        verdict=last.verdict,
        criteria=last.criteria,
        reasons=last.reasons,
        metrics=last.metrics,
        certificates=_certificates(real, name, good=good),
        flagged=tuple(_rows(real, broken=good)),
        samples=tuple(_rows(real, broken=False, place=1)),
        question="",
    )
    if good:
        cause = "batch 3 of 8 was lost when another program took the memory; that one is gone"
        why = "" if real.adjustable or smoke else f"{cause}; a smoke since then ended clean"
        return replace(made, log_tail=why)
    told = f"{name} was read again with no change at all and with each change: no difference"
    return replace(made, log_tail=f"{told}; the flagged rows were read by two people as good")


def _only(real: ReviewRequest) -> Attempt:
    return Attempt(real.attempt, 1, real.verdict, real.reasons, {}, criteria=real.criteria)


def _failing(criteria: Sequence[Mapping[str, Json]]) -> str:
    """The criterion that a dossier is about: one that fails, a rate before anything else."""
    failing = [c for c in criteria if c.get("verdict") == "fail"] or list(criteria)
    rates = [c for c in failing if c.get("kind") == "rate"]
    return str((rates or failing)[0]["metric"]) if failing else "reading"


def _run(
    real: ReviewRequest, run: Attempt, name: str, share: float, *, good: bool, last: bool
) -> Attempt:
    """An attempt with readings of this kind; ``share`` is how far the series has come."""
    passes = good and last and real.reason == "smoke"
    readings = run.criteria or real.criteria
    far = 0.0 if passes else 1.0 + (1.0 - share) * 2 + 0.4 if good else 3.0 + 2.0 * share
    criteria = tuple(_judged(c, far=far if str(c.get("metric")) == name else 0.0) for c in readings)
    reasons = tuple(f"{c['metric']}: {c['reason']}" for c in criteria if c["verdict"] != "pass")
    verdict = "fail" if reasons else run.verdict if run.verdict != "fail" else "underpowered"
    changes = dict(_moved(real.adjustable, share)) if run.changes else {}
    return replace(
        run,
        verdict=verdict,
        reasons=reasons,
        criteria=criteria,
        metrics=tuple(_metric(c) for c in criteria),
        changes=changes,
        params={**run.params, **{n: v for n, v in changes.items() if n in run.params}},
    )


def _moved(adjustable: Mapping[str, Range], share: float) -> Iterator[tuple[str, Json]]:
    """The first parameter, so far on its way to the upper end; within its range."""
    for name, limits in sorted(adjustable.items())[:1]:
        value = limits.min + (limits.max - limits.min) * share / 2
        whole = float(limits.min).is_integer() and limits.max - limits.min >= 2
        yield name, math.floor(value) if whole else round(value, 6)


def _judged(criterion: Mapping[str, Json], far: float) -> dict[str, Json]:
    """The criterion with another reading: passing where ``far`` is 0, else so many times off."""
    if not far and criterion.get("verdict") == "pass":
        return dict(criterion)
    sign, bound = _threshold(str(criterion.get("threshold", "")))
    n = criterion.get("n")
    # Away from the threshold: a count that is rounded to its other side would belie the verdict.
    away = math.ceil if sign.startswith("<") == bool(far) else math.floor
    value = _violating(sign, bound, far) if far else _satisfying(sign, bound)
    if criterion.get("kind") in ("rate", "p_value", "power", "instrument"):
        value = min(1.0, max(0.0, value))
    if criterion.get("kind") == "rate" and isinstance(n, int) and n > 0:
        value = min(n, away(value * n)) / n
    elif criterion.get("kind") == "census":
        value = float(away(value))
    holds = "does not satisfy" if far else "satisfies"
    told = f"{value:.4g} {holds} {criterion.get('threshold', 'the threshold')}"
    verdict = "fail" if far else "pass"
    return {
        **criterion,
        "value": value,
        "verdict": verdict,
        "reason": told,
        "bound": None,
        "thin": False,
    }


def _threshold(text: str) -> tuple[str, float]:
    """The first side of a declared comparison, as ``Criterion.threshold`` words it."""
    sign, _, rest = text.partition(" ")
    try:
        return sign, float(rest.partition(" ")[0])
    except ValueError:
        return "<", 1.0


def _violating(sign: str, bound: float, far: float) -> float:
    """A value on the wrong side, further off the greater ``far`` is."""
    if sign.startswith("<"):
        return bound + max(abs(bound), 1.0 if bound == 0 else 0.0) * (far - 0.9)
    return bound - abs(bound) * min(0.9, far / 6) if bound else -far


def _satisfying(sign: str, bound: float) -> float:
    """A value that clears the threshold well."""
    if sign.startswith("<"):
        return bound * 0.2 if bound >= 0 else bound * 1.5
    return bound * 1.5 if bound >= 0 else bound * 0.5


def _metric(criterion: Mapping[str, Json]) -> Metric:
    value, n = criterion["value"], criterion.get("n")
    counts = criterion.get("kind") == "rate" and isinstance(n, int)
    return Metric(str(criterion["metric"]), value, n, round(value * n) if counts else None)


def _certificates(real: ReviewRequest, name: str, *, good: bool) -> tuple[Mapping[str, Json], ...]:
    """The real ones' names; where there are none, one for the reading in question."""
    names = [str(c.get("name", "")) for c in real.certificates] or [name.removesuffix("_rate")]
    return tuple(_certificate(one, good=good) for one in names)


def _certificate(name: str, *, good: bool) -> dict[str, Json]:
    if good:
        found = {"sensitivity": 0.97, "specificity": 0.97}
        bounds = {"sensitivity_bound": 0.91, "specificity_bound": 0.91}
        return {"name": name, "state": Instrument.OK.value, **found, **bounds}
    found = {"sensitivity": 0.36, "specificity": 0.08}
    bounds = {"sensitivity_bound": 0.21, "specificity_bound": 0.03}
    return {"name": name, "state": Instrument.BROKEN.value, **found, **bounds}


def _recalibration(real: ReviewRequest, good: bool) -> ReviewRequest:  # noqa: FBT001 - see _retry
    """Good: the certificate is of other code, and nothing else is wrong. Bad: the same calibration
    was made twice since, and the instrument fails its labelled rows as before.
    """
    state = Instrument.UNCALIBRATED if good else Instrument.BROKEN
    why = "its code is not the certified one" if good else "it fails its labelled rows"
    attempts = tuple(_in_doubt(a, state, why) for a in real.attempts or (_only(real),))
    certificates = _certificates(real, _failing(real.criteria), good=good)
    last = attempts[-1]
    made = replace(
        real,
        attempts=attempts,
        criteria=last.criteria,
        reasons=last.reasons,
        metrics=last.metrics,
        certificates=tuple({**c, "state": state.value} for c in certificates),
        flagged=tuple(_rows(real, broken=good)),
        samples=tuple(_rows(real, broken=False, place=1)),
        question="",
    )
    if good:
        told = "the detector's file was mended after its certificate was made; 36 labelled rows lie"
        return replace(made, log_tail=f"{told} ready, and it was not yet read against them")
    log = "recalibrated twice on the same labelled rows and the same code: the same figures"
    before = EarlierReview(
        review_id=f"{real.step}-{max(1, real.attempt - 1)}",
        step=real.step,
        attempt=max(1, real.attempt - 1),
        asked="instrument",
        action="recalibrate",
        changes={},
        reason="the certificate may be out of date",
        author="an earlier reviewer",
        outcome="unchanged",
        effect=("sensitivity 0.36 -> 0.36", "specificity 0.08 -> 0.08"),
    )
    return replace(made, log_tail=log, earlier=(*real.earlier, before))


def _in_doubt(run: Attempt, state: Instrument, why: str) -> Attempt:
    """The attempt with a number wherever one could not be believed, and with this for the cause."""
    criteria = tuple(_doubted(c, state, why) for c in run.criteria)
    doubted = {str(c["metric"]): c for c in criteria if c.get("verdict") == "invalid"}
    kept = tuple(m for m in run.metrics if m.name not in doubted)
    made = (replace(_metric(c), instrument=state, note=why) for c in doubted.values())
    reasons = tuple(f"{c['metric']}: {c['reason']}" for c in criteria if c["verdict"] != "pass")
    return replace(run, criteria=criteria, metrics=(*kept, *made), reasons=reasons)


def _doubted(criterion: Mapping[str, Json], state: Instrument, why: str) -> dict[str, Json]:
    if criterion.get("verdict") != "invalid":
        return dict(criterion)
    made = _judged(criterion, far=0.0)
    told = f"read {made['value']:.4g} from an instrument that is {state.value}: {why}"
    return {**made, "verdict": "invalid", "reason": told}


def _question(real: ReviewRequest, good: bool) -> ReviewRequest:  # noqa: FBT001 - see _retry
    """The same words, over rows and certificates that bear the readings out or belie them."""
    asked = (
        "Every criterion holds. The readings rest on the instruments whose certificates are "
        "given, and the rows below were drawn at random from what the later steps would build "
        "on. May the session go on with them?"
    )
    criteria = tuple(_judged(c, far=0.0) for c in real.criteria)
    return replace(
        real,
        question=asked,
        criteria=criteria,
        certificates=_certificates(real, _failing(real.criteria), good=good),
        flagged=(),
        samples=tuple(_rows(real, broken=not good)),
        attempts=tuple(replace(a, changes={}) for a in real.attempts),
    )


def _rows(real: ReviewRequest, *, broken: bool, place: int = 0) -> Iterator[dict[str, Json]]:
    """The first or the second ten rows, the same for the same review."""
    order = _shuffler(f"{real.run_id}/{real.review_id}")
    fine = sorted(_FINE, key=order)[place * _ROWS :][:_ROWS]
    spoilt = sorted(_BROKEN, key=order)
    for (instruction, response), said in zip(fine, spoilt, strict=True):
        yield {"instruction": instruction, "response": said if broken else response}


def _shuffler(salt: str) -> Callable[[Json], bytes]:
    return lambda value: hashlib.sha256(f"{salt}/{canonical_json(value)}".encode()).digest()
