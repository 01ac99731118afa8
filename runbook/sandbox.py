"""Which sandbox this machine could run generated code in. It only looks; nothing is run in one."""

import ctypes
import shutil
import subprocess

from runbook.bootstrap import Check, State

_CREATE_RULESET = 444
"""System call ``landlock_create_ruleset``, of one number on every architecture."""
_VERSION = 1
"""Its flag that asks for the version alone."""
_START_S = 2.0


def check_sandbox() -> Check:
    """The tier that is there; no session depends on it, since no shipped step runs code."""
    version = landlock_version()
    landlock = f"Landlock (version {version})" if version else ""
    if bubblewrap_starts():
        return Check(
            "sandbox", State.OK, "bubblewrap starts" + (f"; {landlock}" if version else "")
        )
    if version:
        return Check("sandbox", State.OK, f"{landlock}; bubblewrap does not start")
    return Check(
        "sandbox",
        State.WARN,
        "neither bubblewrap nor Landlock: generated code would be refused, all else runs",
        "sudo apt-get install bubblewrap   # it needs user namespaces; else a kernel with Landlock",
    )


def bubblewrap_starts() -> bool:
    """Whether a process can be put in a user namespace of its own."""
    program = shutil.which("bwrap")
    if program is None:
        return False
    command = [program, "--unshare-user", "--ro-bind", "/", "/", "true"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_START_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def landlock_version() -> int:
    """The version of Landlock that the kernel speaks; 0 where there is none or it is off."""
    try:
        kernel = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return 0
    number, flag = ctypes.c_long(_CREATE_RULESET), ctypes.c_uint32(_VERSION)
    return max(int(kernel(number, None, ctypes.c_size_t(0), flag)), 0)
