"""Each protective line is there for a reason that a test knows."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chaos.forgetful import require_fuse
from chaos.mutants import MUTANTS, Copy, Mutant
from chaos.session import keep_figure, spread_over


def survivors(folder: Path, mutants: Sequence[Mutant]) -> list[str]:
    """Names of those that no test killed; one copy serves them all."""
    copy = Copy(folder / mutants[0].name.replace(" ", "_"))
    assert copy.imported_from() == copy.root
    return [mutant.name for mutant in mutants if copy.survives(mutant)]


def test_the_tests_that_kill_pass_without_a_mutant(tmp_path: Path) -> None:
    """What fails anyway would kill every mutant."""
    require_fuse()
    copy = Copy(tmp_path / "copy")
    assert copy.imported_from() == copy.root

    assert copy.fails(dict.fromkeys(node for m in MUTANTS for node in m.killers)) == ""


def test_every_mutant_is_killed(tmp_path: Path) -> None:
    """With any one of the protective lines taken away, one of its tests fails."""
    require_fuse()

    alive = spread_over(MUTANTS, partial(survivors, tmp_path))

    keep_figure("mutants", killed=len(MUTANTS) - len(alive), total=len(MUTANTS))
    assert alive == []
