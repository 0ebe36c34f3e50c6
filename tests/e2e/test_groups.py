"""Two pods on two nodes that train together, as copies and by DeepSpeed; one of them killed, one of them frozen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from disruptions import Pod, signal_all
from finetune_trainer.sources.builtin import open_builtin
from jobs import Job, Weights, attempts, brief, download, ended, has, profile, trains
from judging import BASE
from safetensors.torch import load_file
from support import kind
from support.cluster import Cluster, Namespace, fresh_namespace
from support.waiting import eventually

STEPS = 250
FEW_STEPS = 10
UPDATE_TOLERANCE = 1e-3
"""Length of the difference between what the pair has learned after FEW_STEPS and what one process with the doubled
batch has, relative to the latter. Sums in another order are rounded otherwise, and that is all; Adam amplifies it from
step to step, so that hundreds of steps later the weights differ though the losses do not."""
PEER_LOST = 76
RESTART_SECONDS = 240
"""From a pod that freezes to a group that trains again: 30 s until the others miss its heartbeat, 60 s until the
operator deletes it, its grace of 10 s, the Job controller's pause of up to 40 s, and the start of two pods beside
whatever else the machine does."""
GRACE_SECONDS = 10


def pair(namespace: Namespace, name: str, steps: int = STEPS) -> Job:
    """`brief` by two pods, each with half of its batch."""
    half = {"steps": steps, "batchSize": 2, "learningRate": 0.001}
    return brief(namespace, name, profileName=PROFILE, engine={"nodes": 2}, training=half)


PROFILE = "e2e-pair"


@dataclass(frozen=True)
class Undisturbed:
    pods: list[Pod]
    job: Job
    weights: Weights


@pytest.fixture(scope="module")
def one_pod_a_node(cluster: Cluster) -> Iterator[str]:
    """A profile whose pods ask for so much memory that no node takes two."""
    kibibytes = [
        int(node["status"]["allocatable"]["memory"].removesuffix("Ki"))
        for node in Namespace("default", cluster).get("nodes")["items"]
    ]
    memory = f"{max(kibibytes) * 6 // 10 // 1024}Mi"
    resources = {"requests": {"cpu": "100m", "memory": memory}, "limits": {"memory": memory}}
    with profile(cluster, PROFILE, resources=resources, terminationGracePeriodSeconds=GRACE_SECONDS) as name:
        yield name


@pytest.fixture(scope="module")
def undisturbed_pair(
    cluster: Cluster, one_pod_a_node: str, s3: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Undisturbed]:
    with fresh_namespace(cluster, "pair") as namespace:
        namespace.apply(pair(namespace, "pair"))  # the kohya file bears the job's name
        try:
            done: Job = namespace.job("pair").until(ended, seconds=400, what="the end")
            assert has("Succeeded")(done), done["status"]
        except BaseException:
            print(namespace.story())
            raise
        weights = download(s3, done, tmp_path_factory.mktemp("pair")).digests_of_weights()
        yield Undisturbed(namespace.pods("pair"), done, weights)


def test_two_pods_train_on_two_nodes(undisturbed_pair: Undisturbed) -> None:
    assert {pod["spec"]["nodeName"] for pod in undisturbed_pair.pods} == {kind.FIRST, kind.SECOND}
    assert [exit_code(pod) for pod in undisturbed_pair.pods] == [0, 0]
    assert len(attempts(undisturbed_pair.job)) == 1


def update(weights: Path) -> torch.Tensor:
    """The upper halves of a LoRA, which start at zero: all that was learned."""
    tensors = sorted(load_file(weights).items())
    halves = [value.double().flatten() for name, value in tensors if "lora_B" in name or "lora.up" in name]
    assert halves, f"no LoRA in {weights}"
    return torch.cat(halves)


def test_they_do_what_one_with_the_doubled_batch_does(
    namespace: Namespace, one_pod_a_node: str, s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace.apply(pair(namespace, "together", FEW_STEPS), brief(namespace, "alone", steps=FEW_STEPS))
    learned = {}
    for name in ("together", "alone"):
        done: Job = namespace.job(name).until(ended, seconds=240, what="the end")
        assert has("Succeeded")(done), done["status"]
        learned[name] = update(download(s3, done, tmp_path / name).weights)
    difference = float((learned["together"] - learned["alone"]).norm() / learned["alone"].norm())
    with capsys.disabled():
        print(f" relative difference {difference:.2e}", end="")
    assert 0 < difference <= UPDATE_TOLERANCE


def all_weights(pipeline: Path) -> torch.Tensor:
    """Of what is trained when all is: the denoiser and the text encoder."""
    files = [file for part in ("unet", "text_encoder") for file in sorted((pipeline / part).glob("*.safetensors"))]
    assert len(files) == 2, f"no whole model in {pipeline}"
    return torch.cat([value.double().flatten() for file in files for _, value in sorted(load_file(file).items())])


def test_deepspeed_cuts_all_weights_and_keeps_them_on_the_hosts(
    namespace: Namespace, one_pod_a_node: str, s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In pods without a compiler, whose only writable folder is their own. They learn what one process learns."""
    method = {"dreamBooth": {"prompt": "a photo of a sks circle", "trainTextEncoder": True}}
    engine = {"kind": "DeepSpeed", "zeroStage": 3, "offloadOptimizer": "Cpu", "offloadParameters": "Cpu", "nodes": 2}
    training = {"steps": FEW_STEPS, "batchSize": 1, "learningRate": 0.0001}
    namespace.apply(
        brief(namespace, "cut", profileName=PROFILE, method=method, engine=engine, training=training),
        brief(namespace, "plain", method=method, training=training | {"batchSize": 2}),
    )
    base, learned = all_weights(open_builtin(BASE)), {}
    for name in ("cut", "plain"):
        done: Job = namespace.job(name).until(ended, seconds=400, what="the end")
        assert has("Succeeded")(done), done["status"]
        learned[name] = all_weights(download(s3, done, tmp_path / name).weights) - base
        if name == "cut":
            told = done["status"]["engine"]
            assert told["kind"] == "DeepSpeed"
            assert told["does"] == "DeepSpeed, ZeRO-3, optimizer on the host, parameters on the host"
            assert [exit_code(pod) for pod in namespace.pods(name)] == [0, 0]
    difference = float((learned["cut"] - learned["plain"]).norm() / learned["plain"].norm())
    with capsys.disabled():
        print(f" relative difference {difference:.2e}", end="")
    assert 0 < difference <= UPDATE_TOLERANCE


def exit_code(pod: Pod) -> int | None:
    statuses = pod["status"].get("containerStatuses") or [{}]
    code = statuses[0].get("state", {}).get("terminated", {}).get("exitCode")
    return None if code is None else int(code)


def running(namespace: Namespace, name: str) -> list[Pod]:
    """The group's pods that work, by index."""
    live = [p for p in namespace.pods(name) if p["status"]["phase"] == "Running" and exit_code(p) is None]
    return sorted(live, key=lambda pod: int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]))


def test_one_killed_and_one_frozen(
    namespace: Namespace,
    undisturbed_pair: Undisturbed,
    s3: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The group begins anew from its checkpoint each time, and ends with the bytes of an undisturbed one."""
    namespace.apply(pair(namespace, "pair"))
    watched = namespace.job("pair")
    watched.until(trains(1, beyond=40), seconds=240, what="training together")
    first, second = running(namespace, "pair")
    begin = time.monotonic()
    signal_all(second, "SIGKILL")

    def leaves() -> None:
        assert exit_code(namespace.get("pod", first["metadata"]["name"])) == PEER_LOST

    eventually(leaves, seconds=60)
    watched.until(trains(2, beyond=20), seconds=RESTART_SECONDS, what="training again")
    killed = time.monotonic() - begin

    first, second = running(namespace, "pair")
    begin = time.monotonic()
    signal_all(second, "SIGSTOP")
    watched.until(trains(3), seconds=RESTART_SECONDS, what="training again")
    frozen = time.monotonic() - begin
    with capsys.disabled():
        print(f" trains again {killed:.0f} s after the kill, {frozen:.0f} s after the freeze", end="")
    assert killed <= RESTART_SECONDS
    assert frozen <= RESTART_SECONDS

    done: Job = watched.until(ended, seconds=400, what="the end")
    assert has("Succeeded")(done), done["status"]
    assert download(s3, done, tmp_path).digests_of_weights() == undisturbed_pair.weights
    resumed = [a["resumedFromStep"] for a in attempts(done) if a.get("resumedFromStep")]
    assert len(resumed) >= 2
    assert resumed == sorted(resumed)
    assert (done["status"]["retries"], done["status"]["interruptions"]) == (1, 2), (
        "a pod that is killed counts once; its peer, and a pod that is frozen, never"
    )

    def all_ended() -> None:
        assert not running(namespace, "pair")

    eventually(all_ended, seconds=60)
