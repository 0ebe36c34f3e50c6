"""What status says of a job's making and of its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.progress import Result
from finetune_api.status import ArtifactsStatus, ResolvedStatus
from finetune_api.training_run import RunIdentity

from finetune_operator.specs.configmap import Snapshot
from finetune_operator.specs.naming import snapshot_name

MANIFEST = "manifest.json"


def resolved_status(old: ResolvedStatus | None, snapshot: Snapshot, identity: RunIdentity) -> ResolvedStatus:
    """status.resolved of a job that was accepted as `snapshot` says."""
    profile = snapshot.profile
    return ResolvedStatus(
        profile=snapshot.profile_name or None,
        image=profile.image,
        resources=profile.resources,
        run_sha256=snapshot.digest,
        profile_sha256=snapshot.profile_digest,
        run_config_map=snapshot_name(identity),
        base_model_revision=old.base_model_revision if old is not None else None,
    )


def with_revision(resolved: ResolvedStatus | None, result: Result | None) -> ResolvedStatus | None:
    """status.resolved after the trainer said which revision of the base model it took."""
    if resolved is None or result is None or result.base_model_revision is None:
        return resolved
    return resolved.model_copy(update={"base_model_revision": result.base_model_revision})


def artifacts_of(result: Result | None, spec: Mapping[str, Any]) -> ArtifactsStatus:
    """status.artifacts: what the trainer reported, or where the results must be."""
    uri = str(spec["output"]["uri"])
    if result is None or result.uri is None:
        return ArtifactsStatus(uri=uri, manifest_uri=f"{uri.rstrip('/')}/{MANIFEST}")
    return ArtifactsStatus(
        uri=result.uri,
        manifest_uri=result.manifest_uri,
        manifest_sha256=result.manifest_sha256,
        weights=list(result.weights) or None,
    )
