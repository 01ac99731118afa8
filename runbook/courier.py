"""The child that sends notifications: apprise runs here, and never in the executor.

Rule: nothing waits for it. It reads one message a line, gives each a bounded time, and ends soon
after its parent, whatever a server does. Of what a server or a plugin says only a status number is
written: all else may hold the address, which is a secret.
"""

import json
import logging
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from runbook.contract import Json
from runbook.regular_files import open_to_append

if TYPE_CHECKING:
    from apprise import Apprise

SEND_S = 10.0
"""So long one message may take."""
LINGER_S = 20.0
"""So long it outlives its parent, with messages that are still to be sent."""
_STATUS = re.compile(r"error=(\d{3})\b")


class Statuses(logging.Handler):
    """Keeps the last HTTP status that a plugin logged, and not a word besides."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):
            found = _STATUS.search(record.getMessage())
            self.last = found[1] if found else self.last


def send(address: str, message: Mapping[str, Json], limit_s: float = SEND_S) -> str:
    """Send one message; why that failed, empty where it did not.

    Args:
        address: what apprise reads; more than one may stand in it.
        message: ``title``, ``body`` and ``level``.
        limit_s: how long it may take; what is still at work then is left behind.
    """
    said: list[str] = []

    def work() -> None:
        try:
            said.append(_send(address, message))
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything
            said.append(f"failed: {type(error).__name__}")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    return said[0] if said else f"no end within {limit_s:g} s"


def _send(address: str, message: Mapping[str, Json]) -> str:
    server = open_address(address)
    if server is None:
        return "apprise cannot read the address"
    statuses, log = Statuses(), logging.getLogger("apprise")
    log.addHandler(statuses)
    log.propagate = False
    try:
        sent = server.notify(
            title=str(message["title"]), body=str(message["body"]), notify_type=message["level"]
        )
    finally:
        log.removeHandler(statuses)
    answer = f"the server answered {statuses.last}" if statuses.last else "no server took it"
    return "" if sent else answer


def open_address(address: str) -> "Apprise | None":
    """What sends to an address; None where apprise cannot read it. Nothing is kept on disk."""
    from apprise import Apprise, AppriseAsset  # noqa: PLC0415 - only where something is sent

    # Threads of its own pool would be waited for at the end.
    asset = AppriseAsset(
        app_id="runbook", app_desc="runbook", async_mode=False, storage_mode="memory"
    )
    log = logging.getLogger("apprise")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    server = Apprise(asset=asset)
    return server if server.add(address) and len(server) else None


def note(log: Path | None, text: str) -> None:
    """A line with the time; a log that takes no more is no reason to stop."""
    with suppress(OSError):
        if log is not None:
            with open_to_append(log) as file:
                file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n".encode())


def _deliver(address: str, line: bytes, log: Path | None) -> None:
    try:
        message = json.loads(line)
        named = f"{message['kind']} {message['id']}"
    except (ValueError, KeyError, TypeError):
        note(log, "a torn message was passed over")
        return
    problem = send(address, message)
    note(log, f"{named}: {problem or 'sent'}")
    with suppress(OSError):
        answer = {"id": message["id"], "problem": problem}
        os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


def _read(lines: "queue.SimpleQueue[bytes]") -> None:
    """Lines as they come, so that the parent never meets a full pipe; an empty one at the end."""
    for line in sys.stdin.buffer:
        lines.put(line)
    lines.put(b"")
    time.sleep(LINGER_S)
    os._exit(1)


def main() -> int:
    """``python -m runbook.courier VARIABLE LOG``: messages on stdin, what became of each on stdout.

    ``VARIABLE - TITLE BODY WHY`` sends that alone, and writes nothing.
    """
    os.umask(0o077)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    variable, log, *said = sys.argv[1:]
    address = os.environ.get(variable, "")
    if said:
        title, body, why = said
        message = {"title": title, "body": f"{why}\n{body}", "level": "failure"}
        return 1 if send(address, message) else 0
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    # While it waits for the first message, which then leaves at once.
    with suppress(Exception):
        open_address(address)
    while line := lines.get():
        _deliver(address, line, Path(log))
    return 0


if __name__ == "__main__":
    # At once: a thread that a server holds must not keep this process.
    os._exit(main())
