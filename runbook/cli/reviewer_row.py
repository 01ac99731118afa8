"""The doctor's row on the declared reviewer: key, program, money.

Rule: what is missing here forbids no start, since a review without an answer waits for a person.
What is looked at stands in ``agent.readiness``; here it is put into words, escaped.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace

from agent.readiness import Shortfall, name_of, shortfall, trouble_asking, why_ready
from runbook.bootstrap import Check, State
from runbook.budget import Limits, Spent, dollars, review_left
from runbook.contract import Json
from runbook.plan import Plan
from runbook.problems import printable
from runbook.workspace import Workspace

_ROW = "reviewer"
_LONGEST = 1000
"""Characters of what was found, and of what mends it."""


def check_reviewer(plan: Plan, workspace: Workspace, environ: Mapping[str, str]) -> Check:
    """Whether each of the declared ones could be asked, and a request be paid."""
    declared = plan.reviewer
    if declared["provider"] == "human":
        return Check(_ROW, State.OK, "human: each review waits for a person")
    asked = [declared, *([declared["fallback"]] if "fallback" in declared else [])]
    kept_off = [trouble_asking(one, plan.runbook.parent, environ) for one in asked]
    troubles = [t for t in kept_off if t]
    limits, request_usd = _limits(plan), float(plan.budget.get("request_usd", 0.0))
    found = [(one, shortfall(one, asked, limits, request_usd)) for one in asked]
    short = [(one, less) for one, less in found if less]
    if not (troubles or short):
        told = "; ".join(f"{printable(name_of(one))}: {why_ready(one)}" for one in asked)
        return Check(_ROW, State.OK, told)
    told = "; ".join(printable(t.found, longest=_LONGEST) for t in troubles)
    if len(troubles) == len(asked):
        told = f"each review would wait for a person: {told}"
    elif troubles:
        who = (
            "only the fallback could be asked" if kept_off[0] else "the fallback could not be asked"
        )
        told = f"{who}: {told}"
    parts = [told, *(_unpaid(one, less, plan) for one, less in short)]
    fixes = [printable(t.fix, longest=_LONGEST) for t in troubles]
    fixes += [_raising(one, less, plan, workspace) for one, less in short]
    told = "; ".join(part for part in parts if part)
    return Check(_ROW, State.WARN, told, "\n".join(dict.fromkeys(fixes)))


def _limits(plan: Plan) -> dict[str, float]:
    """What each limit of the budget allows the first request, by its key in the runbook."""
    limits = Limits.of(plan.budget)
    alone = {"review_usd": replace(limits, usd=None), "usd": replace(limits, review_usd=None)}
    left = {f"budget.{name}": review_left(limit, Spent()) for name, limit in alone.items()}
    return {name: usd for name, usd in left.items() if usd < math.inf}


def _unpaid(declared: Mapping[str, Json], short: Shortfall, plan: Plan) -> str:
    """What is not sent, and by which limit."""
    if short.left < short.least:
        more = "" if short.least == short.most else " or more"
        told = f"no request would be sent: one may cost {dollars(short.least)}{more}"
    else:
        told = f"a long dossier would not be sent: it may cost up to {dollars(_cents(short.most))}"
    limit = f"{short.limit} is {dollars(short.left)}"
    if held := _held_back(short, plan):
        limit = f"{short.limit} is {dollars(float(plan.budget['usd']))}, with {dollars(held)} held"
        limit = f"{limit} back for the end"
    return f"{printable(name_of(declared))}: {told}, and {limit}"


def _raising(
    declared: Mapping[str, Json], short: Shortfall, plan: Plan, workspace: Workspace
) -> str:
    """What lets the longest request through."""
    need = f"{_cents(short.most + _held_back(short, plan)):g}"
    name = short.limit
    fix = f"raise {name} to {need}"
    if name != "max_usd":
        kept = [given for given in plan.overrides if not given.startswith(f"{name}=")]
        overrides = [word for given in (*kept, f"{name}={need}") for word in ("--set", given)]
        place = [str(plan.runbook), "--workspace", str(workspace.root)]
        fix = shlex.join(["runbook", "run", *place, *overrides])
    if "usd_per_mtok" in declared:
        fix += "   # or lower context_tokens or max_output_tokens"
    return printable(fix, longest=_LONGEST)


def _held_back(short: Shortfall, plan: Plan) -> float:
    """Of the limit, for the steps that end the session."""
    if short.limit != "budget.usd":
        return 0.0
    return float(plan.budget["usd"]) - short.left


def _cents(usd: float) -> float:
    return math.ceil(usd * 100) / 100
