"""The shape of runbook.yaml and of a spec YAML: pydantic models, strict, nothing unknown.

They hold what can be said of one file alone. What ties names together, and what needs a disk, is
checked in ``runbook.schema_checks``.
"""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from runbook.redact import is_secret_name
from runbook.schema_reviewer import ReviewerModel
from runbook.schema_values import (
    Duration,
    Moment,
    Number,
    Price,
    Strict,
    Text,
    VariableName,
    Version,
    refuse,
    seconds,
)

NOTIFY_URL = "RUNBOOK_NOTIFY_URL"
"""The variable with the address of notifications, unless the runbook names another."""
POD_GONE = ("EXITED", "TERMINATED", "STOPPED", "NOT_FOUND")
NotifiedEvent = Literal[
    "phase_done",
    "gate_failed",
    "review_asked",
    "human_needed",
    "budget",
    "stalled",
    "ended",
    "pod_stopped",
]
NOTIFIED_EVENTS: tuple[NotifiedEvent, ...] = get_args(NotifiedEvent)
StopCondition = Literal["contamination", "dry", "thresholds", "provenance", "budget", "storage"]
STOP_CONDITIONS: tuple[StopCondition, ...] = get_args(StopCondition)
StepName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
PhaseName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Distribution = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$")
]
Repository = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?$")
]
Json = Any


class SourceModel(Strict):
    """Where the base model comes from: exactly one of ``pypi``, ``path``, ``hub``."""

    pypi: Distribution | None = None
    path: Text | None = None
    hub: Repository | None = None
    revision: Revision | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        named = [k for k in ("pypi", "path", "hub") if getattr(self, k) is not None]
        if len(named) != 1:
            what = f"the model has {len(named)} sources"
            raise refuse(what, "name exactly one of pypi, path, hub")
        if self.hub and not self.revision:
            what = "a hub model without a revision can change overnight"
            raise refuse(what, "add revision: the 40-hex commit to load")
        if self.revision and not self.hub:
            raise refuse("revision belongs to hub alone", "take revision away, or name a hub model")
        return self


class ModelModel(Strict):
    """The base model and how it is fed; no default here could be a guess."""

    name: Text
    source: SourceModel
    family: Text
    prefix: Literal["bos", "none"]
    chat_template: Literal["none", "shipped"]
    dtype: Literal["bfloat16", "float32"]
    quantization: Literal["none", "nf4"] = "none"


class EngineModel(Strict):
    """What generates text."""

    name: Literal["transformers", "fake"] = "transformers"
    device: Literal["cpu", "cuda"] = "cpu"
    batch_size: Annotated[int, Field(ge=1)] = 8
    threads: Annotated[int, Field(ge=1)] | None = None


Positive = Annotated[Number, Field(gt=0)]


class BudgetModel(Strict):
    """What the session may cost, over all its resumes."""

    wall_clock: Duration | None = None
    gpu_hours: Positive | None = None
    usd: Positive | None = None
    """Of the machine's time and the reviews together."""
    review_usd: Price | None = None
    usd_per_hour: Price | None = None
    """The machine's price, all its GPUs together."""
    terminal_reserve: Duration | None = None
    """Held back for terminal steps, the report and stopping the pod."""

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.usd is not None and self.usd_per_hour is None:
            what = "usd limits the machine's time too, and its price is not given"
            raise refuse(what, "add usd_per_hour: what the machine costs; 0 if it is your own")
        reserve = seconds(self.terminal_reserve) if self.terminal_reserve else 0.0
        if self.wall_clock and reserve >= seconds(self.wall_clock):
            what = "the terminal reserve leaves nothing of wall_clock for the other steps"
            raise refuse(what, "raise wall_clock, or lower terminal_reserve")
        if self.usd and self.usd_per_hour and reserve / 3600 * self.usd_per_hour >= self.usd:
            what = "the terminal reserve costs all of usd, so nothing is left for the other steps"
            raise refuse(what, "raise usd, or lower terminal_reserve")
        return self


class PodModel(Strict):
    """The rented machine: how it is stopped, how another machine asks for its state."""

    stop: Annotated[list[Text], Field(min_length=1)] | None = None
    """Run once the session ends for good, at a limit, or when the rental ends."""
    state: Annotated[list[Text], Field(min_length=1)] | None = None
    """Prints the pod's state; ``status --verify-pod`` and a takeover ask it."""
    gone: list[Text] = Field(default_factory=lambda: list(POD_GONE))
    """What ``state`` prints, as its last word, of a pod that costs nothing any more."""
    rental_ends: Moment | None = None
    """ISO 8601 with an offset; ${ENV} is read."""
    abandoned_after: Duration = "30m"
    """The pod is stopped when its executor died and nobody resumed for so long."""


class WatchdogModel(Strict):
    """After which silence a child counts as hung or stalled."""

    heartbeat: Duration = "2m"
    stall: Duration = "30m"


class PreflightModel(Strict):
    """What the machine must offer before anything starts."""

    gpus: Annotated[int, Field(ge=0)] = 0
    free_disk_gib: Annotated[Number, Field(ge=0)] = 0.0
    """Room that the whole session takes of the workspace's volume."""
    quota_gib: Annotated[Number, Field(gt=0)] | None = None
    """What the volume may hold in all, where its own figures promise more than the rental does."""
    write_gib: Annotated[Number, Field(ge=0)] = 1.0
    """How much of ``free_disk_gib`` is taken for a moment before the start, to prove it."""


def _address_variable(value: object) -> object:
    """What is refused is not quoted: it may be the address itself."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        what = "this is no variable's name; an address is a secret, and would be recorded here"
        fix = f"write url_env: {NOTIFY_URL}, and the address into that variable or into .env"
        raise refuse(what, fix)
    if not is_secret_name(value):
        what = f"the name '{value}' does not say that its value is a secret, so logs would show it"
        raise refuse(what, f"let it end in _NOTIFY_URL, _WEBHOOK or _TOKEN, as {NOTIFY_URL}")
    return value


class NotificationsModel(Strict):
    """Who is told of incidents, and of which; the address stands in the environment alone."""

    url_env: Annotated[str, BeforeValidator(_address_variable)] = NOTIFY_URL
    """Name of the variable that holds one address or more, as apprise reads them."""
    events: Annotated[list[NotifiedEvent], Field(min_length=1)] = Field(
        default_factory=lambda: list(NOTIFIED_EVENTS)
    )

    @model_validator(mode="before")
    @classmethod
    def _no_address(cls, value: object) -> object:
        if isinstance(value, dict) and "url" in value:
            what = "an address is a secret, and would be recorded here"
            raise refuse(what, f"take url away, and export {NOTIFY_URL}=... or write it in .env")
        return value


class RangeModel(Strict):
    """What a parameter may be set to, both ends included."""

    min: Number
    max: Number

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise refuse(f"min {self.min:g} is above max {self.max:g}", "swap the two")
        return self


class ChangeModel(Strict):
    """One parameter's change: exactly one of ``add``, ``multiply``, ``set``."""

    add: Number | None = None
    multiply: Number | None = None
    set: Number | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            what = f"a change has {len(self.model_fields_set)} operations"
            raise refuse(what, "write exactly one of add, multiply, set")
        return self


class AdjustmentModel(Strict):
    """The declared answer to a first failure of the metric ``when``."""

    when: Text
    change: Annotated[dict[str, ChangeModel], Field(min_length=1)]
    why: Text


class StepModel(Strict):
    """One function of a phase, with its parameters' file and its place in the workspace."""

    name: StepName
    function: Text
    spec: Text | None = None
    inputs: list[str] = Field(default_factory=list)
    output: Text
    retries: Annotated[int, Field(ge=0, le=5)] = 0
    review_after: Annotated[int, Field(ge=1, le=2)] = 2
    rerun_from: Text | None = None
    terminal: bool = False
    """May draw on the budget's terminal reserve."""
    adjustable: dict[str, RangeModel] = Field(default_factory=dict)
    adjustments: list[AdjustmentModel] = Field(default_factory=list)


class PhaseModel(Strict):
    """A named group of steps."""

    name: PhaseName
    title: Text | None = None
    enabled: bool = True
    steps: Annotated[list[StepModel], Field(min_length=1)]


class HeadModel(Strict):
    """All of a runbook but its phases."""

    runbook: Version
    name: Text
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    model: ModelModel
    engine: EngineModel = Field(default_factory=EngineModel)
    budget: BudgetModel = Field(default_factory=BudgetModel)
    pod: PodModel = Field(default_factory=PodModel)
    watchdog: WatchdogModel = Field(default_factory=WatchdogModel)
    environment: dict[VariableName, str] = Field(default_factory=dict)
    preflight: PreflightModel = Field(default_factory=PreflightModel)
    stop_conditions: list[StopCondition] = Field(default_factory=lambda: list(STOP_CONDITIONS))
    """For the reader: each always holds, and a list that leaves one out is refused."""
    reviewer: ReviewerModel = Field(default_factory=ReviewerModel)
    notifications: NotificationsModel | None = None
    """Nobody is told where this is left out."""

    @field_validator("stop_conditions")
    @classmethod
    def _whole(cls, value: list[StopCondition]) -> list[StopCondition]:
        missing = [c for c in STOP_CONDITIONS if c not in value]
        if missing:
            what = "a stop condition cannot be switched off"
            raise refuse(what, f"add {', '.join(missing)}, or drop the key: all of them hold")
        return value


class RunbookModel(HeadModel):
    """A whole runbook.yaml."""

    phases: Annotated[list[PhaseModel], Field(min_length=1)]


class CriterionModel(Strict):
    """One condition of a gate: a metric compared with declared numbers."""

    metric: Text
    kind: Literal[
        "census", "rate", "statistic", "p_value", "instrument", "control", "power", "sentinel"
    ]
    below: Number | None = None
    above: Number | None = None
    at_most: Number | None = None
    at_least: Number | None = None
    min_n: Annotated[int, Field(ge=1)] = 1
    at_max_n: Literal["rate", "bound"] = "rate"

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        lower = [x for x in (self.above, self.at_least) if x is not None]
        upper = [x for x in (self.below, self.at_most) if x is not None]
        if not lower and not upper:
            what = f"the criterion on {self.metric} compares with nothing"
            raise refuse(what, "add one of below, above, at_most, at_least")
        if self.kind == "instrument" and upper:
            what = "an instrument is held to the lower bound of its reading, from below alone"
            raise refuse(what, "write above or at_least")
        if self.kind in {"rate", "p_value", "instrument", "power"} and not all(
            0 <= x <= 1 for x in (*lower, *upper)
        ):
            what = f"the reading of a {self.kind} lies in [0, 1], the threshold does not"
            raise refuse(what, "write 5 % as 0.05")
        if lower and upper and self._empty(max(lower), min(upper)):
            what = f"no value of {self.metric} can pass: the lower limit is above the upper"
            raise refuse(what, "swap or widen the two limits")
        if self.kind == "sentinel" and "min_n" in self.model_fields_set:
            raise refuse("min_n is not for a sentinel", "take min_n away")
        if self.kind != "rate" and "at_max_n" in self.model_fields_set:
            what = f"at_max_n is for a rate, not for a {self.kind}"
            raise refuse(what, "take at_max_n away")
        return self

    def _empty(self, lower: float, upper: float) -> bool:
        open_end = self.above == lower or self.below == upper
        return lower > upper or (lower == upper and open_end)


class GateModel(Strict):
    """What must hold for the step to pass."""

    criteria: Annotated[list[CriterionModel], Field(min_length=1)]
    extend: Annotated[dict[str, Json], Field(min_length=1)] | None = None
    smoke: Annotated[dict[str, Json], Field(min_length=1)] | None = None


class SpecModel(Strict):
    """A whole spec YAML: parameters, input files, thresholds."""

    spec: Version
    params: dict[str, Json] = Field(default_factory=dict)
    files: dict[str, Text] = Field(default_factory=dict)
    gate: GateModel | None = None
