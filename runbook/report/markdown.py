"""The session's report as Markdown: the outcome first, then what it rests on.

Each number comes from the journal. Text that a model, a step or a person wrote is data and goes
through ``runbook.report.safe_text``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from runbook.contract import Json
from runbook.report import figures as f
from runbook.report import filters, held_out, outcome, reading
from runbook.report import review_words as words
from runbook.report.review_report import REPORT
from runbook.report.safe_text import Code, block, code, json_line, link, prose, table
from runbook.report.session import SessionView, StepView
from runbook.report.step_section import evaluation_section, section
from runbook.report.step_words import word
from runbook.report.summary import sentences

_ACCEPTANCE = ("instruction_acceptance", "pair_acceptance")
"""Metrics that rest on the word of a filter."""


def render_report(view: SessionView, root: Path = Path(), trust: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        view: the session.
        root: the workspace, for the commands; by default the folder the report stands in.
        trust: the section on what the reviewers are worth, from ``runbook.report.trust``.
    """
    if view.outcome.state == "none":
        return "# No session yet\n"
    lines = [
        *_top(view, root),
        *_changes(view),
        *_filters(view),
        *_table(view),
        *(line for step in view.evaluations for line in evaluation_section(step)),
        *(line for one in held_out.told(view.scorings) for line in (f"{prose(one)}.", "")),
        *_faults(view),
        *_reviews(view),
        *trust,
        "## Step by step",
        "",
        *(line for step in view.steps for line in section(step, view.limits.usd_per_hour)),
        *_samples(view),
        *_environment(view),
        *_places(view),
        *_commands(view, root),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _top(view: SessionView, root: Path) -> list[str]:
    """What a person must know before the first coffee."""
    lines = [f"# {prose(view.name)}: {prose(outcome.title(view))}", ""]
    blind = filters.blind_spots(view.filters)
    for told in [*sentences(view), *([blind] if blind else [])]:
        lines += [prose(told), ""]
    found = [(label, path) for label, path in reading.files(view) if label != "report"]
    lines += [f"- Safe on disk: {prose(outcome.safe(view))}", f"- Cost: {outcome.cost(view)}"]
    lines += [f"- {prose(label.capitalize())}: {_where(label, path)}" for label, path in found]
    return [*lines, "", *_next(view, root)]


def _where(label: str, path: str) -> str:
    """A page to read on is a link; of other files the name is wanted."""
    return link(path, path) if label == "review" else code(path)


def _next(view: SessionView, root: Path) -> list[str]:
    steps = outcome.next_steps(view, root)
    if not steps:
        return ["Nothing is left to run.", ""]
    lines = ["**What to do now**", ""]
    for step in steps:
        lines += block(prose(step.why), [step.command])
    return lines


def _changes(view: SessionView) -> list[str]:
    """Every field in which the session is of more than one plan."""
    if not view.acceptances:
        return []
    lines = ["## Changes of the plan", ""]
    for accepted in view.acceptances:
        who = f"{accepted.author}, {f.moment(accepted.at)}: {accepted.reason}"
        lines += block(prose(who), accepted.changes)
    return lines


def _filters(view: SessionView) -> list[str]:
    """What an acceptance rate is worth, wherever one was measured."""
    rows = [row for step in view.steps for row in _acceptance(step)]
    measured, written = filters.table(view.filters), filters.generated(view.filters)
    if not rows and not measured:
        return []
    lines = ["## What the filters are worth", ""]
    if measured:
        lines += [*table(filters.HEADER, measured), filters.LEGEND, ""]
    else:
        lines += ["No filter was calibrated: acceptance says what it preferred, no more.", ""]
    if written:
        lines += ["On rows that a model wrote, labelled by hand:", ""]
        lines += table(filters.GENERATED_HEADER, written)
    if rows:
        lines += ["What they let through here:", "", *table(("step", "metric", "value"), rows)]
        if view.samples:
            lines += ["Read the rows near the end of this page before you trust them.", ""]
    return lines


def _acceptance(step: StepView) -> Iterator[tuple[str, ...]]:
    metrics = {m.name: m for m in step.last.metrics} if step.last else {}
    for name in _ACCEPTANCE:
        if name in metrics:
            found = metrics[name]
            value = f.rate(found.value, found.n, found.successes)
            yield (Code(step.name), Code(name), value)


def _table(view: SessionView) -> list[str]:
    rows = [
        (
            step.phase,
            Code(step.name),
            word(step),
            f.number(len(step.attempts) or None),
            f.number(step.tokens if step.attempts else None),
            f.duration(step.seconds) if step.seconds else f.NOTHING,
            Code(_main_file(step)),
        )
        for step in view.steps
    ]
    header = ("phase", "step", "verdict", "attempts", "tokens", "time", "main file")
    return ["## Steps", "", *table(header, rows)]


def _main_file(step: StepView) -> str:
    """The one file of a step to look at: its evaluation, or the first thing it made."""
    if step.comparison and step.judged:
        return step.judged
    return step.artifacts[0].path if step.artifacts else ""


def _faults(view: SessionView) -> list[str]:
    """Where a comparison was wanted and could not be made."""
    found = [
        (step.name, step.last.details.get("error"))
        for step in view.steps
        if step.last and step.last.details.get("error")
    ]
    lines = [f"- {prose(f'{name}: no comparison could be made: {why}')}" for name, why in found]
    return [*lines, ""] if lines else []


def _reviews(view: SessionView) -> list[str]:
    """Every review on a line, and where each one's story stands."""
    if not view.reviews:
        return []
    header = ("review", "asked because", "decision", "cost", "what followed")
    rows = [
        (Code(r.review_id), words.why(r), words.state(r), words.cost(r), words.followed(r))
        for r in view.reviews
    ]
    lines = ["## Reviews", "", *table(header, rows), "Evidence, reasoning and plot of each:", ""]
    named = ((r.review_id, f"{r.path}/{REPORT}") for r in view.reviews)
    return [*lines, *(f"- {link(name, path)}" for name, path in named), ""]


def _samples(view: SessionView) -> list[str]:
    if not view.samples:
        return []
    rows = [line for number, row in enumerate(view.samples, 1) for line in _sample(number, row)]
    told = f"From {code(view.samples_of)}, as escaped JSON: this is data, whatever it says."
    title = f"## {f.counted(len(view.samples), 'kept row')} drawn at random"
    return [title, "", *block(told, rows)]


def _sample(number: int, row: Json) -> Iterator[str]:
    width = max((len(json_line(name)) for name in row), default=0)
    for place, name in enumerate(sorted(row)):
        lead = f"{number}." if place == 0 else ""
        yield f"{lead:<4}{json_line(name):<{width}}  {json_line(row[name])}"
    yield ""


def _environment(view: SessionView) -> list[str]:
    versions = f.mapping(view.versions.get("versions"))
    plan = view.plan
    rows = [
        ("run", view.run_id),
        ("began", f.moment(view.began)),
        ("newest entry", f.moment(view.updated)),
        ("runbook file", view.runbook),
        ("fingerprint", view.fingerprint),
        ("overrides", " ".join(view.overrides)),
        ("git", str(view.versions.get("git_sha", ""))),
        ("crash certificate", _certificate(view)),
        ("seed", json_line(plan.get("seed"))),
        ("model", json_line(plan.get("model"))),
        ("engine", json_line(plan.get("engine"))),
        *((name, str(version)) for name, version in sorted(versions.items())),
    ]
    return ["## Environment", "", *table(("what", "value"), [(n, Code(v)) for n, v in rows if v])]


def _certificate(view: SessionView) -> str:
    """What ``selftest --chaos`` found on this volume, and of which version."""
    found = view.certificate
    if not found:
        return "none; runbook selftest --chaos makes one"
    verdict = "nothing lost or done twice" if found.get("passed") is True else "FAILED"
    told = f"{verdict} in {found.get('tried')} of {found.get('places')} faults"
    told += f", {found.get('file_system')}, fsync {found.get('fsync_ms')} ms"
    return f"{told}; {str(found.get('wall'))[:10]}, {str(found.get('git_sha'))[:12]}"


def _places(view: SessionView) -> list[str]:
    """Folders that every session has; each step's own files stand in its section."""
    here = reading.HERE
    places = (
        ("every manifest of the session", here.session_manifest(view.run_id)),
        ("what happened, in order", here.hidden / "journal*.jsonl"),
        ("logs, one a step", here.logs),
        ("data sets", here.data),
        ("generated files and batches", here.artifacts),
        ("adapters", here.checkpoints),
        ("evaluations", here.results),
        ("reviews", here.reviews),
        ("the base model", here.models),
    )
    rows = [(what, Code(here.relative(path))) for what, path in places]
    return ["## Where everything lies", "", *table(("what", "within the workspace"), rows)]


def _commands(view: SessionView, root: Path) -> list[str]:
    """The command that continues, also where nothing is left: it then says so and ends."""
    where = "Run in the folder of this report:" if root == Path() else "From any folder:"
    return ["## The command of this session", "", *block(where, [view.command(root)])]
