"""A flow of N tasks that do nothing, on a server of its own, each result persisted.

python prefect_chain.py STEPS
"""
# mypy: ignore-errors

import sys

from prefect import flow, task


@task(persist_result=True)
def noop(step: int) -> int:
    return step


@flow
def chain(steps: int) -> None:
    for step in range(steps):
        noop(step)


if __name__ == "__main__":
    chain(int(sys.argv[1]))
