"""`runbook init`: a workspace that validates at once, whole or not at all, also when installed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_session import call
from ruamel.yaml import YAML

from runbook import artifacts
from runbook.errors import ConfigError
from runbook.schema import load_plan
from runbook.template import lay_down, programmes

ROOT = Path(__file__).parents[1]
Capture = pytest.CaptureFixture[str]
PROGRAMMES = ("quickstart", "stage1")
VERBS = {"run", "resume", "doctor", "launch"}
SEED_FOLDERS = ("artifacts", "results", "logs", "data", "checkpoints")
SEED_EXPORTS = {
    "HOME": "home",
    "XDG_CONFIG_HOME": ".config",
    "HF_HOME": ".cache/huggingface",
    "TRANSFORMERS_CACHE": ".cache/huggingface/transformers",
    "HF_DATASETS_CACHE": ".cache/huggingface/datasets",
    "TORCH_HOME": ".cache/torch",
}


@pytest.mark.parametrize("programme", PROGRAMMES)
def test_a_new_workspace_validates_and_plans_at_once(
    tmp_path: Path, capfd: Capture, programme: str
) -> None:
    """It is the shipped programme, step for step: the fingerprints are the same."""
    made = call(capfd, "init", tmp_path / "new", "--from", programme)
    assert (made.code, made.out) == (0, "")
    assert f"cd {tmp_path / 'new'} && runbook doctor runbook.yaml --workspace ." in made.err

    runbook = tmp_path / "new" / "runbook.yaml"
    for verb in ("validate", "plan"):
        assert call(capfd, verb, runbook).code == 0
    shipped = load_plan(ROOT / "specs" / programme / "runbook.yaml")
    assert load_plan(runbook).fingerprint == shipped.fingerprint
    assert "# bos | none" in runbook.read_text() or programme != "quickstart"


def test_what_is_laid_down_is_listed(tmp_path: Path, capfd: Capture) -> None:
    """A program reads the files by name; no mark of the template and no stray file is left."""
    (told,) = call(capfd, "init", tmp_path / "My Session!", "--json").lines
    folder = tmp_path / "My Session!"
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == set(told["files"])
    assert (told["programme"], Path(told["workspace"])) == ("quickstart", folder)
    assert {"README.md", ".env.example", ".gitignore", ".skyignore"} <= files
    assert {"bootstrap.sh", "skypilot.yaml", "runbook.yaml", "specs/pilot.yaml"} <= files
    assert [f for f in files if re.search(r"@[A-Z]+@", (folder / f).read_text())] == []
    assert os.access(folder / "bootstrap.sh", os.X_OK)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_holds_anything_is_left_as_it_is(tmp_path: Path, capfd: Capture) -> None:
    """What is there is listed, a hidden file too, and nothing is written."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".hidden").write_text("mine")
    (tmp_path / "new" / "notes.md").write_text("mine")
    done = call(capfd, "init", tmp_path / "new")
    assert done.code == 2
    assert "the folder is not empty: .hidden, notes.md" in done.err
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [".hidden", "notes.md"]
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_an_empty_folder_is_filled_and_its_link_followed(tmp_path: Path) -> None:
    """Missing parents are made as well."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    target, files = lay_down(tmp_path / "link", "stage1")
    assert target == tmp_path / "empty"
    assert (target / "runbook.yaml").is_file()
    assert len(files) == len(lay_down(tmp_path / "a" / "b", "stage1")[1])


def test_what_cannot_become_a_workspace_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, the current folder, a mounted volume, a folder below a file, a wrong programme."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path, told in (
        ("../file", "a file stands here"),
        (".", "this is the current folder"),
        ("/proc", "a volume is mounted here"),
        ("../file/new", "it cannot be made"),
    ):
        with pytest.raises(ConfigError, match=told):
            lay_down(Path(path), "quickstart")
    with pytest.raises(ConfigError, match="no programme 'quickstrat'") as wrong:
        lay_down(tmp_path / "new", "quickstrat")
    assert wrong.value.fix == "did you mean 'quickstart'?"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "here"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "interruption", [OSError(28, "No space left on device"), KeyboardInterrupt]
)
def test_a_failure_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    """Neither the folder nor what was written for it stays."""
    write, count = artifacts.write_bytes, 0

    def fail(path: Path, data: bytes) -> str:
        nonlocal count
        count += 1
        if count == 5:
            raise interruption
        return write(path, data)

    monkeypatch.setattr(artifacts, "write_bytes", fail)
    with pytest.raises((ConfigError, KeyboardInterrupt)):
        lay_down(tmp_path / "new", "quickstart")
    assert (count, list(tmp_path.iterdir())) == (5, [])


@pytest.fixture
def pod(tmp_path: Path) -> "Pod":
    return Pod(tmp_path)


class Pod:
    """A machine with a volume, a workspace folder, and a runbook that notes how it is called."""

    def __init__(self, root: Path) -> None:
        self.volume = root / "volume"
        self.folder, _ = lay_down(root / "session", "stage1")
        self.calls = root / "calls"
        self.bin = root / "bin"
        self.bin.mkdir()
        program = self.bin / "runbook"
        program.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$*" >> {self.calls}\n'
            f'[ "$1" = doctor ] && exit "${{DOCTOR:-0}}"\nenv > {self.calls}.env\nexit 75\n'
        )
        program.chmod(0o755)

    def run(self, *command: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        self.calls.unlink(missing_ok=True)
        path = f"{self.bin}:{os.environ['PATH']}"
        env = {"PATH": path, "RUNBOOK_VOLUME": str(self.volume), **environ}
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def begin(self) -> None:
        (self.volume / ".runbook").mkdir()
        (self.volume / ".runbook" / "journal.jsonl").touch()


def test_the_bootstrap_makes_the_seeds_folders_and_exports(pod: Pod) -> None:
    """It checks, then launches, with every export below the volume."""
    done = pod.run("bash", "bootstrap.sh")
    place = f"{pod.folder}/runbook.yaml --workspace {pod.volume}"
    assert (done.returncode, pod.called) == (75, [f"doctor {place}", f"launch {place}"])
    assert all((pod.volume / name).is_dir() for name in SEED_FOLDERS)
    exported = dict(
        line.split("=", 1) for line in Path(f"{pod.calls}.env").read_text().splitlines()
    )
    assert {name: exported[name] for name in SEED_EXPORTS} == {
        name: str(pod.volume / below) for name, below in SEED_EXPORTS.items()
    }
    assert all((pod.volume / below).is_dir() for below in SEED_EXPORTS.values())


def test_a_runbook_exports_what_the_bootstrap_does() -> None:
    """Without the script, the reference programme's own section says the same."""
    plan = load_plan(ROOT / "specs" / "stage1" / "runbook.yaml")
    assert (
        plan.environment.items()
        >= {name: f"/workspace/{below}" for name, below in SEED_EXPORTS.items()}.items()
    )


def test_a_check_that_fails_stops_a_first_start_and_no_resume(pod: Pod) -> None:
    """A session that was begun is taken up again: it checks for itself what it still needs."""
    assert pod.run("bash", "bootstrap.sh", "run", DOCTOR="2").returncode == 2
    assert [line.split()[0] for line in pod.called] == ["doctor"]
    pod.begin()
    assert pod.run("bash", "bootstrap.sh", "run", DOCTOR="2").returncode == 75
    resume = f"resume --workspace {pod.volume} --takeover=if-owner-gone"
    assert pod.called[1:] == [resume]


def test_the_managed_job_runs_first_and_resumes_after(pod: Pod) -> None:
    """The job's own command ends with runbook's exit code, which is one it is relaunched on."""
    job = YAML(typ="safe", pure=True).load(pod.folder / "skypilot.yaml")
    recovery = job["resources"]["job_recovery"]
    first = pod.run("bash", "-c", job["run"])
    place = f"{pod.folder}/runbook.yaml --workspace {pod.volume}"
    assert pod.called == [f"doctor {place}", f"run {place}"]
    assert recovery == {
        "strategy": "FAILOVER",
        "max_restarts_on_errors": 0,
        "recover_on_exit_codes": [first.returncode],
    }
    pod.begin()
    pod.run("bash", "-c", job["run"])
    assert pod.called[-1].startswith("resume ")
    assert pod.called[-1].endswith("--takeover=if-owner-gone")


def test_the_managed_job_fits_its_programme(tmp_path: Path) -> None:
    """A GPU where the runbook asks for one; the volume is where the workspace lies."""
    jobs = {}
    for programme in PROGRAMMES:
        folder, _ = lay_down(tmp_path / f"My {programme}", programme)
        jobs[programme] = YAML(typ="safe", pure=True).load(folder / "skypilot.yaml")
    assert jobs["stage1"]["resources"]["accelerators"] == "H100:1"
    assert jobs["quickstart"]["resources"]["cpus"] == "2+"
    for programme, job in jobs.items():
        assert job["name"] == f"my-{programme}"
        assert job["volumes"] == {"/workspace": job["name"]}
        assert job["envs"]["RUNBOOK_WORKSPACE"].startswith("/workspace/")


def test_the_templates_name_verbs_that_are_meant() -> None:
    """Every command of a shell file or the job is one of four verbs."""
    texts = [
        (ROOT / "workspace_template" / n).read_text() for n in ("bootstrap.sh", "skypilot.yaml")
    ]
    named = {verb for text in texts for verb in re.findall(r"(?:`|exec |! )runbook (\w+)", text)}
    assert named == VERBS


def test_the_shell_file_is_sound(tmp_path: Path) -> None:
    """Bash parses it, and shellcheck, where it is installed, has nothing to say."""
    folder, _ = lay_down(tmp_path / "new", "quickstart")
    script = str(folder / "bootstrap.sh")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed; bash -n has passed")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "environ", "told"),
    [
        (("launhc",), {}, "'launhc' is none of launch, run, check"),
        (("check",), {"PATH": "/usr/bin:/bin"}, "there is no runbook to install"),
        (
            ("check",),
            {"RUNBOOK_SOURCE": "README.md", "PYTHON": "false", "RUNBOOK_VENV": "/nowhere"},
            "Python 3.11 or newer is needed",
        ),
        (
            ("check",),
            {"RUNBOOK_SOURCE": "runbook"},
            "RUNBOOK_SOURCE=runbook is neither a file, a folder nor an address",
        ),
    ],
)
def test_a_bootstrap_that_cannot_go_on_says_why(
    pod: Pod, arguments: tuple[str, ...], environ: dict[str, str], told: str
) -> None:
    """It ends with 2 before anything is called."""
    done = pod.run("bash", "bootstrap.sh", *arguments, **environ)
    assert (done.returncode, pod.called) == (2, [])
    assert told in done.stderr


def test_the_env_file_is_read_and_kept_out(pod: Pod) -> None:
    """What .env sets is exported; git and SkyPilot leave the file and the models out."""
    (pod.folder / ".env").write_text(f"RUNBOOK_WORKSPACE={pod.volume}/mine\nHF_TOKEN=canary\n")
    pod.run("bash", "bootstrap.sh")
    assert pod.called[-1].endswith(f"--workspace {pod.volume}/mine")
    assert "HF_TOKEN=canary" in Path(f"{pod.calls}.env").read_text()
    for name in (".gitignore", ".skyignore"):
        assert {".env", "models/"} <= set((pod.folder / name).read_text().splitlines())
    lines = (pod.folder / ".env.example").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


def test_an_installed_package_brings_its_templates(tmp_path: Path) -> None:
    """A wheel, installed elsewhere, lays down the same files as the checkout."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("runbook", "phases", "gates", "agent", "specs", "workspace_template"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, *wheel, str(source)], check=True, capture_output=True)
    (built,) = tmp_path.glob("runbook-*.whl")
    site = tmp_path / "site"
    install = ["install", "--no-deps", "--no-index", "--target", str(site), str(built)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    shutil.rmtree(source)

    code = (
        "import json, sys\nfrom pathlib import Path\n"
        "from runbook import template\n"
        "told = [str(template.HOME), template.programmes()]\n"
        "told += [template.lay_down(Path(n), n)[1] for n in template.programmes()]\n"
        "print(json.dumps(told))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    home, known, *laid = json.loads(done.stdout)
    assert (home, known) == (str(site), list(PROGRAMMES))
    assert programmes() == list(PROGRAMMES)
    for name, files in zip(PROGRAMMES, laid, strict=True):
        own, expected = lay_down(tmp_path / "own" / name, name)
        assert files == list(expected)
        for file in files:
            assert (tmp_path / name / file).read_bytes() == (own / file).read_bytes()
