"""The folder of the meters' records: off the volume, for one user, the newest record first."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from runbook import meter_folder
from runbook.errors import ConfigError
from runbook.meter_folder import MeterRecords, read_record, state_folder
from runbook.meter_record import MeterRecord, StopRecord, write_record


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "ws").mkdir()
    return tmp_path / "ws"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folder is told to be; not made yet."""
    monkeypatch.setenv("RUNBOOK_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def record(run_id: str, *, stop: bool = False) -> MeterRecord:
    asked = StopRecord("2026-01-01T00:00:00+00:00", "a limit", "true") if stop else None
    return MeterRecord(1, 1, "boot", run_id, None, None, None, stop=asked)


def test_a_link_in_place_of_the_folder_is_refused(state: Path, workspace: Path) -> None:
    """A folder that somebody else may have planted is not used."""
    elsewhere = state.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    state.symlink_to(elsewhere)

    with pytest.raises(ConfigError, match="is a link or no folder"):
        MeterRecords.of(workspace)


def test_a_folder_open_to_others_is_refused(state: Path, workspace: Path) -> None:
    """The record is for its owner alone."""
    state.mkdir()
    state.chmod(0o755)

    with pytest.raises(ConfigError, match="chmod 700"):
        state_folder(workspace)


def test_a_folder_within_the_workspace_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record must not lie on what may hang."""
    monkeypatch.setenv("RUNBOOK_STATE_DIR", str(workspace / "state"))

    with pytest.raises(ConfigError, match="outside the workspace"):
        state_folder(workspace)


def test_the_default_folder_is_off_the_volume(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first place that is not on the workspace's volume is taken, whatever TMPDIR says."""
    monkeypatch.delenv("RUNBOOK_STATE_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    monkeypatch.setattr(meter_folder, "_PLACES", tuple(map(str, places)))
    monkeypatch.setattr(meter_folder, "volume_of", lambda _: places[0])

    assert state_folder(workspace) == places[1] / f"runbook-{os.geteuid()}"
    monkeypatch.setattr(meter_folder, "volume_of", lambda _: tmp_path)
    with pytest.raises(ConfigError, match="set RUNBOOK_STATE_DIR"):
        state_folder(workspace)


def test_no_record_is_none(state: Path, workspace: Path) -> None:
    """A workspace without a meter, or with a record that is not one, has none to show."""
    records = MeterRecords.of(workspace)
    assert records.newest() is None
    (state / f"{records.key}.1.meter.json").write_text('{"pid": "x"}')
    (state / f"{records.key}.x.meter.json").write_text("{}")

    assert records.newest() is None


@pytest.mark.usefixtures("state")
def test_the_newest_records_are_kept(workspace: Path) -> None:
    """Of many meters the last is shown, the one before it is kept, and the last with a stop."""
    records = MeterRecords.of(workspace)
    for number in range(1, 12):
        write_record(records.claim(), record(f"r{number}", stop=number in {3, 6}), durable=False)

    assert [found and found.run_id for _, found in records.all()] == ["r11", "r10", "r6"]
    assert records.newest() == replace(record("r11"), former=record("r6", stop=True))


@pytest.mark.usefixtures("state")
def test_each_workspace_has_its_own(workspace: Path) -> None:
    """Another workspace's record in the same folder is not seen."""
    other = workspace.with_name("other")
    other.mkdir()
    path = MeterRecords.of(other).claim()
    write_record(path, record("theirs"), durable=True)

    assert read_record(path) == record("theirs")
    assert MeterRecords.of(workspace).newest() is None
