"""Writes the journals that later releases must read: ``python tests/write_old_journals.py``.

Run once for each release that changes what is written; what is there is never written again.
"""

import json
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from runbook import events as ev
from runbook import journal_writer, owner, takeover
from runbook.crash_session import run_forked
from runbook.faults import Fault
from runbook.journal import facts, read_journal
from runbook.manifest import versions
from runbook.report.view import build_view
from runbook.testing import simple_gates
from runbook.workspace import Workspace

FOLDER = Path(__file__).parent / "old_journals"
CASES = {"done": (), "killed": (150,), "killed_twice_then_done": (90, 60, 0)}
"""Name -> at which durable call each executor in turn is killed; 0: it is not."""


def main() -> None:
    """Write the cases of the installed version, unless they are there."""
    target = FOLDER / versions()["runbook"]
    if target.exists():
        sys.exit(f"{target} is there; old journals are never written again")
    here = owner.this_process()
    elsewhere = replace(here, host="pod-1", machine="", boot="0" * 8)
    with TemporaryDirectory() as scratch:
        for name, kills in CASES.items():
            root = Path(scratch) / name
            with ExitStack() as patched:
                for module in (owner, journal_writer, takeover):
                    patched.enter_context(patch.object(module, "this_process", lambda: elsewhere))
                for at in kills or (0,):
                    run_forked(root, simple_gates, own=Fault(at))
            shutil.copytree(root / ".runbook", target / name / ".runbook", ignore=_no_journal)
            expected = json.dumps(summary(Workspace.at(root)), indent=2, sort_keys=True)
            (target / name / "expected.json").write_text(f"{expected}\n", "utf-8")


def _no_journal(_: str, names: list[str]) -> list[str]:
    return [n for n in names if not n.startswith(("journal", "HEAD", "blobs"))]


def summary(place: Workspace) -> dict[str, object]:
    """What a journal says, in a form that must not change with later releases."""
    reading = read_journal(place)
    view = build_view(reading.entries)
    return {
        "epochs": [
            [e.number, e.why.split(" ")[0], e.closed, len(e.behind)] for e in reading.epochs
        ],
        "facts": [type(fact).__name__ for fact in facts(reading.entries)],
        "outcome": view.outcome.state,
        "exit_code": view.outcome.exit_code,
        "steps": {step.name: step.status.value for step in view.steps},
        "review_usd": view.spent.review_usd,
        "batches": sorted(
            {
                f"{f.step}/{f.attempt}/{f.key} {f.sha256}"
                for f in facts(reading.entries)
                if isinstance(f, ev.BatchCommitted)
            }
        ),
    }


if __name__ == "__main__":
    main()
