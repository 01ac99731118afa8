"""What the machine must offer before a session starts: one small check a question.

Rule: a check asks the kernel and the volume themselves, leaves no file behind, and never raises for
what it finds: a row says what was found and how it is mended. Imports no torch. What the runbook
says beyond its ``preflight`` section is held against the machine in ``runbook.prerequisites``.
"""

import errno
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from runbook import artifacts
from runbook.contract import Json
from runbook.errors import ConfigError, NeedsPersonError, RunbookError
from runbook.gpus import Inventory, read_inventory

DEVICES = Path("/dev")
"""Holds ``nvidia0``, ``nvidia1``: a node for each GPU, inside a container too."""
RELEASED = datetime(2026, 11, 1, tzinfo=UTC)
"""No clock that is right shows an earlier time than this code's release."""
GIB = 1 << 30
WRITE_GIB = 1.0
"""How much of the declared room is really taken to prove it, unless the runbook says."""

_BLOCK = 1 << 20
_NO_RESERVATION = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class State(Enum):
    OK = "ok"
    WARN = "warn"
    """A session can start, and a person should know."""
    FAILED = "failed"
    """No session can start."""
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """The answer to one question about the machine."""

    name: str
    state: State
    found: str
    fix: str = ""
    """The command, or the edit, that mends it; empty where nothing is wrong."""
    error: type[RunbookError] = ConfigError
    """What a session's start raises where this failed."""


def check_machine(
    declared: Mapping[str, Json],
    root: Path,
    *,
    resumed: bool = False,
    devices: Path = DEVICES,
) -> None:
    """Hold the runbook's ``preflight`` section against this machine.

    A resumed session needs less room than is declared, so its disk is left alone.

    Raises:
        ConfigError: fewer GPUs than declared, or a workspace that cannot be written to.
        NeedsPersonError: less room than declared, or a clock that is wrong.
    """
    refuse(machine_checks(declared, root, resumed=resumed, devices=devices))


def machine_checks(
    declared: Mapping[str, Json], root: Path, *, resumed: bool, devices: Path
) -> Iterator[Check]:
    """The checks of a start, one at a time: what follows a failed one need not be asked."""
    yield check_gpus(int(declared.get("gpus", 0)), devices=devices)
    yield check_workspace(root)
    yield check_clock()
    if not resumed:
        yield check_disk(declared, root)


def refuse(checks: Iterable[Check]) -> None:
    """Raise the error of the first check that failed."""
    for check in checks:
        if check.state is State.FAILED:
            raise check.error(check.found, where=f"check '{check.name}'", fix=check.fix)


def check_gpus(
    wanted: int,
    *,
    devices: Path = DEVICES,
    environ: Mapping[str, str] = os.environ,
    inventory: Callable[[], Inventory] = read_inventory,
) -> Check:
    """Whether there are as many GPUs as asked for, by their device nodes.

    ``inventory`` tells their names and memory.
    """
    nodes = sum(p.name.removeprefix("nvidia").isdecimal() for p in devices.glob("nvidia*"))
    shown = min(nodes, _listed(environ.get("CUDA_VISIBLE_DEVICES"), nodes))
    if shown < wanted:
        what = f"the runbook asks for {wanted} GPU(s), this machine shows {shown}"
        fix = (
            f"unset CUDA_VISIBLE_DEVICES   # it hides {nodes - shown} of {nodes}"
            if nodes >= wanted
            else "rent a machine with one (nvidia-smi -L lists them), or declare "
            "engine.device: cpu and preflight.gpus: 0"
        )
        return Check("gpus", State.FAILED, what, fix)
    if shown == 0:
        return Check("gpus", State.OK, "none, and none is asked for")
    return Check("gpus", State.OK, f"{shown}: {inventory()}")


def _listed(visible: str | None, nodes: int) -> int:
    """How many GPUs ``CUDA_VISIBLE_DEVICES`` leaves: CUDA stops at the first that is none."""
    if visible is None:
        return nodes
    names = [name.strip() for name in visible.split(",")]
    return next((i for i, name in enumerate(names) if name in {"", "-1"}), len(names))


def nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110 - it never raises


def check_workspace(root: Path) -> Check:
    """Whether a file can be written, fsynced and renamed where the workspace is, or will be."""
    folder = nearest(root)
    probe = folder / f".{secrets.token_hex(8)}.probe{artifacts.TEMPORARY}"
    try:
        artifacts.write_bytes(probe, b"written by runbook's check of the workspace\n")
        with artifacts.storage_errors(probe):
            probe.unlink(missing_ok=True)
    except NeedsPersonError as error:
        return Check("workspace", State.FAILED, f"{root}: {error.what}", error.fix, type(error))
    except FileNotFoundError:
        # It was there: an executor that begins at this moment clears such files away.
        return Check("workspace", State.OK, f"{root}: in use by an executor")
    except OSError as error:
        fix = f'sudo chown -R "$(id -u):$(id -g)" {shlex.quote(str(folder))}   # or --workspace'
        found = f"{root} cannot be written to: {error.strerror}"
        return Check("workspace", State.FAILED, found, f"{fix} another folder")
    found = str(root) if folder == root else f"{root} can be made in {folder}"
    return Check("workspace", State.OK, f"{found}: a file was written, fsynced and renamed there")


def check_disk(
    declared: Mapping[str, Json], root: Path, *, held: int = 0, write: bool = True
) -> Check:
    """Whether the declared room is there: by the quota, by the volume, and by taking it.

    Args:
        declared: ``free_disk_gib``, ``quota_gib`` and ``write_gib`` of the preflight section.
        root: the workspace.
        held: bytes of that room which the session has taken already.
        write: whether to take room for a moment; not beside a session at work.
    """
    wanted = float(declared.get("free_disk_gib") or 0.0)
    need = round(wanted * GIB) - held
    if need <= 0:
        found = "no room is declared" if wanted == 0 else "the session holds what was declared"
        return Check("disk", State.SKIPPED, found)
    asked = f"the runbook asks for {need / GIB:g} GiB of free disk"
    fix = f"du -xh --max-depth=2 {shlex.quote(str(nearest(root)))} | sort -h | tail   # free space,"
    fix += " or choose a workspace on a larger volume; nothing was started"
    quota = declared.get("quota_gib")
    if quota is not None:
        left = float(quota) - used_bytes(root) / GIB
        if left * GIB < need:
            found = f"{asked}, the quota of {quota:g} GiB leaves {left:.1f}"
            return Check("disk", State.FAILED, found, fix, NeedsPersonError)
    free = shutil.disk_usage(nearest(root)).free
    if free < need:
        found = f"{asked}, {free / GIB:.1f} GiB are left"
        return Check("disk", State.FAILED, found, fix, NeedsPersonError)
    if not write:
        return Check("disk", State.OK, f"{free / GIB:.1f} GiB free; nothing was written")
    taken = min(need, round(float(declared.get("write_gib", WRITE_GIB)) * GIB))
    trouble = take_room(nearest(root), taken)
    if trouble:
        found = f"{asked}; {free / GIB:.1f} GiB look free, but taking {taken / GIB:.3g} GiB"
        found = f"{found} failed: {trouble}"
        return Check("disk", State.FAILED, found, fix, NeedsPersonError)
    return Check(
        "disk",
        State.OK,
        f"{free / GIB:.1f} GiB free, {taken / GIB:.3g} GiB of it taken and given back",
    )


def used_bytes(root: Path) -> int:
    """What a folder takes of its volume; a file with two names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            with suppress(OSError):
                found = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - a hundred thousand files
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    total += found.st_blocks * 512
    return total


def take_room(folder: Path, size: int) -> str:
    """Take so many bytes of the volume and give them back; why it failed, or nothing.

    The file has no name while it grows, so that no kill can leave it. Its last block is written
    and fsynced: a volume may promise what a quota then refuses.
    """
    path = folder / f".{secrets.token_hex(8)}.probe{artifacts.TEMPORARY}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
        try:
            path.unlink()
            _reserve(fd, size)
            _write_end(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _reserve(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in _NO_RESERVATION:
            raise


def _write_end(fd: int, size: int) -> None:
    block = memoryview(os.urandom(min(size, _BLOCK)))
    os.lseek(fd, size - len(block), os.SEEK_SET)
    while block:
        block = block[os.write(fd, block) :]
    os.fsync(fd)


def check_clock(
    newest: datetime | None = None,
    *,
    wall: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> Check:
    """Whether the time is plausible. ``newest``: when the journal's last line was written."""
    now = datetime.fromtimestamp(wall(), UTC)
    shown = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    fix = "sudo chronyd -q 'pool pool.ntp.org iburst'   # or: sudo timedatectl set-ntp true"
    if now < RELEASED:
        found = f"it shows {shown}, before this release was made ({RELEASED:%Y-%m-%d})"
        return Check("clock", State.FAILED, found, fix, NeedsPersonError)
    first = monotonic()
    time.sleep(0.001)
    if monotonic() <= first:
        return Check(
            "clock", State.FAILED, "the monotonic clock stands still", "reboot the machine"
        )
    if newest is not None and now < newest:
        found = f"it shows {shown}, before the journal's last line ({newest:%Y-%m-%d %H:%M:%S})"
        return Check("clock", State.WARN, found, fix)
    return Check("clock", State.OK, shown)
