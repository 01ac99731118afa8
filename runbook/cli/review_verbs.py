"""Verbs about reviews: list and show read the journal, decide adds a person's answer to it.

The runbook and its overrides are those the session began with, unless others are given; the
decision itself is judged by ``runbook.machine``, and one that cannot stand is not recorded.
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import WORKSPACE, AsJson, Folder, Overrides, answer, env_lines, say
from runbook.cli.showing import read_session
from runbook.contract import Json
from runbook.errors import ConfigError

if TYPE_CHECKING:
    from runbook.report.session import ReviewView, SessionView
    from runbook.workspace import Workspace

ReviewId = Annotated[str, typer.Argument(envvar="RUNBOOK_REVIEW", help="E.g. pilot-2.")]


def list_reviews(*, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """List all reviews of the session, the newest last."""
    from runbook.report.safe_text import columns  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    reviews = _reviews(read_session(place))
    if as_json:
        for review in reviews:
            answer(_document(review))
    elif reviews:
        rows = [("review", "state", "reason", "folder")]
        rows += [(r.review_id, _state(r), r.reason, r.path) for r in reviews]
        say("\n".join(columns(rows)))
    else:
        say(f"{place.root}: no review was asked for")


def show(review_id: ReviewId, *, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """Show a review: the question, what may be answered, and the decision if there is one."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    view = read_session(place)
    review = _find(view, review_id)
    adjustable = next(s.adjustable for s in view.steps if s.name == review.step)
    question = _question(place, review)
    if as_json:
        answer({**_document(review), "adjustable": dict(adjustable), "request": question})
    else:
        say(question)
        say("\n".join(_footer(place, review, adjustable)))


def decide(
    review_id: ReviewId,
    *,
    action: Annotated[str, typer.Option(envvar="RUNBOOK_ACTION", help="retry, stop or override.")],
    reason: Annotated[str, typer.Option(envvar="RUNBOOK_REASON", help="Kept on record.")],
    author: Annotated[
        str, typer.Option(envvar=["RUNBOOK_AUTHOR", "USER"], help="Who decides.")
    ] = "unnamed",
    changes: Annotated[
        list[str],
        typer.Option(
            "--change",
            default_factory=lambda: env_lines("RUNBOOK_CHANGE"),
            show_default=False,
            metavar="PARAM=NUMBER",
            help="For a retry. In the environment: RUNBOOK_CHANGE, one a line.",
        ),
    ],
    workspace: Folder = WORKSPACE,
    spec: Annotated[
        Path | None,
        typer.Option(envvar="RUNBOOK_SPEC", help="The runbook, if it was moved since the start."),
    ] = None,
    overrides: Overrides,
    as_json: AsJson = False,
) -> None:
    """Record a person's decision; the next 'runbook run' acts on it."""
    from runbook.events import ReviewDecided  # noqa: PLC0415 - start-up stays light
    from runbook.review import record_decision  # noqa: PLC0415 - start-up stays light
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    view = read_session(place)
    _refuse_second(_find(view, review_id))
    decided = ReviewDecided(review_id, action, _changes(changes), reason, author, person=True)
    plan = load_plan(spec or Path(view.runbook), overrides or view.overrides)
    record_decision(plan, place, decided)
    view = read_session(place)
    if as_json:
        answer(_document(_find(view, review_id)))
    else:
        say(f"{review_id}: {action} is on record.\n{_what_follows(place, view, action)}")


def _reviews(view: "SessionView") -> "list[ReviewView]":
    """All reviews; their folders begin with the time they were opened."""
    return sorted((r for step in view.steps for r in step.reviews), key=lambda r: r.path)


def _find(view: "SessionView", review_id: str) -> "ReviewView":
    reviews = {review.review_id: review for review in _reviews(view)}
    if review_id not in reviews:
        known = f"there are: {', '.join(reviews)}" if reviews else "none was asked for yet"
        raise ConfigError(
            f"there is no review {review_id!r}",
            where="runbook review",
            fix=f"{known}; --workspace names the session's folder",
        )
    return reviews[review_id]


def _refuse_second(review: "ReviewView") -> None:
    """A retry or an override was acted on, perhaps long ago; after a stop an override may come."""
    final = next((d for d in review.decisions if d.action != "stop"), None)
    if final:
        raise ConfigError(
            f"it is decided already: {final.action} by {final.author}: {final.reason}",
            where=f"review {review.review_id}",
            fix="'runbook review list' shows which reviews are open",
        )


def _state(review: "ReviewView") -> str:
    last = review.decisions[-1] if review.decisions else None
    if review.superseded and not last:
        return "superseded by a changed plan"
    return f"{last.action} by {last.author}" if last else "open"


def _document(review: "ReviewView") -> dict[str, Json]:
    from runbook.codec import encode  # noqa: PLC0415 - start-up stays light

    document: dict[str, Json] = encode(review)
    is_open = not review.decisions and not review.superseded
    return {**document, "open": is_open, "allowed": list(review.allowed)}


def _question(place: "Workspace", review: "ReviewView") -> str:
    """The request as the reviewer was given it; the file may have been touched since."""
    from runbook.problems import printable  # noqa: PLC0415 - start-up stays light

    path = place.inside(review.path) / "request.md"
    try:
        text = path.read_text("utf-8", errors="backslashreplace")
    except FileNotFoundError:
        return f"{path} is not there; while the review is open the next run writes it"
    except OSError as error:
        raise ConfigError(
            f"the question cannot be read: {error.strerror}",
            where=str(path),
            fix="change the file's permissions",
        ) from error
    lines = text.rstrip().split("\n")
    return "\n".join(printable(line, longest=len(line)) for line in lines)


def _footer(
    place: "Workspace", review: "ReviewView", adjustable: Mapping[str, Json]
) -> Iterator[str]:
    from runbook.report.safe_text import one_line  # noqa: PLC0415 - start-up stays light

    yield ""
    state = "decided" if review.decisions else "open"
    yield f"review {review.review_id} of {place.root}: {state}"
    for decision in review.decisions:
        yield f"  {decision.action} by {one_line(decision.author)}: {one_line(decision.reason)}"
        yield from (f"    {name} = {value}" for name, value in decision.changes.items())
    if not review.decisions:
        yield f"may be answered with: {', '.join(review.allowed)}"
    if "retry" in review.allowed:
        ranges = (f"{name} ({r['min']:g} to {r['max']:g})" for name, r in adjustable.items())
        yield f"a retry may change: {', '.join(ranges) or 'nothing'}"
    if not review.decisions:
        command = ("runbook", "review", "decide", review.review_id, "--workspace", str(place.root))
        yield f"answer with:\n  {shlex.join(command)} --action ACTION --reason REASON"


def _what_follows(place: "Workspace", view: "SessionView", action: str) -> str:
    from runbook.report.outcome import next_steps  # noqa: PLC0415 - start-up stays light

    if action == "stop":
        return "The session stays stopped. A person may still override."
    return "\n".join(f"{s.why}\n  {s.command}" for s in next_steps(view, place.root))


def _changes(texts: Sequence[str]) -> dict[str, float]:
    changes = [_change(text) for text in texts]
    names = [name for name, _ in changes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(
            f"{twice!r} is changed twice", where="--change", fix="give each parameter once"
        )
    return dict(changes)


def _change(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise ConfigError(
            "a change is PARAM=NUMBER, and the number is finite",
            where=f"--change {text}",
            fix="write it as --change max_new_tokens=48",
        )
    return name, int(number) if number.is_integer() else number
