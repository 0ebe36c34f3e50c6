"""The training pod, under the restricted Pod Security Standard: nothing in a FineTuneJob can lead out of it."""

from __future__ import annotations

from typing import Any

from finetune_api.profile import FineTuneProfileSpec
from finetune_api.training_run import TrainingRun

from finetune_operator.specs.configmap import RUN_KEY, Snapshot
from finetune_operator.specs.naming import INDEX_LABEL, RUN_DIGEST_ANNOTATION, first_host, labels, service_name
from finetune_operator.specs.volumes import CACHE_DIR, CREDENTIALS_DIR, RUN_DIR, WORK_DIR, Volumes, volumes_of

CONTAINER = "trainer"
METRICS_PORT = 8000
GROUP_PORT = 29500
"""torch's usual port for a rendezvous."""
TEMPORARY_DIR = f"{WORK_DIR}/tmp"  # noqa: S108 - on the pod's own scratch volume
USER = 65532
NODE_LOST_SECONDS = 60
"""How long a pod stays bound to a node that no longer answers."""


def pod_template(snapshot: Snapshot, service_account: str | None) -> dict[str, Any]:
    """Template of the pod that carries out the snapshot's run."""
    run, profile = snapshot.run, snapshot.profile
    volumes = volumes_of(run, profile)
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": run.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": _tolerations(profile),
        "containers": [_container(snapshot, run, profile, volumes)],
        "volumes": volumes.volumes,
    }
    optional: dict[str, Any] = {
        "serviceAccountName": service_account,
        "nodeSelector": profile.node_selector,
        "runtimeClassName": profile.runtime_class_name,
        "priorityClassName": profile.priority_class_name,
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets or ()],
    }
    spec |= {key: value for key, value in optional.items() if value}
    if run.engine.nodes > 1:
        # with the Job's hostnames it gives each pod its name in DNS
        spec["subdomain"] = service_name(run.identity)
    return {
        "metadata": {
            "labels": labels(run.identity),
            "annotations": {RUN_DIGEST_ANNOTATION: snapshot.digest},
        },
        "spec": spec,
    }


def lost_pod_status(node: str, at: str) -> dict[str, Any]:
    """status with which a pod on a node that no longer answers is declared failed, through no fault of its own."""
    message = f"node {node} does not answer, and the grace of its pod is long over"
    return {"phase": "Failed", "conditions": [_disrupted("NodeLost", message, at)]}


def survivor_status(at: str) -> dict[str, Any]:
    """status of a pod that is deleted because it outlived its group: however it ends then does not count."""
    return {"conditions": [_disrupted("GroupBroken", "its group is no more, and it did not notice", at)]}


def _disrupted(reason: str, message: str, at: str) -> dict[str, str]:
    """`at`: now. The disruption controller takes back at once what seems to be minutes old, of a pod that nobody has
    told to stop yet (tried on 1.34)."""
    stated = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}
    return {**stated, "lastTransitionTime": at}


def _container(snapshot: Snapshot, run: TrainingRun, profile: FineTuneProfileSpec, volumes: Volumes) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": profile.image,
        "imagePullPolicy": profile.image_pull_policy,
        "args": ["run", f"{RUN_DIR}/{RUN_KEY}"],
        "env": _environment(snapshot.digest, run, profile),
        "ports": [{"name": name, "containerPort": number, "protocol": "TCP"} for name, number in ports_of(run).items()],
        "resources": profile.resources.wire() if profile.resources else {},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": volumes.mounts,
    }


def ports_of(run: TrainingRun) -> dict[str, int]:
    """What the pods of a run listen on, by name."""
    return {"metrics": METRICS_PORT} | ({"group": GROUP_PORT} if run.engine.nodes > 1 else {})


def _environment(digest: str, run: TrainingRun, profile: FineTuneProfileSpec) -> list[dict[str, Any]]:
    values = {
        "FINETUNE_RUN_SHA256": digest,
        "FINETUNE_WORK_DIR": WORK_DIR,
        "FINETUNE_CREDENTIALS_DIR": CREDENTIALS_DIR,
        "FINETUNE_LOG_FORMAT": "json",
        "HOME": WORK_DIR,
        "TMPDIR": TEMPORARY_DIR,
    }
    if profile.cache is not None:
        values["FINETUNE_CACHE_DIR"] = CACHE_DIR
    fields = {"FINETUNE_POD_UID": "metadata.uid", "FINETUNE_POD_NAME": "metadata.name"}
    if run.engine.nodes > 1:
        values["FINETUNE_GROUP_HOST"] = first_host(run.identity)
        values["FINETUNE_GROUP_PORT"] = str(GROUP_PORT)
        fields["FINETUNE_NODE"] = f"metadata.labels['{INDEX_LABEL}']"
    return [{"name": name, "value": value} for name, value in values.items()] + [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in fields.items()
    ]


def _tolerations(profile: FineTuneProfileSpec) -> list[dict[str, Any]]:
    lost = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": NODE_LOST_SECONDS,
        }
        for state in ("not-ready", "unreachable")
    ]
    return [*lost, *(toleration.wire() for toleration in profile.tolerations or ())]
