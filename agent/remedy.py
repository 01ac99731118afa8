"""What a person can do where no answer came: beside ``error.txt``, in ``remedy.json``.

Rule: it is for whoever reports on a review, and nothing is decided by it.
"""

from dataclasses import dataclass
from pathlib import Path

from runbook.artifacts import write_json

NAME = "remedy.json"
ASK = "ask"
"""The same command asks again."""
CHANGE = "change"
"""It asks again once the runbook is changed as the error says."""
DECIDE = "decide"
"""It sends nothing more, unless what is missing is money."""


@dataclass(frozen=True)
class Remedy:
    """What helps after an error."""

    remedy: str = DECIDE
    usd: float | None = None
    """What one more request may cost at worst; None where money is not what is missing."""


def write(folder: Path, remedy: Remedy) -> None:
    """Store it in a review's folder."""
    write_json(folder / NAME, {"remedy": remedy.remedy, "usd": remedy.usd})
