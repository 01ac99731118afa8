"""What GPUs tell, with a stand-in for NVML: none is needed, and none that fails stops a session."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runbook import estimate
from runbook.bootstrap import check_gpus
from runbook.clock import Clock
from runbook.control import SAMPLE_EVERY_S, Pulse, read_heartbeat
from runbook.gpus import Gpus, Inventory, Sample, read_inventory
from runbook.workspace import Workspace


class NvmlError(Exception):
    pass


class FakeNvml:
    """Two GPUs of which the second cannot be read, and errors as they are put in."""

    NVMLError = NvmlError
    nvmlEventTypeXidCriticalError = 8  # noqa: N815 - see below

    def __init__(self, *, driver: bool = True, lost: bool = False) -> None:
        self.driver = driver
        self.lost = lost
        self.opened = 0
        self.errors: list[tuple[int, int]] = []
        self.registered: list[int] = []

    def nvmlInit(self) -> None:  # noqa: N802 - the library's names
        if not self.driver:
            raise NvmlError("Driver Not Loaded")
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self.lost:
            raise NvmlError("GPU is lost\x1b[31m")
        return 2

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"NVIDIA H{handle + 1}00"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetIndex(self, handle: int) -> int:  # noqa: N802
        return handle

    def nvmlEventSetCreate(self) -> str:  # noqa: N802
        return "events"

    def nvmlDeviceRegisterEvents(self, handle: int, kind: int, events: str) -> None:  # noqa: N802
        assert (kind, events) == (8, "events")
        self.registered.append(handle)

    def nvmlEventSetWait_v2(self, events: str, wait_ms: int) -> Any:  # noqa: N802
        assert (events, wait_ms) == ("events", 0)
        if not self.errors:
            raise NvmlError("Timeout")
        gpu, xid = self.errors.pop(0)
        return SimpleNamespace(device=gpu, eventData=xid)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        if handle == 1:
            raise NvmlError("GPU is lost")
        return SimpleNamespace(gpu=87)

    def nvmlDeviceGetMemoryInfo(self, _: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=61 << 30, total=80 << 30)


def test_each_gpu_is_told_by_name_and_memory() -> None:
    """In their order, and the library is shut down again."""
    nvml = FakeNvml()

    found = read_inventory(nvml)

    assert found == Inventory(("NVIDIA H100, 80 GiB", "NVIDIA H200, 80 GiB"))
    assert str(found) == "NVIDIA H100, 80 GiB; NVIDIA H200, 80 GiB"
    assert nvml.opened == 0


@pytest.mark.parametrize(
    ("nvml", "trouble"),
    [
        (None, "pip install nvidia-ml-py"),
        (FakeNvml(driver=False), "Driver Not Loaded"),
        (FakeNvml(lost=True), "GPU is lost\\x1b[31m"),
    ],
)
def test_gpus_that_cannot_be_read_are_said_and_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None, trouble: str
) -> None:
    """The doctor's row counts them and tells why; no history is kept of a GPU without a name."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (tmp_path / "nvidia0").touch()

    row = check_gpus(1, devices=tmp_path, environ={})

    assert row.found == f"1: name and memory not readable: {trouble}"
    assert estimate._gpus.__wrapped__() is None
    assert nvml is None or nvml.opened == 0


def test_each_gpu_that_answers_is_sampled() -> None:
    """Utilization and memory of the first; the lost one is left out."""
    nvml = FakeNvml()

    assert Gpus(nvml).sample() == (Sample(0, 87, 61 << 10, 80 << 10),)
    assert nvml.registered == [0, 1]


def test_xid_errors_are_kept_in_order() -> None:
    """Every error since the start is there, and the newest is told."""
    nvml = FakeNvml()
    gpus = Gpus(nvml)
    assert gpus.trouble() == ""
    nvml.errors = [(0, 13), (1, 79)]

    assert gpus.trouble() == "GPU 1 reported Xid 79"
    assert gpus.xids == [(0, 13), (1, 79)]


def test_no_driver_means_no_samples() -> None:
    """Without a driver, or without the library, nothing is told and nothing fails."""
    gpus = Gpus(FakeNvml(driver=False))

    assert gpus.sample() == ()
    assert gpus.trouble() == ""


def test_the_heartbeat_and_the_log_show_the_gpus(tmp_path: Path) -> None:
    """A sample every half minute, in the heartbeat and as a line of the log."""
    place = Workspace.at(tmp_path / "ws")
    place.create()
    now = [100.0]
    pulse = Pulse(place, Clock(lambda: 1.7e9, lambda: now[0]), Gpus(FakeNvml()))

    for _ in range(3):
        pulse.beat()
        now[0] += SAMPLE_EVERY_S / 2
    beat = read_heartbeat(place)

    assert beat is not None
    assert beat.gpus[0]["utilization"] == 87
    lines = [json.loads(line) for line in place.gpu_log.read_text().splitlines()]
    assert [line["gpus"][0]["memory_mib"] for line in lines] == [62464, 62464]
