"""The progress display: honest numbers, lines where there is no terminal, and no traces."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from runbook.cli.progress import Display
from runbook.cli.reading import Reading, describe, headline, observe

STEPS = ("prepare", "pilot", "scale")


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def console(*, terminal: bool, width: int = 120) -> Console:
    environment = {"TERM": "xterm-256color"}
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, _environ=environment)


def written(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def screen(text: str) -> list[str]:
    """What a terminal shows after this text: the lines that are not blank."""
    rows, row, column = [""], 0, 0
    for token in re.finditer(r"\x1b\[\??(\d*)(?:;\d+)*([A-Za-z])|(\r)|(\n)|([^\x1b])", text):
        count, code, home, down, glyph = token.groups()
        if glyph:
            rows[row] = rows[row][:column].ljust(column) + glyph + rows[row][column + 1 :]
            column += 1
        elif home:
            column = 0
        elif down:
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif code == "A":
            row -= int(count or 1)
        elif code == "K":
            assert count == "2"
            rows[row] = ""
        else:
            assert code in "mhl", token[0]
    return [line.rstrip() for line in rows if line.strip()]


def pilot(**fields: Any) -> dict[str, Any]:
    return {"step": "pilot", "attempt": 1, "stage": "round-0/responses", "total": 12, **fields}


def readings(*messages: tuple[float, dict[str, Any]]) -> Reading:
    """The reading after these messages, each at its moment."""
    reading = Reading()
    for at, fields in messages:
        reading = observe(reading, fields, at)
    return reading


def test_a_reading_shows_batch_speed_kept_and_the_stage_eta() -> None:
    """Four seconds a batch with 400 tokens each: 100 tokens/s, and 40 s for ten batches."""
    facts = {"tokens": 400, "kept": 20, "target": 110}
    reading = readings((0, pilot(done=1, **facts)), (4, pilot(done=2, **facts)))

    expected = "batch 2/12, 100 tokens/s, kept 20 of 110, stage ETA 40 s"
    assert describe(reading, 4) == f"round-0/responses: {expected}"


def test_lost_messages_change_neither_speed_nor_eta() -> None:
    """Rates rest on how far the count moved."""
    every = readings(*((4 * n, pilot(done=n, tokens=400)) for n in range(1, 9)))
    some = readings(*((4 * n, pilot(done=n, tokens=400)) for n in (1, 3, 4, 8)))

    assert describe(every, 32) == describe(some, 32)
    assert "100 tokens/s, stage ETA 16 s" in describe(some, 32)


def test_batches_of_an_earlier_run_do_not_speed_up_the_eta() -> None:
    """After a resume the first batches pass in no time; the others tell the pace."""
    replayed = readings((0, pilot(done=1)), (0.2, pilot(done=5)))
    assert replayed.pace == pytest.approx(0.05)

    reading = replayed
    for n, at in ((6, 10.2), (7, 20.2), (8, 30.2)):
        reading = observe(reading, pilot(done=n), at)
    assert reading.stage_eta(30.2) == pytest.approx(40)


def test_the_eta_counts_down_but_not_below_what_is_left_after_this_batch() -> None:
    """A batch that takes long cannot make the stage look done."""
    reading = readings((0, pilot(done=1)), (10, pilot(done=2)))

    assert [reading.stage_eta(now) for now in (10, 14, 20, 500)] == [100, 96, 90, 90]
    assert "no news for 8 min 10 s" in describe(reading, 500)
    assert "no news" not in describe(reading, 69)


@pytest.mark.parametrize(
    "messages",
    [
        [(0, pilot(done=1))],
        [(0, pilot(done=1)), (5, pilot(done=1))],
        [(0, pilot(done=11)), (5, pilot(done=12))],
        [(0, pilot(done=1, total=None)), (5, pilot(done=2, total=None))],
        [(0, pilot(done=1)), (5, pilot(done=2)), (9, pilot(done=1, stage="next"))],
        [(0, pilot(done=1)), (5, pilot(done=2)), (9, pilot(done=1, attempt=2))],
        [(0, pilot(done=7)), (5, pilot(done=8)), (9, pilot(done=2))],
    ],
)
def test_no_eta_where_nobody_can_know(messages: list[tuple[float, dict[str, Any]]]) -> None:
    """One message, a stage without a total, one that is done or that just began: no time left."""
    reading = readings(*messages)

    assert reading.stage_eta(messages[-1][0]) is None
    assert "ETA" not in describe(reading, messages[-1][0])


def test_training_shows_its_loss() -> None:
    """Where no tokens are told, none are made up."""
    reading = readings((0, {"step": "sft", "stage": "train", "done": 3, "total": 54, "loss": 2.3}))

    assert describe(reading, 0) == "train: batch 3/54, loss 2.3"


@pytest.mark.parametrize(
    "odd",
    ["3", None, float("nan"), float("inf"), 10**400, -1, 0, True, [1], {"a": 1}, 1e-320, 1e300],
)
@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_step_sends_can_be_anything(odd: Any, terminal: bool) -> None:
    """A user's own step may tell nonsense; the session does not end of it."""
    clock = Clock()
    target = console(terminal=terminal)
    with Display(STEPS, target, clock) as display:
        for name in ("done", "total", "tokens", "kept", "target", "loss", "stage", "attempt"):
            for n in (1, 2, 3):
                clock.now += 11
                display.tell({**pilot(done=n, tokens=5), name: odd})

    assert screen(written(target))[0] == "pilot: 1 of 3 steps done"


def test_control_characters_are_spelled_out() -> None:
    """Foreign text cannot move the cursor."""
    target = console(terminal=False)
    with Display(STEPS, target, Clock()) as display:
        display.tell({"step": "pilot\x1b[2J", "stage": "a\nb[bold]", "done": 1, "total": 2})

    assert "pilot\\x1b[2J: a\\nb[bold]: batch 1/2" in written(target)
    assert "\x1b" not in written(target)


def test_without_a_terminal_the_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a console the same lines go to stderr, a warning too."""
    with Display(STEPS, None, Clock()) as display:
        display.tell({"step": "pilot", "stage": "generate", "done": 1, "total": 2})
        display.tell({"review": "pilot-1", "refused": "no such action"})

    told = capsys.readouterr().err.splitlines()
    assert told[0] == "pilot: 1 of 3 steps done"
    assert told[1].startswith("pilot: generate")
    assert told[2:] == ["warning: the answer to review pilot-1 was refused: no such action"]


def test_the_headline_counts_the_steps_behind() -> None:
    """A retry that starts at an earlier step takes the count back; its attempt is named."""
    later = readings((0, {"step": "scale", "attempt": 1}))
    again = observe(later, {"step": "pilot", "attempt": 2}, 1)

    assert headline(later, STEPS) == "scale: 2 of 3 steps done"
    assert headline(again, STEPS) == "pilot, attempt 2: 1 of 3 steps done"


def test_without_a_terminal_there_are_lines_at_changes_and_every_ten_seconds() -> None:
    """A log gets a line at each step and stage, then one in ten seconds, and no escapes."""
    clock = Clock()
    target = console(terminal=False)
    with Display(STEPS, target, clock) as display:
        for n in range(1, 25):
            clock.now = float(n)
            display.tell(pilot(done=n, total=60))
        display.tell(pilot(stage="round-0/pair_critic", done=1))

    assert written(target).splitlines() == [
        "pilot: 1 of 3 steps done",
        "pilot: round-0/responses: batch 1/60",
        "pilot: round-0/responses: batch 11/60, stage ETA 49 s",
        "pilot: round-0/responses: batch 21/60, stage ETA 39 s",
        "pilot: round-0/pair_critic: batch 1/12",
    ]


def test_a_terminal_shows_two_live_lines_below_those_that_stay() -> None:
    """The overall line and the stage's stand once, however often they were drawn."""
    clock = Clock()
    target = console(terminal=True)
    with Display(STEPS, target, clock) as display:
        for n in (1, 2, 3):
            clock.now = 4.0 * n
            display.tell(pilot(done=n, tokens=400, kept=20, target=110))
        shown = screen(written(target))

    assert len(shown) == 3
    assert shown[0] == "pilot: 1 of 3 steps done"
    assert shown[1].endswith(" pilot: 1 of 3 steps done")
    stage = "round-0/responses: batch 3/12, 100 tokens/s, kept 20 of 110, stage ETA 36 s"
    assert shown[2].endswith(f" {stage}")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ValueError("a fault")])
def test_nothing_is_left_on_the_terminal(error: BaseException | None) -> None:
    """At the end, at Ctrl-C and at a fault only the lines that stay remain, and the cursor."""
    target = console(terminal=True)
    ended: BaseException | None = None
    try:
        with Display(STEPS, target, Clock()) as display:
            display.tell(pilot(done=1))
            display.tell({"review": "pilot-1", "refused": "'proceed' is not allowed"})
            if error:
                raise error
    except (KeyboardInterrupt, ValueError) as caught:
        ended = caught

    assert ended is error
    assert screen(written(target)) == [
        "pilot: 1 of 3 steps done",
        "warning: the answer to review pilot-1 was refused: 'proceed' is not allowed",
    ]
    assert written(target).rindex("\x1b[?25h") > written(target).rindex("\x1b[?25l")


def test_a_narrow_terminal_cuts_lines_instead_of_wrapping() -> None:
    """A wrapped live line could not be taken away again."""
    target = console(terminal=True, width=50)
    with Display(STEPS, target, Clock()) as display:
        display.tell(pilot(done=1, kept=20, target=110))
        shown = screen(written(target))

    assert len(shown) == 3
    assert all(len(line) <= 50 for line in shown)


def test_a_display_that_says_nothing_leaves_nothing() -> None:
    """Without a message the terminal is not touched."""
    target = console(terminal=True)
    with Display(STEPS, target, Clock()):
        pass

    assert written(target) == ""


def test_a_screen_that_is_gone_ends_no_session() -> None:
    """A closed terminal or a full disk behind a log costs the display alone."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    with Display(STEPS, Console(file=Gone()), Clock()) as display:
        display.tell(pilot(done=1))
        display.tell({"review": "pilot-1", "refused": "why"})
