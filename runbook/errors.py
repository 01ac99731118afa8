"""Every error a person can meet: one base, one subclass per remedy.

An error says what, where, why and what to do. ``code`` is the process's exit code; the table of
codes stands in the README. Nothing here imports anything.
"""


class RunbookError(Exception):
    """What went wrong, where, and the remedy; ``str()`` is what a person reads."""

    code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  fix: {self.fix}" if self.fix else head


class ConfigError(RunbookError):
    """The runbook, a spec or an option is wrong: edit it. Nothing was spent."""

    code = 2


class OutputError(RunbookError):
    """The answer could not be written to stdout: make room there, and ask again."""

    code = 1


class NeedsPersonError(RunbookError):
    """Only a person can go on from here: free the disk, decide the review."""

    code = 3


class BudgetError(RunbookError):
    """The budget is spent: allow more, or leave it at that."""

    code = 4


class SentinelError(RunbookError):
    """A contamination or DRY sentinel tripped: look at the model or the code."""

    code = 5


class LockedError(RunbookError):
    """Another executor holds the workspace: wait for it, or use another workspace."""

    code = 7


class CorruptError(RunbookError):
    """Bytes on disk are not what was committed: restore them, nothing is guessed."""

    code = 3


class PausedError(RunbookError):
    """The run was interrupted and the same command continues it."""

    code = 75


class PhaseError(RunbookError):
    """A step's own code failed: read its log, mend it, run the same command."""

    code = 1
