"""Running the commands that stop the pod and tell its state; what they print, without secrets.

Rules: no shell, no end later than the time allowed, and a failure is an answer. More names than in
``runbook.redact`` count as a secret's, and every long argument: only people read what is kept.
"""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from runbook.redact import MIN_LENGTH, Redactor

_LOOK_S = 0.02
_REAP_S = 0.2
_KEPT_BYTES = 1 << 16
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True)
class Ran:
    rc: int | None
    """None where it did not end by itself."""
    output: str
    problem: str = ""
    """Why there is no exit code."""


def run_command(argv: Sequence[str], timeout_s: float) -> Ran:
    """Run a program without a shell, in a session of its own; never raises.

    Of its output the last 64 KiB are kept, with secrets hidden.
    """
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a NUL in its arguments"
        return Ran(None, "", f"cannot be started: {reason}")
    assert child.stdout is not None
    with child.stdout as pipe:
        kept = _read_until_end(child, pipe.fileno(), time.monotonic() + timeout_s)
    output = hide_secrets(kept, argv, os.environ)
    if child.returncode is not None:
        return Ran(child.returncode, output)
    with suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_REAP_S)
    return Ran(None, output, f"killed: no end within {timeout_s:g} s")


def _read_until_end(child: subprocess.Popen[bytes], fd: int, limit: float) -> bytes:
    """The end of the output; returns with the child, whoever else still holds the pipe."""
    os.set_blocking(fd, False)
    kept = b""
    is_open = True
    while True:
        ended = child.poll() is not None
        with suppress(BlockingIOError):
            data = os.read(fd, _KEPT_BYTES)
            is_open = bool(data)
            kept = (kept + data)[-_KEPT_BYTES:]
        if ended or time.monotonic() >= limit:
            return kept
        select.select([fd] if is_open else [], [], [], _LOOK_S)


def hide_secrets(output: bytes, argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """The output without control characters, secret variables and long arguments."""
    secrets = {name: value for name, value in environment.items() if _is_secret(name, value)}
    pieces = [piece for argument in argv[1:] for piece in re.split(r"[\s=:]+", argument)]
    long = [piece for piece in pieces if len(piece) >= MIN_LENGTH]
    shown = Redactor(secrets, long).data(output).decode(errors="replace")
    return "".join(c for c in shown if c.isprintable() or c == "\n")


def _is_secret(name: str, value: str) -> bool:
    return len(value) >= MIN_LENGTH and bool(_SECRET.search(name))
