"""Jobs that are held back, by their user or by a queue: nothing of them runs meanwhile, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, Weights, attempts, brief, condition, download, ended, has, trains
from support import kind
from support.cluster import Cluster, Namespace
from support.kueue import MANAGER, PENDING, PREEMPTED, Flavor, Kueue, owners_of
from support.waiting import eventually

SECOND_NODE = Flavor(
    node_selector={"kubernetes.io/hostname": kind.SECOND},
    tolerations=({"key": "cloud.example/spot", "operator": "Exists", "effect": "NoSchedule"},),
)
KUEUES_OWN = (
    ("spec", "suspend"),
    ("spec", "template", "spec", "nodeSelector"),
    ("spec", "template", "spec", "tolerations"),
    ("spec", "template", "metadata", "labels", "kueue.x-k8s.io/podset"),
)


def suspend(namespace: Namespace, name: str, value: bool) -> None:
    patch = json.dumps({"spec": {"suspend": value}})
    namespace.kubectl("patch", "finetunejob", name, "--type", "merge", "--patch", patch)


def phase(wanted: str) -> Any:
    return lambda job: job.get("status", {}).get("phase") == wanted


def test_suspended_and_resumed(namespace: Namespace, s3: Any, undisturbed: Weights, tmp_path: Path) -> None:
    namespace.apply(brief(namespace))
    watched = namespace.job("brief")
    watched.until(trains(1, beyond=80), seconds=120, what="training")
    suspend(namespace, "brief", True)
    stopped = watched.until(phase("Suspended"), seconds=120, what="suspension")
    assert not namespace.pods("brief"), "Suspended means that what it held is free"
    assert stopped["status"].get("activeSince") is None
    suspend(namespace, "brief", False)

    done = watched.until(ended, seconds=300, what="the end")
    assert has("Succeeded")(done), done["status"]
    first, second = attempts(done)
    assert first["reason"] == "Interrupted"
    assert 0 < second["resumedFromStep"] <= first["step"]
    assert done["status"]["retries"] == 0
    assert download(s3, done, tmp_path).digests_of_weights() == undisturbed


@pytest.fixture
def kueue(cluster: Cluster, namespace: Namespace) -> Iterator[Kueue]:
    Kueue.install(cluster.api)
    try:
        with Kueue(cluster.api, namespace.name) as running:
            yield running
    finally:
        Kueue.uninstall(cluster.api)


def child(namespace: Namespace) -> Job:
    return dict(namespace.get("jobs.batch", "brief", "--show-managed-fields"))


def test_queued_admitted_evicted_and_admitted_again(
    namespace: Namespace, kueue: Kueue, s3: Any, undisturbed: Weights, tmp_path: Path
) -> None:
    namespace.apply(brief(namespace, runPolicy={"queueName": "team-a", "priorityClass": "high"}))
    watched = namespace.job("brief")
    waiting = watched.until(
        lambda job: PENDING in condition(job, "PodsReady")["message"], seconds=60, what="why it waits"
    )
    assert (waiting["status"]["phase"], condition(waiting, "PodsReady")["reason"]) == ("Queued", "Queued")
    assert not namespace.pods("brief")
    made = child(namespace)

    kueue.admit("brief", SECOND_NODE)
    watched.until(trains(1, beyond=80), seconds=120, what="training")
    (pod,) = namespace.pods("brief")
    assert pod["spec"]["nodeName"] == kind.SECOND, "where the queue's flavor is"
    for path in KUEUES_OWN:
        assert owners_of(child(namespace), path) == {MANAGER}, path

    kueue.evict("brief")
    stopped = watched.until(
        lambda job: PREEMPTED in condition(job, "PodsReady")["message"], seconds=60, what="why it was stopped"
    )
    assert (stopped["status"]["phase"], condition(stopped, "PodsReady")["reason"]) == ("Queued", "Preempted")

    def stands_still() -> None:
        assert not namespace.pods("brief"), "its pod saves its state and leaves"
        assert child(namespace)["spec"]["template"]["spec"].get("nodeSelector") is None, "restored"

    eventually(stands_still, seconds=60)
    kueue.admit("brief", SECOND_NODE)

    done = watched.until(ended, seconds=300, what="the end")
    assert has("Succeeded")(done), done["status"]
    now = child(namespace)
    assert now["metadata"]["uid"] == made["metadata"]["uid"], "one Job throughout"
    for path in KUEUES_OWN:
        assert owners_of(now, path) == {MANAGER}, path
    assert not kueue.unsuspended, "nobody but Kueue starts a queued Job"
    first, second = attempts(done)
    assert first["reason"] == "Interrupted"
    assert 0 < second["resumedFromStep"] <= first["step"]
    assert done["status"]["retries"] == 0
    assert download(s3, done, tmp_path).digests_of_weights() == undisturbed
