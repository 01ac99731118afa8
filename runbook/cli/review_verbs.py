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

from runbook.cli.options import (
    WORKSPACE,
    AsJson,
    Folder,
    Overrides,
    answer,
    check_reason,
    env_lines,
    say,
)
from runbook.cli.showing import read_session, read_whole, view_of
from runbook.contract import Json
from runbook.errors import ConfigError

if TYPE_CHECKING:
    from runbook.events import ReviewDecided
    from runbook.journal import Entry
    from runbook.report.session import ReviewView, SessionView
    from runbook.workspace import Workspace

NEEDS_HUMAN = "needs_human"
"""As ``runbook.state`` has it, which is not imported for a list."""
ReviewId = Annotated[str, typer.Argument(envvar="RUNBOOK_REVIEW", help="E.g. pilot-2.")]
Reason = Annotated[str, typer.Option(envvar="RUNBOOK_REASON", help="Kept on record.")]
Author = Annotated[str, typer.Option(envvar=["RUNBOOK_AUTHOR", "USER"], help="Who decides.")]
MovedSpec = Annotated[
    Path | None,
    typer.Option(
        "--spec", envvar="RUNBOOK_SPEC", help="The runbook, if it was moved since the start."
    ),
]


def list_reviews(*, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """List all reviews of the session, the newest last."""
    from runbook.report.safe_text import columns  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    reviews = read_session(place).reviews
    if as_json:
        for review in reviews:
            answer(_document(review))
    elif reviews:
        header = ("review", "state", "reason", "author", "decided", "cost", "folder")
        say("\n".join(columns([header, *map(_row, reviews)])))
    else:
        say(f"{place.root}: no review was asked for")


def show(review_id: ReviewId, *, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """Show a review: the question, what may be answered, and the decision if there is one."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    view = read_session(place)
    review = find_review(view, review_id)
    adjustable = next(s.adjustable for s in view.steps if s.name == review.step)
    question = _question(place, review)
    if as_json:
        answer({**_document(review), "adjustable": dict(adjustable), "request": question})
    else:
        say(question if review.is_open else _without_how_to_answer(question))
        say("\n".join(_footer(place, review, adjustable)))


def decide(
    review_id: ReviewId,
    *,
    action: Annotated[
        str, typer.Option(envvar="RUNBOOK_ACTION", help="One that 'review show' names.")
    ],
    reason: Reason,
    author: Author = "unnamed",
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
    spec: MovedSpec = None,
    overrides: Overrides,
    as_json: AsJson = False,
) -> None:
    """Record a person's decision; the next 'runbook run' acts on it."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    entries = read_whole(place)
    review = find_review(view_of(entries, place), review_id)
    if action == "override" and review.reason == "sentinel":
        raise ConfigError(
            "a sentinel is not overridden as a gate is",
            where=f"review {review_id}",
            fix="'runbook sentinel clear --reason REASON' clears it on record",
        )
    told = _changes(changes)
    record(
        place, entries, review_id, action, reason, author, told, spec, overrides, as_json=as_json
    )


def record(
    place: "Workspace",
    entries: "Sequence[Entry]",
    review_id: str,
    action: str,
    reason: str,
    author: str,
    changes: Mapping[str, Json],
    spec: Path | None,
    overrides: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Put a person's decision on record and say what follows.

    ``entries`` were just read; the decision is judged again with the journal open.

    Raises:
        ConfigError: there is no reason, or the review takes no such answer any more.
    """
    from runbook.events import ReviewDecided  # noqa: PLC0415 - start-up stays light
    from runbook.journal import facts  # noqa: PLC0415 - start-up stays light
    from runbook.review import record_decision  # noqa: PLC0415 - start-up stays light
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light

    check_reason(reason, "a decision", "--reason")
    view = view_of(entries, place)
    _refuse_second(place, find_review(view, review_id), action)
    decided = ReviewDecided(review_id, action, changes, reason, author, person=True)
    plan = load_plan(spec or Path(view.runbook), overrides or view.overrides)
    recorded, untold = record_decision(plan, place, decided, known=facts(entries))
    view = view_of(recorded, place)
    if untold:
        say(untold)
    if as_json:
        answer(_document(find_review(view, review_id)))
    else:
        say(f"{review_id}: {action} is on record.\n{_what_follows(place, view, action)}")


def _row(review: "ReviewView") -> tuple[str, ...]:
    from runbook.report import review_words as words  # noqa: PLC0415 - start-up stays light
    from runbook.report.figures import NOTHING, moment  # noqa: PLC0415 - start-up stays light

    last = review.last
    who = words.who(last) if last else NOTHING
    when = moment(review.decided_at[-1]) if last else NOTHING
    told = (review.review_id, words.state(review), review.reason)
    return (*told, who, when, words.cost(review), review.path)


def find_review(view: "SessionView", review_id: str, verb: str = "runbook review") -> "ReviewView":
    """Raises ConfigError where there is no such review, with those there are."""
    reviews = {review.review_id: review for review in view.reviews}
    if review_id not in reviews:
        known = f"there are: {', '.join(reviews)}" if reviews else "none was asked for yet"
        raise ConfigError(
            f"there is no review {review_id!r}",
            where=verb,
            fix=f"{known}; --workspace names the session's folder",
        )
    return reviews[review_id]


def _refuse_second(place: "Workspace", review: "ReviewView", action: str) -> None:
    """What was acted on stands; after a model's ``needs_human`` or a stop a person may say more."""
    from runbook.report.review_words import options  # noqa: PLC0415 - start-up stays light
    from runbook.report.safe_text import one_line  # noqa: PLC0415 - start-up stays light

    last = review.last
    if last is None:
        return
    command = _override(place, review)
    if (review.is_open and action != NEEDS_HUMAN) or (command and action == "override"):
        return
    if command:
        fix = f"only an override is still open, to a person: {command}"
    elif review.is_open:
        fix = f"it may be answered with: {', '.join(options(review))}"
    else:
        fix = "'runbook review list' shows which reviews are open"
    told = one_line(f"{last.action} by {last.author}: {last.reason}")
    where = f"review {review.review_id}"
    raise ConfigError(f"it is decided already: {told}", where=where, fix=fix)


def _override(place: "Workspace", review: "ReviewView") -> str:
    """How a person overrides it after a stop; empty where that is not open."""
    from runbook.report.commands import review_command  # noqa: PLC0415 - start-up stays light

    stopped = review.last is not None and review.last.action == "stop"
    if review.superseded or not stopped or "override" not in review.allowed:
        return ""
    return review_command("decide", review, place.root, "override")


def _document(review: "ReviewView") -> dict[str, Json]:
    from runbook.codec import encode  # noqa: PLC0415 - start-up stays light
    from runbook.report import review_words as words  # noqa: PLC0415 - start-up stays light

    document: dict[str, Json] = encode(review)
    told = {"state": words.state(review), "usd": review.usd, "helped": words.followed(review)}
    return {**document, **told, "open": review.is_open, "allowed": list(review.allowed)}


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


def _without_how_to_answer(question: str) -> str:
    """The question alone, since what may be answered is no longer what it says."""
    from agent.human import HOW_TO_ANSWER  # noqa: PLC0415 - start-up stays light

    text, found, _ = f"\n{question}\n".rpartition(f"\n{HOW_TO_ANSWER}\n")
    return text.strip("\n") if found else question


def _footer(
    place: "Workspace", review: "ReviewView", adjustable: Mapping[str, Json]
) -> Iterator[str]:
    from runbook.report import review_words as words  # noqa: PLC0415 - start-up stays light
    from runbook.report.figures import moment  # noqa: PLC0415 - start-up stays light
    from runbook.report.review_folder import read_folder  # noqa: PLC0415 - start-up stays light
    from runbook.report.safe_text import one_line  # noqa: PLC0415 - start-up stays light

    folder = read_folder(place.inside(review.path))
    yield ""
    yield f"review {review.review_id} of {place.root}: {one_line(words.state(review))}"
    yield f"  asked {moment(review.asked_at)}; the verdict was {one_line(review.verdict) or 'none'}"
    for decided, at in zip(review.decisions, review.decided_at, strict=True):
        yield from _decision(decided, at)
    if folder.error and not review.is_answered:
        yield f"  the reviewer gave no answer that could be used: {one_line(folder.error)}"
    yield f"  cost: {words.cost(review)}"
    if review.last:
        yield f"  what followed: {words.followed(review)}"
    yield from (f"  {what}: {place.root / review.path / name}" for what, name in folder.files)
    if review.is_open:
        yield from _how_to_answer(place, review, adjustable)
    elif override := _override(place, review):
        yield f"still open to a person: override\n  {override}"


def _how_to_answer(
    place: "Workspace", review: "ReviewView", adjustable: Mapping[str, Json]
) -> Iterator[str]:
    from runbook.report.commands import review_command  # noqa: PLC0415 - start-up stays light
    from runbook.report.review_words import options  # noqa: PLC0415 - start-up stays light

    allowed = options(review)
    yield f"may be answered with: {', '.join(allowed)}"
    if "retry" in allowed:
        ranges = (f"{name} ({r['min']:g} to {r['max']:g})" for name, r in adjustable.items())
        yield f"a retry may change: {', '.join(ranges) or 'nothing'}"
    command = ("runbook", "review", "decide", review.review_id, "--workspace", str(place.root))
    yield f"answer with:\n  {shlex.join(command)} --action ACTION --reason REASON"
    if review.reason == "sentinel":
        yield f"or clear it:\n  {review_command('decide', review, place.root, 'override')}"


def _decision(decided: "ReviewDecided", at: str) -> Iterator[str]:
    """Author, time and reason; then all that goes with the decision."""
    from runbook.report.figures import fixed, moment  # noqa: PLC0415 - start-up stays light
    from runbook.report.review_words import who  # noqa: PLC0415 - start-up stays light
    from runbook.report.safe_text import one_line  # noqa: PLC0415 - start-up stays light

    yield f"  {decided.action} by {one_line(who(decided))}, {moment(at)}: {_all(decided.reason)}"
    yield from (f"    {name} = {value}" for name, value in decided.changes.items())
    if decided.confidence is not None:
        yield f"    confidence: {fixed(decided.confidence)}"
    yield from (f"    concern: {_all(concern)}" for concern in decided.concerns)
    yield from (f"    to do: {_all(item)}" for item in decided.action_items)


def _all(text: str) -> str:
    from runbook.report.safe_text import one_line  # noqa: PLC0415 - start-up stays light

    return one_line(text, 4000)


def _what_follows(place: "Workspace", view: "SessionView", action: str) -> str:
    from runbook.report.outcome import next_steps  # noqa: PLC0415 - start-up stays light

    if action == "stop":
        return "The session stays stopped. A person may still override."
    if action == NEEDS_HUMAN:
        return "The review stays open for a person."
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
