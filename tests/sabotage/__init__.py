"""Faults planted in otherwise honest sessions, and the gates that must stop them."""
