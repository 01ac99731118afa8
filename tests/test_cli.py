"""The command line: light at start-up, clear on bad input, silent on stdout unless asked."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_session import REVIEWED, call, write_runbook

from runbook.cli import app
from runbook.errors import LockedError
from runbook.takeover import open_journal
from runbook.workspace import Workspace

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "specs" / "quickstart" / "runbook.yaml"
HEAVY = {"torch", "transformers", "scipy", "numpy", "statsmodels", "ast_grep_py", "rich.live"}
"""What takes long to import."""
PASSES = {"metrics": {"score": 0.9}}
Capture = pytest.CaptureFixture[str]


def _run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own; its last line on stderr names heavy modules."""
    code = (
        "import sys, atexit\n"
        f"heavy = {HEAVY!r}\n"
        "atexit.register(lambda: print(sorted(heavy & {*sys.modules}), file=sys.stderr))\n"
        f"sys.argv = ['runbook', *{[str(a) for a in arguments]!r}]\n"
        "from runbook.cli import main\nmain()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_what_only_reads_imports_nothing_heavy(tmp_path: Path) -> None:
    """Help, status, validate, plan and review list import no library that a step or gate needs."""
    for arguments in (
        ("--help",),
        ("status", "--workspace", tmp_path),
        ("review", "list", "--workspace", tmp_path),
        ("validate", QUICKSTART),
        ("plan", QUICKSTART),
    ):
        done = _run(*arguments)
        assert (done.returncode, done.stderr.strip().split("\n")[-1]) == (0, "[]"), arguments


def test_what_tells_of_a_session_imports_nothing_heavy(tmp_path: Path, capfd: Capture) -> None:
    """Nor is one imported where there are verdicts, a review and a report to tell of."""
    spec = write_runbook(tmp_path, REVIEWED)
    assert call(capfd, "run", spec, "--workspace", tmp_path / "ws").code == 3

    for verb in (("status",), ("status", "--json"), ("review", "list")):
        done = _run(*verb, "--workspace", tmp_path / "ws")
        assert (done.returncode, done.stderr.strip().split("\n")[-1]) == (0, "[]"), verb


def test_a_session_runs_and_a_second_run_only_tells_of_it(tmp_path: Path, capfd: Capture) -> None:
    """The first run ends with the status; the second says all is done and appends nothing."""
    spec = write_runbook(tmp_path, PASSES)
    place = tmp_path / "ws"

    first = call(capfd, "run", spec, "--workspace", place)

    assert (first.code, first.out) == (0, "")
    assert "a: 0 of 2 steps done" in first.err
    assert "all done" in first.err
    before = Workspace.at(place).segment(1).read_bytes()

    second = _run("run", spec, "--workspace", place)

    assert (second.returncode, second.stdout) == (0, "")
    assert second.stderr.startswith("This session was done before: nothing is run again.")
    assert "report.md" in second.stderr
    assert second.stderr.strip().split("\n")[-1] == "[]"
    assert Workspace.at(place).segment(1).read_bytes() == before


def test_the_end_of_a_run_is_what_status_says(tmp_path: Path, capfd: Capture) -> None:
    """One text tells how the session stands, whoever asks."""
    spec = write_runbook(tmp_path, PASSES)
    ran = call(capfd, "run", spec, "--workspace", tmp_path / "ws")

    told = call(capfd, "status", "--workspace", tmp_path / "ws")

    assert told.code == 0
    assert len(told.err.splitlines()) > 3
    assert ran.err.endswith(told.err)


def test_a_failing_step_ends_with_its_code_and_the_command_that_goes_on(
    tmp_path: Path, capfd: Capture
) -> None:
    """A stop leads to the exact command to type next."""
    spec = write_runbook(tmp_path, {"trouble": {"kind": "raise", "at": 0}})

    done = call(capfd, "run", spec, "--workspace", tmp_path / "ws", "--set", "a.trouble.at=1")

    assert done.code == 1
    assert "the fake step was told to fail" in done.err
    assert f"runbook run {spec} --workspace {tmp_path / 'ws'} --set a.trouble.at=1" in done.err


def test_status_as_json_is_one_object_of_facts(tmp_path: Path, capfd: Capture) -> None:
    """A program reads the outcome and each step; nothing is on stderr."""
    spec = write_runbook(tmp_path, PASSES)
    call(capfd, "run", spec, "--workspace", tmp_path / "ws")

    told = call(capfd, "status", "--workspace", tmp_path / "ws", "--json")

    (facts,) = told.lines
    assert told.err == ""
    assert call(capfd, "run", spec, "--workspace", tmp_path / "ws", "--json").lines == [facts]
    assert facts["workspace"] == str(tmp_path / "ws")
    assert (facts["outcome"]["state"], facts["outcome"]["exit_code"]) == ("done", 0)
    assert [(s["name"], s["status"]) for s in facts["steps"]] == [
        ("a", "passed"),
        ("b", "passed"),
        ("c", "skipped"),
    ]


def test_a_workspace_without_a_session_has_a_status(tmp_path: Path, capfd: Capture) -> None:
    """It is no error: a line says that nothing was begun, and nothing is made."""
    place = tmp_path / "none"

    told = call(capfd, "status", "--workspace", place)

    assert told.code == 0
    assert f"{place}: no session yet" in told.err
    assert call(capfd, "status", "--workspace", place, "--json").lines[0]["run_id"] == ""
    assert not place.exists()


def test_the_plan_shows_steps_thresholds_budget_and_what_is_skipped(
    tmp_path: Path, capfd: Capture
) -> None:
    """A person sees on stderr what will happen and what each gate asks for."""
    told = call(capfd, "plan", write_runbook(tmp_path, PASSES))

    rows = [line.split() for line in told.err.splitlines()]
    assert (told.code, told.out) == (0, "")
    assert ["budget:", "1", "h", "30", "min", "of", "wall", "clock"] in rows
    fake = "runbook.testing:fake_phase"
    assert ["A", "a", fake, "2", "score", ">=", "0.5", "(statistic)"] in rows
    assert ["B", "b", fake, "0", "none"] in rows
    assert ["C", "(skipped)", "c", fake, "0", "none"] in rows


def test_the_plan_shows_where_a_retry_starts_and_a_second_look(capfd: Capture) -> None:
    """What the quickstart declares beyond thresholds is shown as well."""
    told = call(capfd, "plan", QUICKSTART)

    assert "1, from sft" in told.err
    assert "runaway_rate < 0.05 (rate, n >= 100)" in told.err
    assert "if underpowered, a second look with raw_rows: 400" in told.err


def test_the_plan_as_json_is_one_object_a_step(tmp_path: Path, capfd: Capture) -> None:
    """Each line holds a step with its gate, ranges and fingerprint; the last is of the whole."""
    spec = write_runbook(tmp_path, {**PASSES, "t": 0.7, "batches": 2})

    told = call(capfd, "plan", spec, "--json")

    first, second, third, whole = told.lines
    assert told.err == ""
    assert (whole["plan"], whole["seconds"]) == ("small", {"low": 0.0, "high": None})
    assert [s["enabled"] for s in (first, second, third)] == [True, True, False]
    (criterion,) = first["gate"]["criteria"]
    assert (criterion["metric"], criterion["threshold"]) == ("score", ">= 0.5")
    assert first["adjustable"]["t"] == {"min": 0.1, "max": 1.0}
    assert (second["gate"], second["inputs"], second["retries"]) == (None, ["a"], 0)
    assert len({s["fingerprint"] for s in (first, second, third)}) == 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "does not exist"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b"\xff"), "is not UTF-8"),
        (lambda path: path.write_text("runbook: 1\nnmae: x\n"), "did you mean 'name'?"),
    ],
)
def test_a_bad_runbook_ends_with_2_and_its_name(
    make: Callable[[Path], object], said: str, tmp_path: Path, capfd: Capture
) -> None:
    """The error names the file and what to do; nothing is written, stdout stays empty."""
    spec = tmp_path / "runbook.yaml"
    make(spec)

    for verb in (["validate"], ["plan"], ["run", "--workspace", tmp_path / "ws"]):
        told = call(capfd, *verb, spec)

        assert (told.code, told.out) == (2, "")
        assert told.err.startswith(f"error: {spec}:")
        assert said in told.err
        assert "fix: " in told.err
        assert "Traceback" not in told.err
    assert not (tmp_path / "ws").exists()


def test_an_error_as_json_says_what_where_fix_and_code(tmp_path: Path, capfd: Capture) -> None:
    """A program that asked for JSON is told of the error on stdout, a person on stderr."""
    told = call(capfd, "plan", "--json", tmp_path / "none.yaml")

    (error,) = told.lines
    assert error["exit_code"] == told.code == 2
    assert error["error"].endswith("does not exist")
    assert error["where"] == f"{tmp_path / 'none.yaml'}:1:1"
    assert error["fix"] in told.err


@pytest.mark.parametrize("verb", [["status"], ["review", "list"]])
def test_a_workspace_that_cannot_be_read_is_named(
    verb: list[str], tmp_path: Path, capfd: Capture
) -> None:
    """A file in the workspace's place is a wrong option, not a fault of the program."""
    (tmp_path / "ws").write_text("")

    told = call(capfd, *verb, "--workspace", tmp_path / "ws")

    assert told.code == 2
    assert str(tmp_path / "ws") in told.err
    assert "Traceback" not in told.err


def test_a_held_workspace_ends_with_7(tmp_path: Path, capfd: Capture) -> None:
    """A second executor is refused and told who holds the workspace."""
    spec = write_runbook(tmp_path, PASSES)
    place = Workspace.at(tmp_path / "ws")
    place.create()

    with open_journal(place):
        told = call(capfd, "run", spec, "--workspace", place.root, "--json")

    assert told.code == told.lines[0]["exit_code"] == LockedError.code == 7
    assert "holds the workspace" in told.err


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("runbook.schema.load_plan", fail)


def test_an_unforeseen_error_ends_with_1_and_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    """One line says that it is the program's own fault; the traceback follows."""
    _failing(monkeypatch, ZeroDivisionError("oh no"))

    told = call(capfd, "plan", "x.yaml", "--json")

    assert told.code == 1
    first, second, *_ = told.err.splitlines()
    assert first == "internal error, a fault of runbook itself: ZeroDivisionError: oh no"
    assert second.startswith("Traceback")
    assert told.lines[0]["exit_code"] == 1


def test_an_interrupt_before_the_lock_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Capture
) -> None:
    """Ctrl-C ends the command at once while nothing was begun."""
    _failing(monkeypatch, KeyboardInterrupt())

    told = call(capfd, "run", "x.yaml", "--workspace", tmp_path / "ws")

    assert told.code == 130
    assert "Traceback" not in told.err


def test_the_environment_stands_in_for_arguments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Capture
) -> None:
    """RUNBOOK_SET holds one override a line, so that a value may hold blanks."""
    spec = write_runbook(tmp_path, {"batches": 2, "word": "x"})
    sets = ["a.batches=3", 'a.word="two words"']
    given = call(capfd, "validate", spec, "--json", *(p for s in sets for p in ("--set", s)))
    bare = call(capfd, "validate", spec, "--json")
    monkeypatch.setenv("RUNBOOK_SPEC", str(spec))
    monkeypatch.setenv("RUNBOOK_JSON", "1")
    monkeypatch.setenv("RUNBOOK_SET", "\n".join([*sets, ""]))

    told = call(capfd, "validate")

    assert told.lines == given.lines
    assert told.lines != bare.lines


def test_every_argument_has_its_twin_in_the_environment() -> None:
    """What can be given as a flag can be given as RUNBOOK_..., and the help says so."""
    commands = {"": typer.main.get_command(app)}
    seen = 0
    while commands:
        name, command = commands.popitem()
        commands |= {f"{name} {n}": c for n, c in getattr(command, "commands", {}).items()}
        for parameter in command.params:
            told = f"{parameter.envvar} {getattr(parameter, 'help', '')}"
            assert "RUNBOOK_" in told, f"{name} {parameter.name}"
            seen += 1
    assert seen > 10


@pytest.mark.parametrize("verb", [("status",), ("review", "decide", "a-1")])
def test_an_argument_that_is_no_utf8_is_refused(capfd: Capture, verb: tuple[str, ...]) -> None:
    """Bytes that no journal could hold end with 2 before anything is touched."""
    told = call(capfd, *verb, "--workspace", "ws_\udcff")
    assert told.code == 2
    assert "is not valid UTF-8" in told.err


def test_the_exit_code_is_right_where_nobody_can_read(tmp_path: Path) -> None:
    """What a relauncher goes by, of a finished run and of an error, with every stream full."""
    (tmp_path / "good").mkdir()
    good = write_runbook(tmp_path / "good", PASSES)
    for spec, expected in ((good, 0), (tmp_path / "none.yaml", 2)):
        command = [sys.executable, "-m", "runbook", "run", str(spec), "--json"]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*command, "--workspace", str(tmp_path / "ws")],
                stdout=full,
                stderr=full,
                check=False,
                cwd=ROOT,
            )
        assert done.returncode == expected


def test_an_answer_that_cannot_be_written_is_no_success(tmp_path: Path) -> None:
    """Of a command that only answers; and one that can be written comes whole, through a pipe."""
    command = [sys.executable, "-m", "runbook", "status", "--json", "--workspace", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(command, stdout=full, check=False, cwd=ROOT).returncode == 1
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, cwd=ROOT)

    assert done.returncode == 0
    assert json.loads(done.stdout)["outcome"]["state"] == "none"


@pytest.mark.parametrize("verb", [("status", "--json"), ("logs",)])
@pytest.mark.parametrize("stdout", ["full", "closed"])
def test_a_stdout_that_takes_nothing_is_no_fault_of_runbook(
    tmp_path: Path, capfd: Capture, verb: tuple[str, ...], stdout: str
) -> None:
    """What, where and a fix are told without a traceback; exit code 1."""
    spec, place = write_runbook(tmp_path, PASSES), tmp_path / "ws"
    assert call(capfd, "run", spec, "--workspace", place).code == 0
    Workspace.at(place).log("a").write_text("one\n")
    command = [sys.executable, "-m", "runbook", *verb, "--workspace", str(place)]
    sent = {"full": ">/dev/full", "closed": ">&-"}[stdout]

    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {sent}', "sh", *command],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
    )

    assert done.returncode == 1
    assert "error: stdout: the answer cannot be written: " in done.stderr
    assert "\n  fix: " in done.stderr
    assert "internal error" not in done.stderr


def _interrupted_at_import(
    folder: Path, verb: str, number: int, before: int
) -> "subprocess.CompletedProcess[str]":
    """The command whose first import of a library sends its own process the signal."""
    stub = f"import os, sys\nos.kill(os.getpid(), {number})\nsys.exit('it went on')\n"
    (folder / "typer.py").write_text(stub)
    disposition = signal.signal(number, before)
    try:
        return subprocess.run(
            [sys.executable, "-m", "runbook", verb],
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
    finally:
        signal.signal(number, disposition)


@pytest.mark.parametrize("verb", ["run", "launch", "resume"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_a_signal_before_the_executor_is_a_pause(
    tmp_path: Path, verb: str, number: int, code: int
) -> None:
    """Nothing has begun, so the exit code says that the same command goes on, and no traceback."""
    done = _interrupted_at_import(tmp_path, verb, number, signal.SIG_DFL)

    assert (done.returncode, done.stderr) == (code, "")


def test_a_signal_ends_other_verbs_and_no_deaf_process(tmp_path: Path) -> None:
    """What only shows ends as every command does; under nohup a hangup stays ignored."""
    shown = _interrupted_at_import(tmp_path, "status", signal.SIGTERM, signal.SIG_DFL)
    deaf = _interrupted_at_import(tmp_path, "run", signal.SIGHUP, signal.SIG_IGN)

    assert shown.returncode == -signal.SIGTERM
    assert deaf.stderr == "it went on\n"
