"""What every benchmark starts from: a model's folder, the quickstart's plan, the machine's name."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from phases.snapshot import check_snapshot
from runbook.errors import RunbookError
from runbook.manifest import cpu, versions
from runbook.plan import Plan
from runbook.schema import load_plan

ROOT: Final = Path(__file__).parents[1]
MODEL: Final = ROOT / "workspace" / "models" / "base"


def find_setting(arguments: Sequence[str], usage: str | None) -> tuple[Path, Plan]:
    """The folder that was named, or the quickstart's model; and the quickstart's plan.

    Raises:
        SystemExit: with code 2 and the reason on stderr, where there is no such model.
    """
    if len(arguments) > 1:
        print(usage, file=sys.stderr)
        raise SystemExit(2)
    folder = Path(arguments[0]).resolve() if arguments else MODEL
    try:
        check_snapshot(folder)
        return folder, load_plan(ROOT / "specs" / "quickstart" / "runbook.yaml")
    except RunbookError as error:
        fix = "make quickstart, or name the folder of another model as the argument"
        print(f"{error.where}: {error.what}\n  fix: {fix}", file=sys.stderr)
        raise SystemExit(error.code) from error


def machine() -> str:
    """Processor, cores, threads, and the versions of what does the work."""
    names = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"{cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads\n{names}"
