"""The provider ``anthropic``: one request to the Messages API, with structured output.

Rule: as for ``agent.openai_provider``: the SDK sends and nothing more.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from agent.answer import UnusableError
from agent.provider import Call, Provider, Reply, Tokens, items, only_text, tokens_of
from runbook.contract import Json

if TYPE_CHECKING:
    import httpx2

_CUT_OFF = {
    "max_tokens": "it was cut off at max_output_tokens",
    "model_context_window_exceeded": "it was cut off at the end of the model's context",
}


def send(call: Call, key: str, http: "httpx2.Client") -> bytes:
    """The body of the response. Raises what the SDK raises."""
    from anthropic import Anthropic  # noqa: PLC0415 - only where it is asked

    served = call.served
    config: dict[str, Json] = {"format": {"type": "json_schema", "schema": dict(call.schema)}}
    if call.effort is not None:
        config["effort"] = call.effort
    body: dict[str, Json] = {
        "model": served.model,
        "messages": [{"role": role, "content": text} for role, text in call.messages],
        "max_tokens": served.max_output_tokens,
        "output_config": config,
        # Left out, some servers stream.
        "stream": False,
    }
    client = Anthropic(
        api_key=key,
        base_url=served.base_url,
        max_retries=0,
        timeout=http.timeout,
        http_client=http,
    )
    response = client.messages.with_raw_response.create(**body, timeout=http.timeout)
    return bytes(response.http_response.content)


def read(body: Mapping[str, Json]) -> Reply:
    """The reply in a message's body. Raises UnusableError: it is no message."""
    reason = body.get("stop_reason")
    if (body.get("type"), body.get("role")) != ("message", "assistant"):
        raise UnusableError("the body is no message of the Messages API")
    if reason == "refusal":
        return Reply("", "the model refused")
    texts = _texts(body.get("content"))
    if isinstance(reason, str) and reason in _CUT_OFF:
        return Reply("".join(texts), _CUT_OFF[reason], cut_off=True)
    if reason not in ("end_turn", "stop_sequence"):
        return Reply("", f"the message did not come to its end; its stop_reason is {reason!a:.80}")
    return only_text(texts)


def _texts(content: Json) -> list[str]:
    texts: list[str] = []
    for block in items(content, "content"):
        match block.get("type"):
            case "thinking" | "redacted_thinking":
                continue
            case "text" if isinstance(block.get("text"), str):
                texts.append(block["text"])
            case other:
                raise UnusableError(f"the response's content holds {other!a:.80}")
    return texts


def tokens(body: Mapping[str, Json]) -> Tokens | None:
    """``input_tokens`` leaves out what was written to a cache or read from one."""
    cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
    return tokens_of(body.get("usage"), ("input_tokens", *cached), ("output_tokens",))


PROVIDER = Provider(send, read, tokens)
