"""What an edited runbook means for a session under way: kept, judged again or made anew. Pure.

Rule: a step is made anew where, and only where, a changed field reaches its bytes, directly or
through the steps it reads. A changed gate judges the same bytes again. Changed code makes anew
what has begun and is not done; what passed stays, made with earlier code. But a certificate of
instruments that are other ones now is made anew where a step that is not done reads it. What only
affects throughput or place is no part of the documents that are compared, so it changes nothing.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from runbook import events as ev
from runbook.contract import Json
from runbook.errors import ConfigError
from runbook.fingerprint import (
    Difference,
    comparable,
    differences,
    fingerprint,
    plan_document,
    recorded_plan,
)
from runbook.machine import replay
from runbook.next_act import params_of
from runbook.plan import Plan, PlannedStep
from runbook.state import CERTIFICATE, State, Status, StepState

_SESSION_WIDE = ("seed", "model", "engine")
"""Fields of a plan document that reach the bytes of every step."""
_RULES = ("retries", "review_after", "rerun_from", "adjustable", "adjustments")
"""Fields of a step that say what follows a failure."""
_FIXED = ("function", "output", "phase")
"""Fields of a step that make it another step."""
_DONE = (Status.FINISHED, Status.JUDGED, Status.PASSED)
_KEPT = (Status.PASSED, Status.SKIPPED)
"""What a fix in a later step's code must not throw away."""
_SHARD = re.compile(r"shard-(\d+)/")


class Fate(Enum):
    """What becomes of a step, or a shard, under the changed plan."""

    REUSE = "reuse"
    REJUDGE = "rejudge"
    """Its bytes stay, its gate is judged again."""
    REDO = "redo"
    """It was not finished, so it runs anyway; an attempt under way goes on where it was."""
    INVALIDATED = "invalidated"
    """It had begun, and a changed field reaches its bytes."""
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Shards:
    """A run of shards of one fate, numbered from 1, both ends included."""

    first: int
    last: int
    fate: Fate


@dataclass(frozen=True)
class StepChange:
    step: str
    phase: str
    fate: Fate
    fields: tuple[str, ...]
    """What caused it, as ``a.b: old -> new``; empty where nothing changed for this step."""
    through: tuple[str, ...]
    """The inputs by which a change reaches it."""
    seconds: float | None
    """That its newest finished attempt took, without what interruptions cost; None: none yet."""
    shards: tuple[Shards, ...] = ()
    begins_anew: bool = False
    """Whether an acceptance takes back how the step stands."""
    earlier_code: tuple[str, ...] = ()
    """Modules whose source is not the one that what stays of the step was made with."""


@dataclass(frozen=True)
class Comparison:
    fields: tuple[str, ...]
    """Each changed field, as ``a.b: old -> new``, those of code last."""
    refused: tuple[str, ...]
    """Changes that make it another session; where there are any, ``steps`` is empty."""
    steps: tuple[StepChange, ...]
    """In the plan's order."""
    code: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Each module whose source changed -> the steps that run it."""

    def named(self, fate: Fate) -> tuple[str, ...]:
        return tuple(change.step for change in self.steps if change.fate is fate)


@dataclass(frozen=True)
class Acceptance:
    """A person's wish to go on with the changed runbook."""

    reason: str
    author: str


def agreed_plan(known: Iterable[ev.Event]) -> ev.SessionStarted | ev.PlanAccepted | None:
    """The fact that says which plan holds: the newest acceptance, or the session's start."""
    found = None
    for fact in known:
        if isinstance(fact, ev.SessionStarted | ev.PlanAccepted):
            found = fact
    return found


def compare_plan(plan: Plan, known: Sequence[ev.Event]) -> Comparison:
    """What the present plan would change in a session that was begun.

    Raises:
        CorruptError: the plan on record cannot be read.
    """
    agreed = agreed_plan(known)
    if agreed is None:
        return Comparison((), (), ())
    before = agreed.plan
    now = comparable(plan_document(plan), before)
    found = sorted(differences(before, now), key=_is_code)
    fields = tuple(map(str, found)) or _unnamed(agreed.fingerprint, fingerprint(now))
    if refused := tuple(_other_session(before, now, found)):
        return Comparison(fields, refused, ())
    old = recorded_plan(before)
    steps = tuple(_steps(old, plan, replay(old, known), found, known))
    return Comparison(fields, (), steps, _code(found))


def check_same_plan(plan: Plan, known: Sequence[ev.Event], root: Path) -> None:
    """Refuse to go on with other inputs than those on record.

    Args:
        plan: the present one.
        known: the session's facts.
        root: of the workspace, for the commands.

    Raises:
        ConfigError: it names the fields that changed.
    """
    agreed = agreed_plan(known)
    if agreed is None or agreed.fingerprint == plan.fingerprint:
        return
    found = compare_plan(plan, known)
    if found.refused:
        raise _unacceptable(plan, found)
    if not found.fields:
        return
    place = [str(plan.runbook), "--workspace", str(root)]
    options = [part for assignment in plan.overrides for part in ("--set", assignment)]
    raise ConfigError(
        _what_changed(found),
        where=str(plan.runbook),
        fix="undo the change, or see what it would redo:\n"
        f"  {shlex.join(['runbook', 'plan', *place, *options])}\n"
        "and accept it on record:\n"
        f"  {shlex.join(['runbook', 'run', *place, *options, '--accept-changes', 'REASON'])}",
    )


def agree(
    plan: Plan, known: Sequence[ev.Event], root: Path, acceptance: Acceptance | None
) -> ev.PlanAccepted | None:
    """What must be appended before the session goes on with this plan; None where nothing must.

    Raises:
        ConfigError: the plan changed and that was not accepted, cannot be accepted, or there is
            nothing to accept.
    """
    if acceptance is None:
        check_same_plan(plan, known, root)
        return None
    where = "--accept-changes"
    if not acceptance.reason.strip():
        raise ConfigError("an acceptance needs a reason", where=where, fix="say why, in words")
    found = compare_plan(plan, known)
    if not found.fields:
        told = "nothing changed since the plan on record" if known else "no session was begun here"
        raise ConfigError(f"{told}: there is nothing to accept", where=where, fix="leave it out")
    if found.refused:
        raise _unacceptable(plan, found)
    return ev.PlanAccepted(
        reason=acceptance.reason,
        author=acceptance.author,
        changes=found.fields,
        plan=plan_document(plan),
        fingerprint=plan.fingerprint,
        runbook=str(plan.runbook),
        overrides=plan.overrides,
        invalidated=tuple(change.step for change in found.steps if change.begins_anew),
        rejudged=found.named(Fate.REJUDGE),
    )


def _code(found: Iterable[Difference]) -> dict[str, tuple[str, ...]]:
    running: dict[str, tuple[str, ...]] = {}
    for change in found:
        if _is_code(change):
            module = ".".join(change.path[3:])
            running[module] = (*running.get(module, ()), change.path[1])
    return running


def _is_code(change: Difference) -> bool:
    return change.path[:1] == ("steps",) and change.path[2:3] == ("code",)


def _what_changed(found: Comparison) -> str:
    """Of a refusal: the fields, and each module with the steps that run it."""
    subjects = [
        f"the source of {module}, run by {', '.join(s)}," for module, s in found.code.items()
    ]
    fields = found.fields[: len(found.fields) - sum(map(len, found.code.values()))]
    if fields:
        subjects.insert(0, "the runbook")
    told = f": {'; '.join(fields)}" if fields else ""
    return f"{' and '.join(subjects)} changed since this session began{told}"


def _unnamed(before: str, now: str) -> tuple[str, ...]:
    """A difference that no field shows: another version of this software took the hash."""
    return () if before == now else (f"fingerprint: {before[:12]} -> {now[:12]}",)


def _unacceptable(plan: Plan, found: Comparison) -> ConfigError:
    return ConfigError(
        f"the runbook is another session's now: {'; '.join(found.refused)}",
        where=str(plan.runbook),
        fix="undo that, or begin a new session in another workspace",
    )


def _other_session(
    before: Mapping[str, Json], now: Mapping[str, Json], found: Iterable[Difference]
) -> Iterator[str]:
    old, new = before["order"], now["order"]
    if added := [name for name in new if name not in old]:
        yield f"added steps: {', '.join(added)}"
    if removed := [name for name in old if name not in new]:
        yield f"removed steps: {', '.join(removed)}"
    kept = [name for name in old if name in new]
    if kept != [name for name in new if name in old]:
        yield f"another order of steps: {', '.join(new)}"
    for change in found:
        match change.path:
            case ("steps", name, field, *_) if name in kept and field in _FIXED:
                yield str(change)
    if not (added or removed) and _phases(before) != _phases(now):
        yield "phases hold other steps"


def _phases(document: Mapping[str, Json]) -> dict[str, Json]:
    return {name: phase["steps"] for name, phase in document["phases"].items()}


def _steps(
    old: Plan, plan: Plan, state: State, found: Sequence[Difference], known: Sequence[ev.Event]
) -> Iterator[StepChange]:
    wide = [str(d) for d in found if d.path[0] in _SESSION_WIDE]
    reached: dict[str, tuple[str, ...]] = {}
    certified_anew: set[str] = set()
    for step in plan.steps:
        own = [d for d in found if d.path[:2] == ("steps", step.name)]
        mine = state.steps[step.name]
        # What passed was judged while the certificate held, so it stays.
        passed_over = certified_anew if mine.status in _KEPT else set()
        through = tuple(n for n in step.inputs if reached.get(n) and n not in passed_over)
        causes = [*wide, *_own_causes(old.step(step.name), step, own, mine)]
        if not causes and not through and (stale := _stale(plan, state, step, own)):
            certified_anew.add(step.name)
            causes += stale
        causes += [field for name in through for field in reached[name]]
        reached[step.name] = tuple(dict.fromkeys(causes))
        if not causes and old.step(step.name).fingerprint != step.fingerprint:
            # No field tells it, so another version of this software took the hash.
            reached[step.name] = (f"steps.{step.name}.fingerprint",)
        yield _change(old, plan, step, state, own, found, reached[step.name], through, known)


def _own_causes(
    old: PlannedStep, step: PlannedStep, own: Sequence[Difference], mine: StepState
) -> Iterator[str]:
    """The step's own fields that reach its bytes; in which order it names its inputs does not."""
    same_inputs = set(old.inputs) == set(step.inputs)
    for change in own:
        match change.path[2]:
            case "params":
                yield str(change)
            case "inputs" if not same_inputs:
                yield str(change)
            case "code" if mine.status not in _KEPT:
                yield str(change)
    judged_next = old.gate != step.gate and mine.status in _KEPT and mine.look == 1
    if judged_next and step.gate and step.gate.extend is not None:
        for module in _earlier_code(step, mine):
            yield f"a second look would mix two sources of {module}"


def _stale(
    plan: Plan, state: State, step: PlannedStep, own: Sequence[Difference]
) -> tuple[str, ...]:
    """Changed code of the instruments that a step certified, where the certificate is still read.

    Its own module is none of them.
    """
    mine = state.steps[step.name]
    made = mine.finished.artifacts if mine.finished else ()
    readers = [s for s in plan.steps if step.name in s.inputs]
    needed = any(state.steps[reader.name].status not in _KEPT for reader in readers)
    if not needed or not any(artifact.name == CERTIFICATE for artifact in made):
        return ()
    module = step.function.partition(":")[0]
    return tuple(str(d) for d in own if _is_code(d) and ".".join(d.path[3:]) != module)


def _earlier_code(step: PlannedStep, mine: StepState) -> tuple[str, ...]:
    """The modules whose source was another one when the step's newest attempt started."""
    then = mine.started.code if mine.started else {}
    return tuple(name for name, sha256 in then.items() if step.code.get(name) != sha256)


def _change(
    old: Plan,
    plan: Plan,
    step: PlannedStep,
    state: State,
    own: Sequence[Difference],
    found: Sequence[Difference],
    causes: tuple[str, ...],
    through: tuple[str, ...],
    known: Sequence[ev.Event],
) -> StepChange:
    mine = state.steps[step.name]
    fate = _fate(mine, own, enabled=_is_enabled(plan, step), reached=bool(causes))
    judging = [str(d) for d in own if d.path[2] in ("gate", *_RULES)]
    switches = (("phases", step.phase, "enabled"), ("steps", step.name, "enabled"))
    switching = [str(d) for d in found if d.path in switches]
    coding = [str(d) for d in own if _is_code(d)]
    fields = dict.fromkeys([*causes, *judging, *switching, *coding])
    revived = mine.status is Status.SKIPPED and fate is not Fate.SKIPPED
    return StepChange(
        step.name,
        step.phase,
        fate,
        tuple(fields),
        through if causes else (),
        _seconds(step.name, known),
        tuple(_shards(old, state, step, fate, known, reached=bool(causes))),
        begins_anew=fate is Fate.INVALIDATED or revived,
        earlier_code=_earlier_code(step, mine) if fate in (Fate.REUSE, Fate.REJUDGE) else (),
    )


def _is_enabled(plan: Plan, step: PlannedStep) -> bool:
    off = {name for phase in plan.phases if not phase.enabled for name in phase.steps}
    return step.enabled and step.name not in off


def _fate(mine: StepState, own: Sequence[Difference], *, enabled: bool, reached: bool) -> Fate:
    if not enabled and mine.status not in _DONE:
        return Fate.SKIPPED
    if reached:
        return Fate.INVALIDATED if mine.started or mine.changes else Fate.REDO
    changed = {change.path[2] for change in own}
    stuck = mine.status is Status.JUDGED and changed.intersection(_RULES)
    # A second look that has begun may have written over the first one's files.
    judged_next = mine.status in _DONE or (mine.finished and mine.status is Status.PENDING)
    if judged_next and ("gate" in changed or stuck):
        return Fate.REJUDGE
    return Fate.REUSE if mine.status in _DONE else Fate.REDO


def _seconds(step: str, known: Iterable[ev.Event]) -> float | None:
    runs = [f for f in known if isinstance(f, ev.StepFinished) and f.step == step]
    return sum(f.seconds for f in runs if f.attempt == runs[-1].attempt) if runs else None


def _shards(
    old: Plan,
    state: State,
    step: PlannedStep,
    fate: Fate,
    known: Sequence[ev.Event],
    *,
    reached: bool,
) -> Iterator[Shards]:
    """The shards of a step that has a parameter ``shards``, in runs of one fate."""
    before, now = params_of(old, state, step.name).get("shards"), step.params.get("shards")
    if type(before) is not int or type(now) is not int or fate is Fate.SKIPPED:
        return
    split = {
        Fate.REUSE: before,
        Fate.REJUDGE: before,
        Fate.INVALIDATED: min(before, now),
        Fate.REDO: 0 if reached else _whole_shards(step.name, state, known),
    }[fate]
    total = now if reached else before
    if split:
        yield Shards(1, split, Fate.REUSE if fate is Fate.REDO else fate)
    if total > split:
        yield Shards(split + 1, total, Fate.REDO)


def _whole_shards(step: str, state: State, known: Iterable[ev.Event]) -> int:
    """How many shards of the attempt under way are complete: all before the newest one."""
    attempt = state.steps[step].attempt
    keys = [
        fact.key
        for fact in known
        if isinstance(fact, ev.BatchCommitted) and (fact.step, fact.attempt) == (step, attempt)
    ]
    return max((int(found[1]) for key in keys if (found := _SHARD.match(key))), default=1) - 1
