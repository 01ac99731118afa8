"""The session's two clocks. Rule: wall time is shown and recorded, monotonic time is computed with.

The wall clock may jump, by thirty days as well; what was spent and what is left must not jump
with it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    wall: Callable[[], float] = time.time
    """Seconds since the epoch."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds from any fixed moment of this boot."""


SYSTEM = Clock()
