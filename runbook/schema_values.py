"""What the shapes of YAML files are made of: texts, numbers, times, and how one is refused."""

import re
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from runbook.problems import quoted

Text = Annotated[str, StringConstraints(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Price = Annotated[Number, Field(ge=0)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

Version = Annotated[int, Field(ge=1, le=1)]
"""The format's version; Literal[1] would take true for 1."""

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = r"^[1-9][0-9]{0,8}[smh]$"


def seconds(duration: str) -> float:
    """The length in seconds of a ``Duration``."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]


def refuse(what: str, fix: str) -> PydanticCustomError:
    """What a validator raises; ``runbook.schema_errors`` adds the place."""
    return PydanticCustomError("rule", "{what}", {"what": what, "fix": fix})


def _duration(value: object) -> object:
    if not (isinstance(value, str) and re.fullmatch(_DURATION, value)):
        fix = "write whole seconds, minutes or hours: 90s, 15m, 6h"
        raise refuse(f"{quoted(value)} is not a duration", fix)
    return value


Duration = Annotated[str, BeforeValidator(_duration), StringConstraints(pattern=_DURATION)]
"""Whole seconds, minutes or hours: ``90s``, ``15m``, ``6h``."""


AS_MOMENT = "write it as 2026-11-22T08:00:00Z"


def moment(text: str) -> datetime | None:
    """The time, ISO 8601 with an offset; None where the text is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def _moment(value: object) -> object:
    if isinstance(value, str) and value and "${" not in value and moment(value) is None:
        raise refuse(f"{quoted(value)} is not a time with an offset", AS_MOMENT)
    return value


Moment = Annotated[Text, BeforeValidator(_moment)]
"""ISO 8601 with an offset; one that stands in the environment is not looked up here."""


class Strict(BaseModel):
    """Unknown keys are errors, and no value is converted to another type."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, protected_namespaces=(), defer_build=True
    )
