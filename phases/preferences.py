"""Step, phase D: pairs for DPO, by best-of-N with the calibrated filter of pairs.

The tuned model answers each instruction several times; then the base model, adapter off, judges
the answers. Chosen is the best that is good and confident, rejected the worst of the rest. An
answer that the model did not end by itself, or that cleaning finds faulty, is on neither side:
beating a runaway teaches nothing but its length. Every answer keeps its fate. All answers are
made before the first is judged, since one engine is loaded at a time.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import Field

from phases import clean, prompts
from phases.contamination import read_sentinels
from phases.data_checks import DataParams, seal_held_out
from phases.engines import Engine, Generation, SamplingParams, open_engine
from phases.filters import Filter, keeps, load_filters
from phases.pair_checks import measure_pairs
from phases.records import Row, batch, chunks, parse_params
from runbook.artifacts import describe, read_jsonl, sha256_file, write_jsonl
from runbook.contract import Json, Metric, PhaseRequest, PhaseResult
from runbook.text import normalise

PARAMS: Final = "phases.preferences:PreferenceParams"
METRICS: Final = (
    "pairs",
    "near_equal",
    "pair_yield",
    "chosen_longer",
    "distinct_exact",
    "distinct_normalised",
    "distinct_near",
    "distinct_near_rate",
    "largest_repeat",
    "overlap_exact",
    "overlap_normalised",
    "overlap_13gram",
    "overlap_near",
    "overlap_quoted",
    "incomplete_provenance",
    "bad_sentinels",
    "equal_pairs",
    "end_of_turn_logp",
    "completions_right",
    "assistant_like",
    "bare_endings",
    "prefix_mismatch",
    "template_left",
    "fed_markup",
)
PAIRED: Final = "paired"
_SHOWN: Final = 10


class PreferenceParams(SamplingParams, DataParams):
    """How answers are drawn, how far apart a pair's two must be, and what they are held against."""

    few_shot: str
    instructions: int = Field(ge=1)
    """The first so many records of the training set are asked again."""
    responses: int = Field(ge=2)
    """Answers drawn an instruction."""
    temperature: float = Field(gt=0)
    """Greedy answers would all be one."""
    quantization: str = Field(pattern="^(none|nf4)$")
    """Of the tuned model while it answers; the filter reads the base as the runbook declares it."""
    min_gap: float = Field(gt=0)
    """Smallest difference between the filter's scores of chosen and rejected."""


@dataclass(frozen=True)
class Choice:
    """What became of one instruction."""

    outcome: str
    """'paired', or why not: 'too_few' distinct sound answers, 'none_good', 'near_equal'."""
    chosen: Row | None = None
    rejected: Row | None = None


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifacts ``preferences`` (pairs) and ``candidates`` (every answer's fate).

    And the seal of the held-out set that the pairs were held against.
    """
    params = parse_params(PreferenceParams, request)
    records = read_jsonl(request.workspace / request.inputs["scale"]["dataset"].path)
    asked = [str(record["instruction"]) for record in records[: params.instructions]]
    _, pair_filter = load_filters(request, Path(params.few_shot))
    answers = _answer(request, params, asked)
    judge = open_engine(request)
    sentinels, sentinel = read_sentinels(request, judge)
    _judge(request, params, pair_filter, judge, answers)
    choices = [_settle(rows, params.min_gap) for rows in answers.values()]
    stated = _metadata(request, params, pair_filter, judge, sentinel)
    pairs = [
        to_record(choice.chosen, choice.rejected, stated)
        for choice in choices
        if choice.chosen is not None and choice.rejected is not None
    ]
    rows = [row for group in answers.values() for row in group]
    return _finished(request, params, rows, Counter(c.outcome for c in choices), pairs, sentinels)


def _answer(
    request: PhaseRequest, params: PreferenceParams, asked: Sequence[str]
) -> dict[str, list[Row]]:
    """Screened answers of each instruction, in the training set's order."""
    answers: dict[str, list[Row]] = {text: [] for text in asked}
    ordered: list[Row] = [{"instruction": t} for t in sorted(answers, key=lambda t: (len(t), t))]
    size = max(1, int(request.engine.get("batch_size", 32)) // params.responses)
    groups = chunks(ordered, size)
    for number, part in enumerate(groups):
        draw = partial(_draw, request, params, [str(row["instruction"]) for row in part])
        rows = batch(request, f"responses/{number:04d}", draw)
        for row in rows:
            answers[row["instruction"]].append(row)
        _tell(request, "responses", number + 1, len(groups), rows)
    for rows in answers.values():
        screen(rows)
    return answers


def _draw(
    request: PhaseRequest, params: PreferenceParams, instructions: Sequence[str], seed: int
) -> list[Row]:
    """Every answer to a few instructions, from the tuned model; opened here, where it is needed."""
    adapter = request.workspace / request.inputs["sft"]["adapter"].path
    engine = open_engine(request, quantization=params.quantization, adapter=adapter)
    asked = [(text, number) for text in instructions for number in range(params.responses)]
    texts = [prompts.evaluation_prompt(text) for text, _ in asked]
    made = engine.generate(texts, params.sampling(), clean.STOP_STRINGS, seed)
    return [
        {"instruction": text, "number": number, "seed": seed, **_cleaned(engine, out)}
        for (text, number), out in zip(asked, made, strict=True)
    ]


def _cleaned(engine: Engine, out: Generation) -> Row:
    done = clean.cut(out.text)
    return {
        "raw": out.text,
        "tokens": out.tokens,
        "hit_limit": out.hit_limit,
        "response": done.text,
        "cut_by": done.cut_by,
        "response_tokens": 0 if clean.fault(done) else engine.count_tokens(done.text),
    }


def screen(rows: Sequence[Row]) -> None:
    """Give each answer to one instruction its fate before judging; '' where it is judged."""
    seen: set[str] = set()
    for row in rows:
        same = normalise(row["response"])
        row["fate"] = _fault(row) or ("duplicate" if same in seen else "")
        if not row["fate"]:
            seen.add(same)


def _fault(row: Row) -> str:
    fault = clean.fault(clean.Cleaned(str(row["response"]), str(row["cut_by"])))
    return fault or ("token_limit" if row["hit_limit"] and not row["cut_by"] else "")


def _judge(
    request: PhaseRequest,
    params: PreferenceParams,
    pair_filter: Filter,
    judge: Engine,
    answers: Mapping[str, Sequence[Row]],
) -> None:
    """Add ``pair_critique`` to the answers of every instruction that still has two of them."""
    shots = prompts.load_few_shot(Path(params.few_shot))
    sound = [[row for row in rows if not row["fate"]] for rows in answers.values()]
    rows = [row for group in sound if len(group) > 1 for row in group]
    rows.sort(key=lambda r: (len(r["instruction"]) + len(r["response"]), r["instruction"]))
    groups = chunks(rows, int(request.engine.get("batch_size", 32)))
    for number, part in enumerate(groups):
        pairs = [(str(row["instruction"]), str(row["response"])) for row in part]

        def make(_seed: int, pairs: list[tuple[str, str]] = pairs) -> list[Row]:
            judged = pair_filter.judge(judge, shots, pairs)
            return [{"pair_critique": critique} for critique in judged]

        made = batch(request, f"pair_filter/{number:04d}", make)
        for row, facts in zip(part, made, strict=True):
            row.update(facts)
        _tell(request, "pair filter", number + 1, len(groups), [])


def _tell(request: PhaseRequest, stage: str, done: int, total: int, rows: Sequence[Row]) -> None:
    tokens = sum(int(row["tokens"]) for row in rows)
    request.channel.progress(stage=stage, done=done, total=total, tokens=tokens)


def _settle(rows: Sequence[Row], min_gap: float) -> Choice:
    """Choose among one instruction's answers, and write down what became of each."""
    choice = choose(rows, min_gap)
    for row in rows:
        row["fate"] = row["fate"] or "spare"
    if choice.chosen is not None and choice.rejected is not None:
        choice.chosen["fate"], choice.rejected["fate"] = "chosen", "rejected"
    return choice


def choose(rows: Sequence[Row], min_gap: float) -> Choice:
    """The pair that one instruction's judged answers make; of equals, the one drawn first.

    ``rows`` carry ``fate`` and, where that is empty and another answer's too, ``pair_critique``.
    """
    judged = [row for row in rows if not row["fate"]]
    if len(judged) < 2:
        return Choice("too_few")
    best = max(judged, key=_score)
    if not keeps(best["pair_critique"]):
        return Choice("none_good")
    worst = min((row for row in judged if row is not best), key=_score)
    if _score(best) - _score(worst) < min_gap:
        return Choice("near_equal")
    return Choice(PAIRED, best, worst)


def _score(row: Row) -> float:
    return float(row["pair_critique"]["score"])


def to_record(chosen: Row, rejected: Row, stated: Mapping[str, Json]) -> Row:
    """A pair as training reads it, ``prompt`` + ``chosen`` and ``prompt`` + ``rejected``."""
    return {
        "instruction": chosen["instruction"],
        "prompt": prompts.evaluation_prompt(chosen["instruction"]),
        "chosen": prompts.completion(chosen["response"]),
        "rejected": prompts.completion(rejected["response"]),
        "chosen_tokens": chosen["response_tokens"],
        "rejected_tokens": rejected["response_tokens"],
        "chosen_critique": chosen["pair_critique"],
        "rejected_critique": rejected["pair_critique"],
        "metadata": {**stated, "seed": chosen["seed"]},
    }


def _metadata(
    request: PhaseRequest,
    params: PreferenceParams,
    pair_filter: Filter,
    judge: Engine,
    sentinel: Json,
) -> dict[str, Json]:
    return {
        **request.provenance,
        **judge.stated(),
        "quantization": params.quantization,
        "model": request.model.get("name"),
        "adapter_sha256": request.inputs["sft"]["adapter"].sha256,
        "step": request.step,
        "attempt": request.attempt,
        "sentinel": sentinel,
        "filter": {
            "name": pair_filter.name,
            "margin": pair_filter.margin,
            "quantization": judge.stated().get("quantization"),
            "min_gap": params.min_gap,
        },
        "generation": {
            **asdict(params.sampling()),
            "responses": params.responses,
            "few_shot_sha256": sha256_file(Path(params.few_shot)),
        },
    }


def _finished(
    request: PhaseRequest,
    params: PreferenceParams,
    rows: Sequence[Row],
    outcomes: Mapping[str, int],
    pairs: Sequence[Row],
    sentinels: tuple[Metric, ...],
) -> PhaseResult:
    preferences = request.output / "preferences.jsonl"
    candidates = request.output / "candidates.jsonl"
    write_jsonl(preferences, pairs)
    write_jsonl(candidates, rows)
    evidence = preferences.relative_to(request.workspace).as_posix()
    return PhaseResult(
        metrics=(
            *measure(pairs, outcomes, evidence),
            *measure_pairs(request, params, pairs),
            *sentinels,
        ),
        artifacts=(
            describe("preferences", preferences, request.workspace),
            describe("candidates", candidates, request.workspace),
            seal_held_out(request, Path(params.held_out)),
        ),
        tokens=sum(int(row["tokens"]) for row in rows),
        summary={
            "instructions": dict(sorted(outcomes.items())),
            "responses": dict(sorted(Counter(str(row["fate"]) for row in rows).items())),
        },
        flagged=_faulty(rows),
        samples=_sample(pairs, request.seed),
    )


def measure(pairs: Sequence[Row], outcomes: Mapping[str, int], evidence: str) -> tuple[Metric, ...]:
    """Counts and shares; ``chosen_longer`` near 1 says that the filter rewards length."""
    asked, made = sum(outcomes.values()), len(pairs)
    longer = sum(pair["chosen_tokens"] > pair["rejected_tokens"] for pair in pairs)
    return (
        Metric("pairs", float(made), n=asked, evidence=evidence),
        Metric("near_equal", float(outcomes.get("near_equal", 0)), n=asked),
        Metric(
            "pair_yield",
            made / asked if asked else None,
            n=asked,
            successes=made,
            denominator="instructions asked",
            evidence=evidence,
        ),
        Metric(
            "chosen_longer",
            longer / made if made else None,
            n=made,
            successes=longer,
            denominator="pairs",
            evidence=evidence,
        ),
    )


def _faulty(rows: Sequence[Row]) -> tuple[Row, ...]:
    faults = ("runaway", "residue", "token_limit", "empty_response")
    shown = ("instruction", "raw", "response", "fate")
    found = [{name: row[name] for name in shown} for row in rows if row["fate"] in faults]
    return tuple(sorted(found, key=lambda row: faults.index(row["fate"]))[:_SHOWN])


def _sample(pairs: Sequence[Row], seed: int) -> tuple[Row, ...]:
    drawn = random.Random(seed).sample(range(len(pairs)), min(_SHOWN, len(pairs)))  # noqa: S311 - no secret
    shown = ("instruction", "chosen", "rejected")
    return tuple({name: pairs[i][name] for name in shown} for i in sorted(drawn))
