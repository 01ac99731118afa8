"""What the executor writes for others to read: judgements, manifests, the report.

All of it follows from the journal, and is written again by the next run where a crash kept it
from being written.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from runbook import artifacts, manifest
from runbook import events as ev
from runbook import state as st
from runbook.journal import Journal
from runbook.plan import Plan, PlannedStep
from runbook.report.judgement import judgement_document, judgement_text
from runbook.report.markdown import render_report
from runbook.report.view import build_view
from runbook.workspace import Workspace


class Projector:
    def __init__(
        self, plan: Plan, workspace: Workspace, journal: Journal, known: Sequence[ev.Event]
    ) -> None:
        """``known`` grows as the executor appends to it."""
        self._plan = plan
        self._workspace = workspace
        self._journal = journal
        self._known = known

    def step(self, state: st.State, step: PlannedStep, append: Callable[[ev.Event], None]) -> None:
        """The manifest of a step that was judged, or passed, and what lies beside it."""
        mine = state.steps[step.name]
        assert mine.started is not None
        output = self._workspace.inside(mine.started.output)
        judgement = self._judgement(output, mine)
        path = self._workspace.manifest(output)
        document = manifest.step_manifest(self._plan, state, step, judgement)
        sha = artifacts.write_json(path, document)
        where = self._workspace.relative(path)
        append(ev.ManifestWritten(step.name, mine.attempt, where, sha, judgement.get("path", "")))

    def _judgement(self, output: Path, mine: st.StepState) -> dict[str, str]:
        """Path and hash of the judgement laid down beside what it judges; empty without a gate."""
        if mine.started is None or mine.finished is None or mine.judged is None:
            return {}
        document = judgement_document(mine.started, mine.finished, mine.judged)
        path = output / mine.finished.judged_file
        artifacts.write_text(path.with_suffix(".txt"), judgement_text(document))
        sha = artifacts.write_json(path, document)
        return {"path": self._workspace.relative(path), "sha256": sha}

    def session(self, state: st.State) -> None:
        """The report and the session's manifest, as the journal now stands."""
        if state.session is None:
            return
        report = render_report(build_view(self._journal.entries), self._workspace.root)
        shown = {self._workspace.report: artifacts.write_text(self._workspace.report, report)}
        written = [fact for fact in self._known if isinstance(fact, ev.ManifestWritten)]
        path = self._workspace.session_manifest(state.session.run_id)
        shown[path] = artifacts.write_json(
            path, manifest.session_manifest(self._plan, state, written)
        )
        self._journal.projections = {self._workspace.relative(p): sha for p, sha in shown.items()}
