"""The process that the command is, as ``runbook`` or as ``python -m runbook``."""

import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_NEW_OBJECTS = 100_000
"""A collection finds nothing in what start-up makes, since all of it is kept."""


_CAN_BE_RELAUNCHED = frozenset({"run", "launch", "resume"})
_INTERRUPTED = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130}
"""Exit codes of an end before the executor, with handlers of its own, holds the workspace.

Nothing has begun by then, so the same command goes on.
"""


def command() -> NoReturn:
    """Run the command line, and end the process at once.

    An interpreter that takes itself apart needs a tenth of a short command's time, for memory that
    the kernel takes back in any case. Nothing here asks to be called at the end.
    """
    if sys.argv[1:2] and sys.argv[1] in _CAN_BE_RELAUNCHED:
        for number in _INTERRUPTED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _end)
    gc.set_threshold(_NEW_OBJECTS)
    from runbook.cli import main  # noqa: PLC0415 - after the line above

    code = 0
    try:
        main()
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        code = ended.code or 0
    os._exit(code or _unwritten())


def _end(number: int, _: FrameType | None) -> NoReturn:
    """At once: an exception in the middle of an import could be lost."""
    os._exit(_INTERRUPTED[signal.Signals(number)])


def _unwritten() -> int:
    """1 where the answer could not be written whole, and somebody waits for it."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        return 0
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    command()
