"""What a plan needs of the machine beyond its ``preflight`` section: model, packages, folders.

Rule: as in ``runbook.bootstrap``, a check never raises for what it finds; a value of the
environment that is no path is never shown. Versions are read from metadata: no torch is imported.
"""

import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from runbook.artifacts import is_complete
from runbook.bootstrap import DEVICES, Check, State, check_gpus, nearest, refuse
from runbook.contract import Json
from runbook.errors import NeedsPersonError
from runbook.manifest import versions
from runbook.plan import Plan
from runbook.problems import printable
from runbook.rental import check_rental
from runbook.workspace import Workspace

HUB = "https://huggingface.co"
HUB_S = 3.0
"""How long the hub may take to answer."""
FOLDERS = (
    "HOME",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "TRANSFORMERS_CACHE",
    "TORCH_HOME",
)
"""Exports that name a folder which fills up."""
_NEEDED = ("torch", "transformers", "trl", "peft")
_OFF = frozenset({"", "0", "false", "no", "off"})


def check_plan(plan: Plan, workspace: Workspace, environ: Mapping[str, str] = os.environ) -> None:
    """Hold what a plan needs against this machine, before its session starts.

    Raises:
        ConfigError: no GPU for an engine on one, no model, a package or a folder is missing, or
            the rental has ended.
        NeedsPersonError: the hub does not answer.
    """
    refuse(plan_checks(plan, workspace, environ))


def plan_checks(
    plan: Plan, workspace: Workspace, environ: Mapping[str, str], devices: Path = DEVICES
) -> Iterator[Check]:
    """The checks of a start, one at a time, the cheap ones first."""
    if wants_gpu(plan):
        yield check_gpus(1, devices=devices, environ={**environ, **plan.environment})
    if plan.pod.get("rental_ends"):
        yield check_rental(plan.pod, environ)
    yield check_versions(plan)
    yield check_folders(plan, workspace.root)
    yield check_model(plan, workspace, {**environ, **plan.environment})


def wants_gpu(plan: Plan) -> bool:
    """Whether the engine itself asks for one, whatever ``preflight.gpus`` says."""
    return loads_model(plan) and plan.engine.get("device") == "cuda"


def loads_model(plan: Plan) -> bool:
    return plan.engine.get("name") == "transformers"


def check_versions(plan: Plan | None) -> Check:
    """Whether what loads and trains a model is installed, and built for the engine's device."""
    found = versions()
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    missing = [name for name in _NEEDED if name not in found]
    if missing and plan is not None and loads_model(plan):
        what = f"not installed: {', '.join(missing)} (there is {told})"
        return Check("packages", State.FAILED, what, _pip(*_training_packages()))
    torch = found.get("torch", "")
    if plan is not None and wants_gpu(plan) and torch.endswith("+cpu"):
        fix = _pip("--force-reinstall", f"torch=={torch.removesuffix('+cpu')}")
        return Check("packages", State.FAILED, f"torch {torch} cannot use a GPU", fix)
    absent = f"; not installed: {', '.join(missing)}" if missing else ""
    return Check("packages", State.OK, told + absent)


def check_notifications(plan: Plan, environ: Mapping[str, str]) -> Check:
    """Whether people can be told, where the runbook wants it. The address is not tried."""
    from runbook.notify import unavailable  # noqa: PLC0415 - few runbooks have any

    if not plan.notifications:
        return Check("notifications", State.SKIPPED, "the runbook declares none")
    variable = plan.notifications["url_env"]
    if why := unavailable(plan, environ):
        found, _, fix = why.partition("; ")
        return Check("notifications", State.WARN, f"nobody will be told: {found}", fix)
    events = len(plan.notifications["events"])
    return Check("notifications", State.OK, f"{variable} is set; {events} kinds of events")


def _training_packages() -> list[str]:
    """What this release's extra ``train`` asks for."""
    with suppress(PackageNotFoundError):
        declared = [line.partition(";") for line in requires("runbook") or []]
        return [name.strip() for name, _, extra in declared if "train" in extra]
    return list(_NEEDED)


def _pip(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def check_folders(plan: Plan, root: Path) -> Check:
    """Whether the folders that the runbook exports can be made, and lie on the workspace's volume.

    A cache on another volume is how the container's disk fills up while the rented one is empty.
    """
    named = {n: Path(plan.environment[n]) for n in FOLDERS if plan.environment.get(n)}
    if not named:
        return Check("folders", State.SKIPPED, "the runbook exports none")
    for name, path in named.items():
        if not path.is_absolute():
            fix = f"write environment.{name} from the root, as /workspace/{path}"
            return Check("folders", State.FAILED, f"{name} is {path}, which starts nowhere", fix)
        there = nearest(path)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            fix = f"mkdir -p {shlex.quote(str(path))}   # or name another under environment"
            found = f"{name} is {path}, which cannot be made or written to"
            return Check("folders", State.FAILED, found, fix)
    volume = nearest(root).stat().st_dev
    astray = [n for n, path in named.items() if nearest(path).stat().st_dev != volume]
    if astray:
        found = f"on another volume than the workspace: {', '.join(astray)}"
        fix = f"export {astray[0]}={shlex.quote(str(root / '.cache'))}   # under environment:"
        return Check("folders", State.WARN, found, fix)
    return Check("folders", State.OK, f"{', '.join(named)}: on the workspace's volume")


def check_model(plan: Plan, workspace: Workspace, environ: Mapping[str, str]) -> Check:
    """Whether the model is there, or can be fetched."""
    source: Mapping[str, Json] = plan.model.get("source", {})
    snapshot = _snapshot(plan, workspace)
    if snapshot is not None:
        return Check("model", State.OK, f"complete in {workspace.relative(snapshot)}")
    if "pypi" in source:
        check = _check_package(str(source["pypi"]))
    elif "path" in source:
        check = _check_folder(Path(str(source["path"])))
    elif "hub" in source:
        check = _check_hub(str(source["hub"]), str(source["revision"]), environ)
    else:
        return Check("model", State.SKIPPED, "none is declared")
    if check.state is State.FAILED and not loads_model(plan):
        found = f"{check.found}; this engine generates without one, training does not"
        return Check("model", State.WARN, found, check.fix)
    return check


def _snapshot(plan: Plan, workspace: Workspace) -> Path | None:
    """The finished output of a step that put a model in the workspace."""
    outputs = [s.output for s in plan.steps if s.enabled and "{time}" not in s.output]
    folders = (workspace.root / output for output in outputs)
    return next((f for f in folders if (f / "config.json").is_file() and is_complete(f)), None)


def _check_package(package: str) -> Check:
    with suppress(PackageNotFoundError):
        return Check("model", State.OK, f"package {package} {version(package)}")
    with suppress(ImportError, ValueError):
        if importlib.util.find_spec(package.replace("-", "_")):
            return Check("model", State.OK, f"module {package.replace('-', '_')}")
    shown = printable(package)
    return Check("model", State.FAILED, f"the package {shown} is not installed", _pip(package))


def _check_folder(folder: Path) -> Check:
    fix = f"ls {shlex.quote(str(folder))}   # config.json, a tokenizer, *.safetensors; or edit"
    fix += " model.source.path"
    if not (folder / "config.json").is_file():
        return Check("model", State.FAILED, f"there is no config.json in {folder}", fix)
    if not any(path.stat().st_size for path in folder.glob("*.safetensors")):
        return Check("model", State.FAILED, f"there are no *.safetensors in {folder}", fix)
    return Check("model", State.OK, str(folder))


def _check_hub(repository: str, revision: str, environ: Mapping[str, str]) -> Check:
    """Whether the hub gives the model's config to this machine, with its token if it has one."""
    endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    address = f"{endpoint}/{repository}/resolve/{revision}/config.json"
    if environ.get("HF_HUB_OFFLINE", "").lower() not in _OFF:
        found = f"HF_HUB_OFFLINE is set, and {repository} is not in the workspace"
        return Check("model", State.FAILED, found, "unset HF_HUB_OFFLINE")
    if not endpoint.startswith(("https://", "http://")):
        found = "HF_ENDPOINT is no http address"
        return Check("model", State.FAILED, found, f"export HF_ENDPOINT={HUB}")
    try:
        status = _ask(address, environ.get("HF_TOKEN", ""))
    except (OSError, ValueError) as error:
        why = printable(str(getattr(error, "reason", error)), longest=200)
        found = f"{repository} is not in the workspace, and {endpoint} does not answer: {why}"
        fix = f"curl -sSI {shlex.quote(address)}   # or give model.source a path"
        return Check("model", State.FAILED, found, fix, NeedsPersonError)
    return _judge_answer(status, repository, endpoint, environ)


def _judge_answer(status: int, repository: str, endpoint: str, environ: Mapping[str, str]) -> Check:
    told = f"{repository}: {endpoint} answered {status}"
    if status in {401, 403}:
        token = "the token may not read it" if environ.get("HF_TOKEN") else "HF_TOKEN is not set"
        fix = f"accept the terms at {endpoint}/{repository}, then: export HF_TOKEN=..."
        return Check("model", State.FAILED, f"{told}; {token}", fix)
    if status in {404, 410}:
        found = f"{told}: no such model or revision"
        return Check("model", State.FAILED, found, "edit model.source: hub and revision")
    if status >= 400:
        return Check("model", State.WARN, told, "runbook doctor   # again in a minute")
    return Check("model", State.OK, f"{told}: it can be fetched")


def _ask(address: str, token: str) -> int:
    """The status of a HEAD request. A redirect is an answer: the token must not travel on with it.

    Raises OSError or ValueError where nothing answers.
    """
    import urllib.request  # noqa: PLC0415 - only a model of the hub needs it, and it is slow

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    headers = {"User-Agent": "runbook", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(address, method="HEAD", headers=headers)  # noqa: S310 - http alone, by the caller
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=HUB_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
