"""Step, phase C: the base model's rate on the held-out set, before anything is spent on training.

With no gap left to close, training cannot show a gain; with a scorer that is wrong, it shows one
that is none. So the scorer goes through its controls here and is certified for the evaluation, and
the base goes through its sentinels. The rows made here are the base's side of the paired
evaluation; they are not made a second time.
"""

import random
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import Field

from phases import scorer_controls
from phases.certificates import ARTIFACT, SCORER, certify_scorer, sign
from phases.contamination import read_sentinels
from phases.data_checks import check_sealed
from phases.engines import open_engine
from phases.held_out import load_items
from phases.records import Row, parse_params
from phases.scoring import Conditions, Item, batches_of, items_of, score_batches
from runbook.artifacts import describe, sha256_file, write_json, write_jsonl
from runbook.contract import Metric, PhaseRequest, PhaseResult

PARAMS: Final = "phases.baseline:BaselineParams"
METRICS: Final = (
    "end_of_turn_logp",
    "completions_right",
    "assistant_like",
    "bare_endings",
    "prefix_mismatch",
    "template_left",
    "fed_markup",
    "base_rate",
    "held_out_items",
    "references_failing",
    "shuffled_references_passing",
    "empty_passing",
    "raw_prompt_rate",
    "scored_responses",
    "declared_effect",
    "declared_alpha",
    "scorer_sensitivity",
    "scorer_specificity",
    "power",
)
"""The last three the gate derives."""
CERTIFIES: Final = (
    "phases.answers",
    "phases.clean",
    "phases.scoring",
    "phases.variants",
    "phases.verifiers",
)
"""What the certificate is bound to; a change of any makes the step anew, where a person accepts."""


class BaselineParams(Conditions):
    """The conditions of the evaluation, and the controls before it."""

    effect: float = Field(default=0.10, gt=0, lt=1)
    """The smallest lift worth training for; the held-out items must be able to show it."""
    alpha: float = Field(default=0.01, gt=0, lt=1)
    """The p-value that the evaluation's gate asks for."""
    raw_prompt_items: int = Field(default=32, ge=0)
    """How many items are also asked with the bare instruction as prompt, for the report."""
    scored_responses: str | None = None
    """Labelled responses to held-out items, on which the scorer is measured."""
    own_responses: str | None = None
    """A user's own, beside those."""

    def check_files(self) -> None:
        """Read the held-out set and the labels; raises ConfigError for one that is no use."""
        items_of(self)
        self.labelled()

    def labelled(self) -> tuple[scorer_controls.LabelledResponse, ...]:
        """The labelled responses; none where no file is named."""
        return scorer_controls.load_labelled(*filter(None, self.label_files()))

    def label_files(self) -> tuple[Path | None, Path | None]:
        """The declared file of labelled responses, and a user's own."""
        declared, own = self.scored_responses, self.own_responses
        return Path(declared) if declared else None, Path(own) if own else None


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifacts ``outcomes`` (a row an item), ``conditions``, the controls' rows.

    And the scorer's ``certificate``.
    """
    params = parse_params(BaselineParams, request)
    check_sealed(request, Path(params.held_out))
    items = items_of(params)
    engine = partial(open_engine, request, quantization=params.quantization)
    sentinels, _ = read_sentinels(request, engine())
    rows = score_batches(request, engine, params, batches_of(params, items), "base")
    drawn = _raw_items(items, params.raw_prompt_items, request.seed)
    # The instruction itself is the prompt: str adds nothing to it.
    raw = score_batches(request, engine, params, batches_of(params, drawn), "raw_prompt", ask=str)
    files = {
        "outcomes": rows,
        "raw_prompt": raw,
        "references": scorer_controls.reference_readings(items),
        "shuffled": scorer_controls.shuffled_readings(items),
        "scored": scorer_controls.labelled_readings(
            params.labelled(), load_items(request.workspace / params.held_out)
        ),
    }
    for name, part in files.items():
        write_jsonl(request.output / f"{name}.jsonl", part)
    stated = request.output / "conditions.json"
    write_json(
        stated,
        {
            **params.model_dump(include=set(Conditions.model_fields) - {"held_out"}),
            "held_out_sha256": sha256_file(request.workspace / params.held_out),
            **engine().stated(),
            "engine": {k: v for k, v in request.engine.items() if k != "threads"},
        },
    )
    certificate = request.output / "certificate.json"
    entry = certify_scorer(request.workspace / params.held_out, files, params.label_files())
    write_json(certificate, sign({SCORER: entry}))
    described = {n: describe(n, request.output / f"{n}.jsonl", request.workspace) for n in files}
    return PhaseResult(
        metrics=(
            *_metrics(params, rows, described["outcomes"].path),
            *_controls(items, files, {name: made.path for name, made in described.items()}),
            *sentinels,
        ),
        artifacts=(
            *described.values(),
            describe("conditions", stated, request.workspace),
            describe(ARTIFACT, certificate, request.workspace),
        ),
        tokens=sum(int(r["tokens"]) for r in (*rows, *raw)),
        summary={"by kind": by_kind(rows), "bare instruction, by kind": by_kind(raw)},
        flagged=_flagged(files),
    )


def _raw_items(items: tuple[Item, ...], count: int, seed: int) -> list[Item]:
    return random.Random(seed).sample(items, min(count, len(items)))  # noqa: S311 - not secret


def _metrics(params: BaselineParams, rows: list[Row], evidence: str) -> tuple[Metric, ...]:
    return (
        _rate("base_rate", [r["success"] for r in rows], "held-out items", evidence),
        Metric("held_out_items", float(len(rows)), n=len(rows), evidence=evidence),
        Metric("declared_effect", params.effect, n=len(rows)),
        Metric("declared_alpha", params.alpha, n=len(rows)),
    )


def _controls(
    items: tuple[Item, ...], files: dict[str, list[Row]], paths: dict[str, str]
) -> tuple[Metric, ...]:
    asked = [r["success"] for r in files["raw_prompt"]]
    count = len(files["scored"])
    return (
        *scorer_controls.reference_metrics(files["references"], paths["references"]),
        scorer_controls.shuffled_metric(items, files["shuffled"], paths["shuffled"]),
        _rate("raw_prompt_rate", asked, "held-out items", paths["raw_prompt"]),
        Metric("scored_responses", float(count), n=count, evidence=paths["scored"]),
    )


def _rate(name: str, hits: list[bool], denominator: str, evidence: str) -> Metric:
    n, right = len(hits), sum(hits)
    return Metric(name, right / n if n else None, n, right, denominator, evidence=evidence)


def by_kind(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Rates of success, format and content per kind, each in [0, 1]."""
    found = {}
    for kind in sorted({str(r["kind"]) for r in rows}):
        part = [r for r in rows if r["kind"] == kind]
        found[kind] = {
            "n": float(len(part)),
            **{
                aspect: sum(bool(r[aspect]) for r in part) / len(part)
                for aspect in ("success", "format_ok", "content_ok")
            },
        }
    return found


def _flagged(files: dict[str, list[Row]]) -> tuple[Row, ...]:
    """Where the scorer contradicts a label first, then references dealt, then the base's faults."""
    wrong = [r for r in files["scored"] if r["scored"] is not r["success"]]
    dealt = [r for r in files["shuffled"] if r["scored"]]
    shown = ("id", "instruction", "raw", "response", "failures")
    missed = [{f: r[f] for f in shown} for r in files["outcomes"] if not r["success"]]
    return (*wrong[:4], *dealt[:3], *missed)[:10]
