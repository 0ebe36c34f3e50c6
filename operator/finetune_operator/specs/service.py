"""The headless Service of a job: a stable name for its pods, ready or not."""

from __future__ import annotations

from typing import Any

from finetune_api.training_run import RunIdentity

from finetune_operator.specs.naming import JOB_UID_LABEL, metadata
from finetune_operator.specs.pod import METRICS_PORT


def headless_service(identity: RunIdentity) -> dict[str, Any]:
    """The Service, named like the job."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(identity, identity.name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {JOB_UID_LABEL: identity.uid},
            "ports": [{"name": "metrics", "port": METRICS_PORT, "targetPort": "metrics", "protocol": "TCP"}],
        },
    }
