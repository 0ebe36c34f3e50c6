"""A process of a group whose memory does not suffice: the group begins again with a leaner plan, and that costs no
retry. Pods are real processes; what torch raises on a full GPU is raised in one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from finetune_api import ExitCode
from support.groups import GroupPod, start_group
from support.runs import Pod, spec_in_s3
from support.s3_server import S3Server

STEPS = 6
FULL_AT = 3
"""Steps that are done by then: a checkpoint of the second one is there."""
PATIENCE = 300.0
"""Seconds, for machines that are busy with other things."""
PLAN = "results/checkpoints/run-1/plan.json"
INJECTED = f"""
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

class Full(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "finetune_trainer.engines.eager":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            fill(module.EagerEngine)
        spec.loader.exec_module = exec_module
        return spec

def fill(engine):
    import torch
    step, done = engine.step, []
    def limited(self, batches, factor):
        twice = any(vars(block).get("gradient_checkpointing", False) for block in self._module.modules())
        if torch.distributed.get_rank() == 1 and len(done) == {FULL_AT} and not twice:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        done.append(None)
        return step(self, batches, factor)
    engine.step = limited

sys.meta_path.insert(0, Full())
"""
"""Python runs it first thing: a GPU of the second process that is full while activations are kept."""


@pytest.fixture
def cleaner() -> Iterator[ExitStack]:
    """No process survives a test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def spec(s3: S3Server, bucket: str, pictures: Path, tiny_sd: Path) -> dict[str, Any]:
    s3.put(bucket, {f"pictures/{p.name}": p.read_bytes() for p in pictures.iterdir()})
    drawn = {"prompts": ["sks dog"], "imagesPerPrompt": 1, "inferenceSteps": 1}
    plain = spec_in_s3(s3, bucket, tiny_sd, steps=STEPS, batchSize=2)
    return {**plain, "engine": {"nodes": 2}, "validation": drawn, "checkpoints": {"everySteps": 2}}


def started(spec: dict[str, Any], folder: Path, attempt: str, cleaner: ExitStack) -> list[GroupPod]:
    group = start_group([Pod(folder, spec, uid=f"{attempt}-{node}") for node in range(2)])
    for member in group:
        cleaner.callback(member.bury)
    return group


def keys(s3: S3Server, bucket: str) -> list[str]:
    listed = s3.client().list_objects_v2(Bucket=bucket, Prefix="results/")
    return [found["Key"] for found in listed.get("Contents", [])]


def test_the_group_begins_again_with_a_leaner_plan(
    spec: dict[str, Any],
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
    cleaner: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "injected").mkdir()
    (tmp_path / "injected" / "sitecustomize.py").write_text(INJECTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "injected"))

    first, second = started(spec, tmp_path, "a", cleaner)
    ends = [first.ended(PATIENCE), second.ended(PATIENCE)]
    said = "Replicated ran out of memory; the next attempt begins with Replicated, activations computed twice"
    assert [end.code for end in ends] == [76, 76], ends[0].output + ends[1].output
    assert not ExitCode(76).counts
    assert f"process 1 of the group: {said}, with all processes of the group" in ends[0].result.message
    assert PLAN in keys(s3, bucket)

    first, second = started(spec, tmp_path, "b", cleaner)
    resumed = first.ended(PATIENCE)
    assert (resumed.code, second.code(PATIENCE)) == (0, 0), resumed.output + second.output
    engines = [line["message"] for line in resumed.lines if line["message"].startswith("engine: ")]
    assert engines == ["engine: Replicated, activations computed twice (Replicated ran out of memory)"]
    assert resumed.result.resumed_from_step == 2
    assert "results/manifest.json" in keys(s3, bucket)
    assert PLAN not in keys(s3, bucket), "nobody needs it any more"
    body = s3.client().get_object(Bucket=bucket, Key="results/manifest.json")["Body"].read()
    assert json.loads(body)["training"]["steps"] == STEPS
