"""A step's code as an input: which sources are hashed, and what is left alone."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from phases import baseline, calibration, contamination
from runbook import step_code
from runbook.artifacts import sha256_bytes, sha256_file
from runbook.schema import load_plan
from runbook.step_code import code_of

SPECS = Path(__file__).parents[1] / "specs"
CERTIFIES = {
    step.__name__.removeprefix("phases."): step.CERTIFIES
    for step in (baseline, calibration, contamination)
}
RAISES = "raise RuntimeError('imported')\n"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package beside a runbook, with a module in a folder below it."""
    place = tmp_path / "mine"
    (place / "inner").mkdir(parents=True)
    for name in ("__init__", "work", "inner/__init__", "inner/helper"):
        (place / f"{name}.py").write_text(RAISES)
    return place


def test_a_module_beside_the_runbook_is_its_own_source(tmp_path: Path) -> None:
    """It is hashed without being imported, and by its bytes alone, wherever the runbook lies."""
    path = tmp_path / "alone.py"
    path.write_text(RAISES)
    (tmp_path / "other.py").write_text(RAISES)

    assert code_of("alone:run", tmp_path) == {"alone": sha256_bytes(RAISES.encode())}


@pytest.mark.parametrize("function", ["mine:run", "mine.work:run", "mine.inner.helper:run"])
def test_every_source_of_a_package_counts(package: Path, function: str) -> None:
    """Edited, added, moved or taken away anywhere in it, a source makes it other code."""
    seen = [code_of(function, package.parent)]

    (package / "inner" / "helper.py").write_text("x = 1\n")
    seen.append(code_of(function, package.parent))
    (package / "new.py").write_text("x = 1\n")
    seen.append(code_of(function, package.parent))
    (package / "new.py").rename(package / "newer.py")
    seen.append(code_of(function, package.parent))

    assert [list(found) for found in seen] == [["mine"]] * 4
    assert len({found["mine"] for found in seen}) == 4


def test_what_is_no_source_of_a_package_does_not_count(package: Path) -> None:
    """Data, compiled files and folders that nothing is imported from change nothing."""
    before = code_of("mine:run", package.parent)

    for name in ("data.json", "__pycache__/work.cpython-311.pyc", ".git/hook.py", "a-b/x.py"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("x")

    assert code_of("mine:run", package.parent) == before


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "place",
    [
        lambda path, outside: path.symlink_to(outside / "far.py"),
        lambda path, outside: path.with_suffix("").symlink_to(outside),
        lambda path, _: os.mkfifo(path),
        lambda path, _: path.symlink_to("/dev/zero"),
        lambda path, _: path.symlink_to(path),
        lambda path, _: path.mkdir(),
    ],
    ids=["link", "linked folder", "pipe", "device", "loop", "folder"],
)
def test_nothing_outside_a_package_and_no_pipe_is_read(
    package: Path, tmp_path_factory: pytest.TempPathFactory, place: Callable[[Path, Path], None]
) -> None:
    """A link that leads out of it is not followed, and what is no file is not waited for."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "far.py").write_text("x = 1\n")
    place(package / "odd.py", outside)
    before = code_of("mine:run", package.parent)

    (outside / "far.py").write_text("x = 2\n")

    assert code_of("mine:run", package.parent) == before


def test_a_link_within_a_package_is_the_source_it_leads_to(package: Path) -> None:
    """Where it is pointed elsewhere, the code is another one."""
    (package / "other.py").write_text("x = 1\n")
    (package / "odd.py").symlink_to("work.py")
    before = code_of("mine:run", package.parent)

    (package / "odd.py").unlink()
    (package / "odd.py").symlink_to("other.py")

    assert code_of("mine:run", package.parent) != before


def test_a_package_that_is_a_link_is_its_named_module_alone(
    package: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The module that the runbook names is read as the import would read it; no folder is."""
    folder = tmp_path_factory.mktemp("runbook")
    (folder / "mine").symlink_to(package)

    assert code_of("mine.work:run", folder) == {"mine.work": sha256_file(package / "work.py")}


def test_a_shipped_phase_is_its_module_the_prompts_and_what_it_certifies() -> None:
    """Each step of the quickstart has the first two, and three of them certify instruments."""
    plan = load_plan(SPECS / "quickstart" / "runbook.yaml")

    assert len(plan.steps) > 9
    for step in plan.steps:
        module = step.function.partition(":")[0]
        certifies = CERTIFIES.get(step.name, ())
        assert {*step.code} == {module, "phases.prompts", *certifies}
        files = {
            name: SPECS.parent / (name if "/" in name else f"{name.replace('.', '/')}.py")
            for name in step.code
        }
        assert step.code == {name: sha256_file(path) for name, path in files.items()}


def test_changed_words_of_a_prompt_are_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of every phase see it, and nothing else of the phases' folder."""
    phases = tmp_path / "phases"
    phases.mkdir()
    for name in ("pilot", "prompts", "qc"):
        (phases / f"{name}.py").write_text("x = 1\n")
    monkeypatch.setattr(step_code, "_PHASES", phases)
    monkeypatch.setattr(step_code, "find_module", lambda *_: phases / "pilot.py")
    before = code_of("phases.pilot:run", tmp_path)

    (phases / "qc.py").write_text("x = 2\n")
    same = code_of("phases.pilot:run", tmp_path)
    (phases / "prompts.py").write_text("x = 2\n")
    after = code_of("phases.pilot:run", tmp_path)

    assert same == before
    assert [name for name in after if after[name] != before[name]] == ["phases.prompts"]


def test_an_installed_module_is_hashed_alone(tmp_path: Path) -> None:
    """A library's other modules are its version's business."""
    import runbook.testing  # noqa: PLC0415 - its file is the subject

    found = code_of("runbook.testing:fake_phase", tmp_path)

    assert found == {"runbook.testing": sha256_file(Path(runbook.testing.__file__))}


def test_a_module_that_is_not_there_has_no_code(tmp_path: Path) -> None:
    """That it is missing is told elsewhere."""
    assert code_of("no_such_module:run", tmp_path) == {}
