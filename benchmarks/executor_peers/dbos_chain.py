"""A workflow of N steps that do nothing, each checkpointed in a SQLite file of this folder.

python dbos_chain.py STEPS
"""
# mypy: ignore-errors

import sys

from dbos import DBOS

DBOS(config={"name": "chain", "system_database_url": "sqlite:///chain.sqlite"})


@DBOS.step()
def noop(step: int) -> int:
    return step


@DBOS.workflow()
def chain(steps: int) -> None:
    for step in range(steps):
        noop(step)


if __name__ == "__main__":
    DBOS.launch()
    chain(int(sys.argv[1]))
