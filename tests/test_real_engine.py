"""The engine on the real model: the cached critic reads what the naive one reads; batches hold."""

from pathlib import Path

import pytest
import torch

from phases import critic, prompts
from phases.base_model import load_base_model
from phases.engines import Sampling
from phases.prompts import load_few_shot
from phases.transformers_engine import TransformersEngine
from runbook.errors import SentinelError

pytestmark = pytest.mark.model

MODEL = {"family": "gemma3", "prefix": "bos", "dtype": "bfloat16", "quantization": "none"}
SHOTS = load_few_shot(Path(__file__).parents[1] / "specs" / "few_shot.yaml")
INSTRUCTIONS = (
    "Name three rivers in Europe.",
    "What color is it?",
    "Give two words that rhyme with 'light'.",
    "Do it now, as we said.",
    "What is 12 plus 30?",
    "The",
    "List four vegetables that are green, and say which of them can be eaten raw.",
)


@pytest.fixture(scope="module")
def engine(gemma: Path) -> TransformersEngine:
    return TransformersEngine(load_base_model(gemma, MODEL, {"threads": 2}))


def naive(engine: TransformersEngine, text: str, label: str) -> float:
    """Log-probability of a label after a text, with and without a space: one full forward."""
    ids = torch.tensor([engine.base.encode(text)])
    with torch.inference_mode():
        logps = engine.base.model(input_ids=ids).logits[0, -1].float().log_softmax(-1)
    tokens = [engine.base.encode(form, continues=True)[0] for form in (label, f" {label}")]
    return float(logps[tokens].logsumexp(0))


def test_the_cached_critic_reads_what_a_full_forward_reads(engine: TransformersEngine) -> None:
    """Shared prefix, padded batch and last position change a log-odds by bf16 noise alone."""
    prefix = prompts.instruction_critic_prefix(SHOTS, "A", "B")
    suffixes = [prompts.instruction_critic_suffix(text) for text in INSTRUCTIONS]
    cached = engine.label_logps(prefix, suffixes, ("A", "B"))
    slow = [tuple(naive(engine, prefix + s, label) for label in "AB") for s in suffixes]
    gaps = [abs((a - b) - (c - d)) for (a, b), (c, d) in zip(cached, slow, strict=True)]
    assert max(gaps) < 0.15, gaps
    spread = [a - b for a, b in cached]
    assert max(spread) - min(spread) > 0.3, "the items do not differ enough to show anything"


def test_a_texts_tokens_are_scored_as_a_full_forward_scores_them(
    engine: TransformersEngine,
) -> None:
    """Every token of every piece but the lead, after a cached prefix and beside longer texts."""
    prefix = prompts.response_prefix(SHOTS)
    texts = [("Instruction: Name a fruit.\nResponse:", " An apple", prompts.ENDING), ("A", " b")]
    found = engine.text_logps(prefix, texts)
    for text, pieces in zip(texts, found, strict=True):
        assert len(pieces) == len(text) - 1
        ids = engine.base.encode(prefix)
        lead, *rest = [engine.base.encode(piece, continues=True) for piece in text]
        whole = torch.tensor([ids + lead + [i for piece in rest for i in piece]])
        with torch.inference_mode():
            logps = engine.base.model(input_ids=whole).logits[0].float().log_softmax(-1)
        at = len(ids) + len(lead)
        for piece, scored in zip(rest, pieces, strict=True):
            slow = [float(logps[at + k - 1, token]) for k, token in enumerate(piece)]
            assert scored == pytest.approx(slow, abs=0.15)
            at += len(piece)


def test_the_normaliser_holds_for_a_token_that_is_all_but_impossible(
    engine: TransformersEngine,
) -> None:
    """Its logit may lie hundreds below the largest, and nothing overflows."""
    drawn = torch.Generator().manual_seed(1)
    size = (2, engine.base.model.config.hidden_size)
    hidden = 40 * torch.randn(size, generator=drawn, dtype=torch.bfloat16)
    weight = engine.base.model.get_output_embeddings().weight.detach()
    logits = (hidden.float() @ weight.float().T).double()
    ids = torch.stack([logits.argmin(-1), logits.argmax(-1)], dim=1)
    with torch.inference_mode():
        found = engine._head_logps(hidden, ids)
    assert found[:, 0].isfinite().all()
    assert float(found[:, 0].max()) < -100
    torch.testing.assert_close(
        found.double(), logits.log_softmax(-1).gather(1, ids), rtol=0.02, atol=0.6
    )


def test_a_reading_does_not_depend_on_its_neighbours(engine: TransformersEngine) -> None:
    """Alone or beside longer texts, in either order, a critique is the same but for noise."""
    together = critic.judge_instructions(engine, SHOTS, INSTRUCTIONS)
    alone = [critic.judge_instructions(engine, SHOTS, [t])[0] for t in INSTRUCTIONS]
    gaps = [abs(a["margin"] - b["margin"]) for a, b in zip(together, alone, strict=True)]
    assert max(gaps) < 0.15, gaps


def test_the_same_batch_and_seed_give_the_same_text(engine: TransformersEngine) -> None:
    """A batch made again is the batch; another seed is another."""
    asked = [prompts.response_prompt(SHOTS, text) for text in INSTRUCTIONS[:3]]
    sampling = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.9)
    first = engine.generate(asked, sampling, ("###",), seed=1)
    assert engine.generate(asked, sampling, ("###",), seed=1) == first
    assert engine.generate(asked, sampling, ("###",), seed=2) != first


def test_a_short_limit_is_told_as_hit(engine: TransformersEngine) -> None:
    """A text cut by the limit says so; one that reached its stop string does not."""
    (cut,) = engine.generate(["One, two, three, four,"], Sampling(3), (), seed=0)
    assert (cut.tokens, cut.hit_limit) == (3, True)
    (ended,) = engine.generate(["One, two, three, four,"], Sampling(40), (" seven",), seed=0)
    assert not ended.hit_limit
    assert "seven" in ended.text


def test_chat_markup_never_reaches_the_model(engine: TransformersEngine) -> None:
    """A prompt that tokenizes to a turn marker is refused before it is fed."""
    with pytest.raises(SentinelError, match="chat markup"):
        engine.generate(["<start_of_turn>user\nHello"], Sampling(4), (), seed=0)


@pytest.fixture(scope="module")
def exact(gemma: Path) -> TransformersEngine:
    """In fp32, where a text does not hang on the shape of its batch."""
    return TransformersEngine(load_base_model(gemma, {**MODEL, "dtype": "float32"}, {"threads": 2}))


def test_a_shared_start_changes_no_text(
    exact: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read once for all rows or by each of them, greedy and drawn."""
    asked = [prompts.response_prompt(SHOTS, text) for text in INSTRUCTIONS]
    for sampling in (Sampling(10), Sampling(10, temperature=0.8, top_p=0.9)):
        once = exact.generate(asked, sampling, ("###",), seed=3)
        with monkeypatch.context() as patched:
            patched.setattr(exact, "_shared", lambda *_: [])
            assert exact.generate(asked, sampling, ("###",), seed=3) == once


def test_a_row_that_ends_leaves_the_others_as_they_are(exact: TransformersEngine) -> None:
    """What a row says is what it says alone, however early its neighbours end."""
    asked = ["One, two, three, four,", "Monday, Tuesday, Wednesday,", "The capital of France is"]
    alone = [exact.generate([text], Sampling(16), ("six", "Friday"), seed=0)[0] for text in asked]
    together = exact.generate(asked, Sampling(16), ("six", "Friday"), seed=0)
    assert together == alone
    assert len({made.tokens for made in together}) > 1


def test_greedy_text_is_what_the_library_says(exact: TransformersEngine) -> None:
    """The engine's own loop against ``model.generate``, one text at a time."""
    for text in INSTRUCTIONS[:3]:
        prompt = prompts.response_prompt(SHOTS, text)
        ids = torch.tensor([exact.base.encode(prompt)])
        with torch.inference_mode():
            out = exact.base.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=8,
                do_sample=False,
            )
        (made,) = exact.generate([prompt], Sampling(8), (), seed=0)
        assert made.text == exact.base.decode(out[0, ids.shape[1] :].tolist())
