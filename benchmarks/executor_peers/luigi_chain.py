"""N tasks in a chain, each leaving an empty file; Luigi keeps no journal.

python luigi_chain.py STEPS
"""
# mypy: ignore-errors

import sys

import luigi


class Noop(luigi.Task):
    """Touches its target once the one before is there."""

    step = luigi.IntParameter()

    def requires(self) -> list[luigi.Task]:
        return [Noop(self.step - 1)] if self.step else []

    def output(self) -> luigi.LocalTarget:
        return luigi.LocalTarget(f"s{self.step}")

    def run(self) -> None:
        with self.output().open("w"):
            pass


if __name__ == "__main__":
    assert luigi.build([Noop(int(sys.argv[1]) - 1)], local_scheduler=True)
