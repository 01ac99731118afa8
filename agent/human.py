"""The human reviewer: lays the question down as ``request.md`` and waits for a person.

It never decides. A person answers with ``runbook review decide``.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from agent import dossier, redaction
from runbook.artifacts import sha256_bytes, write_bytes
from runbook.contract import ReviewRequest

HOW_TO_ANSWER = "## How to answer"
"""Heads the page's last part, which counts only while the review is open."""
_CLEAR = "A sentinel is overridden by `runbook sentinel clear --reason REASON`, same workspace."


def ask(request: ReviewRequest, redact: Callable[[bytes], bytes] = bytes) -> None:
    """Write ``request.md`` into the review's folder; safe to repeat.

    ``redact`` takes secrets out of bytes; by default there are none.
    """
    request = redaction.of_request(request, redact)
    path = request.workspace / request.path / "request.md"
    write_bytes(path, redact(render(request).encode("utf-8", "backslashreplace")))


def render(request: ReviewRequest) -> str:
    """The dossier, and the command by which a person answers it."""
    change = "A retry may add `--change NAME=NUMBER` within the ranges above."
    may_change = "retry" in request.allowed and request.adjustable
    lines = [
        dossier.render(request, fence=fence_of(request), person=True),
        HOW_TO_ANSWER,
        "",
        f"    runbook review decide {request.review_id} --action ACTION --reason REASON \\",
        f"        --workspace {shlex.quote(str(request.workspace))}",
        "",
        *([change] if may_change else []),
        *([_CLEAR] if request.reason == "sentinel" else []),
        "Then the same `runbook run` goes on.",
        "",
    ]
    return "\n".join(lines)


def question(request: ReviewRequest) -> str:
    """The dossier as a program is given it: nothing in it is a person's alone."""
    return dossier.render(request, fence=fence_of(request))


def fence_of(request: ReviewRequest) -> str:
    """A fence that is the same whenever this very question is asked again.

    It hangs on every byte of what it fences, so none of that can have been written to hold it. A
    question read back from the journal has its mappings in another order than one just put
    together, so no order of theirs counts.
    """
    told = _ordered(replace(request, stop=str))
    return sha256_bytes(told.encode("utf-8", "surrogatepass"))[:24]


def _ordered(value: Any) -> str:
    """A value's repr, with mappings and fields by name, and any sequence as a list."""
    if is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value) if f.repr}
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{k!r}: {_ordered(v)}' for k, v in value.items()))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_ordered, value))}]"
    return repr(value)
