"""spec.engine is one choice: which of its fields go together, and what becomes of a profile's."""

from __future__ import annotations

import pytest
from bad_specs import GOOD
from finetune_api import FineTuneJobSpec, FineTuneProfileSpec, RunIdentity, resolve
from finetune_api.engine import EngineSpec
from finetune_api.rules import to_snake

ZERO_3 = {"kind": "DeepSpeed", "zeroStage": 3}
ON_DISK = {"offloadParameters": "Nvme", "nvmePath": "/fast"}


def of(fields: dict[str, object]) -> EngineSpec:
    """Not checked."""
    return EngineSpec.model_construct(
        **{to_snake(key): value for key, value in fields.items()}  # type: ignore[arg-type]  # fields of several types
    )


@pytest.mark.parametrize(
    ("fields", "broken"),
    [
        ({}, []),
        ({"nodes": 2, "processesPerNode": 8}, []),
        ({"kind": "Replicated", "processesPerNode": 2}, []),
        ({"kind": "Sharded", "nodes": 2, "offloadParameters": "Cpu"}, []),
        ({"kind": "DeepSpeed"}, []),
        ({"kind": "DeepSpeed", "offloadOptimizer": "Cpu"}, []),
        ({**ZERO_3, "offloadOptimizer": "Cpu", "offloadParameters": "Cpu"}, []),
        ({**ZERO_3, "offloadOptimizer": "Nvme", **ON_DISK}, []),
        ({"kind": "Captured", "nodes": 1}, []),
        ({"kind": "Captured", "nodes": 2}, ["nodes above 1 cannot be used with kind"]),
        ({"kind": "Compiled", "processesPerNode": 2}, ["processesPerNode above 1 cannot be used"]),
        ({"kind": "Sharded", "zeroStage": 3}, ["zeroStage can only be set with kind: DeepSpeed"]),
        ({"zeroStage": 1}, ["zeroStage can only be set"]),
        ({"kind": "Sharded", "offloadOptimizer": "Cpu"}, ["offloadOptimizer: Cpu or Nvme needs kind: DeepSpeed"]),
        ({"kind": "DeepSpeed", "zeroStage": 2, "offloadParameters": "Cpu"}, ["needs zeroStage: 3 or kind: Sharded"]),
        ({"kind": "DeepSpeed", "offloadParameters": "Cpu"}, ["needs zeroStage: 3 or kind: Sharded"]),
        ({"kind": "Sharded", **ON_DISK}, ["offloadParameters: Nvme needs zeroStage: 3,"]),
        ({**ZERO_3, "offloadParameters": "Nvme"}, ["offloadParameters: Nvme needs nvmePath"]),
        ({**ZERO_3, "offloadOptimizer": "Cpu", "nvmePath": "/fast"}, ["nvmePath can only be set with"]),
        ({**ZERO_3, "offloadOptimizer": "Nvme", "nvmePath": "fast"}, ["nvmePath must be an absolute path"]),
        ({**ZERO_3, "offloadOptimizer": "Nvme", "nvmePath": "/usr/lib"}, ["nvmePath must not be a folder of the"]),
    ],
)
def test_fields_that_go_together(fields: dict[str, object], broken: list[str]) -> None:
    found = [rule.message for rule in EngineSpec.rules if not rule.holds(of(fields))]
    assert len(found) == len(broken), found
    assert all(words in message for words, message in zip(broken, found, strict=True))


@pytest.mark.parametrize(
    ("path", "stands"),
    [
        ("/scratch/offload", True),
        ("/fast", True),
        ("/mnt/nvme0", True),
        ("/home/me/.cache/offload", True),
        ("/var/tmp/offload", True),
        ("/var/lib/finetune/offload", True),
        ("/devices", True),
        ("/", False),
        ("/fast/", False),
        ("//fast", False),
        ("/fast/./offload", False),
        ("/fast/../etc", False),
        ("/fast:/x", False),
        ("/dev/shm", False),
        ("/etc", False),
        ("/lib64/x", False),
        ("/var", False),
        ("/var/lib", False),
        ("/var/cache/finetune/offload", False),
        ("/var/run/finetune", False),
        ("/mnt/finetune/dataset", False),
    ],
)
def test_where_a_disk_can_be(path: str, stands: bool) -> None:
    offload = of({**ZERO_3, "offloadOptimizer": "Nvme", "nvmePath": path})
    assert all(rule.holds(offload) for rule in EngineSpec.rules) is stands


def merged(job: dict[str, object] | None, profile: dict[str, object]) -> EngineSpec:
    spec = FineTuneJobSpec.model_validate({**GOOD["spec"], **({"engine": job} if job is not None else {})})
    offer = FineTuneProfileSpec.model_validate({"defaults": {"engine": profile}})
    return resolve(spec, offer, RunIdentity(name="face", namespace="team-a", uid="0")).engine


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (None, {**ZERO_3, "offloadOptimizer": "Nvme", **ON_DISK, "nodes": 2}),
        ({"nodes": 3}, {**ZERO_3, "offloadOptimizer": "Nvme", **ON_DISK, "nodes": 3}),
        ({"kind": "Auto"}, {"kind": "Auto", "nodes": 2}),
        ({"kind": "DeepSpeed"}, {"kind": "DeepSpeed", "zeroStage": 2, "nodes": 2}),
        ({"kind": "DeepSpeed", "zeroStage": 1}, {"kind": "DeepSpeed", "zeroStage": 1, "nodes": 2}),
        (
            {"offloadOptimizer": "None", "offloadParameters": "None"},
            {**ZERO_3, "offloadOptimizer": "None", "offloadParameters": "None", "nodes": 2},
        ),
    ],
)
def test_a_job_that_names_a_kind_takes_none_of_the_profiles_options(
    job: dict[str, object] | None, expected: dict[str, object]
) -> None:
    profile: dict[str, object] = {**ZERO_3, "offloadOptimizer": "Nvme", **ON_DISK, "nodes": 2}
    assert merged(job, profile).wire() == expected
