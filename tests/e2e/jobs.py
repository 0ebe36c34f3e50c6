"""FineTuneJobs as the end-to-end tests apply them, and what is asked of their status and results."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from support.cluster import Cluster, Namespace, manifest

ROOT = Path(__file__).parents[2]
BRIEF_STEPS = 500
Job = dict[str, Any]
Weights = dict[str, str]
"""Path → SHA-256 of each published weight file."""


def example(name: str, namespace: Namespace, **spec: Any) -> Job:
    """The FineTuneJob of examples/`name`, writing to a prefix of this test's own; `spec` replaces parts of it."""
    job = yaml.safe_load((ROOT / "examples" / name).read_text())
    job["spec"]["output"]["uri"] = f"s3://models/{namespace.name}/{job['metadata']['name']}/"
    job["spec"].update(copy.deepcopy(spec))
    return job


def named(job: Job, name: str) -> Job:
    """The same job under another name, writing elsewhere."""
    other = copy.deepcopy(job)
    other["metadata"]["name"] = name
    other["spec"]["output"]["uri"] = other["spec"]["output"]["uri"].replace(job["metadata"]["name"], name)
    return other


def brief(namespace: Namespace, name: str = "brief", *, steps: int = BRIEF_STEPS, **spec: Any) -> Job:
    """A LoRA of a minute with a checkpoint every 5 s. With the same `steps` it has the same weights, always."""
    secret = {"name": "s3-credentials"}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "profileName": "cpu-tiny",
            "baseModel": {"uri": "builtin://tiny-shapes"},
            "method": {"lora": {"prompt": "a photo of a sks circle"}},
            "dataset": {"uri": "s3://pictures/figure/", "secretRef": secret},
            "training": {"steps": steps, "batchSize": 4, "learningRate": 0.001},
            "checkpoints": {"everySeconds": 5},
            "validation": {"imagesPerPrompt": 1, "inferenceSteps": 1},
            "output": {"uri": f"s3://models/{namespace.name}/{name}/", "secretRef": secret},
        }
        | copy.deepcopy(spec),
    }


@contextmanager
def profile(cluster: Cluster, name: str, **spec: Any) -> Iterator[str]:
    """A FineTuneProfile like the demo's cpu-tiny, with `spec` in place of parts of it."""
    found = json.loads(cluster.kubectl("get", "finetuneprofile", "cpu-tiny", "--output", "json"))
    body = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": name},
        "spec": found["spec"] | {"isDefault": False} | copy.deepcopy(spec),
    }
    cluster.kubectl("apply", "--filename", "-", stdin=manifest(body))
    try:
        yield name
    finally:
        cluster.kubectl("delete", "finetuneprofile", name)


def condition(job: Job, kind: str) -> dict[str, str]:
    """The condition of that type, or one that says nothing."""
    conditions = job.get("status", {}).get("conditions", [])
    nothing = {"status": "Unknown", "reason": "", "message": ""}
    return next((c for c in conditions if c["type"] == kind), nothing)


def has(kind: str, status: str = "True", reason: str | None = None) -> Callable[[Job], bool]:
    def holds(job: Job) -> bool:
        found = condition(job, kind)
        return found["status"] == status and reason in (None, found["reason"])

    return holds


def ended(job: Job) -> bool:
    return has("Succeeded")(job) or has("Failed")(job)


def step(job: Job) -> int:
    return job.get("status", {}).get("progress", {}).get("step", 0)


def attempts(job: Job) -> list[dict[str, Any]]:
    """What status tells of each pod that worked on the job, oldest first."""
    return job.get("status", {}).get("attempts", [])


def trains(attempt: int, beyond: int = 0) -> Callable[[Job], bool]:
    """Whether the attempt of that number (from 1; of those that came to train) has done `beyond` steps more than it
    found. Raises AssertionError when the job ends before."""

    def holds(job: Job) -> bool:
        assert not ended(job), f"the job has ended before attempt {attempt} did {beyond} steps: {job['status']}"
        made = [one for one in attempts(job) if one.get("step") is not None]
        if len(made) < attempt:
            return False
        latest = made[attempt - 1]
        return bool(latest["step"] > latest.get("resumedFromStep", 0) + beyond)

    return holds


@dataclass(frozen=True)
class Results:
    """What a job published, downloaded and checked against its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def weights(self) -> Path:
        return self.folder / self.manifest["weights"][0]

    def digests_of_weights(self) -> Weights:
        """Below the attempt's folder, which every pod has for itself: path → SHA-256 of each weight file."""
        prefix = self.manifest["weights"][0].rsplit("/", 1)[0]
        return {
            f["path"].removeprefix(f"attempts/{self.manifest['attempt']}/"): f["sha256"]
            for f in self.manifest["files"]
            if f["path"].startswith(prefix) and f["path"].endswith(".safetensors")
        }


def download(s3: Any, job: Job, folder: Path) -> Results:
    """Fetches all that manifest.json names. Raises AssertionError where size or digest differ."""
    artifacts = job["status"]["artifacts"]
    bucket, _, prefix = artifacts["uri"].removeprefix("s3://").partition("/")
    key = artifacts["manifestUri"].removeprefix(f"s3://{bucket}/")
    text = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    assert hashlib.sha256(text).hexdigest() == artifacts["manifestSha256"]
    manifest = json.loads(text)
    for file in manifest["files"]:
        target = folder / file["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, f"{prefix.rstrip('/')}/{file['path']}", str(target))
        content = target.read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"]), file["path"]
    return Results(folder, manifest)
