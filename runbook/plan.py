"""A runbook, resolved: the ordered steps of a session, ready for the machine. Pure data.

Made from files by ``runbook.schema.load_plan``; read by the machine, the executor and the report.
It does not know what is on disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runbook.contract import Gate, Json, Range


@dataclass(frozen=True)
class Adjustment:
    """The declared answer to a first failure of ``when``."""

    when: str
    """The metric of the criterion that failed."""
    change: Mapping[str, Mapping[str, Json]]
    """Parameter name -> {'add': x} or {'multiply': x} or {'set': x}."""
    why: str


@dataclass(frozen=True)
class PlannedStep:
    name: str
    phase: str
    enabled: bool
    function: str
    """``module:function``."""
    params: Mapping[str, Json]
    files: Mapping[str, Path]
    """Declared input files, absolute; their paths also stand in params under the same name."""
    inputs: tuple[str, ...]
    output: str
    """Folder under the workspace; ``{time}`` is the start of the attempt, YYYYMMDD_HHMMSS."""
    gate: Gate | None
    retries: int
    review_after: int
    """The failure that asks for a review: 2, or 1 where no adjustment is to be tried first."""
    rerun_from: str
    """The step a retry starts at; the step itself unless declared."""
    adjustable: Mapping[str, Range]
    adjustments: tuple[Adjustment, ...]
    fingerprint: str
    """sha256 over all that can change the step's bytes."""
    terminal: bool = False
    """May draw on the budget's terminal reserve."""
    file_sha256: Mapping[str, str] = field(default_factory=dict)
    """Of each declared file, by name: its bytes when the plan was made."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Module -> sha256 of its source, see ``runbook.step_code``; empty: not known."""


@dataclass(frozen=True)
class PlannedPhase:
    name: str
    title: str
    enabled: bool
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    name: str
    runbook: Path
    seed: int
    phases: tuple[PlannedPhase, ...]
    steps: tuple[PlannedStep, ...]
    """In order of execution; disabled ones included."""
    model: Mapping[str, Json]
    engine: Mapping[str, Json]
    environment: Mapping[str, str]
    preflight: Mapping[str, Json]
    budget: Mapping[str, Json]
    """The fields of ``runbook.budget.Limits`` that are declared; ``request_usd``, what a request
    to the reviewer may cost, and ``unknown_requests``, how many follow one without a known end."""
    stop_conditions: tuple[str, ...]
    reviewer: Mapping[str, Json]
    """``provider``; for ``command`` also ``command``, as written, and ``timeout_s``; for a model
    the fields of ``agent.provider.Served``, ``tries``, and ``fallback`` with the same fields.
    ``canaries``: ``share``, ``max_false_rate``, ``min_n``."""
    overrides: tuple[str, ...]
    """The ``--set`` arguments, verbatim, in order."""
    fingerprint: str
    """sha256 over all that can change any step's bytes; batch threads and budget are not in it."""
    pod: Mapping[str, Json] = field(default_factory=dict)
    """``stop`` and ``state``, commands as written; ``gone``, ``rental_ends``,
    ``abandoned_after_s``."""
    watchdog: Mapping[str, Json] = field(default_factory=dict)
    """``heartbeat_s`` and ``stall_s``: how long a child may be silent, or without progress."""
    declared_model: Mapping[str, Json] = field(default_factory=dict)
    """``model`` as written, before ``${ENV}`` and folders: what the fingerprints see of it."""
    notifications: Mapping[str, Json] = field(default_factory=dict)
    """``url_env``, the variable that holds the address, and ``events``; empty: nobody is told."""

    def step(self, name: str) -> PlannedStep:
        """The step of this name. Raises KeyError."""
        found = [s for s in self.steps if s.name == name]
        if not found:
            raise KeyError(name)
        return found[0]
