"""The journal: what was acknowledged is there, and damage is refused or set aside as evidence."""

import errno
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from runbook import events as ev
from runbook.errors import CorruptError, NeedsPersonError, RunbookError
from runbook.journal import GENESIS, Journal, batches, read_entries, seconds_spent
from runbook.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path / "ws")
    made.create()
    return made


def ticks(start: float = 1_700_000_000.0) -> Iterator[float]:
    return count(start).__iter__()


def fill(workspace: Workspace, number: int = 3) -> Journal:
    times = ticks()
    journal = Journal(workspace, lambda: next(times))
    for i in range(number):
        journal.append({"type": "Test", "i": i, "text": "é"})
    journal.close()
    return journal


def test_what_was_appended_is_read_back(workspace: Workspace) -> None:
    """Bodies come back in order, numbered, chained and with their time."""
    fill(workspace)

    entries = read_entries(workspace)

    assert [(e.seq, e.body["i"]) for e in entries] == [(0, 0), (1, 1), (2, 2)]
    assert entries[1].wall == "2023-11-14T22:13:21+00:00"
    assert GENESIS.encode() in workspace.journal.read_bytes().splitlines()[0]


def test_no_journal_has_no_entries(workspace: Workspace) -> None:
    """A workspace without a journal has an empty history."""
    assert read_entries(workspace) == ()


def test_truncation_at_every_byte_keeps_a_prefix_and_the_evidence(workspace: Workspace) -> None:
    """Cut anywhere, the whole lines stay, and the writer sets the torn rest aside."""
    fill(workspace)
    data = workspace.journal.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for length in range(len(data)):
        workspace.journal.write_bytes(data[:length])
        whole = [end for end in ends if end <= length]
        torn = data[whole[-1] if whole else 0 : length]

        assert len(read_entries(workspace)) == len(whole)
        Journal(workspace, lambda: 0.0).close()

        assert workspace.journal.read_bytes() == data[: whole[-1] if whole else 0]
        evidence = sorted(workspace.torn.iterdir()) if workspace.torn.exists() else []
        assert [p.read_bytes() for p in evidence] == ([torn] if torn else [])
        for path in evidence:
            path.unlink()


def test_one_flipped_bit_in_any_byte_is_refused(workspace: Workspace) -> None:
    """No flip of a single bit goes unnoticed, drops a line, or is taken for a torn tail."""
    fill(workspace, 2)
    data = workspace.journal.read_bytes()
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            workspace.journal.write_bytes(flipped)
            with pytest.raises(CorruptError, match=r"byte \d+"):
                read_entries(workspace)


def test_a_lost_line_below_head_is_refused(workspace: Workspace) -> None:
    """A journal cut at a line's end is noticed from the newest pinned line on."""
    with Journal(workspace, lambda: 0.0) as journal:
        journal.append({"type": "A"})
        journal.append({"type": "B"}, pin=True)
        journal.append({"type": "C"})
    lines = workspace.journal.read_bytes().splitlines(keepends=True)

    workspace.journal.write_bytes(b"".join(lines[:2]))
    kept = read_entries(workspace)
    workspace.journal.write_bytes(lines[0])

    assert len(kept) == 2
    with pytest.raises(CorruptError, match="ends before line 1"):
        read_entries(workspace)


def test_another_line_in_place_of_heads_is_refused(workspace: Workspace) -> None:
    """A sound journal that is not the one HEAD vouches for is not believed."""
    with Journal(workspace, lambda: 0.0) as journal:
        journal.append({"type": "A"}, pin=True)
    workspace.journal.unlink()
    head = workspace.head.read_bytes()
    workspace.head.unlink()
    fill(workspace, 2)
    workspace.head.write_bytes(head)

    with pytest.raises(CorruptError, match="not the one HEAD names"):
        read_entries(workspace)


def test_a_damaged_head_is_refused(workspace: Workspace) -> None:
    """A HEAD that cannot be read vouches for nothing, so nothing is believed."""
    with Journal(workspace, lambda: 0.0) as journal:
        journal.append({"type": "A"}, pin=True)
    workspace.head.write_text("{}")

    with pytest.raises(CorruptError, match="HEAD"):
        read_entries(workspace)


def test_lines_from_another_journal_are_refused(workspace: Workspace) -> None:
    """A line that was written after another one breaks the chain, though it is sound itself."""
    with Journal(workspace, lambda: 0.0) as journal:
        journal.append({"type": "A"})
        journal.append({"type": "B"})
    first = workspace.journal.read_bytes().splitlines(keepends=True)
    workspace.journal.unlink()
    with Journal(workspace, lambda: 0.0) as journal:
        journal.append({"type": "X"})
    other = workspace.journal.read_bytes()

    workspace.journal.write_bytes(other + first[1])

    with pytest.raises(CorruptError, match="not the one it was written after"):
        read_entries(workspace)


def test_a_repeated_line_is_refused(workspace: Workspace) -> None:
    """A line that stands twice is out of sequence."""
    fill(workspace, 1)
    data = workspace.journal.read_bytes()
    workspace.journal.write_bytes(data + data)

    with pytest.raises(CorruptError, match="line 0 stands in place of line 1"):
        read_entries(workspace)


def test_the_journal_goes_on_after_a_torn_tail(workspace: Workspace) -> None:
    """What is appended after the tail was set aside belongs to the same chain."""
    fill(workspace)
    with workspace.journal.open("ab") as file:
        file.write(b"0123abcd 77 {")

    with Journal(workspace, lambda: 0.0) as journal:
        journal.append({"type": "Next"})

    assert [e.body["type"] for e in read_entries(workspace)] == ["Test"] * 3 + ["Next"]


def test_a_large_body_lies_beside_the_journal(workspace: Workspace) -> None:
    """A body that does not fit a line comes back from its own file, and a change to it is seen."""
    body = {"type": "Big", "text": "x" * 200_000}
    with Journal(workspace, lambda: 0.0) as journal:
        journal.append(body)

    assert workspace.journal.stat().st_size < 1000
    assert read_entries(workspace)[0].body == body
    blob = next(workspace.blobs.iterdir())
    blob.write_text(blob.read_text().replace("x", "y", 1))
    with pytest.raises(CorruptError, match="was changed"):
        read_entries(workspace)
    blob.unlink()
    with pytest.raises(CorruptError, match="is missing"):
        read_entries(workspace)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_failed_append_poisons_the_journal(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """After one failed write or fsync nothing more is appended, even with space again."""
    journal = Journal(workspace, lambda: 0.0)
    journal.append({"type": "A"})

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(NeedsPersonError, match="nothing committed is lost"):
            journal.append({"type": "B"})
    with pytest.raises(RunbookError, match="takes no more"):
        journal.append({"type": "C"})
    journal.close()


def test_a_half_written_line_is_recovered_from(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up in the middle of a line costs that line alone."""
    journal = Journal(workspace, lambda: 0.0)
    journal.append({"type": "A"})
    real, calls = os.write, iter([True, False])

    def short(fd: int, data: bytes) -> int:
        if next(calls):
            return real(fd, bytes(data)[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        with pytest.raises(NeedsPersonError):
            journal.append({"type": "B"})
    journal.close()

    Journal(workspace, lambda: 0.0).close()

    assert [e.body["type"] for e in read_entries(workspace)] == ["A"]
    assert len(list(workspace.torn.iterdir())) == 1


def test_a_link_in_place_of_the_journal_is_not_followed(workspace: Workspace) -> None:
    """The journal is never written through a symbolic link."""
    workspace.journal.symlink_to(workspace.root / "elsewhere")

    with pytest.raises(OSError, match="symbolic link"):
        Journal(workspace, lambda: 0.0)


def test_nan_is_not_journalled(workspace: Workspace) -> None:
    """A body with NaN is refused before a byte is written, and the journal stays usable."""
    journal = Journal(workspace, lambda: 0.0)

    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append({"type": "A", "x": float("nan")})
    journal.append({"type": "B"})
    journal.close()

    assert len(read_entries(workspace)) == 1


def test_batches_are_those_of_one_attempt(workspace: Workspace) -> None:
    """Another attempt's batches do not count as made."""
    with Journal(workspace, lambda: 0.0) as journal:
        for attempt, key in ((1, "a"), (2, "a"), (2, "b")):
            journal.append(ev.BatchCommitted("s", attempt, key, f"p/{key}", "sha", 1).to_body())

    found = batches(read_entries(workspace), "s", 2)

    assert list(found) == ["a", "b"]


def test_time_between_runs_is_not_spent(workspace: Workspace) -> None:
    """Only the time in which an executor was at work counts against the budget."""
    times = iter([0.0, 10.0, 500.0, 1000.0, 1005.0])
    resumed = ev.SessionResumed(1, "h").to_body()
    decided = ev.ReviewDecided("s-1", "stop", {}, "r", "me", person=True).to_body()
    interrupted = ev.StepInterrupted("s", 1, "x").to_body()
    with Journal(workspace, lambda: next(times)) as journal:
        for body in (resumed, interrupted, decided, resumed, interrupted):
            journal.append(body)

    assert seconds_spent(read_entries(workspace)) == 15.0
