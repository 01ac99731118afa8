"""Filters' readings of labelled probes to what they are worth. No torch.

Reads one JSONL row a probe and filter: ``kind, filter, id, half, group, good, score, kept,
in_use``. Only rows of the half that set no cut count; rows that a model wrote are told apart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gates.stats import auc, auc_bound, wilson
from runbook.artifacts import read_jsonl
from runbook.contract import Instrument, Json, Metric
from runbook.errors import RunbookError

READINGS: Final = "filter_readings"
"""The metric whose evidence is the file of readings."""
_NO_CUT: Final = "no cut keeps ten tuning rows of which good_share are good; lower it or label more"
_REMEDY: Final = "name another filter in the calibration's spec, or show it better examples"

Row = dict[str, Json]


def derive(
    metrics: Sequence[Metric], workspace: Path
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The metrics with those of the filters in use added, and every filter's for the report.

    Adds ``instruction_filter_auc``, ``pair_filter_auc`` (on easy negatives) and, for the report
    alone, ``pair_filter_hard_auc``. Where the rows cannot be read, nothing is added, so that the
    criteria find nothing measured.
    """
    readings = next((m for m in metrics if m.name == READINGS), None)
    if readings is None:
        return tuple(metrics), {}
    try:
        rows = read_jsonl(workspace / readings.evidence)
        _refuse_doubles(rows)
        found = _metrics(rows, readings.evidence)
        table = _table(rows)
    except (RunbookError, ValueError, KeyError, TypeError) as error:
        return tuple(metrics), {"error": str(error)}
    return (*metrics, *found), {"filters": table}


def _refuse_doubles(rows: Sequence[Row]) -> None:
    if len({(r["kind"], r["filter"], r["half"], r["id"]) for r in rows}) != len(rows):
        raise ValueError("a probe stands twice among the readings")


def _metrics(rows: Sequence[Row], evidence: str) -> tuple[Metric, ...]:
    used = [row for row in rows if row["in_use"] is True]
    instructions = [row for row in used if row["kind"] == "instructions"]
    pairs = [row for row in used if row["kind"] == "pairs"]
    return (
        _auc("instruction_filter_auc", instructions, ("easy", "hard"), evidence),
        _auc("pair_filter_auc", pairs, ("good", "easy"), evidence),
        _auc("pair_filter_hard_auc", pairs, ("good", "hard"), evidence),
    )


def _auc(name: str, rows: Sequence[Row], groups: Sequence[str], evidence: str) -> Metric:
    """An AUC over the held-back half of these groups, with its lower bound."""
    if len({row["filter"] for row in rows}) != 1:
        raise ValueError(f"{name}: not exactly one filter is in use")
    usable = any(row["kept"] for row in rows if row["half"] == "tune")
    measured = _area([r for r in rows if r["half"] == "test" and r["group"] in groups])
    return Metric(
        name,
        measured["auc"],
        n=measured["n"],
        denominator="probes never used to tune it",
        bound=measured["bound"],
        instrument=Instrument.OK if usable else Instrument.BROKEN,
        evidence=evidence,
        note=f"{rows[0]['filter']}: {_REMEDY if usable else _NO_CUT}",
    )


def _area(rows: Sequence[Row]) -> dict[str, Json]:
    """An AUC with its bound; None where a label is missing."""
    good = [row["score"] for row in rows if row["good"] is True]
    bad = [row["score"] for row in rows if row["good"] is False]
    if not good or not bad:
        return {"n": len(rows), "auc": None, "bound": None}
    area = auc(good, bad)
    return {"n": len(rows), "auc": area, "bound": auc_bound(area, len(good), len(bad))}


def _table(rows: Sequence[Row]) -> list[dict[str, Json]]:
    """An entry for each filter that was measured, in the order of the rows."""
    names = dict.fromkeys((str(row["kind"]), str(row["filter"])) for row in rows)
    return [
        _entry(kind, name, [r for r in rows if (r["kind"], r["filter"]) == (kind, name)])
        for kind, name in names
    ]


def _entry(kind: str, name: str, rows: Sequence[Row]) -> dict[str, Json]:
    test = [row for row in rows if row["half"] == "test"]
    good = "good" if kind == "pairs" else ""
    written = [row for row in rows if row["half"] == "generated"]
    entry: dict[str, Json] = {
        "kind": kind,
        "filter": name,
        "in_use": rows[0]["in_use"],
        "all": _area(test),
        "easy": _area([r for r in test if r["group"] in ("easy", good)]),
        "hard": _area([r for r in test if r["group"] in ("hard", good)]),
        **_kept(test),
    }
    if written:
        entry["generated"] = {"all": _area(written), **_kept(written)}
    return entry


def _kept(rows: Sequence[Row]) -> dict[str, Json]:
    """Sensitivity and specificity at the cut, and the share of good rows before and after it."""
    return {
        "sensitivity": _rate([r["kept"] is True for r in rows if r["good"]]),
        "specificity": _rate([r["kept"] is False for r in rows if not r["good"]]),
        "good_before": _rate([r["good"] is True for r in rows]),
        "good_after": _rate([r["good"] is True for r in rows if r["kept"]]),
    }


def _rate(hits: Sequence[bool]) -> dict[str, Json]:
    """Counts with Wilson's two-sided 95 % interval."""
    n = len(hits)
    return {"successes": sum(hits), "n": n, "interval": list(wilson(sum(hits), n))}
