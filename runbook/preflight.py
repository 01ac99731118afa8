"""What the machine must offer before a session starts. Imports no torch: the kernel is asked."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from runbook.contract import Json
from runbook.errors import ConfigError, NeedsPersonError

DEVICES = Path("/dev")
"""Holds ``nvidia0``, ``nvidia1``: a node for each GPU, inside a container too."""
_GIB = 1 << 30


def check_machine(declared: Mapping[str, Json], root: Path, *, devices: Path = DEVICES) -> None:
    """Compare the runbook's ``preflight`` section with this machine.

    Raises:
        ConfigError: fewer GPUs than declared.
        NeedsPersonError: less free disk than declared.
    """
    wanted, found = int(declared.get("gpus", 0)), _gpus(devices)
    if found < wanted:
        raise ConfigError(
            f"the runbook asks for {wanted} GPU(s), this machine shows {found}",
            where="preflight.gpus",
            fix="rent a machine with one, or declare engine.device: cpu and preflight.gpus: 0",
        )
    need, free = float(declared.get("free_disk_gib", 0)), shutil.disk_usage(root).free / _GIB
    if free < need:
        raise NeedsPersonError(
            f"the runbook asks for {need:g} GiB of free disk, {free:.1f} GiB are left",
            where=str(root),
            fix="free space or choose a workspace on a larger volume; nothing was started",
        )


def _gpus(devices: Path) -> int:
    return sum(path.name.removeprefix("nvidia").isdecimal() for path in devices.glob("nvidia*"))
