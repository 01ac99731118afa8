"""Before a new meter starts the former one is ended, unless it is about to stop the pod."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from runbook.meter_folder import MeterRecords, read_record
from runbook.owner import process_start

_DISMISS_S = 2.0
_POLL_S = 0.002


def end_former_meters(records: MeterRecords) -> int:
    """End the living; how many there were.

    Takes 2 s at most where one does not leave by itself, and then kills it.
    """
    count = 0
    for path, record in records.all():
        living = []
        if record is None:
            living = _meters_of(path)
        elif record.stop is None and record.is_running:
            living = [(record.pid, record.start)]
        for pid, start in living:
            _dismiss(pid, start, path)
        count += len(living)
    return count


def _dismiss(pid: int, start: int, path: Path) -> None:
    """End a meter, unless it was asked to stop the pod in the meantime."""
    with suppress(OSError):
        os.kill(pid, signal.SIGTERM)
        limit = time.monotonic() + _DISMISS_S
        while process_start(pid) == start and time.monotonic() < limit:
            time.sleep(_POLL_S)
        if process_start(pid) == start and not _is_stopping(path):
            os.kill(pid, signal.SIGKILL)


def _is_stopping(path: Path) -> bool:
    record = read_record(path)
    return record is not None and record.stop is not None


def _meters_of(record: Path) -> list[tuple[int, int]]:
    """Pid and start of the processes that were started to write a record."""
    import psutil  # noqa: PLC0415 - slow, and a record is seldom missing

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            start = process_start(process.pid)
            if start is not None and process.cmdline()[-3:] == ["-m", "runbook.meter", str(record)]:
                found.append((process.pid, start))
    return found
