"""One step's section of the report: what its gate saw, what was changed, what it made."""

from collections.abc import Iterator

from runbook import events as ev
from runbook.report import confounds, criteria, evaluation, facts, forecast
from runbook.report import figures as f
from runbook.report.safe_text import Code, block, code, json_line, prose, table
from runbook.report.session import AttemptView, ReviewView, StepView
from runbook.report.step_words import losses, word
from runbook.state import Status


def section(step: StepView, usd_per_hour: float = 0.0) -> list[str]:
    """The lines of a step's section; ``usd_per_hour`` is the machine's price, 0 if not declared."""
    lines = [f"### {prose(step.phase)}: {prose(step.name)}, {prose(word(step))}", ""]
    if step.status is Status.SKIPPED:
        return [*lines, f"Skipped: {prose(step.skipped)}.", ""]
    if step.last is None:
        return [*lines, "Not started.", ""]
    return [
        *lines,
        *_unfinished(step.last),
        *_gate(step, step.last),
        *_forecast(step, step.last, usd_per_hour),
        *_items("What happened:", _history(step)),
        *_errors(step),
        *_yields(step),
        *_measured(step, step.last),
        *_files(step),
    ]


def _items(introduction: str, texts: Iterator[str]) -> list[str]:
    found = [f"- {text}" for text in texts]
    return [introduction, "", *found, ""] if found else []


def _unfinished(attempt: AttemptView) -> list[str]:
    if attempt.finished:
        return []
    batches = f.counted(attempt.batches, "batch is", "batches are")
    records = f.counted(attempt.records, "record")
    return [f"Attempt {attempt.number} has not finished; {batches} committed ({records}).", ""]


def _gate(step: StepView, attempt: AttemptView) -> list[str]:
    if not attempt.criteria:
        return []
    lines = [f"Attempt {attempt.number}:", ""] if len(step.attempts) > 1 else []
    header, *rows = criteria.rows(attempt.criteria)
    return [*lines, *table(header, [(Code(row[0]), *row[1:]) for row in rows])]


def _forecast(step: StepView, attempt: AttemptView, usd_per_hour: float) -> list[str]:
    pace = forecast.Pace(step.seconds, step.tokens, usd_per_hour)
    found = forecast.table(attempt.details, pace)
    if found is None:
        return []
    return [f"{found.title}:", "", *table(found.header, found.rows), forecast.LEGEND, ""]


def _history(step: StepView) -> Iterator[str]:
    """What happened to the step, attempt by attempt; nothing where it simply passed."""
    if lost := losses(step):
        yield f"Its child was replaced after {prose(lost)}."
    for attempt in step.attempts:
        yield from _changes(attempt)
        if attempt.extension:
            given = ", ".join(f"{n} = {json_line(v)}" for n, v in attempt.extension.items())
            yield f"Attempt {attempt.number}: the sample was too small and was extended: " + prose(
                given
            )
        shown = attempt is step.last and attempt.criteria
        if attempt.smoke and attempt.verdict:
            yield _smoke(step, attempt)
        elif attempt.verdict not in ("", "pass") and not shown:
            why = prose("; ".join(attempt.reasons) or "no reason was given")
            yield f"Attempt {attempt.number}: **{prose(attempt.verdict)}**. {why}"
        for adjusted in step.adjustments:
            if adjusted.attempt == attempt.number:
                yield _adjusted(adjusted)
        for review in step.reviews:
            if review.attempt == attempt.number:
                yield from _review(review)


def _smoke(step: StepView, attempt: AttemptView) -> str:
    """Its verdict is not told: none can rest on so few rows."""
    answered = {
        (c.metric, c.kind)
        for a in step.attempts
        if not a.smoke
        for c in a.criteria
        if c.verdict == "fail"
    }
    read = [
        f"{code(c.metric)} {f.number(c.value)}"
        for c in attempt.criteria
        if (c.metric, c.kind) in answered and c.kind != "census"
    ]
    helped = any(a.attempt == attempt.number and not a.changes for a in step.adjustments)
    found = "the change helps" if helped else "not shown that the change helps"
    return f"Attempt {attempt.number}: {found} ({', '.join(read) or 'nothing was read'})."


def _changes(attempt: AttemptView) -> Iterator[str]:
    if attempt.changes:
        told = [
            f"{code(c.name)} {prose(json_line(c.after))} (before: {prose(json_line(c.before))})"
            for c in attempt.changes
        ]
        smoke = ", a smoke of a few rows," if attempt.smoke else ""
        yield f"Attempt {attempt.number}{smoke} ran with {', '.join(told)}."


def _adjusted(adjusted: ev.Adjusted) -> str:
    given = ", ".join(f"{code(n)} = {prose(json_line(v))}" for n, v in adjusted.changes.items())
    if not given:
        return f"Then in full. Why: {prose(adjusted.why)}"
    first = " First on a few rows alone." if adjusted.smoke else ""
    return f"Adjusted after attempt {adjusted.attempt}: {given}. Why: {prose(adjusted.why)}.{first}"


def _review(review: ReviewView) -> Iterator[str]:
    name = f"Review {code(review.review_id)} ({prose(review.reason)}), in {code(review.path)}"
    if not review.decisions:
        yield f"{name}: no decision yet."
    for decision in review.decisions:
        who = f"{prose(decision.author)} ({'a person' if decision.person else 'a model'})"
        given = [f"{code(n)} = {prose(json_line(v))}" for n, v in decision.changes.items()]
        changes = f" with {', '.join(given)}" if given else ""
        yield f"{name}: **{prose(decision.action)}**{changes} by {who}: {prose(decision.reason)}"


def _errors(step: StepView) -> list[str]:
    lines = []
    for attempt in step.attempts:
        for failed in attempt.errors:
            told = [*failed.error.splitlines(), "", *failed.traceback_tail.splitlines()]
            lines += block(f"An error in attempt {attempt.number}:", told)
    return lines


def _yields(step: StepView) -> list[str]:
    rows = criteria.yields(step.summary)
    return (
        ["What became of the candidates:", "", *table(criteria.YIELD_HEADER, rows)] if rows else []
    )


def _measured(step: StepView, attempt: AttemptView) -> list[str]:
    judged = {c.metric for c in attempt.criteria}
    rest = [prose(criteria.measured(m)) for m in attempt.metrics if m.name not in judged]
    known = {m.name: m.value for m in attempt.metrics}
    summary = step.summary
    if step.comparison:
        summary = evaluation.not_in_tables(summary)
    lines = [f"Also measured: {'; '.join(rest)}.", ""] if rest else []
    told = (prose(sentence) for sentence in facts.sentences(summary, known))
    lines += _items("Its own summary:", told)
    for found in facts.tables(summary):
        lines += [f"{prose(found.title)}:", "", *table(found.header, found.rows)]
    return lines


def _files(step: StepView) -> list[str]:
    made: list[tuple[str, ...]] = [
        (a.name, Code(a.path), f.size(a.bytes), Code(a.sha256[:12])) for a in step.artifacts
    ]
    own = (("manifest", step.manifest, step.manifest_sha256), ("verdict", step.judged, ""))
    rows = [
        *made,
        *((name, Code(path), f.NOTHING, Code(sha[:12])) for name, path, sha in own if path),
    ]
    return table(("file", "path", "size", "sha256"), rows) if rows else []


def evaluation_section(step: StepView) -> list[str]:
    """The paired comparison of base and tuned model, with its tables."""
    assert step.last is not None
    kinds = evaluation.by_kind(step.comparison)
    parts = evaluation.split(f.mapping(step.last.details.get("split")))
    lines = [f"## Evaluation: {prose(step.name)}, {prose(word(step))}", ""]
    lines += table(("over all items", "with 95 % intervals"), evaluation.overall(step.comparison))
    if kinds:
        lines += ["By kind:", "", *table(evaluation.KIND_HEADER, kinds)]
    if parts:
        lines += ["The right format and the right content, each on its own:", ""]
        lines += table(evaluation.SPLIT_HEADER, parts)
    lines += [evaluation.LEGEND, ""]
    read = confounds.tables(step.last.details)
    for found in read:
        lines += [f"{found.title}:", "", *table(found.header, found.rows)]
    return [*lines, confounds.LEGEND, ""] if read else lines
