"""Past decisions at gates, and what replaying them came to, as lines of plain text and as JSON."""

from collections.abc import Callable, Iterator, Sequence

from runbook.codec import encode
from runbook.contract import Json
from runbook.decided import Decided
from runbook.replay import Compared, Replayed
from runbook.report import criteria
from runbook.report import figures as f
from runbook.report.safe_text import columns, json_line, one_line

_Row = tuple[str, ...]
_ABSENT = "(none)"
_HEADER: _Row = ("criterion", "value", "n", "95 % bound", "threshold", "verdict")


def since(decided: Decided) -> str:
    """What became of a verdict afterwards."""
    told = ["judged again later"] if decided.again else []
    if decided.override:
        told.append(f"overridden by {decided.override.author}: {decided.override.reason}")
    return "; ".join(told)


def decided_document(decided: Decided) -> dict[str, Json]:
    """A decision as a program reads it."""
    judged, override = decided.judged, decided.override
    return {
        "step": judged.step,
        "attempt": judged.attempt,
        "look": judged.look,
        "verdict": judged.verdict,
        "sentinel": judged.sentinel,
        "thin": any(c.get("thin") for c in judged.criteria),
        "judged_at": decided.wall,
        "judged_again": decided.again,
        "override": {"author": override.author, "reason": override.reason} if override else None,
    }


def replayed_document(replayed: Replayed) -> dict[str, Json]:
    """A replayed decision as a program reads it; ``would_be`` is None where it was not."""
    after = replayed.after
    return {
        **decided_document(replayed.decided),
        "would_be": after.verdict.value if after else None,
        "would_trip_sentinel": after.sentinel_tripped if after else None,
        "flips": replayed.flips,
        "why_not_replayed": replayed.why,
        "damaged": replayed.damaged,
        "notes": list(replayed.notes),
        "criteria": [
            {**encode(c), "flips": c.flips, "changed": c.changed} for c in replayed.criteria
        ],
        "readings": {name: list(pair) for name, pair in replayed.readings.items()},
    }


def list_lines(found: Sequence[Decided]) -> list[str]:
    """A row a decision."""
    rows: list[_Row] = [("step", "attempt", "look", "verdict", "judged at", "note")]
    rows += [
        (*_place(decided), decided.verdict, f.moment(decided.wall), since(decided))
        for decided in found
    ]
    return columns(rows)


def gate_lines(
    decided: Decided, faults: Sequence[str], source: str, shown: Sequence[Json]
) -> Iterator[str]:
    """One decision: its criteria, what they rest on, and rows of the evidence."""
    judged, noted = decided.judged, since(decided)
    yield one_line(f"{decided.name}: {decided.verdict}, judged at {f.moment(decided.wall)}")
    if noted:
        yield f"  {one_line(noted)}"
    metrics = decided.finished.metrics if decided.finished else ()
    views = [criteria.criterion_view(c, metrics) for c in judged.criteria]
    rows: list[_Row] = [(*_HEADER, "evidence")]
    for view, told in zip(views, judged.criteria, strict=True):
        verdict = f"{view.verdict} (thin)" if view.thin else view.verdict
        value = f.p_value(view.value) if view.kind == "p_value" else f.number(view.value)
        rows.append(
            (
                view.metric,
                value,
                f.number(view.n),
                f.fixed(view.bound),
                view.threshold,
                verdict,
                str(told.get("evidence") or f.NOTHING),
            )
        )
    yield from columns(rows)
    yield from (f"  {one_line(f'{v.metric}: {v.reason}')}" for v in views if v.reason)
    yield from (f"  {one_line(fault)}" for fault in faults)
    yield ""
    yield one_line(f"{source}:") if shown else "No rows stand behind it."
    yield from (f"  {json_line(row)}" for row in shown)


def replay_lines(found: Sequence[Replayed]) -> Iterator[str]:
    """A table of one run's decisions, then what changed in each."""
    rows: list[_Row] = [("", "step", "attempt", "look", "was", "would be", "note")]
    rows += [
        (
            "flips" if r.flips else "",
            *_place(r.decided),
            r.decided.verdict,
            r.verdict or "not replayed",
            "; ".join(filter(None, (since(r.decided), r.why, *r.notes))),
        )
        for r in found
    ]
    yield from columns(rows)
    for replayed in found:
        yield from _changes(replayed)


def _changes(replayed: Replayed) -> Iterator[str]:
    shown = [c for c in replayed.criteria if c.changed and (c.flips or _reads_anew(c))]
    named = {c.metric for c in replayed.criteria}
    others = {k: v for k, v in replayed.readings.items() if k not in named}
    if not shown and not others:
        return
    yield ""
    arrow = f"{replayed.decided.verdict} -> {replayed.verdict}"
    yield one_line(f"{replayed.decided.name}: {arrow if replayed.flips else replayed.verdict}")
    if shown:
        yield from columns([(*_HEADER, "why"), *map(_compared, shown)])
    for name, (before, after) in others.items():
        yield f"  {one_line(f'also read anew: {name} {f.number(before)} -> {f.number(after)}')}"


def _reads_anew(compared: Compared) -> bool:
    """Whether its reading is another one; a threshold alone that flips nothing is not shown."""
    before, after = compared.before, compared.after
    return bool(before and after and before.get("value") != after.get("value"))


def _compared(compared: Compared) -> _Row:
    def pair(field: str, shown: Callable[[Json], str]) -> str:
        sides = (compared.before, compared.after)
        old, new = (_ABSENT if side is None else shown(side.get(field)) for side in sides)
        return old if old == new else f"{old} -> {new}"

    kind = (compared.after or compared.before or {}).get("kind")
    return (
        compared.metric,
        pair("value", f.p_value if kind == "p_value" else f.number),
        pair("n", f.number),
        pair("bound", f.fixed),
        pair("threshold", str),
        pair("verdict", str),
        str((compared.after or {}).get("reason", "is no criterion any more")),
    )


def sum_line(found: Sequence[Replayed]) -> str:
    """``7 decisions, 1 would flip``, and how many of them could not be replayed."""
    flips = sum(r.flips for r in found)
    gone = sum(r.after is None for r in found)
    told = f"{f.counted(len(found), 'decision')}, {flips} would flip"
    return f"{told}; {gone} not replayed" if gone else told


def _place(decided: Decided) -> tuple[str, str, str]:
    judged = decided.judged
    return judged.step, str(judged.attempt), decided.look.removeprefix("look ")
