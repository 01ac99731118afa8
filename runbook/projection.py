"""What the executor writes for others to read: judgements, manifests, the report.

All of it follows from the journal, and is written again by the next run where a crash kept it
from being written.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from runbook import artifacts, manifest
from runbook import events as ev
from runbook import state as st
from runbook.clock import Clock
from runbook.journal import Journal
from runbook.plan import Plan, PlannedStep
from runbook.report.judgement import judgement_document, judgement_text
from runbook.report.markdown import render_report
from runbook.report.view import build_view
from runbook.workspace import Workspace

EVERY_S = 5.0


class Projector:
    def __init__(
        self,
        plan: Plan,
        workspace: Workspace,
        journal: Journal,
        known: Sequence[ev.Event],
        clock: Clock,
    ) -> None:
        """``known`` grows as the executor appends to it."""
        self._plan = plan
        self._workspace = workspace
        self._journal = journal
        self._known = known
        self._clock = clock
        self._shown = clock.monotonic()

    def step(self, state: st.State, step: PlannedStep, append: Callable[[ev.Event], None]) -> None:
        """The manifest of a step that was judged, or passed, and the judgement beside it.

        The manifest comes last: that it is there means that the step is complete.
        """
        mine = state.steps[step.name]
        assert mine.started is not None
        output = self._workspace.inside(mine.started.output)
        files, judgement = self._judgement(output, mine)
        path = self._workspace.manifest(output)
        document = manifest.step_manifest(self._plan, state, step, judgement)
        files[path.name] = artifacts.indented_json(document).encode()
        hashes = artifacts.write_files(output, files)
        where, judged = self._workspace.relative(path), judgement.get("path", "")
        append(ev.ManifestWritten(step.name, mine.attempt, where, hashes[path.name], judged))

    def _judgement(
        self, output: Path, mine: st.StepState
    ) -> tuple[dict[str, bytes], dict[str, str]]:
        """The files of a judgement, and path and hashes of them; none without a gate."""
        if mine.started is None or mine.finished is None or mine.judged is None:
            return {}, {}
        document = judgement_document(mine.started, mine.finished, mine.judged)
        path = output / mine.finished.judged_file
        data, text = artifacts.indented_json(document).encode(), judgement_text(document).encode()
        where = {
            "path": self._workspace.relative(path),
            "sha256": artifacts.sha256_bytes(data),
            "text_sha256": artifacts.sha256_bytes(text),
        }
        return {path.name: data, path.with_suffix(".txt").name: text}, where

    def refresh(self, state: st.State) -> None:
        """As ``session``, where the last time is a while ago: a quick session has many steps."""
        if self._clock.monotonic() - self._shown >= EVERY_S:
            self.session(state)

    def session(self, state: st.State) -> None:
        """The report and the session's manifest, as the journal now stands."""
        if state.session is None:
            return
        self._shown = self._clock.monotonic()
        report = render_report(build_view(self._journal.entries), self._workspace.root)
        shown = {self._workspace.report: artifacts.write_text(self._workspace.report, report)}
        written = [fact for fact in self._known if isinstance(fact, ev.ManifestWritten)]
        path = self._workspace.session_manifest(state.session.run_id)
        shown[path] = artifacts.write_json(
            path, manifest.session_manifest(self._plan, state, written)
        )
        self._journal.projections = {self._workspace.relative(p): sha for p, sha in shown.items()}
