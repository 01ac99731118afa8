"""Verbs about past gates: list and show what was judged, replay judges it again. All of them read.

Rule: a decision that cannot be replayed is told by name, and never counted as one that holds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import WORKSPACE, AsJson, Folder, Overrides, answer, env_lines, say
from runbook.cli.showing import reading_errors
from runbook.contract import Gate, Json, Judgement, Metric
from runbook.errors import ConfigError, CorruptError
from runbook.regular_files import open_to_read

if TYPE_CHECKING:
    from runbook.decided import Decided
    from runbook.journal import Entry
    from runbook.plan import Plan
    from runbook.replay import Replayed
    from runbook.workspace import Workspace

_SHOWN_ROWS = 10
_LONGEST_LINE = 1 << 20
_PROBE = "probe_"
"""What the name of a parameter begins with that holds labelled rows."""


def list_gates(*, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """List every decision at a gate of the session, in order."""
    from runbook.report.replayed import decided_document, list_lines  # noqa: PLC0415 - as above
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    found = _decisions(place)
    if as_json:
        for decided in found:
            answer(decided_document(decided))
    elif found:
        say("\n".join(list_lines(found)))
    else:
        say(f"{place.root}: no gate was judged yet")


def show_gate(
    step: Annotated[str, typer.Argument(envvar="RUNBOOK_STEP", help="Whose gate.")],
    *,
    attempt: Annotated[
        int | None,
        typer.Option(envvar="RUNBOOK_ATTEMPT", min=1, help="The newest one if not given."),
    ] = None,
    workspace: Folder = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Show how a gate was judged: each criterion, what it rests on, and rows of the evidence."""
    from runbook.evidence import Evidence  # noqa: PLC0415 - start-up stays light
    from runbook.journal import facts  # noqa: PLC0415 - start-up stays light
    from runbook.report.replayed import decided_document, gate_lines  # noqa: PLC0415 - as above
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    entries = _entries(place)
    decided = _find(_decisions(place), step, attempt)
    faults = Evidence(place, facts(entries)).faults(decided.finished) if decided.finished else ()
    source, shown = _evidence_rows(place, decided, [fault.path for fault in faults])
    if as_json:
        told = {"criteria": list(decided.judged.criteria), "reasons": list(decided.judged.reasons)}
        state = [{"path": x.path, "what": x.what, "damaged": x.damaged} for x in faults]
        head = decided_document(decided)
        answer({**head, **told, "faults": state, "source": source, "rows": shown})
    else:
        say("\n".join(gate_lines(decided, [str(fault) for fault in faults], source, shown)))


def replay(
    *,
    spec: Annotated[
        Path | None,
        typer.Option(
            envvar="RUNBOOK_SPEC",
            help="A changed runbook; each decision's own gate if not given.",
        ),
    ] = None,
    overrides: Overrides,
    runs: Annotated[
        list[Path],
        typer.Option(
            "--run",
            default_factory=lambda: [Path(line) for line in env_lines("RUNBOOK_RUN")],
            show_default=False,
            metavar="FOLDER",
            help="A past run's workspace, as often as there are runs; --workspace if none is "
            "given. In the environment: RUNBOOK_RUN, one a line.",
        ),
    ],
    remeasure: Annotated[
        bool,
        typer.Option(
            "--remeasure",
            envvar="RUNBOOK_REMEASURE",
            help="Read the stored texts anew with today's detectors and verifiers, too.",
        ),
    ] = False,
    workspace: Folder = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """Judge past decisions again under other thresholds or instruments; list those that flip."""
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    if overrides and spec is None:
        what = "--set changes a runbook, and none is named"
        raise ConfigError(what, where="--set", fix="name it with --spec")
    plan = load_plan(spec, overrides) if spec else None
    places = dict.fromkeys(Workspace.at(folder) for folder in runs or [workspace])
    found: list[Replayed] = []
    broken = False
    for place in places:
        try:
            mine = _replayed(place, plan, remeasure=remeasure)
        except CorruptError as error:
            broken = True
            say(f"{place.root}: cannot be replayed: {error}")
            continue
        found += mine
        _tell(place, mine, spec, remeasure=remeasure, as_json=as_json)
    _sum(found, as_json=as_json)
    if broken or any(r.damaged for r in found) or not any(r.after for r in found):
        raise typer.Exit(CorruptError.code)


def _replayed(place: "Workspace", plan: "Plan | None", *, remeasure: bool) -> "list[Replayed]":
    """Raises ConfigError: no session was begun there; CorruptError: its journal is damaged."""
    from tempfile import TemporaryDirectory  # noqa: PLC0415 - start-up stays light

    from runbook.cli.remeasure import remeasures  # noqa: PLC0415 - start-up stays light
    from runbook.replay import Rules  # noqa: PLC0415 - start-up stays light
    from runbook.replay import replay as judge_again  # noqa: PLC0415 - start-up stays light

    entries = _entries(place)
    if not entries:
        raise ConfigError(
            "there is nothing to replay: no session was begun here",
            where=str(place.root),
            fix="name the folder of a session with --run",
        )
    steps = plan.steps if plan else ()
    gates = {step.name: step.gate for step in steps} if plan else None
    held_out = {step.name: step.files["held_out"] for step in steps if "held_out" in step.files}
    with TemporaryDirectory(prefix="runbook-replay-") as scratch:
        probes = _own_probes(entries)
        how = remeasures(place.root, Path(scratch), held_out, probes) if remeasure else {}
        return list(judge_again(place, entries, Rules(_judge, gates, how)))


def _own_probes(entries: "Sequence[Entry]") -> dict[str, Path]:
    """The labelled rows that the session's calibration was given beside the shipped ones."""
    from runbook.events import StepStarted  # noqa: PLC0415 - start-up stays light
    from runbook.journal import facts  # noqa: PLC0415 - start-up stays light

    started = [fact for fact in facts(entries) if isinstance(fact, StepStarted)]
    return {
        name.removeprefix(_PROBE): Path(value)
        for fact in started
        for name, value in fact.params.items()
        if name.startswith(_PROBE) and isinstance(value, str)
    }


def _judge(gate: Gate, metrics: tuple[Metric, ...], root: Path | None, final: bool) -> Judgement:  # noqa: FBT001 - the seam's shape
    from gates.judge import judge_gate  # noqa: PLC0415 - start-up stays light

    return judge_gate(gate, metrics, root, final=final)


def _entries(place: "Workspace") -> "tuple[Entry, ...]":
    from runbook.journal import read_entries  # noqa: PLC0415 - start-up stays light

    with reading_errors(place):
        return read_entries(place)


def _decisions(place: "Workspace") -> "tuple[Decided, ...]":
    from runbook.decided import decisions  # noqa: PLC0415 - start-up stays light

    return decisions(_entries(place))


def _find(found: "Sequence[Decided]", step: str, attempt: int | None) -> "Decided":
    """The newest decision. Raises ConfigError: there is none."""
    mine = [d for d in found if d.judged.step == step and attempt in (None, d.judged.attempt)]
    if not mine:
        known = ", ".join(dict.fromkeys(f"{d.judged.step} {d.judged.attempt}" for d in found))
        which = step if attempt is None else f"{step}, attempt {attempt}"
        raise ConfigError(
            f"no gate of {which!r} was judged",
            where="runbook gate show",
            fix=f"step and attempt are one of: {known or 'none yet'}",
        )
    return mine[-1]


def _evidence_rows(
    place: "Workspace", decided: "Decided", faulty: Sequence[str]
) -> tuple[str, list[Json]]:
    """Where they are from, and at most ten rows behind the verdict.

    The rows that the step itself flagged stand in the journal; else the first of a file that a
    criterion rests on, of one that did not pass where there is one.
    """
    if decided.finished and decided.finished.flagged:
        return "Rows that the step flagged", list(decided.finished.flagged[:_SHOWN_ROWS])
    judged = sorted(decided.judged.criteria, key=lambda c: c.get("verdict") == "pass")
    named = [str(c.get("evidence") or "") for c in judged]
    if decided.finished:
        named += [metric.evidence for metric in decided.finished.metrics]
    for path in filter(None, named):
        if path not in faulty:
            return f"The first rows of {path}", _first_rows(place.inside(path))
    return "", []


def _first_rows(path: Path) -> list[Json]:
    """Rows as JSON; a line that is none, or that has no end, as its text. Raises ConfigError."""
    try:
        with open_to_read(path) as file:
            lines = [file.readline(_LONGEST_LINE) for _ in range(_SHOWN_ROWS)]
    except OSError as error:
        what = f"the evidence cannot be read: {error.strerror}"
        raise ConfigError(what, where=str(path), fix="change its permissions") from error
    return [_row(line) for line in lines if line]


def _row(line: bytes) -> Json:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode("utf-8", "backslashreplace")


def _tell(
    place: "Workspace",
    found: "Sequence[Replayed]",
    spec: Path | None,
    *,
    remeasure: bool,
    as_json: bool,
) -> None:
    """One run's decisions, and by which rules they were judged again."""
    from runbook.report.replayed import replay_lines, replayed_document  # noqa: PLC0415 - as above

    if as_json:
        for replayed in found:
            answer({"run": str(place.root), **replayed_document(replayed)})
        return
    rules = f"under {spec}" if spec else "under the gates on record"
    say(f"{place.root}, {rules}{', measured anew' if remeasure else ''}:")
    say("\n".join([*replay_lines(found), ""]) if found else "  no gate was judged yet\n")


def _sum(found: "Sequence[Replayed]", *, as_json: bool) -> None:
    from runbook.report.replayed import sum_line  # noqa: PLC0415 - start-up stays light

    say(sum_line(found))
    if as_json:
        answer(
            {
                "decisions": len(found),
                "flips": sum(r.flips for r in found),
                "not_replayed": sum(r.after is None for r in found),
                "damaged": sum(r.damaged for r in found),
            }
        )
