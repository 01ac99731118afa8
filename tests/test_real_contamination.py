"""An instruction-tuned checkpoint in place of the base is refused, whatever it is declared as."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from cli_session import Called, call
from ruamel.yaml import YAML

from runbook import events as ev
from runbook.journal import facts, read_entries
from runbook.workspace import Workspace

pytestmark = [
    pytest.mark.model,
    # PEFT reads a name that transformers has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

SPECS = Path(__file__).parents[1] / "specs"
READ = {"end_of_turn_logp", "bare_endings"}
"""What an instruct model's weights and behaviour say, whatever its files do."""
GEMMA_LIKE = {
    "<|im_start|>": "<start_of_turn>",
    "<|im_end|>": "<end_of_turn>",
    "<|endoftext|>": "<eos>",
}
UNHEARD_OF = {"<|im_start|>": "<one>", "<|im_end|>": "<two>", "<|endoftext|>": "<three>"}
LESSONS = (
    ("Name a fruit.", "A pear."),
    ("Is ice cold?", "Yes, it is."),
    ("Name a bird.", "A robin."),
    ("What is three plus four?", "Seven."),
    ("Give the opposite of big.", "Small."),
    ("Write a word that rhymes with cat.", "Hat."),
    ("Which month follows May?", "June."),
    ("How many eyes has a cow?", "Two."),
)


def bootstrap(folder: Path, capfd: pytest.CaptureFixture[str], **model: object) -> Called:
    """The quickstart's own bootstrap phase on another checkpoint, up to its end or stop."""
    book = YAML(typ="safe", pure=True).load(SPECS / "quickstart" / "runbook.yaml")
    book["model"].update(model)
    book["phases"] = [phase for phase in book["phases"] if phase["name"] == "bootstrap"]
    (first,) = book["phases"]
    first["steps"] = [step for step in first["steps"] if step["name"] != "calibration"]
    shutil.copy(SPECS / "quickstart" / "contamination.yaml", folder)
    path = folder / "runbook.yaml"
    path.write_text(json.dumps(book))
    return call(capfd, "run", path, "--workspace", folder / "workspace")


def without_template(snapshot: Path, folder: Path) -> Path:
    """A copy of the snapshot from which every trace of the chat template is taken."""
    copy = folder / "stripped"
    ignored = shutil.ignore_patterns("chat_template*", "COMPLETE.json")
    shutil.copytree(snapshot, copy, ignore=ignored)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return copy


def renamed(snapshot: Path, folder: Path, names: Mapping[str, str]) -> Path:
    """A copy without its template, whose special tokens go by other names and begin no text."""
    copy = without_template(snapshot, folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (copy / file).read_text()
        for old, new in names.items():
            text = text.replace(old, new)
        (copy / file).write_text(text)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["eos_token"] = names["<|endoftext|>"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return copy


def tuned(snapshot: Path, folder: Path) -> Path:
    """The base after two dozen LoRA steps on bare questions and short answers, merged."""
    import torch  # noqa: PLC0415 - slow to import
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - see above
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - see above

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(snapshot)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(snapshot, dtype=torch.float32),
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rows = [(tokenizer(f"{q}\n").input_ids, tokenizer(a).input_ids[1:]) for q, a in LESSONS]
    for step in range(24):
        asked, said = rows[step % len(rows)]
        ids = torch.tensor([[*asked, *said, tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[0, : len(asked)] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    merged = folder / "merged"
    model.merge_and_unload().to(torch.bfloat16).save_pretrained(merged)
    for file in snapshot.glob("tokenizer*"):
        shutil.copy(file, merged)
    return merged


def failing(folder: Path) -> set[str]:
    return {name for name, verdict in criteria(folder).items() if verdict == "fail"}


def criteria(folder: Path) -> dict[str, str]:
    """Each criterion's verdict, as journalled."""
    known = facts(read_entries(Workspace.at(folder / "workspace")))
    judged = [fact for fact in known if isinstance(fact, ev.GateJudged)]
    assert len(judged) == 1
    return {str(c["metric"]): str(c["verdict"]) for c in judged[0].criteria}


@pytest.mark.parametrize(
    ("stripped", "declared", "prefix", "found"),
    [
        (False, "none", "none", {*READ, "undeclared_chat_template"}),
        (False, "shipped", "none", READ),
        (True, "none", "none", READ),
        (True, "none", "bos", {"end_of_turn_logp", "prefix_mismatch"}),
    ],
)
def test_an_instruct_model_in_place_of_the_base_trips_the_sentinel(
    smollm2: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    stripped: bool,
    declared: str,
    prefix: str,
    found: set[str],
) -> None:
    """SmolLM2-Instruct is refused by its weights, its template on or taken away: exit 5."""
    source = without_template(smollm2, tmp_path) if stripped else smollm2
    ended = bootstrap(
        tmp_path,
        capfd,
        source={"path": str(source)},
        family="smollm2",
        chat_template=declared,
        prefix=prefix,
    )
    assert ended.code == 5, ended.err
    assert "end_of_turn_logp" in ended.err
    assert failing(tmp_path) >= found


def test_the_base_model_passes_the_same_gate(
    gemma: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same gate lets Gemma base through, so that it is no gate that refuses everything."""
    ended = bootstrap(tmp_path, capfd, source={"path": str(gemma)})
    assert ended.code == 0, ended.err
    assert set(criteria(tmp_path).values()) == {"pass"}


def test_an_unmeasured_family_is_not_passed(
    gemma: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same weights under a family nobody measured stop for a person: no bound is known."""
    ended = bootstrap(tmp_path, capfd, source={"path": str(gemma)}, family="unheard-of")
    assert ended.code == 3, ended.err
    assert criteria(tmp_path)["end_of_turn_logp"] == "invalid"


@pytest.mark.parametrize("names", [GEMMA_LIKE, UNHEARD_OF], ids=["gemma-like", "unheard-of"])
def test_an_instruct_model_with_renamed_tokens_trips_a_sentinel(
    smollm2: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], names: Mapping[str, str]
) -> None:
    """With Gemma's markers by its weights, and with names nobody knows by the roles it writes."""
    source = renamed(smollm2, tmp_path, names)
    ended = bootstrap(
        tmp_path, capfd, source={"path": str(source)}, family="smollm2", prefix="none"
    )

    assert ended.code == 5, ended.err
    assert "assistant_like" in failing(tmp_path)
    assert ("end_of_turn_logp" in failing(tmp_path)) == (names is GEMMA_LIKE)


def test_another_models_tokenizer_is_refused(
    smollm2: Path, gemma: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SmolLM2's weights behind Gemma's own tokenizer files have no row for most of its tokens."""
    copy = without_template(smollm2, tmp_path)
    for file in gemma.glob("tokenizer*"):
        shutil.copy(file, copy)
    ended = bootstrap(tmp_path, capfd, source={"path": str(copy)}, family="smollm2")

    assert ended.code == 5, ended.err
    assert "the tokenizer is not that of these weights" in ended.err


def test_a_template_planted_in_a_base_model_trips_the_sentinel(
    gemma: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The weights are Gemma base's, and its tokenizer's configuration says it chats."""
    copy = without_template(gemma, tmp_path)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    ended = bootstrap(tmp_path, capfd, source={"path": str(copy)})

    assert ended.code == 5, ended.err
    assert failing(tmp_path) == {"undeclared_chat_template"}


def test_a_tuned_model_passed_off_as_its_base_trips_by_its_behaviour(
    gemma: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It never saw chat markup, so its weights read as a base's; yet it answers and ends."""
    ended = bootstrap(tmp_path, capfd, source={"path": str(tuned(gemma, tmp_path))})

    assert ended.code == 5, ended.err
    assert "bare_endings" in failing(tmp_path)
    assert "end_of_turn_logp" not in failing(tmp_path)


CHATTING = """
import json
from pathlib import Path
from phases.engines import Sampling, open_engine
from runbook.contract import PhaseResult

def run(request):
    engine = open_engine(request)
    method, template = json.loads(Path(__file__).with_name("spoken.json").read_text())
    messages = [{"role": "user", "content": "Hello"}]
    feed = getattr(engine.base.tokenizer, method)
    engine.generate([feed(messages, **template)], Sampling(4), (), 0)
    return PhaseResult()
"""
SPOKEN = (
    "apply_chat_template",
    {
        "chat_template": "{% for m in messages %}<start_of_turn>{{ m['content'] }}{% endfor %}",
        "tokenize": False,
    },
)


def test_a_base_model_fed_through_a_chat_template_trips(
    gemma: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Named in data, unseen by the rules over source, it is refused at the model: exit 5."""
    (tmp_path / "chatting.py").write_text(CHATTING)
    (tmp_path / "spoken.json").write_text(json.dumps(SPOKEN))
    book = YAML(typ="safe", pure=True).load(SPECS / "quickstart" / "runbook.yaml")
    book["model"]["source"] = {"path": str(gemma)}
    first = next(phase for phase in book["phases"] if phase["name"] == "bootstrap")
    prepare = next(step for step in first["steps"] if step["name"] == "prepare_model")
    chat = {"name": "chat", "function": "chatting:run", "inputs": ["prepare_model"]}
    first["steps"] = [prepare, {**chat, "output": "artifacts/chat"}]
    book["phases"] = [first]
    path = tmp_path / "runbook.yaml"
    path.write_text(json.dumps(book))
    ended = call(capfd, "run", path, "--workspace", tmp_path / "workspace")

    assert ended.code == 5, ended.err
    assert "holds chat markup ['<start_of_turn>']" in ended.err
