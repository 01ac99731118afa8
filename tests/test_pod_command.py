"""A command for the pod: ended in time, and without secrets in what is kept of it."""

import base64
import os
import signal
import time

import pytest

from runbook.pod_command import hide_secrets, run_command

SOON_S = 20.0
"""For what must happen at all, on a loaded machine too."""


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (b"pod canary-1 is canary-22, or not", "pod canary-1 is [secret DB_PASS], or not"),
        (b"key canary-333 and canary-4444", "key [secret RUNPOD_KEY_2] and [secret POD_API_KEY]"),
        (base64.b64encode(b"me:canary-4444"), "bWU6[secret POD_API_KEY]Q="),
        (b'{"url": "https://me:pw@host/x"}', '{"url": "https://[secret]@host/x"}'),
        (b"--pod=pod-0123456789 stopped at eu-1", "--pod=[secret] stopped at eu-1"),
        (b"no pod\tx, pod-012345", "no podx, pod-012345"),
        (b"\xff canary-\xfe\xfd!", "\ufffd [secret RAW_TOKEN]!"),
    ],
)
def test_what_is_kept_holds_no_secret(printed: bytes, shown: str) -> None:
    """Values of variables that sound like it, in other spellings too, and long arguments."""
    environment = {
        "POD": "canary-1",
        "DB_PASS": "canary-22",
        "RUNPOD_KEY_2": "canary-333",
        "POD_API_KEY": "canary-4444",
        "RAW_TOKEN": os.fsdecode(b"canary-\xfe\xfd"),
        "SHORT_KEY": "pod",
    }
    argv = ["/usr/bin/podctl-of-mine", "stop", "--pod=pod-0123456789", "--at", "eu-1"]

    assert hide_secrets(printed, argv, environment) == shown


def test_control_characters_are_not_kept() -> None:
    """What a command prints cannot drive the terminal of who reads the record."""
    assert hide_secrets(b"a\x1b[2Jb\r\nc", ["x"], {}) == "a[2Jb\nc"


def test_a_long_word_is_searched_at_once() -> None:
    """64 KiB without a blank are no longer in the search than they were in the printing."""
    start = time.monotonic()
    word = b"a1B2" * (1 << 14)

    assert hide_secrets(word, ["x", "argument"], {"A_KEY": "canary-1"}) == word.decode()
    assert time.monotonic() - start < 20.0


def test_of_a_flood_the_end_is_kept() -> None:
    """Output without end costs no memory, and a program that floods is ended in its time."""
    ran = run_command(["/bin/sh", "-c", "yes flood | head -c 3000000; echo last"], SOON_S)
    assert (ran.rc, ran.output[-5:], len(ran.output)) == (0, "last\n", 1 << 16)

    endless = run_command(["yes"], 0.2)
    assert (endless.rc, endless.problem) == (None, "killed: no end within 0.2 s")


def test_a_program_that_leaves_a_child_behind_ends_the_try() -> None:
    """The try is over with the program, whoever else holds its output."""
    ran = run_command(["/bin/sh", "-c", "sleep 30 & echo $!"], SOON_S)

    assert ran.rc == 0
    os.kill(int(ran.output), signal.SIGKILL)


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["/no/such/program"], "cannot be started: No such file or directory"),
        (["true", "a\0b"], "cannot be started: a NUL in its arguments"),
    ],
)
def test_a_program_that_cannot_be_started_is_an_answer(argv: list[str], problem: str) -> None:
    """The cause is told instead of an exit code."""
    ran = run_command(argv, SOON_S)

    assert (ran.rc, ran.problem) == (None, problem)
