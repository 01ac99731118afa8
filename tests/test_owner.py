"""A process has a name that no other process gets, and that says whether it still lives."""

import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runbook import owner
from runbook.owner import boot_id, process_start, this_process


def test_a_start_names_a_process() -> None:
    """Two processes that began apart have two starts, and each keeps its own."""
    mine = process_start(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as child:
        assert mine is not None
        assert mine < (process_start(child.pid) or 0)
        assert mine == process_start(os.getpid())
        child.kill()


def test_the_dead_have_no_start() -> None:
    """A zombie counts as dead, unless it is asked for; one that was waited for has none at all."""
    child = subprocess.Popen(["sleep", "60"])
    start = process_start(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert start is not None
    assert process_start(child.pid) is None
    assert process_start(child.pid, zombies=True) == start
    child.wait()
    assert process_start(child.pid, zombies=True) is None


@pytest.mark.parametrize("name", [b"a) Z 1 (b", b"\xff\xfe )"])
def test_a_programs_name_does_not_mislead(tmp_path: Path, name: bytes) -> None:
    """Brackets, blanks and broken UTF-8 in it are not taken for the kernel's fields."""
    program = tmp_path / os.fsdecode(name)
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as child:
        assert name in Path(f"/proc/{child.pid}/stat").read_bytes()
        assert process_start(child.pid) is not None
        child.kill()


def test_an_owner_lives_as_long_as_its_process() -> None:
    """Another start, boot or machine is another owner."""
    here = this_process()

    assert here.boot == boot_id()
    assert here.is_alive_here
    assert not replace(here, started=here.started + 1).is_alive_here
    assert not replace(here, boot="another").is_alive_here
    assert not replace(here, host="another").is_alive_here


def test_an_owner_is_ended() -> None:
    """One that does not end when it is asked to is killed."""
    deaf = ["/bin/sh", "-c", 'trap "" TERM; echo; exec sleep 60']
    with subprocess.Popen(deaf, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        owner = replace(this_process(), pid=child.pid, started=process_start(child.pid) or 0)
        began = time.monotonic()
        owner.end(patience_s=0.2)

        assert time.monotonic() - began >= 0.2
        assert not owner.is_alive_here


def test_a_machine_without_an_id_is_known_by_its_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that was moved to another node has its old host name, and is another machine."""
    read = owner._read
    monkeypatch.setattr(owner, "_read", lambda p: "" if p.name == "machine-id" else read(p))
    here = this_process()

    assert here.machine == ""
    assert here.is_here
    assert not replace(here, boot="another").is_here
