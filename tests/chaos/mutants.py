"""Protective lines taken away, one at a time, in a copy of the tree: each must be missed by a test.

``MUTANTS`` names each one: what is replaced, and the tests that must then fail. A text that is not
found exactly once is an error, so that an edit of the product cannot make a mutant empty.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("runbook", "agent", "gates", "phases", "tests", "specs", "workspace_template")
LIMIT_S = 120.0
_CUTS = "tests/chaos/test_power_loss.py::test_a_few_cuts_lose_nothing"
_JOURNAL = "tests/test_journal.py::test_"
_BUDGET = "tests/test_budget.py::test_"
_ARTIFACTS = "tests/test_artifacts.py::test_"
_EXECUTOR = "tests/test_executor.py::test_"


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    killers: tuple[str, ...]
    """The pytest nodes of which one at least must fail."""


MUTANTS = (
    Mutant(
        "no fsync of a file or folder",
        "runbook/durable.py",
        "    os.fsync(fd)\n",
        "",
        (_CUTS,),
    ),
    Mutant(
        "no fsync of a folder",
        "runbook/durable.py",
        "        fsync(fd, path)\n    finally:",
        "        pass\n    finally:",
        (_CUTS,),
    ),
    Mutant(
        "no fsync of a journal line",
        "runbook/journal_writer.py",
        "                durable.fsync(self._fd, self._path)\n",
        "",
        (_CUTS,),
    ),
    Mutant(
        "no fsync of the folder of a new epoch",
        "runbook/journal_writer.py",
        "                    durable.fsync_path(self._path.parent)\n",
        "                    pass\n",
        (_JOURNAL + "a_new_epochs_name_is_durable_before_its_head",),
    ),
    Mutant(
        "no fsync of an artifact before its rename",
        "runbook/artifacts.py",
        "                durable.fsync(fd, path)\n",
        "",
        (_CUTS,),
    ),
    Mutant(
        "no fsync of the folder after a rename",
        "runbook/artifacts.py",
        "    with storage_errors(folder):\n        durable.fsync_path(folder)\n    return {name",
        "    return {name",
        (_CUTS,),
    ),
    Mutant(
        "the start makes no folder durable",
        "runbook/artifacts.py",
        "            stale += found\n            durable.fsync_path(Path(root))\n",
        "            stale += found\n",
        (_ARTIFACTS + "what_a_killed_writer_renamed_is_made_durable",),
    ),
    Mutant(
        "a folder without its marker",
        "runbook/artifacts.py",
        '    write_json(folder / COMPLETE, {"files": files})\n',
        "",
        (_ARTIFACTS + "a_folder_is_complete_once_declared",),
    ),
    Mutant(
        "a request leaves before it is on record",
        "runbook/ledger.py",
        "        self._append(ev.RequestSent(review_id, key, sent + 1, usd))\n",
        "",
        (_BUDGET + "a_request_is_on_record_before_it_leaves",),
    ),
    Mutant(
        "no bound on requests without a known end",
        "runbook/ledger.py",
        "        if unknown > self._unknown_requests:\n",
        "        if unknown > 99:\n",
        (_BUDGET + "a_request_whose_end_is_unknown_is_repeated_once",),
    ),
    Mutant(
        "a request beyond what is left",
        "runbook/ledger.py",
        "        if not 0.0 <= usd <= left:\n",
        "        if False:\n",
        (_BUDGET + "a_request_is_on_record_before_it_leaves",),
    ),
    Mutant(
        "a lease that is not on record",
        "runbook/ledger.py",
        "        self._append(ev.TimeLeased(used, ahead))\n",
        "",
        (_BUDGET + "a_killed_executors_lease_is_spent_whole",),
    ),
    Mutant(
        "a step begun without a lease",
        "runbook/supervision.py",
        '        self._terminal, self._too_long = terminal, ""\n        self._check_budget()\n',
        '        self._terminal, self._too_long = terminal, ""\n',
        (_BUDGET + "no_step_begins_without_a_lease",),
    ),
    Mutant(
        "the reserve is spent on the way",
        "runbook/budget.py",
        "    return least - (0.0 if terminal else limits.reserve_s)\n",
        "    return least\n",
        (_BUDGET + "the_terminal_reserve_is_for_terminal_steps_alone",),
    ),
    Mutant(
        "a review's key without its question",
        "agent/command.py",
        "of.attempt, self.prompt, self.command]",
        "of.attempt, self.command]",
        ("tests/test_command_reviewer.py::TestRepeated::test_another_question_is_asked_anew",),
    ),
    Mutant(
        "HEAD is not looked at",
        "runbook/journal.py",
        "        self._check_head(number, lines, end)\n",
        "        pass\n",
        (_JOURNAL + "a_lost_line_below_head_is_refused",),
    ),
    Mutant(
        "HEAD's line may be another",
        "runbook/journal.py",
        "        if seq < len(self._lines) - len(lines) or self._lines[seq] != sha256:\n",
        "        if False:\n",
        (_JOURNAL + "another_line_in_place_of_heads_is_refused",),
    ),
    Mutant(
        "HEAD may be missing",
        "runbook/journal.py",
        "            if len(lines) > 1 and not head.exists():\n",
        "            if False:\n",
        (_JOURNAL + "a_missing_head_is_refused",),
    ),
    Mutant(
        "a superseded writer is not stopped before its line",
        "runbook/journal_writer.py",
        "        self.check_fence()\n        line, entry",
        "        line, entry",
        (_JOURNAL + "a_superseded_writer_adds_no_byte_at_its_next_line",),
    ),
    Mutant(
        "a superseded writer reports its line",
        "runbook/journal_writer.py",
        "            self.check_fence()\n            self._lines += 1\n",
        "            self._lines += 1\n",
        (_JOURNAL + "what_a_superseded_writer_adds_is_evidence",),
    ),
    Mutant(
        "a superseded writer names its files",
        "runbook/durable.py",
        "            check()\n",
        "            pass\n",
        ("tests/test_takeover.py::test_a_file_of_one_that_slept_does_not_replace_the_next_ones",),
    ),
    Mutant(
        "a superseded executor lets its child work on",
        "runbook/supervision.py",
        "        self._check_fence()\n",
        "",
        ("tests/test_takeover.py::test_a_child_does_not_work_on_beside_that_of_the_next_executor",),
    ),
    Mutant(
        "what was added before the claim is not read",
        "runbook/journal_writer.py",
        "                found = self._found_since(reading)\n",
        "                found = reading\n",
        (_JOURNAL + "a_line_acknowledged_while_another_takes_over_counts",),
    ),
    Mutant(
        "a claim that two can make",
        "runbook/durable.py",
        "os.O_CREAT | os.O_EXCL |",
        "os.O_CREAT |",
        (_JOURNAL + "a_claim_is_one_writers_alone",),
    ),
    Mutant(
        "no checksum",
        "runbook/journal_lines.py",
        "    if zlib.crc32(payload) != int(header[1], 16):\n",
        "    if False:\n",
        (_JOURNAL + "damage_is_named_with_its_place",),
    ),
    Mutant(
        "no chain",
        "runbook/journal.py",
        '        if record["prev"] != previous:\n',
        "        if False:\n",
        (_JOURNAL + "lines_from_another_journal_are_refused",),
    ),
    Mutant(
        "no sequence",
        "runbook/journal.py",
        '        if record["seq"] != len(self._lines):\n',
        "        if False:\n",
        (_JOURNAL + "a_repeated_line_is_refused",),
    ),
    Mutant(
        "late lines of an older epoch count",
        "runbook/journal.py",
        "        sound = data if cut is None else data[: cut.length]\n",
        "        sound = data\n",
        (_JOURNAL + "what_a_superseded_writer_adds_is_evidence",),
    ),
    Mutant(
        "an older epoch may have become shorter",
        "runbook/journal.py",
        "            self._check_cut(number, cut, data, end)\n",
        "            pass\n",
        (_JOURNAL + "a_lost_line_of_an_older_epoch_is_refused",),
    ),
    Mutant(
        "an older epoch's bytes may be others",
        "runbook/journal.py",
        "        if artifacts.sha256_bytes(data[:end]) != cut.sha256:\n",
        "        if False:\n",
        (_JOURNAL + "other_bytes_of_an_older_epoch_are_refused",),
    ),
    Mutant(
        "on after a failed append",
        "runbook/journal_writer.py",
        '            self._refusal = self._refusal or "an earlier line of it failed"\n',
        "",
        (_JOURNAL + "a_failed_append_poisons_the_journal",),
    ),
    Mutant(
        "a line before the content it names",
        "runbook/journal_writer.py",
        '            artifacts.write_bytes(self._workspace.blobs / f"{digest}.json", content)\n',
        "",
        (_JOURNAL + "a_large_body_lies_beside_the_journal",),
    ),
    Mutant(
        "an input's bytes are not compared",
        "runbook/manifest.py",
        "            if not _is_sound(workspace.inside(artifact.path), artifact):\n"
        "                raise _missing",
        "            if False:\n                raise _missing",
        (_EXECUTOR + "a_changed_input_is_never_read",),
    ),
    Mutant(
        "a batch is believed, not read",
        "runbook/step_runner.py",
        "if not path.is_file() or artifacts.sha256_file(path) != batch.sha256:",
        "if False:",
        (_EXECUTOR + "a_batch_that_is_not_on_disk_is_refused",),
    ),
    Mutant(
        "orphans are left alone",
        "runbook/executor.py",
        "        end_orphans(workspace.root)\n        artifacts.settle",
        "        artifacts.settle",
        (_EXECUTOR + "what_a_killed_run_left_is_cleared_at_the_start",),
    ),
    Mutant(
        "an answer outside the review's list is acted on",
        "runbook/machine.py",
        "    if decided.action not in review.allowed:\n",
        "    if False:\n",
        ("tests/test_review_actions.py::test_what_stands_in_no_list_is_no_answer",),
    ),
    Mutant(
        "a review takes a second answer",
        "runbook/machine.py",
        "    if refusal := _refuse_again(review, decided):\n        return refusal\n",
        "",
        ("tests/test_machine.py::test_a_review_is_decided_once",),
    ),
    Mutant(
        "a model is asked before its request is reserved",
        "agent/model_reviewer.py",
        "        if refusal := self.request.account.reserve(key, usd):\n"
        "            self._refuse(key, refusal, usd)\n",
        "",
        ("tests/test_model_reviewer.py::TestPaid::test_more_than_the_budget_is_not_sent",),
    ),
    Mutant(
        "an answer out of its bounds counts",
        "agent/answer.py",
        "    check_bounds(answer, request)\n    return answer\n",
        "    return answer\n",
        ("tests/test_model_reviewer.py::TestRefused",),
    ),
)


class Copy:
    """A copy of the tree, in which tests are run."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        skipped = shutil.ignore_patterns("__pycache__", ".cache", ".mypy_cache")
        for name in COPIED:
            shutil.copytree(ROOT / name, folder / name, ignore=skipped)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def imported_from(self) -> Path:
        """Where a test of the copy has ``runbook`` from."""
        code = "import runbook; print(runbook.__file__)"
        told = self._python("-c", code)
        return Path(told.stdout.strip()).parent.parent

    def fails(self, nodes: Iterable[str]) -> str:
        """What pytest said, if a test failed; empty where all passed. A broken run is an error."""
        told = self._python(
            "-m", "pytest", "-x", "-q", "-m", "chaos or not chaos", "-p", "no:cacheprovider", *nodes
        )
        if told.returncode not in {0, 1}:
            raise RuntimeError(f"pytest ended with {told.returncode}: {told.stdout}{told.stderr}")
        return told.stdout if told.returncode else ""

    def survives(self, mutant: Mutant) -> bool:
        """Whether no test missed what the mutant lacks. Raises LookupError: it does not apply."""
        path = self.root / mutant.file
        whole = path.read_text()
        if whole.count(mutant.old) != 1:
            found = whole.count(mutant.old)
            raise LookupError(f"{mutant.name}: {found} times in {mutant.file}: {mutant.old!r}")
        path.write_text(whole.replace(mutant.old, mutant.new))
        try:
            return not self.fails(mutant.killers)
        finally:
            path.write_text(whole)

    def _python(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        # Without bytecode: two edits within a second would leave the first one's in use.
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
