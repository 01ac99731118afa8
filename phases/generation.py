"""Instructions, critique, responses, critique: rounds of data generation, shared by A and B.

A round asks for lists of instructions, parses and screens them, has a calibrated filter judge
them, answers the accepted ones, cleans, and has the pairs judged. Rounds go on until enough rows
are kept and enough raw ones stand behind the rates. Every candidate keeps its fate, so that each
rate can be recomputed from the rows.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from phases import clean, prompts
from phases.data_checks import DataParams
from phases.engines import Engine, SamplingParams
from phases.filters import Filter, keeps
from phases.held_out import load_instructions
from phases.records import Row, batch, chunks
from runbook.artifacts import sha256_file
from runbook.contract import Json, PhaseRequest
from runbook.errors import ConfigError
from runbook.text import NearDuplicates, normalise, spellings

_NUMBERED: Final = re.compile(r"^\s*\d{1,3}\s*[.)]\s*(?P<text>\S.*)$")
_ODD: Final = re.compile(r"[<>{}|\\]|_{2,}|https?:|###")


class ListSampling(SamplingParams):
    """How lists of instructions are drawn."""

    lists_per_round: int = Field(ge=1)


class GenerationParams(SamplingParams, DataParams):
    """Parameters of data generation, of the pilot and of each shard."""

    few_shot: str
    target_kept: int = Field(ge=1)
    max_rounds: int = Field(ge=1)
    stop_sequences: int = Field(default=1, ge=0, le=1)
    """1: a response ends at the first of ``clean.STOP_STRINGS``. 0: it runs on to its end or limit,
    and is cut there by cleaning alone. A number, so that a reviewer may be let to change it."""
    instructions: ListSampling

    def check_files(self) -> None:
        """Read the few-shot file and the held-out set before anything is spent.

        Raises:
            ConfigError: one of them cannot be used, or what is shown is also examined.
        """
        shots = prompts.load_few_shot(Path(self.few_shot))
        examined = NearDuplicates(self.near_duplicate, load_instructions(Path(self.held_out)))
        for text in prompts.seen_instructions(shots):
            found = examined.find(text)
            if found is not None:
                raise ConfigError(
                    f"{text!r} is shown to the model, and the held-out set examines {found!r}",
                    where=self.few_shot,
                    fix="take it out of the few-shot file, or out of the held-out set",
                )


class PilotParams(GenerationParams):
    """Parameters of the pilot, whose rates stand on a sample of a declared size."""

    raw_rows: int = Field(ge=1)
    """Raw generations that must stand behind the rates, at the least."""
    forecast_target: int = Field(ge=1)
    """Kept rows that the scale-up is to have; the distinct yield is forecast at it."""


@dataclass
class Screen:
    """What a new instruction must not repeat."""

    exact: set[str]
    near: NearDuplicates
    held_out: NearDuplicates

    def fate(self, text: str) -> str:
        """'' where the instruction is new (it is then remembered), else why it is dropped."""
        if any(self.held_out.find(way) is not None for way in spellings(text)):
            return "near_held_out"
        if normalise(text) in self.exact:
            return "duplicate"
        if self.near.find(text) is not None:
            return "near_duplicate"
        self.exact.add(normalise(text))
        self.near.add(text)
        return ""


def make_screen(bound: float, seen: Sequence[str], held_out: Sequence[str]) -> Screen:
    """A screen that knows the few-shot texts, earlier rows and the held-out instructions."""
    return Screen(
        {normalise(t) for t in seen},
        NearDuplicates(bound, seen),
        NearDuplicates(bound, [way for text in held_out for way in spellings(text)]),
    )


def parse_instructions(continuation: str, *, cut_off: bool) -> list[str]:
    """Single instructions of a continued numbered list.

    The first line continues the cut number; the list ends at the first line without a number. The
    last line of a generation that hit its limit is half an instruction and is left out.
    """
    lines = continuation.lstrip(" ").split("\n")
    if cut_off:
        lines = lines[:-1]
    found = []
    for index, line in enumerate(lines):
        numbered = _NUMBERED.match(line)
        text = numbered["text"] if numbered else line if index == 0 else ""
        text = text.strip().strip('"').strip()
        if not text:
            break
        found.append(text)
    return [t for t in found if 8 <= len(t) <= 200 and not _ODD.search(t)]


@dataclass(frozen=True)
class Generator:
    """One stream of rounds: the pilot, or one shard."""

    request: PhaseRequest
    engine: Engine
    params: GenerationParams
    shots: prompts.FewShot
    filters: tuple[Filter, Filter]
    """Of instructions and of pairs."""
    screen: Screen
    prefix: str
    """Front of this stream's batch keys, e.g. ``shard-1/``."""
    raw_rows: int = 1
    """Raw generations that must stand behind the rates, at the least."""

    def run(self) -> list[Row]:
        """Every candidate of every round, each with its fate."""
        rows: list[Row] = []
        for number in range(self.params.max_rounds):
            rows += self._round(f"{self.prefix}round-{number:03d}", rows)
            kept = sum(row["fate"] == "kept" for row in rows)
            raw = sum("raw" in row for row in rows)
            if kept >= self.params.target_kept and raw >= self.raw_rows:
                break
        return rows

    def _round(self, key: str, before: Sequence[Row]) -> list[Row]:
        kept = sum(row["fate"] == "kept" for row in before)
        candidates = self._candidates(key, kept)
        fresh = [row for row in candidates if not row["fate"]]
        self._judge_instructions(f"{key}/instruction_filter", fresh, kept)
        accepted = [row for row in fresh if not row["fate"]]
        self._respond(f"{key}/responses", accepted, kept)
        clean_rows = [row for row in accepted if not row["fate"]]
        self._judge_pairs(f"{key}/pair_filter", clean_rows, kept)
        return candidates

    def _candidates(self, key: str, kept: int) -> list[Row]:
        drawn = self.params.instructions
        size = self._batch_size
        starts = range(0, drawn.lists_per_round, size)
        found: list[Row] = []
        for number, start in enumerate(starts):
            count = min(size, drawn.lists_per_round - start)

            def make(seed: int, count: int = count) -> list[Row]:
                asked = [
                    prompts.instruction_list_prompt(self.shots, seed + i) for i in range(count)
                ]
                made = self.engine.generate(asked, drawn.sampling(), ("\n\n",), seed)
                return [{"text": g.text, "tokens": g.tokens, "cut_off": g.hit_limit} for g in made]

            rows = batch(self.request, f"{key}/lists/{number:04d}", make)
            self._tell(f"{key} lists", number + 1, len(starts), rows, kept)
            texts = [t for r in rows for t in parse_instructions(r["text"], cut_off=r["cut_off"])]
            share = round(sum(int(r["tokens"]) for r in rows) / max(len(texts), 1), 2)
            found.extend(
                {"instruction": text, "fate": self.screen.fate(text), "list_tokens": share}
                for text in texts
            )
        return found

    def _judge_instructions(self, key: str, rows: list[Row], kept: int) -> None:
        def make(part: list[Row]) -> list[Row]:
            texts = [row["instruction"] for row in part]
            judged = self.filters[0].judge(self.engine, self.shots, texts)
            return [{"instruction_critique": critique} for critique in judged]

        for row in self._each(key, rows, kept, lambda part, _seed: make(part)):
            if not keeps(row["instruction_critique"]):
                row["fate"] = "rejected_instruction"

    def _respond(self, key: str, rows: list[Row], kept: int) -> None:
        sampling = self.params.sampling()
        stop = clean.STOP_STRINGS if self.params.stop_sequences else ()

        def make(part: list[Row], seed: int) -> list[Row]:
            asked = [prompts.response_prompt(self.shots, row["instruction"]) for row in part]
            made = self.engine.generate(asked, sampling, stop, seed)
            return [
                {"raw": g.text, "tokens": g.tokens, "hit_limit": g.hit_limit, "seed": seed}
                for g in made
            ]

        for row in self._each(key, rows, kept, make):
            row.update(self._cleaned(row["raw"]))

    def _cleaned(self, raw: str) -> Row:
        facts = read_raw(raw)
        if not facts["fate"]:
            facts["response_tokens"] = self.engine.count_tokens(facts["response"])
        return facts

    def _judge_pairs(self, key: str, rows: list[Row], kept: int) -> None:
        def make(part: list[Row]) -> list[Row]:
            pairs = [(row["instruction"], row["response"]) for row in part]
            judged = self.filters[1].judge(self.engine, self.shots, pairs)
            return [{"pair_critique": critique} for critique in judged]

        for row in self._each(key, rows, kept, lambda part, _seed: make(part)):
            row["fate"] = "kept" if keeps(row["pair_critique"]) else "rejected_pair"

    def _each(
        self, key: str, rows: list[Row], kept: int, make: Callable[[list[Row], int], list[Row]]
    ) -> Iterator[Row]:
        """Rows in batches of like length, each with what ``make`` found merged into it."""
        ordered = sorted(rows, key=lambda r: (_length(r), r["instruction"]))
        groups = chunks(ordered, self._batch_size)
        for number, part in enumerate(groups):
            made = batch(
                self.request,
                f"{key}/{number:04d}",
                lambda seed, part=part: make(part, seed),  # type: ignore[misc]  # bound now
            )
            self._tell(key, number + 1, len(groups), made, kept)
            for row, facts in zip(part, made, strict=True):
                row.update(facts)
                yield row

    def _tell(self, stage: str, done: int, total: int, rows: list[Row], kept: int) -> None:
        tokens = sum(int(row.get("tokens", 0)) for row in rows)
        self.request.channel.progress(
            stage=stage,
            done=done,
            total=total,
            tokens=tokens,
            kept=kept,
            target=self.params.target_kept,
        )

    @property
    def _batch_size(self) -> int:
        return int(self.request.engine.get("batch_size", 32))


def read_raw(raw: str) -> Row:
    """What cleaning makes of a raw text, and what the detectors say of it; needs no model."""
    done = clean.cut(raw)
    return {
        "response": done.text,
        "cut_by": done.cut_by,
        "runaway": clean.is_runaway(done),
        "residue": clean.has_residue(done.text),
        "fate": clean.fault(done),
    }


def _length(row: Row) -> int:
    return len(row["instruction"]) + len(row.get("response", ""))


def to_record(
    row: Row, request: PhaseRequest, engine: Engine, params: GenerationParams, sentinel: Json
) -> Row:
    """A kept candidate as a record of the dataset, with its provenance."""
    return {
        "instruction": row["instruction"],
        "response": row["response"],
        "prompt": prompts.evaluation_prompt(row["instruction"]),
        "completion": prompts.completion(row["response"]),
        "response_tokens": row["response_tokens"],
        "instruction_critique": row["instruction_critique"],
        "pair_critique": row["pair_critique"],
        "metadata": {
            **request.provenance,
            **engine.stated(),
            "model": request.model.get("name"),
            "seed": row["seed"],
            "step": request.step,
            "attempt": request.attempt,
            "sentinel": sentinel,
            "generation": {
                **asdict(params.sampling()),
                "few_shot_sha256": sha256_file(Path(params.few_shot)),
            },
        },
    }
