"""A pod that was told to stop long ago and has not: its node no longer answers.

The kubelet kills whatever outlives its grace, so a pod that is still there two minutes after it has nobody to kill it.
Deleting such a pod by force is safe here: attempts write under their own prefix, and of two that would publish the
store takes one.
"""

from __future__ import annotations

from datetime import datetime

from finetune_operator.projections import PodState
from finetune_operator.times import parse

PATIENCE_SECONDS = 120.0


def seconds_overdue(pod: PodState, now: datetime) -> float | None:
    """Seconds since the pod ought to be gone, patience included (negative: it still has time); None for a pod that
    nobody told to stop, or that has ended. metadata.deletionTimestamp is the time of the request plus the grace."""
    due = parse(pod.deletion_at)
    if due is None or pod.ended:
        return None
    return (now - due).total_seconds() - PATIENCE_SECONDS
