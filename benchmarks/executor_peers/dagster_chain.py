"""N ops that do nothing, in a chain, in this process; runs and events in the SQLite of its home.

python dagster_chain.py STEPS
"""
# mypy: ignore-errors

import sys

from dagster import DagsterInstance, job, op


@op
def begin() -> int:
    return 0


@op
def noop(before: int) -> int:
    return before + 1


@job
def chain() -> None:
    value = begin()
    for step in range(1, int(sys.argv[1])):
        value = noop.alias(f"s{step}")(value)


if __name__ == "__main__":
    with DagsterInstance.get() as instance:
        assert chain.execute_in_process(instance=instance).success
