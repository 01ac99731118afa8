"""The shape of runbook.yaml and of a spec YAML: pydantic models, strict, nothing unknown.

They hold what can be said of one file alone. What ties names together, and what needs a disk, is
checked in ``runbook.schema_checks``.
"""

import ipaddress
import re
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from runbook.problems import quoted
from runbook.redact import is_secret_name

SERVED = ("openai", "anthropic")
"""The reviewers that are models behind an API."""
REVIEWERS = ("human", "command", *SERVED)
NOTIFY_URL = "RUNBOOK_NOTIFY_URL"
"""The variable with the address of notifications, unless the runbook names another."""
POD_GONE = ("EXITED", "TERMINATED", "STOPPED", "NOT_FOUND")
REVIEWER_TIMEOUT = "10m"
"""How long a reviewer may take for one answer unless the runbook says."""
BASE_URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
API_KEY_ENVS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
MAX_OUTPUT_TOKENS = 16_000
CONTEXT_TOKENS = 64_000
LEAST_PROMPT_TOKENS = 1000

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
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Distribution = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$")
]
Repository = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?$")
]
Text = Annotated[str, StringConstraints(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Json = Any

Version = Annotated[int, Field(ge=1, le=1)]
"""The format's version; Literal[1] would take true for 1."""

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = r"^[1-9][0-9]{0,8}[smh]$"


def seconds(duration: str) -> float:
    """The length in seconds of a ``Duration``."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]


def _refuse(what: str, fix: str) -> PydanticCustomError:
    return PydanticCustomError("rule", "{what}", {"what": what, "fix": fix})


def _duration(value: object) -> object:
    if not (isinstance(value, str) and re.fullmatch(_DURATION, value)):
        fix = "write whole seconds, minutes or hours: 90s, 15m, 6h"
        raise _refuse(f"{quoted(value)} is not a duration", fix)
    return value


Duration = Annotated[str, BeforeValidator(_duration), StringConstraints(pattern=_DURATION)]
"""Whole seconds, minutes or hours: ``90s``, ``15m``, ``6h``."""


class Strict(BaseModel):
    """Unknown keys are errors, and no value is converted to another type."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, protected_namespaces=(), defer_build=True
    )


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
            raise _refuse(what, "name exactly one of pypi, path, hub")
        if self.hub and not self.revision:
            what = "a hub model without a revision can change overnight"
            raise _refuse(what, "add revision: the 40-hex commit to load")
        if self.revision and not self.hub:
            raise _refuse(
                "revision belongs to hub alone", "take revision away, or name a hub model"
            )
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
Price = Annotated[Number, Field(ge=0)]


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
            raise _refuse(what, "add usd_per_hour: what the machine costs; 0 if it is your own")
        reserve = seconds(self.terminal_reserve) if self.terminal_reserve else 0.0
        if self.wall_clock and reserve >= seconds(self.wall_clock):
            what = "the terminal reserve leaves nothing of wall_clock for the other steps"
            raise _refuse(what, "raise wall_clock, or lower terminal_reserve")
        if self.usd and self.usd_per_hour and reserve / 3600 * self.usd_per_hour >= self.usd:
            what = "the terminal reserve costs all of usd, so nothing is left for the other steps"
            raise _refuse(what, "raise usd, or lower terminal_reserve")
        return self


class PodModel(Strict):
    """The rented machine: how it is stopped, how another machine asks for its state."""

    stop: Annotated[list[Text], Field(min_length=1)] | None = None
    """Run once the session ends for good, at a limit, or when the rental ends."""
    state: Annotated[list[Text], Field(min_length=1)] | None = None
    """Prints the pod's state; ``status --verify-pod`` and a takeover ask it."""
    gone: list[Text] = Field(default_factory=lambda: list(POD_GONE))
    """What ``state`` prints, as its last word, of a pod that costs nothing any more."""
    rental_ends: Text | None = None
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


class EffortModel(Strict):
    """By stake, the name that is sent as the model's effort; a stake left out sends none."""

    high: Text | None = None
    """Gates, which release the machine's money."""
    medium: Text | None = None
    """Questions that a step asked."""


class PricesModel(Strict):
    """Dollars per million tokens."""

    input: Price
    output: Price


class CanariesModel(Strict):
    """Dossiers with known right answers, asked beside the real one."""

    share: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """Of the reviews that get them."""
    max_false_rate: Annotated[Number, Field(ge=0, le=1)] = 0.2
    """Of known-bad ones approved, above which the reviewer's ``proceed`` is not acted on."""
    min_n: Annotated[int, Field(ge=1)] = 5
    """Known-bad ones answered, before the rate counts."""


def _effort(value: object) -> object:
    return {} if value == "off" else value


def _canaries(value: object) -> object:
    match value:
        case "on" | True:
            return {}
        case "off" | False:
            return None
        case _:
            return value


def _base_url(value: str) -> str:
    if "@" in value:
        fix = "take them out; the key stands in the variable that api_key_env names"
        raise _refuse("a URL with credentials stands here, and would be recorded", fix)
    fix = "write it as https://host/v1, or http://localhost:8000/v1 for a server of your own"
    try:
        url = urlsplit(value)
        url.port  # noqa: B018 - raises where it is none
    except ValueError as error:
        raise _refuse(f"{quoted(value)} is not a URL", fix) from error
    if url.scheme not in {"http", "https"} or not url.hostname or not value.isprintable():
        raise _refuse(f"{quoted(value)} is not a URL of a server", fix)
    if url.query or url.fragment:
        raise _refuse("a base URL ends with its path", "take away what follows ? or #")
    if url.scheme == "http" and not _is_private(url.hostname):
        what = "by plain http to a public address the key and the dossier could be read on the way"
        raise _refuse(what, "write https, or reach the server through a tunnel to localhost")
    return value


def _is_private(host: str) -> bool:
    """Whether a host is this machine or of its own network: by number, or by a name for such."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        # A name, since a number without dots is an address too.
        is_name = host[:1].isalpha()
        return is_name and ("." not in host or host.endswith((".local", ".internal")))


def _key_variable(value: object) -> object:
    """What is refused is not quoted: it may be the key itself."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        what = "this is no variable's name; a key is a secret, and would be recorded here"
        raise _refuse(what, "write the name of the variable that holds the key")
    if not is_secret_name(value):
        what = "the variable's name does not say that its value is a secret, so logs would show it"
        raise _refuse(what, "export the key under a name that ends in _API_KEY or _TOKEN")
    return value


class ServedModel(Strict):
    """A model behind an API: where, which, how much of it, at what price."""

    provider: Text
    model: Text | None = None
    base_url: Annotated[Text, AfterValidator(_base_url)] | None = None
    """Of any server that speaks the provider's protocol."""
    api_key_env: Annotated[str, BeforeValidator(_key_variable)] | None = None
    """Name of the variable that holds the key."""
    effort: Annotated[
        EffortModel,
        BeforeValidator(_effort, json_schema_input_type=EffortModel | Literal["off"]),
    ] = Field(default_factory=lambda: EffortModel(high="high", medium="medium"))
    """``off`` sends none, for a server that knows no effort."""
    timeout: Duration | None = None
    """How long one answer may take."""
    usd_per_mtok: PricesModel | None = None
    max_output_tokens: Annotated[int, Field(ge=256)] = MAX_OUTPUT_TOKENS
    """Of one answer, thinking included."""
    context_tokens: Annotated[int, Field(ge=2048)] = CONTEXT_TOKENS
    """Question and answer together; bounds the dossier."""
    max_usd: Price | None = None
    """What one request may cost at worst; where no prices are given, what it is taken to cost."""

    def _check_served(self) -> None:
        if self.model is None:
            what = f"the reviewer '{self.provider}' has no model"
            raise _refuse(what, "add model: the name by which the provider knows it")
        if self.usd_per_mtok is None and self.max_usd is None:
            what = "nothing says what a request costs, so it cannot be held within the budget"
            fix = "add usd_per_mtok: {input: 1.25, output: 10}, or max_usd; 0 where it is free"
            raise _refuse(what, fix)
        if self.context_tokens - self.max_output_tokens < LEAST_PROMPT_TOKENS:
            what = (
                f"max_output_tokens leaves less than {LEAST_PROMPT_TOKENS} tokens for the question"
            )
            raise _refuse(what, "lower max_output_tokens, or raise context_tokens")


class FallbackModel(ServedModel):
    """The model that is asked where the first cannot answer at all."""

    @model_validator(mode="after")
    def _available(self) -> Self:
        if self.provider not in SERVED:
            what = f"the fallback {quoted(self.provider)} is not a model behind an API"
            raise _refuse(what, f"use one of: {', '.join(SERVED)}")
        self._check_served()
        return self


_COMMAND_KEYS = frozenset({"command", "timeout", "max_usd", "unknown_requests", "canaries"})
_SERVED_KEYS = frozenset({*ServedModel.model_fields, "unknown_requests", "tries", "fallback"})


class ReviewerModel(ServedModel):
    """Who answers a review."""

    provider: Text = REVIEWERS[0]
    command: Annotated[list[Text], Field(min_length=1)] | None = None
    """Program and arguments, for ``command`` alone."""
    unknown_requests: Annotated[int, Field(ge=0, le=3)] = 1
    """How many more are sent after one whose end is unknown."""
    tries: Annotated[int, Field(ge=1, le=10)] = 4
    """How often a model that is busy or cannot be reached is asked."""
    fallback: FallbackModel | None = None
    canaries: Annotated[
        CanariesModel | None,
        BeforeValidator(
            _canaries, json_schema_input_type=CanariesModel | Literal["on", "off"] | bool
        ),
    ] = None

    @model_validator(mode="after")
    def _available(self) -> Self:
        if self.provider not in REVIEWERS:
            what = f"there is no reviewer {quoted(self.provider)}"
            raise _refuse(what, f"use one of: {', '.join(REVIEWERS)}")
        if self.provider == "command" and self.command is None:
            what = "the reviewer 'command' has no command"
            raise _refuse(what, "add command: [program, argument, ...]")
        self._check_keys()
        if self.provider in SERVED:
            self._check_served()
        return self

    def _check_keys(self) -> None:
        """Each key belongs to the providers that read it."""
        readers = {
            "command": _COMMAND_KEYS,
            **dict.fromkeys(SERVED, _SERVED_KEYS | {"canaries"}),
        }
        mine = readers.get(self.provider, frozenset()) | {"provider"}
        for key in sorted(self.model_fields_set - mine):
            others = [name for name, keys in readers.items() if key in keys]
            what = f"{key} belongs to the reviewer {' or '.join(map(quoted, others))} alone"
            raise _refuse(what, f"take {key} away, or write provider: {others[0]}")


def _address_variable(value: object) -> object:
    """What is refused is not quoted: it may be the address itself."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        what = "this is no variable's name; an address is a secret, and would be recorded here"
        fix = f"write url_env: {NOTIFY_URL}, and the address into that variable or into .env"
        raise _refuse(what, fix)
    if not is_secret_name(value):
        what = f"the name '{value}' does not say that its value is a secret, so logs would show it"
        raise _refuse(what, f"let it end in _NOTIFY_URL, _WEBHOOK or _TOKEN, as {NOTIFY_URL}")
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
            raise _refuse(what, f"take url away, and export {NOTIFY_URL}=... or write it in .env")
        return value


class RangeModel(Strict):
    """What a parameter may be set to, both ends included."""

    min: Number
    max: Number

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise _refuse(f"min {self.min:g} is above max {self.max:g}", "swap the two")
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
            raise _refuse(what, "write exactly one of add, multiply, set")
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
            raise _refuse(what, f"add {', '.join(missing)}, or drop the key: all of them hold")
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
            raise _refuse(what, "add one of below, above, at_most, at_least")
        if self.kind == "instrument" and upper:
            what = "an instrument is held to the lower bound of its reading, from below alone"
            raise _refuse(what, "write above or at_least")
        if self.kind in {"rate", "p_value", "instrument", "power"} and not all(
            0 <= x <= 1 for x in (*lower, *upper)
        ):
            what = f"the reading of a {self.kind} lies in [0, 1], the threshold does not"
            raise _refuse(what, "write 5 % as 0.05")
        if lower and upper and self._empty(max(lower), min(upper)):
            what = f"no value of {self.metric} can pass: the lower limit is above the upper"
            raise _refuse(what, "swap or widen the two limits")
        if self.kind == "sentinel" and "min_n" in self.model_fields_set:
            raise _refuse("min_n is not for a sentinel", "take min_n away")
        if self.kind != "rate" and "at_max_n" in self.model_fields_set:
            what = f"at_max_n is for a rate, not for a {self.kind}"
            raise _refuse(what, "take at_max_n away")
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
