"""Why is nothing running? The condition PodsReady, with the platform's own words and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_operator.projections import PodState, Warned

IMAGE = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
    "ImageInspectError",
    "SignatureValidationFailed",
}
CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"}
CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" (not found|is being deleted|bound to non-existent)')
ACCOUNT = re.compile(r'serviceaccount "([^"]+)" not found')
QUOTA = re.compile(r"(exceeded|failed) quota:")
LONGEST = 2000
NAMED = 4
"""Pods of a group that the message names."""
MOUNT_PATIENCE = 8.0
"""Seconds a pod on a node may take to start before its Events are asked for."""


@dataclass(frozen=True)
class Readiness:
    """Status, reason and message of PodsReady."""

    status: Literal["True", "False"]
    reason: str
    message: str

    @property
    def blocked(self) -> bool:
        """Whether a person should look at it."""
        return self.reason in BLOCKED


BLOCKED = {
    "QuotaExceeded",
    "PodRejected",
    "Unschedulable",
    "ImagePullFailed",
    "ConfigError",
    "NameConflict",
    "NodeLost",
}


def no(reason: str, message: str) -> Readiness:
    return Readiness("False", reason, message[:LONGEST])


def readiness(pods: Sequence[PodState], warning: Warned | None, mount_failure: str, nodes: int = 1) -> Readiness:
    """`pods`: those of the present Job, oldest first. `mount_failure`: message of a Warning Event of the newest pod.
    `nodes`: how many pods train together."""
    live = [pod for pod in pods if not pod.ended]
    running = [pod for pod in live if pod.running and not pod.deleting]
    if len(running) >= nodes:
        where = ", ".join(f"pod {pod.key.name} runs on node {pod.node}" for pod in running[:NAMED])
        return Readiness("True", "Running", where if nodes <= NAMED else f"{nodes} pods run: {where} …")
    idle = [pod for pod in live if pod not in running]
    if idle:
        return _of_pod(idle[-1], mount_failure)
    if warning is not None and _speaks_of_now(warning, pods):
        return _of_warning(warning.message)
    if running:
        return no("Starting", f"{len(running)} of {nodes} pods run")
    if pods:
        last = pods[-1]
        how = f"exit code {last.exit_code}" if last.exit_code is not None else last.disruption or last.pod_reason
        return no("Restarting", f"pod {last.key.name} ended ({how or 'deleted'}); the next one follows after a pause")
    return no("Starting", "the Job was created, its pod is to come")


def node_lost(pod: PodState) -> Readiness:
    """A pod whose node does not answer, where the profile leaves it to people."""
    return no(
        "NodeLost",
        f"pod {pod.key.name} was told to stop and node {pod.node} does not answer. When you are sure that the node is "
        f"off: kubectl delete pod {pod.key.name} --namespace {pod.key.namespace} --force --grace-period=0. With "
        "spec.nodeLost: ForceDelete in the FineTuneProfile it would be done for you",
    )


def may_hang(pod: PodState) -> bool:
    """On a node, not started, and the pod itself does not say why: its Events may (a volume cannot be mounted)."""
    return bool(pod.node) and not pod.has_worked and not pod.waiting_message and not pod.deleting


def refused(code_message: str) -> Readiness:
    """A child that the API server did not take (403 or 422), in its own words."""
    return _of_warning(code_message)


def _of_pod(pod: PodState, mount_failure: str) -> Readiness:
    if pod.deleting:
        return no("Interrupted", f"pod {pod.key.name} is being stopped; training goes on from the last checkpoint")
    if pod.unschedulable:
        claim = CLAIM.search(pod.unschedulable)
        if claim:
            return no(
                "ConfigError",
                f'PersistentVolumeClaim "{claim[1]}" {claim[2]}: create it in namespace {pod.key.namespace}, or '
                f"correct the pvc:// URI or the profile's cache.claimName ({pod.unschedulable})",
            )
        return no(
            "Unschedulable",
            f"no node takes pod {pod.key.name}: {pod.unschedulable.rstrip('. ')}. The resources, nodeSelector and "
            "tolerations of the FineTuneProfile decide which nodes fit",
        )
    if pod.waiting_reason in IMAGE:
        said = pod.waiting_message or pod.waiting_reason
        return no(
            "ImagePullFailed",
            f"image {pod.image} cannot be pulled: {said}. Correct spec.image or spec.imagePullSecrets of the "
            "FineTuneProfile and create the job anew",
        )
    if pod.waiting_reason in CONFIG:
        return no("ConfigError", f"container cannot be made: {pod.waiting_message or pod.waiting_reason}")
    if mount_failure:
        return no("ConfigError", f"a volume of pod {pod.key.name} cannot be mounted: {mount_failure}")
    return no("Starting", f"pod {pod.key.name} is being started")


def _speaks_of_now(warning: Warned, pods: Sequence[PodState]) -> bool:
    """A warning from before the last pod was made has been overcome."""
    return not pods or warning.at >= pods[-1].created


def _of_warning(message: str) -> Readiness:
    if QUOTA.search(message):
        return no(
            "QuotaExceeded",
            f"{message}. Wait for other pods to end, or ask for a larger ResourceQuota; it goes on by itself then",
        )
    account = ACCOUNT.search(message)
    if account:
        return no("ConfigError", f'ServiceAccount "{account[1]}" not found: create it in the namespace ({message})')
    return no("PodRejected", f"{message}. The namespace's rules (Pod Security, LimitRange, webhooks) refuse the pod")
