"""What a step and a reviewer say is filtered on its way to disk and screen."""

import json
import os
import time
from pathlib import Path

import pytest
from cli_session import call, write_runbook
from test_secrets import CANARY, OTHER, SECRETS, leaks, put

from phases.prompts import load_few_shot
from runbook.cli.options import say
from runbook.errors import ConfigError

Capture = pytest.CaptureFixture[str]
SAYS = """
import base64, os, subprocess, sys
from dataclasses import replace
from runbook.testing import fake_phase

def run(request):
    token, mine = os.environ["HF_TOKEN"], os.environ["MINE"]
    coded = base64.b64encode(f"u:{token}".encode()).decode()
    told = f"{token} {coded} {token.encode().hex()} {mine}"
    print("printed", told)
    sys.stderr.write(f"half {token}")
    sys.stderr.flush()
    os.write(2, f" raw {told}".encode())
    subprocess.run(["sh", "-c", 'echo "child $HF_TOKEN"'], check=True)
    request.channel.progress(stage=told, done=1, total=2)
    if request.params.get("fail"):
        raise RuntimeError(f"401 for https://me:{mine}@host with {told}")
    if request.params.get("die"):
        os.write(2, f"last words {token}".encode())
        os.abort()
    result = fake_phase(request)
    row = {"told": told, told: 1}
    return replace(result, summary=row, flagged=(row,), samples=(row,))
"""
ASKED = """
import json, os, sys
sys.stdin.read()
sys.stderr.write(os.environ["HF_TOKEN"])
print(json.dumps({"action": "stop", "reason": os.environ["DB_PASSWORD"], "changes": {}}))
"""


@pytest.mark.parametrize("how", ["pass", "review", "fail", "die"])
def test_nothing_that_is_said_carries_a_secret_to_disk(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Prints of a step and of its children, errors, tracebacks, results, a reviewer's words."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SOURCE", "third-canary-of-no-telling-name")
    score = 0.1 if how == "review" else 0.9
    book = write_runbook(tmp_path, {"batches": 1, "metrics": {"score": score}, how: True})
    (tmp_path / "theirs.py").write_text(SAYS)
    (tmp_path / "asked.py").write_text(ASKED)
    put(tmp_path, book.name, "environment", value={"MINE": "${SOURCE}"})
    step = json.loads(book.read_text())["phases"][0]["steps"][0]
    step |= {"function": "theirs:run", "retries": 1, "review_after": 1}
    put(tmp_path, book.name, "phases", 0, "steps", 0, value=step)
    reviewer = {"provider": "command", "command": ["python3", str(tmp_path / "asked.py")]}
    put(tmp_path, book.name, "reviewer", value=reviewer)
    workspace = tmp_path / "ws"
    ran = call(capfd, "run", book, "--workspace", workspace)
    told = call(capfd, "status", "--json", "--workspace", workspace)
    assert (ran.code == 0) is (how == "pass"), ran.err
    secrets = (CANARY, OTHER, "third-canary-of-no-telling-name")
    for path in workspace.rglob("*"):
        assert not path.is_file() or leaks(path.read_bytes(), *secrets) == [], path
    assert leaks(f"{ran.out}{ran.err}{told.out}{told.err}".encode(), *secrets) == []
    log = (workspace / "logs" / "a.log").read_text()
    for mark in ("printed [secret HF_TOKEN]", "half [secret", " raw [secret", "child [secret"):
        assert mark in log
    assert ("last words [secret HF_TOKEN]" in log) is (how == "die")


def test_a_judgement_lands_in_the_steps_own_folder(tmp_path: Path, capfd: Capture) -> None:
    """A step that names a file elsewhere, or one that is not its own, has failed."""
    for name in ("../../../owned.json", "/tmp/owned.json", "COMPLETE.json", "manifest.json"):
        folder = tmp_path / name.replace("/", "_")
        folder.mkdir()
        book = write_runbook(folder, {"batches": 1, "metrics": {"score": 0.9}})
        (folder / "theirs.py").write_text(
            "from dataclasses import replace\nfrom runbook.testing import fake_phase\n"
            f"def run(request):\n    return replace(fake_phase(request), judged_file={name!r})\n"
        )
        put(folder, book.name, "phases", 0, "steps", 0, "function", value="theirs:run")
        ran = call(capfd, "run", book, "--workspace", folder / "ws")
        assert ran.code == 1, ran.err
        assert "which is no file of its own" in ran.err
        assert not list(tmp_path.rglob("owned.*"))


@pytest.mark.timeout(60)
def test_a_pipe_beside_the_runbook_is_not_waited_for(tmp_path: Path, capfd: Capture) -> None:
    """Named like a module, it is a finding of the DRY sentinel: it cannot be read."""
    book = write_runbook(tmp_path, {"batches": 1, "metrics": {"score": 0.9}})
    os.mkfifo(tmp_path / "x.py")
    ran = call(capfd, "run", book, "--workspace", tmp_path / "ws")
    assert ran.code == 5, ran.err
    assert "it is no regular file" in ran.err


@pytest.mark.parametrize("data", [b"[" * 100_000, b"a: " * 200_000, b"x" * (2 << 20), b"\xff"])
def test_a_hostile_few_shot_file(tmp_path: Path, data: bytes) -> None:
    """Deep, long or not UTF-8, it is refused at once."""
    (tmp_path / "few_shot.yaml").write_bytes(data)
    start = time.monotonic()
    with pytest.raises(ConfigError):
        load_few_shot(tmp_path / "few_shot.yaml")
    assert time.monotonic() - start < 20


def test_what_is_said_to_a_person_moves_no_cursor(capfd: Capture) -> None:
    """Whatever an error holds, its lines stay and its escapes are spelled out."""
    say("one\x1b[2J\u202e\ntwo\x9b")
    assert capfd.readouterr().err == "one\\x1b[2J\\u202e\ntwo\\x9b\n"
