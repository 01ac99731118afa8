"""Faults of disks and volumes, injected from outside: run by ``make test-chaos`` only."""
