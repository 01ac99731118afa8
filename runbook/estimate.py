"""How long steps take, from what they took before on this machine; what that means for limits.

Rule: only what was measured here counts, and what was not is said. A step's interval spans its
former runs of the same function, model and device; nothing is scaled. The history is one small
file a machine, outside any workspace: no session depends on it, and losing it costs estimates.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path

from runbook.budget import Limits, Spent
from runbook.contract import Json
from runbook.events import StepFinished
from runbook.fingerprint import bytes_document, engine_document, fingerprint
from runbook.gpus import read_inventory
from runbook.manifest import cpu
from runbook.plan import Plan, PlannedStep
from runbook.regular_files import open_to_append, open_to_read

HALF = 256 * 1024
"""Bytes of the history's newer half: grown to this it becomes the older one, and that goes."""
_ONE_RUN = (0.5, 2.0)
"""How far a single run is trusted, as factors of its time."""
_HOUR = 3600.0


@dataclass(frozen=True)
class Work:
    """What must be the same for one run to tell of another."""

    function: str
    machine: str
    """The processor's name and how many of its cores may be used."""
    gpu: str
    """Names and memory of the GPUs; empty where the engine uses none."""
    model: str
    device: str


@dataclass(frozen=True)
class Run:
    """One run of a step from its start to its end."""

    work: Work
    params: str
    """Digest of the parameters, files included, of the model's section and the engine's."""
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Interval:
    low: float
    high: float | None
    """None: nothing is known of the upper end."""

    def __add__(self, other: "Interval") -> "Interval":
        low = self.low + other.low
        if self.high is None or other.high is None:
            return Interval(low, None)
        return Interval(low, self.high + other.high)

    def times(self, factor: float) -> "Interval":
        return Interval(self.low * factor, None if self.high is None else self.high * factor)


@dataclass(frozen=True)
class Estimate:
    """Of one run of a step, in seconds; a retry would come on top."""

    step: str
    seconds: Interval
    """From 0, without an upper end, where nothing was measured."""
    runs: int
    """That it rests on; 0: not measured."""
    same_params: bool
    """Whether those ran with the same parameters."""
    at_pace: bool = False
    """Whether the lower end is what is left at the step's own pace: it runs now."""


class Fit(Enum):
    FITS = "fits"
    MAY_NOT = "may not fit"
    NOT = "does not fit"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Projection:
    """What a limit will have been charged at the end."""

    limit: str
    """``wall clock`` in seconds, ``GPU-hours``, ``money`` in dollars."""
    used: Interval
    cap: float
    held: float
    """Of the cap, held back for terminal steps, the report and stopping the pod."""
    fit: Fit


def history_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Below ``$XDG_STATE_HOME``, which counts only if absolute, or ``~/.local/state``.

    Raises:
        RuntimeError: there is no home.
    """
    named = Path(environ.get("XDG_STATE_HOME", ""))
    home = named if named.is_absolute() else Path.home() / ".local" / "state"
    return home / "runbook" / "durations.jsonl"


def remember(
    plan: Plan, step: PlannedStep, params: Mapping[str, Json], finished: StepFinished
) -> None:
    """Add a whole run to this machine's history; what goes wrong there is no fault of a session.

    Args:
        plan: the session's.
        step: that ran.
        params: it ran with.
        finished: how it ended.
    """
    with suppress(OSError, RuntimeError, TypeError, ValueError):
        work = _work(step.function, plan.model, plan.engine)
        if work is None or not finished.seconds > 0:
            return
        told = bytes_document(step, params)["params"]
        digest = _digest(told, plan.declared_model or plan.model, engine_document(plan.engine))
        _append(history_file(), Run(work, digest, finished.seconds, finished.tokens))


def read_history() -> tuple[Run, ...]:
    """What this machine remembers, oldest first; a line that is torn or strange is no run."""
    try:
        path = history_file()
    except RuntimeError:
        return ()
    return tuple(run for file in (_older(path), path) for run in _read(file))


def estimate_steps(
    document: Mapping[str, Json], steps: Iterable[str], history: Iterable[Run]
) -> tuple[Estimate, ...]:
    """The estimates of these steps of a plan's document (``fingerprint.plan_document``)."""
    runs = tuple(history)
    return tuple(_estimate(document, step, runs) for step in steps)


def total(estimates: Iterable[Estimate]) -> Interval:
    """All of them, one after the other; without an upper end where one was not measured.

    A step that was measured with other parameters alone was not: they may take any other time.
    """
    return sum((_known(estimate) for estimate in estimates), Interval(0.0, 0.0))


def _known(estimate: Estimate) -> Interval:
    is_measured = estimate.same_params or estimate.at_pace
    return estimate.seconds if is_measured else Interval(0.0, None)


def at_pace(estimate: Estimate, done: int, total: int, unit_s: float) -> Estimate:
    """Of a step at work, what is left of it; its pace is trusted as far as a single run is.

    Args:
        estimate: of the whole step.
        done: units so far, of the stage at hand.
        total: units of that stage; another may follow, so only former runs bound the time above.
        unit_s: seconds that one takes now.
    """
    short, long = _ONE_RUN
    left = max(0, total - done) * unit_s
    high = estimate.seconds.high if estimate.same_params else None
    if high is not None:
        high = max(left * long, high - done * unit_s)
    return replace(estimate, seconds=Interval(left * short, high), at_pace=True)


def project(
    limits: Limits, spent: Spent, more: Interval, *, ahead: float = 0.0
) -> Iterator[Projection]:
    """What each limit of time and money will have been charged.

    Args:
        limits: the runbook's.
        spent: so far, with what is reserved.
        more: seconds still to come.
        ahead: seconds of ``spent`` that are reserved and not worked yet.
    """
    low = max(0.0, spent.seconds - ahead)
    seconds = Interval(low, spent.seconds) + more
    reviews = Interval(spent.review_usd, spent.review_usd)
    price = limits.usd_per_hour / _HOUR
    used = (
        ("wall clock", limits.wall_clock_s, seconds, 1.0),
        ("GPU-hours", limits.gpu_hours if limits.gpus else None, seconds, limits.gpus / _HOUR),
        ("money", limits.usd, seconds, price),
    )
    for name, cap, time, rate in used:
        if cap is not None:
            need = time.times(rate) + (reviews if name == "money" else Interval(0.0, 0.0))
            held = limits.reserve_s * rate
            yield Projection(name, need, cap, held, _fit(need, cap, held))


def _fit(used: Interval, cap: float, held: float) -> Fit:
    if used.low > cap:
        return Fit.NOT
    if used.high is None:
        return Fit.UNKNOWN
    return Fit.FITS if used.high <= cap - held else Fit.MAY_NOT


def _estimate(document: Mapping[str, Json], step: str, history: tuple[Run, ...]) -> Estimate:
    declared, model, engine = document["steps"][step], document["model"], document["engine"]
    work = _work(declared["function"], model, engine)
    digest = _digest(declared["params"], model, engine)
    alike = [run for run in history if run.work == work]
    same = [run for run in alike if run.params == digest]
    seconds = [run.seconds for run in same or alike]
    if not seconds:
        return Estimate(step, Interval(0.0, None), 0, same_params=False)
    short, long = _ONE_RUN if len(seconds) == 1 else (1.0, 1.0)
    ends = Interval(min(seconds) * short, max(seconds) * long)
    return Estimate(step, ends, len(seconds), same_params=bool(same))


def _work(function: str, model: Mapping[str, Json], engine: Mapping[str, Json]) -> Work | None:
    """None where the GPU at work cannot be told from another."""
    device = str(engine.get("device", "cpu"))
    gpu = "" if device == "cpu" else _gpus()
    if gpu is None:
        return None
    return Work(function, _machine(), gpu, str(model.get("name", "")), device)


@cache
def _machine() -> str:
    return f"{cpu()} x {len(os.sched_getaffinity(0))}"


@cache
def _gpus() -> str | None:
    found = read_inventory()
    return None if found.trouble else str(found)


def _digest(params: Json, model: Mapping[str, Json], engine: Mapping[str, Json]) -> str:
    return fingerprint({"params": params, "model": dict(model), "engine": dict(engine)})


def _older(path: Path) -> Path:
    return path.with_name("durations.1.jsonl")


def _append(path: Path, run: Run) -> None:
    """One write, so that lines of several sessions never mix; a line that was cut ends here."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if path.stat().st_size > HALF:
            path.replace(_older(path))
    line = f"\n{json.dumps(asdict(run), allow_nan=False)}\n".encode()
    with open_to_append(path, 0o600) as file:
        file.write(line)


def _read(path: Path) -> Iterator[Run]:
    try:
        with open_to_read(path) as file:
            data = file.read(2 * HALF)
    except OSError:
        return
    for line in data.splitlines():
        if (run := _parsed(line)) is not None:
            yield run


def _parsed(line: bytes) -> Run | None:
    try:
        told = json.loads(line)
        run = Run(Work(**told.pop("work")), **told)
        texts = (*vars(run.work).values(), run.params)
        sound = math.isfinite(run.seconds) and run.seconds > 0 and type(run.tokens) is int
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        return None
    return run if sound and all(isinstance(text, str) for text in texts) else None
