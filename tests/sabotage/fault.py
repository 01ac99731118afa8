"""What is planted, and what must come of it."""

from collections.abc import Callable
from dataclasses import dataclass

from sabotage.session import Ended, Session


@dataclass(frozen=True)
class Fault:
    """One fault, and the first gate at which it is visible."""

    name: str
    kind: str
    plant: Callable[[Session], None]
    stopped_at: str
    """A step, 'plan' or 'start'."""
    verdict: str
    """As in ``Ended``."""
    because: frozenset[str]
    """Every metric that does not pass there; of a refusal, a piece of what is told."""
    exit_code: int = 3
    gets_through: str = ""
    """Why nothing sees it; '' where it must be stopped."""

    def is_caught(self, ended: Ended) -> bool:
        """Whether it was stopped where it must be, by that verdict, for that reason alone."""
        where = (ended.exit_code, ended.stopped_at, ended.verdict)
        if where != (self.exit_code, self.stopped_at, self.verdict):
            return False
        if self.told_in_prose:
            return all(piece in " ".join(ended.reasons) for piece in self.because)
        return ended.because == self.because

    @property
    def told_in_prose(self) -> bool:
        """Whether it is not a gate that stops it, but a check that names what is wrong."""
        return self.verdict in {"refused", "dry"}


def fault(
    name: str,
    kind: str,
    plant: Callable[[Session], None],
    stop: str,
    *because: str,
    exit_code: int = 3,
    gets_through: str = "",
) -> Fault:
    """A fault that must be stopped; ``stop`` is the step and the verdict there."""
    at, _, verdict = stop.partition(": ")
    return Fault(name, kind, plant, at, verdict, frozenset(because), exit_code, gets_through)
