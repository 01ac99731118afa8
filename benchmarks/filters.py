"""What helps the A/B critic, on the tuning half of the probes: shots, orders, a correction.

    python benchmarks/filters.py [MODEL_FOLDER]

The model is the quickstart's, as ``make quickstart`` leaves it under workspace/models/base, unless
a folder is given. Each row shows the critic so many of the few-shot file's labelled examples. The
correction takes off what the critic says of an empty text (Zhao et al. 2021); it moves the cut and
cannot move the AUC. The other half of the probes is not touched: the calibration's gate reads that.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any, Final

from setting import ROOT, find_setting, machine

from gates.stats import auc, auc_bound
from phases import prompts
from phases.base_model import load_base_model
from phases.critic import LABELS
from phases.probes import ProbeInstruction, ProbePair, load_probes
from phases.prompts import FewShot, load_few_shot
from phases.transformers_engine import TransformersEngine
from runbook.report.safe_text import columns

SHOTS: Final = (4, 8, 16, 32, 48, 96)
BATCH: Final = 32
HEADER: Final = (
    "shots",
    "A is good",
    "B is good",
    "both",
    "lower bound",
    "right at 0",
    "corrected",
)

Prefix = Callable[[FewShot, str, str], str]
Labelled = Sequence[tuple[str, bool]]


def main(arguments: Sequence[str]) -> int:
    """Print both tables. Exit 2 where there is no model."""
    folder, plan = find_setting(arguments, __doc__)
    engine = TransformersEngine(load_base_model(folder, plan.model, plan.engine))
    shots = load_few_shot(ROOT / "specs" / "few_shot.yaml")
    probe = ROOT / "specs" / "probe"
    instructions = [
        (prompts.instruction_critic_suffix(p.text), p.good)
        for p in load_probes(probe / "instructions.jsonl", ProbeInstruction)
        if p.half == "tune"
    ]
    pairs = [
        (prompts.pair_critic_suffix(p.instruction, p.response), p.good)
        for p in load_probes(probe / "pairs.jsonl", ProbePair)
        if p.half == "tune" and p.group != "hard"
    ]
    print(machine(), end="\n\n")
    for title, most, labelled, prefix, empty in (
        (
            "Instructions",
            len(shots.labelled_instructions),
            instructions,
            prompts.instruction_critic_prefix,
            prompts.instruction_critic_suffix(""),
        ),
        (
            "Pairs, easy negatives",
            len(shots.labelled_pairs),
            pairs,
            prompts.pair_critic_prefix,
            prompts.pair_critic_suffix("", ""),
        ),
    ):
        began = time.monotonic()
        rows = [HEADER, *_rows(engine, shots, most, labelled, prefix, empty)]
        print(f"{title} (AUC over {len(labelled)}, {time.monotonic() - began:.0f} s)")
        print("\n".join(columns(rows)), end="\n\n")
    return 0


def _rows(
    engine: TransformersEngine,
    shots: FewShot,
    most: int,
    labelled: Labelled,
    prefix: Prefix,
    empty: str,
) -> Iterator[tuple[str, ...]]:
    for count in (n for n in SHOTS if n <= most):
        fewer = shots.model_copy(
            update={
                "labelled_instructions": shots.labelled_instructions[:count],
                "labelled_pairs": shots.labelled_pairs[:count],
            }
        )
        texts = [text for text, _ in labelled] + [empty]
        orders = [
            _log_odds(engine, prefix(fewer, good, bad), texts, (good, bad))
            for good, bad in (LABELS, LABELS[::-1])
        ]
        both = [fmean(pair) for pair in zip(*orders, strict=True)]
        nothing = both.pop()
        areas = [_area(scores[: len(labelled)], labelled) for scores in (*orders, both)]
        good = sum(label for _, label in labelled)
        yield (
            str(count),
            *(f"{area:.3f}" for area in areas),
            f"{auc_bound(areas[-1], good, len(labelled) - good):.3f}",
            f"{_right(both, labelled, 0.0):.3f}",
            f"{_right(both, labelled, nothing):.3f}",
        )


def _log_odds(
    engine: TransformersEngine, prefix: str, texts: Sequence[str], labels: tuple[str, str]
) -> list[float]:
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    found = [0.0] * len(texts)
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        read = engine.label_logps(prefix, [texts[at] for at in part], labels)
        for at, (good, bad) in zip(part, read, strict=True):
            found[at] = good - bad
    return found


def _area(scores: Sequence[float], labelled: Labelled) -> float:
    kept: dict[bool, list[float]] = {True: [], False: []}
    for score, (_, good) in zip(scores, labelled, strict=True):
        kept[good].append(score)
    return auc(kept[True], kept[False])


def _right(scores: Sequence[float], labelled: Labelled, cut: float) -> float:
    pairs: Any = zip(scores, labelled, strict=True)
    return fmean((score > cut) is good for score, (_, good) in pairs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
