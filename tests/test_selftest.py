"""selftest: it finds what a crash loses, says so, and leaves a certificate that reports show."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_session import call, write_runbook

from runbook import selftest
from runbook.faults import KILL, TEAR
from runbook.testing import simple_gates
from runbook.verify import Verification
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]


def quick(folder: Path) -> tuple[selftest.Certificate, list[str]]:
    told: list[str] = []
    found = selftest.selftest(folder, simple_gates, told.append, "2026-01-01", limit_s=8.0)
    return found, told


def test_a_sound_volume_passes_and_is_left_as_it_was(tmp_path: Path) -> None:
    """Every kind of fault is tried at some places at least, and nothing stays behind."""
    certificate, told = quick(tmp_path)

    assert certificate.passed, told
    assert [sweep.name.split()[0] for sweep in certificate.sweeps] == [
        "killed",
        "killed",
        "disk",
        "journal",
        "bit",
        "bit",
    ]
    assert all(sweep.tried > 0 for sweep in certificate.sweeps)
    assert certificate.sweeps[3].tried == certificate.sweeps[3].places > 5000
    assert list(tmp_path.iterdir()) == []


def test_a_verify_that_sees_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With verify blinded, flipped bits in committed files go unnamed, and the selftest says so."""
    monkeypatch.setattr(selftest, "verify", lambda _: Verification((), (), 0))

    certificate, told = quick(tmp_path)

    assert not certificate.passed
    assert any("FAILED" in line for line in told)


def test_work_done_twice_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An executor that forgets its committed batches is caught."""
    monkeypatch.setattr("runbook.acts.batches", lambda *_: {})

    certificate, _ = quick(tmp_path)

    failures = [f for sweep in certificate.sweeps[:3] for f in sweep.failures]
    assert any("made again" in failure for failure in failures)


def test_a_child_of_somebody_else_is_not_taken_for_a_sweeps() -> None:
    """Whatever the process that calls it started before may end meanwhile, and end badly."""
    stranger = subprocess.Popen([sys.executable, "-c", "raise SystemExit(9)"])
    os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)
    case = selftest.Case("executor", 1, KILL)

    told = selftest._in_forks([[case], [case]], lambda _: ("", 0), time.monotonic() + 60.0)

    assert told == [("", 0), ("", 0)]
    assert stranger.wait() == 9


def test_places_left_out_are_spread_evenly() -> None:
    """Whatever the time allows, the places tried cover the whole session."""
    cases = [selftest.Case("executor", at, KILL) for at in range(1, 101)]

    ordered = [case.at for case in selftest.spread(cases)]

    assert sorted(ordered) == list(range(1, 101))
    assert max(ordered[:10]) - min(ordered[:10]) >= 90
    assert selftest.Case("child", 3, TEAR).name == "tear at durable call 3 of the child"


def test_the_certificate_is_shown_by_later_reports(tmp_path: Path, capfd: Capture) -> None:
    """A session records the summary of its volume's certificate, and its report tells it."""
    spec = write_runbook(tmp_path, {"metrics": {"score": 0.9}})
    place = Workspace.at(tmp_path / "ws")
    place.hidden.mkdir(parents=True)
    summary = {"passed": True, "wall": "2026-01-01", "tried": 7, "places": 9, "fsync_ms": 0.4}
    place.certificate.write_text(json.dumps({"summary": summary}))

    assert call(capfd, "run", spec, "--workspace", place.root).code == 0

    report = place.report.read_text()
    assert "nothing lost or done twice in 7 of 9 faults" in report
