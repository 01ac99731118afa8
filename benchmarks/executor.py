"""What the executor itself costs: a session of steps that do nothing, from cold start to finish.

    python benchmarks/executor.py [--peers NAMES|all] [--repeat N] [--cache FOLDER]

Whole processes are timed, gates included, with 4 and with 104 steps; beside them the durable floor,
one process that appends and fsyncs a line and writes a manifest atomically for each step, and the
peers that were asked for, each in a virtual environment of its own under the cache folder. A peer
that cannot be installed or does not finish is skipped by name. Needs no model. The cache folder
must lie on the disk that a workspace would lie on: on one in memory an fsync costs nothing.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from executor_peers.peers import PEERS, Peer, UnavailableError, environment, install
from executor_peers.timing import LIMIT_S, FailedError, kill, last_line, started, timed

from runbook.manifest import cpu, versions
from runbook.report.safe_text import columns

ROOT: Final = Path(__file__).parents[1]
CACHE: Final = ROOT / ".cache" / "executor_benchmark"
FLOOR: Final = Path(__file__).parent / "executor_peers" / "durable_floor.py"
RUNBOOK: Final = Path(sys.executable).with_name("runbook")
FEW: Final = 4
MANY: Final = 104

FEW_S: Final = 0.5
FEW_AIMED_S: Final = 0.3
FLOORS: Final = 5.0
PEER_RESUME_S: Final = 0.58
"""The best resume of a peer that journals, measured apart from this benchmark."""

BLOCKED = "blocked"
NOOP = f'''"""Steps that do nothing; ``block`` waits to be killed, once a workspace."""

import time

from runbook.contract import Metric, PhaseRequest, PhaseResult

DONE = PhaseResult(metrics=(Metric("constant", 1.0, 1),))


def run(request: PhaseRequest) -> PhaseResult:
    return DONE


def block(request: PhaseRequest) -> PhaseResult:
    blocked = request.workspace / "{BLOCKED}"
    if not blocked.exists():
        blocked.touch()
        time.sleep({LIMIT_S})
    return DONE
'''


@dataclass(frozen=True)
class Contender:
    """Something that runs N steps."""

    name: str
    run: Callable[[Path, int], float]
    """Seconds of a run of so many steps in an empty folder. Raises FailedError."""
    version: str = ""
    journals: str = ""
    """What it keeps of a finished step."""
    few: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)

    @property
    def few_s(self) -> float:
        return median(self.few)

    @property
    def step_s(self) -> float:
        """Of each further step; not above 0 where the runs differ by more than their steps cost."""
        return (median(self.many) - self.few_s) / (MANY - FEW)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    numbers = ", ".join(f"{name} {number}" for name, number in versions().items())
    print(f"{cpu()}, {os.cpu_count()} cores\n{numbers}")
    floor, runbook = Contender("durable floor", run_floor), Contender("runbook", run_runbook)
    skipped: dict[str, str] = {}
    peers = [found for peer in options.peers if (found := prepared(peer, options.cache, skipped))]
    with tempfile.TemporaryDirectory(dir=options.cache) as scratch:
        # What the machine remembers of real sessions is not to learn from these.
        os.environ["XDG_STATE_HOME"] = str(Path(scratch) / "state")
        folders = numbered(Path(scratch))
        try:
            for own in (floor, runbook):
                warm_up(own, folders)
            ready = [peer for peer in peers if warmed(peer, folders, skipped)]
            measure([floor, runbook, *ready], folders, options.repeat, skipped)
            resumed = [resume(next(folders), next(folders)) for _ in range(options.repeat)]
        except FailedError as error:
            print(error, file=sys.stderr)
            return 1
    measured = [peer for peer in ready if peer.name not in skipped]
    tell(floor, runbook, measured)
    if options.peers:
        print(f"\npeers: {len(measured)} measured, {len(skipped)} skipped")
        for name, why in skipped.items():
            print(f"  {name}: {why}")
    tell_targets(floor, runbook, resumed)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", type=named_peers, default=(), help="names with commas between, or all"
    )
    parser.add_argument("--repeat", type=positive, default=5, help="runs of each; medians are told")
    parser.add_argument("--cache", type=Path, default=CACHE, help="peers, and what the runs write")
    options = parser.parse_args(arguments)
    options.cache = options.cache.resolve()
    if not RUNBOOK.is_file():
        parser.error(f"there is no {RUNBOOK}: install the project into this environment first")
    return options


def named_peers(text: str) -> tuple[Peer, ...]:
    known = {peer.name: peer for peer in PEERS}
    names = list(known) if text == "all" else [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"no peer {unknown[0]!r}; there are {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names))


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def numbered(parent: Path) -> Iterator[Path]:
    """New empty folders, without end."""
    number = 0
    while True:
        number += 1
        folder = parent / f"{number:04d}"
        folder.mkdir()
        yield folder


def prepared(peer: Peer, cache: Path, skipped: dict[str, str]) -> Contender | None:
    try:
        place = install(peer, cache)
    except UnavailableError as error:
        skipped[peer.name] = str(error)
        return None
    home = cache / f"{peer.name}-{peer.version}" / "home"
    home.mkdir(exist_ok=True)
    variables = environment(peer, home)

    def run(folder: Path, steps: int) -> float:
        peer.project(folder, steps)
        if peer.init:
            timed([place / peer.init[0], *peer.init[1:]], folder, variables)
        return timed(peer.command(place, steps), folder, variables)

    return Contender(peer.name, run, peer.version, peer.journals)


def warm_up(contender: Contender, folders: Iterator[Path]) -> None:
    """One run that is not counted: compiled modules, the page cache, a peer's own database."""
    contender.run(next(folders), FEW)


def warmed(peer: Contender, folders: Iterator[Path], skipped: dict[str, str]) -> bool:
    try:
        warm_up(peer, folders)
    except FailedError as error:
        skipped[peer.name] = str(error)
        return False
    return True


def measure(
    contenders: Sequence[Contender],
    folders: Iterator[Path],
    repeat: int,
    skipped: dict[str, str],
) -> None:
    """In rounds, each contender once: what else goes on on the machine meets all alike."""
    own = contenders[:2]
    for _ in range(repeat):
        for contender in contenders:
            if contender.name in skipped:
                continue
            try:
                contender.few.append(contender.run(next(folders), FEW))
                contender.many.append(contender.run(next(folders), MANY))
            except FailedError as error:
                if contender in own:
                    raise
                skipped[contender.name] = str(error)


def run_floor(folder: Path, steps: int) -> float:
    return timed([sys.executable, FLOOR, str(steps)], folder, os.environ)


def run_runbook(folder: Path, steps: int) -> float:
    return timed(session(folder, ["run"] * steps), folder, os.environ)


def session(folder: Path, functions: Sequence[str]) -> list[str | Path]:
    """The command that runs a step for each of these functions, in a workspace below the folder."""
    (folder / "noop.py").write_text(NOOP)
    gate = {"criteria": [{"metric": "constant", "kind": "census", "at_least": 1}]}
    (folder / "noop.yaml").write_text(json.dumps({"spec": 1, "gate": gate}))
    steps = [
        {
            "name": f"s{number}",
            "function": f"noop:{function}",
            "spec": "noop.yaml",
            "output": f"artifacts/s{number}",
            "inputs": [f"s{number - 1}"] if number > 1 else [],
        }
        for number, function in enumerate(functions, 1)
    ]
    model = {
        "name": "none",
        "source": {"path": "model"},
        "family": "none",
        "prefix": "none",
        "chat_template": "none",
        "dtype": "float32",
    }
    head = {"runbook": 1, "name": "noop", "seed": 0, "model": model, "engine": {"name": "fake"}}
    runbook = folder / "runbook.yaml"
    runbook.write_text(json.dumps({**head, "phases": [{"name": "A", "steps": steps}]}))
    return [RUNBOOK, "run", runbook, "--workspace", folder / "workspace"]


def resume(killed: Path, fresh: Path) -> tuple[float, float]:
    """Seconds of a session that is gone on with, and of the same session in a new workspace.

    The one had its process group killed in step 3 of 4. Neither waits in its step.
    """
    functions = ["run", "run", "block", "run"]
    command = session(killed, functions)
    blocked = killed / "workspace" / BLOCKED
    with started(command, killed, os.environ) as process:
        limit = time.monotonic() + LIMIT_S
        while not blocked.exists():
            if process.poll() is not None or time.monotonic() > limit:
                raise FailedError(f"no step came to be killed: {last_line(killed)}")
            time.sleep(0.002)
        kill(process)
    resumed = timed(command, killed, os.environ)
    command = session(fresh, functions)
    (fresh / "workspace").mkdir()
    (fresh / "workspace" / BLOCKED).touch()
    return resumed, timed(command, fresh, os.environ)


def tell(floor: Contender, runbook: Contender, peers: Sequence[Contender]) -> None:
    print(f"\nfrom cold start to finish, medians of {len(runbook.few)} runs:")
    header = (
        f"{FEW} steps, s",
        "of runbook",
        "each further step, ms",
        "of the floor",
        "of runbook",
        "keeps of a step",
    )
    shown = [floor, runbook, *sorted(peers, key=lambda peer: peer.few_s)]
    print("\n".join(columns([("what runs", *header), *(row(o, floor, runbook) for o in shown)])))


def row(one: Contender, floor: Contender, runbook: Contender) -> tuple[str, ...]:
    step = ("in the noise", "", "")
    if one.step_s > 0:
        step = (
            f"{one.step_s * 1e3:.1f}",
            f"{one.step_s / floor.step_s:.1f}",
            f"{one.step_s / runbook.step_s:.2f}",
        )
    name = f"{one.name} {one.version}".strip()
    return (name, f"{one.few_s:.2f}", f"{one.few_s / runbook.few_s:.2f}", *step, one.journals)


def tell_targets(
    floor: Contender, runbook: Contender, resumed: Sequence[tuple[float, float]]
) -> None:
    floors = runbook.step_s / floor.step_s
    again, cold = (median(times) for times in zip(*resumed, strict=True))
    print(
        f"\nresume after kill -9 in step 3 of {FEW}: {again:.2f} s; "
        f"the same session in a new workspace: {cold:.2f} s; ratio {again / cold:.2f}"
    )
    rows = [
        (
            f"{FEW} steps take at most {FEW_S:g} s ({FEW_AIMED_S:g} aimed at)",
            runbook.few_s <= FEW_S,
            f"{runbook.few_s:.2f} s",
        ),
        (
            f"each further step at most {FLOORS:g} times the durable floor",
            floors <= FLOORS,
            f"{floors:.1f} times",
        ),
        (
            f"resume at most a cold start (the best journaling peer: {PEER_RESUME_S:g} s)",
            again <= cold,
            f"{again / cold:.2f} times, {again:.2f} s",
        ),
    ]
    for target, met, value in rows:
        print(f"required: {target}: {'met' if met else 'not met'}, {value}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
