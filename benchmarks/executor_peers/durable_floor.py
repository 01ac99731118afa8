"""The least a durable step costs: a line appended and fsynced, and a manifest that is atomic.

    python durable_floor.py STEPS

Writes into the current folder. Nothing but the standard library's ``os``, so that little else is
timed.
"""

import os
import sys

LINE = b"0" * 400 + b"\n"
MANIFEST = b"0" * 2048
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def main(steps: int) -> None:
    journal = os.open("journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    for step in range(steps):
        os.write(journal, LINE)
        os.fsync(journal)
        write_manifest(f"manifest_{step}", folder)


def write_manifest(name: str, folder: int) -> None:
    file = os.open("temporary", CREATE)
    os.write(file, MANIFEST)
    os.fsync(file)
    os.close(file)
    os.rename("temporary", name)  # noqa: PTH104 - pathlib's import would be timed
    os.fsync(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]))
