"""What the executor is given of the other folders: the judge, the reviewer, the DRY sentinel.

Rule: ``gates``, ``agent`` and ``phases`` are imported when they are first asked for. Whoever forks
sessions imports ``gates.judge`` before, or every fork would do it again.
"""

import os
from pathlib import Path

from runbook.contract import Gate, Judgement, Metric, Reviewer
from runbook.executor import Gates
from runbook.plan import Plan


def gates_of(root: Path) -> Gates:
    """The judge of a workspace's gates."""

    def judge(gate: Gate, metrics: tuple[Metric, ...], final: bool) -> Judgement:  # noqa: FBT001 - the seam's shape
        from gates.judge import judge_gate  # noqa: PLC0415 - a session may have no gate

        return judge_gate(gate, metrics, root, final=final)

    return judge


def reviewer_of(plan: Plan) -> Reviewer:
    """Who answers reviews. A program named by a path starts from the runbook's folder."""
    if plan.reviewer["provider"] == "command":
        from agent.command import reviewer  # noqa: PLC0415 - only where one is declared
        from runbook.redact import Redactor, session_secrets  # noqa: PLC0415 - see above

        program, *arguments = plan.reviewer["command"]
        if "/" in program:
            program = str(plan.runbook.parent / program)
        redactor = Redactor(session_secrets(os.environ, plan.environment))
        return reviewer([program, *arguments], plan.reviewer["timeout_s"], redactor.data)
    from agent.human import ask  # noqa: PLC0415 - only where a person answers

    return ask


def dry_findings(plan: Plan) -> list[str]:
    """What the DRY sentinel finds in the project's phases and in modules beside the runbook.

    A step's own package there is read whole, whatever lies in it.
    """
    import phases  # noqa: PLC0415 - asked for before each step, and not at the start
    from gates.dry import find_violations  # noqa: PLC0415 - see above

    home = Path(phases.__path__[0])
    beside = plan.runbook.parent
    packages = {step.function.partition(":")[0].partition(".")[0] for step in plan.steps}
    own = [*beside.glob("*.py"), *(p for name in packages for p in beside.glob(f"{name}/**/*.py"))]
    return [str(finding) for finding in find_violations([*home.glob("*.py"), *own], home)]
