"""The command line: light at start-up, clear on bad input."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "specs" / "quickstart" / "runbook.yaml"


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(sorted({'torch','scipy','transformers'} & "
        "set(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['runbook', *{list(arguments)!r}]\n"
        "from runbook.cli import main\nmain()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_help_status_validate_and_plan_import_nothing_heavy(tmp_path: Path) -> None:
    """Neither torch nor scipy is imported by what only reads."""
    for arguments in (
        ("--help",),
        ("status", "--workspace", str(tmp_path)),
        ("validate", str(QUICKSTART)),
        ("plan", str(QUICKSTART)),
    ):
        done = _run(*arguments)
        assert (done.returncode, done.stderr.strip().split("\n")[-1]) == (0, "[]"), arguments


def test_a_bad_runbook_ends_with_2_and_its_place(tmp_path: Path) -> None:
    """The error names file, line and column, and nothing is touched."""
    bad = tmp_path / "runbook.yaml"
    bad.write_text("runbook: 1\nnmae: x\n")
    done = _run("run", str(bad), "--workspace", str(tmp_path / "ws"))
    assert done.returncode == 2
    assert f"{bad}:2:1" in done.stderr
    assert not (tmp_path / "ws").exists()
