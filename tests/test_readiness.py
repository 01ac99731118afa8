"""What is told of a declared reviewer before a session, and what its requests then meet."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import prompts
from agent.answer import answer_schema
from agent.dossier import estimate_tokens
from agent.model_reviewer import reviewer
from agent.provider import Served, request_size
from agent.readiness import Shortfall, Trouble, name_of, shortfall, trouble_asking, why_ready
from agent.scripted_server import Says, scripted_server
from runbook.bootstrap import State
from runbook.budget import Limits
from runbook.cli.reviewer_row import check_reviewer
from runbook.clock import Clock
from runbook.ledger import Ledger
from runbook.testing import make_plan, make_review_request
from runbook.workspace import Workspace

DECLARED: dict[str, Any] = {
    "provider": "openai",
    "model": "tiny",
    "base_url": "https://api.example/v1",
    "api_key_env": "TINY_API_KEY",
    "timeout_s": 300.0,
    "max_output_tokens": 500,
    "context_tokens": 20_000,
    "usd_per_mtok": {"input": 2.0, "output": 10.0},
}
HERE = "http://localhost:8000/v1"
KEYED = {"TINY_API_KEY": "sk-1"}
UNSET = "TINY_API_KEY is not set, which holds the key of openai tiny"
NO_KEY = "TINY_API_KEY does not hold a key for openai tiny"
PLACE = Path("/nowhere")

prices = st.floats(0.0, 500.0)
money = st.floats(0.0, 50.0)
shares = st.sampled_from((1.0, math.nextafter(1.0, 0.0))) | st.floats(0.0, 1.5)
models = st.builds(
    lambda answer, room, input_, output, most: {
        **DECLARED,
        "max_output_tokens": answer,
        "context_tokens": answer + room,
        "usd_per_mtok": {"input": input_, "output": output},
        **({} if most is None else {"max_usd": most}),
    },
    st.integers(256, 64_000),
    st.integers(2000, 1_000_000),
    prices,
    prices,
    st.none() | money,
)


def is_sent(declared: dict[str, Any], size: int, budget: dict[str, float]) -> bool:
    """Whether a real session has the money for a request of so many bytes as its first."""
    served = Served.of(declared)
    usd = served.worst_usd(size)
    assert usd is not None
    if served.max_usd is not None and usd > served.max_usd:
        return False
    facts: list[Any] = []
    clock = Clock(monotonic=lambda: 0.0)
    return Ledger(Limits.of(budget), clock, lambda: facts, facts.append).affords(1, usd)


@given(
    models,
    st.sampled_from(("review_usd", "usd")),
    st.booleans(),
    shares,
    st.none() | st.floats(0.0, 3600.0),
)
def test_the_row_tells_what_the_reservation_does(
    declared: dict[str, Any], limit: str, is_short: bool, share: float, reserve_s: float | None
) -> None:
    """No request is promised that is refused then, and none is missed that would be sent."""
    longest = 3 * (declared["context_tokens"] - declared["max_output_tokens"])
    usd = Served.of(declared).worst_usd(0 if is_short else longest)
    assert usd is not None
    budget = {limit: usd * share, "usd_per_hour": 1e-3}
    budget |= {} if reserve_s is None else {"reserve_s": reserve_s}
    plan = make_plan(reviewer=declared, budget=budget)

    row = check_reviewer(plan, Workspace.at(PLACE), KEYED)

    assert (row.state is State.OK) == is_sent(declared, longest, budget)
    assert ("no request would be sent" in row.found) != is_sent(declared, 0, budget)


@given(models, st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2).map(sorted))
def test_a_longer_request_is_never_cheaper(declared: dict[str, Any], parts: list[float]) -> None:
    """Whatever fits the context is reserved between the least and the most."""
    served = Served.of(declared)
    sizes = [int(part * 3 * served.prompt_tokens) for part in parts]
    known = [served.least_usd, *map(served.worst_usd, sizes), served.most_usd([served])]
    costs = [usd for usd in known if usd is not None]
    assert len(costs) == 4
    assert costs == sorted(costs)


@given(st.text())
def test_no_text_has_more_bytes_than_its_tokens_allow(text: str) -> None:
    """What the dossier is cut by bounds what is reserved, three bytes a token at most."""
    assert len(text.encode("utf-8", "surrogatepass")) <= 3 * estimate_tokens(text)


@pytest.mark.parametrize("context", [8000, 20_000, 100_000])
def test_no_prompt_costs_more_than_a_full_context(tmp_path: Path, context: int) -> None:
    """Neither a long question nor its repair, schema included, of a model or of its fallback."""
    served = Served.of({**DECLARED, "context_tokens": context})
    other = replace(served, context_tokens=2 * context)
    room = 3 * served.prompt_tokens
    rows = tuple({"raw": "some words of a row " * (room * 7 // 2000)} for _ in range(10))
    request = make_review_request(tmp_path, flagged=rows, samples=())
    schema = answer_schema(request)
    question = prompts.question(request, prompts.most_tokens([served, other]))
    for model in (served, other):
        repair = prompts.repair(request, model, question, "word " * 1600, "cause " * 100)
        for messages in ((("user", question),), repair):
            usd = model.worst_usd(request_size(messages, schema))
            assert usd is not None
            most = model.most_usd([served, other])
            assert most is not None
            assert usd <= most
    assert len(question) > 0.7 * room


@pytest.mark.parametrize("is_enough", [True, False])
def test_the_very_dollar_decides(tmp_path: Path, is_enough: bool) -> None:
    """A reviewer sends its question at a limit of what is reserved, and not a hair below it."""
    said = '{"action": "stop", "reason": "no", "changes": {}, "confidence": 0.5, '
    said += '"concerns": [], "action_items": []}'

    def go(folder: str, usd: float) -> tuple[bool, list[Any]]:
        facts: list[Any] = []
        ledger = Ledger(Limits(review_usd=usd), Clock(), lambda: facts, facts.append)
        request = make_review_request(tmp_path / folder, account=ledger.account("a-2"))
        with scripted_server(Says(said)) as server:
            served = Served.of({**DECLARED, "base_url": server.base_url("openai")})
            decision = reviewer([served], environ=KEYED)(request)
        return decision is not None, facts

    is_answered, facts = go("rich", 9.0)
    assert is_answered
    usd = facts[0].usd
    limit = usd if is_enough else math.nextafter(usd, 0.0)
    assert go("exact", limit)[0] is is_enough


@pytest.mark.parametrize(
    ("url", "key", "found"),
    [
        ("https://api.example/v1", "sk-1", None),
        ("https://api.example/v1", " sk-1\n", None),
        ("https://api.example/v1", "", UNSET),
        ("https://api.example/v1", "two words", NO_KEY),
        ("https://api.example/v1", "k\u00e4y", NO_KEY),
        (HERE, "", None),
        (HERE, "sk-1", None),
        (HERE, "two words", NO_KEY),
    ],
)
def test_a_key_is_asked_for_as_the_reviewer_does(
    tmp_path: Path, url: str, key: str, found: str | None
) -> None:
    """A server on this machine needs none, but one that is set must be one; none is shown."""
    environ = {"TINY_API_KEY": key}
    declared = {**DECLARED, "base_url": url}
    fix = "export TINY_API_KEY=...   # or write it in .env"
    expected = Trouble(found, fix) if found else None
    assert trouble_asking(declared, PLACE, environ) == expected
    if found:
        request = make_review_request(tmp_path)
        assert reviewer([Served.of(declared)], environ=environ)(request) is None
        told = (request.workspace / request.path / "error.txt").read_text()
        assert "the environment variable TINY_API_KEY" in told


def test_a_reviewer_in_words() -> None:
    """By provider and model, or by the program's name; and why it is taken to be ready."""
    program = {"provider": "command", "command": ["./tools/review.sh", "-v"]}
    assert [name_of(program), name_of(DECLARED)] == ["command review.sh", "openai tiny"]
    assert why_ready(program) == "the program is there"
    assert why_ready(DECLARED) == "TINY_API_KEY is set; it is not tried"
    assert why_ready({**DECLARED, "base_url": HERE}) == "on this machine, where no key is needed"


def test_the_lowest_limit_is_named() -> None:
    """A model's own limit among them; a program costs what the runbook says of a request."""
    least, most = 0.009, 0.126
    capped = {**DECLARED, "max_usd": 0.1}
    assert shortfall(DECLARED, [DECLARED], {}, 0.0) is None
    assert shortfall(DECLARED, [DECLARED], {"budget.usd": most}, 0.0) is None
    short = shortfall(capped, [capped], {"budget.usd": 0.12, "budget.review_usd": 0.11}, 0.0)
    assert short == Shortfall("max_usd", 0.1, least, most)
    program = {"provider": "command", "command": ["x"]}
    assert shortfall(program, [program], {"budget.usd": 0.1}, 0.1) is None
    assert shortfall(program, [program], {"budget.usd": 0.1}, 0.2) == Shortfall(
        "budget.usd", 0.1, 0.2, 0.2
    )


def test_what_a_runbook_names_is_shown_escaped() -> None:
    """A name with a newline or an escape neither forges a line nor acts on a terminal."""
    forged = "tiny\n  ok        keys\x1b[2J"
    for declared in (
        {**DECLARED, "model": forged},
        {"provider": "command", "command": [forged]},
        {"provider": "command", "command": [f"./{forged}"]},
    ):
        for environ in ({}, KEYED):
            plan = make_plan(reviewer=declared, budget={"review_usd": 0.0})
            row = check_reviewer(plan, Workspace(PLACE / forged), environ)
            assert row.found.isprintable()
            assert all(line.isprintable() for line in row.fix.split("\n"))
            assert not any(line.startswith("  ok") for line in row.fix.split("\n"))
