"""The fake engine: the same words for the same question, flaws in declared shares, no torch."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phases import clean, contamination, critic, prompts
from phases.engines import Engine, Generation, Sampling, open_engine
from phases.fake_engine import BAD, CALLS, FLAWS, KILL_AT, FakeEngine
from phases.generation import make_screen, parse_instructions
from phases.held_out import load_instructions
from runbook.contract import Artifact, PhaseRequest
from runbook.errors import ConfigError
from runbook.testing import LocalChannel

ROOT = Path(__file__).parents[1]
SHOTS = prompts.load_few_shot(ROOT / "specs" / "few_shot.yaml")
WARM = Sampling(max_new_tokens=64, temperature=0.7)
IMPORTED_ALONE = """
import sys
import phases.baseline, phases.contamination, phases.generation, phases.pilot
import phases.prepare_model, phases.scale, phases.scoring
from phases.engines import open_engine
from types import SimpleNamespace as Bag
base = {"base_model": Bag(path="models/base")}
request = Bag(workspace=__import__("pathlib").Path(), inputs={"prepare_model": base},
              engine={"name": "fake"})
print(open_engine(request).stated()["engine"], sorted({"torch", "transformers"} & set(sys.modules)))
"""


def make_request(**engine: Any) -> PhaseRequest:
    base = Artifact("base_model", "models/base", "0" * 64, 1)
    return PhaseRequest(
        step="pilot",
        attempt=1,
        look=1,
        seed=7,
        params={},
        model={},
        engine=engine,
        workspace=Path("/nowhere"),
        work=Path("/nowhere/work"),
        output=Path("/nowhere/out"),
        inputs={"prepare_model": {"base_model": base}},
        provenance={},
        channel=LocalChannel(),
    )


def generate_lists(engine: Engine, count: int, seed: int = 1) -> list[Generation]:
    asked = [prompts.instruction_list_prompt(SHOTS, i) for i in range(count)]
    return engine.generate(asked, WARM, ("\n\n",), seed)


def make_instructions(count: int) -> list[str]:
    made = generate_lists(FakeEngine(), count)
    return [text for g in made for text in parse_instructions(g.text, cut_off=g.hit_limit)]


def respond(instructions: list[str], sampling: Sampling = WARM, seed: int = 1) -> list[Generation]:
    asked = [prompts.response_prompt(SHOTS, text) for text in instructions]
    return FakeEngine().generate(asked, sampling, clean.STOP_STRINGS, seed)


def run_python(code: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_steps_with_the_fake_engine_need_no_torch() -> None:
    """Data generation, scoring and the opened fake import neither torch nor transformers."""
    done = run_python(IMPORTED_ALONE)
    assert (done.stdout, done.stderr) == ("fake []\n", "")


def test_the_same_question_gets_the_same_words() -> None:
    """Another engine object repeats the text; another seed or row changes it."""
    first = generate_lists(FakeEngine(), 4)
    assert generate_lists(FakeEngine(), 4) == first
    assert generate_lists(FakeEngine(), 4, seed=2) != first
    one, other = FakeEngine().generate(["A list:\n7."] * 2, WARM, ("\n\n",), 1)
    assert one != other


def test_the_words_are_pinned() -> None:
    """Users compare with stored outcomes, so the texts are the same in every version."""
    shown = f"{clean.DELIMITER}\n"
    asked = [shown + prompts.evaluation_prompt("What is ice?"), "A list:\n7."]
    answer, listed = FakeEngine().generate(asked, WARM, clean.STOP_STRINGS, 3)
    assert answer == Generation(" The cook has a brown hinge.\n###END###", 7, hit_limit=False)
    assert listed.text.split("\n")[:2] == [
        " Where in the tent would a hinge stand?",
        "8. Describe a blue stamp in two words.",
    ]


def test_greedy_text_depends_on_the_prompt_and_the_adapter_alone() -> None:
    """Paired scorings differ by the adapter, never by the seed of their batches."""
    asked = [prompts.evaluation_prompt(text) for text in make_instructions(4)]
    greedy = replace(WARM, temperature=0.0)

    def say(adapter: str, seed: int, prompts_: list[str]) -> list[str]:
        made = FakeEngine(adapter).generate(prompts_, greedy, clean.STOP_STRINGS, seed)
        return [g.text for g in made]

    assert say("", 1, asked) == say("", 2, asked)
    assert say("", 1, asked[::-1]) == say("", 1, asked)[::-1]
    assert say("tuned", 1, asked) != say("", 1, asked)


def test_hundreds_of_instructions_are_new() -> None:
    """Four in five of 500 are no duplicates, and nearly none comes near the held-out set."""
    held_out = load_instructions(ROOT / "specs" / "held_out.jsonl")
    screen = make_screen(0.8, prompts.seen_instructions(SHOTS), held_out)
    fates = [screen.fate(text) for text in make_instructions(100)]
    assert len(fates) == 500
    assert fates.count("") >= 400
    assert fates.count("near_held_out") <= 2


def test_a_list_goes_on_from_the_cut_number() -> None:
    """The first line has no number of its own, the second has the next one."""
    (made,) = FakeEngine().generate(["The list:\n7."], WARM, ("\n\n",), 1)
    first, second, *_ = made.text.split("\n")
    assert not first.strip()[0].isdigit()
    assert second.startswith("8. ")
    assert made.text.endswith("\n\n")


def test_flaws_come_in_their_declared_shares() -> None:
    """Of 1000 answers each flaw has its per cent, give or take three standard deviations."""
    made = respond(make_instructions(200))
    cuts = [clean.cut(g.text) for g in made]
    counts = {
        "endless": sum(g.hit_limit for g in made),
        "new turn": sum(c.cut_by == "blank line or new turn" for c in cuts),
        "repeating": sum(clean.repeats_itself(c.text) for c in cuts),
    }
    for flaw, share in FLAWS.items():
        assert abs(counts[flaw] - 10 * share) <= 3 * (10 * share) ** 0.5
    good = sum(c.cut_by == "delimiter" and not clean.is_runaway(c) for c in cuts)
    assert good == 1000 - sum(counts.values())


@pytest.mark.parametrize("limit", [1, 4, 30])
def test_the_token_limit_is_kept(limit: int) -> None:
    """No text has more words than allowed, and one that met the limit ends without delimiter."""
    made = respond(make_instructions(40), replace(WARM, max_new_tokens=limit))
    assert max(g.tokens for g in made) <= limit
    assert all(g.tokens == len(g.text.split()) for g in made)
    assert all(g.tokens == limit for g in made if g.hit_limit)
    assert not any(clean.DELIMITER in g.text for g in made if g.hit_limit)


def test_a_low_limit_is_met_often() -> None:
    """Four words are too few for a sentence, which is how a gate is made to fail."""
    short = respond(make_instructions(40), replace(WARM, max_new_tokens=4))
    assert sum(g.hit_limit for g in short) / len(short) > 0.3


def test_the_critic_takes_most_for_good() -> None:
    """Readings are probabilities, and the declared share of them is bad."""
    judged = critic.judge_instructions(FakeEngine(), SHOTS, make_instructions(200))
    bad = sum(parts["margin"] <= 0 for parts in judged)
    assert abs(bad - 10 * BAD) <= 3 * (10 * BAD) ** 0.5
    (pair,) = FakeEngine().label_logps("", ["any"], critic.LABELS)
    assert sum(math.exp(logp) for logp in pair) == pytest.approx(1.0)


def test_the_sentinels_pass() -> None:
    """It reads as a base model: no end of turn, every completion right, no assistant."""
    metrics, _ = contamination.measure(FakeEngine(), "gemma3")
    assert {m.name: m.value for m in metrics} == {
        "end_of_turn_logp": -25.0,
        "completions_right": 1.0,
        "assistant_like": 0.0,
        "bare_endings": 0.0,
        "prefix_mismatch": 0.0,
        "template_left": 0.0,
        "fed_markup": 0.0,
    }


def test_one_engine_is_kept_for_each_declaration() -> None:
    """The same request gets the same object, another adapter another one."""
    request = make_request(name="fake")
    first = open_engine(request)
    assert open_engine(request) is first
    assert open_engine(request, adapter=Path("x/attempt_1")) is not first


def test_an_unknown_engine_is_refused() -> None:
    """The error names the engines there are."""
    with pytest.raises(ConfigError, match="transformers, fake"):
        open_engine(make_request(name="vllm"))


def test_calls_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a call, equal for equal questions."""
    monkeypatch.setenv(CALLS, str(tmp_path / "calls"))
    for _ in range(2):
        generate_lists(FakeEngine(), 2, seed=5)
    FakeEngine().label_logps("", ["x"], critic.LABELS)

    first, second, third = map(json.loads, (tmp_path / "calls").read_text().splitlines())
    assert first == second
    assert (first["call"], first["seed"]) == ("generate", 5)
    assert (third["call"], third["seed"]) == ("label_logps", None)


def test_a_scripted_kill_strikes_once(tmp_path: Path) -> None:
    """The process dies at the declared call, and the next one goes on counting."""
    code = (
        "from phases.fake_engine import FakeEngine\n"
        "for _ in range(3): FakeEngine().label_logps('', ['x'], ('A', 'B'))\n"
    )
    script = {CALLS: str(tmp_path / "calls"), KILL_AT: "2"}
    assert run_python(code, **script).returncode == -signal.SIGKILL
    assert run_python(code, **script).returncode == 0
    assert len((tmp_path / "calls").read_text().splitlines()) == 5


def test_a_kill_without_a_file_to_count_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that restarts with each child would kill for ever."""
    monkeypatch.delenv(CALLS, raising=False)
    monkeypatch.setenv(KILL_AT, "1")
    with pytest.raises(ConfigError, match=CALLS):
        FakeEngine().label_logps("", ["x"], critic.LABELS)


def test_an_engine_that_feeds_a_chat_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it feeds, read back; what it says may be as a base's."""
    monkeypatch.setattr(FakeEngine, "fed", lambda _, text: f"<|one|>{text}<|two|>")
    metrics, _ = contamination.measure(FakeEngine(), "gemma3")
    assert [m.value for m in metrics if m.name == "fed_markup"] == [20.0]
