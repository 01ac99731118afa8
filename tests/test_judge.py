"""The gate's door: what the gate derives counts only where the gate derived it."""

import json
from pathlib import Path
from typing import Any

import pytest

from gates.judge import judge_gate
from runbook.contract import Criterion, Gate, Judgement, Metric, Verdict

CLAIMS = (
    (Criterion("mcnemar_p", "p_value", below=0.01), Metric("mcnemar_p", 1e-9, n=160)),
    (Criterion("lift", "statistic", above=0), Metric("lift", 0.3, n=160)),
    (Criterion("power", "power", at_least=0.8), Metric("power", 1.0, n=160)),
    (Criterion("aa_p", "control", above=0.01), Metric("aa_p", 1.0, n=32)),
    (Criterion("aa_flip_rate", "control", below=0.2), Metric("aa_flip_rate", 0.0, 32, 0)),
    (Criterion("damage_unseen", "control", at_most=0), Metric("damage_unseen", 0.0, n=48)),
    (Criterion("confounded", "control", at_most=0), Metric("confounded", 0.0, n=160)),
    (
        Criterion("runaway_sensitivity", "instrument", at_least=0.6),
        Metric("runaway_sensitivity", 1.0, n=50, bound=0.94),
    ),
    (
        Criterion("scorer_specificity", "instrument", at_least=0.6),
        Metric("scorer_specificity", 1.0, n=50, bound=0.94),
    ),
    (
        Criterion("pair_filter_auc", "instrument", at_least=0.6),
        Metric("pair_filter_auc", 0.9, n=84, bound=0.8),
    ),
    (
        Criterion("forecast_distinct_low", "statistic", at_least=0.5),
        Metric("forecast_distinct_low", 0.9, n=400),
    ),
)
SOURCES = (
    "paired_outcomes",
    "aa_flips",
    "variant_readings",
    "detector_readings",
    "filter_readings",
    "scored_responses",
    "forecast_target",
    "declared_effect",
    "base_rate",
)


@pytest.mark.parametrize(("criterion", "claim"), CLAIMS, ids=[c.metric for c, _ in CLAIMS])
@pytest.mark.parametrize("sources", [(), SOURCES])
def test_a_step_does_not_report_what_the_gate_derives(
    tmp_path: Path, criterion: Criterion, claim: Metric, sources: tuple[str, ...]
) -> None:
    """With no source, or one whose rows are gone, a good claim is invalid all the same."""
    metrics = (*(Metric(name, 3.0, n=3, evidence="gone") for name in sources), claim)
    judged = judge_gate(Gate((criterion,)), metrics, tmp_path, final=True)
    assert judged.verdict is Verdict.INVALID
    assert "a step may not report it" in judged.reasons[0]
    recorded = judge_gate(Gate((criterion,)), (claim,), None, final=True)
    assert recorded.verdict is Verdict.PASS, "on record it counts as the gate derived it"


def judge_pairs(folder: Path, n: int, *more: Metric) -> Judgement:
    rows = [{"id": f"{i}", "kind": "k", "base": False, "tuned": i < 80} for i in range(160)]
    (folder / "p").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate = Gate((Criterion("lift", "statistic", above=0),))
    pairs = Metric("paired_outcomes", float(n), n=n, evidence="p")
    return judge_gate(gate, (pairs, *more), folder, final=True)


def test_a_claim_beside_sound_rows_is_invalid_too(tmp_path: Path) -> None:
    """Which of the two would count is not guessed."""
    assert judge_pairs(tmp_path, 160).verdict is Verdict.PASS
    judged = judge_pairs(tmp_path, 160, Metric("lift", 0.9, n=160))
    assert judged.verdict is Verdict.INVALID
    assert judge_pairs(tmp_path, 160, Metric("lifted", 0.9, n=160)).verdict is Verdict.PASS


def test_rows_are_held_against_their_count(tmp_path: Path) -> None:
    """325 pairs were reported, 160 lie there."""
    judged = judge_pairs(tmp_path, 325)
    assert judged.verdict is Verdict.INVALID
    assert "tells of 325, its rows of 160" in judged.reasons[0]


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (Metric("tuned_rate", 0.5, n=160, successes=80), ""),
        (Metric("tuned_rate", 0.5, n=160), ""),
        (Metric("base_rate", 0.0, n=160, successes=0), ""),
        (
            Metric("tuned_rate", 12 / 160, n=160, successes=12),
            "tuned_rate tells of 12 of 160 right, the pairs of 80 of 160",
        ),
        (
            Metric("tuned_rate", 0.25, n=320, successes=80),
            "tuned_rate tells of 80 of 320 right, the pairs of 80 of 160",
        ),
        (
            Metric("base_rate", 0.5, n=160, successes=80),
            "base_rate tells of 80 of 160 right, the pairs of 0 of 160",
        ),
    ],
)
def test_pairs_are_held_against_the_rates_beside_them(
    tmp_path: Path, rate: Metric, told: str
) -> None:
    """Rows that count other successes than the step did are not the rows behind its numbers."""
    judged = judge_pairs(tmp_path, 160, rate)
    assert judged.verdict is (Verdict.INVALID if told else Verdict.PASS)
    assert told in "".join(judged.reasons)


def test_rows_that_nobody_vouches_for_are_not_read(tmp_path: Path) -> None:
    """Where the evidence was refused, all that is derived from it says why."""
    refused = Metric("paired_outcomes", None, n=160, note="its rows are of elsewhere")
    gate = Gate((Criterion("lift", "statistic", above=0),))
    judged = judge_gate(gate, (refused,), tmp_path, final=True)
    assert judged.verdict is Verdict.INVALID
    assert "its rows are of elsewhere" in judged.reasons[0]


BYTES = (
    b"",
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
    b"{}\n",
    b'{"id": ["a"], "instrument": {}, "kind": [], "filter": 1, "half": [], "group": 0}\n',
    b'{"id": "a", "kind": "k", "base": 1e999, "tuned": 7, "success": true, "scored": []}\n',
    b'{"instruction": "a", "count": 1, "kept": true, "tokens": 1e999, "list_tokens": 1}\n',
    b'{"instruction": "a", "count": 99999999999, "kept": true, "tokens": 1, "list_tokens": 1}\n',
    b'{"instruction": [], "count": 1, "known": 0, "kept": 0, "tokens": "", "list_tokens": ""}\n',
)


@pytest.mark.parametrize("data", BYTES, ids=range(len(BYTES)))
@pytest.mark.parametrize("target", [200.0, 1e308])
def test_no_bytes_make_the_judge_raise(tmp_path: Path, data: Any, target: float) -> None:
    """Whatever lies in the place of the rows, the gate is invalid and says why."""
    (tmp_path / "e").write_bytes(data)
    metrics = (
        *(Metric(name, target, evidence="e") for name in SOURCES),
        Metric("declared_alpha", 0.01),
    )
    judged = judge_gate(Gate(tuple(c for c, _ in CLAIMS)), metrics, tmp_path, final=True)
    assert {c.verdict for c in judged.criteria} == {Verdict.INVALID}
    assert all(judged.reasons)
