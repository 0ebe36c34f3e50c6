"""The batch/v1 Job: created once, never applied again. Deadlines and TTL are the operator's (policies/)."""

from __future__ import annotations

from typing import Any

from finetune_operator.policies.exit_codes import pod_failure_policy
from finetune_operator.specs.configmap import Snapshot
from finetune_operator.specs.naming import (
    LONGEST_DEADLINE_ANNOTATION,
    RETRIES_BEFORE_ANNOTATION,
    RUN_DIGEST_ANNOTATION,
    metadata,
)
from finetune_operator.specs.pod import CONTAINER, pod_template


def training_job(
    snapshot: Snapshot, service_account: str | None, backoff_limit: int, retries_before: int
) -> dict[str, Any]:
    """The Job that carries out the snapshot's run.

    `backoff_limit` is what is left of the retries, `retries_before` what earlier Jobs used up.
    """
    identity, limits = snapshot.run.identity, snapshot.profile.limits
    annotations = {
        RUN_DIGEST_ANNOTATION: snapshot.digest,
        RETRIES_BEFORE_ANNOTATION: str(retries_before),
    }
    if limits is not None and limits.max_active_deadline_seconds is not None:
        annotations[LONGEST_DEADLINE_ANNOTATION] = str(limits.max_active_deadline_seconds)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**metadata(identity, identity.name), "annotations": annotations},
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": backoff_limit,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": pod_failure_policy(CONTAINER),
            "template": pod_template(snapshot, service_account),
        },
    }
