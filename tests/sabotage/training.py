"""Step beside the runbook: a training that takes no time, on data checked as the real one checks.

The weights follow from the seed and are read for what is not finite; the fake engine knows the
adapter by its folder.
"""

import math
import random
from typing import Final

from phases.data_checks import CLEAN, measure_data
from phases.records import parse_params
from phases.training_params import SftParams
from runbook.artifacts import complete_directory, describe, read_jsonl, write_json
from runbook.contract import Metric, PhaseRequest, PhaseResult

PARAMS: Final = "phases.training_params:SftParams"


def draw_weights(seed: int) -> list[float]:
    """So many weights as a small adapter might have."""
    draw = random.Random(seed)
    return [draw.gauss(0, 0.02) for _ in range(64)]


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifact ``adapter``, a folder; nothing is trained where the data is not clean."""
    params = parse_params(SftParams, request)
    records = read_jsonl(request.workspace / request.inputs["scale"]["dataset"].path)
    checks = measure_data(request, params, records)
    if any(m.name in CLEAN and m.value for m in checks):
        return PhaseResult((*checks, Metric("nonfinite_weights", None, n=1)))
    weights = draw_weights(request.seed)
    folder = request.output / f"attempt_{request.attempt}"
    write_json(folder / "adapter_config.json", {"weights": [repr(w) for w in weights]})
    complete_directory(folder)
    finite = [w for w in weights if math.isfinite(w)]
    return PhaseResult(
        (
            *checks,
            Metric("nonfinite_weights", float(len(weights) - len(finite)), n=len(weights)),
            Metric("adapter_norm", math.hypot(*finite), n=len(finite)),
        ),
        (describe("adapter", folder, request.workspace),),
    )
