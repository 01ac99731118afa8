"""Both providers against a real server on loopback that serves a real, if weak, model.

Its judgement is worthless, its protocol is real: what counts is that an answer in this review's
bounds comes through each SDK, is stored, paid for and acted on, and that nothing else follows.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agent.answer import Answer
from runbook import events as ev
from runbook.journal import facts, read_entries
from runbook.workspace import Workspace
from servers.conftest import CONTEXT, NAME

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
PROVIDERS = ("openai", "anthropic")
ALLOWED = {"retry", "stop", "needs_human"}
PRICES = {"input": 1.0, "output": 5.0}
STEP = """
from runbook.contract import Metric, PhaseResult


def run(request):
    rows = [{"instruction": "Name a fruit.", "raw": "apple, apple, apple, apple, apple, apple"}]
    rate = Metric("runaway_rate", 0.4, 200, 80, "cleaned responses")
    return PhaseResult(metrics=(rate,), flagged=tuple(rows), question=request.params["asks"])
"""


def write_runbook(folder: Path, provider: str, url: str, **reviewer: Any) -> Path:
    """A session of one step whose gate fails at once, so that a model is asked."""
    folder.mkdir(exist_ok=True)
    (folder / "made_up.py").write_text(STEP)
    gate = {"criteria": [{"metric": "runaway_rate", "kind": "rate", "below": 0.05}]}
    spec = {"spec": 1, "params": {"temperature": 0.4, "asks": ""}, "gate": gate}
    (folder / "pilot.yaml").write_text(json.dumps(spec))
    step = {
        "name": "pilot",
        "function": "made_up:run",
        "spec": "pilot.yaml",
        "output": "artifacts/pilot",
        "retries": 1,
        "review_after": 1,
        "adjustable": {"temperature": {"min": 0.1, "max": 1.0}},
    }
    book = {
        "runbook": 1,
        "name": "real-server",
        "seed": 1,
        "model": {
            "name": "none",
            "source": {"path": str(folder)},
            "family": "gemma3",
            "prefix": "bos",
            "chat_template": "none",
            "dtype": "float32",
        },
        "engine": {"name": "fake"},
        "budget": {"review_usd": 1.0},
        "reviewer": {
            "provider": provider,
            "model": NAME,
            "base_url": f"{url}/v1" if provider == "openai" else url,
            "effort": "off",
            "timeout": "5m",
            "usd_per_mtok": PRICES,
            "max_output_tokens": 700,
            "context_tokens": CONTEXT,
            **reviewer,
        },
        "phases": [{"name": "A", "steps": [step]}],
    }
    path = folder / "runbook.yaml"
    path.write_text(json.dumps(book))
    return path


def run(book: Path, root: Path) -> int:
    command = [sys.executable, "-m", "runbook", "run", str(book), "--workspace", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    return done.returncode


def known(root: Path) -> tuple[ev.Event, ...]:
    return facts(read_entries(Workspace.at(root)))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_real_model_reviews_a_failed_gate(vllm: str, tmp_path: Path, provider: str) -> None:
    """Question, raw reply, decision and cost are on record, and the session stays in bounds."""
    book, root = write_runbook(tmp_path / "book", provider, vllm), tmp_path / "ws"

    assert run(book, root) == 3

    folders = sorted(root.glob("reviews/*_pilot_*"))
    settled = [f for f in known(root) if isinstance(f, ev.RequestSettled)]
    decided = [f for f in known(root) if isinstance(f, ev.ReviewDecided)]
    for folder in folders:
        assert (folder / "prompt.md").stat().st_size > 1000
        for reply in sorted(folder.glob("response-*.json")):
            sys.stderr.write(f"{provider} {reply.name}: {reply.read_text()}\n")
        answered = (folder / "decision.json").exists()
        assert answered != (folder / "error.txt").exists()
        assert list(folder.glob("response-*.json"))
    assert settled
    for fact in settled:
        assert fact.input_tokens > 500
        assert 0 < fact.output_tokens <= 700
        cost = (fact.input_tokens * PRICES["input"] + fact.output_tokens * PRICES["output"]) / 1e6
        assert fact.usd == pytest.approx(cost)
    assert {f.action for f in decided} <= ALLOWED
    assert all(f.author == f"{provider} {NAME}" and not f.person for f in decided)
    assert all(0.1 <= value <= 1.0 for f in decided for value in f.changes.values())
    assert not [f for f in known(root) if isinstance(f, ev.SessionDone)]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_structured_output_holds_a_real_model_to_the_form(
    vllm: str, tmp_path: Path, provider: str
) -> None:
    """Every reply that came to its end has the schema's keys and an action of this very review.

    A model so small rambles, so that many are cut off, or leave a range that stands in words:
    those are no decisions, and how many there were is printed. It is asked until two came whole.
    """
    outcomes: Counter[str] = Counter()
    for number in range(6):
        book = write_runbook(tmp_path / f"book{number}", provider, vllm)
        root = tmp_path / f"ws{number}"
        assert run(book, root) == 3
        for folder in root.glob("reviews/*_pilot_*"):
            outcomes["answered" if (folder / "decision.json").exists() else "left to a person"] += 1
            for path in folder.glob("response-*.json"):
                text = _text_of(json.loads(path.read_text()))
                outcomes["whole replies" if text else "cut off"] += 1
                if text:
                    reply = json.loads(text)
                    assert set(reply) == set(Answer.model_fields)
                    assert reply["action"] in ALLOWED
                    assert set(reply["changes"]) <= {"temperature"}
        if outcomes["whole replies"] > 1:
            break
    sys.stderr.write(f"{provider}: {dict(outcomes)}\n")
    assert outcomes["whole replies"]


def _text_of(body: dict[str, Any]) -> str:
    """The model's text in either protocol's body; empty where it was cut off."""
    if body.get("object") == "response":
        if body["status"] != "completed":
            return ""
        parts = [p for item in body["output"] for p in item.get("content") or ()]
    else:
        parts = body["content"] if body["stop_reason"] == "end_turn" else []
    return "".join(str(part.get("text", "")) for part in parts)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_model_that_is_not_served_is_a_persons_matter(
    vllm: str, tmp_path: Path, provider: str
) -> None:
    """The server's own 404 is permanent: one request, nothing charged, exit 3 with the cause."""
    book = write_runbook(tmp_path / "book", provider, vllm, model="not-here")
    root = tmp_path / "ws"

    assert run(book, root) == 3

    (error,) = root.glob("reviews/*/error.txt")
    assert "404" in error.read_text()
    sent = [f for f in known(root) if isinstance(f, ev.RequestSent)]
    settled = [f for f in known(root) if isinstance(f, ev.RequestSettled)]
    assert (len(sent), [f.usd for f in settled]) == (1, [0.0])


def test_the_second_provider_answers_where_the_first_cannot(vllm: str, tmp_path: Path) -> None:
    """A fallback is asked after a permanent failure, by the other protocol."""
    book = write_runbook(tmp_path / "book", "openai", vllm, model="not-here")
    document = json.loads(book.read_text())
    served = document["reviewer"]
    keys = ("effort", "timeout", "usd_per_mtok", "max_output_tokens", "context_tokens")
    other = {key: served[key] for key in keys}
    served["fallback"] = {"provider": "anthropic", "model": NAME, "base_url": vllm, **other}
    book.write_text(json.dumps(document))
    root = tmp_path / "ws"

    assert run(book, root) == 3

    replies = list(root.glob("reviews/*/response-*.json"))
    assert replies
    authors = {f.author for f in known(root) if isinstance(f, ev.ReviewDecided)}
    assert authors <= {f"anthropic {NAME}"}
