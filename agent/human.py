"""The reviewer ``human``: lays the question down as ``request.md`` and waits for a person.

It never decides. A person answers with ``runbook review decide``.
"""

import json

from runbook.artifacts import write_text
from runbook.contract import Json
from runbook.review import ReviewRequest


def ask(request: ReviewRequest) -> None:
    """Write ``request.md`` into the review's folder; safe to repeat."""
    write_text(request.workspace / request.path / "request.md", render(request))


def render(request: ReviewRequest) -> str:
    """The question as Markdown. Samples are data: each stands as one line of escaped JSON."""
    lines = [
        f"# {request.step}, attempt {request.attempt}: {request.verdict} ({request.reason})",
        "",
        f"Failures so far: {request.failures} of {request.retries + 1} allowed.",
        f"You may answer: {', '.join(request.allowed)}. No answer can change a threshold.",
        "",
        "| criterion | verdict | value | n | threshold | why |",
        "|---|---|---|---|---|---|",
        *(_criterion(c) for c in request.criteria),
        "",
        "## Parameters of this attempt",
        "",
        *(f"- `{name}`: {_escaped(value)}" for name, value in sorted(request.params.items())),
        "",
        "## What a retry may change",
        "",
        *(f"- `{n}`: {r.min:g} to {r.max:g}" for n, r in sorted(request.adjustable.items())),
        "",
        "## Ten raw rows behind the reading",
        "",
        *(f"    {_escaped(row)}" for row in request.flagged),
        "",
        "## How to answer",
        "",
        f"    runbook review decide {request.review_id} --action ACTION --reason TEXT",
        "",
    ]
    return "\n".join(lines)


def _criterion(criterion: Json) -> str:
    c = criterion
    value = "-" if c["value"] is None else f"{c['value']:.4g}"
    cells = (c["metric"], c["verdict"], value, c["n"], c["threshold"], c["reason"])
    return (
        "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"
    )


def _escaped(value: Json) -> str:
    """JSON in ASCII on one line: no control or bidi character reaches a terminal."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, default=str)
