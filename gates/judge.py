"""A gate's door: metrics and the evidence they point at, to one judgement."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gates import instruments, significance, thresholds
from runbook.contract import Gate, Judgement, Metric


def judge_gate(gate: Gate, metrics: Sequence[Metric], workspace: Path, *, final: bool) -> Judgement:
    """Judge a step's metrics by its gate.

    Args:
        gate: the declared criteria.
        metrics: what the step measured.
        workspace: root of the paths in ``Metric.evidence``.
        final: the sample cannot be extended any more.
    """
    known, details = significance.derive(metrics, workspace)
    known, more = instruments.derive(known, workspace)
    judgement = thresholds.judge(gate.criteria, known, final=final)
    return replace(judgement, details={**details, **more})
