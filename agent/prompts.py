"""What a model is sent: the question, and once what was wrong with its reply.

Rule: all of it, the schema included, stays within what the context leaves beside the answer, by
``dossier.estimate_tokens``. The question leaves room for a repair; the reply that a repair quotes
is cut to what is left.
"""

import secrets
from bisect import bisect_right
from collections.abc import Sequence

from agent import dossier
from agent.answer import answer_schema, instruction, shown
from agent.dossier import estimate_tokens
from agent.provider import QUOTED_TOKENS, Message, Served
from runbook.artifacts import canonical_json
from runbook.contract import ReviewRequest

_REPAIR_TOKENS = 400
"""Of the request to mend a reply, that reply aside."""
_DRAFT_LIMIT = 8000
"""Characters of a reply that is quoted back to the model that gave it."""
_AGAIN = (
    "Answer the question above again: one JSON object of the form described there, complete, "
    "and nothing else."
)


def most_tokens(models: Sequence[Served]) -> int:
    """What a question may take: it must fit the smallest context that is declared."""
    return min(served.prompt_tokens for served in models)


def question(request: ReviewRequest, max_tokens: int) -> str:
    """The dossier and the form of its answer. Raises TooLongError: they do not fit."""
    form = f"\n{instruction(request, complete=True)}"
    left = max_tokens - estimate_tokens(form) - _schema_tokens(request) - _REPAIR_TOKENS
    page = dossier.render(request, fence=secrets.token_hex(8), max_tokens=max(0, left))
    return page + form


def repair(
    request: ReviewRequest, served: Served, prompt: str, draft: str, cause: str
) -> tuple[Message, ...]:
    """The conversation that asks to mend a reply: the question, the reply, what was wrong."""
    before = "That is no answer: "
    room = _REPAIR_TOKENS - estimate_tokens(f"{before}\n{_AGAIN}")
    wrong = f"{before}{_cut(shown(cause, 1000), room)}\n{_AGAIN}"
    taken = estimate_tokens(prompt) + estimate_tokens(wrong) + _schema_tokens(request)
    left = min(QUOTED_TOKENS, most_tokens([served]) - taken)
    said = _cut(shown(draft, _DRAFT_LIMIT), left)
    quoted = (("assistant", said),) if said.strip() else ()
    return (("user", prompt), *quoted, ("user", wrong))


def _schema_tokens(request: ReviewRequest) -> int:
    return estimate_tokens(canonical_json(answer_schema(request)))


def _cut(text: str, tokens: int) -> str:
    """The longest beginning of a text that takes no more than these."""
    sizes = range(1, len(text) + 1)
    return text[: bisect_right(sizes, tokens, key=lambda size: estimate_tokens(text[:size]))]
