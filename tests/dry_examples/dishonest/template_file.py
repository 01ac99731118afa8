"""Takes the template out of the tokenizer's file."""

import json
from pathlib import Path


def rewrite(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)  # finds: template-dict
    config["chat_template"] = ""  # finds: template-dict
    path.write_text(json.dumps(config))
