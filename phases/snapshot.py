"""Whether a folder can hold a model at all, told before anything heavy is imported or loaded."""

from pathlib import Path
from typing import Final

from runbook.errors import ConfigError

_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def check_snapshot(folder: Path) -> None:
    """Refuse a folder that cannot hold a model, before anything is loaded.

    Raises:
        ConfigError: says which part is missing.
    """
    fix = "give model.source.path a folder with config.json, a tokenizer and *.safetensors"
    if not folder.is_dir():
        raise ConfigError("there is no such model folder", where=str(folder), fix=fix)
    if not (folder / "config.json").is_file():
        raise ConfigError("the model folder has no config.json", where=str(folder), fix=fix)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ConfigError("the model folder has no tokenizer", where=str(folder), fix=fix)
    weights = list(folder.glob("*.safetensors"))
    if not weights or any(w.stat().st_size == 0 for w in weights):
        pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"))]
        hint = (
            f"convert {pickles[0]} to safetensors: loading a pickle runs code" if pickles else fix
        )
        raise ConfigError("the model folder has no weights", where=str(folder), fix=hint)
