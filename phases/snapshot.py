"""Whether a folder can hold a model or an adapter, told before anything heavy is loaded.

Rule: a checkpoint is data. Weights are safetensors; a pickle, which runs code when it is read, is
never opened, and nothing that names code or files elsewhere is passed on to a library.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from runbook.contract import Json
from runbook.errors import ConfigError

_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
_MAX_JSON: Final = 64 << 20
"""Bytes that are read of a file; a longer one is no whole JSON any more."""
_FIX: Final = "give model.source.path a folder with config.json, a tokenizer and *.safetensors"


def check_snapshot(folder: Path) -> None:
    """Refuse a folder that cannot hold a model, before anything is loaded.

    Raises:
        ConfigError: says which part is missing, or what must not be there.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such model folder", where=str(folder), fix=_FIX)
    if not (folder / "config.json").is_file():
        raise ConfigError("the model folder has no config.json", where=str(folder), fix=_FIX)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ConfigError("the model folder has no tokenizer", where=str(folder), fix=_FIX)
    if (folder / "adapter_config.json").exists():
        # transformers would load it on top of the base model without a word.
        what = "the model folder holds an adapter (adapter_config.json)"
        raise ConfigError(what, where=str(folder), fix="name the folder of a base model alone")
    _check_weights(folder, "*.safetensors", "the model folder has no weights")
    _check_config(folder / "config.json")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        _check_index(index)


def check_adapter(folder: Path) -> None:
    """Refuse a folder that holds no adapter as safetensors.

    Raises:
        ConfigError: says which part is missing.
    """
    if not (folder / "adapter_config.json").is_file():
        fix = "name a folder with adapter_config.json and adapter_model.safetensors"
        raise ConfigError("there is no adapter_config.json", where=str(folder), fix=fix)
    _check_weights(folder, "adapter_model.safetensors", "the adapter has no weights")


def _check_weights(folder: Path, pattern: str, what: str) -> None:
    weights = list(folder.glob(pattern))
    if weights and all(w.is_file() and w.stat().st_size for w in weights):
        return
    pickles = sorted(p.name for kind in _PICKLES for p in folder.glob(kind))
    hint = f"convert {pickles[0]} to safetensors: loading a pickle runs code" if pickles else _FIX
    raise ConfigError(what, where=str(folder), fix=hint)


def _check_config(path: Path) -> None:
    """An implementation named ``owner/name`` is code that transformers fetches from the hub."""
    for key, value in _settings(_read(path)):
        if key.endswith("_implementation") and isinstance(value, str) and "/" in value:
            what = f"{key!a} names code on the hub: {value!a}"
            raise ConfigError(what, where=str(path), fix="take the key out of config.json")


def _settings(value: Json) -> Iterator[tuple[str, Json]]:
    """Every key with its value, on all levels."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _check_index(path: Path) -> None:
    """Every weight lies in a safetensors file of the same folder."""
    weights = _read(path).get("weight_map")
    names = sorted({str(name) for name in weights.values()}) if isinstance(weights, dict) else []
    for name in names:
        plain = Path(name).name == name and name.endswith(".safetensors")
        if not plain or not (path.parent / name).is_file():
            what = f"the index names {name!a}, which is no safetensors file of this folder"
            raise ConfigError(what, where=str(path), fix="give a complete snapshot")
    if not names:
        raise ConfigError("the index names no file", where=str(path), fix="give a whole snapshot")


def _read(path: Path) -> dict[str, Json]:
    """A file that must hold one JSON object."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        what = f"{path.name} cannot be read as JSON ({ascii(str(error))[1:-1]})"
        raise ConfigError(what, where=str(path), fix="give a complete snapshot") from error
    if not isinstance(found, dict):
        what = f"{path.name} holds no JSON object"
        raise ConfigError(what, where=str(path), fix="give a complete snapshot")
    return found
