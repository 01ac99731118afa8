"""A gate's door: metrics and the evidence they point at, to one judgement."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from gates import (
    confounds,
    controls,
    forecast,
    instruments,
    power,
    scorer,
    significance,
    thresholds,
)
from runbook.contract import Gate, Json, Judgement, Metric

_DERIVERS: Final = (significance, instruments, forecast, scorer, power, controls, confounds)
_RESERVED: Final = tuple(name for module in _DERIVERS for name in module.DERIVES)
_OWN: Final = "a step may not report it: the gate derives it from the rows"


def judge_gate(
    gate: Gate, metrics: Sequence[Metric], workspace: Path | None, *, final: bool
) -> Judgement:
    """Judge a step's metrics by its gate.

    Whatever bytes the evidence holds, this raises nothing: what cannot be read has no value. A
    metric that the gate derives counts only where the gate derived it; one of that name among the
    step's own has no value either.

    Args:
        gate: the declared criteria.
        metrics: what the step measured.
        workspace: root of the paths in ``Metric.evidence``; None: no rows are left, and what was
            derived from them once is among the metrics.
        final: the sample cannot be extended any more.
    """
    known, details = tuple(metrics), dict[str, Json]()
    if workspace is not None:
        known, details = _derived(known, workspace)
    doubts = (*confounds.DERIVES, *controls.doubts_a_pass(details))
    judgement = thresholds.judge(gate.criteria, known, final=final, doubts_a_pass=doubts)
    return replace(judgement, details=details)


def _derived(
    metrics: tuple[Metric, ...], workspace: Path
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """The step's metrics with the gate's own; those of a reserved name without their value."""
    refused = {m.name for m in metrics if any(fnmatchcase(m.name, own) for own in _RESERVED)}
    known, details = tuple(m for m in metrics if m.name not in refused), dict[str, Json]()
    for module in _DERIVERS:
        known, more = module.derive(known, workspace)
        details |= more
    kept = (m for m in known if m.name not in refused)
    return (*kept, *(Metric(name, None, note=_OWN) for name in sorted(refused))), details
