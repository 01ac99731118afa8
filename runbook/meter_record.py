"""What a meter shows of itself; it writes it, and ``runbook.meter_folder`` finds and reads it."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from runbook.owner import boot_id, process_start


@dataclass(frozen=True)
class StopRecord:
    """What became of a stop. Wall times are ISO 8601 in UTC."""

    requested_at: str
    why: str
    command: str | None
    """The program's name alone; None: the runbook declares no command that stops the pod."""
    tries: int = 0
    last_rc: int | None = None
    """Exit code of the last try; None before it ended, or where it did not end by itself."""
    last_output: str = ""
    """Its last characters, secrets of the environment and the arguments hidden."""
    problem: str = ""
    """Why the last try has no exit code."""
    last_state: str | None = None
    """The last line that the command for the pod's state printed; None: not known."""
    finished: bool = False


@dataclass(frozen=True)
class MeterRecord:
    """What a meter shows of itself; written by that meter alone. Wall times as in a stop's."""

    pid: int
    start: int
    boot_id: str
    run_id: str
    deadline: str | None
    rental_end: str | None
    heartbeat: str | None
    """When the executor was last heard."""
    left: str | None = None
    """Why it left without stopping the pod."""
    stop: StopRecord | None = None
    limit: str = ""
    """What it asked the living executor to end for; empty as long as it did not."""
    executor_pid: int = 0
    executor_start: int = 0
    """Clock ticks since boot; with the pid and ``boot_id`` it names the executor."""
    former: "MeterRecord | None" = None
    """An earlier meter of the workspace that was asked to stop the pod; filled in by readers."""

    @property
    def is_of_this_boot(self) -> bool:
        """Whether this machine wrote it, and has not been started anew since."""
        return self.boot_id == boot_id()

    @property
    def is_running(self) -> bool:
        """Whether the meter that wrote it is alive on this machine."""
        return self.is_of_this_boot and process_start(self.pid) == self.start


def write_record(path: Path, record: MeterRecord, *, durable: bool) -> None:
    """Replace a record atomically; only its owner may read it. Raises OSError."""
    temporary = path.with_name(f"{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
        file.write(json.dumps(asdict(record)))
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.replace(path)
