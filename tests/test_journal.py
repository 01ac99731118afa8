"""The journal: what was acknowledged is there, and damage is refused or kept as evidence."""

import errno
import os
from itertools import count
from pathlib import Path

import pytest

from runbook import artifacts, durable, journal_lines
from runbook import events as ev
from runbook.clock import Clock
from runbook.contract import Json
from runbook.errors import CorruptError, LockedError, NeedsPersonError, RunbookError
from runbook.journal import (
    GENESIS,
    batches,
    read_entries,
    read_journal,
    seconds_before,
    seconds_spent,
)
from runbook.journal_writer import Journal
from runbook.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path / "ws")
    made.create()
    return made


def ticking() -> Clock:
    """A clock that goes on by a second at each look."""
    walls, monos = count(1_700_000_000.0), count(0.0)
    return Clock(lambda: next(walls), lambda: next(monos))


def fill(workspace: Workspace, number: int = 3) -> None:
    with Journal(workspace, ticking()) as journal:
        for i in range(number):
            journal.append({"type": "Test", "i": i, "text": "é"})


def abandon(workspace: Workspace, *bodies: dict[str, Json], pin: bool = False) -> Journal:
    """A writer that appends and is then neither closed nor heard of again."""
    journal = Journal(workspace, ticking())
    for body in bodies:
        journal.append(body, pin=pin)
    return journal


def told(workspace: Workspace) -> list[str]:
    return [entry.body["type"] for entry in read_entries(workspace)]


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_what_was_appended_is_read_back(workspace: Workspace) -> None:
    """Bodies come back in order, numbered, chained and with their times."""
    fill(workspace)

    entries = read_entries(workspace)

    assert [(e.seq, e.body["i"]) for e in entries] == [(1, 0), (2, 1), (3, 2)]
    assert (entries[1].wall, entries[1].mono) == ("2023-11-14T22:13:22+00:00", 2.0)
    assert GENESIS.encode() in lines_of(workspace.segment(1))[0]


def test_no_journal_has_no_entries(workspace: Workspace) -> None:
    """A workspace without a journal has an empty history."""
    assert read_entries(workspace) == ()


def test_each_writer_has_an_epoch_of_its_own(workspace: Workspace) -> None:
    """A second writer opens a second file, which says what the first one came to."""
    fill(workspace, 1)
    fill(workspace, 2)

    epochs = read_journal(workspace).epochs

    assert [(e.number, e.closed, e.behind) for e in epochs] == [(1, True, b""), (2, True, b"")]
    assert epochs[1].before is not None
    assert epochs[1].before.length == workspace.segment(1).stat().st_size
    assert [e.epoch for e in read_entries(workspace)] == [1, 2, 2]
    assert epochs[0].owner.pid == os.getpid()


def test_truncation_at_every_byte_above_head_keeps_a_prefix(workspace: Workspace) -> None:
    """Cut anywhere behind HEAD's line, the whole lines stay, and the torn rest is evidence."""
    bodies = [{"type": "Test", "i": i} for i in range(3)]
    abandon(workspace, *bodies)
    path = workspace.segment(1)
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for length in range(ends[0], len(data)):
        path.write_bytes(data[:length])
        whole = [end for end in ends if end <= length]

        assert len(read_entries(workspace)) == len(whole) - 1
        Journal(workspace).close()

        found = read_journal(workspace).epochs
        assert found[0].behind == data[whole[-1] : length]
        assert found[1].before is not None
        assert found[1].before.torn_length == length - whole[-1]
        assert path.read_bytes() == data[:length]
        workspace.segment(2).unlink()
        workspace.head(2).unlink()


def test_truncation_below_head_is_refused(workspace: Workspace) -> None:
    """Cut anywhere before HEAD's line ends, nothing is believed."""
    abandon(workspace, {"type": "A"}, pin=True)
    path = workspace.segment(1)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptError, match=r"byte \d+"):
            read_entries(workspace)


def test_one_flipped_bit_in_any_byte_is_refused(workspace: Workspace) -> None:
    """No flip of a single bit goes unnoticed, drops a line, or is taken for a torn tail."""
    fill(workspace, 1)
    abandon(workspace, {"type": "Last"})
    for path in (workspace.segment(1), workspace.segment(2)):
        data = path.read_bytes()
        for position in range(len(data)):
            for bit in range(8):
                flipped = bytearray(data)
                flipped[position] ^= 1 << bit
                path.write_bytes(flipped)
                with pytest.raises(CorruptError, match=r"byte \d+"):
                    read_entries(workspace)
        path.write_bytes(data)


def test_damage_is_named_with_its_place(workspace: Workspace) -> None:
    """The refusal tells the file and the offset of the line that does not fit."""
    fill(workspace, 2)
    path = workspace.segment(1)
    first, second, *rest = lines_of(path)
    path.write_bytes(first + second.replace(b'"i":0', b'"i":7') + b"".join(rest))

    with pytest.raises(CorruptError, match="checksum") as caught:
        read_entries(workspace)

    assert caught.value.where == f"{path}, byte {len(first)}"


def test_a_lost_line_below_head_is_refused(workspace: Workspace) -> None:
    """A journal cut at a line's end is noticed from the newest pinned line on."""
    journal = abandon(workspace, {"type": "A"})
    journal.append({"type": "B"}, pin=True)
    journal.append({"type": "C"})
    lines = lines_of(workspace.segment(1))

    workspace.segment(1).write_bytes(b"".join(lines[:3]))
    kept = told(workspace)
    workspace.segment(1).write_bytes(b"".join(lines[:2]))

    assert kept == ["A", "B"]
    with pytest.raises(CorruptError, match="ends before line 2"):
        read_entries(workspace)


def test_a_lost_line_of_an_older_epoch_is_refused(workspace: Workspace) -> None:
    """What the next writer found must still be there, pinned or not."""
    abandon(workspace, {"type": "A"}, {"type": "B"})
    fill(workspace, 1)
    lines = lines_of(workspace.segment(1))
    workspace.segment(1).write_bytes(b"".join(lines[:-1]))

    with pytest.raises(CorruptError, match="bytes stood here when the next epoch opened"):
        read_entries(workspace)


@pytest.mark.parametrize("name", ["journal.jsonl", "journal.2.jsonl", "journal.3.jsonl"])
def test_a_missing_epoch_is_refused(workspace: Workspace, name: str) -> None:
    """None of the journal's files may go missing, the newest neither."""
    for _ in range(3):
        fill(workspace, 1)
    (workspace.hidden / name).unlink()

    with pytest.raises(CorruptError, match="is missing"):
        read_entries(workspace)


def test_a_missing_head_is_refused(workspace: Workspace) -> None:
    """Without HEAD nothing vouches for the end, so it may not be taken away."""
    fill(workspace)
    workspace.head(1).unlink()

    with pytest.raises(CorruptError, match="HEAD is missing"):
        read_entries(workspace)


@pytest.mark.parametrize("text", ["{}", "", "[]", '{"epoch":2,"seq":1,"sha256":"x"}'])
def test_a_damaged_head_is_refused(workspace: Workspace, text: str) -> None:
    """A HEAD that cannot be read, or is another epoch's, vouches for nothing."""
    fill(workspace)
    workspace.head(1).write_text(text)

    with pytest.raises(CorruptError, match="HEAD cannot be read"):
        read_entries(workspace)


def test_another_line_in_place_of_heads_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    """A sound journal that is not the one HEAD vouches for is not believed."""
    other = Workspace.at(tmp_path / "other")
    other.create()
    fill(workspace)
    fill(other)
    workspace.segment(1).write_bytes(other.segment(1).read_bytes().replace(b"x", b"x"))
    workspace.head(1).write_bytes(
        other.head(1).read_bytes().replace(b'"sha256": "', b'"sha256": "0')
    )

    with pytest.raises(CorruptError, match="not the one HEAD names"):
        read_entries(workspace)


def test_lines_from_another_journal_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    """A line that was written after another one breaks the chain, though it is sound itself."""
    other = Workspace.at(tmp_path / "other")
    other.create()
    abandon(workspace, {"type": "A"}, {"type": "B"})
    abandon(other, {"type": "X"})
    mine, theirs = lines_of(workspace.segment(1)), lines_of(other.segment(1))

    workspace.segment(1).write_bytes(mine[0] + theirs[1] + mine[2])

    with pytest.raises(CorruptError, match="not the one it was written after"):
        read_entries(workspace)


def test_a_repeated_line_is_refused(workspace: Workspace) -> None:
    """A line that stands twice is out of sequence."""
    abandon(workspace, {"type": "A"})
    with workspace.segment(1).open("ab") as file:
        file.write(lines_of(workspace.segment(1))[1])

    with pytest.raises(CorruptError, match="line 1 stands in place of line 2"):
        read_entries(workspace)


def test_the_journal_goes_on_after_a_torn_tail(workspace: Workspace) -> None:
    """What is appended after a crash is of the same chain; the torn bytes stay in their place."""
    abandon(workspace, {"type": "A"})
    with workspace.segment(1).open("ab") as file:
        file.write(b"0123abcd 77 {")

    with Journal(workspace) as journal:
        journal.append({"type": "Next"})

    assert told(workspace) == ["A", "Next"]
    assert workspace.segment(1).read_bytes().endswith(b"0123abcd 77 {")
    before = read_journal(workspace).epochs[1].before
    assert before is not None
    assert before.torn_length == 13


def test_a_superseded_writer_stops_at_its_next_line(workspace: Workspace) -> None:
    """Once a later epoch is open, the earlier writer's append is refused with exit code 7."""
    old = abandon(workspace, {"type": "A"})
    new = abandon(workspace, {"type": "B"})

    with pytest.raises(LockedError, match="taken the workspace over") as caught:
        old.append({"type": "Late"})
    old.close()
    new.append({"type": "C"})

    assert caught.value.code == 7
    assert told(workspace) == ["A", "B", "C"]


def test_a_superseded_writer_adds_no_byte_at_its_next_line(workspace: Workspace) -> None:
    """What it finds superseded before its write, it leaves as it is."""
    old = abandon(workspace, {"type": "A"})
    abandon(workspace, {"type": "B"})
    before = workspace.segment(1).read_bytes()

    with pytest.raises(LockedError):
        old.append({"type": "Late"})

    assert workspace.segment(1).read_bytes() == before


def test_a_superseded_writer_whose_file_was_cleared_away_is_told_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one clears up half-written files; what fails by that ends with 7 all the same."""
    old = abandon(workspace, {"type": "A"})

    def supersede(call: str, path: Path, data: durable.Data) -> durable.Data:
        if call == "rename" and path == workspace.head(1):
            monkeypatch.setattr(durable, "fault", None)
            artifacts.settle(workspace.root)
            abandon(workspace, {"type": "B"})
        return data

    monkeypatch.setattr(durable, "fault", supersede)
    with pytest.raises(LockedError, match="taken the workspace over"):
        old.append({"type": "Late"}, pin=True)


def test_a_journal_that_was_taken_away_is_not_written_on(workspace: Workspace) -> None:
    """A volume unmounted under the open file: bytes that no path leads to are no journal."""
    journal = abandon(workspace, {"type": "A"})
    workspace.segment(1).rename(workspace.root / "elsewhere")

    with pytest.raises(NeedsPersonError, match="is gone"):
        journal.append({"type": "B"})


def test_what_a_superseded_writer_adds_is_evidence(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer paused between its check and its write adds bytes that count for nothing."""
    old = abandon(workspace, {"type": "A"})
    real = os.write
    new: list[Journal] = []

    def pause(fd: int, data: bytes) -> int:
        if not new:
            monkeypatch.setattr(os, "write", real)
            new.append(abandon(workspace, {"type": "B"}))
        return real(fd, data)

    monkeypatch.setattr(os, "write", pause)
    with pytest.raises(LockedError, match="taken the workspace over"):
        old.append({"type": "Late"}, pin=True)
    new[0].append({"type": "C"})

    assert told(workspace) == ["A", "B", "C"]
    assert b"Late" in read_journal(workspace).epochs[0].behind


def test_a_claim_that_came_to_nothing_is_passed_over(workspace: Workspace) -> None:
    """An empty or torn file of a writer killed at its start holds up nobody, then or later."""
    fill(workspace, 1)
    workspace.segment(2).touch()
    workspace.segment(3).write_bytes(b"0123abcd 400 {")

    fill(workspace, 1)
    reading = read_journal(workspace)

    assert [e.number for e in reading.epochs] == [1, 4]
    assert reading.strays == (workspace.segment(2), workspace.segment(3))
    assert told(workspace) == ["Test", "Test"]


def test_a_line_acknowledged_while_another_takes_over_counts(workspace: Workspace) -> None:
    """Between the reading and the claim of the next one, a writer's word still stands."""
    first = abandon(workspace, {"type": "A"}, pin=True)
    before = read_journal(workspace)
    first.append({"type": "Paid"}, pin=True)

    second = Journal(workspace, reading=before)

    assert [entry.body["type"] for entry in second.entries] == ["A", "Paid"]
    second.append({"type": "B"})
    assert told(workspace) == ["A", "Paid", "B"]
    with pytest.raises(LockedError):
        first.append({"type": "late"})


def test_a_rival_that_took_over_first_is_taken_over_whole(workspace: Workspace) -> None:
    """Of two that read the same journal the later claim goes on from the earlier one's lines."""
    fill(workspace, 1)
    before = read_journal(workspace)
    rival = abandon(workspace, {"type": "Paid"})

    with Journal(workspace, reading=before) as journal:
        journal.append({"type": "B"})

    assert told(workspace) == ["Test", "Paid", "B"]
    with pytest.raises(LockedError):
        rival.append({"type": "late"})


def test_an_epoch_that_no_later_one_has_seen_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that pinned a line held the workspace, so its lines cannot count for nothing."""
    fill(workspace, 1)
    before = read_journal(workspace)
    abandon(workspace, {"type": "Paid"})
    monkeypatch.setattr(Journal, "_found_since", lambda _, reading: reading)
    Journal(workspace, reading=before).close()

    with pytest.raises(CorruptError, match="epoch 2 is in no later epoch's past"):
        read_journal(workspace)


def test_the_head_of_an_older_epoch_is_held_too(workspace: Workspace) -> None:
    """A line that was pinned and that the next writer did not find is missed."""
    first = abandon(workspace, {"type": "A"}, pin=True)
    path, head = workspace.segment(1), workspace.head(1)
    kept = path.read_bytes(), head.read_bytes()
    first.append({"type": "Paid"}, pin=True)
    pinned = head.read_bytes()
    path.write_bytes(kept[0])
    head.write_bytes(kept[1])
    abandon(workspace, {"type": "B"})
    assert told(workspace) == ["A", "B"]

    head.write_bytes(pinned)

    with pytest.raises(CorruptError, match="ends before line 2"):
        read_journal(workspace)


def test_two_claims_at_once_have_one_winner(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch's file is created exclusively, so the slower one is told that it is held."""
    fill(workspace, 1)
    reading = read_journal(workspace)
    real = os.open

    def race(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_EXCL and Path(path) == workspace.segment(2):
            monkeypatch.setattr(os, "open", real)
            abandon(workspace, {"type": "Winner"})
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", race)
    with pytest.raises(LockedError, match="taken the workspace over"):
        Journal(workspace, reading=reading)

    assert told(workspace) == ["Test", "Winner"]


def test_a_claim_is_one_writers_alone(workspace: Workspace) -> None:
    """A writer that read before another claimed the epoch creates no second file of its name."""
    durable.create(workspace.segment(1), append=True)

    with pytest.raises(FileExistsError):
        durable.create(workspace.segment(1), append=True)


def test_a_new_epochs_name_is_durable_before_its_head(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HEAD never vouches for a file whose name a power cut may take."""
    calls: list[tuple[str, str]] = []

    def note(call: str, path: Path, data: durable.Data) -> durable.Data:
        calls.append((call, path.name))
        return data

    monkeypatch.setattr(durable, "fault", note)
    abandon(workspace)

    assert calls.index(("fsync", ".runbook")) < calls.index(("write", "HEAD"))


def test_other_bytes_of_an_older_epoch_are_refused(workspace: Workspace) -> None:
    """The next epoch's own word on the one before it is held against the bytes."""
    abandon(workspace, {"type": "A"})
    fill(workspace, 1)
    path = workspace.segment(2)
    first, *rest = lines_of(path)
    record = dict(journal_lines.parse(first)[0][0].record)
    record["body"]["before"]["sha256"] = "0" * 64
    path.write_bytes(journal_lines.encode(record) + b"".join(rest))

    with pytest.raises(CorruptError, match="not the lines that the next epoch found"):
        read_entries(workspace)


def test_a_large_body_lies_beside_the_journal(workspace: Workspace) -> None:
    """A body that does not fit a line comes back from its own file, and a change to it is seen."""
    body = {"type": "Big", "text": "x" * 200_000}
    with Journal(workspace) as journal:
        journal.append(body)

    assert workspace.segment(1).stat().st_size < 3000
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
    journal = Journal(workspace)
    journal.append({"type": "A"})

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(NeedsPersonError, match="nothing committed is lost"):
            journal.append({"type": "B"})
    size = workspace.segment(1).stat().st_size
    with pytest.raises(RunbookError, match="takes no more"):
        journal.append({"type": "C"})
    journal.close()

    assert workspace.segment(1).stat().st_size == size


def test_a_head_that_cannot_be_written_poisons_the_journal(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that should have been pinned and was not is the last one of its writer."""
    journal = Journal(workspace)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(NeedsPersonError):
            journal.append({"type": "A"}, pin=True)
    with pytest.raises(RunbookError, match="takes no more"):
        journal.append({"type": "B"})

    assert told(workspace) == ["A"]


def test_a_half_written_line_is_recovered_from(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up in the middle of a line costs that line alone."""
    journal = Journal(workspace)
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

    fill(workspace, 1)

    assert told(workspace) == ["A", "Test"]
    assert len(read_journal(workspace).epochs[0].behind) == 20


def test_a_link_in_place_of_the_journal_is_not_followed(workspace: Workspace) -> None:
    """The journal is never written through a symbolic link."""
    workspace.segment(1).symlink_to(workspace.root / "elsewhere")

    Journal(workspace).close()

    assert not (workspace.root / "elsewhere").exists()
    assert [e.number for e in read_journal(workspace).epochs] == [2]


def test_nan_is_not_journalled(workspace: Workspace) -> None:
    """A body with NaN is refused before a byte is written, and the journal stays usable."""
    with Journal(workspace) as journal:
        with pytest.raises(ValueError, match="not JSON compliant"):
            journal.append({"type": "A", "x": float("nan")})
        journal.append({"type": "B"})

    assert told(workspace) == ["B"]


def test_a_line_of_other_fields_is_damage() -> None:
    """A sound checksum over something that is no journal line is refused."""
    line = journal_lines.encode({"seq": 0})

    with pytest.raises(journal_lines.DamageError, match="has the fields"):
        journal_lines.parse(line)


def test_batches_are_those_of_one_attempt(workspace: Workspace) -> None:
    """Another attempt's batches do not count as made."""
    with Journal(workspace) as journal:
        for attempt, key in ((1, "a"), (2, "a"), (2, "b")):
            journal.append(ev.BatchCommitted("s", attempt, key, f"p/{key}", "sha", 1).to_body())

    found = batches(read_entries(workspace), "s", 2)

    assert list(found) == ["a", "b"]


def test_only_an_executors_own_time_is_spent(workspace: Workspace) -> None:
    """Time between runs, a person's decision and a jump of the wall clock cost nothing."""
    resumed = ev.SessionResumed().to_body()
    decided = ev.ReviewDecided("s-1", "stop", {}, "r", "me", person=True).to_body()
    interrupted = ev.StepInterrupted("s", 1, "x").to_body()
    month = 30 * 86400.0
    for monos, bodies in (
        ((0.0, 1.0, 11.0, 12.0), (resumed, interrupted)),
        ((500.0, 501.0, 502.0), (decided,)),
        ((3.0, 4.0, 9.0, 10.0), (resumed, interrupted)),
    ):
        mono, wall = iter(monos), iter([0.0, month, 0.0, -month])
        clock = Clock(lambda wall=wall: next(wall), lambda mono=mono: next(mono))  # type: ignore[misc]
        with Journal(workspace, clock) as journal:
            for body in bodies:
                journal.append(body)

    assert seconds_spent(read_entries(workspace)) == 15.0


def test_a_looks_time_is_that_of_all_its_runs(workspace: Workspace) -> None:
    """Killed after 4 s of work and paused after 6, a look has taken 10 before its last run."""
    started = ev.StepStarted("s", 1, 1, {}, "artifacts/s", "").to_body()
    batch = ev.BatchCommitted("s", 1, "k", "p", "0", 1).to_body()
    other = ev.StepStarted("t", 1, 1, {}, "artifacts/t", "").to_body()
    paused = ev.StepInterrupted("s", 1, "x").to_body()
    for monos, bodies in (
        ((0.0, 1.0, 5.0, 6.0), (started, batch)),
        ((100.0, 110.0, 116.0, 117.0, 119.0), (started, paused, other)),
        ((3.0, 4.0, 9.0, 10.0), (started, batch)),
    ):
        mono = iter(monos)
        with Journal(workspace, Clock(lambda: 0.0, lambda mono=mono: next(mono))) as journal:  # type: ignore[misc]
            for body in bodies:
                journal.append(body)

    entries = read_entries(workspace)
    assert seconds_before(entries, "s", 1, 1) == 10.0
    assert seconds_before(entries, "t", 1, 1) == 0.0
    assert seconds_before(entries, "s", 2, 1) == 0.0
