"""Whether a declared reviewer could be asked from this machine: its key, its program, the money.

Rule: nothing is sent, and no key is told. Names stand as the runbook has them: who shows them
escapes them.
"""

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.provider import Served, is_key
from runbook.contract import Json


@dataclass(frozen=True)
class Trouble:
    """What is in the way, and what mends it."""

    found: str
    fix: str


@dataclass(frozen=True)
class Shortfall:
    """A limit below what one request may cost, in dollars."""

    limit: str
    """Its key in the runbook."""
    left: float
    """What it allows one request."""
    least: float
    """What the shortest request is reserved at."""
    most: float
    """What the longest one is reserved at."""


def name_of(declared: Mapping[str, Json]) -> str:
    """One reviewer in words: ``openai gpt-5``, ``command review.sh``."""
    if declared["provider"] == "command":
        return f"command {Path(declared['command'][0]).name}"
    return Served.of(declared).name


def why_ready(declared: Mapping[str, Json]) -> str:
    """Of a reviewer that nothing keeps from being asked: why it is taken to be ready."""
    if declared["provider"] == "command":
        return "the program is there"
    if Served.of(declared).is_local:
        return "on this machine, where no key is needed"
    return f"{declared['api_key_env']} is set; it is not tried"


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
    return _without_key(Served.of(declared), environ)


def _without_key(served: Served, environ: Mapping[str, str]) -> Trouble | None:
    name = served.api_key_env
    key = environ.get(name, "").strip()
    if is_key(key) or (not key and served.is_local):
        return None
    fix = f"export {name}=...   # or write it in .env"
    if key:
        return Trouble(f"{name} does not hold a key for {served.name}", fix)
    return Trouble(f"{name} is not set, which holds the key of {served.name}", fix)


def _without_program(program: str, folder: Path, environ: Mapping[str, str]) -> Trouble | None:
    if "/" not in program:
        if shutil.which(program, path=environ.get("PATH", os.defpath)):
            return None
        fix = f"command -v {shlex.quote(program)}   # install it, or edit reviewer.command"
        return Trouble(f"there is no program {program} on PATH", fix)
    path = folder / program
    place = shlex.quote(str(path))
    if not path.is_file():
        fix = f"ls -l {place}   # or edit reviewer.command"
        return Trouble(f"there is no program {program}", fix)
    if not os.access(path, os.X_OK):
        return Trouble(f"the program {program} may not be executed", f"chmod +x {place}")
    return None


def shortfall(
    declared: Mapping[str, Json],
    asked: Sequence[Mapping[str, Json]],
    limits: Mapping[str, float],
    request_usd: float,
) -> Shortfall | None:
    """The lowest limit, where a request may be refused by it; None where none can be.

    Args:
        declared: ``Plan.reviewer`` or its ``fallback``; not of a person.
        asked: both, where there are two.
        limits: what each limit of the session allows one request, by its key in the runbook.
        request_usd: what a request costs at worst whose reviewer names no price.
    """
    least = most = request_usd
    if "model" in declared:
        served = Served.of(declared)
        longest = served.most_usd([Served.of(one) for one in asked])
        if served.least_usd is not None and longest is not None:
            least, most = served.least_usd, longest
        if served.max_usd is not None:
            limits = {**limits, "max_usd": served.max_usd}
    if not limits:
        return None
    name, left = min(limits.items(), key=lambda item: item[1])
    return Shortfall(name, left, least, most) if left < most else None
