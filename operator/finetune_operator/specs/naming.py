"""Names, labels and annotations of everything that belongs to a FineTuneJob."""

from __future__ import annotations

from typing import Any

from finetune_api.base import API_VERSION
from finetune_api.training_run import RunIdentity

JOB_LABEL = "finetune.dev/job"
JOB_UID_LABEL = "finetune.dev/job-uid"
OPERATOR_CLASS_LABEL = "finetune.dev/operator-class"
"""On children of jobs that name a class; those of other jobs have no such label."""
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
NAME_LABEL = "app.kubernetes.io/name"
MANAGED_BY = "finetune-operator"
TRAINER = "finetune-trainer"
CHILDREN = f"{MANAGED_BY_LABEL}={MANAGED_BY},{NAME_LABEL}={TRAINER}"
"""Label selector of all children in the cluster."""

RUN_DIGEST_ANNOTATION = "finetune.dev/run-sha256"
RETRIES_BEFORE_ANNOTATION = "finetune.dev/retries-before"
"""On a Job: how many retries earlier Jobs of the same FineTuneJob had used up."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
"""Kueue's labels on a Job: https://kueue.sigs.k8s.io/docs/reference/labels-and-annotations/."""
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
"""Kubernetes' label on each pod of an Indexed Job: the node's rank in its group."""
NODE_LOST_ANNOTATION = "finetune.dev/node-lost"
"""On a Job: nodeLost of the profile it was made with."""
LONGEST_DEADLINE_ANNOTATION = "finetune.dev/longest-active-deadline-seconds"
"""On a Job: limits.maxActiveDeadlineSeconds of the profile it was made with."""


def labels(identity: RunIdentity) -> dict[str, str]:
    """Labels of every child."""
    return {
        NAME_LABEL: TRAINER,
        MANAGED_BY_LABEL: MANAGED_BY,
        JOB_LABEL: identity.name,
        JOB_UID_LABEL: identity.uid,
    }


def owner_reference(identity: RunIdentity) -> dict[str, Any]:
    """Makes the garbage collector remove the child with its FineTuneJob."""
    return {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "name": identity.name,
        "uid": identity.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(identity: RunIdentity, name: str) -> dict[str, Any]:
    """Metadata of a child called `name`."""
    return {
        "name": name,
        "namespace": identity.namespace,
        "labels": labels(identity),
        "ownerReferences": [owner_reference(identity)],
    }


def snapshot_name(identity: RunIdentity) -> str:
    """The ConfigMap carries the UID, so that a job of the same name made later never meets it."""
    return f"{identity.name}-{identity.uid[:8]}"


def service_name(identity: RunIdentity) -> str:
    """The headless Service, and with it the domain of the pods' names."""
    return identity.name


def first_host(identity: RunIdentity) -> str:
    """DNS name of the pod of rank 0, whichever pod that is at the time."""
    return f"{identity.name}-0.{service_name(identity)}.{identity.namespace}.svc"
