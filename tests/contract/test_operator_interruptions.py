"""What the real Job controller makes of pods that end through no fault of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from finetune_operator.client import Kube
from finetune_operator.connection import Connection
from finetune_operator.metrics import Metrics
from finetune_operator.policies.replacement import ENDS_BORNE
from finetune_operator.projections import Key
from finetune_operator.reconcile.actions import DeletePod
from finetune_operator.reconcile.apply import Applier
from finetune_operator.scope import Scope
from finetune_operator.store import Store
from finetune_operator.times import utcnow
from kubernetes.aio import client as aio_client
from kubernetes.aio import config as aio_config
from support.operating import Operator, Place
from support.waiting import Object, eventually

NODE = "lost-node"


def test_after_interruptions_a_new_job_spares_the_job_controllers_long_pauses(place: Place) -> None:
    """Pauses of 10, 20 and 40 s are borne; instead of the next one of 80 s the job gets a new Job, and its pod at once.
    The first pods are said to have ended long ago, so that their pauses are over; the last one ends now."""
    watched = place.submit("dog")
    first = place.job("dog")
    pod_uid = ""
    for number in range(ENDS_BORNE + 1):
        pod = place.pod("dog", other_than=pod_uid)
        pod_uid = pod.metadata.uid
        assert place.job("dog").metadata.uid == first.metadata.uid, "made anew too early"
        place.runs(pod)
        place.ends(pod, 75, at=None if number < ENDS_BORNE else utcnow(), outcome="Interrupted", step=7)

    def made_anew() -> str:
        uid: str = place.job("dog").metadata.uid
        assert uid != first.metadata.uid
        return uid

    second = eventually(made_anew, seconds=15)
    pod = place.pod("dog", other_than=pod_uid, seconds=15)
    owner = pod.metadata.owner_references[0]
    assert owner.uid == second

    def all_told(job: Object) -> bool:
        status = job.get("status")
        return isinstance(status, dict) and status.get("interruptions") == ENDS_BORNE + 1

    found = watched.until(all_told, seconds=15, what="its interruptions")
    status = found["status"]
    assert isinstance(status, dict)
    assert status["retries"] == 0
    assert status["attempts"][0]["reason"] == "Interrupted"
    assert status["attempts"][0]["step"] == 7


def test_a_pod_on_a_lost_node_is_replaced_only_once_it_is_declared_failed(place: Place, operator: Operator) -> None:
    """With the rights of the chart; nobody plays the kubelet, as on a node that does not answer."""
    place.submit("dog")
    pod = place.pod("dog")
    binding = {"metadata": {"name": pod.metadata.name}, "target": {"kind": "Node", "name": NODE}}
    place.core.create_namespaced_pod_binding(pod.metadata.name, place.name, binding, _preload_content=False)
    place.runs(pod)
    place.core.delete_namespaced_pod(pod.metadata.name, place.name, grace_period_seconds=3600)
    assert place.core.read_namespaced_pod(pod.metadata.name, place.name).status.phase == "Running"

    action = DeletePod(pod.metadata.name, pod.metadata.uid, NODE, force=True)
    asyncio.run(carry_out(operator.kubeconfig, Key(place.name, "dog"), action))

    second = place.pod("dog", other_than=pod.metadata.uid, seconds=40)
    assert second.metadata.uid != pod.metadata.uid
    eventually(lambda: gone(place, pod.metadata.uid), seconds=20)
    assert not place.job("dog").status.failed, "a lost node does not count"


def test_a_pod_that_outlived_its_group_does_not_count(place: Place, operator: Operator) -> None:
    """It is frozen: the kubelet ends it with SIGKILL when its grace is over, and 137 alone would count."""
    place.submit("two", engine={"nodes": 2})
    pod = place.pod("two")
    binding = {"metadata": {"name": pod.metadata.name}, "target": {"kind": "Node", "name": NODE}}
    place.core.create_namespaced_pod_binding(pod.metadata.name, place.name, binding, _preload_content=False)
    place.runs(pod)

    action = DeletePod(pod.metadata.name, pod.metadata.uid, NODE, force=False)
    asyncio.run(carry_out(operator.kubeconfig, Key(place.name, "two"), action))

    deleted = place.core.read_namespaced_pod(pod.metadata.name, place.name)
    assert deleted.metadata.deletion_timestamp is not None
    (disrupted,) = [c for c in deleted.status.conditions if c.type == "DisruptionTarget"]
    assert disrupted.status == "True"
    assert disrupted.last_transition_time, "without it the disruption controller may take it back as stale"
    assert "Succeeded" != deleted.status.phase != "Failed", "it has its grace"
    place.ends(deleted, 137)
    index = "batch.kubernetes.io/job-completion-index"

    def replaced() -> None:
        again = [p for p in place.pods("two") if p.metadata.labels[index] == pod.metadata.labels[index]]
        assert {p.metadata.uid for p in again} - {pod.metadata.uid}

    eventually(replaced, seconds=40)
    assert not place.job("two").status.failed


def gone(place: Place, uid: str) -> None:
    assert uid not in [pod.metadata.uid for pod in place.pods("dog")]


async def carry_out(kubeconfig: Path, key: Key, action: DeletePod) -> None:
    settings = aio_client.Configuration()
    await aio_config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
    kube = Kube(Connection(settings), Metrics())
    try:
        await Applier(kube, Store(), Scope()).apply(key, 0, [action])
        await Applier(kube, Store(), Scope()).apply(key, 0, [action])  # twice does no harm
    finally:
        await kube.close()
