"""The only way to a base model: load, take away the chat template, prove what is fed.

Rule: every text that reaches the model goes through ``BaseModel.encode``. It feeds no special
token but the declared prefix and refuses text that tokenizes to chat markup. Nothing else in this
project loads a model or a tokenizer, or touches a chat template. A checkpoint is data: its weights
are safetensors, and code that it brings or names is not run.

It does not judge whether a checkpoint is a base model: ``phases.contamination`` measures that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as hf_logging

from phases.snapshot import check_adapter, check_snapshot
from runbook.contract import Json
from runbook.errors import ConfigError, SentinelError

LOADER_VERSION: Final = "1"
CHAT_MARKUP: Final = (
    "<start_of_turn>",
    "<end_of_turn>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
"""Markers of turns in the chat formats in use; each counts where it is one token."""

_AS_DATA: Final = {"local_files_only": True, "trust_remote_code": False}
_PROBE: Final = "Water freezes at"

_TURNS: Final = (
    ("<start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n{a}", "<end_of_turn>"),
    ("<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}", "<|im_end|>"),
    (
        (
            "<|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n{a}"
        ),
        "<|eot_id|>",
    ),
)
_SHORT_ANSWERS: Final = (
    ("What color is grass?", "Grass is green."),
    ("How many legs does a dog have?", "A dog has four legs."),
    ("What do bees make?", "Bees make honey."),
)


@dataclass(frozen=True)
class BaseModel:
    """A loaded model and the only encoder for it."""

    model: Any
    tokenizer: Any
    prefix_ids: tuple[int, ...]
    """Special tokens that every text begins with; empty or the BOS token."""
    prefix_found: tuple[int, ...]
    """What the tokenizer itself puts in front of a text."""
    markup_ids: Mapping[str, int]
    shipped_template: bool
    """Whether the checkpoint came with a chat template, which was taken away."""
    quantization: str
    dtype: str

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Token ids of a text, with the declared prefix unless it continues another.

        Raises:
            SentinelError: the text holds a token of chat markup.
        """
        ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        found = sorted(m for m, i in self.markup_ids.items() if i in set(ids))
        if found:
            raise SentinelError(
                f"a text for the base model holds chat markup {found}",
                where=repr(text[:80]),
                fix="take the markup out of the prompt or the few-shot file; a base model is "
                "fed plain text",
            )
        return ids if continues else [*self.prefix_ids, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; special tokens are left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def spell(self, ids: Sequence[int]) -> str:
        """Text of ids that are fed; special tokens are spelled out, the declared prefix left out.

        A prefix was declared, so it is no sign of a chat.
        """
        given = list(ids)
        start = (
            len(self.prefix_ids) if tuple(given[: len(self.prefix_ids)]) == self.prefix_ids else 0
        )
        return str(self.tokenizer.decode(given[start:], skip_special_tokens=False))

    def end_of_turn_logps(self) -> dict[str, float]:
        """How surely the model closes a turn after a short answer in chat markup.

        Log-probability of its own end-of-turn token, mean over three short answers, for each
        chat format whose markers are single tokens here. An instruct model gives it about 0, a
        base model far less. The one place where markup is fed, and to read weights alone.
        """
        found = {}
        for layout, end in _TURNS:
            if end not in self.markup_ids:
                continue
            logps = [self._next_logp(layout.format(q=q, a=a), end) for q, a in _SHORT_ANSWERS]
            found[end] = sum(logps) / len(logps)
        return found

    def _next_logp(self, text: str, token: str) -> float:
        ids = [*self.prefix_ids, *self.tokenizer(text, add_special_tokens=False).input_ids]
        with torch.inference_mode():
            logits = self.model(
                input_ids=torch.tensor([ids], device=self.device), logits_to_keep=1
            ).logits
        return float(logits[0, -1].float().log_softmax(-1)[self.markup_ids[token]])

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    @property
    def eos_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def stated(self) -> dict[str, Json]:
        """What every record says of the model that made it."""
        return {
            "loader_version": LOADER_VERSION,
            "quantization": self.quantization,
            "dtype": self.dtype,
            "template_disabled": self.tokenizer.chat_template is None,
            "prefix_matches": self.prefix_found == self.prefix_ids,
            "shipped_template": self.shipped_template,
        }


def load_base_model(
    folder: Path,
    declared: Mapping[str, Json],
    engine: Mapping[str, Json],
    *,
    quantization: str | None = None,
    adapter: Path | None = None,
    trainable: bool = False,
) -> BaseModel:
    """Load a snapshot folder (safetensors) as a base model.

    Args:
        folder: a Hugging Face snapshot: config, tokenizer, safetensors.
        declared: the runbook's ``model`` section.
        engine: the runbook's ``engine`` section.
        quantization: 'none' or 'nf4'; the declared one where None.
        adapter: a PEFT adapter to put on top.
        trainable: leave gradients on, the adapter's included.

    Raises:
        ConfigError: the folder holds no usable snapshot, or that of the adapter no safetensors.
    """
    check_snapshot(folder)
    if adapter is not None:
        check_adapter(adapter)
    hf_logging.disable_progress_bar()
    if engine.get("threads"):
        torch.set_num_threads(int(engine["threads"]))
    quantization = quantization or str(declared.get("quantization", "none"))
    dtype = getattr(torch, str(declared.get("dtype", "bfloat16")))
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **_AS_DATA}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **_AS_DATA)
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"the model cannot be loaded: {ascii(str(error))[1:-1]}",
            where=str(folder),
            fix="give model.source a complete snapshot: config.json, tokenizer, *.safetensors",
        ) from error
    _check_fit(tokenizer, model, folder)
    if quantization != "nf4":
        model.to(str(engine.get("device", "cpu")))
    if adapter is not None:
        model = _with_adapter(model, adapter, folder, trainable=trainable)
    if not trainable:
        model.eval()
    # A frozen head on a strided slice takes a path in torch that copies the whole vocabulary
    # matrix once a row (measured on two cores, 32 rows of Gemma 3 270M: 34 to 39 s against 0.06 s).
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: (inputs[0].contiguous(), *inputs[1:])
    )
    return _guarded(model, tokenizer, declared, quantization)


def convert_gguf(gguf: Path, output: Path) -> None:
    """Save a GGUF file as a bf16 safetensors snapshot with its tokenizer.

    transformers dequantizes while it reads and leaves the quantizer's marks on the model; they
    are taken away, or save_pretrained refuses.
    """
    hf_logging.disable_progress_bar()
    source = {"gguf_file": gguf.name, **_AS_DATA}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model = model.to(torch.bfloat16)
    for mark in ("hf_quantizer", "is_quantized"):
        if hasattr(model, mark):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _with_adapter(model: Any, adapter: Path, folder: Path, *, trainable: bool) -> Any:
    from peft import PeftModel  # noqa: PLC0415 - slow to import, not needed by every caller

    tuned = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    for config in tuned.peft_config.values():
        # The adapter names its base by name; PEFT would ask the hub for it whenever it saves.
        config.base_model_name_or_path = str(folder)
    return tuned


def _guarded(
    model: Any, tokenizer: Any, declared: Mapping[str, Json], quantization: str
) -> BaseModel:
    shipped = bool(tokenizer.chat_template)
    tokenizer.chat_template = None
    bare = list(tokenizer(_PROBE, add_special_tokens=False).input_ids)
    full = list(tokenizer(_PROBE).input_ids)
    found = full[: len(full) - len(bare)] if full[-len(bare) :] == bare else full
    prefix = _declared_prefix(tokenizer, str(declared.get("prefix", "none")))
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        prefix_ids=prefix,
        prefix_found=tuple(found),
        markup_ids=_single_tokens(tokenizer, CHAT_MARKUP),
        shipped_template=shipped,
        quantization=quantization,
        dtype=str(declared.get("dtype", "bfloat16")),
    )


def _check_fit(tokenizer: Any, model: Any, folder: Path) -> None:
    """Raises SentinelError: the tokenizer has tokens that the weights have no row for."""
    highest, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().num_embeddings
    if highest >= rows:
        raise SentinelError(
            f"the tokenizer is not that of these weights: it has a token {highest}, the model "
            f"{rows} rows",
            where=str(folder),
            fix="give model.source the checkpoint as its makers published it, tokenizer included",
        )


def _declared_prefix(tokenizer: Any, prefix: str) -> tuple[int, ...]:
    if prefix == "none":
        return ()
    if tokenizer.bos_token_id is None:
        raise ConfigError(
            "model.prefix is 'bos', but the tokenizer has no BOS token",
            where="model.prefix",
            fix="declare prefix: none, or point model.source at the model you meant",
        )
    return (int(tokenizer.bos_token_id),)


def _single_tokens(tokenizer: Any, markers: Iterable[str]) -> dict[str, int]:
    vocabulary = tokenizer.get_vocab()
    return {m: int(vocabulary[m]) for m in markers if m in vocabulary}
