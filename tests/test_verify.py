"""verify: any changed, missing or extra byte of what was committed is found, and named."""

from pathlib import Path

import pytest
from cli_session import call, write_runbook

from runbook.crash_session import run_forked
from runbook.faults import Fault
from runbook.testing import simple_gates
from runbook.verify import verify
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]
DONE: dict[str, Workspace] = {}


@pytest.fixture
def done(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished session; a test that changes it puts it back."""
    if not DONE:
        root = tmp_path_factory.mktemp("verify") / "ws"
        assert run_forked(root, simple_gates) == 0
        DONE["done"] = Workspace.at(root)
    return DONE["done"]


def committed(place: Workspace) -> list[Path]:
    """All but logs, locks and heartbeats."""
    loose = (place.logs, place.lock_file, place.heartbeat, place.reviews)
    files = sorted(path for path in place.root.rglob("*") if path.is_file())
    return [p for p in files if not any(p == x or x in p.parents for x in loose)]


def found(place: Workspace) -> list[str]:
    return [f"{finding.where}: {finding.what}" for finding in verify(place).findings]


def test_an_untouched_session_is_sound(done: Workspace) -> None:
    """Nothing is found, and every committed file was looked at."""
    result = verify(done)

    assert result.findings == ()
    assert result.notes == ()
    assert result.files >= 20


def test_a_flipped_bit_in_any_committed_file_is_named(done: Workspace) -> None:
    """At the first, the middle and the last byte of every file, the report among them."""
    files = committed(done)
    assert {"report.md", "dataset.jsonl", "COMPLETE.json", "gate.txt", "HEAD"} <= {
        f.name for f in files
    }
    for path in files:
        data = path.read_bytes()
        for position in {0, len(data) // 2, len(data) - 1}:
            flipped = bytearray(data)
            flipped[position] ^= 1 << (position % 8)
            path.write_bytes(flipped)
            told = found(done)
            assert any(path.name in line for line in told), f"{path}, byte {position}: {told}"
        path.write_bytes(data)
    assert found(done) == []


def test_a_missing_file_is_named(done: Workspace) -> None:
    """Each committed file, taken away, is missed by its name."""
    for path in committed(done):
        data = path.read_bytes()
        path.unlink()
        told = found(done)
        path.write_bytes(data)
        if path.name != "COMPLETE.json":
            assert any(path.name in line for line in told), f"{path}: {told}"
    assert found(done) == []


def test_an_added_byte_and_an_added_file_are_named(done: Workspace) -> None:
    """A byte behind any file's end, and a file beside a step's own, are extra or a change."""
    for path in committed(done):
        data = path.read_bytes()
        # The latter could be the start of a journal's line.
        for added in (b"x", b"0"):
            path.write_bytes(data + added)
            told = found(done)
            path.write_bytes(data)
            assert any(path.name in line for line in told), f"{path}, {added!r}: {told}"
    output = next(done.artifacts.glob("data_*"))
    extra = output / "smuggled.jsonl"
    extra.write_text("{}\n")
    told = found(done)
    extra.unlink()

    assert [line.split("/")[-1] for line in told] == ["smuggled.jsonl: extra"]


def test_bytes_behind_a_taken_over_journal_are_told_apart(tmp_path: Path) -> None:
    """A torn line and a superseded writer's lines are notes; anything else is a finding."""
    root = tmp_path / "ws"
    assert run_forked(root, simple_gates, own=Fault(120)) < 0
    place = Workspace.at(root)
    first = place.segment(1)
    with first.open("ab") as file:
        file.write(b"0123abcd 77 {")
    assert run_forked(root, simple_gates) == 0
    assert found(place) == []
    assert verify(place).notes == (
        ".runbook/journal.jsonl: 13 bytes of a line that a crash cut short",
    )
    data = first.read_bytes()

    first.write_bytes(data + data.splitlines(keepends=True)[-2])
    late = verify(place)
    first.write_bytes(data + b"smuggled")

    assert late.findings == ()
    assert any("superseded executor wrote" in note for note in late.notes)
    assert found(place) == [f".runbook/journal.jsonl, byte {len(data)}: extra: 8 bytes"]


def test_the_verb_ends_with_three_and_names_the_file(tmp_path: Path, capfd: Capture) -> None:
    """Damage is exit 3; a sound session is 0; each finding is a JSON object."""
    spec = write_runbook(tmp_path, {"metrics": {"score": 0.9}})
    root = tmp_path / "ws"
    call(capfd, "run", spec, "--workspace", root)
    sound = call(capfd, "verify", "--workspace", root)
    data = next(root.glob("artifacts/a_*/dataset.jsonl"))
    data.write_bytes(data.read_bytes()[:-1])

    damaged = call(capfd, "verify", "--workspace", root, "--json")

    assert sound.code == 0, sound.err
    assert damaged.code == 3
    assert damaged.lines[0]["where"].endswith("dataset.jsonl")
    assert damaged.lines[0]["what"] == "changed"


@pytest.mark.parametrize("place", ["empty", "file", "nowhere"])
def test_a_place_without_a_session_is_no_sound_one(
    tmp_path: Path, capfd: Capture, place: str
) -> None:
    """Nothing to compare is exit 2 and says so, never 'no findings'."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")

    told = call(capfd, "verify", "--workspace", tmp_path / place)

    assert told.code == 2
    assert "fix:" in told.err
    assert "Traceback" not in told.err
