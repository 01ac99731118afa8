"""What the executor writes for others to read: judgements, manifests, the report.

All of it follows from the journal, and is written again by the next run where a crash kept it
from being written.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from runbook import artifacts, manifest, regular_files
from runbook import events as ev
from runbook import state as st
from runbook.clock import Clock
from runbook.errors import RunbookError
from runbook.journal import facts, read_journal
from runbook.journal_writer import Journal
from runbook.plan import Plan, PlannedStep
from runbook.report.judgement import judgement_document, judgement_text
from runbook.report.markdown import render_report
from runbook.report.review_folder import read_folder
from runbook.report.review_report import PLOT, REPORT, render_plot, render_review
from runbook.report.safe_text import one_line
from runbook.report.trust import trust_section
from runbook.report.unanswered import with_unanswered
from runbook.report.view import build_stories, build_view
from runbook.workspace import Workspace

EVERY_S = 5.0


class Pages:
    """What people read: each review's page and the session's report."""

    def __init__(self, workspace: Workspace, journal: Journal, known: Sequence[ev.Event]) -> None:
        """``known`` may grow, as the executor's does."""
        self._workspace = workspace
        self._journal = journal
        self._known = known

    def renew(self) -> None:
        """The pages alone, once a person has decided or stopped a session nobody is at work on.

        The session's manifest tells of the machine that the work was done on, which need not be
        this one, so it stays as it was shown.
        """
        before = self._shown_before()
        shown: dict[Path, str] = {}
        try:
            self._report(shown)
            self._reviews(shown)
        finally:
            # Of pages that could not all be written, those that were are the ones to hold.
            if before:
                self._journal.projections = {**before, **self.named(shown)}

    def write(self) -> dict[Path, str]:
        """All of them; path and SHA-256."""
        shown = self.reviews()
        self._report(shown)
        return shown

    def reviews(self) -> dict[Path, str]:
        """Each review's report and its plot, where they tell anything new; path and SHA-256."""
        shown: dict[Path, str] = {}
        self._reviews(shown)
        return shown

    def _report(self, shown: dict[Path, str]) -> None:
        view = with_unanswered(build_view(self._journal.entries), self._workspace)
        trust = trust_section(self._workspace)
        report = render_report(view, self._workspace.root, trust)
        shown[self._workspace.report] = artifacts.write_text(self._workspace.report, report)

    def _reviews(self, shown: dict[Path, str]) -> None:
        """Note each page as it is written, so that a failure leaves no doubt about the others."""
        if not any(isinstance(fact, ev.ReviewRequested) for fact in self._known):
            return
        for story in build_stories(self._journal.entries):
            folder = self._workspace.inside(story.review.path)
            path, plot = folder / REPORT, render_plot(story)
            if plot:
                shown[folder / PLOT] = _refreshed(folder / PLOT, plot)
            shown[path] = _refreshed(path, render_review(story, read_folder(folder)))

    def named(self, shown: Mapping[Path, str]) -> dict[str, str]:
        """As the journal names files: by their paths in the workspace."""
        return {self._workspace.relative(path): sha256 for path, sha256 in shown.items()}

    def _shown_before(self) -> Mapping[str, str]:
        """What earlier epochs say of the files; nothing where a writer did not end its own."""
        for epoch in reversed(read_journal(self._workspace).epochs):
            if epoch.number == self._journal.epoch:
                continue
            if epoch.projections or not epoch.closed:
                return epoch.projections
        return {}


def renew_pages(workspace: Workspace, journal: Journal) -> str:
    """``Pages.renew``, after what is on record already and stands whatever a page runs into.

    Returns:
        Why they could not all be written, on one line; empty where they were.
    """
    try:
        Pages(workspace, journal, facts(journal.entries)).renew()
    except Exception as error:  # noqa: BLE001 - see above
        what = error.what if isinstance(error, RunbookError) else repr(error)
        return one_line(f"report.md and the reviews' pages are not all renewed: {what}", 400)
    return ""


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
        self._pages = Pages(workspace, journal, known)
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
        self._pages.reviews()
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
        shown = self._pages.write()
        written = [fact for fact in self._known if isinstance(fact, ev.ManifestWritten)]
        path = self._workspace.session_manifest(state.session.run_id)
        shown[path] = artifacts.write_json(
            path, manifest.session_manifest(self._plan, state, written)
        )
        self._journal.projections = self._pages.named(shown)

    def reviews(self) -> None:
        """Each review's page, where it tells anything new."""
        self._pages.reviews()


def _refreshed(path: Path, text: str) -> str:
    """Written where it says anything else than what stands there; its SHA-256."""
    data = text.encode()
    with suppress(OSError):
        if regular_files.read(path) == data:
            return artifacts.sha256_bytes(data)
    return artifacts.write_bytes(path, data)
