"""How groups end: pods that are real processes on this machine, killed, frozen, stopped, and left alone."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.groups import PEER_SECONDS, GroupPod, start_group
from support.runs import Pod, spec_in_s3
from support.s3_server import S3Server

NOTICED_SECONDS = PEER_SECONDS + 15
"""Bound on the time from a loss to the end of the other pod: the silence that is borne, and a busy machine's slack."""
FOREVER = 100_000


@pytest.fixture
def uploaded(s3: S3Server, bucket: str, pictures: Path) -> str:
    s3.put(bucket, {f"pictures/{p.name}": p.read_bytes() for p in pictures.iterdir()})
    return bucket


@pytest.fixture
def cleaner() -> Iterator[ExitStack]:
    """Nothing that is frozen or orphaned survives a test."""
    with ExitStack() as stack:
        yield stack


def spec_of(s3: S3Server, bucket: str, model: Path, steps: int, **engine: int) -> dict[str, Any]:
    drawn = {"prompts": ["sks dog"], "imagesPerPrompt": 1, "inferenceSteps": 1}
    return {**spec_in_s3(s3, bucket, model, steps=steps), "engine": engine, "validation": drawn}


def started(cleaner: ExitStack, *pods: Pod) -> list[GroupPod]:
    group = start_group(pods)
    for member in group:
        cleaner.callback(member.bury)
    return group


def trains(line: dict[str, Any]) -> bool:
    return bool(line.get("total_steps"))


def published(s3: S3Server, bucket: str) -> dict[str, bytes]:
    client = s3.client()
    keys = [o["Key"] for o in client.list_objects_v2(Bucket=bucket, Prefix="results/").get("Contents", [])]
    return {key.removeprefix("results/"): client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def test_a_group_goes_on_after_one_pod_was_stopped_and_publishes_once(
    s3: S3Server, uploaded: str, tiny_sd: Path, tmp_path: Path, cleaner: ExitStack
) -> None:
    """The pod that is evicted is not the one that saves."""
    spec = spec_of(s3, uploaded, tiny_sd, 60, nodes=2)
    first, second = started(cleaner, Pod(tmp_path, spec, uid="a-0"), Pod(tmp_path, spec, uid="a-1"))
    first.read_until(trains)
    second.process.send_signal(signal.SIGTERM)
    assert second.code() == 75
    stopped = first.ended()
    assert (stopped.code, stopped.result.outcome) == (75, "Interrupted"), stopped.output
    saved = {key for key in published(s3, uploaded) if "checkpoints/" in key and key.endswith("manifest.json")}
    assert len(saved) == 1
    assert f"/{stopped.result.step:08d}-a-0/" in f"/{saved.pop()}"

    first, second = started(cleaner, Pod(tmp_path, spec, uid="b-0"), Pod(tmp_path, spec, uid="b-1"))
    resumed = first.ended()
    assert (resumed.code, second.code()) == (0, 0), resumed.output + second.output
    assert resumed.result.resumed_from_step == stopped.result.step
    results = published(s3, uploaded)
    assert [key for key in results if key.endswith("manifest.json")] == ["manifest.json"]
    manifest = json.loads(results["manifest.json"])
    assert (manifest["attempt"], manifest["training"]["steps"]) == ("b-0", 60)
    assert {file["path"] for file in manifest["files"]} | {"manifest.json"} == set(results) - attempts(results)
    assert "total_steps" not in second.output, "rank 0 alone reports"


def attempts(results: dict[str, bytes]) -> set[str]:
    """Records of attempts, which no manifest lists."""
    return {key for key in results if key.startswith("attempts/") and key.count("/") == 1}


@pytest.mark.parametrize(("lost", "how"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_when_a_pod_is_gone_or_frozen_the_other_ends_with_76(
    lost: int, how: signal.Signals, s3: S3Server, uploaded: str, tiny_sd: Path, tmp_path: Path, cleaner: ExitStack
) -> None:
    """The other one is blocked in C, waiting for gradients that never come."""
    spec = spec_of(s3, uploaded, tiny_sd, FOREVER, nodes=2)
    group = started(cleaner, Pod(tmp_path, spec, uid="a-0"), Pod(tmp_path, spec, uid="a-1"))
    group[0].read_until(trains)
    ranks, began = group[lost].ranks, time.monotonic()
    if how == signal.SIGKILL:
        group[lost].process.kill()
    else:
        group[lost].signal_all(how)
    ended = group[1 - lost].ended(NOTICED_SECONDS)
    assert time.monotonic() - began < NOTICED_SECONDS
    assert (ended.code, ended.result.outcome) == (76, "PeerLost"), ended.output
    if how == signal.SIGSTOP:
        assert "no heartbeat for 4 s" in ended.result.message
        # what thaws finds that the group has gone on without it
        group[lost].signal_all(signal.SIGCONT)
        assert group[lost].code(NOTICED_SECONDS) == 76
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive, "a training process never outlives its supervisor"


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        (signal.SIGKILL, 137, "process 1 of the group: killed by SIGKILL"),
        (signal.SIGSTOP, 76, "process 1 is frozen"),
    ],
)
def test_processes_of_one_pod_end_together(
    how: signal.Signals,
    code: int,
    message: str,
    s3: S3Server,
    uploaded: str,
    tiny_sd: Path,
    tmp_path: Path,
    cleaner: ExitStack,
) -> None:
    spec = spec_of(s3, uploaded, tiny_sd, FOREVER, processesPerNode=2)
    (pod,) = started(cleaner, Pod(tmp_path, spec, uid="a-0"))
    pod.read_until(trains)
    pod.ranks[1].send_signal(how)
    ended = pod.ended(NOTICED_SECONDS)
    assert (ended.code, ended.result.message) == (code, message), ended.output


def test_a_mistake_that_one_pod_finds_is_told_by_all(
    s3: S3Server, uploaded: str, tiny_sd: Path, tmp_path: Path, cleaner: ExitStack
) -> None:
    """The operator listens to the first pod, and the mistake is final wherever it is found."""
    spec = spec_of(s3, uploaded, tiny_sd, 5, nodes=2)
    group = started(cleaner, Pod(tmp_path, spec, uid="a-0"), Pod(tmp_path, spec, uid="a-1", secret_key="wrong"))
    ends = [member.ended() for member in group]
    assert [end.code for end in ends] == [78, 78], ends[0].output
    assert ends[0].result.outcome == ends[1].result.outcome == "BadConfiguration"
    assert "spec.dataset.secretRef.name s3-credentials" in ends[0].result.message == ends[1].result.message


def test_a_pod_waits_for_its_group_and_stops_when_it_is_told(
    s3: S3Server, uploaded: str, tiny_sd: Path, tmp_path: Path, cleaner: ExitStack
) -> None:
    spec = spec_of(s3, uploaded, tiny_sd, 5, nodes=2)
    stranger = Pod(tmp_path / "elsewhere", {**spec, "training": {"steps": 6}}, uid="x")
    (tmp_path / "elsewhere").mkdir()
    group = started(cleaner, Pod(tmp_path, spec, uid="a-0"), stranger)
    group[0].read_until(lambda line: "it is not of this group" in line["message"])
    group[0].process.send_signal(signal.SIGTERM)
    ended = group[0].ended()
    assert (ended.code, ended.result.outcome) == (75, "Interrupted")
    assert "waiting for the group" in ended.result.message
