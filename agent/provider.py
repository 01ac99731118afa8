"""A model behind an API: what is declared of it, what is sent to it, what its reply says.

Pure data and arithmetic. What a provider's own module adds is ``send``, through its SDK, and
``read``, which needs none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent.answer import UnusableError, load_json
from runbook.artifacts import canonical_json
from runbook.contract import Json

if TYPE_CHECKING:
    import httpx2

OVERHEAD_TOKENS = 2000
"""What a provider may add to a prompt: roles, its words for a schema."""
QUOTED_TOKENS = 4000
"""Of the reply that a repair quotes, at most."""
_BYTES_A_TOKEN = 3
"""Of a prompt at most, as ``agent.dossier`` estimates its tokens; it is reserved by bytes."""
_MILLION = 1e6
_MOST_TOKENS = 1 << 53

Message = tuple[str, str]
"""Role, ``user`` or ``assistant``, and text."""


@dataclass(frozen=True)
class Served:
    """One model of one provider, as the runbook declares it; the fields of ``Plan.reviewer``."""

    provider: str
    model: str
    base_url: str
    api_key_env: str
    timeout_s: float
    max_output_tokens: int
    context_tokens: int
    effort: Mapping[str, str | None] | None = None
    """Stake, high or medium -> the name that is sent; None: none is."""
    usd_per_mtok: Mapping[str, float] | None = None
    """input and output: dollars per million tokens."""
    max_usd: float | None = None
    """The most that one request may cost; where there are no prices, what it is taken to cost."""

    @classmethod
    def of(cls, declared: Mapping[str, Json]) -> "Served":
        """From ``Plan.reviewer`` or its ``fallback``."""
        return cls(
            **{name: declared[name] for name in cls.__dataclass_fields__ if name in declared}
        )

    @property
    def name(self) -> str:
        """As a decision's author: ``openai gpt-5``."""
        return f"{self.provider} {self.model}"

    @property
    def is_local(self) -> bool:
        """Whether it is served on this machine, where no key is needed."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def effort_for(self, reason: str) -> str | None:
        """What is sent as effort: a question is of medium stake, all else of high."""
        return (self.effort or {}).get("medium" if reason == "question" else "high")

    @property
    def prompt_tokens(self) -> int:
        """What the context leaves to a prompt beside the answer."""
        return self.context_tokens - self.max_output_tokens

    @property
    def least_usd(self) -> float | None:
        """What the shortest request is reserved at; None as in ``worst_usd``."""
        return self.worst_usd(0)

    def most_usd(self, models: Sequence["Served"]) -> float | None:
        """What the longest question, or its repair, is reserved at; None as in ``worst_usd``.

        Args:
            models: all that may be asked, this one among them: the smallest context of theirs
                bounds a question.
        """
        question = min(served.prompt_tokens for served in models)
        return self.worst_usd(_BYTES_A_TOKEN * min(self.prompt_tokens, question + QUOTED_TOKENS))

    def worst_usd(self, size: int) -> float | None:
        """What a request of so many bytes costs at worst: no token is shorter than a byte.

        None: what the runbook declares of a request.
        """
        most = self.cost(Tokens(size + OVERHEAD_TOKENS, self.max_output_tokens))
        return self.max_usd if most is None else most

    def cost(self, tokens: "Tokens") -> float | None:
        """What these tokens cost; None where no prices are declared."""
        if self.usd_per_mtok is None:
            return None
        price_in, price_out = self.usd_per_mtok["input"], self.usd_per_mtok["output"]
        return (tokens.input * price_in + tokens.output * price_out) / _MILLION


@dataclass(frozen=True)
class Tokens:
    """As the provider counted them: what was cached is input, what was thought is output."""

    input: int
    output: int


@dataclass(frozen=True)
class Call:
    """All of one request but the key."""

    served: Served
    messages: tuple[Message, ...]
    schema: Mapping[str, Json]
    effort: str | None


@dataclass(frozen=True)
class Reply:
    """What a response says."""

    text: str
    """The model's; empty where there is none that counts."""
    ended: str = ""
    """Why it is no answer whatever the text says; empty where the model came to its end."""
    cut_off: bool = False
    """It ended at a limit of tokens, so that a shorter one may still come."""


Send = Callable[[Call, str, "httpx2.Client"], bytes]
"""Call, key and an HTTP client -> the body of a response that succeeded. Raises what the SDK
raises."""


@dataclass(frozen=True)
class Provider:
    """One protocol."""

    send: Send
    read: Callable[[Mapping[str, Json]], Reply]
    """Raises UnusableError: the body is none of this protocol's."""
    tokens: Callable[[Mapping[str, Json]], Tokens | None]
    """What a body's ``usage`` says; None where it says nothing that can be believed."""


def request_size(messages: tuple[Message, ...], schema: Mapping[str, Json]) -> int:
    """Bytes of what is sent to be read."""
    texts = [text for _, text in messages] + [canonical_json(schema)]
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def is_key(text: str) -> bool:
    """Whether a text can be sent as a key; an empty one is no key."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def load_body(body: bytes) -> Mapping[str, Json]:
    """A response's JSON. Raises UnusableError: it is none."""
    try:
        value = load_json(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UnusableError(f"the response is not UTF-8: {error.reason}") from error
    except UnusableError as error:
        raise UnusableError(f"the response is {error}") from error
    if not isinstance(value, dict):
        raise UnusableError("the response is not a JSON object")
    return value


def total(usage: Json, *names: str) -> int | None:
    """The sum of these counts; those that are null or not there are 0, the first must be there."""
    if not isinstance(usage, dict):
        return None
    counts: list[int] = []
    for index, name in enumerate(names):
        count = usage.get(name)
        if index and count is None:
            continue
        if type(count) is not int or not 0 <= count < _MOST_TOKENS:
            return None
        counts.append(count)
    return sum(counts)


def tokens_of(usage: Json, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Tokens | None:
    """The two sums of a ``usage``; None where one of them cannot be read."""
    used_in, used_out = total(usage, *inputs), total(usage, *outputs)
    return None if used_in is None or used_out is None else Tokens(used_in, used_out)


def believed(counted: Tokens | None, text: str) -> Tokens | None:
    """The count, unless it says that nothing was read, or nothing written where a text came."""
    if counted is None or not counted.input or (text and not counted.output):
        return None
    return counted


def only_text(texts: list[str]) -> Reply:
    """The reply with exactly one text in it."""
    if len(texts) > 1:
        return Reply("", "it holds several texts, so nobody knows which was meant")
    if not texts or not texts[0].strip():
        return Reply("", "it is empty")
    return Reply(texts[0])


def items(value: Json, what: str) -> list[Mapping[str, Json]]:
    """A list of objects. Raises UnusableError."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UnusableError(f"the response's {what} is not a list of objects")
    return value
