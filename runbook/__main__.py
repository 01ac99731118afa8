"""``python -m runbook``: the command line."""

from runbook.cli import main

main()
