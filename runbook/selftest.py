"""``selftest --chaos``: does a crash on this volume lose anything, or do anything twice?

A small deterministic session (``runbook.crash_session``) is run on the volume itself, once
undisturbed and then once for each fault: killed before every durable call of the executor and of
its child, killed in the middle of every write, its disk filled at every write. Each is resumed,
and data, verdicts and spend must equal those of the undisturbed run. Its journal is also cut at
every byte, and one bit of every byte is flipped: each cut is refused or leads to the same end,
each flip is refused. Needs no privilege. What no process can stage, a power loss, is measured in
part (the latency of fsync) and tested by ``make test-chaos``.
"""

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from runbook import artifacts, durable, manifest
from runbook.contract import Json
from runbook.crash_session import (
    REQUEST_USD,
    SIGKILLED,
    Result,
    committed_batches,
    crash_plan,
    made_twice,
    requests_cut_short,
    result_of,
    run_forked,
    without_spend,
)
from runbook.errors import CorruptError, NeedsPersonError, RunbookError
from runbook.executor import Gates
from runbook.faults import FULL, KILL, TEAR, Fault
from runbook.journal import read_entries
from runbook.testing import generations
from runbook.verify import verify
from runbook.workspace import Workspace

LIMIT_S = 140.0
"""For the sweeps together; what does not fit is left out evenly, and told."""
_FSYNCS = 40


@dataclass(frozen=True)
class Case:
    """One fault at one durable call."""

    who: str
    """``executor`` or ``child``."""
    at: int
    do: str

    @property
    def name(self) -> str:
        return f"{self.do} at durable call {self.at} of the {self.who}"


@dataclass(frozen=True)
class Sweep:
    """One kind of disturbance, tried at each place there is."""

    name: str
    tried: int
    places: int
    failures: tuple[str, ...]
    note: str = ""
    sound: str = "all as undisturbed"
    """How those ended that did not fail."""


@dataclass(frozen=True)
class Certificate:
    """What was tried on a volume and how it ended; kept in its workspace, shown by reports."""

    passed: bool
    wall: str
    """UTC, ISO 8601."""
    volume: Mapping[str, Json]
    """``file_system``, ``fsync_ms`` and ``fsync_p99_ms``."""
    versions: Mapping[str, Json]
    sweeps: tuple[Sweep, ...]
    seconds: float

    @property
    def summary(self) -> dict[str, Json]:
        """What a session records of it."""
        return {
            "passed": self.passed,
            "wall": self.wall,
            "tried": sum(sweep.tried for sweep in self.sweeps),
            "places": sum(sweep.places for sweep in self.sweeps),
            "version": self.versions.get("runbook", ""),
            "git_sha": self.versions.get("git_sha", ""),
            **self.volume,
        }


def selftest(
    folder: Path, gates: Gates, tell: Callable[[str], None], wall: str, *, limit_s: float = LIMIT_S
) -> Certificate:
    """Run every sweep below a folder of the volume; it is left as it was found.

    Args:
        folder: on the volume in question.
        gates: the real judge.
        tell: hears a line for each sweep.
        wall: the time that the certificate bears.
        limit_s: what the sweeps may take.

    Raises:
        RunbookError: the undisturbed session itself does not run here.
    """
    begin = time.monotonic()
    with _scratch(folder) as root:
        manifest.provenance(crash_plan())
        manifest.environment()
        volume = {"file_system": file_system(root), **fsync_latency(root)}
        tell(
            f"volume: {volume['file_system']}, fsync {volume['fsync_ms']} ms in the median, "
            f"{volume['fsync_p99_ms']} ms at worst of {_FSYNCS}"
        )
        chaos = _Chaos(root, gates, begin + limit_s)
        sweeps = []
        for sweep in chaos.sweeps():
            sweeps.append(sweep)
            tell(describe(sweep))
    passed = not any(sweep.failures for sweep in sweeps)
    versions = {"git_sha": manifest.git_sha(), **manifest.versions()}
    seconds = round(time.monotonic() - begin, 1)
    return Certificate(passed, wall, volume, versions, tuple(sweeps), seconds)


def describe(sweep: Sweep) -> str:
    """The sweep in a line, and a line for each of its first failures."""
    of = "" if sweep.tried == sweep.places else f" of {sweep.places}"
    verdict = f"{len(sweep.failures)} FAILED" if sweep.failures else sweep.sound
    note = f"; {sweep.note}" if sweep.note else ""
    lines = [f"{sweep.name}: {sweep.tried}{of} tried, {verdict}{note}"]
    return "\n".join([*lines, *(f"  {failure}" for failure in sweep.failures[:10])])


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    root = folder / f".runbook-selftest-{os.getpid()}"
    artifacts.make_directory(root)
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def file_system(path: Path) -> str:
    """Type and mount point of the volume that a path is on."""
    real = str(path.resolve())
    mounts = [
        p
        for p in psutil.disk_partitions(all=True)
        if real == p.mountpoint or real.startswith(p.mountpoint.rstrip("/") + "/")
    ]
    found = max(mounts, key=lambda p: len(p.mountpoint), default=None)
    return f"{found.fstype} at {found.mountpoint}" if found else "unknown"


def fsync_latency(folder: Path) -> dict[str, Json]:
    """Milliseconds that appending 4 KiB takes until it is durable: median and worst."""
    path = folder / "fsync"
    fd = durable.create(path)
    times = []
    try:
        for _ in range(_FSYNCS):
            begin = time.perf_counter()
            durable.write_all(fd, b"x" * 4096, path)
            durable.fsync(fd, path)
            times.append((time.perf_counter() - begin) * 1000)
    finally:
        os.close(fd)
        path.unlink()
    return {"fsync_ms": round(statistics.median(times), 2), "fsync_p99_ms": round(max(times), 2)}


class _Chaos:
    def __init__(self, root: Path, gates: Gates, deadline: float) -> None:
        self._root = root
        self._gates = gates
        self._deadline = deadline
        self._calls: dict[str, list[str]] = {}
        self._calm = self._undisturbed()

    def _undisturbed(self) -> Result:
        """What every other run must come out as; counts the calls on the way."""
        counts = {who: self._root / f"calls_of_{who}" for who in ("executor", "child")}
        root = self._root / "calm"
        code = run_forked(
            root,
            self._gates,
            own=Fault(0, count_to=str(counts["executor"])),
            childs=Fault(0, count_to=str(counts["child"])),
        )
        if code != 0:
            raise RunbookError(
                f"the undisturbed session ended with {code}",
                where=str(root),
                fix="run 'runbook doctor'; without a run to compare with nothing can be shown",
            )
        self._calls = {who: path.read_text().splitlines() for who, path in counts.items()}
        result = result_of(Workspace.at(root))
        self._check_again(result)
        return result

    def _check_again(self, first: Result) -> None:
        """Two undisturbed runs must agree, or a difference would say nothing."""
        root = self._root / "calm_again"
        code = run_forked(root, self._gates)
        if code != 0 or result_of(Workspace.at(root)) != first:
            raise RunbookError("two undisturbed sessions differ", where=str(root))

    def sweeps(self) -> Iterator[Sweep]:
        share = (self._deadline - time.monotonic()) / 13
        for name, do, weight in (
            ("killed before a durable call", KILL, 7.0),
            ("killed in the middle of a write", TEAR, 2.0),
            ("disk full from a write on", FULL, 2.0),
        ):
            cases = [
                Case(who, at, do)
                for who, calls in self._calls.items()
                for at, call in enumerate(calls, 1)
                if do == KILL or call == "write"
            ]
            yield self._sweep(name, cases, time.monotonic() + weight * share)
        yield self._truncations()
        yield self._flips()
        yield self._artifact_flips()

    def _sweep(self, name: str, cases: Sequence[Case], until: float) -> Sweep:
        """Every case, on all processors; what there is no time for is left out evenly."""
        jobs = max(1, len(os.sched_getaffinity(0)))
        ordered = spread(cases)
        outcomes = _in_forks([ordered[i::jobs] for i in range(jobs)], self._try, until)
        failures = tuple(told for told, _ in outcomes if told)
        paid = sum(paid for _, paid in outcomes)
        note = f"{paid} inside a paid request, which cost one more at most" if paid else ""
        return Sweep(name, len(outcomes), len(cases), failures, note)

    def _try(self, case: Case) -> tuple[str, int]:
        """What went wrong, and whether a paid request was cut short."""
        root = self._root / f"{case.do}_{case.who}_{case.at}"
        try:
            return self._disturb(case, root)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def _disturb(self, case: Case, root: Path) -> tuple[str, int]:
        fault = Fault(case.at, case.do, once=f"{root}.struck")
        mine = {"own": fault} if case.who == "executor" else {"childs": fault}
        code = run_forked(root, self._gates, **mine)
        place = Workspace.at(root)
        # A child that dies is a loss that the same executor gets over.
        wanted = 3 if case.do == FULL else SIGKILLED if case.who == "executor" else 0
        # Once the session is done, only its writer's farewell can fail, and that is no loss.
        if code != wanted and not (case.do == FULL and result_of(place).done == code):
            return f"{case.name}: exit {code}, not {wanted}", 0
        cut = requests_cut_short(place)
        committed, made = committed_batches(place), len(generations(root))
        again = run_forked(root, self._gates)
        if again != 0:
            return f"{case.name}: the resume ended with {again}", 0
        return self._compare(case.name, place, cut, made_twice(place, made, committed)), cut

    def _compare(self, name: str, place: Workspace, cut: int, twice: int) -> str:
        """Where the end differs from the undisturbed one; empty where it does not."""
        result, calm = result_of(place), self._calm
        if twice:
            return f"{name}: {twice} committed batches were made again"
        if without_spend(result) != without_spend(calm):
            return f"{name}: data or verdicts differ"
        if not calm.review_usd <= result.review_usd <= calm.review_usd + cut * REQUEST_USD:
            return f"{name}: ${result.review_usd} were spent in place of ${calm.review_usd}"
        if findings := verify(place).findings:
            return f"{name}: verify finds {findings[0].where}: {findings[0].what}"
        return ""

    def _killed_workspace(self) -> Workspace:
        """A session killed with several lines behind the newest pinned one."""
        root = self._root / "killed"
        at = len(self._calls["executor"]) * 2 // 3
        run_forked(root, self._gates, own=Fault(at))
        return Workspace.at(root)

    def _truncations(self) -> Sweep:
        """Each length of the newest journal: refused, or a whole number of lines is left."""
        place = self._killed_workspace()
        path = place.segment(1)
        data = path.read_bytes()
        before = len(read_entries(place))
        failures, refused, seen = [], 0, set()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            try:
                left = len(read_entries(place))
            except CorruptError:
                refused += 1
                continue
            if left not in seen:
                seen.add(left)
                failures += self._resume_copy(place, f"cut to {length} bytes")
            if left > before:
                failures.append(f"cut to {length} bytes: {left} lines in place of {before}")
        note = f"{refused} refused, {len(seen)} resumed from"
        total = len(data)
        return Sweep("journal cut at a byte", total, total, tuple(failures), note, "all sound")

    def _resume_copy(self, place: Workspace, name: str) -> list[str]:
        copy = Workspace.at(self._root / "copy")
        shutil.copytree(place.root, copy.root)
        try:
            cut, code = requests_cut_short(copy), run_forked(copy.root, self._gates)
            if code != 0:
                return [f"{name}: the resume ended with {code}"]
            told = self._compare(name, copy, cut, 0)
            return [told] if told else []
        finally:
            shutil.rmtree(copy.root)

    def _flips(self) -> Sweep:
        """One bit of each byte of the journal, another one at each byte: always refused."""
        place = Workspace.at(self._root / "calm")
        failures = []
        files = [place.segment(1), place.head(1)]
        total = 0
        for path in files:
            data = path.read_bytes()
            for position in range(len(data)):
                total += 1
                path.write_bytes(_flipped(data, position))
                if not _is_refused(place):
                    failures.append(f"bit {position % 8} of byte {position} of {path.name}")
            path.write_bytes(data)
        name = "bit flipped in journal or HEAD"
        return Sweep(name, total, total, tuple(failures), sound="all refused")

    def _artifact_flips(self) -> Sweep:
        """One bit in each committed file, at its first, middle and last byte: verify names it."""
        place = Workspace.at(self._root / "calm")
        failures, total = [], 0
        known = [p for p in place.root.rglob("*") if p.is_file() and _is_committed(place, p)]
        for path in sorted(known):
            data = path.read_bytes()
            for position in sorted({0, len(data) // 2, len(data) - 1}):
                total += 1
                path.write_bytes(_flipped(data, position))
                found = [f"{finding.where}: {finding.what}" for finding in verify(place).findings]
                if not any(path.name in told for told in found):
                    failures.append(f"byte {position} of {place.relative(path)}")
            path.write_bytes(data)
        name = "bit flipped in a committed file"
        return Sweep(name, total, total, tuple(failures), sound="all named by verify")


def _is_committed(place: Workspace, path: Path) -> bool:
    """Files of data and manifests; logs and heartbeats are nobody's evidence."""
    relative = place.relative(path)
    return relative.startswith("artifacts/") and path.suffix in {".json", ".jsonl", ".txt"}


def _is_refused(place: Workspace) -> bool:
    try:
        read_entries(place)
    except (CorruptError, NeedsPersonError):
        return True
    return False


def _flipped(data: bytes, position: int) -> bytes:
    flipped = bytearray(data)
    flipped[position] ^= 1 << (position % 8)
    return bytes(flipped)


def spread(cases: Sequence[Case]) -> list[Case]:
    """The cases in an order whose every beginning is spread evenly over all of them."""
    step = max(1, round(len(cases) ** 0.5))
    return [case for first in range(step) for case in cases[first::step]]


def _in_forks(
    slices: Sequence[Sequence[Case]], act: Callable[[Case], tuple[str, int]], until: float
) -> list[tuple[str, int]]:
    """Each slice in a process of its own; what was done before the time was over."""
    forks = []
    for mine in slices:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            code = 1
            try:
                os.close(reader)
                with os.fdopen(writer, "w") as out:
                    for case in mine:
                        if time.monotonic() > until:
                            break
                        out.write(f"{json.dumps(act(case))}\n")
                        out.flush()
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        forks.append((pid, reader))
    outcomes: list[tuple[str, int]] = []
    for pid, reader in forks:
        with os.fdopen(reader) as told:
            outcomes += [(str(what), int(paid)) for what, paid in map(json.loads, told)]
        _, status = os.waitpid(pid, 0)
        if status:
            outcomes.append((f"a process of the selftest ended with {status}", 0))
    return outcomes
