"""runPolicy.activeDeadlineSeconds: how long a job may take. Time spent suspended does not count."""

from __future__ import annotations

from datetime import datetime


def active_seconds(start: datetime | None, before: int | None, resumed: datetime | None, now: datetime) -> float:
    """Seconds the job has been active: since `start`, or, after a suspension, `before` it plus since `resumed`."""
    if start is None:
        return 0.0
    if before is not None and resumed is not None:
        return before + (now - resumed).total_seconds()
    return (now - start).total_seconds()


def effective_deadline(asked: int | None, longest: int | None) -> int | None:
    """The job's own deadline, never beyond the profile's; the profile's where it names none."""
    limits = [seconds for seconds in (asked, longest) if seconds is not None]
    return min(limits) if limits else None
