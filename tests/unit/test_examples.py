"""What people copy: each example is well, whole and with the profile that it names; the API server is asked the same in
tests/contract/test_admission.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api import Asked, FineTuneJob, FineTuneProfile, RunIdentity, TrainingRun, resolve
from finetune_api.limits import refusals

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*.yaml"))
CHARTS_OWN = "cpu-tiny"


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


PROFILES = {one["metadata"]["name"]: one for file in FILES for one in documents(file) if one["kind"] != "FineTuneJob"}
JOBS = [pytest.param(one, id=f"{file.name}-{n}") for file in FILES for n, one in enumerate(documents(file))]
JOBS = [job for job in JOBS if job.values[0]["kind"] == "FineTuneJob"]


def resolved(document: dict[str, Any]) -> TrainingRun:
    job = FineTuneJob.model_validate(document)
    name = job.spec.profile_name
    profile = None
    if name not in (None, CHARTS_OWN):
        profile = FineTuneProfile.model_validate(PROFILES[name])
        assert refusals(Asked(job.spec.wire(), profile.spec.wire(), name, "default")) == ()
    identity = RunIdentity(name=job.metadata.name or "", namespace="default", uid="1")
    return resolve(job.spec, profile.spec if profile is not None else None, identity)


@pytest.mark.parametrize("document", JOBS)
def test_an_example_can_be_applied(document: dict[str, Any]) -> None:
    assert resolved(document).method.name in document["spec"]["method"]


def test_there_is_one_that_offloads() -> None:
    (document,) = [one for one in documents(ROOT / "examples/sd15-dreambooth-offload.yaml") if "engine" in one["spec"]]
    engine = resolved(document).engine
    assert (engine.kind, engine.zero_stage, engine.offload_optimizer) == ("DeepSpeed", 2, "Cpu")
    # as its comment says
    document["spec"]["engine"] |= {"zeroStage": 3, "offloadParameters": "Cpu"}
    assert resolved(document).engine.offload_parameters == "Cpu"
