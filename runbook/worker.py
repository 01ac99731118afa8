"""Child side of a step: a request in, a result out, one JSON line each.

Started by ``runbook.process.Worker`` with two inherited pipes, so that nothing a step prints can
be taken for an answer. It dies with its parent, and stays alive between requests: a loaded model
serves the next step that needs the same one. It never writes the journal.
"""

import ctypes
import errno
import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from runbook.artifacts import canonical_json, describe, storage_stop
from runbook.codec import decode, encode
from runbook.contract import Artifact, Committed, Json, Metric, PhaseRequest, PhaseResult
from runbook.errors import ConfigError, PausedError, PhaseError, RunbookError

_PR_SET_PDEATHSIG = 1
_PROGRESS_EVERY_S = 0.2
FAULT_VARIABLE = "RUNBOOK_FAULT"
_BEAT_EVERY_S = 1.0
_TRACEBACK_LINES = 20
_SENDING = threading.Lock()
"""A line is written whole, whichever thread it is of."""


@dataclass(frozen=True)
class Job:
    """What the child is asked to do: a ``PhaseRequest`` in a form that travels."""

    function: str
    """``module:function``."""
    search: str
    """The runbook's own folder, where user modules may lie."""
    log: str
    step: str
    attempt: int
    look: int
    seed: int
    params: Mapping[str, Json]
    model: Mapping[str, Json]
    engine: Mapping[str, Json]
    workspace: Path
    work: Path
    output: Path
    inputs: Mapping[str, Mapping[str, Artifact]]
    provenance: Mapping[str, Json]
    committed: tuple[Committed, ...]


class PipeChannel:
    """A step's line to the executor over the pipes."""

    def __init__(self, answers: BinaryIO, fd_out: int, committed: tuple[Committed, ...]) -> None:
        self._answers = answers
        self._fd_out = fd_out
        self._committed = {batch.key: batch for batch in committed}
        self._last_progress = 0.0

    def committed(self, key: str) -> Committed | None:
        return self._committed.get(key)

    def commit(self, batch: Committed) -> None:
        send(self._fd_out, {"commit": encode(batch)})
        line = self._answers.readline()
        if not line:
            os._exit(1)
        answer = json.loads(line)
        if answer.get("committed") != batch.key:
            raise PhaseError(f"the executor answered {answer!r} to the commit of {batch.key!r}")
        self._committed[batch.key] = batch
        if answer.get("pause"):
            raise PausedError(
                "the executor asked for a pause; the batch is committed",
                where=batch.key,
                fix="run the same command again",
            )

    def progress(self, **fields: Json) -> None:
        now = time.monotonic()
        if now - self._last_progress >= _PROGRESS_EVERY_S:
            self._last_progress = now
            send(self._fd_out, {"progress": encode(fields)})


def send(fd: int, message: Mapping[str, Json]) -> None:
    """Write one line; with nobody left to read it there is nothing left to do."""
    data = memoryview(f"{canonical_json(dict(message))}\n".encode())
    try:
        with _SENDING:
            while data:
                data = data[os.write(fd, data) :]
    except BrokenPipeError:
        os._exit(1)


def beat(fd: int) -> None:
    """Show from a thread of its own that the process is alive, whatever the step is doing."""
    while True:
        time.sleep(_BEAT_EVERY_S)
        send(fd, {"beat": True})


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process with its parent, even one that is gone by now."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def load_function(name: str, search: str) -> Callable[[PhaseRequest], PhaseResult]:
    """Import ``module:function``. Raises ConfigError where it cannot be found."""
    if search not in sys.path:
        # Last, so that a file beside the runbook cannot stand in for a library.
        sys.path.append(search)
    module_name, _, function_name = name.partition(":")
    try:
        function: Callable[[PhaseRequest], PhaseResult] = getattr(
            importlib.import_module(module_name), function_name
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"cannot import the step's function {name!r}: {error}",
            where=search,
            fix="name it module:function; install what it imports or put it beside the runbook",
        ) from error
    return function


def serve(job: Job, answers: BinaryIO, fd_out: int) -> Mapping[str, Json]:
    """Run one job and return the last message of its answer."""
    try:
        request = PhaseRequest(
            step=job.step,
            attempt=job.attempt,
            look=job.look,
            seed=job.seed,
            params=job.params,
            model=job.model,
            engine=job.engine,
            workspace=job.workspace,
            work=job.work,
            output=job.output,
            inputs=job.inputs,
            provenance=job.provenance,
            channel=PipeChannel(answers, fd_out, job.committed),
        )
        result = load_function(job.function, job.search)(request)
        return {"result": encode(checked(result, job))}
    except PausedError:
        return {"paused": True}
    except BaseException as error:  # noqa: BLE001 - the parent must hear of every way to end
        with suppress(OSError):
            traceback.print_exc()
        return {"error": describe_error(error, job)}
    finally:
        # A disk too full for the log must not keep the answer from the parent.
        with suppress(OSError):
            sys.stdout.flush()
        with suppress(OSError):
            sys.stderr.flush()


def checked(result: object, job: Job) -> PhaseResult:
    if isinstance(result, PhaseResult):
        held = [artifact for made in job.inputs.values() for artifact in made.values()]
        metrics = tuple(_vouched_for(metric, result, held, job) for metric in result.metrics)
        result = replace(result, metrics=metrics)
        return replace(result, artifacts=(*result.artifacts, *_rows_behind(result, job)))
    raise PhaseError(
        f"the step returned a {type(result).__name__}, not a PhaseResult",
        where=job.function,
        fix="return runbook.contract.PhaseResult(...)",
    )


def _vouched_for(
    metric: Metric, result: PhaseResult, inputs: Sequence[Artifact], job: Job
) -> Metric:
    """The metric, its evidence by the path that no link stands in.

    One whose evidence is neither in the step's folder nor in an artifact of its inputs has no value
    and says why: no hash would be on record, and an older attempt may have left it.
    """
    if not metric.evidence:
        return metric
    with suppress(OSError, ValueError, RuntimeError):
        real = (job.workspace / metric.evidence).resolve()
        path = real.relative_to(job.workspace.resolve()).as_posix()
        own = real.is_relative_to(job.output.resolve())
        # What is missing in the step's own folder, the executor tells of.
        as_file = own and (real.is_file() or not real.exists())
        if as_file or _is_held(path, (*inputs, *(result.artifacts if own else ()))):
            return replace(metric, evidence=path)
    why = (
        f"it read {metric.value!s:.20}, but {str(metric.evidence)!a:.200}, its evidence, is neither"
        " a file of the step's own output folder nor of an artifact of its inputs"
    )
    return replace(metric, value=None, evidence="", note=why)


def _rows_behind(result: PhaseResult, job: Job) -> Iterator[Artifact]:
    """What metrics name as evidence in the step's folder, where no artifact holds it already.

    So its bytes are on record, and nobody can change them unseen. It is named by its path in that
    folder.
    """
    output = job.output.resolve()
    for evidence in dict.fromkeys(metric.evidence for metric in result.metrics if metric.evidence):
        path = job.workspace.resolve() / evidence
        known = _is_held(evidence, result.artifacts)
        if not known and path.is_relative_to(output) and path.is_file():
            yield describe(path.relative_to(output).as_posix(), path, job.workspace)


def _is_held(path: str, artifacts: Sequence[Artifact]) -> bool:
    return any(PurePosixPath(path).is_relative_to(artifact.path) for artifact in artifacts)


def describe_error(error: BaseException, job: Job) -> Mapping[str, Json]:
    """What, where and the remedy of an error, for a process that cannot see it."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    tail = "\n".join(lines[-_TRACEBACK_LINES:])
    if stop := _storage_stop(error, job):
        error = stop
    if isinstance(error, RunbookError):
        known = {"what": error.what, "where": error.where, "fix": error.fix, "code": error.code}
        return {**known, "traceback": tail}
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "what": f"{type(error).__name__}: {error}",
        "where": f"{frames[-1].filename}:{frames[-1].lineno}" if frames else job.function,
        "fix": f"read {job.log}, mend the step, and run the same command, with --accept-changes "
        "REASON where that changed its code",
        "code": PhaseError.code,
        "traceback": tail,
    }


def _storage_stop(error: BaseException, job: Job) -> RunbookError | None:
    """A full or failing volume, whichever library met it; None for any other error."""
    if isinstance(error, OSError):
        return storage_stop(error, job.work)
    if os.strerror(errno.ENOSPC) in str(error):
        # The Rust and C++ writers of checkpoints raise classes of their own with this text.
        return storage_stop(OSError(errno.ENOSPC, str(error)), job.work)
    return None


def main(arguments: list[str]) -> int:
    """Serve jobs until the parent closes the pipe."""
    fd_in, fd_out, parent = (int(argument) for argument in arguments)
    die_with_parent(parent)
    # A process that a step starts must not hold the pipes open after this one is gone.
    os.set_inheritable(fd_in, False)  # noqa: FBT003 - the signature is the library's
    os.set_inheritable(fd_out, False)  # noqa: FBT003
    faulthandler.enable()
    if FAULT_VARIABLE in os.environ:
        from runbook import faults  # noqa: PLC0415 - in tests alone

        faults.install_from_environment()
    threading.Thread(target=beat, args=(fd_out,), daemon=True).start()
    with os.fdopen(fd_in, "rb") as answers:
        while line := answers.readline():
            job = decode(Job, json.loads(line)["request"])
            send(fd_out, serve(job, answers, fd_out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
