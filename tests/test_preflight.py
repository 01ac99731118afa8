"""The preflight: what a runbook asks of the machine is held against the machine."""

from pathlib import Path

import pytest

from runbook.errors import ConfigError, NeedsPersonError
from runbook.preflight import check_machine


def test_a_machine_that_offers_enough_passes(tmp_path: Path) -> None:
    """GPUs are counted by their device nodes, other nodes of the driver are not GPUs."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    check_machine({"gpus": 2, "free_disk_gib": 0.001}, tmp_path, devices=tmp_path)
    with pytest.raises(ConfigError, match=r"asks for 3 GPU\(s\), this machine shows 2"):
        check_machine({"gpus": 3}, tmp_path, devices=tmp_path)


def test_too_little_disk_is_told_before_anything_starts(tmp_path: Path) -> None:
    """A disk that is too small stops with the numbers and exit code 3."""
    with pytest.raises(NeedsPersonError, match=r"asks for 1e.06 GiB of free disk") as caught:
        check_machine({"free_disk_gib": 1_000_000}, tmp_path)
    assert caught.value.code == 3


def test_an_empty_section_asks_for_nothing(tmp_path: Path) -> None:
    """A runbook without preflight runs on a machine without a GPU."""
    check_machine({}, tmp_path, devices=tmp_path / "none")
