"""A node that goes without a word, and the job that goes on elsewhere.

It takes minutes until Kubernetes believes that a node is gone; conftest puts the tests that need one node only (marked
`one_node`) between these two, so that nobody waits for that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from disruptions import Pod, closed
from jobs import Job, Weights, attempts, brief, download, ended, has, profile, trains
from support import kind
from support.cluster import Cluster, Namespace, fresh_namespace
from support.waiting import Watched, eventually

GRACE_SECONDS = 10
MINUTES_SECONDS = 600
"""From the loss to a trainer elsewhere: 50 s until the node counts as lost, 60 s that pods bear it, the grace of 10 s,
two minutes of the operator's patience, a pause of at most 40 s and a start make five minutes; twice that, because the
machine does other work meanwhile."""


@dataclass
class Loss:
    """A job that trains on the second node when that stops."""

    namespace: Namespace
    watched: Watched
    pod: Pod
    began: float


@pytest.fixture(scope="session")  # tests of other modules run in between
def lost(cluster: Cluster) -> Iterator[Loss]:
    settings = {"terminationGracePeriodSeconds": GRACE_SECONDS, "nodeLost": "ForceDelete"}
    try:
        with profile(cluster, "e2e-node-lost", **settings), fresh_namespace(cluster, "node-lost") as namespace:
            with closed(cluster, kind.FIRST):
                namespace.apply(brief(namespace, profileName="e2e-node-lost"))
                watched = namespace.job("brief")
                watched.until(trains(1, beyond=100), seconds=240, what="training")
            (pod,) = namespace.pods("brief")
            assert pod["spec"]["nodeName"] == kind.SECOND
            # nothing else is to land there before the scheduler knows
            with closed(cluster, kind.SECOND):
                kind.freeze(kind.SECOND)
                yield Loss(namespace, watched, pod, time.monotonic())
                kind.thaw(kind.SECOND)
    finally:
        kind.thaw(kind.SECOND)


@pytest.mark.node_goes
def test_the_node_goes(lost: Loss) -> None:
    """And nobody has noticed: the pod still counts as running."""
    pod = lost.namespace.get("pod", lost.pod["metadata"]["name"])
    assert pod["status"]["phase"] == "Running"
    assert "deletionTimestamp" not in pod["metadata"]


@pytest.mark.node_is_back
def test_the_job_goes_on_elsewhere(
    lost: Loss, cluster: Cluster, s3: Any, undisturbed: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: Job = lost.watched.until(ended, seconds=MINUTES_SECONDS, what="the end")
    took = time.monotonic() - lost.began
    assert has("Succeeded")(done), done["status"]
    first, second = attempts(done)
    with capsys.disabled():
        print(
            f" the next pod was made {seconds_between(first, second):.0f} s after the first; steps lost: "
            f"{done['status']['lostSteps']}; seen {took:.0f} s after the loss",
            end="",
        )
    assert first["reason"] == "NodeLost"
    assert seconds_between(first, second) <= MINUTES_SECONDS
    assert second["resumedFromStep"] > 0
    # the last step heard of may be older than the last checkpoint: progress is read every few seconds
    assert done["status"]["lostSteps"] == max(0, first["step"] - second["resumedFromStep"])
    assert (done["status"]["retries"], done["status"]["interruptions"]) == (0, 1)
    results = download(s3, done, tmp_path)
    assert results.digests_of_weights() == undisturbed
    assert "NodeLost" in [event["reason"] for event in lost.namespace.events("brief")]

    # The node comes back, with a trainer in the middle of its work. What was published stays as it is.
    kind.thaw(kind.SECOND)
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{kind.SECOND}", "--timeout=180s")

    def at_rest() -> None:
        tasks = kind.in_node(kind.SECOND, "ctr", "--namespace", "k8s.io", "tasks", "list")
        container = lost.pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        assert container not in tasks, "the kubelet ends the pod that is no more"

    eventually(at_rest, seconds=120)
    again = download(s3, lost.watched.now(), tmp_path / "again")
    assert again.manifest == results.manifest


def seconds_between(first: dict[str, Any], second: dict[str, Any]) -> float:
    """From the creation of one attempt's pod to that of the next."""
    begins = [datetime.fromisoformat(attempt["startedAt"]) for attempt in (first, second)]
    return (begins[1] - begins[0]).total_seconds()
