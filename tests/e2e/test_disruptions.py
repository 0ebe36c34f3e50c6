"""Preemption, drain, lack of memory, a killed operator, an API server that is away: minutes are lost, never the run.

Each job here ends with the very weights of the one that nothing disturbed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disruptions import (
    api_server_away,
    closed,
    delete_operator,
    drained,
    evict,
    fill_memory,
    kill_operator,
    operator_pod,
    restarts,
)
from jobs import BRIEF_STEPS, Job, Weights, attempts, brief, download, ended, has, step, trains
from support import kind
from support.cluster import Cluster, Namespace
from support.waiting import Watched

SEED = 4


def ends_with(weights: Weights, watched: Watched, s3: Any, folder: Path, seconds: float = 600) -> Job:
    """The job once it has succeeded, with these weights."""
    done: Job = watched.until(ended, seconds=seconds, what="the end")
    assert has("Succeeded")(done), done["status"]
    assert download(s3, done, folder).digests_of_weights() == weights
    return done


def test_evicted_and_the_api_server_away(
    cluster: Cluster, namespace: Namespace, s3: Any, undisturbed: Weights, tmp_path: Path
) -> None:
    namespace.apply(brief(namespace))
    watched = namespace.job("brief")
    watched.until(trains(1, beyond=80), seconds=120, what="training")
    (pod,) = namespace.pods("brief")
    evict(namespace, pod)
    watched.until(trains(2), seconds=120, what="the second attempt")
    before = operator_pod(cluster)
    api_server_away(cluster)
    after = operator_pod(cluster)
    assert (after["metadata"]["uid"], restarts(after)) == (before["metadata"]["uid"], restarts(before)), (
        "the operator waits for an API server that is away"
    )

    done = ends_with(undisturbed, watched, s3, tmp_path)
    first, second = attempts(done)
    assert first["reason"] in ("Interrupted", "EvictionByEvictionAPI")
    assert second["exitCode"] == 0
    assert 0 < second["resumedFromStep"] <= first["step"]
    assert (done["status"]["retries"], done["status"]["interruptions"]) == (0, 1)
    assert done["status"]["lostSteps"] == first["step"] - second["resumedFromStep"]


def test_drained_and_out_of_memory(
    cluster: Cluster, namespace: Namespace, s3: Any, undisturbed: Weights, tmp_path: Path
) -> None:
    """A drain counts as an interruption; a trainer that the kernel killed for memory counts as a retry."""
    with closed(cluster, kind.FIRST):
        namespace.apply(brief(namespace))
        watched = namespace.job("brief")
        watched.until(trains(1, beyond=80), seconds=120, what="training")
    (pod,) = namespace.pods("brief")
    assert pod["spec"]["nodeName"] == kind.SECOND
    with drained(cluster, kind.SECOND):
        watched.until(trains(2, beyond=40), seconds=120, what="training on the other node")
        pod = next(p for p in namespace.pods("brief") if p["status"]["phase"] == "Running")
        assert pod["spec"]["nodeName"] == kind.FIRST
    fill_memory(namespace, pod)

    done = ends_with(undisturbed, watched, s3, tmp_path)
    drain, memory, last = attempts(done)
    assert drain["reason"] in ("Interrupted", "EvictionByEvictionAPI")
    assert (memory["exitCode"], memory["reason"]) == (137, "OOMKilled")
    assert last["exitCode"] == 0
    assert 0 < memory["resumedFromStep"] < last["resumedFromStep"]
    assert (done["status"]["retries"], done["status"]["interruptions"]) == (1, 1)


def test_operator_killed_again_and_again(
    cluster: Cluster, namespace: Namespace, s3: Any, undisturbed: Weights, tmp_path: Path
) -> None:
    """At the start, at moments drawn at random, and after the pod was deleted; the training never notices."""
    moments = sorted(random.Random(SEED).sample(range(1, BRIEF_STEPS), 2))
    print(f"seed {SEED}: the operator is killed at the start and from steps {moments} on")
    namespace.apply(brief(namespace))
    kill_operator(cluster)
    watched = namespace.job("brief")
    kills: list[Callable[[Cluster], None]] = [delete_operator, kill_operator]
    for moment, kill in zip(moments, kills, strict=True):
        watched.until(lambda job, moment=moment: step(job) >= moment or ended(job), seconds=240, what=f"step {moment}")
        kill(cluster)

    done = ends_with(undisturbed, watched, s3, tmp_path)
    (only,) = attempts(done)
    assert only["exitCode"] == 0
    assert (done["status"]["retries"], done["status"]["interruptions"], done["status"]["lostSteps"]) == (0, 0, 0)
    reasons = [event["reason"] for event in namespace.events("brief")]
    assert len(reasons) == len(set(reasons)), f"an Event came twice: {reasons}"
