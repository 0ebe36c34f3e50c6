"""runPolicy.ttlSecondsAfterFinished: when a finished job, or what is left of its pods, is deleted. The weights stay."""

from __future__ import annotations

from datetime import datetime


def seconds_to_deletion(ttl: int | None, completed: datetime | None, now: datetime) -> float | None:
    """Seconds until the deletion, at most 0 when it is time; None for never."""
    if ttl is None or completed is None:
        return None
    return ttl - (now - completed).total_seconds()
