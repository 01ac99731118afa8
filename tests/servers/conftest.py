"""A real server on loopback: vLLM on the CPU, in an environment of its own."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
NAME = os.environ.get("RUNBOOK_TEST_VLLM_NAME", "smollm2")
CONTEXT = 8192
START_S = 900
"""It compiles as it starts: two minutes on two idle cores."""


@pytest.fixture(scope="session")
def vllm(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Root URL of a server of SmolLM2-135M-Instruct; RUNBOOK_TEST_VLLM names one that runs."""
    running = os.environ.get("RUNBOOK_TEST_VLLM")
    if running:
        yield running
        return
    if not PYTHON.exists():
        pytest.skip("there is no .venv-vllm; 'make test-servers' makes it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", smollm2, "--served-model-name", NAME, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--max-model-len", str(CONTEXT), "--max-num-seqs", "2"]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen(
            [str(part) for part in command],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}/v1/models", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"vLLM did not come up:\n{log.read_text(errors='replace')[-3000:]}")
