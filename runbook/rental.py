"""When the machine's rental ends, as the runbook says it: read, and held against the clock.

Rule: a time that stands in the runbook itself was checked where the runbook was read; here it may
come out of the environment, so it is checked again.
"""

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from runbook.bootstrap import Check, State
from runbook.contract import Json
from runbook.errors import ConfigError
from runbook.params import expand
from runbook.schema_values import AS_MOMENT, moment

_KEY = "pod.rental_ends"
_LATER = f"rent it until later, and write that time into {_KEY}"


def rental_end(pod: Mapping[str, Json], environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds since the epoch; None where the runbook does not say.

    Args:
        pod: ``Plan.pod``.
        environ: what ``${NAME}`` is looked up in.

    Raises:
        ConfigError: it is no time, or its variable is not set.
    """
    text = pod.get("rental_ends")
    if not text:
        return None
    try:
        told = expand(text, environ)
    except KeyError as error:
        raise ConfigError(
            f"the environment variable {error.args[0]} is not set",
            where=_KEY,
            fix=f"export {error.args[0]}, or write the time itself",
        ) from None
    found = moment(told)
    if found is None:
        # The value of a variable is not shown.
        shown = repr(text) if told == text else f"the value of {text}"
        raise ConfigError(f"{shown} is not a time with an offset", where=_KEY, fix=AS_MOMENT)
    return found.timestamp()


def check_rental(
    pod: Mapping[str, Json],
    environ: Mapping[str, str] = os.environ,
    wall: Callable[[], float] = time.time,
) -> Check:
    """Whether the rental goes on; a session that begins after its end would do nothing."""
    try:
        ends = rental_end(pod, environ)
    except ConfigError as error:
        return Check("rental", State.FAILED, f"{error.where}: {error.what}", error.fix)
    if ends is None:
        return Check("rental", State.SKIPPED, "the runbook does not say when it ends")
    told = f"{datetime.fromtimestamp(ends, UTC):%Y-%m-%d %H:%M:%S} UTC"
    left = ends - wall()
    if left <= 0:
        return Check("rental", State.FAILED, f"it ended at {told}", _LATER)
    return Check("rental", State.OK, f"ends at {told}, in {left / 3600:.1f} h")
