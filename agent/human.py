"""The reviewer ``human``: lays the question down as ``request.md`` and waits for a person.

It never decides. A person answers with ``runbook review decide``.
"""

import json
import re
import shlex

from runbook.artifacts import write_text
from runbook.contract import Attempt, Json, ReviewRequest

_MARKUP = re.compile(r"<(?![ =])|[\[`*]")
"""What would begin a tag, a link, code or emphasis; a threshold's ``< 0.1`` does not."""


_SMOKE = (
    "This attempt is a smoke, a few rows made with a change. Nothing of it can pass: a retry has",
    "the change run in full, and so has an override by a person.",
)


def ask(request: ReviewRequest) -> None:
    """Write ``request.md`` into the review's folder; safe to repeat."""
    write_text(request.workspace / request.path / "request.md", render(request))


def render(request: ReviewRequest) -> str:
    """The question as Markdown, and the command by which a person answers it."""
    change = "A retry may add `--change NAME=NUMBER` within the ranges above."
    lines = [
        question(request),
        "## How to answer",
        "",
        f"    runbook review decide {request.review_id} --action ACTION --reason TEXT \\",
        f"        --workspace {shlex.quote(str(request.workspace))}",
        "",
        *([change] if _may_change(request) else []),
        "Then the same `runbook run` goes on.",
        "",
    ]
    return "\n".join(lines)


def question(request: ReviewRequest) -> str:
    """The question as Markdown. Samples are data: each stands as one line of escaped JSON."""
    lines = [
        f"# {request.step}, attempt {request.attempt}: {request.verdict} ({request.reason})",
        "",
        f"Failures so far: {request.failures} of {request.retries + 1} allowed.",
        f"You may answer: {', '.join(request.allowed)}. No answer can change a threshold.",
        *(_SMOKE if request.attempts and request.attempts[-1].look == 0 else ()),
        "",
        "| criterion | verdict | value | n | threshold | why |",
        "|---|---|---|---|---|---|",
        *(_criterion(c) for c in request.criteria),
        "",
        "## Every attempt, with its parameters",
        "",
        *(line for attempt in request.attempts for line in _attempt(attempt)),
        *_changes(request),
        "## Ten raw rows behind the reading",
        "",
        *(f"    {_escaped(row)}" for row in request.flagged),
        "",
    ]
    return "\n".join(lines)


def _may_change(request: ReviewRequest) -> bool:
    return "retry" in request.allowed and bool(request.adjustable)


def _changes(request: ReviewRequest) -> list[str]:
    """What a retry may set; nothing where none is allowed, or nothing may be changed."""
    if not _may_change(request):
        return []
    ranges = [f"- `{n}`: {r.min:g} to {r.max:g}" for n, r in sorted(request.adjustable.items())]
    return ["## What a retry may change", "", *ranges, ""]


def _attempt(attempt: Attempt) -> list[str]:
    """Verdict, reasons and parameters; the lists of a spec stand as JSON."""
    again = {0: ", a smoke of a few rows", 2: ", extended sample"}.get(attempt.look, "")
    return [
        f"### Attempt {attempt.attempt}{again}: {attempt.verdict}",
        "",
        *(f"- {_plain(reason)}" for reason in attempt.reasons),
        *(f"- `{name}`: {_escaped(value)}" for name, value in sorted(attempt.params.items())),
        "",
    ]


def _criterion(criterion: Json) -> str:
    c = criterion
    value = "-" if c["value"] is None else f"{c['value']:.4g}"
    cells = (c["metric"], c["verdict"], value, c["n"], c["threshold"], c["reason"])
    return "| " + " | ".join(_plain(str(cell)) for cell in cells) + " |"


def _plain(text: str) -> str:
    """One line that cannot end a table cell or become markup, in ASCII."""
    line = _escaped(text)[1:-1].replace("|", "/")
    return _MARKUP.sub(r"\\\g<0>", line)


def _escaped(value: Json) -> str:
    """JSON in ASCII on one line: no control or bidi character reaches a terminal."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, default=str)
