"""What the GPUs do while a session runs, by NVML: utilization, memory, and Xid errors.

Nothing is measured where ``nvidia-ml-py`` (the extra ``gpu``) or a driver is missing. Rule: a GPU
that cannot be read never stops a session.
"""

import importlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from runbook.contract import Json

_MIB = 1 << 20
_NO_WAIT_MS = 0
_MOST_EVENTS = 16


@dataclass(frozen=True)
class Sample:
    """One GPU at one moment."""

    gpu: int
    utilization: int
    """Percent of the time since the last sample in which a kernel ran."""
    memory_mib: int
    memory_total_mib: int


class Gpus:
    """All GPUs of the machine; none where they cannot be read."""

    def __init__(self, nvml: Any = None) -> None:
        """``nvml`` stands in for the module ``pynvml``."""
        self._handles: list[Any] = []
        self._events: Any = None
        self.xids: list[tuple[int, int]] = []
        """GPU and Xid of every error since the start, oldest first."""
        self._nvml = nvml or _import()
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                self._open()

    def _open(self) -> None:
        nvml = self._nvml
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        events = nvml.nvmlEventSetCreate()
        for handle in self._handles:
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        self._events = events

    def sample(self) -> tuple[Sample, ...]:
        """Every GPU that answers."""
        self._hear()
        found = []
        for number, handle in enumerate(self._handles):
            with suppress(self._nvml.NVMLError):
                rates = self._nvml.nvmlDeviceGetUtilizationRates(handle)
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                used, total = memory.used // _MIB, memory.total // _MIB
                found.append(Sample(number, int(rates.gpu), used, total))
        return tuple(found)

    def trouble(self) -> str:
        """The newest Xid error, in words; empty where there was none."""
        self._hear()
        if not self.xids:
            return ""
        gpu, xid = self.xids[-1]
        return f"GPU {gpu} reported Xid {xid}"

    def _hear(self) -> None:
        """Take the errors that came since; waits for none."""
        if self._events is None:
            return
        with suppress(self._nvml.NVMLError):
            for _ in range(_MOST_EVENTS):
                event = self._nvml.nvmlEventSetWait_v2(self._events, _NO_WAIT_MS)
                self.xids.append((self._number(event.device), int(event.eventData)))

    def _number(self, device: Any) -> int:
        index = -1
        with suppress(self._nvml.NVMLError):
            index = int(self._nvml.nvmlDeviceGetIndex(device))
        return index


def _import() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def describe(sample: Sample) -> dict[str, Json]:
    """As the heartbeat and ``logs/gpu.jsonl`` hold it."""
    return {
        "gpu": sample.gpu,
        "utilization": sample.utilization,
        "memory_mib": sample.memory_mib,
        "memory_total_mib": sample.memory_total_mib,
    }
