"""What happens to pods, nodes and control planes: each function does it for real and sees that it happened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from support import kind
from support.cluster import OPERATOR_NAMESPACE, Cluster, Namespace
from support.waiting import eventually
from urllib3.exceptions import HTTPError

Pod = dict[str, Any]
OUTAGE_SECONDS = 60
"""How long the API server is away: the minute of the requirement."""

# Children of a size that the trainer outweighs, until the container's memory is full: the kernel then kills the
# largest process of the container, which is the trainer.
HOG = """
import os, time
while True:
    if os.fork() == 0:
        kept = bytearray(b"x" * (128 << 20))
        time.sleep(60)
    time.sleep(0.05)
"""


def evict(namespace: Namespace, pod: Pod) -> None:
    """Through the Eviction API, as an autoscaler or `kubectl drain` does it."""
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    client.CoreV1Api(namespace.cluster.api).create_namespaced_pod_eviction(name, namespace.name, eviction)


@contextmanager
def drained(cluster: Cluster, node: str) -> Iterator[None]:
    """No pod is left on the node but its daemons'; afterwards it takes pods again."""
    flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
    try:
        cluster.kubectl("drain", node, *flags)
        yield
    finally:
        cluster.kubectl("uncordon", node)


@contextmanager
def closed(cluster: Cluster, node: str) -> Iterator[None]:
    """No new pod comes to the node."""
    try:
        cluster.kubectl("cordon", node)
        yield
    finally:
        cluster.kubectl("uncordon", node)


def fill_memory(namespace: Namespace, pod: Pod) -> None:
    """The container's memory limit is reached inside it. The call breaks off with the container."""
    namespace.kubectl("exec", pod["metadata"]["name"], "--", "python3", "-c", HOG, check=False)


def container_id(pod: Pod) -> str:
    """As containerd names it."""
    return str(pod["status"]["containerStatuses"][0]["containerID"]).removeprefix("containerd://")


def signal_all(pod: Pod, signal: str) -> None:
    """Sends a signal to every process of the pod's container, from the node."""
    kind.in_node(
        pod["spec"]["nodeName"], "ctr", "--namespace", "k8s.io", "tasks", "kill", "--all", "--signal", signal,
        container_id(pod),
    )  # fmt: skip


def operator_pod(cluster: Cluster) -> Pod:
    """The newest pod of the operator that is not on its way out."""
    api = client.CoreV1Api(cluster.api)
    found = api.list_namespaced_pod(OPERATOR_NAMESPACE, label_selector="app.kubernetes.io/name=finetune-operator")
    pods = [dict(cluster.api.sanitize_for_serialization(pod)) for pod in found.items]
    live = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    assert live, "there is no operator"
    return max(live, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def restarts(pod: Pod) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def kill_operator(cluster: Cluster) -> None:
    """SIGKILL to its process. Returns when the kubelet has started it again."""
    pod = eventually(lambda: operator_pod(cluster), seconds=30)
    before = restarts(pod)
    signal_all(pod, "SIGKILL")

    def again() -> None:
        now = operator_pod(cluster)
        assert now["metadata"]["uid"] == pod["metadata"]["uid"]
        assert restarts(now) > before, "the operator has not been started again"

    eventually(again, seconds=60)


def delete_operator(cluster: Cluster) -> None:
    """Its pod, by force: no time to give the Lease back. Returns when there is another pod."""
    pod = eventually(lambda: operator_pod(cluster), seconds=30)
    name = pod["metadata"]["name"]
    cluster.kubectl("--namespace", OPERATOR_NAMESPACE, "delete", "pod", name, "--force", "--grace-period=0")

    def another() -> None:
        now = operator_pod(cluster)
        assert now["metadata"]["uid"] != pod["metadata"]["uid"]
        assert now["status"].get("containerStatuses"), "its container has not been made"

    eventually(another, seconds=60)


def api_answers(cluster: Cluster) -> bool:
    try:
        client.CoreApi(cluster.api).get_api_versions(_request_timeout=2)
    except (HTTPError, ApiException):
        return False
    return True


def api_server_away(cluster: Cluster) -> None:
    """For a minute the API server takes connections and answers nothing, which is worse than to refuse them; then it
    goes on by itself. Returns when it answers."""
    process = kind.in_node(kind.FIRST, "pidof", "kube-apiserver").strip()
    kind.in_node(kind.FIRST, "kill", "-STOP", process)
    try:
        end = time.monotonic() + OUTAGE_SECONDS
        while (left := end - time.monotonic()) > 0:
            assert not api_answers(cluster), "the API server should be away"
            time.sleep(min(10.0, left))
    finally:
        kind.in_node(kind.FIRST, "kill", "-CONT", process)

    def back() -> None:
        assert api_answers(cluster)

    eventually(back, seconds=60)
