"""Before a new meter starts the former one is ended, unless it is about to stop the pod."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from runbook.meter import now
from runbook.meter_folder import MeterRecords, read_record
from runbook.owner import process_start

_DISMISS_S = 2.0
_POLL_S = 0.002


def end_former_meters(records: MeterRecords) -> None:
    """End the living; takes 2 s at most where one does not leave by itself, and then kills it."""
    for path, record in records.all():
        if record is None:
            for pid, start in _meters_of(path):
                _dismiss(pid, start, path)
        elif record.stop is None and record.is_running:
            _dismiss(record.pid, record.start, path)


def _dismiss(pid: int, start: int, path: Path) -> None:
    """End a meter, unless it was asked to stop the pod in the meantime."""
    with suppress(OSError):
        os.kill(pid, signal.SIGTERM)
        limit = now() + _DISMISS_S
        while process_start(pid) == start and now() < limit:
            time.sleep(_POLL_S)
        if process_start(pid) == start and not _is_stopping(path):
            os.kill(pid, signal.SIGKILL)


def _is_stopping(path: Path) -> bool:
    record = read_record(path)
    return record is not None and record.stop is not None


def _meters_of(record: Path) -> list[tuple[int, int]]:
    """Pid and start of the processes that were started to write a record."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            start = process_start(process.pid)
            if start is not None and process.cmdline()[-3:] == ["-m", "runbook.meter", str(record)]:
                found.append((process.pid, start))
    return found
