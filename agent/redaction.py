"""Secrets out of what a review is told and of what it says, before either is written or cut.

Rule: a text is searched whole and as it stands. Escaped, cut or parsed first, a secret could be
spelled so that the search over the bytes of a file no longer finds it.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from agent.answer import Answer
from runbook.contract import ReviewRequest

Redact = Callable[[bytes], bytes]
"""Takes secrets out of bytes."""
T = TypeVar("T")

_TOLD = (
    "criteria",
    "reasons",
    "metrics",
    "attempts",
    "summary",
    "flagged",
    "samples",
    "question",
    "earlier",
    "certificates",
    "log_tail",
)
"""What a step, a model or a person wrote, of a request."""
_SAID = ("reason", "concerns", "action_items")


def of_text(text: str, redact: Redact) -> str:
    """The text without secrets."""
    return redact(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")


def of_value(value: T, redact: Redact) -> T:
    """The same of every text in a JSON value or a frozen dataclass, keys included."""
    found: Any = value
    if isinstance(value, str):
        found = of_text(value, redact)
    elif isinstance(value, Mapping):
        found = {of_value(k, redact): of_value(item, redact) for k, item in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(of_value(item, redact) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        known = {f.name: of_value(getattr(value, f.name), redact) for f in fields(value)}
        found = replace(value, **known)
    return found  # type: ignore[no-any-return]  # of the value's own type


def of_request(request: ReviewRequest, redact: Redact) -> ReviewRequest:
    """The question without secrets."""
    return replace(request, **{name: of_value(getattr(request, name), redact) for name in _TOLD})


def of_answer(answer: Answer, redact: Redact) -> Answer:
    """The answer without secrets; what was left out stays left out."""
    said = {name: getattr(answer, name) for name in _SAID if name in answer.model_fields_set}
    return answer.model_copy(update=of_value(said, redact))
