"""The shape of ``reviewer:`` in runbook.yaml: by whom a review is answered, and at what price."""

import ipaddress
import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from runbook.problems import quoted
from runbook.redact import is_secret_name
from runbook.schema_values import Duration, Number, Price, Strict, Text, refuse

SERVED = ("openai", "anthropic")
"""The reviewers that are models behind an API."""
REVIEWERS = ("human", "command", *SERVED)
REVIEWER_TIMEOUT = "10m"
"""How long a reviewer may take for one answer unless the runbook says."""
BASE_URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
API_KEY_ENVS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
MAX_OUTPUT_TOKENS = 16_000
CONTEXT_TOKENS = 64_000
LEAST_PROMPT_TOKENS = 2000
_OWN = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("::1/128", "fc00::/7"),
    )
)
"""Networks that no public server is in; not link-local, where clouds serve a pod's credentials."""


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
        raise refuse("a URL with credentials stands here, and would be recorded", fix)
    fix = "write it as https://host/v1, or http://localhost:8000/v1 for a server of your own"
    try:
        url = urlsplit(value)
        url.port  # noqa: B018 - raises where it is none
    except ValueError as error:
        raise refuse(f"{quoted(value)} is not a URL", fix) from error
    if url.scheme not in {"http", "https"} or not url.hostname or not value.isprintable():
        raise refuse(f"{quoted(value)} is not a URL of a server", fix)
    if url.query or url.fragment:
        raise refuse("a base URL ends with its path", "take away what follows ? or #")
    if url.scheme == "http" and not _is_private(url.hostname):
        what = "by plain http to a public address the key and the dossier could be read on the way"
        raise refuse(what, "write https, or reach the server through a tunnel to localhost")
    return value


def _is_private(host: str) -> bool:
    """Whether a host is this machine or of its own network: by number, or by a name for such."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # A number without dots is an address too; other alphabets have dots of their own.
        is_name = host.isascii() and host[:1].isalpha()
        return is_name and ("." not in host or host.endswith((".local", ".internal")))
    return any(address in network for network in _OWN)


def _key_variable(value: object) -> object:
    """What is refused is not quoted: it may be the key itself."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        what = "this is no variable's name; a key is a secret, and would be recorded here"
        raise refuse(what, "write the name of the variable that holds the key")
    if not is_secret_name(value):
        what = "the variable's name does not say that its value is a secret, so logs would show it"
        raise refuse(what, "export the key under a name that ends in _API_KEY or _TOKEN")
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
            raise refuse(what, "add model: the name by which the provider knows it")
        if self.usd_per_mtok is None and self.max_usd is None:
            what = "nothing says what a request costs, so it cannot be held within the budget"
            fix = "add usd_per_mtok: {input: 1.25, output: 10}, or max_usd; 0 where it is free"
            raise refuse(what, fix)
        if self.context_tokens - self.max_output_tokens < LEAST_PROMPT_TOKENS:
            what = (
                f"max_output_tokens leaves less than {LEAST_PROMPT_TOKENS} tokens for the question"
            )
            raise refuse(what, "lower max_output_tokens, or raise context_tokens")


class FallbackModel(ServedModel):
    """The model that is asked where the first cannot answer at all."""

    @model_validator(mode="after")
    def _available(self) -> Self:
        if self.provider not in SERVED:
            what = f"the fallback {quoted(self.provider)} is not a model behind an API"
            raise refuse(what, f"use one of: {', '.join(SERVED)}")
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
            raise refuse(what, f"use one of: {', '.join(REVIEWERS)}")
        if self.provider == "command" and self.command is None:
            what = "the reviewer 'command' has no command"
            raise refuse(what, "add command: [program, argument, ...]")
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
            raise refuse(what, f"take {key} away, or write provider: {others[0]}")
