"""verify: any changed, missing or extra byte of what was committed is found, and named."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_session import call, write_runbook

from runbook import manifest
from runbook.artifacts import complete_directory, indented_json
from runbook.contract import Criterion, Gate
from runbook.crash_session import run_forked
from runbook.executor import Seams, run_session
from runbook.faults import Fault
from runbook.testing import make_plan, make_step, simple_gates
from runbook.verify import verify
from runbook.workspace import Workspace

Capture = pytest.CaptureFixture[str]
DONE: dict[str, Workspace] = {}
SEAMS = Seams(simple_gates, lambda _: None)


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


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished session of two epochs: paused once, with a judgement; a test puts it back."""
    place = Workspace.at(tmp_path_factory.mktemp("twice") / "ws")
    gate = Gate((Criterion("m", "rate", at_least=0.5),))
    params = {"metrics": {"m": 0.6}, "trouble": {"kind": "pause", "at": 1}}
    plan = make_plan(make_step("a", gate=gate, params=params))
    assert [run_session(plan, place, SEAMS) for _ in range(2)] == [75, 0]
    assert found(place) == []
    return place


def small(place: Workspace) -> list[Path]:
    names = {"COMPLETE.json", "manifest.json", "gate.json", "gate.txt", "HEAD", "HEAD.2"}
    files = [path for path in committed(place) if path.name in names]
    assert {path.name for path in files} == names
    return files


def names(place: Workspace, path: Path) -> bool:
    """Whether a finding is of this very file, or of the journal for what this HEAD says of it."""
    where = {str(path), path.relative_to(place.root).as_posix()}
    said = f"{path.name} names"
    return any(f.where in where or f.what.endswith(said) for f in verify(place).findings)


def changes(data: bytes) -> Iterator[bytes]:
    """Every small change: a bit of each byte, another space, another digit; a byte more or less."""
    for position, byte in enumerate(data):
        others = {byte ^ 1 << position % 8}
        others |= {*b" \t\n\r"} if byte in b" \n" else set()
        others |= {48 + (byte - 47) % 10} if chr(byte).isdigit() else set()
        for other in others - {byte}:
            yield data[:position] + bytes([other]) + data[position + 1 :]
    yield from (data + bytes([added]) for added in b" \n0}x\0")
    yield from (data[:-1], data[1:], b"", b"{}", data * 2)


def test_every_small_change_of_every_small_file_is_named(twice: Workspace) -> None:
    """Of both epochs' HEADs, the marker, the manifest and both files of the judgement."""
    tried = 0
    for path in small(twice):
        data = path.read_bytes()
        for changed in changes(data):
            path.write_bytes(changed)
            assert names(twice, path), f"{path}: {changed!r}: {found(twice)}"
            tried += 1
        path.unlink()
        assert names(twice, path), f"{path}: {found(twice)}"
        path.write_bytes(data)
    assert found(twice) == []
    assert tried > 4000


def test_every_bit_of_the_heads_and_the_marker_is_held(twice: Workspace) -> None:
    """These are vouched for by no hash of their own name, but by what they must say."""
    for path in small(twice):
        data = path.read_bytes()
        bits = 8 * len(data) if path.name in {"HEAD", "HEAD.2", "COMPLETE.json"} else 0
        for bit in range(bits):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert names(twice, path), f"{path}, bit {bit}"
        path.write_bytes(data)


def test_a_head_names_a_line_of_its_own_epoch(twice: Workspace) -> None:
    """One that names another epoch's line, or says more than its writer does, is told."""
    heads = [twice.head(1), twice.head(2)]
    data = [path.read_bytes() for path in heads]
    first, last = (json.loads(head) for head in data)
    for path, kept, other in (
        (heads[0], data[0], {**last, "epoch": 1}),
        (heads[1], data[1], {**first, "epoch": 2}),
        (heads[1], data[1], {**last, "seq": first["seq"]}),
        (heads[1], data[1], {**last, "why": "because"}),
    ):
        path.write_bytes(indented_json(other).encode())
        told = found(twice)
        path.write_bytes(kept)
        assert told != [], other
    assert found(twice) == []


def test_a_marker_that_turns_up_later_is_extra(tmp_path: Path) -> None:
    """A folder that was never declared complete does not become so, nor an artifact's."""
    place = session_of(
        tmp_path,
        "    folder = request.output / 'kept'\n"
        "    folder.mkdir()\n"
        "    write_text(folder / 'x.txt', 'x')\n"
        "    return PhaseResult(artifacts=(describe('kept', folder, request.workspace),))\n",
    )
    output = place.artifacts / "a"
    told = []
    for folder in (output, output / "kept"):
        complete_directory(folder)
        told.append(found(place))
        (folder / "COMPLETE.json").unlink()

    assert told == [
        ["artifacts/a/COMPLETE.json: extra"],
        ["artifacts/a/kept/COMPLETE.json: extra"],
    ]
    assert found(place) == []


ADAPTER = """
    folder = request.output / "attempt_1"
    folder.mkdir()
    write_text(folder / "weights.bin", "weights")
    complete_directory(folder)
    checkpoint = request.work / "checkpoint-5"
    checkpoint.mkdir()
    write_text(checkpoint / "state.bin", "optimizer")
    complete_directory(checkpoint)
    marker = checkpoint / "COMPLETE.json"
    where = marker.relative_to(request.workspace).as_posix()
    request.channel.commit(Committed("checkpoint-5", where, sha256_file(marker), 5))
    return PhaseResult(artifacts=(describe("adapter", folder, request.workspace),))
"""


def test_what_training_leaves_is_held_to_its_last_byte(tmp_path: Path) -> None:
    """An adapter's and a checkpoint's files, and the markers that declare them complete."""
    place = session_of(tmp_path, ADAPTER)
    files = [
        path
        for path in place.artifacts.rglob("*")
        if path.name in {"weights.bin", "state.bin", "COMPLETE.json"}
    ]
    assert len(files) == 4
    for path in files:
        data = path.read_bytes()
        shown = f"{path.relative_to(place.root).as_posix()}: "
        for changed in changes(data):
            path.write_bytes(changed)
            assert any(line.startswith(shown) for line in found(place)), changed
        path.unlink()
        assert f"{shown}missing" in found(place)
        path.write_bytes(data)
        (path.parent / "more.bin").write_text("x")
        assert any(line.endswith("more.bin: extra") for line in found(place))
        (path.parent / "more.bin").unlink()
    assert found(place) == []


def test_a_link_out_of_the_workspace_is_found_and_not_followed(
    tmp_path: Path, capfd: Capture
) -> None:
    """In the place of a committed folder, of a manifest and of the report; named, exit 3."""
    place = session_of(tmp_path, ADAPTER)
    (adapter,) = place.artifacts.glob("*/attempt_1")
    (manifest_file,) = place.artifacts.glob("*/manifest.json")
    for path in (adapter, manifest_file, place.report):
        away = tmp_path / "away"
        path.rename(away)
        path.symlink_to(away)

        shown = path.relative_to(place.root).as_posix()
        assert any(line.startswith(shown) and "link" in line for line in found(place)), path
        assert call(capfd, "verify", "--workspace", place.root).code == 3
        path.unlink()
        away.rename(path)
    assert found(place) == []


def test_a_journal_without_markers_is_checked_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an older release's session the marker that is there is read, to the last digit."""
    monkeypatch.setattr(manifest, "markers", lambda *_: None)
    place = Workspace.at(tmp_path / "ws")
    assert run_session(make_plan(make_step("a")), place, SEAMS) == 0
    (marker,) = place.artifacts.glob("*/COMPLETE.json")
    data = marker.read_bytes()
    assert found(place) == []

    for changed in changes(data):
        marker.write_bytes(changed)
        assert any(str(marker.parent.name) in line for line in found(place)), changed
    marker.unlink()

    assert found(place) == []


def session_of(folder: Path, body: str) -> Workspace:
    """A session of one step of this body."""
    (folder / "mine.py").write_text(
        "from runbook.artifacts import *\n"
        "from runbook.contract import Committed, PhaseResult\n\n"
        f"def run(request):\n{body}"
    )
    step = make_step("a", function="mine:run", output="artifacts/a")
    place = Workspace.at(folder / "ws")
    plan = make_plan(step, runbook=folder / "runbook.yaml")
    assert run_session(plan, place, SEAMS) == 0
    assert found(place) == []
    return place


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
