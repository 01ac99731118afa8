"""Every test of this folder carries the marker ``chaos``, so that plain ``pytest`` leaves it out.

A test that this machine cannot run is skipped by the name of what is missing.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "chaos: injects faults that need mounts, FUSE or ptrace")


@pytest.hookimpl(tryfirst=True)  # before -m deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.chaos)
