"""What a session has spent, against the limits that its runbook sets."""

from runbook.budget import Limits, Spent
from runbook.report import figures as f


def lines(spent: Spent, limits: Limits) -> list[str]:
    """One line for each limit, and for money where a price is known; none where nothing is."""
    told = []
    if limits.wall_clock_s is not None:
        told.append(f"{f.duration(spent.seconds)} of {f.duration(limits.wall_clock_s)} wall clock")
    if limits.gpu_hours is not None:
        told.append(f"{spent.gpu_hours(limits):.2f} of {limits.gpu_hours:g} GPU-hours")
    if limits.usd is not None or limits.usd_per_hour:
        told.append(f"${spent.usd(limits):.2f}{_of(limits.usd)}")
    if limits.review_usd is not None or spent.review_usd:
        requests = f.counted(spent.requests, "request")
        told.append(f"${spent.review_usd:.2f}{_of(limits.review_usd)} on reviews ({requests})")
    if limits.reserve_s and told:
        told.append(f"{f.duration(limits.reserve_s)} are held back for the end")
    return told


def _of(limit: float | None) -> str:
    return "" if limit is None else f" of ${limit:.2f}"
