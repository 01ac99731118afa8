"""Loads a model of its own: AutoModelForCausalLM.from_pretrained is prose here."""

import importlib
from importlib import import_module as bring

from typing import TYPE_CHECKING

import ctranslate2  # finds: loader-runtime
import safetensors.torch as tensors
import torch
import torch as th
import transformers
import transformers as t
from llama_cpp import Llama  # finds: loader-runtime
from phases.base_model import AutoTokenizer as Split  # finds: loader-import
from safetensors import safe_open  # finds: loader-weights
from torch import load as read_pickle  # finds: loader-weights
from transformers import AutoModelForCausalLM as M  # finds: loader-import
from transformers import GenerationConfig, pipeline  # finds: loader-import
from transformers.models.gemma3 import Gemma3ForCausalLM  # finds: loader-import
from trl import SFTTrainer
from vllm import LLM, SamplingParams  # finds: loader-import

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
else:
    from transformers import AutoTokenizer  # finds: loader-import

LIBRARY = "transformers"


def load(name: str) -> object:
    """Through the module's other names."""
    tokenizer = t.AutoTokenizer  # finds: loader-attribute
    make = getattr(t, "AutoModelForCausalLM")  # finds: loader-by-name
    read = getattr(tokenizer, "from_pretrained")  # finds: loader-by-name
    again = M.from_pretrained(name)  # finds: loader-attribute
    run = t.pipeline("text-generation", name)  # finds: loader-attribute
    engine = transformers.pipeline  # finds: loader-attribute
    return make, read, again, run, engine, Llama, LLM, SamplingParams, pipeline, GenerationConfig


def load_by_name(name: str) -> object:
    """Through an import at run time."""
    hub = importlib.import_module("transformers")  # finds: loader-dynamic-import
    same = bring("transformers.models.auto")  # finds: loader-dynamic-import
    other = __import__("vllm")  # finds: loader-dynamic-import
    constant = importlib.import_module(LIBRARY)  # finds: loader-dynamic-import
    exec("from transformers import AutoModel")  # finds: loader-source-text
    trainer = SFTTrainer(model="a/model", args=None)  # finds: loader-trainer
    return hub, same, other, constant, trainer, Gemma3ForCausalLM(name)


def load_weights(path: str) -> object:
    """Through the files."""
    hub = th
    one = torch.load(path)  # finds: loader-weights
    two = th.load(path)  # finds: loader-weights
    three = hub.load(path)  # finds: loader-weights
    four = tensors.load_file(path)  # finds: loader-weights
    five = getattr(torch, "load")(path)  # finds: loader-weights
    with safe_open(path, "pt") as file:
        return one, two, three, four, five, file, read_pickle(path), ctranslate2
