"""Provenance, and the manifests that say what a step or a session made and from what.

A step's manifest is written last, after its verdict, so that its existence means complete. The
session's manifest is a projection of the journal. Nothing here imports a heavy library: versions
are read from the installed packages' metadata.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runbook import artifacts
from runbook import events as ev
from runbook.codec import encode
from runbook.contract import Artifact, Json
from runbook.errors import NeedsPersonError
from runbook.plan import Plan, PlannedStep
from runbook.problems import printable
from runbook.redact import Redactor, secrets_in
from runbook.state import SMOKE, State, Status, StepState
from runbook.step_code import code_of
from runbook.workspace import Workspace

_ASKING = threading.Lock()
"""Git is asked once, whichever thread is first."""
PACKAGES = ("runbook", "torch", "transformers", "trl", "peft")


@cache
def versions() -> dict[str, str]:
    """Python's and the installed packages' versions; a missing package is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def look_up() -> None:
    """Begin to ask git, which takes a while; ``git_sha`` waits for the answer."""
    threading.Thread(target=git_sha, name="git").start()


def git_sha() -> str:
    """The commit this code runs from, ``-dirty`` where it was edited; empty outside git."""
    with _ASKING:
        return _git_sha()


@cache
def _git_sha() -> str:
    git = shutil.which("git")
    here = Path(__file__).parent
    if git is None or not (here.parent / ".git").exists():
        return ""
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    done = subprocess.run(
        [git, "-C", str(here), *describe], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def cpu() -> str:
    """The processor's name as the kernel gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


@cache
def _system() -> str:
    """Kernel, machine and C library as ``platform.platform`` has them, which starts a process."""
    kernel = os.uname()
    try:
        library = (os.confstr("CS_GNU_LIBC_VERSION") or "").replace(" ", "")
    except (OSError, ValueError):
        library = ""
    told = f"{kernel.sysname}-{kernel.release}-{kernel.machine}"
    return f"{told}-with-{library}" if library else told


def provenance(plan: Plan) -> dict[str, Json]:
    """What every record carries. No time, path or run id: a resumed dataset has the same bytes."""
    return {
        "git_sha": git_sha(),
        "versions": dict(versions()),
        "runbook": plan.name,
        "fingerprint": plan.fingerprint,
    }


def environment() -> dict[str, Json]:
    return {
        **versions(),
        "platform": _system(),
        "cpu": cpu(),
        "git_sha": git_sha(),
        "command": _command(tuple(sys.argv), tuple(secrets_in(os.environ).items())),
    }


@cache
def _command(arguments: tuple[str, ...], secrets: tuple[tuple[str, str], ...]) -> str:
    return Redactor(dict(secrets)).text(shlex.join(arguments))


def step_manifest(
    plan: Plan, state: State, step: PlannedStep, judgement: Mapping[str, str]
) -> dict[str, Json]:
    """What this attempt ran with, made and was judged. The step has finished.

    ``judgement`` is path and hash of the judgement's own file; empty for a step without a gate.
    """
    mine = state.steps[step.name]
    started, finished = mine.started, mine.finished
    assert started is not None
    assert finished is not None
    return {
        "run_id": state.session.run_id if state.session else "",
        "step": step.name,
        "phase": step.phase,
        "function": step.function,
        "attempt": mine.attempt,
        "look": mine.look,
        "seed": plan.seed,
        "fingerprint": {"runbook": plan.fingerprint, "step": step.fingerprint},
        "code": dict(started.code),
        "started_at": started.started_at,
        "seconds": finished.seconds,
        "tokens": finished.tokens,
        "params": encode(started.params),
        "overrides": list(plan.overrides),
        "inputs": {name: _hashes(state.steps[name]) for name in step.inputs},
        "outputs": [encode(artifact) for artifact in finished.artifacts],
        "metrics": [encode(metric) for metric in finished.metrics],
        "summary": encode(finished.summary),
        **_outcome(mine),
        "judgement": dict(judgement),
        "environment": environment(),
    }


def _hashes(source: StepState) -> dict[str, str]:
    made: tuple[Artifact, ...] = source.finished.artifacts if source.finished else ()
    return {artifact.name: artifact.sha256 for artifact in made}


def _verdict(judged: ev.GateJudged | None) -> str | None:
    """Of a smoke there is none, whatever its few rows read."""
    if judged is None or judged.look == SMOKE:
        return None
    return judged.verdict


def _outcome(mine: StepState) -> dict[str, Json]:
    """The verdict and its reasons; a step without a gate has none."""
    judged = mine.judged
    result: dict[str, Json] = {
        "verdict": _verdict(judged),
        "criteria": [dict(criterion) for criterion in judged.criteria] if judged else [],
        "reasons": list(judged.reasons) if judged else [],
        "overridden": None,
    }
    decision = mine.review.decision if mine.review else None
    if mine.overridden and decision:
        result["overridden"] = {"by": decision.author, "reason": decision.reason}
    return result


def session_manifest(plan: Plan, state: State, written: list[ev.ManifestWritten]) -> Json:
    """Every manifest of the session in the order of writing, and how the session stands."""
    session = state.session
    assert session is not None
    return {
        "run_id": session.run_id,
        "name": session.name,
        "runbook": session.runbook,
        "fingerprint": session.fingerprint,
        "overrides": list(session.overrides),
        "seed": plan.seed,
        "steps": {
            name: {
                "status": mine.status.value,
                "attempt": mine.attempt,
                "verdict": _verdict(mine.judged),
                "reasons": _reasons(plan, name, mine),
                "overridden": mine.overridden,
                "tokens": mine.finished.tokens if mine.finished else 0,
                "seconds": mine.finished.seconds if mine.finished else 0.0,
                "artifacts": [encode(a) for a in mine.finished.artifacts] if mine.finished else [],
            }
            for name, mine in state.steps.items()
        },
        "manifests": [encode(manifest) for manifest in written],
        "stopped": encode(state.stop) if state.stop else None,
        "done": encode(state.done) if state.done else None,
        "environment": environment(),
    }


def _reasons(plan: Plan, name: str, mine: StepState) -> list[str]:
    """Why a step stands as it does: its gate's reasons, its error, or that it is disabled."""
    if mine.status is Status.SKIPPED:
        return [f"phase {plan.step(name).phase} is disabled in the runbook"]
    if mine.status is Status.FAILED and mine.failed:
        return [mine.failed.error]
    return list(mine.judged.reasons) if mine.judged else []


def is_projected(workspace: Workspace, state: State) -> bool:
    """Whether the session manifest on disk already tells of the session's end."""
    assert state.session is not None
    try:
        told = json.loads(workspace.session_manifest(state.session.run_id).read_bytes())
    except (OSError, ValueError):
        return False
    ends = (encode(state.done), state.session.fingerprint)
    return (told.get("done"), told.get("fingerprint")) == ends and workspace.report.is_file()


def verified_inputs(
    state: State, workspace: Workspace, step: PlannedStep
) -> dict[str, dict[str, Artifact]]:
    """The artifacts that a step reads, checked against the journal.

    Raises:
        NeedsPersonError: a manifest or an artifact is missing or changed.
    """
    found: dict[str, dict[str, Artifact]] = {}
    for name in step.inputs:
        source = state.steps[name]
        if source.manifest is None or source.finished is None:
            raise _missing(step, name, "it was not run", "enable it, or drop it from inputs")
        path = workspace.inside(source.manifest.path)
        if not path.is_file() or artifacts.sha256_file(path) != source.manifest.sha256:
            raise _missing(
                step, name, f"{source.manifest.path} is missing or changed", "restore it"
            )
        for artifact in source.finished.artifacts:
            if not _is_sound(workspace.inside(artifact.path), artifact):
                raise _missing(step, name, f"{artifact.path} is missing or changed", "restore it")
        found[name] = {artifact.name: artifact for artifact in source.finished.artifacts}
    return found


def changed_since_planned(step: PlannedStep, folder: Path) -> str:
    """What the step would read or run otherwise than it was planned; empty where nothing.

    Args:
        step: its declared files are hashed again, and its code's sources; no other step's are.
        folder: the runbook's.
    """
    for name, path in step.files.items():
        planned = step.file_sha256.get(name)
        if planned and (what := _file_trouble(path, planned)):
            return f"{printable(str(path), longest=1000)}, its file {name}, {what}"
    now = code_of(step.function, folder) if step.code else step.code
    changed = [module for module, sha256 in step.code.items() if now.get(module) != sha256]
    return f"the source of {changed[0]}, which it runs, was changed" if changed else ""


def _file_trouble(path: Path, planned: str) -> str:
    try:
        if not path.is_file():
            return "is missing"
        return "" if artifacts.sha256_file(path) == planned else "was changed"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def markers(workspace: Workspace, output: str, made: Iterable[Artifact]) -> dict[str, str]:
    """Folder -> SHA-256 of its ``COMPLETE.json``; one that has none is left out.

    Args:
        workspace: where.
        output: the step's folder.
        made: its artifacts; some are folders.
    """
    found = {}
    for folder in dict.fromkeys([output, *(artifact.path for artifact in made)]):
        marker = workspace.inside(folder) / artifacts.COMPLETE
        if marker.is_file():
            found[folder] = artifacts.sha256_file(marker)
    return found


def missing_outputs(workspace: Workspace, finished: ev.StepFinished) -> str:
    """What a step declared or pointed at that is missing or changed; empty if all is there."""
    for artifact in finished.artifacts:
        if not _is_sound(workspace.inside(artifact.path), artifact):
            return f"{artifact.path} is missing or changed"
    for metric in finished.metrics:
        if metric.evidence and not workspace.inside(metric.evidence).exists():
            return f"{metric.evidence}, the evidence of {metric.name}, is missing"
    return ""


def _is_sound(path: Path, artifact: Artifact) -> bool:
    if path.is_dir():
        return _same_folder(path, artifact.sha256, _stamp(path))
    return path.is_file() and artifacts.sha256_file(path) == artifact.sha256


@cache
def _same_folder(path: Path, sha256: str, stamp: tuple[tuple[str | int, ...], ...]) -> bool:  # noqa: ARG001 - the cache's key
    """Whether every byte is the journal's; read anew where one changed, since weights are large."""
    return artifacts.sha256_tree(path) == sha256


def _stamp(folder: Path) -> tuple[tuple[str | int, ...], ...]:
    """What differs once a file of the folder was written to or replaced."""
    found = ((name, (folder / name).stat()) for name in sorted(artifacts.names(folder)))
    return tuple((n, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in found)


def _missing(step: PlannedStep, source: str, what: str, fix: str) -> NeedsPersonError:
    return NeedsPersonError(f"{step.name} needs the manifest of {source}: {what}", fix=fix)
