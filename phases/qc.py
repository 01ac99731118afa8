"""Quality control: candidates' fates to counts, distributions and metrics. Measures, judges not.

Every rate names its denominator and can be recomputed from the candidate rows it points at.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from phases.clean import DELIMITER, STOP_STRINGS, has_residue, is_cut_off
from phases.filters import keeps
from phases.records import Row
from runbook.contract import Instrument, Json, Metric

_SCORE_BIN: Final = 0.25
MIN_TORN: Final = 5
MAX_TORN: Final = 0.05
"""Of the raw generations may break off though they hit no limit: a model ends a text badly too."""


SHOWN: Final = 10
"""Rows of each kind that a reviewer is shown."""
_SHARES: Final = {
    "runaway": 4,
    "hit_limit": 3,
    "residue": 1,
    "rejected_pair": 1,
    "rejected_instruction": 1,
    "empty_response": 0,
}
"""Of the flagged rows, by what was said of them."""


def measure(
    rows: Sequence[Row], kept: Sequence[Row], evidence: str, dataset: str
) -> tuple[Metric, ...]:
    """The QC metrics of stage 1.

    Args:
        rows: every candidate with its fate.
        kept: the records of the dataset.
        evidence: path of the candidate rows, relative to the workspace.
        dataset: path of the records.
    """
    judged = [r for r in rows if "instruction_critique" in r]
    raw = [r for r in rows if "raw" in r]
    cleaned = [r for r in raw if r["response"] or r["runaway"]]
    paired = [r for r in rows if "pair_critique" in r]
    tokens = sorted(r["response_tokens"] for r in kept)
    return (
        _rate(
            "runaway_rate",
            sum(r["runaway"] for r in cleaned),
            len(cleaned),
            "cleaned responses",
            evidence,
        ),
        _token_limit(raw, evidence),
        _rate(
            "instruction_acceptance",
            sum(r["fate"] != "rejected_instruction" for r in judged),
            len(judged),
            "instructions judged",
            evidence,
        ),
        _rate(
            "pair_acceptance",
            sum(keeps(r["pair_critique"]) for r in paired),
            len(paired),
            "pairs judged",
            evidence,
        ),
        Metric(
            "delimiter_left",
            float(sum(left_over(r["response"]) for r in kept)) if kept else None,
            n=len(kept),
            evidence=dataset,
        ),
        Metric(
            "median_tokens",
            _quantile(tokens, 0.5) if tokens else None,
            n=len(tokens),
            denominator="kept responses",
            evidence=dataset,
        ),
        Metric("kept", float(len(kept)), n=len(kept), evidence=dataset),
    )


def _token_limit(raw: Sequence[Row], evidence: str) -> Metric:
    """The share that hit the limit; broken where what is said to have ended did not.

    A text that was not stopped by the limit ends by a stop string or where the model ended it. One
    that carries no stop string and breaks off in mid-sentence was cut by something.
    """
    found = _rate(
        "token_limit_rate",
        sum(r["hit_limit"] for r in raw),
        len(raw),
        "raw generations",
        evidence,
    )
    torn = [
        r
        for r in raw
        if not r["hit_limit"]
        and not any(stop in r["raw"].lstrip() for stop in STOP_STRINGS)
        and is_cut_off(r["raw"])
    ]
    if len(torn) < MIN_TORN or len(torn) < MAX_TORN * len(raw):
        return found
    note = (
        f"{len(torn)} of {len(raw)} raw generations that did not hit the limit, so the engine "
        "says, break off in mid-sentence; look at how it reads hit_limit"
    )
    return replace(found, instrument=Instrument.BROKEN, note=note)


def left_over(response: str) -> bool:
    """Whether a piece of the delimiter or a special token stands in a kept response.

    Cleaning's own patterns, and a reading that does not use them.
    """
    return has_residue(response) or holds_piece(response)


def holds_piece(text: str) -> bool:
    """Whether five or more characters of the delimiter in a row stand in a text.

    At the end of a line three are enough; elsewhere they may be a heading's. The bare word END is
    no piece.
    """
    if any(piece in text for piece in _pieces(5)):
        return True
    small = tuple(piece for piece in _pieces(3) if "#" in piece)
    return any(line.rstrip().endswith(small) for line in text.split("\n"))


def _pieces(size: int) -> set[str]:
    return {DELIMITER[i : i + size] for i in range(len(DELIMITER) - size + 1)}


def _rate(name: str, hits: int, n: int, denominator: str, evidence: str) -> Metric:
    value = hits / n if n else None
    return Metric(name, value, n, hits, denominator, evidence=evidence)


def summarise(rows: Sequence[Row], kept: Sequence[Row]) -> dict[str, Json]:
    """Counts, yields, token statistics and score histograms, for the report."""
    tokens = sorted(r["response_tokens"] for r in kept)
    fates = Counter(str(r["fate"]) for r in rows)
    return {
        "yield": {
            "candidates": len(rows),
            "judged instructions": sum("instruction_critique" in r for r in rows),
            "accepted instructions": sum("raw" in r for r in rows),
            "clean responses": sum("pair_critique" in r for r in rows),
            "accepted pairs": fates["kept"],
            "in the dataset": len(kept),
        },
        "fates": dict(sorted(fates.items())),
        "cut_by": dict(sorted(Counter(str(r["cut_by"]) for r in rows if "cut_by" in r).items())),
        "response_tokens": {
            "median": _quantile(tokens, 0.5),
            "p95": _quantile(tokens, 0.95),
            "max": float(tokens[-1]),
        }
        if tokens
        else {},
        "scores": {
            which: _histogram([r[which]["score"] for r in rows if which in r])
            for which in ("instruction_critique", "pair_critique")
        },
    }


def _quantile(ordered: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics (type 7 of Hyndman and Fan 1996)."""
    at = q * (len(ordered) - 1)
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    return float(low + (high - low) * (at - math.floor(at)))


def _histogram(values: Sequence[float]) -> dict[str, int]:
    """Counts by the lower edge of bins 0.25 wide."""
    edges = Counter(math.floor(v / _SCORE_BIN) * _SCORE_BIN for v in values)
    return {f"{edge:+.2f}": edges[edge] for edge in sorted(edges)}


def flagged(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Ten raw rows behind the worst readings, each as it was made and with what was said of it.

    Every reading has a share, or a detector that calls good rows bad could hide behind another's
    finds. A share that is not used goes to the others; rows are taken evenly from all that the
    reading holds.
    """
    taken: dict[int, Row] = {}
    for share in (_SHARES, dict.fromkeys(_SHARES, SHOWN)):
        for name, most in share.items():
            found = [r for r in rows if _is_flagged(r, name) and id(r) not in taken]
            room = min(most, SHOWN - len(taken))
            taken |= {id(r): r for r in _evenly(found, room)}
    fields = ("instruction", "raw", "response", "runaway", "hit_limit", "cut_by", "fate")
    return tuple({f: r[f] for f in fields if f in r} for r in taken.values())


def _is_flagged(row: Row, name: str) -> bool:
    return bool(row.get(name)) or row["fate"] == name


def _evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """So many of them, from the first to near the last; all where there are no more."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def sample(kept: Sequence[Row], seed: int) -> tuple[Row, ...]:
    """Ten kept rows drawn at random by the session's seed."""
    drawn = random.Random(seed).sample(range(len(kept)), min(SHOWN, len(kept)))  # noqa: S311 - no secret
    return tuple(
        {"instruction": kept[i]["instruction"], "response": kept[i]["response"]}
        for i in sorted(drawn)
    )
