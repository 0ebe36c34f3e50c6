"""Which pods the operator itself ends: those that nothing else will."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_operator.policies import group, lost_node
from finetune_operator.projections import ChildState, PodState
from finetune_operator.reconcile.actions import DeletePod


def pods_to_end(
    child: ChildState | None, pods: Sequence[PodState], now: datetime
) -> tuple[list[DeletePod], list[float]]:
    """Deletions that are due, and in how many seconds others may be. `pods`: all of the FineTuneJob."""
    actions: list[DeletePod] = []
    timers: list[float] = []
    for pod in pods:
        overdue = lost_node.seconds_overdue(pod, now) if child is None or child.node_lost != "Wait" else None
        if overdue is not None:
            _put(actions, timers, pod, overdue, force=True)
    if child is not None and child.nodes > 1:
        members = [pod for pod in pods if pod.job_uid == child.uid]
        for pod in members:
            too_long = group.seconds_too_long(pod, members, now)
            if too_long is not None:
                _put(actions, timers, pod, too_long, force=False)
    return actions, timers


def _put(actions: list[DeletePod], timers: list[float], pod: PodState, overdue: float, force: bool) -> None:
    if overdue >= 0:
        actions.append(DeletePod(pod.key.name, pod.uid, pod.node, force))
    else:
        timers.append(-overdue)
