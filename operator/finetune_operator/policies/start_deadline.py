"""runPolicy.startDeadlineSeconds: how long a job may wait for its first pod (quota, no node, no image)."""

from __future__ import annotations

from datetime import datetime


def seconds_to_start(deadline: int | None, since: datetime, has_worked: bool, now: datetime) -> float | None:
    """Seconds left for a pod to begin, at most 0 when the time is up; None when there is no hurry.

    `since` is the job's creation, or its resumption; `has_worked`: a pod has begun since then.
    """
    if deadline is None or has_worked:
        return None
    return deadline - (now - since).total_seconds()
