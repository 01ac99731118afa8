"""Instruments' readings of labelled probes to what they are worth. No torch.

Reads one JSONL row a probe and filter: ``kind, filter, id, half, group, good, score, kept,
in_use``; and one a probe and detector: ``instrument, id, half, difficulty, label, said, own``.
Only rows of the half that set no cut, and by which nothing was mended, count; rows that a model
wrote are told apart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gates.evidence import UNREADABLE, rows_of, unread
from gates.stats import auc, auc_bound, wilson, wilson_bound
from runbook.contract import Instrument, Json, Metric

READINGS: Final = "filter_readings"
"""The metric whose evidence is the file of readings."""
DETECTORS: Final = "detector_readings"
"""As ``READINGS``, of the detectors."""
OF_FILTERS: Final = ("instruction_filter_auc", "pair_filter_auc", "pair_filter_hard_auc")
DERIVES: Final = (*OF_FILTERS, "*_sensitivity", "*_specificity")
"""An asterisk stands for any detector's name."""
_NO_CUT: Final = "no cut keeps ten tuning rows of which good_share are good; lower it or label more"
_REMEDY: Final = "name another filter in the calibration's spec, or show it better examples"

_MEND: Final = "the detector is not what was shipped, or worse; 'runbook gate calibrate' shows it"

Row = dict[str, Json]


def derive(
    metrics: Sequence[Metric], workspace: Path
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The metrics with those of the instruments added, and every instrument's for the report.

    Adds ``instruction_filter_auc``, ``pair_filter_auc`` (on easy negatives) and, for the report
    alone, ``pair_filter_hard_auc``; and of each detector ``<name>_sensitivity`` and
    ``<name>_specificity``. Where the rows cannot be read, the filters' are there without a value,
    which says why; of detectors not even the names are known then, so nothing is added.
    """
    known: list[Metric] = [*metrics]
    details: dict[str, Json] = {}
    for metric in metrics:
        if metric.name not in (READINGS, DETECTORS):
            continue
        of_filters = metric.name == READINGS
        try:
            rows = rows_of(metric, workspace)
            if of_filters:
                _refuse_doubles(rows)
                found, table = _metrics(rows, metric.evidence), _table(rows)
            else:
                found, table = _agreements(rows, metric.evidence), _detector_table(rows)
            details["filters" if of_filters else "detectors"] = table
        except UNREADABLE as error:
            found = unread(OF_FILTERS if of_filters else (), metric, error)
            details["error" if of_filters else "detectors_error"] = str(error)
        known += found
    return tuple(known), details


def _agreements(rows: Sequence[Row], evidence: str) -> tuple[Metric, ...]:
    """Sensitivity and specificity of each detector, with their lower bounds.

    Of all rows, or of the shipped ones where those alone have the lower bound: easy rows of a
    user's own vouch for no detector that fails the hard ones.
    """
    if len({(r["instrument"], r["id"]) for r in rows}) != len(rows):
        raise ValueError("a probe stands twice among the detectors' readings")
    if not all(isinstance(r["label"], bool) and isinstance(r["said"], bool) for r in rows):
        raise ValueError("a detector's reading is no yes or no")
    found = []
    for name in dict.fromkeys(str(r["instrument"]) for r in rows):
        for side, label in (("sensitivity", True), ("specificity", False)):
            asked = [r for r in rows if r["instrument"] == name and r["half"] == "test"]
            told = [r for r in asked if r["label"] is label]
            pooled = _hits(told)
            shipped = _hits([r for r in told if r.get("own") is not True])
            (right, n), alone = min((pooled, False), (shipped, True), key=lambda s: _lower(*s[0]))
            found.append(
                Metric(
                    f"{name}_{side}",
                    right / n if n else None,
                    n=n,
                    successes=right,
                    denominator=f"{'shipped ' * alone}probes by which it was not mended",
                    bound=_lower(right, n) if n else None,
                    evidence=evidence,
                    note=_MEND,
                )
            )
    return tuple(found)


def _hits(rows: Sequence[Row]) -> tuple[int, int]:
    return sum(r["said"] is r["label"] for r in rows), len(rows)


def _lower(right: int, n: int) -> float:
    """Of nothing, 0."""
    return wilson_bound(right, n, side="lower") if n else 0.0


def _detector_table(rows: Sequence[Row]) -> list[dict[str, Json]]:
    """An entry for each detector, in the order of the rows; with the rows that it got wrong."""
    found: list[dict[str, Json]] = []
    for name in dict.fromkeys(str(row["instrument"]) for row in rows):
        test = [r for r in rows if r["instrument"] == name and r["half"] == "test"]
        found.append(
            {
                "instrument": name,
                **{
                    part: {
                        "sensitivity": _rate([r["said"] for r in asked if r["label"]]),
                        "specificity": _rate([not r["said"] for r in asked if not r["label"]]),
                    }
                    for part, asked in (
                        ("all", test),
                        ("easy", [r for r in test if r["difficulty"] == "easy"]),
                        ("hard", [r for r in test if r["difficulty"] == "hard"]),
                    )
                },
                "wrong": [r["id"] for r in test if r["said"] is not r["label"]],
            }
        )
    return found


def _refuse_doubles(rows: Sequence[Row]) -> None:
    if len({(r["kind"], r["filter"], r["half"], r["id"]) for r in rows}) != len(rows):
        raise ValueError("a probe stands twice among the readings")


def _metrics(rows: Sequence[Row], evidence: str) -> tuple[Metric, ...]:
    used = [row for row in rows if row["in_use"] is True]
    instructions = [row for row in used if row["kind"] == "instructions"]
    pairs = [row for row in used if row["kind"] == "pairs"]
    return (
        _auc(OF_FILTERS[0], instructions, ("easy", "hard"), evidence),
        _auc(OF_FILTERS[1], pairs, ("good", "easy"), evidence),
        _auc(OF_FILTERS[2], pairs, ("good", "hard"), evidence),
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
