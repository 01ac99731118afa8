"""A gate's judgement as a file beside what it judges: JSON for programs, text for people.

It holds no time, no absolute path and no run id, so that a resumed session writes the same bytes.
"""

import json
import textwrap
from collections.abc import Mapping

from runbook import events as ev
from runbook.artifacts import canonical_json
from runbook.codec import decode, encode
from runbook.contract import Json, Metric
from runbook.report import confounds, criteria, detectors, evaluation, facts, filters, forecast
from runbook.report import figures as f
from runbook.report.safe_text import columns, one_line


def judgement_document(
    started: ev.StepStarted, finished: ev.StepFinished, judged: ev.GateJudged
) -> dict[str, Json]:
    """The judgement of one attempt, with all that it rests on."""
    document = {
        "step": started.step,
        "attempt": started.attempt,
        "look": started.look,
        "verdict": judged.verdict,
        "sentinel": judged.sentinel,
        "criteria": encode(judged.criteria),
        "reasons": list(judged.reasons),
        "metrics": encode(finished.metrics),
        "summary": encode(finished.summary),
        "details": encode(judged.details),
    }
    # As read from disk, whatever the order of keys was in memory.
    sorted_document: dict[str, Json] = json.loads(canonical_json(document))
    return sorted_document


def judgement_text(document: Mapping[str, Json]) -> str:
    """The same in plain text."""
    metrics = [decode(Metric, metric) for metric in document["metrics"]]
    judged = [criteria.criterion_view(c, metrics) for c in document["criteria"]]
    name, attempt = document["step"], document["attempt"]
    lines = [one_line(f"{name}, attempt {attempt}: {document['verdict']}"), ""]
    lines += _section("Criteria", columns(criteria.rows(judged)) if judged else [])
    lines += _section("Reasons", [f"  {one_line(reason)}" for reason in document["reasons"]])
    lines += _comparison(f.mapping(document["details"]))
    lines += _filters(f.mapping(document["details"]))
    lines += _detectors(f.mapping(document["details"]))
    lines += _forecast(f.mapping(document["details"]))
    summary = f.mapping(document["summary"])
    if f.mapping(document["details"]).get("comparison"):
        summary = evaluation.not_in_tables(summary)
    yields = criteria.yields(summary)
    if yields:
        lines += _section("Yield", columns([criteria.YIELD_HEADER, *yields]))
    named = {c.metric for c in judged}
    rest = [m for m in metrics if m.name not in named]
    lines += _section("Also measured", [f"  {one_line(criteria.measured(m))}" for m in rest])
    lines += _facts(summary, {m.name: m.value for m in metrics})
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, lines: list[str]) -> list[str]:
    return [title, *lines, ""] if lines else []


def _comparison(details: Mapping[str, Json]) -> list[str]:
    comparison = f.mapping(details.get("comparison"))
    if not comparison:
        error = details.get("error")
        return _section("No comparison", [f"  {one_line(str(error))}"] if error else [])
    lines = _section("Over all items, with 95 % intervals", columns(evaluation.overall(comparison)))
    kinds = evaluation.by_kind(comparison)
    if kinds:
        lines += _section("By kind", columns([evaluation.KIND_HEADER, *kinds]))
    parts = evaluation.split(f.mapping(details.get("split")))
    if parts:
        rows = columns([evaluation.SPLIT_HEADER, *parts])
        lines += _section("Format and content, each on its own", rows)
    lines += [*textwrap.wrap(evaluation.LEGEND, 98), ""]
    return lines + _confounds(details)


def _confounds(details: Mapping[str, Json]) -> list[str]:
    found = confounds.tables(details)
    lines: list[str] = []
    for table in found:
        lines += _section(table.title, columns([table.header, *table.rows]))
    return [*lines, *textwrap.wrap(confounds.LEGEND, 98), ""] if found else []


def _filters(details: Mapping[str, Json]) -> list[str]:
    found = details.get("filters")
    if not isinstance(found, list):
        return []
    lines = _section("Filters", columns([filters.HEADER, *filters.table(found)]))
    written = filters.generated(found)
    if written:
        title = "On rows that a model wrote, labelled by hand"
        lines += _section(title, columns([filters.GENERATED_HEADER, *written]))
    return [*lines, *textwrap.wrap(filters.LEGEND, 98), ""]


def _detectors(details: Mapping[str, Json]) -> list[str]:
    found = details.get("detectors")
    if not isinstance(found, list):
        error = details.get("detectors_error")
        return _section("No detectors", [f"  {one_line(str(error))}"] if error else [])
    lines = _section("Detectors", columns([detectors.HEADER, *detectors.table(found)]))
    return [*lines, *textwrap.wrap(detectors.LEGEND, 98), ""]


def _forecast(details: Mapping[str, Json]) -> list[str]:
    found = forecast.table(details)
    if found is None:
        return []
    title = textwrap.wrap(found.title, 98)
    lines = [*title[:-1], *_section(title[-1], columns([found.header, *found.rows]))]
    return [*lines, *textwrap.wrap(forecast.LEGEND, 98), ""]


def _facts(summary: Mapping[str, Json], known: Mapping[str, Json]) -> list[str]:
    told = [f"  {one_line(sentence)}" for sentence in facts.sentences(summary, known)]
    lines = _section("Facts", told)
    for found in facts.tables(summary):
        lines += _section(one_line(found.title), columns([found.header, *found.rows]))
    return lines
