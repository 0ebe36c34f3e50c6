"""The headless Service of a job: a stable name for its pods, ready or not."""

from __future__ import annotations

from typing import Any

from finetune_api.training_run import TrainingRun

from finetune_operator.specs.naming import JOB_UID_LABEL, metadata, service_name
from finetune_operator.specs.pod import ports_of


def headless_service(run: TrainingRun) -> dict[str, Any]:
    """The Service, named like the job."""
    identity = run.identity
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(identity, service_name(identity)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {JOB_UID_LABEL: identity.uid},
            "ports": [
                {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}
                for name, number in ports_of(run).items()
            ],
        },
    }
