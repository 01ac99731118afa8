"""Providers before real servers on loopback: run by ``make test-servers`` only."""
