"""Past decisions at gates, judged again from what is stored: no model, no GPU, nothing written.

The journal holds what each judged attempt measured, and by which gate it was judged; the rows
behind the numbers lie in the workspace. Rule: rows that are not what the journal says are never
read, and whatever rests on them is told as not replayed. Where a later look wrote over them, the
readings that the journal holds are judged, and nothing is derived anew. Judge and instruments are
handed in: this module knows no gate and no phase.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from runbook.codec import encode
from runbook.contract import Gate, Json, Judgement, Metric, Verdict
from runbook.decided import Decided, decisions, is_final, shown_verdict
from runbook.errors import CorruptError, RunbookError
from runbook.evidence import Evidence, Fault, told
from runbook.journal import Entry, facts
from runbook.workspace import Workspace

Judge = Callable[[Gate, tuple[Metric, ...], Path | None, bool], Judgement]
"""Gate, metrics, the folder that their evidence is relative to (None: nothing is derived anew), and
whether the sample is final."""


@dataclass(frozen=True)
class Reading:
    """What instruments read, and the folder that the evidence is relative to."""

    metrics: tuple[Metric, ...]
    root: Path


Remeasure = Callable[[Decided], Reading]
"""A step's own measurement, from its stored rows. Raises RunbookError: it cannot be made."""


@dataclass(frozen=True)
class Rules:
    """What past decisions are judged by now."""

    judge: Judge
    gates: Mapping[str, Gate | None] | None = None
    """Of each step of a changed runbook; None: each decision by the gate on record."""
    remeasures: Mapping[str, Remeasure] = field(default_factory=dict)
    """By a step's function; what stands there is measured anew."""


@dataclass(frozen=True)
class Compared:
    """One criterion, before and after: as the journal holds it, None where there was none."""

    metric: str
    before: Mapping[str, Json] | None
    after: Mapping[str, Json] | None

    @property
    def flips(self) -> bool:
        """Whether it speaks for another verdict than it did."""
        return _said(self.before) != _said(self.after)

    @property
    def changed(self) -> bool:
        """Whether anything of it differs, be it its reading or its threshold."""
        if self.before is None or self.after is None:
            return True
        texts = any(self.before.get(k) != self.after.get(k) for k in ("threshold", "thin"))
        numbers = ("value", "bound", "n")
        return (
            self.flips
            or texts
            or any(not _same(self.before.get(k), self.after.get(k)) for k in numbers)
        )


@dataclass(frozen=True)
class Replayed:
    """What became of one past decision."""

    decided: Decided
    after: Judgement | None
    """None: it was not replayed."""
    why: str = ""
    """Why it was not."""
    damaged: bool = False
    """Whether that is because stored bytes are not what was committed."""
    criteria: tuple[Compared, ...] = ()
    readings: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Metrics that an instrument reads otherwise today: before, after."""
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """As people read it; empty where it was not replayed."""
        if self.after is None:
            return ""
        thin = any(c.thin for c in self.after.criteria)
        sentinel = self.after.sentinel_tripped
        return shown_verdict(self.after.verdict.value, sentinel=sentinel, thin=thin)

    @property
    def flips(self) -> bool:
        """Whether the session would have gone another way; a thin pass is a pass."""
        if self.after is None:
            return False
        now = (self.after.verdict.value, self.after.sentinel_tripped)
        return now != (self.decided.judged.verdict, self.decided.judged.sentinel)


def replay(place: Workspace, entries: Sequence[Entry], rules: Rules) -> Iterator[Replayed]:
    """Judge every past decision again, in order. Raises CorruptError as ``decisions`` does."""
    evidence = Evidence(place, facts(entries))
    for decided in decisions(entries):
        yield _replay_one(place, decided, rules, evidence)


def _replay_one(place: Workspace, decided: Decided, rules: Rules, evidence: Evidence) -> Replayed:
    if decided.finished is None:
        return Replayed(decided, None, "the journal holds no readings for it", damaged=True)
    try:
        gate = _gate(decided, rules)
    except CorruptError as error:
        return Replayed(decided, None, error.what)
    if isinstance(gate, str):
        return Replayed(decided, None, gate)
    faults = evidence.faults(decided.finished)
    if damage := [fault for fault in faults if fault.damaged]:
        return Replayed(decided, None, told(damage), damaged=True)
    try:
        reading = _read(place, decided, rules, faults)
    except RunbookError as error:
        why = f"{error.where}: {error.what}" if error.where else error.what
        return Replayed(decided, None, why, damaged=isinstance(error, CorruptError))
    return _judged(decided, gate, reading, rules.judge, faults)


def _gate(decided: Decided, rules: Rules) -> Gate | str:
    """The gate that holds now, or why there is none. Raises CorruptError: it cannot be read."""
    if rules.gates is None:
        return decided.recorded_gate or "its gate is not on record; name a runbook with --spec"
    step = decided.judged.step
    if step not in rules.gates:
        return f"the changed runbook has no step {step!r}"
    return rules.gates[step] or f"the changed runbook declares no gate for {step!r}"


def _read(place: Workspace, decided: Decided, rules: Rules, faults: Sequence[Fault]) -> Reading:
    """The readings on record, or today's. Raises RunbookError: it cannot be measured again."""
    assert decided.finished is not None
    remeasure = rules.remeasures.get(str(decided.document.get("function")))
    if remeasure is None:
        return Reading(decided.finished.metrics, place.root)
    if faults:
        raise RunbookError(f"it cannot be measured again: {told(faults)}")
    return remeasure(decided)


def _judged(
    decided: Decided, gate: Gate, reading: Reading, judge: Judge, faults: Sequence[Fault]
) -> Replayed:
    assert decided.finished is not None
    final = is_final(gate, decided.finished, decided.look_before)
    if faults:
        known = _on_record(decided)
        if lost := sorted({c.metric for c in gate.criteria} - {m.name for m in known}):
            why = f"{', '.join(lost)} cannot be derived: {told(faults)}"
            return Replayed(decided, None, why)
        after = judge(gate, known, None, final)
    else:
        after = judge(gate, reading.metrics, reading.root, final)
    stored = {m.name: m.value for m in decided.finished.metrics}
    return Replayed(
        decided,
        after,
        criteria=compare(decided.judged.criteria, [encode(c) for c in after.criteria]),
        readings={
            m.name: (stored.get(m.name), m.value)
            for m in reading.metrics
            if m.name not in stored or not _same(stored[m.name], m.value)
        },
        notes=(f"by the readings on record: {told(faults)}",) if faults else (),
    )


def _on_record(decided: Decided) -> tuple[Metric, ...]:
    """What was measured, and what the gate derived from it then; no rows behind either.

    What the gate could not read then is not among them: a verdict is all that is left of it.
    """
    assert decided.finished is not None
    stored = tuple(replace(m, evidence="") for m in decided.finished.metrics)
    found = {metric.name for metric in stored}
    derived = []
    for criterion in decided.judged.criteria:
        name = str(criterion.get("metric"))
        value, n, bound = (criterion.get(field) for field in ("value", "n", "bound"))
        invalid = criterion.get("verdict") == Verdict.INVALID.value
        if value is None or invalid or name in found:
            continue
        kind = criterion.get("kind")
        counted = n is not None and (kind == "rate" or (kind == "control" and bound is not None))
        hits = round(value * n) if counted else None
        found.add(name)
        derived.append(Metric(name, value, n, hits, bound=bound))
    return (*stored, *derived)


def compare(
    before: Sequence[Mapping[str, Json]], after: Sequence[Mapping[str, Json]]
) -> tuple[Compared, ...]:
    """Criteria in pairs; of two on one metric, the first goes with the first."""
    old, new = _numbered(before), _numbered(after)
    return tuple(
        Compared(key[0], old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new])
    )


def _numbered(criteria: Sequence[Mapping[str, Json]]) -> dict[tuple[str, int], Mapping[str, Json]]:
    found: dict[tuple[str, int], Mapping[str, Json]] = {}
    for criterion in criteria:
        name = str(criterion.get("metric", ""))
        found[name, sum(key[0] == name for key in found)] = criterion
    return found


def _said(criterion: Mapping[str, Json] | None) -> str:
    """A criterion that is not there holds nobody up, as one that passed."""
    return "pass" if criterion is None else str(criterion.get("verdict", ""))


def _same(before: Json, after: Json) -> bool:
    """Equal readings; a number derived by another version of a library may differ in its end."""
    if isinstance(before, int | float) and isinstance(after, int | float):
        return math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-12)
    return bool(encode(before) == encode(after))
