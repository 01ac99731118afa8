"""The machine's checks, the plan's prerequisites, and the doctor that shows them all."""

import errno
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli_session import Called, call, write_runbook

from runbook import prerequisites, sandbox
from runbook.artifacts import complete_directory
from runbook.bootstrap import (
    GIB,
    Check,
    State,
    check_clock,
    check_disk,
    check_gpus,
    check_machine,
    check_workspace,
    refuse,
    take_room,
    used_bytes,
)
from runbook.cli.reviewer_row import check_reviewer
from runbook.doctor import examine, referenced
from runbook.errors import ConfigError, NeedsPersonError
from runbook.gpus import Inventory
from runbook.prerequisites import check_folders, check_model, check_plan, check_versions
from runbook.schema import load_plan
from runbook.testing import make_plan, make_step
from runbook.workspace import Workspace

ROOT = Path(__file__).parents[1]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
MIB = 1 << 20
PASSES = {"metrics": {"score": 0.9}}
MODEL = {
    "provider": "openai",
    "model": "tiny",
    "usd_per_mtok": {"input": 1.25, "output": 10},
    "max_output_tokens": 16_000,
    "context_tokens": 64_000,
}
CARDS = Inventory(("H100, 80 GiB",) * 2)


@contextmanager
def mounted(folder: Path, options: str, kind: str = "tmpfs") -> Iterator[Path]:
    """A volume of its own, where this process may mount one."""
    mount = shutil.which("mount")
    command = [str(mount), "-t", kind, "-o", options, kind, str(folder)]
    if os.geteuid() != 0 or mount is None or subprocess.run(command, check=False).returncode:
        pytest.skip(f"mounting a {kind} needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can grow larger, whatever the volume says."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    rows = list(checks)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


class TestStart:
    def test_a_machine_that_offers_enough_passes(self, tmp_path: Path) -> None:
        """GPUs are counted by their device nodes, other nodes of the driver are not GPUs."""
        for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
            (tmp_path / name).touch()
        check_machine({"gpus": 2, "free_disk_gib": 0.001}, tmp_path, devices=tmp_path)
        with pytest.raises(ConfigError, match=r"asks for 3 GPU\(s\), this machine shows 2") as told:
            check_machine({"gpus": 3}, tmp_path, devices=tmp_path)
        assert (told.value.code, told.value.where) == (2, "check 'gpus'")
        assert "nvidia-smi -L" in told.value.fix

    def test_too_little_disk_is_told_before_anything_starts(self, tmp_path: Path) -> None:
        """A disk that is too small stops with the numbers and exit code 3; a resume needs less."""
        with pytest.raises(NeedsPersonError, match=r"asks for 1e.06 GiB of free disk") as told:
            check_machine({"free_disk_gib": 1_000_000}, tmp_path)
        assert (told.value.code, told.value.where) == (3, "check 'disk'")
        assert "du -xh" in told.value.fix
        check_machine({"free_disk_gib": 1_000_000}, tmp_path, resumed=True)

    def test_an_empty_section_asks_for_nothing(self, tmp_path: Path) -> None:
        """A runbook without preflight runs on a machine without a GPU, and nothing is left."""
        check_machine({}, tmp_path, devices=tmp_path / "none")
        assert list(tmp_path.iterdir()) == []

    def test_a_session_that_cannot_start_spends_nothing(
        self, tmp_path: Path, capfd: Capture
    ) -> None:
        """The check stops `run` before the journal has a line."""
        spec = edited(write_runbook(tmp_path, PASSES), preflight={"gpus": 64})
        done = call(capfd, "run", spec, "--workspace", tmp_path / "ws")
        assert done.code == 2
        assert "check 'gpus': the runbook asks for 64 GPU(s)" in done.err
        assert list(Workspace.at(tmp_path / "ws").hidden.glob("journal*")) == []


class TestGpus:
    def test_a_hidden_gpu_does_not_count(self, tmp_path: Path) -> None:
        """What CUDA_VISIBLE_DEVICES leaves counts, up to the first entry that names none."""
        for i in range(4):
            (tmp_path / f"nvidia{i}").touch()

        def shown(visible: str, wanted: int) -> Check:
            environ = {"CUDA_VISIBLE_DEVICES": visible}
            return check_gpus(wanted, devices=tmp_path, environ=environ, inventory=lambda: CARDS)

        assert shown("0,1", 2) == Check("gpus", State.OK, "2: H100, 80 GiB; H100, 80 GiB")
        assert shown("0,-1,2", 1).state is State.OK
        for visible in ("0,-1,2", "0", "", "-1"):
            assert shown(visible, 2).state is State.FAILED
            assert shown(visible, 2).fix.startswith("unset CUDA_VISIBLE_DEVICES")


class TestWorkspace:
    def test_a_folder_that_cannot_be_written_to_fails(self, tmp_path: Path) -> None:
        """A volume mounted read-only is found by writing, and the fix names it."""
        with mounted(tmp_path, "size=1m,ro"):
            check = check_workspace(tmp_path / "ws")
        assert check.state is State.FAILED
        assert "Read-only file system" in check.found
        assert check.error is NeedsPersonError

    def test_a_file_in_the_way_fails(self, tmp_path: Path) -> None:
        """A workspace below a file cannot be made, and the command that mends it is told."""
        (tmp_path / "file").touch()
        check = check_workspace(tmp_path / "file" / "ws")
        assert (check.state, check.error) == (State.FAILED, ConfigError)
        assert check.fix.startswith("sudo chown")
        assert tree(tmp_path) == {"file": b""}

    def test_a_folder_of_another_user_fails(self, tmp_path: Path) -> None:
        """A process without the right to write is told of it, not ended by it."""
        if os.geteuid() != 0:
            pytest.skip("only root can become another user")
        tmp_path.chmod(0o700)
        os.seteuid(65534)
        try:
            check = check_workspace(tmp_path / "ws")
        finally:
            os.seteuid(0)
        assert check.state is State.FAILED
        assert "Permission denied" in check.found

    def test_a_workspace_yet_to_be_made_is_tried_above(self, tmp_path: Path) -> None:
        """Nothing is made on the way, and nothing is left."""
        check = check_workspace(tmp_path / "a" / "b")
        assert check.state is State.OK
        assert f"can be made in {tmp_path}" in check.found
        assert list(tmp_path.iterdir()) == []


class TestDisk:
    def test_a_full_volume_fails(self, tmp_path: Path) -> None:
        """Half of a 1 MiB volume is there, twice of it is not, and all of it is given back."""
        with mounted(tmp_path, "size=1m"):
            before = shutil.disk_usage(tmp_path).free
            enough = check_disk({"free_disk_gib": 0.5 * MIB / GIB}, tmp_path)
            assert (shutil.disk_usage(tmp_path).free, list(tmp_path.iterdir())) == (before, [])
            too_little = check_disk({"free_disk_gib": 2 * MIB / GIB}, tmp_path)
        assert enough.state is State.OK
        assert (too_little.state, too_little.error) == (State.FAILED, NeedsPersonError)

    def test_a_volume_that_refuses_what_it_promised_fails(self, tmp_path: Path) -> None:
        """Where statvfs shows room and no file can be made, the real write finds it out."""
        with mounted(tmp_path, "size=1m,nr_inodes=1"):
            check = check_disk({"free_disk_gib": 0.5 * MIB / GIB}, tmp_path)
        assert check.state is State.FAILED
        assert "look free" in check.found
        assert "No space left on device" in check.found

    def test_room_is_taken_whole_and_written_where_it_cannot_be_reserved(
        self, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        """A hole with a written end proves nothing; a volume without reservation is written to."""

        def refuse_to_reserve(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        with mounted(tmp_path, "size=2m"):
            whole = take_room(tmp_path, 8 * MIB)
            monkeypatch.setattr(os, "posix_fallocate", refuse_to_reserve)
            (tmp_path / "held").write_bytes(b"x" * (MIB + MIB // 2))
            end = take_room(tmp_path, MIB)
            fits = take_room(tmp_path, MIB // 4)
        assert (whole, end, fits) == ("No space left on device", "No space left on device", "")

    def test_what_is_declared_reaches_the_plan(self, tmp_path: Path) -> None:
        """Quota and cap stand beside the room; a quota of nothing is refused."""
        declared = {"gpus": 0, "free_disk_gib": 3.0, "quota_gib": 20, "write_gib": 0.5}
        spec = edited(write_runbook(tmp_path, PASSES), preflight=declared)
        assert load_plan(spec).preflight == declared
        with pytest.raises(ConfigError, match="0 is not above 0"):
            load_plan(edited(spec, preflight={"quota_gib": 0}))
        assert load_plan(edited(spec, preflight={})).preflight["write_gib"] == 1.0

    def test_the_write_is_as_large_as_the_room_up_to_the_cap(self, tmp_path: Path) -> None:
        """A limit on a file's size stops the whole room, and not the part that is declared."""
        with largest_file(4 * MIB):
            whole = check_disk({"free_disk_gib": 8 * MIB / GIB}, tmp_path)
            part = check_disk(
                {"free_disk_gib": 8 * MIB / GIB, "write_gib": 2 * MIB / GIB}, tmp_path
            )
            none = check_disk({"free_disk_gib": 8 * MIB / GIB, "write_gib": 0.0}, tmp_path)
        assert (whole.state, part.state, none.state) == (State.FAILED, State.OK, State.OK)
        assert "File too large" in whole.found
        assert list(tmp_path.iterdir()) == []

    def test_the_quota_counts_before_the_volume(self, tmp_path: Path) -> None:
        """Room that the volume shows and the quota does not leave is not there."""
        (tmp_path / "held").write_bytes(b"x" * (3 * MIB))
        room = {"free_disk_gib": 2 * MIB / GIB}
        assert check_disk({**room, "quota_gib": 6 * MIB / GIB}, tmp_path).state is State.OK
        check = check_disk({**room, "quota_gib": 4 * MIB / GIB}, tmp_path)
        assert (check.state, check.error) == (State.FAILED, NeedsPersonError)
        assert "the quota of" in check.found

    def test_a_file_with_two_names_is_held_once(self, tmp_path: Path) -> None:
        """Hard links, as caches make them, do not count twice, and links are not followed."""
        (tmp_path / "a").write_bytes(b"x" * MIB)
        once = used_bytes(tmp_path)
        (tmp_path / "b").hardlink_to(tmp_path / "a")
        (tmp_path / "root").symlink_to("/")
        assert MIB <= once <= used_bytes(tmp_path) < once + MIB

    def test_what_the_session_holds_need_not_be_free(self, tmp_path: Path) -> None:
        """The declared room is the whole session's: what it took is no longer asked for."""
        declared = {"free_disk_gib": 1_000_000}
        assert check_disk(declared, tmp_path, held=1_000_000 * GIB).state is State.SKIPPED
        assert check_disk(declared, tmp_path, held=999_999 * GIB).state is State.OK
        assert check_disk(declared, tmp_path).state is State.FAILED


class TestClock:
    def test_a_plausible_time_passes(self) -> None:
        """The clock of this machine is right, and a journal of the past fits it."""
        assert check_clock(datetime(2026, 11, 2, tzinfo=UTC)).state is State.OK

    def test_a_clock_before_the_release_fails(self) -> None:
        """1970 is what a machine without a battery shows."""
        check = check_clock(wall=lambda: 0.0)
        assert (check.state, check.error) == (State.FAILED, NeedsPersonError)
        assert "1970-01-01" in check.found
        assert "timedatectl" in check.fix

    def test_a_clock_that_stands_still_fails(self) -> None:
        """Durations and deadlines rest on it."""
        assert check_clock(monotonic=lambda: 7.0).state is State.FAILED

    def test_a_clock_behind_the_journal_is_a_warning(self) -> None:
        """A jump back does not keep a session from going on."""
        check = check_clock(datetime(2999, 1, 1, tzinfo=UTC))
        assert check.state is State.WARN
        assert "2999-01-01" in check.found


class TestSandbox:
    @pytest.mark.parametrize(("code", "starts"), [(0, True), (1, False)])
    def test_bubblewrap_counts_where_it_starts(
        self, tmp_path: Path, monkeypatch: Patch, code: int, starts: bool
    ) -> None:
        """A program that is installed and may not make a namespace is no sandbox."""
        _program(tmp_path / "bwrap", f"exit {code}")
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert sandbox.bubblewrap_starts() is starts
        assert ("bubblewrap starts" in sandbox.check_sandbox().found) is starts

    def test_the_next_tier_is_named_and_none_is_a_warning(self, monkeypatch: Patch) -> None:
        """Landlock stands in for bubblewrap; with neither a session still starts."""
        monkeypatch.setattr(sandbox, "bubblewrap_starts", lambda: False)
        monkeypatch.setattr(sandbox, "landlock_version", lambda: 4)
        assert sandbox.check_sandbox().found.startswith("Landlock (version 4)")
        monkeypatch.setattr(sandbox, "landlock_version", lambda: 0)
        assert sandbox.check_sandbox().state is State.WARN

    def test_the_kernel_is_asked_for_landlock(self, tmp_path: Path) -> None:
        """The answer is what the kernel's own list of security modules says."""
        with mounted(tmp_path, "ro", kind="securityfs"):
            modules = (tmp_path / "lsm").read_text().split(",")
        assert (sandbox.landlock_version() > 0) is ("landlock" in modules)


def _program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


REAL = {"name": "transformers", "device": "cpu"}


class TestModel:
    def test_a_folder_is_looked_into(self, tmp_path: Path) -> None:
        """A path needs a config and weights that are not empty."""
        model = tmp_path / "model"
        plan = make_plan(engine=REAL, model={"source": {"path": str(model)}})
        place = Workspace.at(tmp_path / "ws")

        assert "no config.json" in check_model(plan, place, {}).found
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "a.safetensors").touch()
        assert "no *.safetensors" in check_model(plan, place, {}).found
        (model / "a.safetensors").write_bytes(b"weights")
        assert check_model(plan, place, {}) == Check("model", State.OK, str(model))

    def test_a_package_is_known_by_its_metadata(self, tmp_path: Path) -> None:
        """A package that is not installed fails with the command that installs it."""
        place = Workspace.at(tmp_path)
        there = make_plan(engine=REAL, model={"source": {"pypi": "pydantic-core"}})
        gone = make_plan(engine=REAL, model={"source": {"pypi": "no-such-model"}})
        assert check_model(there, place, {}).found.startswith("package pydantic-core ")
        check = check_model(gone, place, {})
        assert check.state is State.FAILED
        assert check.fix == f"{sys.executable} -m pip install no-such-model"

    def test_an_engine_without_a_model_is_only_warned(self, tmp_path: Path) -> None:
        """A rehearsal starts without a model."""
        plan = make_plan(engine={"name": "fake"}, model={"source": {"path": "/none"}})
        assert check_model(plan, Workspace.at(tmp_path), {}).state is State.WARN
        check_plan(plan, Workspace.at(tmp_path), {})

    def test_a_start_without_a_model_is_refused(self, tmp_path: Path, monkeypatch: Patch) -> None:
        """Exit code 2, and the error names the check."""
        monkeypatch.setattr(
            prerequisites, "versions", lambda: dict.fromkeys(prerequisites._NEEDED, "1")
        )
        plan = make_plan(engine=REAL, model={"source": {"path": "/none"}})
        with pytest.raises(ConfigError, match=r"no config\.json") as told:
            check_plan(plan, Workspace.at(tmp_path), {})
        assert told.value.where == "check 'model'"

    def test_a_snapshot_in_the_workspace_needs_no_network(self, tmp_path: Path) -> None:
        """What a step has fetched is there, whatever the hub says; half of it is not."""
        plan = hub_plan(make_step("prepare", output="models/base"))
        place = Workspace.at(tmp_path)
        base = place.models / "base"
        base.mkdir(parents=True)
        (base / "config.json").write_text("{}")
        offline = {"HF_HUB_OFFLINE": "1"}
        assert check_model(plan, place, offline).fix == "unset HF_HUB_OFFLINE"
        complete_directory(base)
        check = check_model(plan, place, offline)
        assert check == Check("model", State.OK, "complete in models/base")


def hub_plan(*steps: Any) -> Any:
    source = {"hub": "owner/name", "revision": "a" * 40}
    return make_plan(*steps, engine=REAL, model={"source": source})


class _Hub(HTTPServer):
    """A hub that gives every request the same answer, and keeps what it was asked."""

    def __init__(self, status: int, location: str = "") -> None:
        asked: list[tuple[str, str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                token = str(self.headers.get("Authorization", ""))
                asked.append((self.command, self.path, token))
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = asked
        self.address = f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def serving(self) -> Iterator[dict[str, str]]:
        """The environment in which it is the hub."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield {"HF_ENDPOINT": self.address, "HF_TOKEN": "hf_canary"}
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class TestHub:
    @pytest.mark.parametrize(
        ("status", "state", "told"),
        [
            (200, State.OK, "can be fetched"),
            (401, State.FAILED, "the token may not read it"),
            (403, State.FAILED, "the token may not read it"),
            (404, State.FAILED, "no such model or revision"),
            (503, State.WARN, "answered 503"),
        ],
    )
    def test_the_hub_is_asked_for_the_config(
        self, tmp_path: Path, status: int, state: State, told: str
    ) -> None:
        """One request for the pinned revision with the token, which no row shows."""
        hub = _Hub(status)
        with hub.serving() as environ:
            check = check_model(hub_plan(), Workspace.at(tmp_path), environ)
        assert check.state is state
        assert told in check.found
        assert "canary" not in check.found + check.fix
        path = f"/owner/name/resolve/{'a' * 40}/config.json"
        assert hub.asked == [("HEAD", path, "Bearer hf_canary")]

    def test_a_redirect_is_an_answer(self, tmp_path: Path) -> None:
        """The token does not follow it to another host."""
        other = _Hub(200)
        hub = _Hub(307, f"{other.address}/blob")
        with other.serving(), hub.serving() as environ:
            check = check_model(hub_plan(), Workspace.at(tmp_path), environ)
        assert check.state is State.OK
        assert other.asked == []

    def test_a_missing_token_is_named(self, tmp_path: Path) -> None:
        """A gated model says which variable to export."""
        hub = _Hub(401)
        with hub.serving() as environ:
            del environ["HF_TOKEN"]
            check = check_model(hub_plan(), Workspace.at(tmp_path), environ)
        assert "HF_TOKEN is not set" in check.found
        assert hub.asked[0][2] == ""

    def test_a_hub_that_does_not_answer_needs_a_person(self, tmp_path: Path) -> None:
        """A closed port and an address of another kind are told at once."""
        hub = _Hub(200)
        hub.server_close()
        began = time.monotonic()
        check = check_model(hub_plan(), Workspace.at(tmp_path), {"HF_ENDPOINT": hub.address})
        assert (check.state, check.error) == (State.FAILED, NeedsPersonError)
        assert check.fix.startswith("curl -sSI ")
        local = check_model(hub_plan(), Workspace.at(tmp_path), {"HF_ENDPOINT": "file:///etc"})
        assert local.found == "HF_ENDPOINT is no http address"
        assert time.monotonic() - began < prerequisites.HUB_S


class TestPackages:
    def test_training_without_its_packages_fails(self, monkeypatch: Patch) -> None:
        """What is missing is named, with one command for all that training needs."""
        monkeypatch.setattr(prerequisites, "versions", lambda: {"python": "3.11.0"})
        check = check_versions(make_plan(engine=REAL))
        assert check.state is State.FAILED
        assert check.found.startswith("not installed: torch, transformers, trl, peft")
        assert {"torch", "bitsandbytes"} <= {w.split(">")[0] for w in check.fix.split("'")}
        assert check_versions(make_plan(engine={"name": "fake"})).state is State.OK

    def test_a_build_for_the_cpu_cannot_use_a_gpu(self, monkeypatch: Patch) -> None:
        """The version's suffix gives it away, long before a step would fail."""
        found = dict.fromkeys(prerequisites._NEEDED, "1.0") | {"torch": "2.13.0+cpu"}
        monkeypatch.setattr(prerequisites, "versions", lambda: found)
        check = check_versions(make_plan(engine={**REAL, "device": "cuda"}))
        assert check.found == "torch 2.13.0+cpu cannot use a GPU"
        assert check.fix.endswith("--force-reinstall torch==2.13.0")
        assert check_versions(make_plan(engine=REAL)).state is State.OK


class TestFolders:
    def test_a_cache_on_another_volume_is_a_warning(self, tmp_path: Path) -> None:
        """It would fill the wrong disk; on the workspace's own volume all is well."""
        (tmp_path / "m").mkdir()
        cache = str(tmp_path / "m" / "hub")
        here = make_plan(environment={"HF_HOME": str(tmp_path / "a" / "b"), "TOKEN": "canary"})
        assert check_folders(here, tmp_path).state is State.OK
        with mounted(tmp_path / "m", "size=1m"):
            check = check_folders(make_plan(environment={"HF_HOME": cache}), tmp_path)
        assert check.state is State.WARN
        assert "HF_HOME" in check.found

    @pytest.mark.parametrize("name", ["HOME", "TORCH_HOME"])
    def test_a_folder_that_cannot_be_made_fails(self, tmp_path: Path, name: str) -> None:
        """A file in the way and a relative path are told with what to write instead."""
        (tmp_path / "file").touch()
        taken = make_plan(environment={name: str(tmp_path / "file" / "x")})
        check = check_folders(taken, tmp_path)
        assert (check.state, name in check.found) == (State.FAILED, True)
        assert check.fix.startswith("mkdir -p ")
        adrift = check_folders(make_plan(environment={name: "cache"}), tmp_path)
        assert (adrift.state, "starts nowhere" in adrift.found) == (State.FAILED, True)

    def test_nothing_exported_is_nothing_to_check(self, tmp_path: Path) -> None:
        """Only folders are looked at."""
        plan = make_plan(environment={"TOKENIZERS_PARALLELISM": "false"})
        assert check_folders(plan, tmp_path).state is State.SKIPPED


def edited(spec: Path, **fields: Any) -> Path:
    """The runbook with other top-level fields."""
    spec.write_text(json.dumps(json.loads(spec.read_text()) | fields))
    return spec


def with_file(folder: Path, params: dict[str, Any] | None = None) -> Path:
    """A small runbook whose first step reads a declared file."""
    spec = write_runbook(folder, params or PASSES)
    step = folder / "a.yaml"
    step.write_text(json.dumps(json.loads(step.read_text()) | {"files": {"items": "items.txt"}}))
    (folder / "items.txt").write_text("one\n")
    return spec


def diagnosed(capfd: Capture, *arguments: str | Path) -> tuple[int, dict[str, dict[str, str]]]:
    """How doctor ended, and its rows by name."""
    told: Called = call(capfd, "doctor", *arguments, "--json")
    return told.code, {row["check"]: row for row in told.lines}


class TestDoctor:
    def test_a_healthy_machine_passes_and_keeps_no_trace(
        self, tmp_path: Path, capfd: Capture
    ) -> None:
        """A row a question, exit code 0, and not a byte is different afterwards."""
        spec = with_file(tmp_path)
        before = tree(tmp_path)
        told = call(capfd, "doctor", spec, "--workspace", tmp_path / "ws")
        assert (told.code, told.out) == (0, "")
        assert told.err.endswith("A session can start.\n")
        names = {"gpus", "workspace", "model", "disk", "lock", "clock", "sandbox", "keys"}
        assert names <= {line.split()[1] for line in told.err.splitlines() if line[:2] == "  "}
        assert tree(tmp_path) == before
        assert not (tmp_path / "ws").exists()

    def test_rows_are_objects_one_a_line(self, tmp_path: Path, capfd: Capture) -> None:
        """A program reads check, state, found and fix."""
        code, rows = diagnosed(capfd, with_file(tmp_path), "--workspace", tmp_path / "ws")
        assert code == 0
        assert all(set(row) == {"check", "state", "found", "fix"} for row in rows.values())
        assert {row["state"] for row in rows.values()} <= {state.value for state in State}
        assert rows["file items.txt"]["found"].startswith("sha256 2c8b08da5ce6")

    def test_a_fault_ends_with_2_and_its_remedy(self, tmp_path: Path, capfd: Capture) -> None:
        """The row that failed is followed by what mends it, and the last line names it."""
        spec = edited(write_runbook(tmp_path, PASSES), preflight={"gpus": 64})
        told = call(capfd, "doctor", spec, "--workspace", tmp_path / "ws")
        assert told.code == 2
        assert "fix: rent a machine" in told.err
        assert told.err.endswith("A session cannot start yet: gpus.\n")

    def test_a_rental_that_has_ended_is_a_row(self, tmp_path: Path, capfd: Capture) -> None:
        """It fails where it has passed; without one there is no row."""
        spec = write_runbook(tmp_path, PASSES)
        assert "rental" not in diagnosed(capfd, spec, "--workspace", tmp_path / "ws")[1]
        edited(spec, pod={"rental_ends": "2001-01-01T00:00:00Z"})
        code, rows = diagnosed(capfd, spec, "--workspace", tmp_path / "ws")
        assert (code, rows["rental"]["state"]) == (2, "failed")
        assert "pod.rental_ends" in rows["rental"]["fix"]

    def test_a_missing_variable_is_named_and_no_value_is(
        self, tmp_path: Path, capfd: Capture, monkeypatch: Patch
    ) -> None:
        """Variables of the runbook and of its specs count; a comment's do not."""
        monkeypatch.setenv("SET_KEY", "canary")
        monkeypatch.delenv("UNSET_KEY", raising=False)
        monkeypatch.delenv("UNSET_FOLDER", raising=False)
        spec = with_file(tmp_path)
        edited(spec, environment={"A": "${SET_KEY}", "B": "x-${UNSET_KEY}"})
        step = tmp_path / "a.yaml"
        step.write_text(step.read_text().replace("items.txt", "${UNSET_FOLDER}/items.txt"))
        spec.write_text(f"{spec.read_text()}\n# or ${{IN_A_COMMENT}}\n")

        assert referenced(spec) == {"SET_KEY", "UNSET_KEY", "UNSET_FOLDER"}
        code, rows = diagnosed(capfd, spec, "--workspace", tmp_path / "ws")

        assert code == 2
        assert rows["keys"]["found"] == "not set: UNSET_FOLDER, UNSET_KEY"
        assert rows["keys"]["fix"].startswith("export UNSET_FOLDER=...")
        assert rows["runbook"]["state"] == "failed"
        assert "canary" not in json.dumps(rows)
        monkeypatch.setenv("UNSET_KEY", "")
        monkeypatch.setenv("UNSET_FOLDER", str(tmp_path))
        code, rows = diagnosed(capfd, spec, "--workspace", tmp_path / "ws")
        assert (code, rows["keys"]["state"]) == (0, "warn")

    def test_a_missing_key_of_the_reviewer_warns(
        self, tmp_path: Path, capfd: Capture, monkeypatch: Patch
    ) -> None:
        """A session can start, since it waits for a person then; no key is shown."""
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        monkeypatch.delenv("SECOND_API_KEY", raising=False)
        second = {**MODEL, "api_key_env": "SECOND_API_KEY"}
        spec = edited(write_runbook(tmp_path, PASSES), reviewer={**MODEL, "fallback": second})
        place = ("--workspace", tmp_path / "ws")

        def told() -> tuple[str, str, list[str]]:
            code, rows = diagnosed(capfd, spec, *place)
            assert code == 0
            assert "sk-canary" not in json.dumps(rows)
            row = rows["reviewer"]
            names = [line.split("=")[0] for line in row["fix"].splitlines()]
            return row["state"], row["found"].partition(": ")[0], names

        both = ["export OPENAI_API_KEY", "export SECOND_API_KEY"]
        assert told() == ("warn", "each review would wait for a person", both)
        assert call(capfd, "doctor", spec, *place).err.endswith("A session can start.\n")
        monkeypatch.setenv("SECOND_API_KEY", "sk-canary-2")
        assert told() == ("warn", "only the fallback could be asked", both[:1])
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1")
        assert told() == ("ok", "openai tiny", [])
        monkeypatch.setenv("SECOND_API_KEY", "sk-canary 2")
        assert told() == ("warn", "the fallback could not be asked", both[1:])

    def test_a_reviewer_that_needs_no_key_is_ready(
        self, tmp_path: Path, capfd: Capture, monkeypatch: Patch
    ) -> None:
        """A person, and a server on this machine; one elsewhere in the network is asked for one."""
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        spec = write_runbook(tmp_path, PASSES)
        assert diagnosed(capfd, spec)[1]["reviewer"]["found"].startswith("human: ")
        for url, state in {
            "http://localhost:8000/v1": "ok",
            "http://127.0.0.1:8000/v1": "ok",
            "http://[::1]:8000/v1": "ok",
            "http://10.0.0.7:8000/v1": "warn",
            "https://localhost.example/v1": "warn",
        }.items():
            edited(spec, reviewer={**MODEL, "base_url": url})
            assert diagnosed(capfd, spec)[1]["reviewer"]["state"] == state, url

    @pytest.mark.parametrize(
        ("program", "found", "fix"),
        [
            ("./review.sh", "the program is there", ""),
            ("sh", "the program is there", ""),
            ("./none.sh", "there is no program ./none.sh", "ls -l "),
            ("./notes.txt", "the program ./notes.txt may not be executed", "chmod +x "),
            ("no-such-program", "there is no program no-such-program on PATH", "command -v "),
        ],
    )
    def test_a_reviewer_that_is_a_program_must_be_there(
        self, tmp_path: Path, capfd: Capture, program: str, found: str, fix: str
    ) -> None:
        """By a path it starts from the runbook's folder, otherwise it is looked up on PATH."""
        (tmp_path / "review.sh").touch(0o755)
        (tmp_path / "notes.txt").touch(0o644)
        declared = {"provider": "command", "command": [program]}
        spec = edited(write_runbook(tmp_path, PASSES), reviewer=declared)
        code, rows = diagnosed(capfd, spec)
        row = rows["reviewer"]
        assert (code, row["state"]) == (0, "warn" if fix else "ok")
        assert row["found"].endswith(found)
        assert row["fix"].startswith(fix)

    @pytest.mark.parametrize(
        ("reviewer", "budget", "found", "fix"),
        [
            ({}, {"review_usd": 0.5}, "", ""),
            ({}, {}, "", ""),
            ({}, {"review_usd": 0.2}, "it may cost up to $0.35, and budget.review_usd is", "0.35"),
            ({}, {"review_usd": 0.1}, "may cost $0.1625 or more, and budget.review_usd", "0.35"),
            ({}, {"usd": 0.1, "usd_per_hour": 1}, "or more, and budget.usd is $0.10", "0.35"),
            (
                {},
                {"usd": 1, "usd_per_hour": 1, "terminal_reserve": "45m"},
                "it may cost up to $0.35, and budget.usd is $1.00, with $0.75 held back for the",
                "1.1",
            ),
            ({"max_usd": 0.1}, {"review_usd": 5}, "0.1625 or more, and max_usd is $0.10", "0.35"),
            (
                {"max_usd": 0.3, "usd_per_mtok": None},
                {"review_usd": 0.25},
                "one may cost $0.30, and budget.review_usd is $0.25",
                "0.3",
            ),
        ],
    )
    def test_money_for_no_request_warns(
        self,
        tmp_path: Path,
        capfd: Capture,
        monkeypatch: Patch,
        reviewer: dict[str, Any],
        budget: dict[str, float],
        found: str,
        fix: str,
    ) -> None:
        """A limit below what one request is reserved at, and the limit under which it is sent."""
        monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
        declared = {k: v for k, v in {**MODEL, **reviewer}.items() if v is not None}
        limits = {"wall_clock": "90m", **budget}
        spec = edited(write_runbook(tmp_path, PASSES), reviewer=declared, budget=limits)
        code, rows = diagnosed(capfd, spec)
        row = rows["reviewer"]
        assert (code, row["state"]) == (0, "warn" if found else "ok")
        assert found in row["found"]
        if row["fix"].startswith("runbook run "):
            override = shlex.split(row["fix"], comments=True)[-2:]
            assert override[1].partition("=")[2] == fix
            assert diagnosed(capfd, spec, *override)[1]["reviewer"]["state"] == "ok"
        else:
            assert (fix or "\n") in f"{row['fix']}\n"

    def test_a_changed_file_is_found_by_its_hash(self, tmp_path: Path, capfd: Capture) -> None:
        """The file's row and the runbook's fail, with what the session began with."""
        spec, place = with_file(tmp_path), tmp_path / "ws"
        assert call(capfd, "run", spec, "--workspace", place).code == 0
        code, rows = diagnosed(capfd, spec, "--workspace", place)
        assert (code, rows["runbook"]["state"]) == (0, "ok")
        assert rows["file items.txt"]["found"].endswith(", as the session began")

        (tmp_path / "items.txt").write_text("two\n")
        code, rows = diagnosed(capfd, spec, "--workspace", place)

        assert code == 2
        failed = {name for name, row in rows.items() if row["state"] == "failed"}
        assert failed == {"runbook", "file items.txt"}
        assert "the session began with 2c8b08da5ce6" in rows["file items.txt"]["found"]
        assert rows["runbook"]["fix"].startswith("runbook plan ")

    def test_a_session_is_known_without_its_runbook(self, tmp_path: Path, capfd: Capture) -> None:
        """With a workspace alone, the runbook and the overrides of its session are taken."""
        spec, place = write_runbook(tmp_path, {**PASSES, "t": 0.7, "batches": 1}), tmp_path / "ws"
        assert call(capfd, "run", spec, "--workspace", place, "--set", "a.t=0.6").code == 0
        code, rows = diagnosed(capfd, "--workspace", place)
        assert (code, rows["runbook"]["found"][:6]) == (0, "small:")
        code, rows = diagnosed(capfd, spec, "--workspace", place)
        assert (code, "0.6 -> 0.7" in rows["runbook"]["found"]) == (2, True)

    def test_without_a_runbook_only_the_machine_is_examined(
        self, tmp_path: Path, capfd: Capture
    ) -> None:
        """Nothing is claimed of what only a runbook can say."""
        told = call(capfd, "doctor", "--workspace", tmp_path / "none")
        assert told.code == 0
        assert "only a runbook says" in told.err
        code, rows = diagnosed(capfd, "--workspace", tmp_path / "none")
        skipped = {name for name, row in rows.items() if row["state"] == "skipped"}
        assert (code, skipped) == (0, {"runbook", "keys", "disk", "folders", "model"})

    def test_a_damaged_journal_is_a_row(self, tmp_path: Path, capfd: Capture) -> None:
        """The other questions are answered all the same."""
        spec, place = write_runbook(tmp_path, PASSES), tmp_path / "ws"
        call(capfd, "run", spec, "--workspace", place)
        journal = Workspace.at(place).hidden / "journal.jsonl"
        data = bytearray(journal.read_bytes())
        data[200] ^= 1
        journal.write_bytes(data)
        code, rows = diagnosed(capfd, spec, "--workspace", place)
        assert code == 2
        failed = {name for name, row in rows.items() if row["state"] == "failed"}
        assert (failed, rows["lock"]["state"]) == ({"journal"}, "skipped")

    def test_a_workspace_at_work_is_not_free(self, tmp_path: Path, capfd: Capture) -> None:
        """While another process holds it the lock fails and no room is taken; once killed, not."""
        spec, place = write_runbook(tmp_path, {**PASSES, "sleep": 30}), tmp_path / "ws"
        spec = edited(spec, preflight={"free_disk_gib": 0.001})
        command = [sys.executable, "-c", "from runbook.cli import main; main()"]
        with subprocess.Popen(
            [*command, "run", str(spec), "--workspace", str(place)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as executor:
            try:
                code, rows = _until_begun(capfd, spec, place)
                assert (code, rows["lock"]["state"]) == (2, "failed")
                assert f"process {executor.pid} on " in rows["lock"]["found"]
                assert rows["lock"]["fix"] == f"runbook stop --workspace {place}"
                assert rows["disk"]["found"].endswith("; nothing was written")
            finally:
                os.killpg(executor.pid, signal.SIGKILL)
        kept = tree(Workspace.at(place).hidden)
        code, rows = diagnosed(capfd, spec, "--workspace", place)
        assert (code, rows["lock"]["state"]) == (0, "ok")
        assert "is gone, the next start goes on" in rows["lock"]["found"]
        assert tree(Workspace.at(place).hidden) == kept

    def test_it_imports_nothing_heavy(self, tmp_path: Path) -> None:
        """Neither torch nor scipy nor the model's libraries, with the quickstart's own runbook."""
        spec = ROOT / "specs" / "quickstart" / "runbook.yaml"
        code = (
            "import sys, atexit\n"
            "heavy = {'torch', 'scipy', 'transformers', 'huggingface_hub', 'pynvml', 'openai'}\n"
            "atexit.register(lambda: print(sorted(heavy & {*sys.modules}), file=sys.stderr))\n"
            "from runbook.cli import main\n"
            f"main(['doctor', {str(spec)!r}, '--workspace', {str(tmp_path)!r}])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.stderr.splitlines()[-1] == "[]"
        assert done.returncode in {0, 2}


def _until_begun(capfd: Capture, spec: Path, place: Path) -> tuple[int, dict[str, dict[str, str]]]:
    """The doctor's rows once the session has its plan on record."""
    limit = time.monotonic() + 60
    while True:
        code, rows = diagnosed(capfd, spec, "--workspace", place)
        if "last line" in rows["journal"]["found"] or time.monotonic() > limit:
            return code, rows
        time.sleep(0.1)


def test_a_gpu_for_the_engine_is_asked_for_unbidden(tmp_path: Path, capfd: Capture) -> None:
    """An engine on CUDA wants one, whatever preflight.gpus says."""
    capfd.readouterr()
    plan = make_plan(engine={**REAL, "device": "cuda"})
    with pytest.raises(ConfigError, match="asks for 1 GPU"):
        refuse(prerequisites.plan_checks(plan, Workspace.at(tmp_path), {}, devices=tmp_path))
    fake = replace(plan, engine={"name": "fake", "device": "cuda"})
    checks = prerequisites.plan_checks(fake, Workspace.at(tmp_path), {}, devices=tmp_path)
    assert "gpus" not in by_name(checks)
    place = Workspace.at(tmp_path)
    rows = by_name(examine(None, place, check_reviewer=check_reviewer, devices=tmp_path))
    assert rows["gpus"].state is State.OK
