"""A few of the faults and an honest session in every test run; `make sabotage` runs them all."""

from collections import Counter
from dataclasses import replace

import pytest

from sabotage.__main__ import run, run_honest
from sabotage.fault import Fault
from sabotage.faults import FAULTS
from sabotage.session import Ended
from sabotage.table import DOCS, named_faults

KNOWN = {fault.name: fault for fault in FAULTS}
FEW = (
    "a second A/B scorer in phase code",
    "a chat template put back",
    "a runaway detector that flags by length",
    "a held-out item within a response",
    "a model that gives NaN from the pilot on",
    "a sentinel that is false in every record",
    "pairs that are mixed up",
)


@pytest.mark.parametrize("name", FEW)
def test_a_planted_fault_is_stopped_at_the_first_gate_that_can_see_it(name: str) -> None:
    """By the declared verdict, for the declared reasons and no other."""
    ended = run(KNOWN[name])
    assert KNOWN[name].is_caught(ended), ended


def test_an_honest_session_raises_no_alarm() -> None:
    """The whole of the shipped quickstart passes every gate."""
    assert run_honest(1) == Ended(0, "", "done", ())


def test_a_fault_is_caught_by_its_gate_for_its_reason_alone() -> None:
    """Another step, verdict, exit code, or one reason more or less is no catch."""
    fault = Fault("x", "x", lambda _: None, "pilot", "fail", frozenset({"kept"}))
    ended = Ended(3, "pilot", "fail", ("kept: 3 does not satisfy >= 100",))
    assert fault.is_caught(ended)
    assert not fault.is_caught(replace(ended, stopped_at="scale"))
    assert not fault.is_caught(replace(ended, verdict="invalid"))
    assert not fault.is_caught(replace(ended, exit_code=1))
    assert not fault.is_caught(replace(ended, reasons=()))
    assert not fault.is_caught(replace(ended, reasons=(*ended.reasons, "median_tokens: 50")))


def test_a_refusal_must_tell_each_piece() -> None:
    """Of what is said in words every declared piece must be there."""
    fault = Fault("x", "x", lambda _: None, "plan", "refused", frozenset({"a.yaml", "empty"}), 2)
    assert fault.is_caught(Ended(2, "plan", "refused", ("a.yaml:1: a list is empty",)))
    assert not fault.is_caught(Ended(2, "plan", "refused", ("a.yaml:1: no number",)))


def test_the_docs_list_every_fault_once() -> None:
    """In the order in which they are run."""
    names = [fault.name for fault in FAULTS]
    assert max(Counter(names).values()) == 1
    assert named_faults(DOCS) == names


def test_there_are_faults_of_many_kinds() -> None:
    """Those that nothing sees do not count."""
    stopped = [fault for fault in FAULTS if not fault.gets_through]
    assert len(stopped) >= 24
    assert len({fault.kind for fault in stopped}) >= 12
