"""Every prompt the base model sees, in completion form. Texts come from the few-shot file.

Rule: no other module builds a prompt. A chat template is never used.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.tokens import (
    AliasToken,
    BlockEndToken,
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingEndToken,
    FlowMappingStartToken,
    FlowSequenceEndToken,
    FlowSequenceStartToken,
)

from phases.clean import DELIMITER
from phases.jsonl import read_lines
from runbook.errors import ConfigError

SEEDS_SHOWN: Final = 6
ENDING: Final = f"\n{DELIMITER}"
"""What closes a response."""
INSTRUCTION: Final = "Instruction:"
BARE_RESPONSE: Final = "Response:"

_OPENING = (
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingStartToken,
    FlowSequenceStartToken,
)
_CLOSING = (BlockEndToken, FlowMappingEndToken, FlowSequenceEndToken)
_DEEPEST: Final = 10
_MAX_FILE: Final = 1 << 20
"""Bytes of a few-shot file: far more than any context holds."""

Text = Annotated[str, Field(min_length=1, max_length=2000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Pair(_Strict):
    instruction: Text
    response: Text


class LabelledInstruction(_Strict):
    text: Text
    good: bool


class LabelledPair(_Strict):
    instruction: Text
    response: Text
    good: bool


class FewShot(_Strict):
    """The few-shot file: what the base model is shown."""

    instructions: list[Text] = Field(min_length=SEEDS_SHOWN)
    responses: list[Pair] = Field(min_length=1)
    labelled_instructions: list[LabelledInstruction] = Field(min_length=2)
    labelled_pairs: list[LabelledPair] = Field(min_length=2)

    @model_validator(mode="after")
    def _both_labels(self) -> Self:
        for name in ("labelled_instructions", "labelled_pairs"):
            for label in (True, False):
                if not any(row.good is label for row in getattr(self, name)):
                    raise ValueError(f"{name} has no row with good: {str(label).lower()}")
        return self


def load_few_shot(path: Path) -> FewShot:
    """Read and check a few-shot file.

    Raises:
        ConfigError: not YAML, a wrong type or an unknown key, with the place in the file.
    """
    try:
        text = "\n".join(line for _, line in read_lines(path, _MAX_FILE))
        _refuse_bombs(text, path)
        return FewShot.model_validate(YAML(typ="safe", pure=True).load(text))
    except (YAMLError, RecursionError) as error:
        raise ConfigError(
            f"the few-shot file cannot be read: {error}",
            where=str(path),
            fix="give it the four lists of specs/few_shot.yaml",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{place}: {first['msg']}" if place else first["msg"],
            where=str(path),
            fix="give it the four lists of specs/few_shot.yaml; quote words that YAML reads as "
            "something else, like Yes or 7",
        ) from error


def _refuse_bombs(text: str, path: Path) -> None:
    """Nested aliases unfold to billions of values, and deep nesting takes minutes to read."""
    depth = 0
    for token in YAML(typ="safe", pure=True).scan(text):
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        where = f"{path}:{token.start_mark.line + 1}:{token.start_mark.column + 1}"
        if isinstance(token, AliasToken):
            what = f"the alias *{token.value} is not allowed"
            raise ConfigError(what, where=where, fix="write the value out")
        if depth > _DEEPEST:
            raise ConfigError(
                f"nested deeper than {_DEEPEST} levels", where=where, fix="flatten it"
            )


def instruction_list_prompt(shots: FewShot, seed: int) -> str:
    """A numbered list of instructions, cut where the next one begins."""
    shown = random.Random(seed).sample(shots.instructions, SEEDS_SHOWN)  # noqa: S311 - not secret
    lines = "\n".join(f"{i}. {text}" for i, text in enumerate(shown, 1))
    return (
        "A list of short, clear and varied instructions, each of which anyone can answer in a few "
        f"words:\n{lines}\n{SEEDS_SHOWN + 1}."
    )


def response_prompt(shots: FewShot, instruction: str) -> str:
    """Few-shot pairs, each closed by the delimiter, then the instruction."""
    return response_prefix(shots) + evaluation_prompt(instruction)


def response_prefix(shots: FewShot) -> str:
    """What stands before the instruction in ``response_prompt``, the same for all."""
    return "".join(
        f"{evaluation_prompt(p.instruction)} {p.response}{ENDING}\n\n" for p in shots.responses
    )


def evaluation_prompt(instruction: str) -> str:
    """What the model is trained and evaluated on."""
    return f"{INSTRUCTION} {instruction}\n{BARE_RESPONSE}"


def completion(response: str) -> str:
    """What follows ``evaluation_prompt`` in a training row."""
    return f" {response}{ENDING}"


def bare_response_prefix(shots: FewShot) -> str:
    """The few-shot responses without their instructions: what a response is likely like."""
    return "".join(f"{BARE_RESPONSE} {p.response}{ENDING}\n\n" for p in shots.responses)


def instruction_critic_prefix(shots: FewShot, good: str, bad: str) -> str:
    rubric = (
        f"Each instruction gets a label. {good} = clear, specific, achievable and safe. "
        f"{bad} = anything else. When unsure, {bad}.\n\n"
    )
    return rubric + "".join(
        f"{instruction_critic_suffix(s.text)} {good if s.good else bad}\n\n"
        for s in shots.labelled_instructions
    )


def instruction_critic_suffix(instruction: str) -> str:
    return f"{INSTRUCTION} {instruction}\nLabel:"


def pair_critic_prefix(shots: FewShot, good: str, bad: str) -> str:
    rubric = (
        f"Each response gets a label. {good} = it fulfils the instruction, is correct and has the "
        f"right format; a brief refusal if the instruction is unsafe. {bad} = anything else.\n\n"
    )
    return rubric + "".join(
        f"{pair_critic_suffix(s.instruction, s.response)} {good if s.good else bad}\n\n"
        for s in shots.labelled_pairs
    )


def pair_critic_suffix(instruction: str, response: str) -> str:
    return f"{evaluation_prompt(instruction)} {response}\nLabel:"


def seen_instructions(shots: FewShot) -> Sequence[str]:
    """Every instruction the few-shot file shows; generated copies of them are dropped."""
    return [
        *shots.instructions,
        *(p.instruction for p in shots.responses),
        *(p.instruction for p in shots.labelled_pairs),
        *(i.text for i in shots.labelled_instructions),
    ]
