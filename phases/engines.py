"""Engines: what generates text and reads label probabilities, behind one small seam.

An engine takes prompts in batches that the caller pinned, and is deterministic for a given batch
and seed on one machine. Whether a text is good is not an engine's business. Nothing heavy is
imported here: an engine's own module is, once it is opened.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from runbook.contract import Json, PhaseRequest
from runbook.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 64
    """Applied before top_p; it bounds the work over a large vocabulary."""
    repetition_penalty: float = 1.0


class SamplingParams(BaseModel):
    """How a spec says that tokens are drawn; every number is declared."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=1)
    repetition_penalty: float = Field(ge=1)

    def sampling(self) -> Sampling:
        """The engine's own form, without what a spec adds."""
        return Sampling(**{f.name: getattr(self, f.name) for f in fields(Sampling)})


@dataclass(frozen=True)
class Generation:
    text: str
    """The raw continuation, delimiter and overshoot included."""
    tokens: int
    hit_limit: bool
    """Neither a stop string nor the end of the text came before max_new_tokens."""


class Engine(Protocol):
    def generate(
        self, prompts: Sequence[str], sampling: Sampling, stop: Sequence[str], seed: int
    ) -> list[Generation]:
        """One continuation a prompt, in order."""

    def label_logps(
        self, prefix: str, suffixes: Sequence[str], labels: tuple[str, str]
    ) -> list[tuple[float, float]]:
        """Log-probability of each label as the next token after prefix + suffix.

        The label with and without a leading space is summed. Shape: one pair a suffix.
        """

    def text_logps(self, prefix: str, texts: Sequence[tuple[str, ...]]) -> list[list[list[float]]]:
        """Log-probability, in nats, of every token of a text that follows prefix + lead.

        A text is given in pieces: the first is the lead, which is not scored, the others follow
        it one after another. Returned are, for each text, a list for each piece but the lead.
        """

    def states(self, prefix: str, texts: Sequence[str]) -> list[list[float]]:
        """What the middle layers hold at the last token of prefix + text, one vector a text.

        Each layer's state is scaled to length 1, then averaged over the layers from 45 % to 90 %
        of the depth. Length: the model's width.
        """

    def damaged(self) -> AbstractContextManager[None]:
        """Within it the engine speaks nonsense: a copy that any evaluation must find worse."""

    def fed(self, text: str) -> str:
        """What the model is fed for a text, read back from its tokens, special ones included."""

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, special ones not counted."""

    def end_of_turn_logps(self) -> dict[str, float]:
        """See ``BaseModel.end_of_turn_logps``."""

    def stated(self) -> dict[str, Json]:
        """What a record says of the model behind it."""


_loaded: dict[tuple[str, str, str, str], Engine] = {}


def open_engine(
    request: PhaseRequest, *, quantization: str | None = None, adapter: Path | None = None
) -> Engine:
    """The engine the runbook declares, on the prepared base; kept while the child lives.

    Raises:
        ConfigError: there is no engine of the declared name.
    """
    folder = request.workspace / request.inputs["prepare_model"]["base_model"].path
    key = (str(request.engine.get("name")), str(folder), str(quantization), str(adapter))
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _load(request, folder, quantization, adapter)
    return _loaded[key]


def _load(
    request: PhaseRequest, folder: Path, quantization: str | None, adapter: Path | None
) -> Engine:
    match request.engine.get("name"):
        case "transformers":
            from phases.base_model import load_base_model  # noqa: PLC0415 - torch is slow to import
            from phases.transformers_engine import (  # noqa: PLC0415 - torch is slow to import
                TransformersEngine,
            )

            base = load_base_model(
                folder, request.model, request.engine, quantization=quantization, adapter=adapter
            )
            return TransformersEngine(base)
        case "fake":
            from phases.fake_engine import FakeEngine  # noqa: PLC0415 - only where it is declared

            return FakeEngine("/".join(adapter.parts[-2:]) if adapter else "")
        case other:
            raise ConfigError(
                f"there is no engine {other!r}",
                where="engine.name",
                fix="name one of: transformers, fake",
            )
