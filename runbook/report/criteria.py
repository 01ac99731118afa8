"""Criteria, metrics and yields of one step as rows of plain text, for Markdown and for text."""

from collections.abc import Iterable, Mapping

from runbook.contract import Json, Metric
from runbook.report import figures as f
from runbook.report.session import CriterionView

Row = tuple[str, ...]

_HEADER: Row = ("criterion", "value", "n", "95 % bound", "threshold", "verdict", "note")
YIELD_HEADER: Row = ("stage", "count", "of the first", "of the one before")
_STAGES = (
    "candidates",
    "judged instructions",
    "accepted instructions",
    "clean responses",
    "accepted pairs",
    "in the dataset",
)
"""In this order of making; the journal keeps no order of keys."""


def criterion_view(result: Mapping[str, Json], metrics: Iterable[Metric]) -> CriterionView:
    """A ``CriterionResult`` as the journal holds it, with the numerator of its metric."""
    name = str(result.get("metric", ""))
    return CriterionView(
        metric=name,
        kind=str(result.get("kind", "")),
        threshold=str(result.get("threshold", "")),
        verdict=str(result.get("verdict", "")),
        value=result.get("value"),
        n=result.get("n"),
        successes=next((m.successes for m in metrics if m.name == name), None),
        bound=result.get("bound"),
        thin=bool(result.get("thin")),
        reason=str(result.get("reason", "")),
    )


def rows(found: Iterable[CriterionView]) -> list[Row]:
    """A header and a row for each criterion; a column that is empty throughout is left out."""
    whole = [_HEADER, *map(_row, found)]
    shown = [i for i in range(len(_HEADER)) if any(r[i] not in ("", f.NOTHING) for r in whole[1:])]
    return [tuple(row[i] for i in shown) for row in whole]


def _row(criterion: CriterionView) -> Row:
    """A plain pass needs no words."""
    c = criterion
    plain = c.verdict == "pass" and not c.thin
    return (
        c.metric,
        _value(c),
        f.number(c.n),
        f.fixed(c.bound),
        c.threshold,
        f"{c.verdict} (thin)" if c.thin else c.verdict,
        "" if plain else c.reason,
    )


def _value(c: CriterionView) -> str:
    if c.value is None:
        return "not measured"
    if c.kind == "p_value":
        return f.p_value(c.value)
    return f.number(c.value) if c.successes is None else f.rate(c.value, c.n, c.successes)


def measured(metric: Metric) -> str:
    """A metric in one phrase: ``final_loss 0.334 (n 50)``."""
    if metric.value is None:
        told = f"{metric.name} was not measured"
    elif metric.successes is not None:
        told = f"{metric.name} {f.rate(metric.value, metric.n, metric.successes)}"
    else:
        n = "" if metric.n is None else f" (n {f.number(metric.n)})"
        told = f"{metric.name} {f.number(metric.value)}{n}"
    instrument = metric.instrument.value
    told += "" if instrument == "ok" else f", instrument {instrument}"
    return f"{told}, {metric.note}" if metric.note else told


def yields(summary: Mapping[str, Json]) -> list[Row]:
    """Rows under ``YIELD_HEADER``: what became of the candidates; none where nothing is told."""
    counts = f.mapping(f.mapping(summary.get("qc")).get("yield"))
    names = [n for n in _STAGES if n in counts] + sorted(set(counts) - set(_STAGES))
    first = counts[names[0]] if names else None
    before = [first, *(counts[name] for name in names)]
    return [
        (name, f.number(counts[name]), f.percent(counts[name], first), f.percent(counts[name], b))
        for name, b in zip(names, before, strict=False)
    ]
