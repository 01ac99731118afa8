"""The verb ``report``: lists every report of a session, or prints one review's. It writes nothing.

Rule: what is listed is read from the journal, so it may be asked for while an executor runs, and on
a workspace that cannot be written to. A review's page is rendered anew, since the file beside it is
as old as the newest verdict or decision.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import WORKSPACE, AsJson, Folder, answer, say
from runbook.cli.showing import look, read_session, reading_errors
from runbook.contract import Json

if TYPE_CHECKING:
    from runbook.report.session import ReviewView, SessionView, StepView
    from runbook.report.status import Sight
    from runbook.workspace import Workspace


def report(
    review_id: Annotated[
        str,
        typer.Argument(envvar="RUNBOOK_REVIEW", help="E.g. pilot-2; without: list all."),
    ] = "",
    *,
    workspace: Folder = WORKSPACE,
    as_json: AsJson = False,
) -> None:
    """List the session's reports, those of its steps and of its reviews; or print a review's."""
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    place = Workspace.at(workspace)
    if review_id:
        _print_review(place, read_session(place), review_id, as_json=as_json)
        return
    view, sight = look(place)
    if as_json:
        for document in _documents(place, view, sight):
            answer(document)
    else:
        say("\n".join(_lines(place, view, sight)))


def _print_review(place: "Workspace", view: "SessionView", name: str, *, as_json: bool) -> None:
    from runbook.cli.review_verbs import find_review  # noqa: PLC0415 - start-up stays light
    from runbook.journal import read_entries  # noqa: PLC0415 - start-up stays light
    from runbook.report.review_folder import read_folder  # noqa: PLC0415 - start-up stays light
    from runbook.report.review_report import REPORT, render_review  # noqa: PLC0415 - as above
    from runbook.report.view import build_stories  # noqa: PLC0415 - start-up stays light

    review = find_review(view, name, "runbook report")
    with reading_errors(place):
        stories = build_stories(read_entries(place))
    story = next(s for s in stories if s.review.review_id == review.review_id)
    folder = place.inside(review.path)
    text = render_review(story, read_folder(folder))
    if as_json:
        answer({"review": name, "path": str(folder / REPORT), "report": text})
    else:
        say(text.rstrip())


def _documents(place: "Workspace", view: "SessionView", sight: "Sight") -> list[dict[str, Json]]:
    """One object for each report: the session's, its steps', its reviews'."""
    from runbook.report.status import as_seen, headline  # noqa: PLC0415 - start-up stays light
    from runbook.report.step_words import word  # noqa: PLC0415 - start-up stays light
    from runbook.report.trust import trust_section  # noqa: PLC0415 - start-up stays light

    session: dict[str, Json] = {
        "kind": "session",
        "name": view.name,
        "headline": headline(view, sight),
        "path": str(place.report),
        "exists": place.report.is_file(),
    }
    steps = [
        {
            "kind": "step",
            "name": step.name,
            "verdict": word(step),
            "manifest": step.manifest,
            "judgement": step.judged,
        }
        for step in _begun(as_seen(view, sight))
    ]
    trust = "\n".join(trust_section(place))
    reviews = [_review_document(place, review) for review in view.reviews]
    return [session, *steps, *reviews, *([{"kind": "trust", "text": trust}] if trust else [])]


def _review_document(place: "Workspace", review: "ReviewView") -> dict[str, Json]:
    from runbook.report import review_words as words  # noqa: PLC0415 - start-up stays light
    from runbook.report.review_report import REPORT  # noqa: PLC0415 - start-up stays light

    return {
        "kind": "review",
        "name": review.review_id,
        "state": words.state(review),
        "open": review.is_open,
        "asked_at": review.asked_at,
        "usd": review.usd,
        "helped": words.followed(review),
        "path": str(place.root / review.path / REPORT),
    }


def _lines(place: "Workspace", view: "SessionView", sight: "Sight") -> list[str]:
    from runbook.report import review_words as words  # noqa: PLC0415 - start-up stays light
    from runbook.report.review_report import REPORT  # noqa: PLC0415 - start-up stays light
    from runbook.report.safe_text import columns, one_line  # noqa: PLC0415 - start-up stays light
    from runbook.report.status import as_seen, headline  # noqa: PLC0415 - start-up stays light
    from runbook.report.step_words import word  # noqa: PLC0415 - start-up stays light
    from runbook.report.trust import trust_section  # noqa: PLC0415 - start-up stays light

    if not view.run_id:
        return [f"{place.root}: no session yet; 'runbook run' starts one"]
    there = place.report if place.report.is_file() else "not written yet; the next run writes it"
    lines = [one_line(f"{view.name}: {headline(view, sight)}"), f"  {there}"]
    steps = [(s.name, word(s), s.manifest, s.judged) for s in _begun(as_seen(view, sight))]
    if steps:
        lines += ["", "Steps", *columns([("step", "verdict", "manifest", "judgement"), *steps])]
    if view.reviews:
        header = ("review", "state", "cost", "what followed", "report")
        rows = [
            (
                r.review_id,
                words.state(r),
                words.cost(r),
                words.followed(r),
                f"{r.path}/{REPORT}",
            )
            for r in view.reviews
        ]
        lines += ["", "Reviews", *columns([header, *rows])]
        lines += ["", "'runbook report REVIEW' prints one."]
    trust = trust_section(place)
    return [*lines, "", *trust] if trust else lines


def _begun(view: "SessionView") -> "list[StepView]":
    return [step for step in view.steps if step.attempts or step.skipped]
