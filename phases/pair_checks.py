"""What a set of preference pairs says of itself, read when it is made and again before DPO.

As ``phases.data_checks`` reads a dataset, with both answers of a pair read as responses: training
sees the rejected one too, so a held-out item in it is a leak like any other. Beside that a pair
whose two answers are one teaches nothing, and one whose critiques do not put chosen above rejected
teaches the wrong thing.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from phases import prompts
from phases.clean import DELIMITER
from phases.data_checks import (
    CLEAN,
    METADATA,
    DataParams,
    count_faults,
    held_out_items,
    missing,
    missing_metadata,
    no_texts,
    unkept,
)
from phases.leakage import find_overlaps
from phases.records import Row
from runbook.contract import Json, Metric, PhaseRequest
from runbook.text import fold

CLEAN_PAIRS: Final = (*CLEAN, "equal_pairs")
"""Counts of pairs at fault; nothing is trained on where one of them is not 0."""

_SIDES: Final = ("chosen", "rejected")
_TEXTS: Final = ("instruction", "prompt", *_SIDES)
_CRITIQUES: Final = ("chosen_critique", "rejected_critique")
_METADATA: Final = (*METADATA, "adapter_sha256", "filter")
"""The answers came from an adapter and were judged by a filter; a record of SFT's knows neither."""


def measure_pairs(
    request: PhaseRequest, params: DataParams, pairs: Sequence[Row]
) -> tuple[Metric, ...]:
    """Every count of the module; writes the pairs behind them beside the step's files.

    Raises:
        ConfigError: the held-out set cannot be read, or is not the one that was sealed.
    """
    views = [_as_record(pair, side) for pair in pairs for side in _SIDES]
    found = [
        {**hit, "row": place, "part": _SIDES[side] if part in {"response", "completion"} else part}
        for hit in find_overlaps(views, held_out_items(request, params), params.near_duplicate)
        for place, side in [divmod(hit["row"], len(_SIDES))]
        for part in [hit["part"]]
        # What both sides have in common is told once.
        if side == 0 or part in {"response", "completion"}
    ]
    equal = [
        {"check": "equal_pairs", "row": place, **{name: pair.get(name) for name in _TEXTS}}
        for place, pair in enumerate(pairs)
        if is_equal(pair)
    ]
    counted = count_faults(request, params, pairs, [*found, *equal], untold)
    n, evidence = len(pairs), counted[-1].evidence
    return (
        *counted,
        Metric("equal_pairs", float(len(equal)) if n else None, n=n, evidence=evidence),
    )


def _as_record(pair: Row, side: str) -> Row:
    """One side as a dataset's row: the response is what stands between prompt and delimiter."""
    said = str(pair.get(side, ""))
    return {
        "instruction": pair.get("instruction", ""),
        "prompt": pair.get("prompt", ""),
        "response": said.removeprefix(" ").removesuffix(prompts.ENDING),
        "completion": said,
    }


def is_equal(pair: Row) -> bool:
    """Whether chosen and rejected are one text, whatever the case, spacing or unseen characters.

    A sign or a full stop may be all that makes an answer wrong, so punctuation tells two apart.
    """
    chosen, rejected = (
        fold(str(pair.get(side, ""))).casefold().removesuffix(prompts.ENDING.casefold()).split()
        for side in _SIDES
    )
    return chosen == rejected


def untold(pair: Row) -> Iterator[str]:
    """The fields without which nobody could tell how a pair was made, and what belies them."""
    yield from missing(pair, (*_TEXTS, *_CRITIQUES))
    yield from missing_metadata(pair, _METADATA)
    yield from no_texts(pair, _TEXTS)
    asked = pair.get("instruction")
    if asked and pair.get("prompt") not in (None, "", prompts.evaluation_prompt(str(asked))):
        yield "prompt is not the instruction's evaluation prompt"
    for side in _SIDES:
        said = pair.get(side)
        if said and not (str(said).startswith(" ") and str(said).endswith(prompts.ENDING)):
            yield f"{side} is no response with its delimiter"
        elif said and not (body := str(said).removesuffix(prompts.ENDING).strip()):
            yield f"{side} says nothing"
        elif said and DELIMITER in body:
            yield f"{side} holds a delimiter before its end"
    yield from unkept(pair, "chosen_critique")
    better, worse = (_score(pair.get(name)) for name in _CRITIQUES)
    if all(pair.get(name) for name in _CRITIQUES) and not better > worse:
        yield f"chosen_critique does not put chosen above rejected: {better:g} and {worse:g}"


def _score(critique: Json) -> float:
    """What the filter gave; NaN, which is above and below nothing, where that is no number."""
    score = critique.get("score") if isinstance(critique, dict) else None
    known = isinstance(score, int | float) and not isinstance(score, bool)
    return float(score) if known and score is not None and math.isfinite(score) else math.nan
