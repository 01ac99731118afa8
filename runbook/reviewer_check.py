"""Whether the declared reviewer could be asked on this machine: key, program, money.

Rule: what is missing here forbids no start, since a review without an answer waits for a person.
Nothing is sent, and no key is shown. What a model needs is told as ``agent.provider`` and
``agent.model_reviewer`` would find it.
"""

import math
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from runbook.bootstrap import Check, State
from runbook.budget import dollars
from runbook.contract import Json
from runbook.plan import Plan
from runbook.problems import printable
from runbook.workspace import Workspace

_ROW = "reviewer"
_OVERHEAD_TOKENS = 4000
"""What a request holds beside the dossier: the form of the answer, the provider's own words."""
_BYTES_A_TOKEN = 3
"""A dossier is cut to tokens of at most so many bytes, and paid for by the byte at worst."""
_MILLION = 1e6


@dataclass(frozen=True)
class Trouble:
    """What is in the way, and what mends it."""

    found: str
    fix: str


def check_reviewer(plan: Plan, workspace: Workspace, environ: Mapping[str, str]) -> Check:
    """The doctor's row."""
    declared = plan.reviewer
    if declared["provider"] == "human":
        return Check(_ROW, State.OK, "human: each review waits for a person")
    asked = [declared, *([declared["fallback"]] if "fallback" in declared else [])]
    kept_off = [trouble_asking(one, plan.runbook.parent, environ) for one in asked]
    troubles = [t for t in kept_off if t]
    short = [t for t in (_trouble_paying(one, plan, workspace) for one in asked) if t]
    if not (troubles or short):
        told = "; ".join(f"{name_of(one)}: {_ready(one)}" for one in asked)
        return Check(_ROW, State.OK, told)
    told = "; ".join(t.found for t in troubles)
    if len(troubles) == len(asked):
        told = f"each review would wait for a person: {told}"
    elif troubles:
        who = (
            "only the fallback could be asked" if kept_off[0] else "the fallback could not be asked"
        )
        told = f"{who}: {told}"
    found = "; ".join(part for part in (told, *(t.found for t in short)) if part)
    fixes = dict.fromkeys(t.fix for t in (*troubles, *short))
    return Check(_ROW, State.WARN, found, "\n".join(fixes))


def trouble_asking(
    declared: Mapping[str, Json], folder: Path, environ: Mapping[str, str]
) -> Trouble | None:
    """What keeps one reviewer from being asked at all; None where nothing is known to.

    Args:
        declared: ``Plan.reviewer`` or its ``fallback``; not of a person.
        folder: where a program named by a path starts from.
        environ: where keys and programs are looked up.
    """
    if declared["provider"] == "command":
        return _without_program(str(declared["command"][0]), folder, environ)
    if is_local(declared["base_url"]):
        return None
    name = str(declared["api_key_env"])
    key = environ.get(name, "").strip()
    fix = f"export {name}=...   # or write it in .env"
    if not key:
        return Trouble(f"{name} is not set, which holds the key of {name_of(declared)}", fix)
    if not (key.isascii() and key.isprintable()) or " " in key:
        return Trouble(f"{name} does not hold a key for {name_of(declared)}", fix)
    return None


def is_local(base_url: str) -> bool:
    """Whether a server is on this machine, where no key is needed."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def name_of(declared: Mapping[str, Json]) -> str:
    """One reviewer in words: ``openai gpt-5``, ``command review.sh``."""
    if declared["provider"] == "command":
        return f"command {printable(Path(declared['command'][0]).name)}"
    return f"{declared['provider']} {printable(str(declared['model']))}"


def _without_program(program: str, folder: Path, environ: Mapping[str, str]) -> Trouble | None:
    shown = printable(program)
    if "/" not in program:
        if shutil.which(program, path=environ.get("PATH", os.defpath)):
            return None
        fix = f"command -v {shlex.quote(shown)}   # install it, or edit reviewer.command"
        return Trouble(f"there is no program {shown} on PATH", fix)
    path = folder / program
    place = shlex.quote(printable(str(path), longest=1000))
    if not path.is_file():
        return Trouble(
            f"there is no program {shown}", f"ls -l {place}   # or edit reviewer.command"
        )
    if not os.access(path, os.X_OK):
        return Trouble(f"the program {shown} may not be executed", f"chmod +x {place}")
    return None


def _ready(declared: Mapping[str, Json]) -> str:
    if declared["provider"] == "command":
        return "the program is there"
    if is_local(declared["base_url"]):
        return "on this machine, where no key is needed"
    return f"{declared['api_key_env']} is set; it is not tried"


def _trouble_paying(
    declared: Mapping[str, Json], plan: Plan, workspace: Workspace
) -> Trouble | None:
    """What one request may cost, where a limit is below it."""
    least, most = _costs(declared, plan.budget)
    caps = {
        f"budget.{name}": float(plan.budget[name])
        for name in ("review_usd", "usd")
        if name in plan.budget
    }
    if declared.get("usd_per_mtok") and "max_usd" in declared:
        caps["max_usd"] = float(declared["max_usd"])
    if not caps:
        return None
    name, cap = min(caps.items(), key=lambda item: item[1])
    if cap >= most:
        return None
    enough = math.ceil(most * 100) / 100
    fix = f"raise max_usd to {enough:g}"
    if name != "max_usd":
        fix = _raising(plan, workspace, name, f"{enough:g}")
    if "usd_per_mtok" in declared:
        fix += "   # or lower context_tokens or max_output_tokens"
    if cap < least:
        more = "" if least == most else " or more"
        told = f"no request would be sent: one may cost {dollars(least)}{more}"
    else:
        told = f"a long dossier would not be sent: it may cost up to {dollars(enough)}"
    return Trouble(f"{name_of(declared)}: {told}, and {name} is {dollars(cap)}", fix)


def _costs(declared: Mapping[str, Json], budget: Mapping[str, Json]) -> tuple[float, float]:
    """What one request is reserved at, with the shortest dossier and with the longest."""
    prices = declared.get("usd_per_mtok")
    if not prices:
        usd = float(declared.get("max_usd", budget.get("request_usd", 0.0)))
        return usd, usd
    answer = int(declared["max_output_tokens"])
    dossier = (int(declared["context_tokens"]) - answer) * _BYTES_A_TOKEN
    least = answer * float(prices["output"]) / _MILLION
    return least, least + (dossier + _OVERHEAD_TOKENS) * float(prices["input"]) / _MILLION


def _raising(plan: Plan, workspace: Workspace, name: str, need: str) -> str:
    """The command that runs the session under another limit."""
    kept = [given for given in plan.overrides if not given.startswith(f"{name}=")]
    overrides = [word for given in (*kept, f"{name}={need}") for word in ("--set", given)]
    place = [str(plan.runbook), "--workspace", str(workspace.root)]
    return shlex.join(["runbook", "run", *place, *overrides])
