"""The batch/v1 Job: created once, never applied again. Deadlines and TTL are the operator's (policies/)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_operator.policies.exit_codes import pod_failure_policy
from finetune_operator.specs.configmap import Snapshot
from finetune_operator.specs.naming import (
    LONGEST_DEADLINE_ANNOTATION,
    NODE_LOST_ANNOTATION,
    PRIORITY_LABEL,
    QUEUE_LABEL,
    RETRIES_BEFORE_ANNOTATION,
    RUN_DIGEST_ANNOTATION,
    metadata,
)
from finetune_operator.specs.pod import CONTAINER, pod_template


@dataclass(frozen=True)
class Queue:
    """Where Kueue is to admit the Job: names of a LocalQueue and of a WorkloadPriorityClass."""

    name: str
    priority: str | None = None


def training_job(
    snapshot: Snapshot,
    service_account: str | None,
    backoff_limit: int,
    retries_before: int,
    queue: Queue | None = None,
) -> dict[str, Any]:
    """The Job that carries out the snapshot's run.

    `backoff_limit` is what is left of the retries, `retries_before` what earlier Jobs used up. With a `queue` the Job
    is made suspended; that, and what Kueue adds to its pod template, is Kueue's alone from then on.
    """
    identity, limits = snapshot.run.identity, snapshot.profile.limits
    annotations = {
        RUN_DIGEST_ANNOTATION: snapshot.digest,
        RETRIES_BEFORE_ANNOTATION: str(retries_before),
        NODE_LOST_ANNOTATION: snapshot.profile.node_lost,
    }
    if limits is not None and limits.max_active_deadline_seconds is not None:
        annotations[LONGEST_DEADLINE_ANNOTATION] = str(limits.max_active_deadline_seconds)
    whole, nodes = metadata(identity, identity.name), snapshot.run.engine.nodes
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**whole, "labels": whole["labels"] | _queue_labels(queue), "annotations": annotations},
        "spec": {
            **({"suspend": True} if queue is not None else {}),
            "completions": nodes,
            "parallelism": nodes,
            **(_group_policy() if nodes > 1 else {}),
            "backoffLimit": backoff_limit,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": pod_failure_policy(CONTAINER),
            "template": pod_template(snapshot, service_account),
        },
    }


def _group_policy() -> dict[str, Any]:
    """What a Job of several pods has beside: docs/decisions/0006."""
    return {
        "completionMode": "Indexed",
        # Rank 0 has published. Whoever is started anew just then would wait for a group that never comes.
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    }


def _queue_labels(queue: Queue | None) -> dict[str, str]:
    if queue is None:
        return {}
    return {QUEUE_LABEL: queue.name} | ({PRIORITY_LABEL: queue.priority} if queue.priority else {})
