"""The provider ``openai``: one request to the Responses API, with structured output.

Rule: the SDK sends and nothing more: it retries nothing, keeps nothing at the provider, and its
parsing is not used, so that the raw body is on disk before anything reads it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from agent.answer import UnusableError
from agent.provider import Call, Provider, Reply, Tokens, items, only_text, tokens_of
from runbook.contract import Json

if TYPE_CHECKING:
    import httpx2


def send(call: Call, key: str, http: "httpx2.Client") -> bytes:
    """The body of the response. Raises what the SDK raises."""
    from openai import OpenAI  # noqa: PLC0415 - only where it is asked

    served = call.served
    body: dict[str, Json] = {
        "model": served.model,
        "input": [{"role": role, "content": text} for role, text in call.messages],
        "max_output_tokens": served.max_output_tokens,
        "text": {
            "format": {
                "type": "json_schema",
                "name": "decision",
                "schema": dict(call.schema),
                "strict": True,
            }
        },
        "store": False,
        # Left out, some servers stream.
        "stream": False,
    }
    if call.effort is not None:
        body["reasoning"] = {"effort": call.effort}
    client = OpenAI(
        api_key=key,
        base_url=served.base_url,
        max_retries=0,
        timeout=http.timeout,
        http_client=http,
    )
    return bytes(client.responses.with_raw_response.create(**body).content)


def read(body: Mapping[str, Json]) -> Reply:
    """The reply in a response's body. Raises UnusableError: it is no response."""
    status = body.get("status")
    if body.get("object") != "response" or not isinstance(status, str):
        raise UnusableError("the body is no response of the Responses API")
    texts, refused = _texts(body.get("output"))
    if refused:
        return Reply("", "the model refused")
    if status == "completed":
        return only_text(texts)
    details = body.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    if status == "incomplete" and reason == "max_output_tokens":
        return Reply("".join(texts), "it was cut off at max_output_tokens", cut_off=True)
    if status == "incomplete" and reason == "content_filter":
        return Reply("", "the provider's content filter held it back")
    return Reply("", f"the response did not complete; its status is {status!a:.80}")


def _texts(output: Json) -> tuple[list[str], bool]:
    """The texts of the model's final message, and whether it refused in any."""
    texts: list[str] = []
    refused = False
    for item in items(output, "output"):
        match item.get("type"):
            case "reasoning":
                continue
            case "message" if item.get("role") == "assistant":
                if item.get("phase") == "commentary":
                    continue
            case other:
                raise UnusableError(f"the response's output holds {other!a:.80}")
        for part in items(item.get("content"), "content"):
            if part.get("type") == "refusal":
                refused = True
            elif part.get("type") == "output_text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                raise UnusableError(f"the response's content holds {part.get('type')!a:.80}")
    return texts, refused


def tokens(body: Mapping[str, Json]) -> Tokens | None:
    """Cached input is within ``input_tokens``, and reasoning within ``output_tokens``."""
    return tokens_of(body.get("usage"), ("input_tokens",), ("output_tokens",))


PROVIDER = Provider(send, read, tokens)
