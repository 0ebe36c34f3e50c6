"""Why is nothing running? On real nodes each obstacle is named within 15 s, in the words of whoever raised it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, brief, condition, has, profile
from support import kind
from support.cluster import Cluster, Namespace
from support.kueue import PENDING, Kueue
from support.waiting import eventually

pytestmark = pytest.mark.one_node
BOUND_SECONDS = 15
"""The requirement's: from `kubectl apply` to the condition, or from the pod's start where only the trainer can tell."""
NO_REGISTRY = "127.0.0.1:9/finetune-trainer:none"

Obstacle = Callable[[Namespace, Job], Iterator[None]]


def quota(namespace: Namespace, job: Job) -> Iterator[None]:
    hard = {"limits.memory": "1Mi"}
    namespace.apply(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": hard}}
    )

    def counted() -> None:
        assert namespace.get("resourcequota", "small").get("status", {}).get("hard"), "the quota is not in force yet"

    eventually(counted, seconds=30)
    yield


def limit_range(namespace: Namespace, job: Job) -> Iterator[None]:
    limits = [{"type": "Container", "max": {"memory": "8Mi"}}]
    namespace.apply(
        {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "tight"}, "spec": {"limits": limits}}
    )
    yield


def pod_security(namespace: Namespace, job: Job) -> Iterator[None]:
    """Pods of ours keep every rule of the restricted standard, whatever a job says: Pod Security never refuses them,
    as each test here shows, whose namespace enforces it. A policy of the cluster's administrator may."""
    name = namespace.name
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                ],
            },
            "validations": [
                {
                    "expression": "has(object.spec.priorityClassName) && object.spec.priorityClassName == 'approved'",
                    "message": 'pods here need priorityClassName "approved"',
                }
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    }
    namespace.apply(policy, binding)
    pod = ("run", "probe", "--image=none", "--dry-run=server", "--overrides", json.dumps(PLAIN_POD))

    def in_force() -> None:
        assert "approved" in namespace.kubectl(*pod, check=False), "the policy is not in force yet"

    try:
        eventually(in_force, seconds=60)
        yield
    finally:
        for what in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            namespace.cluster.kubectl("delete", what, name)


PLAIN_POD = {
    "spec": {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "probe",
                "image": "none",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }
}


def with_profile(**spec: Any) -> Obstacle:
    """A profile of the administrator's that does not fit this cluster."""

    def make(namespace: Namespace, job: Job) -> Iterator[None]:
        with profile(namespace.cluster, f"e2e-{namespace.name[-4:]}", **spec) as name:
            job["spec"]["profileName"] = name
            yield

    return make


def claim(namespace: Namespace, job: Job) -> Iterator[None]:
    job["spec"]["dataset"] = {"uri": "pvc://pictures-of-mine/dog"}
    yield


def queue(namespace: Namespace, job: Job) -> Iterator[None]:
    job["spec"]["runPolicy"] = {"queueName": "team-a"}
    api = namespace.cluster.api
    Kueue.install(api)
    try:
        with Kueue(api, namespace.name):
            yield
    finally:
        Kueue.uninstall(api)


TOO_LARGE = {"requests": {"memory": "4000Gi"}, "limits": {"memory": "4000Gi"}}


@dataclass(frozen=True)
class Case:
    name: str
    make: Obstacle
    reason: str
    says: tuple[str, ...]
    phase: str = "Pending"

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("quota", quota, "QuotaExceeded", ("exceeded quota: small", "limits.memory")),
    Case("limit range", limit_range, "PodRejected", ("maximum memory usage per Container is 8Mi",)),
    Case("policy on pods", pod_security, "PodRejected", ('pods here need priorityClassName "approved"',)),
    Case(
        "no such node", with_profile(nodeSelector={"cloud.example/gpu": "h100"}), "Unschedulable",
        ("0/2 nodes are available", "didn't match Pod's node affinity/selector"),
    ),
    Case("too large", with_profile(resources=TOO_LARGE), "Unschedulable", ("Insufficient memory",)),
    Case("image", with_profile(image=NO_REGISTRY), "ImagePullFailed", (NO_REGISTRY, "connection refused")),
    Case("claim", claim, "ConfigError", ('persistentvolumeclaim "pictures-of-mine" not found',)),
    Case(
        "runtime class", with_profile(runtimeClassName="nvidia"), "PodRejected",
        ('RuntimeClass "nvidia" not found',),
    ),
    Case("queue", queue, "Queued", ('"team-a"', PENDING), "Queued"),
]  # fmt: skip


def seconds_until(namespace: Namespace, holds: Callable[[Job], bool], what: str) -> tuple[Job, float]:
    """The job once it is so, and the seconds since now."""
    begin = time.monotonic()
    found: Job = namespace.job("brief").until(holds, seconds=60, what=what)
    return found, time.monotonic() - begin


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_named_in_time(case: Case, namespace: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    job = brief(namespace)
    with contextmanager(case.make)(namespace, job):
        namespace.apply(job)
        found, took = seconds_until(
            namespace,
            lambda j: (
                has("PodsReady", "False", case.reason)(j)
                and all(words in condition(j, "PodsReady")["message"] for words in case.says)
            ),
            f"{case.reason} with {case.says}",
        )
        columns = namespace.kubectl("get", "finetunejob", "brief", "--no-headers").split()
    with capsys.disabled():
        print(f" {case}: {case.reason} after {took:.1f} s:", end="")
    assert took <= BOUND_SECONDS, f"it took {took:.1f} s; the machine's load: {load()}"
    assert found["status"]["phase"] == case.phase
    assert columns[:3] == ["brief", case.phase, "lora"]


def test_missing_secret(namespace: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the trainer sees that a Secret is missing: the operator may not read any."""
    job = brief(namespace)
    job["spec"]["output"]["secretRef"] = {"name": "not-there"}
    namespace.apply(job)
    found, _ = seconds_until(namespace, has("Failed", "True", "BadConfiguration"), "BadConfiguration")
    seen = datetime.now(UTC)
    (pod,) = namespace.pods("brief")
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    took = (seen - datetime.fromisoformat(ended["startedAt"])).total_seconds()
    message = condition(found, "Failed")["message"]
    with capsys.disabled():
        print(f" missing secret: {took:.1f} s after the trainer's start: {message}", end="")
    assert ended["exitCode"] == 78
    for words in ("spec.output.secretRef", "not-there"):
        assert words in message
    assert took <= BOUND_SECONDS, f"it took {took:.1f} s; the machine's load: {load()}"
    assert found["status"]["phase"] == "Failed"
    assert namespace.kubectl("get", "finetunejob", "brief", "--no-headers").split()[:3] == ["brief", "Failed", "lora"]


def load() -> str:
    return Path("/proc/loadavg").read_text(encoding="ascii").strip()


def test_obstacles_that_go_away_are_forgotten(cluster: Cluster, namespace: Namespace) -> None:
    """Nobody has to do anything but remove the obstacle."""
    mark = namespace.name[-4:]
    with profile(cluster, f"e2e-{mark}", nodeSelector={"finetune.dev/test": mark}) as name:
        namespace.apply(brief(namespace, steps=5, profileName=name))
        watched = namespace.job("brief")
        watched.until(has("PodsReady", "False", "Unschedulable"), seconds=60, what="Unschedulable")
        cluster.kubectl("label", "node", kind.FIRST, f"finetune.dev/test={mark}")
        try:
            done = watched.until(has("Succeeded"), seconds=180, what="success")
        finally:
            cluster.kubectl("label", "node", kind.FIRST, "finetune.dev/test-")
        assert condition(done, "PodsReady")["reason"] == "Finished"
