"""What NVML tells: which GPUs there are, and what they do while a session runs.

The one place that talks to it. Nothing is read where ``nvidia-ml-py`` (the extra ``gpu``) or a
driver is missing. Rule: a GPU that cannot be read never stops a session.
"""

import importlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from runbook.contract import Json
from runbook.problems import printable

_MIB = 1 << 20
_GIB = 1 << 30
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


@dataclass(frozen=True)
class Inventory:
    """The GPUs of a machine, or why nobody can tell them."""

    gpus: tuple[str, ...] = ()
    """Name and memory of each, as ``NVIDIA H100, 80 GiB``."""
    trouble: str = ""
    """Why they cannot be read; empty where they were."""

    def __str__(self) -> str:
        """All of them on one line."""
        if self.trouble:
            return f"name and memory not readable: {self.trouble}"
        return printable("; ".join(self.gpus), longest=400)


def read_inventory(nvml: Any = None) -> Inventory:
    """The machine's GPUs; ``nvml`` stands in for the module ``pynvml``."""
    nvml = nvml or _import()
    if nvml is None:
        return Inventory(trouble="pip install nvidia-ml-py")
    try:
        nvml.nvmlInit()
        try:
            return Inventory(tuple(_name(nvml, handle) for handle in _handles(nvml)))
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return Inventory(trouble=printable(str(error)))


def _name(nvml: Any, handle: Any) -> str:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle).total
    return f"{nvml.nvmlDeviceGetName(handle)}, {memory / _GIB:.0f} GiB"


def _handles(nvml: Any) -> list[Any]:
    return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]


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
        self._handles = _handles(nvml)
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
