"""Runs one step in the child: what it commits is checked and made durable, what it made is found.

It keeps one child alive for as long as the next step needs the same model, and never decides what
follows. See ``runbook.process`` for how a child can end.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from runbook import artifacts
from runbook import events as ev
from runbook.clock import Clock
from runbook.codec import encode
from runbook.contract import Committed, Json, PhaseResult
from runbook.errors import PhaseError
from runbook.plan import Plan
from runbook.process import Failed, Finished, Lost, Patience, Paused, Worker
from runbook.redact import Redactor, session_secrets
from runbook.worker import Job
from runbook.workspace import Workspace

QUESTION_LIMIT = 4000
"""Characters of a step's question that go on record."""
_TAKEN = frozenset({artifacts.COMPLETE, "manifest.json", "session_manifest.json"})
Progress = Callable[[Mapping[str, Json]], None]


class StepRunner:
    """The child's one parent."""

    def __init__(
        self,
        plan: Plan,
        workspace: Workspace,
        append: Callable[[ev.Event], None],
        on_progress: Progress,
        clock: Clock,
        watch: Callable[[], float],
        pause: Callable[[float], bool],
        hurried: Callable[[], bool],
    ) -> None:
        """Nothing is started before the first ``prepare`` or ``run``.

        Args:
            plan: of the session.
            workspace: of the session.
            append: makes a fact durable; a batch is answered only once it returned.
            on_progress: hears what a step tells.
            clock: its monotonic time measures the step.
            watch: asked at every tick; the seconds that the child still has.
            pause: asked at every commit, with the seconds the batch took; whether to pause there.
            hurried: whether an idle child is killed, in place of waiting for its own end.
        """
        self._plan = plan
        self._workspace = workspace
        self._append = append
        self._on_progress = on_progress
        self._clock = clock
        self._watch = watch
        self._pause = pause
        self._hurried = hurried
        self._patience = Patience(**plan.watchdog)
        self._worker: Worker | None = None
        self._last_commit = 0.0

    def prepare(self, params: Mapping[str, Json]) -> None:
        """Start the child that a step with these parameters needs, and do not wait for it.

        It runs nothing of the step. One that cannot be started is told of by ``run``.
        """
        with suppress(OSError):
            self._worker_for(params)

    def dismiss(self) -> None:
        """No further step follows, so the child may end while its parent goes on."""
        if self._worker:
            self._worker.dismiss()

    def run(
        self, job: Job, changed: Sequence[Path] = ()
    ) -> ev.StepFinished | Failed | Paused | Lost:
        """Run a job to its end, or to the commit at which it is asked to pause.

        ``changed`` are folders with new entries, the job's own. They are made durable while the
        child begins, and in any case before a batch is answered or this returns.
        """
        unsettled = list(changed)

        def settle() -> None:
            while unsettled:
                artifacts.make_durable(unsettled[:1])
                del unsettled[0]

        begin = self._last_commit = self._clock.monotonic()
        known = {batch.key: batch for batch in job.committed}
        try:
            outcome = self._worker_for(job.params).run(
                job,
                on_commit=lambda batch: self._commit(job, known, batch),
                on_progress=lambda fields: self._on_progress(
                    {"step": job.step, "attempt": job.attempt, **fields}
                ),
                meanwhile=settle,
                watch=self._watch,
                patience=self._patience,
            )
            if isinstance(outcome, Finished):
                return self._finished(job, outcome.result, self._clock.monotonic() - begin)
        except PhaseError as error:
            outcome = Failed(error.what, error.where, error.fix, error.code, "")
        settle()
        if isinstance(outcome, Failed | Lost):
            # What a failed step leaves in memory must not meet the next one.
            self.close()
        return outcome

    def close(self) -> None:
        if self._worker:
            self._worker.close(self._hurried)
            self._worker = None

    def _commit(self, job: Job, known: dict[str, Committed], batch: Committed) -> bool:
        """Make a batch durable, or refuse it; whether the step is to pause here."""
        if batch.key in known:
            if known[batch.key].sha256 != batch.sha256:
                raise PhaseError(
                    f"batch {batch.key!r} was committed before with other bytes",
                    where=batch.path,
                    fix="ask channel.committed(key) before making a batch",
                )
        else:
            path = self._workspace.inside(batch.path)
            if not path.is_file() or artifacts.sha256_file(path) != batch.sha256:
                raise PhaseError(
                    f"batch {batch.key!r} is not on disk as declared",
                    where=batch.path,
                    fix="write it with runbook.artifacts before it is committed",
                )
            self._append(
                ev.BatchCommitted(
                    job.step, job.attempt, batch.key, batch.path, batch.sha256, batch.records
                )
            )
            known[batch.key] = batch
        now = self._clock.monotonic()
        took, self._last_commit = now - self._last_commit, now
        return self._pause(took)

    def _finished(self, job: Job, result: PhaseResult, seconds: float) -> ev.StepFinished:
        for artifact in result.artifacts:
            path = self._workspace.inside(artifact.path)
            if not path.exists() or (path.is_file() and path.stat().st_size != artifact.bytes):
                raise PhaseError(
                    f"the step declared {artifact.name!r}, which is not there as declared",
                    where=artifact.path,
                    fix="describe an artifact after its last byte is written",
                )
        name = result.judged_file
        if Path(name).name != name or not name.endswith(".json") or name in _TAKEN:
            raise PhaseError(
                f"the step wants its judgement in {name!a}, which is no file of its own",
                where=job.step,
                fix="give judged_file a plain name that ends in .json, as evaluation.json",
            )
        return ev.StepFinished(
            job.step,
            job.attempt,
            job.look,
            result.metrics,
            result.artifacts,
            result.tokens,
            seconds,
            result.summary,
            result.flagged,
            result.samples,
            result.judged_file,
            question=result.question.strip()[:QUESTION_LIMIT],
        )

    def _worker_for(self, params: Mapping[str, Json]) -> Worker:
        """The child that has the model of such a step loaded, or a new one."""
        plan = self._plan
        loaded = [plan.model, params.get("quantization"), plan.engine, plan.environment]
        key = artifacts.canonical_json(encode(loaded))
        if self._worker and self._worker.key != key:
            self.close()
        if self._worker is None:
            environment = dict(plan.environment)
            threads = plan.engine.get("threads")
            if threads is not None:
                environment.setdefault("OMP_NUM_THREADS", str(threads))
            log = self._workspace.log("worker")
            redactor = Redactor(session_secrets(os.environ, plan.environment))
            worker = Worker(key, self._workspace.root, log, environment, redactor)
            worker.start()
            self._worker = worker
        return self._worker
