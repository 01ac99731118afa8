"""The small session that the crash tests disturb: a retry, a paid review, an input, two gates.

It is deterministic, so whatever was done to it in between, its data, verdicts and spend must come
out as those of a session that nobody disturbed.
"""

import os
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from runbook import events as ev
from runbook import faults
from runbook.artifacts import canonical_json, sha256_bytes, write_json
from runbook.budget import spent
from runbook.contract import Criterion, Decision, Gate, Range, ReviewRequest
from runbook.executor import Gates, Seams, run_session
from runbook.faults import Fault
from runbook.journal import facts, read_entries
from runbook.plan import Adjustment, Plan
from runbook.testing import generations, make_plan, make_step
from runbook.workspace import Workspace

_GATE = Gate((Criterion("score", "statistic", at_least=0.5),))
REQUEST_USD = 0.25
SIGKILLED = -signal.SIGKILL


def crash_plan(environment: Mapping[str, str] | None = None) -> Plan:
    """Its plan; ``environment`` is its children's."""
    return make_plan(
        make_step(
            "data",
            gate=_GATE,
            params={"batches": 2, "metrics": {"score": [0.1, 0.2, 0.9]}, "t": 0.7},
            adjustable={"t": Range(0.1, 1.0)},
            adjustments=(Adjustment("score", {"t": {"add": -0.2}}, "cooler"),),
        ),
        make_step("train", gate=_GATE, inputs=("data",), params={"metrics": {"score": 0.9}}),
        name="crash test",
        environment=dict(environment or {}),
        budget={"request_usd": REQUEST_USD},
    )


def paid_reviewer(request: ReviewRequest) -> Decision | None:
    """Costs money at each question, and keeps its answer on disk before it gives it."""
    if "retry" not in request.allowed:
        return None
    path = request.workspace / request.path / "decision.json"
    if not path.is_file():
        key = sha256_bytes(canonical_json([request.run_id, request.review_id]).encode())
        if request.account.reserve(key):
            return None
        write_json(path, {"key": key, "action": "retry"})
        request.account.settle(key)
    return Decision("retry", "again", "the crash test", person=False)


@dataclass(frozen=True)
class Result:
    """What must not depend on what happened in between."""

    data: tuple[tuple[str, int, str, str], ...]
    """Step, attempt, artifact and SHA-256."""
    verdicts: tuple[tuple[str, int, str], ...]
    decisions: tuple[tuple[str, str], ...]
    review_usd: float
    done: int | None


def result_of(workspace: Workspace) -> Result:
    known = facts(read_entries(workspace))
    finished = [f for f in known if isinstance(f, ev.StepFinished)]
    judged = [f for f in known if isinstance(f, ev.GateJudged)]
    decided = [f for f in known if isinstance(f, ev.ReviewDecided)]
    done = [f.exit_code for f in known if isinstance(f, ev.SessionDone)]
    return Result(
        tuple((f.step, f.attempt, a.name, a.sha256) for f in finished for a in f.artifacts),
        tuple((f.step, f.attempt, f.verdict) for f in judged),
        tuple((f.review_id, f.action) for f in decided),
        round(spent(known).review_usd, 6),
        done[0] if len(done) == 1 else None,
    )


def without_spend(result: Result) -> Result:
    return replace(result, review_usd=0.0)


def requests_cut_short(workspace: Workspace) -> int:
    """Paid requests whose end nobody saw: each may cost one more."""
    known = facts(read_entries(workspace))
    sent = sum(isinstance(f, ev.RequestSent) for f in known)
    return sent - sum(isinstance(f, ev.RequestSettled) for f in known)


def made_twice(workspace: Workspace, made_before: int, committed: set[tuple[str, int, str]]) -> int:
    """Batches made since that had been committed by then, or before a child was lost."""
    made = generations(workspace.root)
    again = {batch for batch, times in Counter(made).items() if times > 1}
    return len((committed & set(made[made_before:])) | (_kept_by_losses(workspace) & again))


def _kept_by_losses(workspace: Workspace) -> set[tuple[str, int, str]]:
    """The batches that were committed when a child of their step was lost."""
    committed: set[tuple[str, int, str]] = set()
    kept: set[tuple[str, int, str]] = set()
    for fact in facts(read_entries(workspace)):
        match fact:
            case ev.BatchCommitted():
                committed.add((fact.step, fact.attempt, fact.key))
            case ev.StepInterrupted():
                kept |= {batch for batch in committed if batch[0] == fact.step}
    return kept


def committed_batches(workspace: Workspace) -> set[tuple[str, int, str]]:
    known = facts(read_entries(workspace))
    return {(f.step, f.attempt, f.key) for f in known if isinstance(f, ev.BatchCommitted)}


def run_forked(
    root: Path, gates: Gates, *, own: Fault | None = None, childs: Fault | None = None
) -> int:
    """Run the session, or go on with it, in a fork of this process; its exit code.

    A negative code is the signal that it died of. Output is dropped.
    """
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            # What the person's own machine remembers of real runs is not to learn from these.
            os.environ["XDG_STATE_HOME"] = str(root.with_name(f"{root.name}.state"))
            if own:
                faults.install(own)
            plan = crash_plan(childs.environment() if childs else None)
            code = run_session(plan, Workspace.at(root), Seams(gates, paid_reviewer))
        except Exception as error:  # noqa: BLE001 - the exit code is all that is told
            code = int(getattr(error, "code", 70))
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
