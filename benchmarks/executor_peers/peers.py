"""The peers: what each installs, the project of N steps that do nothing, and what starts it.

Each lives in a virtual environment of its own. What belongs to a project is new in each run; what
a peer keeps in its user's home (a database, a configuration) stays from run to run, as it would.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
INSTALL_S: Final = 900.0
_INSTALLED = "installed.txt"


class UnavailableError(Exception):
    """A peer cannot be installed here; the message is one line."""


@dataclass(frozen=True)
class Peer:
    name: str
    requirements: tuple[str, ...]
    """What pip installs, the peer itself first, every version pinned."""
    command: Callable[[Path, int], Sequence[str | Path]]
    """From the environment's ``bin`` and the number of steps."""
    project: Callable[[Path, int], None] = lambda _folder, _steps: None
    """Writes what the command reads into a folder; not timed."""
    init: Sequence[str] = ()
    """Program of ``bin`` and arguments, run once in a new project; not timed."""
    journals: str = ""
    """What it keeps of a finished step."""
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return self.requirements[0].partition("==")[2]


def environment(peer: Peer, home: Path) -> dict[str, str]:
    """What the peer runs in: its own home, nothing sent anywhere."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "USERNAME": "benchmark",
        "DO_NOT_TRACK": "1",
        **{name: value.format(home=home) for name, value in peer.variables.items()},
    }


def install(peer: Peer, cache: Path) -> Path:
    """The ``bin`` of the peer's environment, made unless an earlier run did.

    Raises:
        UnavailableError: pip failed, with its last line.
    """
    folder = cache / f"{peer.name}-{peer.version}"
    told = folder / _INSTALLED
    wanted = "\n".join(peer.requirements)
    if told.is_file() and told.read_text() == wanted:
        return folder / "bin"
    _quietly([sys.executable, "-m", "venv", "--clear", folder])
    _quietly([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *peer.requirements])
    told.write_text(wanted)
    return folder / "bin"


def _quietly(command: Sequence[str | Path]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"not installed: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        raise UnavailableError(f"not installed: {lines[-1]}")


def _program(name: str) -> Callable[[Path, int], Sequence[str | Path]]:
    return lambda binaries, steps: [binaries / "python", HERE / f"{name}_chain.py", str(steps)]


def _write_stages(folder: Path, steps: int) -> None:
    """A ``dvc.yaml``: each stage touches a file once the file before is there."""
    lines = ["stages:"]
    for step in range(steps):
        lines += [f"  s{step}:", f"    cmd: touch s{step}", f"    outs: [s{step}]"]
        lines += [f"    deps: [s{step - 1}]"] if step else []
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n")


def _write_rules(folder: Path, steps: int) -> None:
    """A ``Snakefile`` of the same shape; a ``run:`` block would start a Python for each rule."""
    lines = ["rule all:", f"    input: 's{steps - 1}'"]
    for step in range(steps):
        lines += ["", f"rule s{step}:"]
        lines += [f"    input: 's{step - 1}'"] if step else []
        lines += [f"    output: 's{step}'", "    shell: 'touch {output}'"]
    (folder / "Snakefile").write_text("\n".join(lines) + "\n")


def _write_flow(folder: Path, steps: int) -> None:
    """A linear flow as a program: Metaflow reads its graph from the source, so no loop will do."""
    names = ["start", *(f"s{step}" for step in range(1, steps - 1)), "end"]
    lines = ["from metaflow import FlowSpec, step", "", "", "class Chain(FlowSpec):"]
    for name, following in zip(names, [*names[1:], ""], strict=True):
        body = f"self.next(self.{following})" if following else "pass"
        lines += ["    @step", f"    def {name}(self):", f"        {body}", ""]
    lines += ["", 'if __name__ == "__main__":', "    Chain()"]
    (folder / "chain.py").write_text("\n".join(lines) + "\n")


PEERS: Final = (
    Peer(
        "dvc",
        ("dvc==3.67.1",),
        lambda binaries, _: [binaries / "dvc", "repro", "--quiet"],
        project=_write_stages,
        init=("dvc", "init", "--no-scm", "--quiet"),
        journals="dvc.lock and its cache",
        variables={"DVC_NO_ANALYTICS": "1"},
    ),
    Peer(
        "metaflow",
        ("metaflow==2.19.39",),
        lambda binaries, _: [binaries / "python", "chain.py", "--quiet", "run"],
        project=_write_flow,
        journals="datastore in the folder",
    ),
    Peer("dbos", ("dbos==3.4.0",), _program("dbos"), journals="SQLite"),
    Peer(
        "snakemake",
        ("snakemake==9.27.1",),
        lambda binaries, _: [binaries / "snakemake", "--cores", "1"],
        project=_write_rules,
        journals="metadata of each file",
    ),
    Peer(
        "dagster",
        ("dagster==1.13.29",),
        _program("dagster"),
        journals="SQLite, in process",
        variables={"DAGSTER_HOME": "{home}", "DAGSTER_DISABLE_TELEMETRY": "1"},
    ),
    Peer(
        "prefect",
        # The newest fastapi refuses an argument that this version of prefect gives it.
        ("prefect==3.8.8", "fastapi==0.140.0"),
        _program("prefect"),
        journals="SQLite, a server of its own",
        variables={
            "PREFECT_HOME": "{home}",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        },
    ),
    Peer("luigi", ("luigi==3.8.1",), _program("luigi"), journals="nothing"),
)
