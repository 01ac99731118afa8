"""Step: keep the answers of one line that a person would read, and write them as a dataset.

The rows were made with an ``Instruction:``/``Response:`` prompt; what is left of one in an answer,
as ``Label:`` or ``###END###``, was cut by then. This step only counts what slipped through.
"""

import json
import logging
import re

from phases.clean import has_marker, has_residue
from runbook.artifacts import describe, write_bytes
from runbook.contract import Metric, PhaseRequest, PhaseResult

logger = logging.getLogger(__name__)

_TURN = re.compile(r"(?:^|\n)\s*(?:Response:|Q:|A:|<\|im_start\|>)")
_URL = re.compile(r"https?://\S+")
GRADES = {"A": "keep", "B": "look at", "C": "drop"}


def run(request: PhaseRequest) -> PhaseResult:
    """Instruction: read the file named in the parameters, and write the rows that are sound."""
    source = request.workspace / str(request.params["source"])
    kept, dropped = [], {"marker": 0, "turn": 0, "url": 0, "markup": 0}
    for line in source.read_text("utf-8").splitlines():
        row = json.loads(line)
        text = str(row["response"])
        if has_marker(text) or has_residue(text):
            dropped["marker"] += 1
        elif _TURN.search(text) or text.startswith("Response:"):
            dropped["turn"] += 1
        elif "<|im_start|>" in text or "<start_of_turn>" in text:
            dropped["markup"] += 1
        elif _URL.search(text):
            dropped["url"] += 1
        else:
            # A grade of "A" or "B" is a person's here, and no model's.
            kept.append({**row, "grade": GRADES.get(str(row.get("grade")), "look at")})
    logger.info("Response: %d kept, %s dropped", len(kept), dropped)
    if not kept:
        raise ValueError(f"no row of {source} is sound; does each hold 'Response:' text?")
    output = request.work / "kept.jsonl"
    write_bytes(output, "".join(f"{json.dumps(row)}\n" for row in kept).encode())
    return PhaseResult(
        metrics=(Metric("kept", float(len(kept)), n=len(kept) + sum(dropped.values())),),
        artifacts=(describe("kept", output, request.workspace),),
    )
