"""The rented machine's state, as the runbook's own command tells it. No answer is not 'gone'."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from runbook.contract import Json
from runbook.params import expand
from runbook.problems import printable


@dataclass(frozen=True)
class PodState:
    told: str
    """What the command said last, or why nothing is known."""
    is_gone: bool


def pod_state(pod: Mapping[str, Json], timeout_s: float) -> PodState:
    """Ask the declared ``pod.state`` command; its last word decides.

    Args:
        pod: ``Plan.pod``.
        timeout_s: how long the command may take.
    """
    if not pod.get("state"):
        return PodState("no pod.state command is declared", is_gone=False)
    command = [expand(part, os.environ) for part in pod["state"]]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return PodState(f"the pod.state command failed: {type(error).__name__}", is_gone=False)
    words = done.stdout.decode("utf-8", "replace").split()
    if done.returncode or not words:
        return PodState(f"the pod.state command exited with {done.returncode}", is_gone=False)
    gone = {word.upper() for word in pod.get("gone", ())}
    return PodState(printable(words[-1]), is_gone=words[-1].upper() in gone)
