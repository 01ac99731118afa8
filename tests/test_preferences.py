"""Best-of-N pairs: what is chosen, what is rejected, what is dropped, and what is made once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from phases import preferences, prompts
from phases.engines import Generation, Sampling
from phases.filters import READERS, Filter, to_document
from phases.pair_checks import CLEAN_PAIRS
from phases.preferences import choose, screen
from phases.records import Row
from runbook.artifacts import read_jsonl, write_json, write_jsonl
from runbook.contract import Artifact, Json, Metric, PhaseRequest, PhaseResult
from runbook.errors import ConfigError, PausedError
from runbook.testing import LocalChannel

SPECS = Path(__file__).parents[1] / "specs"
FEW_SHOT = SPECS / "few_shot.yaml"
ADAPTER = Artifact("adapter", "checkpoints/sft", "sha of the adapter", 1)


@dataclass
class ScriptedEngine:
    """Answers and log-odds as told; counts what it is asked."""

    answers: Mapping[str, Sequence[str]]
    """Raw continuations of each instruction, in the order drawn."""
    margins: Mapping[str, float]
    """Log-odds of each response; what is missing here must never be judged."""
    cut_off: frozenset[str] = frozenset()
    """Raw continuations that hit the token limit."""
    adapter: bool = True
    asked: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)

    def generate(
        self, asked: Sequence[str], sampling: Sampling, stop: Sequence[str], seed: int
    ) -> list[Generation]:
        assert (sampling.temperature, "###" in stop, seed > 0) == (0.9, True, True)
        assert self.adapter, "the base model answers nothing here"
        drawn = {text: iter(raws) for text, raws in self.answers.items()}
        found = []
        for prompt in asked:
            text = next(t for t in drawn if prompts.evaluation_prompt(t) == prompt)
            raw = next(drawn[text])
            self.asked.append(text)
            found.append(Generation(raw, len(raw.split()), raw in self.cut_off))
        return found

    def label_logps(
        self, prefix: str, suffixes: Sequence[str], labels: tuple[str, str]
    ) -> list[tuple[float, float]]:
        assert prefix.startswith(f"Each response gets a label. {labels[0]} = ")
        assert not self.adapter, "the tuned model does not judge itself"
        return [(self._margin(suffix), 0.0) for suffix in suffixes]

    def _margin(self, suffix: str) -> float:
        response = suffix.partition("\nResponse: ")[2].removesuffix("\nLabel:")
        self.judged.append(response)
        return self.margins[response]

    def text_logps(self, prefix: str, texts: Sequence[tuple[str, ...]]) -> list[list[list[float]]]:
        raise AssertionError(f"the critic reads labels alone: {prefix} {texts}")

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def end_of_turn_logps(self) -> dict[str, float]:
        return {"<end_of_turn>": -20.0}

    def stated(self) -> dict[str, Json]:
        return {
            "loader_version": "1",
            "quantization": "none",
            "template_disabled": True,
            "prefix_matches": True,
        }


Script = Mapping[str, Sequence[str]]


@pytest.fixture
def asked(tmp_path: Path) -> PhaseRequest:
    return PhaseRequest(
        step="preferences",
        attempt=1,
        look=1,
        seed=7,
        params={
            "few_shot": str(FEW_SHOT),
            "held_out": str(SPECS / "held_out.jsonl"),
            "near_duplicate": 0.8,
            "sentinels": {"end_of_turn_logp": {"below": -6.0}},
            "instructions": 9,
            "responses": 3,
            "quantization": "nf4",
            "max_new_tokens": 16,
            "temperature": 0.9,
            "top_p": 0.95,
            "top_k": 64,
            "repetition_penalty": 1.0,
            "min_gap": 0.5,
        },
        model={"name": "scripted", "family": "gemma3"},
        engine={"name": "scripted", "batch_size": 3},
        workspace=tmp_path,
        work=tmp_path / "work",
        output=tmp_path / "out",
        inputs={
            "scale": {"dataset": Artifact("dataset", "dataset.jsonl", "", 1)},
            "sft": {"adapter": ADAPTER},
            "calibration": {"filters": Artifact("filters", "filters.json", "", 1)},
        },
        provenance={"git_sha": "abc", "fingerprint": "f"},
        channel=LocalChannel(),
    )


@dataclass(frozen=True)
class Bench:
    """A scripted run: request, the engines opened, and what came out."""

    request: PhaseRequest
    tuned: ScriptedEngine
    base: ScriptedEngine
    opened: list[str]

    def run(self) -> PhaseResult:
        return preferences.run(self.request)

    def pairs(self) -> list[Row]:
        return read_jsonl(self.request.output / "preferences.jsonl")

    def fates(self) -> list[str]:
        rows = read_jsonl(self.request.output / "candidates.jsonl")
        return [str(row["fate"]) for row in rows]


def scripted(
    monkeypatch: pytest.MonkeyPatch,
    request: PhaseRequest,
    answers: Script,
    margins: Mapping[str, float],
    cut_off: frozenset[str] = frozenset(),
) -> Bench:
    cuts = [Filter(kind, "critic", {"margin": (0, 1)}, 0.0, 0.0) for kind in READERS]
    write_json(request.workspace / "filters.json", to_document(cuts, FEW_SHOT))
    write_jsonl(request.workspace / "dataset.jsonl", [{"instruction": text} for text in answers])
    tuned = ScriptedEngine(answers, {}, cut_off)
    base = ScriptedEngine({}, margins, adapter=False)
    bench = Bench(request, tuned, base, [])

    def open_engine(
        _: PhaseRequest, *, quantization: str | None = None, adapter: Path | None = None
    ) -> ScriptedEngine:
        bench.opened.append(f"{quantization} {adapter}")
        if adapter is None:
            return base
        assert (quantization, adapter) == ("nf4", request.workspace / ADAPTER.path)
        return tuned

    reading = Metric("end_of_turn_logp", -20.0, n=1)
    monkeypatch.setattr(preferences, "open_engine", open_engine)
    monkeypatch.setattr(
        preferences, "read_sentinels", lambda *_: ((reading,), {reading.name: reading.value})
    )
    return bench


def judged(*margins: float, bound: float = 0.0) -> list[Row]:
    return [
        {
            "fate": "",
            "number": number,
            "pair_critique": {"score": m, "is_good": m > 0, "confident": abs(m) >= bound},
        }
        for number, m in enumerate(margins)
    ]


def numbers(rows: list[Row], min_gap: float = 0.5) -> tuple[str, Json, Json]:
    choice = choose(rows, min_gap)
    return (
        choice.outcome,
        choice.chosen and choice.chosen["number"],
        choice.rejected and choice.rejected["number"],
    )


@pytest.mark.parametrize(
    ("margins", "bound", "expected"),
    [
        ((0.2, 1.0, -1.0, 0.4), 0.0, ("paired", 1, 2)),
        ((2.0, 0.5), 0.0, ("paired", 0, 1)),
        ((1.0, 1.0, -1.0, -1.0), 0.0, ("paired", 0, 2)),
        ((1.0, 0.5), 0.0, ("paired", 0, 1)),
        ((1.0, 0.501), 0.0, ("near_equal", None, None)),
        ((1.0, 1.0), 0.0, ("near_equal", None, None)),
        ((-0.1, -2.0), 0.0, ("none_good", None, None)),
        ((0.0, -2.0), 0.0, ("none_good", None, None)),
        ((0.9, -2.0), 1.0, ("none_good", None, None)),
        ((1.0, -0.1), 1.0, ("paired", 0, 1)),
        ((1.0,), 0.0, ("too_few", None, None)),
        ((), 0.0, ("too_few", None, None)),
    ],
)
def test_best_confident_answer_is_chosen_and_worst_of_the_rest_rejected(
    margins: tuple[float, ...], bound: float, expected: tuple[str, Json, Json]
) -> None:
    """Of equals the first drawn; a gap below the smallest, or nothing good, makes no pair."""
    assert numbers(judged(*margins, bound=bound)) == expected


def test_an_answer_that_was_screened_out_is_on_neither_side() -> None:
    """What is no sound answer has no critique, and is not looked at."""
    rows: list[Row] = [{"fate": "runaway", "number": 9}, *judged(1.0, -1.0)]
    assert numbers(rows) == ("paired", 0, 1)


def answer(response: str, **facts: Any) -> Row:
    return {"response": response, "hit_limit": False, "cut_by": "", **facts}


def test_screening_names_what_is_wrong_with_an_answer() -> None:
    """Empty, residue, marker, runaway, cut off by the limit, said before; the rest is judged."""
    rows = [
        answer("Paris"),
        answer("  paris."),
        answer(""),
        answer("Paris ##END"),
        answer("Paris\nLabel: A"),
        answer("red red red red red red"),
        answer("Rome is a city that", hit_limit=True),
        answer("Rome", hit_limit=True, cut_by="new question"),
        answer("Rome is a city that"),
    ]
    screen(rows)
    assert [row["fate"] for row in rows] == [
        "",
        "duplicate",
        "empty_response",
        "residue",
        "residue",
        "runaway",
        "token_limit",
        "",
        "",
    ]


def test_a_pair_holds_what_training_reads_and_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, asked: PhaseRequest
) -> None:
    """Prompt and both completions, both critiques, and the provenance of a record."""
    bench = scripted(
        monkeypatch,
        asked,
        {"Name a fruit.": (" A pear\n###END###", " brick\n###END### x", " an apple\n\nQ: no")},
        {"A pear": 1.5, "brick": -2.0, "an apple": 0.5},
    )
    bench.run()
    (pair,) = bench.pairs()
    assert pair["prompt"] + pair["chosen"] == (
        "Instruction: Name a fruit.\nResponse: A pear\n###END###"
    )
    assert pair["rejected"] == " brick\n###END###"
    assert (pair["chosen_tokens"], pair["rejected_tokens"]) == (2, 1)
    assert (pair["chosen_critique"]["score"], pair["rejected_critique"]["score"]) == (1.5, -2.0)
    stated = pair["metadata"]
    assert {name: stated[name] for name in ("git_sha", "quantization", "adapter_sha256")} == {
        "git_sha": "abc",
        "quantization": "nf4",
        "adapter_sha256": ADAPTER.sha256,
    }
    assert stated["filter"] == {
        "name": "critic",
        "margin": 0.0,
        "quantization": "none",
        "min_gap": 0.5,
    }
    assert (stated["generation"]["temperature"], stated["generation"]["responses"]) == (0.9, 3)
    assert stated["sentinel"] == {"end_of_turn_logp": -20.0}
    assert bench.fates() == ["chosen", "rejected", "spare"]


MIXED: Script = {
    "Is ice cold?": (" Yes, very cold", " No", " Yes"),
    "Name a tree.": (" An oak", " an OAK.", " An oak!"),
    "Name a bird.": ("", "\n\n", " "),
    "Say hello.": (" Hello", " Hi", " Hey"),
    "Name a sea.": (" Mud", " Ash", " Tar"),
    "Name a pet.": (" cat cat cat cat cat cat", " A dog", " A fish"),
}
MARGINS = {
    "Yes, very cold": 2.0,
    "No": -1.0,
    "Yes": 1.0,
    "Hello": 0.4,
    "Hi": 0.3,
    "Hey": 0.2,
    "Mud": -1.0,
    "Ash": -2.0,
    "Tar": -3.0,
    "A dog": 0.1,
    "A fish": 3.0,
}


def test_every_instruction_is_counted_and_every_answer_keeps_its_fate(
    monkeypatch: pytest.MonkeyPatch, asked: PhaseRequest
) -> None:
    """Pairs, yield, near-equals and the length bias; the rest is dropped by name."""
    bench = scripted(monkeypatch, asked, MIXED, MARGINS)
    result = bench.run()
    found = {m.name: (m.value, m.n, m.successes) for m in result.metrics}
    assert found == {
        "pairs": (2.0, 6, None),
        "near_equal": (1.0, 6, None),
        "pair_yield": (2 / 6, 6, 2),
        "chosen_longer": (1 / 2, 2, 1),
        **dict.fromkeys(CLEAN_PAIRS, (0.0, 2, None)),
        **{f"distinct_{how}": (2.0, 2, None) for how in ("exact", "normalised", "near")},
        "distinct_near_rate": (1.0, 2, 2),
        "largest_repeat": (1.0, 2, None),
        "end_of_turn_logp": (-20.0, 1, None),
    }
    assert result.summary["instructions"] == {
        "near_equal": 1,
        "none_good": 1,
        "paired": 2,
        "too_few": 2,
    }
    assert bench.fates() == [
        *("chosen", "rejected", "spare"),
        *("spare", "duplicate", "duplicate"),
        *("empty_response", "empty_response", "empty_response"),
        *("spare", "spare", "spare"),
        *("spare", "spare", "spare"),
        *("runaway", "rejected", "chosen"),
    ]
    assert [row["fate"] for row in result.flagged] == ["runaway", *["empty_response"] * 3]
    assert result.tokens == sum(len(raw.split()) for raws in MIXED.values() for raw in raws)


def test_a_leaked_answer_is_counted_where_the_pairs_are_made(
    monkeypatch: pytest.MonkeyPatch, asked: PhaseRequest
) -> None:
    """On the rejected side too, which training sees as well; the pair stands on disk."""
    answers = {"Say something.": (" List three fruits.", " A fish", " A pear")}
    margins = {"List three fruits.": -2.0, "A fish": 2.0, "A pear": 0.0}
    result = scripted(monkeypatch, asked, answers, margins).run()
    found = {m.name: m.value for m in result.metrics if m.name in CLEAN_PAIRS and m.value}
    assert found == {
        f"overlap_{reading}": 1 for reading in ("exact", "normalised", "near", "quoted")
    }
    rows = read_jsonl(asked.output / "data_faults.jsonl")
    assert {(row["row"], row["part"]) for row in rows} == {(0, "rejected")}
    assert "held_out_seal" in {artifact.name for artifact in result.artifacts}


def test_only_answers_that_can_make_a_pair_are_judged(
    monkeypatch: pytest.MonkeyPatch, asked: PhaseRequest
) -> None:
    """A text said twice, an unsound one and a lone one cost no reading; the rest cost two."""
    bench = scripted(monkeypatch, asked, MIXED, MARGINS)
    bench.run()
    assert sorted(bench.base.judged) == sorted([*MARGINS, *MARGINS])


def test_where_nothing_is_good_there_is_no_pair_and_no_share(
    monkeypatch: pytest.MonkeyPatch, asked: PhaseRequest
) -> None:
    """The file of pairs is empty, and a share of nothing is no number."""
    bench = scripted(
        monkeypatch,
        asked,
        {"Name a sea.": MIXED["Name a sea."]},
        MARGINS,
    )
    result = bench.run()
    found = {m.name: (m.value, m.n) for m in result.metrics}
    assert bench.pairs() == []
    assert (found["pairs"], found["chosen_longer"]) == ((0.0, 1), (None, 0))


def test_an_answer_cut_off_by_the_limit_is_on_neither_side(
    monkeypatch: pytest.MonkeyPatch, asked: PhaseRequest
) -> None:
    """The delimiter would be put where the model never ended."""
    answers = {"Name a pet.": (" A dog that", " A fish", " A brick")}
    bench = scripted(
        monkeypatch, asked, answers, {"A fish": 3.0, "A brick": 1.0}, frozenset({" A dog that"})
    )
    bench.run()
    assert bench.fates() == ["token_limit", "chosen", "rejected"]


def test_all_answers_are_made_before_the_first_is_judged(
    monkeypatch: pytest.MonkeyPatch, asked: PhaseRequest
) -> None:
    """One engine is loaded at a time: the tuned model first, then the base, once."""
    bench = scripted(monkeypatch, asked, MIXED, MARGINS)
    bench.run()
    tuned = f"nf4 {asked.workspace / ADAPTER.path}"
    assert bench.opened == [*[tuned] * len(MIXED), "None None"]


@pytest.mark.parametrize("stop", range(1, 11))
def test_a_resumed_step_makes_no_committed_batch_again(
    monkeypatch: pytest.MonkeyPatch, asked: PhaseRequest, stop: int
) -> None:
    """Stopped after any commit, the next run makes the rest, and the bytes are the same."""
    whole = scripted(monkeypatch, replace(asked, output=asked.output / "whole"), MIXED, MARGINS)
    whole.run()
    again = replace(asked, work=asked.work / "again", channel=LocalChannel(pause_after=stop))
    first = scripted(monkeypatch, again, MIXED, MARGINS)
    with pytest.raises(PausedError):
        first.run()
    assert isinstance(again.channel, LocalChannel)
    resumed = replace(again, channel=LocalChannel(tuple(again.channel.commits)))
    second = scripted(monkeypatch, resumed, MIXED, MARGINS)
    second.run()
    assert sorted(first.tuned.asked + second.tuned.asked) == sorted(whole.tuned.asked)
    assert sorted(first.base.judged + second.base.judged) == sorted(whole.base.judged)
    for name in ("preferences.jsonl", "candidates.jsonl"):
        expected = (whole.request.output / name).read_bytes()
        assert (resumed.output / name).read_bytes() == expected


def test_a_fully_committed_step_opens_the_tuned_model_no_more(
    monkeypatch: pytest.MonkeyPatch, asked: PhaseRequest
) -> None:
    """A resume after the last answer loads only the base."""
    scripted(monkeypatch, asked, MIXED, MARGINS).run()
    second = scripted(monkeypatch, asked, MIXED, MARGINS)
    second.run()
    assert second.opened == ["None None"]


def test_only_the_first_instructions_are_asked(
    monkeypatch: pytest.MonkeyPatch, asked: PhaseRequest
) -> None:
    """The training set's order decides which."""
    few = replace(asked, params={**asked.params, "instructions": 2})
    bench = scripted(monkeypatch, few, MIXED, MARGINS)
    bench.run()
    assert set(bench.tuned.asked) == {"Is ice cold?", "Name a tree."}


@pytest.mark.parametrize(
    "wrong", [{"responses": 1}, {"min_gap": 0.0}, {"temperature": 0.0}, {"unknown": 1}]
)
def test_parameters_that_can_make_no_pairs_are_refused(asked: PhaseRequest, wrong: Json) -> None:
    """One answer, no gap, or equal answers: nothing could be preferred."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        preferences.run(replace(asked, params={**asked.params, **wrong}))
