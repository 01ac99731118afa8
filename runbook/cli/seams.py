"""What the executor is given of the other folders: the judge, the reviewer, the DRY sentinel.

Rule: ``gates``, ``agent`` and ``phases`` are imported when they are first asked for. Whoever forks
sessions imports ``gates.judge`` before, or every fork would do it again.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from runbook.contract import Gate, Json, Judgement, Metric, Reviewer, ReviewRequest
from runbook.executor import Gates
from runbook.plan import Plan
from runbook.step_function import find_module


def gates_of(root: Path) -> Gates:
    """The judge of a workspace's gates."""

    def judge(gate: Gate, metrics: tuple[Metric, ...], final: bool) -> Judgement:  # noqa: FBT001 - the seam's shape
        from gates.judge import judge_gate  # noqa: PLC0415 - a session may have no gate

        return judge_gate(gate, metrics, root, final=final)

    return judge


def reviewer_of(plan: Plan) -> Reviewer:
    """Who answers reviews. A program named by a path starts from the runbook's folder."""
    from runbook.redact import Redactor, session_secrets  # noqa: PLC0415 - as gates and agent

    declared = plan.reviewer
    redact = Redactor(session_secrets(os.environ, plan.environment)).data
    match declared["provider"]:
        case "human":
            return _person(redact)
        case "command":
            return _with_canaries(_program(plan, redact), declared)
        case _:
            return _with_canaries(_model(declared, redact), declared)


def _person(redact: Callable[[bytes], bytes]) -> Reviewer:
    from agent.human import ask  # noqa: PLC0415 - only where a person answers

    def lay_down(request: ReviewRequest) -> None:
        ask(request, redact)

    return lay_down


def _with_canaries(ask: Reviewer, declared: Mapping[str, Json]) -> Reviewer:
    if "canaries" not in declared:
        return ask
    from agent.canaries import Canaries, dearest, with_canaries  # noqa: PLC0415 - where declared

    return with_canaries(ask, Canaries(**declared["canaries"]), dearest(declared))


def _program(plan: Plan, redact: Callable[[bytes], bytes]) -> Reviewer:
    from agent.command import reviewer  # noqa: PLC0415 - only where one is declared

    program, *arguments = plan.reviewer["command"]
    if "/" in program:
        program = str(plan.runbook.parent / program)
    return reviewer([program, *arguments], plan.reviewer["timeout_s"], redact)


def _model(declared: Mapping[str, Json], redact: Callable[[bytes], bytes]) -> Reviewer:
    from agent.model_reviewer import reviewer  # noqa: PLC0415 - only where one is declared
    from agent.provider import Served  # noqa: PLC0415 - see above

    served = [declared, declared["fallback"]] if "fallback" in declared else [declared]
    models = [Served.of(model) for model in served]
    return reviewer(models, tries=declared["tries"], redact=redact)


def dry_findings(plan: Plan) -> list[str]:
    """What the DRY sentinel finds in the project's phases and in the runbook's own code."""
    from gates.dry import find_violations  # noqa: PLC0415 - asked for before each step, not before

    home = phases_home()
    return [str(finding) for finding in find_violations(phase_sources(home, plan), home)]


def phases_home() -> Path:
    """The folder of the project's phases."""
    import phases  # noqa: PLC0415 - see above

    return Path(phases.__path__[0])


def phase_sources(home: Path, plan: Plan | None = None) -> list[str]:
    """The Python files of the phases, of the runbook's folder and of its steps' modules.

    A step's own package beside the runbook is taken whole, whatever lies in it; of a module that
    is installed elsewhere the file alone.
    """
    found = python_files(str(home))
    if plan is None:
        return found
    beside = os.fspath(plan.runbook.parent)
    with os.scandir(beside or ".") as entries:
        found += [entry.path for entry in entries if entry.name.endswith(".py")]
    modules = {step.function.partition(":")[0] for step in plan.steps}
    for package in {module.partition(".")[0] for module in modules}:
        own = os.path.join(beside, package)  # noqa: PTH118 - asked before each step
        found += python_files(own)
        top = find_module(package, plan.runbook.parent)
        if top is None or os.path.dirname(top) not in {str(home), own}:  # noqa: PTH120 - as above
            # Not of a package that is taken whole.
            within = {module for module in modules if module.partition(".")[0] == package}
            files = [find_module(module, plan.runbook.parent) for module in within]
            found += [os.fspath(file) for file in files if file]
    return found


def python_files(folder: str) -> list[str]:
    """Every ``*.py`` under a folder, links followed as an import would, each folder once."""
    found: list[str] = []
    entered: set[tuple[int, int]] = set()
    folders = [folder]
    while folders:
        place = folders.pop()
        try:
            status = os.stat(place)  # noqa: PTH116 - asked before each step
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.endswith(".py"):
                        found.append(entry.path)
                    elif entry.name.isidentifier() and entry.name != "__pycache__":
                        folders += [entry.path] if entry.is_dir() else []
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found
