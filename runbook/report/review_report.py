"""One review as Markdown: what was asked, on what evidence, what was decided, what came of it.

Each number comes from the journal. Text of a model, a step or a person goes through
``runbook.report.safe_text``; beside the journal only the review's own folder is told of.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from runbook import events as ev
from runbook.budget import dollars
from runbook.contract import Json
from runbook.report import criteria, plot
from runbook.report import figures as f
from runbook.report import review_words as words
from runbook.report.review_folder import Folder
from runbook.report.review_requests import ANSWERED, FAILED, SENT, Note, paired
from runbook.report.safe_text import Code, Strong, block, code, json_line, link, prose, table
from runbook.report.session import (
    AttemptView,
    CriterionView,
    Effect,
    RequestView,
    ReviewView,
)
from runbook.report.stories import Story, bounds

REPORT = "report.md"
PLOT = "plot.svg"
"""Beside it."""
_MOST = 6
"""Attempts side by side; of more the newest."""
_LONGEST = 4000
"""Of what a reviewer wrote; its raw reply is beside the report."""
_ANSWERS = {
    "retry": "make it again, with changes within declared ranges",
    "extend": "add to the sample and judge again",
    "recalibrate": "certify the instruments anew and judge again",
    "proceed": "go on; no criterion had failed",
    "stop": "end the session here",
    "needs_human": "leave it to a person",
    "override": "pass the gate by, on a person's word",
}


def render_plot(story: Story) -> str:
    """The readings of the criteria that failed, over the attempts; empty where none was read."""
    shown = _side_by_side(story)
    panels = [_panel(c, shown) for c in story.failed]
    names = ", ".join(c.metric for c in story.failed)
    title = f"{names} over {f.counted(len(shown), 'attempt')}, against its threshold"
    asked = len(shown) - (story.after is not None)
    return plot.render_plot(title, [_name(a) for a in shown], panels, asked)


def render_review(story: Story, folder: Folder) -> str:
    """The whole page; ``folder`` is what lies beside it."""
    review = story.review
    lines = [
        f"# Review {prose(review.review_id)}: {prose(words.headline(review))}",
        "",
        *table(("", "in short"), [(what, told) for what, told in _short(story) if told]),
        *_asked(story),
        *_evidence(story),
        *_decided(story, folder),
        *_cost(story, folder),
        *_followed(story),
        *_files(folder),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _short(story: Story) -> Iterator[tuple[str, str]]:
    review = story.review
    yield "step", f"{review.step}, attempt {review.attempt}"
    yield "verdict of the gate", review.verdict or "there is no gate"
    yield "asked", f"{f.moment(review.asked_at)}, because {words.why(review)}"
    for decided, at in zip(review.decisions, review.decided_at, strict=True):
        yield "decided", f"{decided.action}, by {words.who(decided)}, {f.moment(at)}"
    if not review.decisions:
        yield "decided", "not yet"
    yield "cost", words.cost(review)
    yield "what followed", words.followed(review)


def _asked(story: Story) -> list[str]:
    review, last = story.review, story.attempts[-1] if story.attempts else None
    lines = ["## What was asked", ""]
    judged = f", and the verdict was {prose(review.verdict)}" if review.verdict else ""
    who = f"Attempt {review.attempt} of {code(review.step)}"
    lines += [f"{who} was looked at because {prose(words.why(review))}{judged}.", ""]
    lines += _items("The gate's reasons:", last.reasons if last else ())
    if review.question:
        lines += block("The step's own question:", review.question.splitlines())
    rows = [(Code(a), _ANSWERS.get(a, "")) for a in review.allowed]
    lines += ["What could be answered:", "", *table(("answer", "what it means"), rows)]
    if story.adjustable and "retry" in review.allowed:
        ranges = [(Code(n), *_range(f.mapping(r))) for n, r in sorted(story.adjustable.items())]
        lines += ["A retry could change:", "", *table(("parameter", "from", "to"), ranges)]
    return lines


def _range(ends: Mapping[str, Json]) -> tuple[str, str]:
    return f.number(ends.get("min")), f.number(ends.get("max"))


def _items(introduction: str, texts: Iterable[str], longest: int = 600) -> list[str]:
    found = [f"- {prose(text, longest)}" for text in texts if text.strip()]
    return [introduction, "", *found, ""] if found else []


def _evidence(story: Story) -> list[str]:
    lines = ["## The evidence", ""]
    last = story.attempts[-1] if story.attempts else None
    if last is None or not last.criteria:
        return [*lines, "No gate was judged: there are no criteria to show.", ""]
    header, *rows = criteria.rows(last.criteria)
    lines += [f"What the gate read at attempt {last.number}:", ""]
    lines += table(header, [(Code(row[0]), *row[1:]) for row in rows])
    if render_plot(story):
        names = " and ".join(c.metric for c in story.failed)
        alt = prose(f"{names} over the attempts, against the threshold")
        lines += [f"![{alt}]({PLOT})", ""]
        lines += ["A cross failed, a disc passed, a ring is neither; the shaded band holds.", ""]
    shown = _side_by_side(story)
    if len(shown) < 2:
        return lines
    left_out = len(story.shown) - len(shown)
    told = f" The first {f.counted(left_out, 'attempt')} are left out." if left_out else ""
    after = f" A{_name(shown[-1])[1:]} came after the decision." if story.after else ""
    lines += [f"The attempts side by side; what changed is bold.{after}{told}", ""]
    return [*lines, *_attempts(shown)]


def _side_by_side(story: Story) -> tuple[AttemptView, ...]:
    return story.shown[-_MOST:]


def _name(attempt: AttemptView) -> str:
    if attempt.smoke:
        return f"attempt {attempt.number}, smoke"
    return f"attempt {attempt.number}{', extended' if attempt.extension else ''}"


def _attempts(shown: Sequence[AttemptView]) -> list[str]:
    """A row for each parameter that ever changed, then the readings and the verdict."""
    header = ("", *(_name(a) for a in shown))
    changed = dict.fromkeys(c.name for a in shown for c in a.changes)
    rows = [(Code(name), *_values(name, shown)) for name in changed]
    known = {(c.metric, c.kind, c.threshold): c for a in shown for c in a.criteria}
    rows += [(_criterion(c), *(_reading(c, a) for a in shown)) for c in known.values()]
    rows.append(("verdict", *(_verdict(a) for a in shown)))
    return table(header, rows)


def _values(name: str, shown: Sequence[AttemptView]) -> Iterator[str]:
    """Of one parameter, in each attempt; bold where the attempt changed it."""
    first = next(c for a in shown for c in a.changes if c.name == name)
    value = first.before
    for attempt in shown:
        change = next((c for c in attempt.changes if c.name == name), None)
        value = change.after if change else value
        text = json_line(value, 60)
        yield Strong(text) if change else text


def _criterion(c: CriterionView) -> str:
    return f"{c.metric} {c.threshold}".strip()


def _reading(c: CriterionView, attempt: AttemptView) -> str:
    found = _same(c, attempt)
    if found is None:
        return f.NOTHING
    value = "not measured" if found.value is None else f.number(found.value)
    return value if found.verdict == "pass" else f"{value} ({found.verdict})"


def _same(c: CriterionView, attempt: AttemptView) -> CriterionView | None:
    key = (c.metric, c.kind, c.threshold)
    return next((x for x in attempt.criteria if (x.metric, x.kind, x.threshold) == key), None)


def _verdict(attempt: AttemptView) -> str:
    return attempt.verdict or "not judged"


def _panel(c: CriterionView, shown: Sequence[AttemptView]) -> plot.Panel:
    found = [_same(c, attempt) for attempt in shown]
    points = [plot.Point(plot.drawable(x.value), x.verdict) if x else _NO_POINT for x in found]
    return plot.Panel(c.metric, c.threshold, tuple(bounds(c.threshold)), tuple(points))


_NO_POINT = plot.Point(None, "")


def _decided(story: Story, folder: Folder) -> list[str]:
    review = story.review
    lines = ["## The decision", ""]
    for decided, at in zip(review.decisions, review.decided_at, strict=True):
        lines += _decision(review, decided, at)
    if folder.error and not review.is_answered:
        lines += block("The reviewer gave no answer that could be used:", folder.error.splitlines())
        if folder.drafts:
            kept = ", ".join(code(name) for name in folder.drafts)
            lines += [f"What it sent back is kept beside this page: {kept}.", ""]
    if review.superseded:
        lines += ["A change of the plan took back what was asked about; no answer counts.", ""]
    elif review.is_open:
        lines += [f"A person may still answer: {prose(f.listed(words.options(review)))}.", ""]
    return lines


def _decision(review: ReviewView, decided: ev.ReviewDecided, at: str) -> list[str]:
    given = [f"{code(n)} = {prose(json_line(v))}" for n, v in sorted(decided.changes.items())]
    changes = f" with {', '.join(given)}" if given else ""
    took = words.took(review.asked_at, at)
    when = f"{prose(f.moment(at))}{f', {took}' if took else ''}"
    who = f"**{prose(decided.action)}**{changes}, by {prose(words.who(decided))}"
    lines = [f"{who}, {when}.", ""]
    if decided.action == "override":
        verdict = prose(review.verdict or "none")
        lines += [f"The verdict was {verdict} and stays on record: this gate did not pass.", ""]
    if decided.confidence is not None:
        lines += [f"Confidence, as its author gave it: {f.fixed(decided.confidence)}.", ""]
    lines += ["Why:", "", *_quoted(decided.reason)]
    lines += _items("Concerns:", decided.concerns, _LONGEST)
    return [*lines, *_items("What a person should do:", decided.action_items, _LONGEST)]


def _quoted(text: str) -> list[str]:
    """What somebody wrote, paragraph by paragraph."""
    written = (line if line.strip() else "" for line in text[:_LONGEST].splitlines())
    told = [part for part in "\n".join(written).split("\n\n") if part.strip()] or [f.NOTHING]
    lines = [line for part in told for line in (f"> {prose(part, _LONGEST)}", ">")]
    return [*lines[:-1], ""]


def _cost(story: Story, folder: Folder) -> list[str]:
    review, lines = story.review, ["## What it cost", ""]
    if not review.requests:
        return [*lines, "No request to a paid reviewer was sent.", ""]
    settled = [request.settled for request in review.requests]
    notes = paired(story.keys, settled, folder.requests)
    rows = [
        (
            f.number(number),
            f.moment(r.sent_at),
            note.asks or f.NOTHING,
            note.model or f.NOTHING,
            f.number(r.input_tokens or None),
            f.number(r.output_tokens or None),
            dollars(r.usd),
            _ended(r, note),
        )
        for number, (r, note) in enumerate(zip(review.requests, notes, strict=True), 1)
    ]
    header = ("request", "sent", "for", "model", "tokens in", "tokens out", "cost", "its end")
    return [*lines, *table(header, rows), f"In all {prose(words.cost(review))}.", ""]


def _ended(request: RequestView, note: Note) -> str:
    """Whether it ended is the journal's word; how, and why not, the folder's."""
    if not request.settled:
        why = f" ({note.cause})" if note.outcome == SENT and note.cause else ""
        return f"its end is not known{why}; the worst is assumed"
    if note.outcome == FAILED:
        return f"failed: {note.cause}" if note.cause else "failed"
    return "answered" if note.outcome == ANSWERED else "settled"


def _followed(story: Story) -> list[str]:
    review, found = story.review, story.review.followed
    lines = ["## What followed", ""]
    if found is None or not found.attempt:
        told = words.followed(review)
        told = "Nothing yet" if told == f.NOTHING else f"{told[0].upper()}{told[1:]}"
        return [*lines, f"{prose(told)}.", ""]
    told = f"At {prose(f.moment(found.at))}, {prose(words.aftermath(found))}."
    lines += [f"**{words.judgement(found)}.** {told}", ""]
    rows = [_effect(effect) for effect in found.effects]
    header = ("criterion", "threshold", "before", "after", "")
    return [*lines, *table(header, rows)] if rows else lines


def _effect(effect: Effect) -> tuple[str, ...]:
    known = effect.after or effect.before
    assert known is not None
    told = Strong(effect.change) if effect.change != "unchanged" else "as before"
    if effect.after and effect.after.verdict == "pass" and effect.change == "unchanged":
        told = "holds as before"
    sides = (effect.before, effect.after)
    return (Code(known.metric), known.threshold, *(_side(c) for c in sides), told)


def _side(c: CriterionView | None) -> str:
    if c is None:
        return f.NOTHING
    value = "not measured" if c.value is None else f.number(c.value)
    n = f" (n {f.number(c.n)})" if c.n is not None else ""
    return f"{value}{n}"


def _files(folder: Folder) -> list[str]:
    if not folder.files:
        return []
    found = [f"- {prose(what)}: {link(name, name)}" for what, name in folder.files]
    return ["## Beside this page", "", *found, ""]
