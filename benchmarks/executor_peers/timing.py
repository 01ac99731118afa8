"""Whole processes, timed: each in a group of its own, of which nothing is left afterwards."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LIMIT_S: Final = 600.0
_LOG = "output.log"


class FailedError(Exception):
    """A command did not end with 0 in time; the message has the last line that it said."""


def timed(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> float:
    """Seconds of wall time from before the process is made until it has ended with 0.

    Raises:
        FailedError: it ended otherwise, or not within ``LIMIT_S``.
    """
    began = time.perf_counter()
    with started(command, folder, environment) as process:
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise FailedError(f"{command[0]} did not finish in {LIMIT_S:g} s") from None
        seconds = time.perf_counter() - began
    if code != 0:
        raise FailedError(f"{command[0]} ended with {code}: {last_line(folder)}")
    return seconds


@contextmanager
def started(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, running; its group is killed at the end if it has not ended by itself."""
    with (folder / _LOG).open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to the process group, and its leader reaped."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(folder: Path) -> str:
    """Of what the commands run in this folder said."""
    lines = (folder / _LOG).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
