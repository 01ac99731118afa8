"""The doctor: what can be known of a runbook, a workspace and a machine before a session starts.

Rule: one row a question, whatever the others found. It writes nothing that stays, takes no lock,
and names the variables of the environment without their values.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from runbook.bootstrap import (
    DEVICES,
    Check,
    State,
    check_clock,
    check_disk,
    check_gpus,
    check_workspace,
    used_bytes,
)
from runbook.contract import Json
from runbook.errors import ConfigError, RunbookError
from runbook.fingerprint import changed_fields, plan_document
from runbook.journal import Entry, read_journal
from runbook.owner import Owner
from runbook.plan import Plan
from runbook.prerequisites import (
    check_folders,
    check_model,
    check_notifications,
    check_versions,
    wants_gpu,
)
from runbook.problems import listing
from runbook.rental import check_rental
from runbook.sandbox import check_sandbox
from runbook.schema import load_plan
from runbook.workspace import Workspace
from runbook.yaml_source import parse_yaml

_SHORT = 12
_SPEC = re.compile(r"""\bspec["']?\s*:\s*["']?([^\s,}"'#]+)""")
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
_MOST_FIELDS = 3

CheckReviewer = Callable[[Plan, Workspace, Mapping[str, str]], Check]
"""Plan, workspace and environment -> the row on who answers reviews."""


@dataclass(frozen=True)
class Known:
    """What a workspace tells of the session in it; nothing where there is none."""

    runbook: Path | None = None
    overrides: tuple[str, ...] = ()
    recorded: Mapping[str, Json] = field(default_factory=dict)
    """The newest plan on record."""
    newest: datetime | None = None
    """When the journal's last line was written."""
    holder: Owner | None = None
    """The writer that did not end its time."""
    trouble: RunbookError | None = None
    """Why the journal cannot be read."""


def examine(
    spec: Path | None,
    workspace: Workspace,
    overrides: Sequence[str] = (),
    *,
    check_reviewer: CheckReviewer,
    environ: Mapping[str, str] = os.environ,
    devices: Path = DEVICES,
) -> Iterator[Check]:
    """Every row, in the order in which a person would ask.

    Args:
        spec: the runbook; that of the workspace's session where None.
        workspace: where the session is, or will be. It need not exist.
        overrides: ``--set`` arguments.
        check_reviewer: looks at the reviewer that a plan declares.
        environ: what ``${NAME}`` is looked up in.
        devices: where the GPUs' nodes stand.
    """
    known = read_known(workspace)
    path = spec or known.runbook
    plan, row = read_plan(path, overrides if spec else known.overrides, environ)
    yield row if plan is None else check_recorded(plan, row, known.recorded, workspace)
    yield check_keys(referenced(path) if path else set(), environ)
    if plan is not None and plan.notifications:
        yield check_notifications(plan, environ)
    if plan is not None:
        yield check_reviewer(plan, workspace, environ)
        yield from check_files(plan, known.recorded)
    yield check_journal(known)
    yield check_lock(known, workspace)
    yield check_workspace(workspace.root)
    yield from _machine(plan, workspace, known, environ, devices)
    yield check_clock(known.newest)
    if plan is not None and plan.pod.get("rental_ends"):
        yield check_rental(plan.pod, environ)
    yield check_sandbox()


def _machine(
    plan: Plan | None,
    workspace: Workspace,
    known: Known,
    environ: Mapping[str, str],
    devices: Path,
) -> Iterator[Check]:
    merged = {**environ, **(plan.environment if plan else {})}
    declared = plan.preflight if plan else {}
    wanted = int(declared.get("gpus", 0)) or int(plan is not None and wants_gpu(plan))
    yield check_gpus(wanted, devices=devices, environ=merged)
    yield check_versions(plan)
    if plan is None:
        unknown = "what it needs stands in a runbook"
        yield from (Check(n, State.SKIPPED, unknown) for n in ("disk", "folders", "model"))
        return
    begun = bool(known.recorded) and bool(declared.get("free_disk_gib"))
    held = used_bytes(workspace.root) if begun else 0
    at_work = known.holder is not None and known.holder.is_alive_here
    yield check_disk(declared, workspace.root, held=held, write=not at_work)
    yield check_folders(plan, workspace.root)
    yield check_model(plan, workspace, merged)


def read_known(workspace: Workspace) -> Known:
    """What the journal tells. Takes no lock."""
    try:
        reading = read_journal(workspace)
    except RunbookError as error:
        return Known(trouble=error)
    except OSError as error:
        where = str(error.filename or workspace.root)
        fix = "change its permissions, or name another folder with --workspace"
        what = f"the workspace cannot be read: {error.strerror}"
        return Known(trouble=ConfigError(what, where=where, fix=fix))
    return Known(**_facts(reading.entries), holder=reading.holder)


def _facts(entries: Sequence[Entry]) -> dict[str, Json]:
    if not entries:
        return {}
    facts: dict[str, Json] = {"newest": datetime.fromisoformat(entries[-1].wall)}
    for entry in entries:
        if isinstance(entry.body.get("plan"), Mapping):
            facts["recorded"] = entry.body["plan"]
        if "runbook" in entry.body and "overrides" in entry.body:
            facts["runbook"] = Path(entry.body["runbook"])
            facts["overrides"] = tuple(entry.body["overrides"])
    return facts


def read_plan(
    spec: Path | None, overrides: Sequence[str], environ: Mapping[str, str]
) -> tuple[Plan | None, Check]:
    """The plan, and the row that says whether there is one."""
    if spec is None:
        found = "none was named, and the workspace has no session"
        return None, Check("runbook", State.SKIPPED, found, "runbook doctor SPEC")
    try:
        plan = load_plan(spec, overrides, environ=environ)
    except ConfigError as error:
        fix = f"{error.fix}\nrunbook validate {shlex.quote(str(spec))}"
        return None, Check("runbook", State.FAILED, f"{error.where}: {error.what}", fix)
    steps = f"{len(plan.steps)} steps, fingerprint {plan.fingerprint[:_SHORT]}"
    return plan, Check("runbook", State.OK, f"{plan.name}: {steps}")


def check_recorded(
    plan: Plan, row: Check, recorded: Mapping[str, Json], workspace: Workspace
) -> Check:
    """Whether the plan is the one that the workspace's session was begun with."""
    fields = changed_fields(recorded, plan_document(plan)) if recorded else ()
    if not fields:
        return row
    more = f" and {len(fields) - _MOST_FIELDS} more" if len(fields) > _MOST_FIELDS else ""
    found = f"changed since this session began: {'; '.join(fields[:_MOST_FIELDS])}{more}"
    place = shlex.join([str(plan.runbook), "--workspace", str(workspace.root)])
    fix = f"runbook plan {place}\nor undo the change, or begin in another workspace"
    return Check("runbook", State.FAILED, found, fix)


def referenced(spec: Path) -> set[str]:
    """The names of the variables that a runbook and its specs refer to by ``${NAME}``.

    A file that cannot be read as YAML refers to none; the row of the runbook tells of it.
    """
    text, raw = _document(spec)
    model = raw.get("model")
    source = model.get("source") if isinstance(model, Mapping) else None
    held = [raw.get("environment"), source]
    held += [_document(spec.parent / name)[1].get("files") for name in _SPEC.findall(text)]
    texts = [v for part in held if isinstance(part, Mapping) for v in part.values()]
    return {name for v in texts if isinstance(v, str) for name in _VARIABLE.findall(v)}


def _document(path: Path) -> tuple[str, Mapping[str, Json]]:
    """A YAML file's text, and its mapping if it can refer to a variable at all."""
    if not path.is_file():
        return "", {}
    try:
        text = path.read_text("utf-8")
        raw = parse_yaml(text, str(path)).value() if "${" in text else {}
    except (OSError, UnicodeDecodeError, ConfigError):
        return "", {}
    return text, raw if isinstance(raw, Mapping) else {}


def check_keys(names: set[str], environ: Mapping[str, str]) -> Check:
    """Whether each variable that the runbook and its specs refer to is set."""
    missing = sorted(name for name in names if name not in environ)
    empty = sorted(name for name in names if environ.get(name) == "")
    if missing:
        fix = f"export {missing[0]}=...   # or write it in .env"
        return Check("keys", State.FAILED, f"not set: {listing(missing)}", fix)
    if empty:
        return Check("keys", State.WARN, f"empty: {listing(empty)}", f"export {empty[0]}=...")
    if not names:
        return Check("keys", State.SKIPPED, "the runbook refers to no variable")
    return Check("keys", State.OK, f"set: {listing(sorted(names))}")


def check_files(plan: Plan, recorded: Mapping[str, Json]) -> Iterator[Check]:
    """A row for each file that a spec names: its hash, and whether the session began with it."""
    told = set()
    for step in plan.steps:
        for name, path in step.files.items():
            if path in told:
                continue
            told.add(path)
            now = step.file_sha256[name]
            then = _recorded_hash(recorded, step.name, name)
            row = f"file {path.name}"
            if then not in {None, now}:
                found = f"sha256 {now[:_SHORT]}, the session began with {str(then)[:_SHORT]}"
                fix = f"bring {shlex.quote(str(path))} back, or begin in another workspace"
                yield Check(row, State.FAILED, found, fix)
            else:
                kept = "" if then is None else ", as the session began"
                yield Check(row, State.OK, f"sha256 {now[:_SHORT]}{kept}")


def _recorded_hash(recorded: Mapping[str, Json], step: str, name: str) -> Json:
    value: Json = recorded
    for key in ("steps", step, "params", name, "sha256"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def check_journal(known: Known) -> Check:
    """Whether the journal is what was appended."""
    if known.trouble is not None:
        error = known.trouble
        return Check(
            "journal", State.FAILED, f"{error.where}: {error.what}", error.fix, type(error)
        )
    if known.newest is None:
        return Check("journal", State.OK, "no session was begun here")
    return Check("journal", State.OK, f"sound; last line {known.newest:%Y-%m-%d %H:%M:%S} UTC")


def check_lock(known: Known, workspace: Workspace) -> Check:
    """Whether the workspace is free, as its journal tells: no lock is taken to find out."""
    holder = known.holder
    place = shlex.join(["--workspace", str(workspace.root)])
    if known.trouble is not None:
        return Check("lock", State.SKIPPED, "the journal that would tell cannot be read")
    if holder is None:
        return Check("lock", State.OK, "free")
    if holder.is_alive_here:
        return Check("lock", State.FAILED, f"{holder.name} is at work", f"runbook stop {place}")
    if holder.is_here:
        return Check("lock", State.OK, f"free: {holder.name} is gone, the next start goes on")
    found = f"{holder.name} did not end its time, and may be at work there"
    fix = f"runbook resume {place} --takeover=if-owner-gone"
    return Check("lock", State.FAILED, found, fix)
