"""The folders' boundaries, held by syntax trees: data goes one way, heavy code stays out."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEAM = {
    "runbook.contract",
    "runbook.errors",
    "runbook.artifacts",
    "runbook.regular_files",
    "runbook.text",
}
"""All of the executor that a phase, a gate or a reviewer may know."""
HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate"}
OWN = {"runbook", "phases", "gates", "agent"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of each module that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports by a relative name"
            assert node.module is not None
            modules = [f"{node.module}.{name.name}" for name in node.names]
            known = [
                m for m in modules if (ROOT / m.replace(".", "/")).with_suffix(".py").is_file()
            ]
            yield from ((node.lineno, name) for name in known or [node.module])


def strangers(folder: str, allowed: set[str]) -> list[str]:
    """Imports of the project's own or of heavy modules that a folder may not have."""
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in imports(path)
        if name.partition(".")[0] in OWN | HEAVY and not _within(name, allowed)
    ]


def _within(name: str, allowed: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in allowed)


@pytest.mark.parametrize("folder", ["phases", "gates", "agent"])
def test_a_part_knows_the_seam_and_its_siblings_alone(folder: str) -> None:
    """Phases, gates and reviewers import of the executor only what crosses folders."""
    heavy = HEAVY if folder == "phases" else set()
    assert strangers(folder, SEAM | {folder} | heavy) == []


def test_the_executor_knows_its_parts_by_name_alone() -> None:
    """Outside the command line, which wires all, the executor imports no part and nothing heavy."""
    found = strangers("runbook", {"runbook"})
    assert [line for line in found if not line.startswith("runbook/cli/")] == []
    assert [line for line in found if "imports torch" in line or "imports trl" in line] == []


def test_the_check_sees_a_stranger(tmp_path: Path) -> None:
    """An import within a function is seen too."""
    path = tmp_path / "mine.py"
    path.write_text("def f():\n    from transformers import AutoModel\n    import torch.nn\n")
    assert list(imports(path)) == [(2, "transformers"), (3, "torch.nn")]
