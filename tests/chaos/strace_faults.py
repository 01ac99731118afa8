"""Faults in the system calls of a command, injected by ``strace``.

A fault is one expression of ``strace -e inject``, made by ``kill``, ``fail``, ``hang`` or
``shorten``. Each process and each thread counts its own calls, and only those that touch one of
``paths``, where any are given: a path stands for itself and for descriptors open on it, a folder
not for the files in it. A killed call has not happened; a failed one neither.
"""

import functools
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

KILLED = -signal.SIGKILL
"""Return code of a command that ``kill`` ended."""


def kill(call: str, nth: int) -> str:
    """SIGKILL instead of the N-th such call; other processes of the command live on."""
    return f"{call}:signal=SIGKILL:when={nth}"


def fail(call: str, error: str, nth: int, *, ever_after: bool = False) -> str:
    """The N-th such call, or each from it on, fails with an errno such as ``ENOSPC``."""
    return f"{call}:error={error}:when={nth}{'+' if ever_after else ''}"


def hang(call: str, seconds: float, nth: int) -> str:
    """The N-th such call begins so much later."""
    return f"{call}:delay_enter={round(seconds * 1e6)}:when={nth}"


def shorten(call: str, size: int, nth: int) -> str:
    """The N-th such call claims to have moved so many bytes, and has moved none."""
    return f"{call}:retval={size}:when={nth}"


def run_under_strace(
    command: Sequence[str | Path],
    *,
    inject: Sequence[str],
    paths: Sequence[Path] = (),
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path = Path("/dev/null"),
) -> subprocess.CompletedProcess[str]:
    """Run a command and its children under faults until the last of them ends.

    A command ended by signal N returns ``-N``, as without strace. ``log`` gets a line for each
    traced call. Skips the test where strace cannot trace.

    Raises:
        subprocess.TimeoutExpired: after ``timeout`` seconds; the command and its children are dead.
    """
    calls = ",".join(dict.fromkeys(fault.partition(":")[0] for fault in inject))
    options = [f"--inject={fault}" for fault in inject]
    return _trace(command, calls, options, log, paths, timeout, cwd, env)


def count_calls(
    command: Sequence[str | Path],
    *,
    calls: Sequence[str],
    paths: Sequence[Path] = (),
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Counter[str]:
    """How often an undisturbed command, children included, enters each of these system calls.

    Raises:
        subprocess.CalledProcessError: the command did not end with 0.
        subprocess.TimeoutExpired: as ``run_under_strace``.
    """
    with tempfile.NamedTemporaryFile("r") as log:
        ended = _trace(command, ",".join(calls), [], Path(log.name), paths, timeout, cwd, env)
        ended.check_returncode()
        # A line is "PID CALL(...", or "PID <... CALL resumed>" for the rest of an interrupted one.
        entered = [line.split(maxsplit=1)[1].partition("(") for line in log]
    return Counter(name for name, bracket, _ in entered if bracket and name in calls)


def _trace(
    command: Sequence[str | Path],
    calls: str,
    options: Sequence[str],
    log: Path,
    paths: Sequence[Path],
    timeout: float,
    cwd: Path | None,
    env: Mapping[str, str] | None,
) -> subprocess.CompletedProcess[str]:
    require_strace()
    tracer = ["strace", "-f", "-qq", f"--output={log}", f"--trace={calls}"]
    # strace compares with what descriptors point to, so links in the path have to be resolved.
    filters = [f"--trace-path={path.resolve()}" for path in paths]
    process = subprocess.Popen(
        [*tracer, *options, *filters, "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=env,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        _end(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill whatever still runs: a tracee outlives a killed tracer, so the tracees go first."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    process.communicate()


def require_strace() -> None:
    """Skip the test, by name, where strace is missing or may not trace."""
    reason = _why_not()
    if reason:
        pytest.skip(reason)


@functools.cache
def _why_not() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=getpid:retval=1",
    ]
    tried = subprocess.run(
        [*probe, "true"], capture_output=True, text=True, check=False, timeout=60
    )
    return f"strace cannot trace here: {tried.stderr.strip()}" if tried.returncode else ""
