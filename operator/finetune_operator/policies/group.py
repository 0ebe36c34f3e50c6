"""Pods that train together begin together: one that outlives another's end is of no use to the next one.

It should notice by itself (the trainer's heartbeat) and end with PEER_LOST. One that cannot, because it is frozen, is
deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_operator.projections import PodState
from finetune_operator.times import parse

PATIENCE_SECONDS = 60.0


def seconds_too_long(pod: PodState, group: Sequence[PodState], now: datetime) -> float | None:
    """Seconds since the pod ought to have ended with its group, patience included (negative: it still has time); None
    for a pod that is to go on. `group`: all pods of its Job, itself included."""
    if pod.ended or pod.deleting or not pod.has_worked:
        return None
    created = parse(pod.created)
    ends = [_broke_at(peer) for peer in group if peer.index != pod.index]
    after = [end for end in ends if end is not None and created is not None and end > created]
    return (now - max(after)).total_seconds() - PATIENCE_SECONDS if after else None


def _broke_at(pod: PodState) -> datetime | None:
    """When the pod ended other than well."""
    if not pod.ended or pod.exit_code == 0:
        return None
    return parse(pod.finished_at or pod.deletion_at)
