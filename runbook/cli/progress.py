"""What a person sees while the session runs: a live display on a terminal, plain lines elsewhere.

Shown is what was told, and no more; what a message means is for ``runbook.cli.reading``.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from runbook.cli.options import say
from runbook.cli.reading import Reading, behind, describe, headline, named, observe
from runbook.contract import Json
from runbook.problems import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

PLAIN_EVERY_S = 10.0
_BAR = 24

Clock = Callable[[], float]
"""Seconds from any fixed moment."""


class Display:
    """Takes the executor's progress messages; nothing it shows outlives the ``with`` block.

    On a terminal the two live lines come with the first message; the lines that stay are the
    start of a step, and warnings. Elsewhere there are only lines: at each change of stage, and
    with news every ten seconds.
    """

    def __init__(
        self, steps: Sequence[str], console: "Console | None", clock: Clock = time.monotonic
    ) -> None:
        """Without a console the lines go to stderr, as plain text."""
        self._steps = tuple(steps)
        self._console = console
        self._clock = clock
        self._reading = Reading()
        self._live: Live | None = None
        self._told = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        live, self._live = self._live, None
        if live:
            with suppress(OSError):
                live.stop()

    def tell(self, fields: Mapping[str, Json]) -> None:
        """Show one message of the executor; a screen that takes no more ends no session."""
        with suppress(OSError):
            if "refused" in fields:
                self._warn(fields)
            elif "lost" in fields:
                step, why = (printable(str(fields.get(k)), longest=500) for k in ("step", "lost"))
                self._line(f"warning: {step}: its child is lost: {why}", "yellow")
            elif "unnotified" in fields:
                self._line(
                    f"warning: {printable(str(fields['unnotified']), longest=500)}", "yellow"
                )
            else:
                self._advance(fields)

    def _advance(self, fields: Mapping[str, Json]) -> None:
        now = self._clock()
        old, new = self._reading, observe(self._reading, fields, now)
        self._reading = new
        changed = (old.step, old.attempt) != (new.step, new.attempt)
        if changed:
            self._line(headline(new, self._steps), "bold")
        if self._console and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._refresh()
        elif changed or old.stage != new.stage or now - self._told >= PLAIN_EVERY_S:
            self._told = now
            self._line(f"{named(new)}: {describe(new, now)}")

    def _warn(self, fields: Mapping[str, Json]) -> None:
        review, why = (printable(str(fields.get(k)), longest=500) for k in ("review", "refused"))
        self._line(f"warning: the answer to review {review} was refused: {why}", "yellow")

    def _line(self, text: str, style: str = "") -> None:
        """A line that stays, above the live ones."""
        if self._console is None:
            say(text)
            return
        from rich.text import Text  # noqa: PLC0415 - no terminal, no need

        self._console.print(Text(text, style), soft_wrap=True)

    def _refresh(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - no terminal, no need

        if self._live is None:
            self._live = Live(
                console=self._console, get_renderable=self._render, transient=True, screen=False
            )
            self._live.start()
        self._live.refresh()

    def _render(self) -> "Table":
        from rich.progress_bar import ProgressBar  # noqa: PLC0415 - no terminal, no need
        from rich.table import Table  # noqa: PLC0415 - no terminal, no need
        from rich.text import Text  # noqa: PLC0415 - no terminal, no need

        reading = self._reading
        done = reading.samples[-1].done if reading.samples else 0
        bars = (
            (len(self._steps), behind(reading, self._steps), headline(reading, self._steps)),
            (reading.total or 1, done, describe(reading, self._clock())),
        )
        grid = Table.grid(padding=(0, 1))
        for total, completed, text in bars:
            bar = ProgressBar(total=total, completed=completed, width=_BAR)
            grid.add_row(bar, Text(text, no_wrap=True, overflow="ellipsis"))
        return grid
