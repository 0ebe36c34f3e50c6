"""The snapshot: the TrainingRun and the profile as they were when the job was accepted, in an immutable ConfigMap."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune_api.profile import FineTuneProfileSpec
from finetune_api.training_run import RunIdentity, TrainingRun

from finetune_operator.specs.naming import metadata, snapshot_name

RUN_KEY = "run.json"
PROFILE_KEY = "profile.json"
PROFILE_NAME_KEY = "profile"


@dataclass(frozen=True)
class Snapshot:
    """What was decided when the job was accepted. `run_json` is what pods get, to the byte."""

    run_json: str
    profile_json: str
    profile_name: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of run_json, in hex."""
        return hashlib.sha256(self.run_json.encode()).hexdigest()

    @property
    def profile_digest(self) -> str:
        """SHA-256 of profile_json, in hex."""
        return hashlib.sha256(self.profile_json.encode()).hexdigest()

    @cached_property
    def run(self) -> TrainingRun:
        return TrainingRun.from_json(self.run_json)

    @cached_property
    def profile(self) -> FineTuneProfileSpec:
        """The profile, image filled in."""
        return FineTuneProfileSpec.model_validate_json(self.profile_json)


def snapshot_of(run: TrainingRun, profile: FineTuneProfileSpec, profile_name: str = "") -> Snapshot:
    """The snapshot of a job that was accepted; `profile` must name an image."""
    profile_json = profile.model_dump_json(by_alias=True, exclude_none=True, exclude_unset=True)
    return Snapshot(run.to_json(), profile_json, profile_name)


def snapshot_config_map(identity: RunIdentity, snapshot: Snapshot) -> dict[str, Any]:
    """The ConfigMap that holds the snapshot."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(identity, snapshot_name(identity)),
        "immutable": True,
        "data": {
            RUN_KEY: snapshot.run_json,
            PROFILE_KEY: snapshot.profile_json,
            PROFILE_NAME_KEY: snapshot.profile_name,
        },
    }


def snapshot_in(config_map: dict[str, Any]) -> Snapshot:
    """Reads back what snapshot_config_map wrote. Something else gives a snapshot that no job was accepted with."""
    data = config_map.get("data") or {}
    return Snapshot(data.get(RUN_KEY) or "", data.get(PROFILE_KEY) or "", data.get(PROFILE_NAME_KEY) or "")
