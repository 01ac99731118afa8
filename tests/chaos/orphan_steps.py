"""A step that leaves a process of its own behind, in a session of its own."""

import subprocess
import sys

from runbook.contract import PhaseRequest, PhaseResult
from runbook.testing import fake_phase


def run(request: PhaseRequest) -> PhaseResult:
    """Start a sleeper that nothing but the workspace's mark names, note it, then do the work."""
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    with (request.workspace / "logs" / "sleepers").open("a") as notes:
        notes.write(f"{sleeper.pid}\n")
    sleeper.returncode = 0  # it is to be left behind
    return fake_phase(request)
