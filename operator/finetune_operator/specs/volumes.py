"""Volumes of the training pod: the run, scratch space, a disk for offload, Secrets by role, and claims. Never a
hostPath."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from finetune_api.profile import FineTuneProfileSpec
from finetune_api.storage import SecretRef
from finetune_api.training_run import TrainingRun

from finetune_operator.specs.configmap import RUN_KEY
from finetune_operator.specs.naming import snapshot_name

RUN_DIR = "/etc/finetune/run"
WORK_DIR = "/var/lib/finetune"
CACHE_DIR = "/var/cache/finetune"
CREDENTIALS_DIR = "/var/run/finetune/credentials"
INPUT_DIR = "/mnt/finetune"
SCRATCH_SIZE = "20Gi"


@dataclass
class Volumes:
    """volumes and volumeMounts of a pod, as they grow."""

    volumes: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, source: dict[str, Any], path: str, read_only: bool = False) -> None:
        """One volume, mounted once."""
        self.volumes.append({"name": name, **source})
        mount: dict[str, Any] = {"name": name, "mountPath": path}
        self.mounts.append({**mount, "readOnly": True} if read_only else mount)


def volumes_of(run: TrainingRun, profile: FineTuneProfileSpec) -> Volumes:
    """All volumes of the pod that carries out `run`."""
    result = Volumes()
    items = [{"key": RUN_KEY, "path": RUN_KEY}]
    config_map = {"name": snapshot_name(run.identity), "items": items}
    result.add("run", {"configMap": config_map}, RUN_DIR, read_only=True)
    scratch = {"sizeLimit": profile.scratch_size_limit or SCRATCH_SIZE}
    result.add("scratch", {"emptyDir": scratch}, WORK_DIR)
    offload = run.engine.nvme_path
    if offload is not None and not f"{offload}/".startswith(f"{WORK_DIR}/"):
        # finetune_api.engine refuses paths where another volume or the system is
        result.add("offload", {"emptyDir": {**scratch}}, offload)
    for role, secret in _secrets(run).items():
        # optional: a pod that waits for a Secret says nothing; the trainer names the field and the remedy
        source = {"secret": {"secretName": secret.name, "optional": True, "defaultMode": 0o440}}
        result.add(f"credentials-{role}", source, f"{CREDENTIALS_DIR}/{role}", read_only=True)
    for role, uri in {"base-model": run.base_model.uri, "dataset": run.dataset.uri}.items():
        claim = claim_of(uri)
        if claim is not None:
            source = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            result.add(f"input-{role}", source, f"{INPUT_DIR}/{role}", read_only=True)
    if profile.cache is not None:
        claim_source = {"persistentVolumeClaim": {"claimName": profile.cache.claim_name}}
        result.add("cache", claim_source, CACHE_DIR)
    return result


def claim_of(uri: str) -> str | None:
    """pvc://claim/path → claim; None for any other URI."""
    parts = urlsplit(uri)
    return parts.netloc if parts.scheme == "pvc" else None


def _secrets(run: TrainingRun) -> dict[str, SecretRef]:
    named = {
        "base-model": run.base_model.secret_ref,
        "dataset": run.dataset.secret_ref,
        "output": run.output.secret_ref,
    }
    return {role: secret for role, secret in named.items() if secret is not None}
