"""The verb that scores a reviewer on the recorded situations: ``runbook review bench``.

Rule: it measures, so a bad reviewer is no error, but one that cannot be asked at all is; what it
may spend is capped before the first request. With a workspace the result is kept there for the
report, and the same command again goes on where it was; without one all of it is gone in the end.
"""

import os
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import AsJson, answer, say
from runbook.contract import Json
from runbook.errors import ConfigError

if TYPE_CHECKING:
    from agent.bench import Answered, Count, Tally
    from runbook.plan import Plan

_MAX_USD = 5.0
_SITUATIONS = "specs/review_bench"
_SHIPPED = "specs/quickstart/runbook.yaml"
"""What a reviewer named by options borrows the rest of its runbook from."""
_HEADER = (
    "topic",
    "right",
    "95 % interval",
    "false approvals",
    "false alarms",
    "no answer",
    "not asked",
)
_MOST_CAUSES = 5
_LONGEST_CAUSE = 1000


def bench(
    *,
    runbook: Annotated[
        Path | None,
        typer.Option(envvar="RUNBOOK_SPEC", help="Score the reviewer that this runbook declares."),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(envvar="RUNBOOK_PROVIDER", help="openai or anthropic.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(envvar="RUNBOOK_MODEL", help="As the provider knows it.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(envvar="RUNBOOK_BASE_URL", help="Of any compatible server.")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(envvar="RUNBOOK_API_KEY_ENV", help="The variable that holds the key."),
    ] = None,
    request_usd: Annotated[
        float,
        typer.Option(
            envvar="RUNBOOK_REQUEST_USD", min=0.0, help="With --provider: a request's worst case."
        ),
    ] = 0.25,
    max_usd: Annotated[
        float,
        typer.Option(envvar="RUNBOOK_MAX_USD", min=0.0, help="All of it may cost no more."),
    ] = _MAX_USD,
    limit: Annotated[
        int | None, typer.Option(envvar="RUNBOOK_LIMIT", min=1, help="Ask so many, in a mix.")
    ] = None,
    situations: Annotated[
        Path | None,
        typer.Option(envvar="RUNBOOK_SITUATIONS", help="A folder of situations of your own."),
    ] = None,
    workspace: Annotated[
        Path | None,
        typer.Option(envvar="RUNBOOK_WORKSPACE", help="Keep the result for its report."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a reviewer on recorded situations with known right answers."""
    from agent.situations import load_all  # noqa: PLC0415 - start-up stays light
    from runbook.template import HOME  # noqa: PLC0415 - start-up stays light
    from runbook.workspace import Workspace  # noqa: PLC0415 - start-up stays light

    named = {"provider": provider, "model": model}
    more = {"base_url": base_url, "api_key_env": api_key_env}
    plan = _plan(runbook, {k: v for k, v in {**named, **more}.items() if v}, request_usd)
    found = load_all(situations or HOME / _SITUATIONS)
    chosen = found if limit is None else sorted(found, key=lambda s: _mixed(s.name))[:limit]
    if workspace is None:
        with tempfile.TemporaryDirectory(prefix="review-bench-") as folder:
            document = _score(plan, chosen, Path(folder), max_usd)
    else:
        kept = Workspace.at(workspace).review_bench / _slug(plan)
        document = _score(plan, chosen, kept, max_usd)
    if as_json:
        for row in document["answers"]:
            answer(row)
        answer({k: v for k, v in document.items() if k != "answers"})
    say("\n".join(_table(document)))
    if workspace is not None:
        shown = shlex.join(["runbook", "report", "--workspace", str(workspace)])
        say(f"kept in {kept}; shown by: {shown}")


def _plan(runbook: Path | None, named: dict[str, Json], request_usd: float) -> "Plan":
    """A plan whose reviewer is the one to score, without canaries.

    Raises:
        ConfigError: both a runbook and options name a reviewer, or neither; it is a person; or it
            cannot be asked, for want of its key or its program.
    """
    from agent.readiness import trouble_asking  # noqa: PLC0415 - start-up stays light
    from runbook.problems import printable  # noqa: PLC0415 - start-up stays light
    from runbook.schema import load_plan  # noqa: PLC0415 - start-up stays light
    from runbook.template import HOME  # noqa: PLC0415 - start-up stays light

    if (runbook is None) == (not named):
        raise ConfigError(
            "one reviewer is scored at a time",
            where="runbook review bench",
            fix="give --runbook, or --provider and --model",
        )
    if runbook is None:
        declared = _declared(named, request_usd)
        shipped = load_plan(HOME / _SHIPPED)
        plan = replace(shipped, reviewer=declared, budget={"request_usd": request_usd})
    else:
        plan = load_plan(runbook)
    if plan.reviewer["provider"] == "human":
        raise ConfigError(
            "its reviewer is a person, who cannot be scored",
            where=str(runbook),
            fix="declare another reviewer in the runbook, or give --provider and --model",
        )
    if trouble := trouble_asking(plan.reviewer, plan.runbook.parent, os.environ):
        raise ConfigError(
            f"nothing was asked: {printable(trouble.found, longest=_LONGEST_CAUSE)}",
            where=str(runbook or "runbook review bench"),
            fix=printable(trouble.fix, longest=_LONGEST_CAUSE),
        )
    reviewer = {name: value for name, value in plan.reviewer.items() if name != "canaries"}
    return replace(plan, reviewer=reviewer)


def _declared(named: dict[str, Json], request_usd: float) -> Mapping[str, Json]:
    """What a runbook's section of these options would be. Raises ConfigError, naming the option."""
    from pydantic import ValidationError  # noqa: PLC0415 - start-up stays light

    from runbook.problems import quoted  # noqa: PLC0415 - start-up stays light
    from runbook.schema_resolve import resolve_reviewer  # noqa: PLC0415 - start-up stays light
    from runbook.schema_reviewer import SERVED, ReviewerModel  # noqa: PLC0415 - as above

    if named.get("provider") not in SERVED:
        said = f"{quoted(named['provider'])} is" if "provider" in named else "a model is named, and"
        raise ConfigError(
            f"{said} no provider of models behind an API",
            where="--provider",
            fix=f"use one of: {', '.join(SERVED)}; a program is scored with --runbook",
        )
    try:
        return resolve_reviewer(ReviewerModel.model_validate({**named, "max_usd": request_usd}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = ".".join(str(part) for part in first["loc"]).replace("_", "-")
        raise ConfigError(
            first["msg"],
            where=f"--{option}" if option else "runbook review bench",
            fix=str(first.get("ctx", {}).get("fix", "correct the option, or use --runbook")),
        ) from error


def _score(
    plan: "Plan", chosen: "Sequence[Json]", folder: Path, max_usd: float
) -> Mapping[str, Json]:
    """Ask, count, and keep the result in the folder."""
    from agent.bench import RESULT, Purse, by_topic, run_bench, tally  # noqa: PLC0415 - as above
    from agent.readiness import name_of  # noqa: PLC0415 - start-up stays light
    from runbook.artifacts import write_json  # noqa: PLC0415 - start-up stays light
    from runbook.cli.seams import reviewer_of  # noqa: PLC0415 - start-up stays light

    purse = Purse(
        folder,
        max_usd,
        request_usd=float(plan.budget.get("request_usd", 0.0)),
        unknown_requests=int(plan.budget.get("unknown_requests", 1)),
    )
    answers = run_bench(reviewer_of(plan), chosen, folder, purse)
    document = {
        "format": 1,
        "reviewer": name_of(plan.reviewer),
        "situations": len(answers),
        "total": _counted(tally(answers)),
        "topics": {topic: _counted(found) for topic, found in by_topic(answers).items()},
        "answers": [_row(one) for one in answers],
    }
    write_json(folder / RESULT, document)
    return document


def _row(one: "Answered") -> dict[str, Json]:
    return {
        **asdict(one),
        "changes": dict(one.changes),
        "false_approval": one.is_false_approval,
        "false_alarm": one.is_false_alarm,
    }


def _counted(found: "Tally") -> dict[str, Json]:
    """With the interval of each rate (Wilson, 95 %)."""
    return {
        "right": _rate(found.right),
        "false_approvals": _rate(found.false_approvals),
        "false_alarms": _rate(found.false_alarms),
        "no_answer": found.no_answer,
        "not_asked": found.not_asked,
        "usd": round(found.usd, 6),
    }


def _rate(count: "Count") -> dict[str, Json]:
    from gates.stats import wilson  # noqa: PLC0415 - start-up stays light

    return {"hits": count.hits, "of": count.of, "interval": list(wilson(count.hits, count.of))}


def _table(document: Mapping[str, Json]) -> list[str]:
    from runbook.budget import dollars  # noqa: PLC0415 - start-up stays light
    from runbook.report.safe_text import columns, one_line  # noqa: PLC0415 - start-up stays light

    rows = [_line(topic, found) for topic, found in document["topics"].items()]
    rows.append(_line("all", document["total"]))
    by_outcome: dict[str, list[Json]] = {}
    for row in document["answers"]:
        by_outcome.setdefault(row["outcome"], []).append(row)
    wrong = [
        f"  {row['situation']}: {row['action']}"
        + (f" ({one_line(row['mistake'])})" if row["mistake"] else "")
        for row in by_outcome.get("wrong", [])
    ]
    head = f"{document['reviewer']}: {document['situations']} situations, "
    return [
        f"{head}{dollars(document['total']['usd'])}",
        *columns([_HEADER, *rows]),
        *(["not right:", *wrong] if wrong else []),
        *_causes("no answer", by_outcome),
        *_causes("not asked", by_outcome),
    ]


def _causes(outcome: str, by_outcome: Mapping[str, Sequence[Json]]) -> list[str]:
    """Why, and how often; the most frequent first."""
    from runbook.report.safe_text import one_line  # noqa: PLC0415 - start-up stays light

    counts = Counter(one_line(row["cause"]) for row in by_outcome.get(outcome, []))
    most = counts.most_common(_MOST_CAUSES)
    rest = counts.total() - sum(times for _, times in most)
    lines = [f"  {times} x {cause}" for cause, times in most]
    lines += [f"  {rest} x of other causes; --json has them"] if rest else []
    return [f"{outcome}:", *lines] if lines else []


def _line(topic: str, found: Mapping[str, Json]) -> tuple[str, ...]:
    from runbook.report.figures import interval, share_of_counts  # noqa: PLC0415 - as above

    counts = ("right", "false_approvals", "false_alarms")
    right, *false = (share_of_counts(found[name]["hits"], found[name]["of"]) for name in counts)
    without = str(found["no_answer"]), str(found["not_asked"])
    return (topic, right, interval(found["right"]["interval"]), *false, *without)


def _slug(plan: "Plan") -> str:
    """A folder's name; what is declared otherwise gets another one."""
    from agent.readiness import name_of  # noqa: PLC0415 - start-up stays light
    from runbook.artifacts import canonical_json, sha256_bytes  # noqa: PLC0415 - as above

    words = re.sub(r"[^a-z0-9]+", "-", name_of(plan.reviewer).lower()).strip("-")[:60]
    return f"{words}-{sha256_bytes(canonical_json(dict(plan.reviewer)).encode())[:8]}"


def _mixed(name: str) -> str:
    """A fixed order that has nothing to do with names or topics."""
    from runbook.artifacts import sha256_bytes  # noqa: PLC0415 - start-up stays light

    return sha256_bytes(name.encode())
