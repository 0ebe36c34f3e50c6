"""What the operator remembers of each object: a few fields, taken from what the API server sent."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from finetune_operator.specs.naming import (
    INDEX_LABEL,
    JOB_LABEL,
    JOB_UID_LABEL,
    LONGEST_DEADLINE_ANNOTATION,
    NODE_LOST_ANNOTATION,
    QUEUE_LABEL,
    RETRIES_BEFORE_ANNOTATION,
    RUN_DIGEST_ANNOTATION,
)

Object = dict[str, Any]
CONTAINER = "trainer"


class Key(NamedTuple):
    """Names a FineTuneJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class JobState:
    """A FineTuneJob. Spec and status are kept as JSON: compact, and parsed only when it is reconciled."""

    key: Key
    uid: str
    version: int
    generation: int
    created: str
    deleting: bool
    spec_json: bytes
    status_json: bytes
    phase: str

    @property
    def spec(self) -> Object:
        return dict(json.loads(self.spec_json))

    @property
    def status(self) -> Object:
        return dict(json.loads(self.status_json))


@dataclass(frozen=True, slots=True)
class ProfileState:
    """A FineTuneProfile."""

    name: str
    uid: str
    version: int
    is_default: bool
    spec_json: bytes

    @property
    def spec(self) -> Object:
        return dict(json.loads(self.spec_json))


@dataclass(frozen=True, slots=True)
class ChildState:
    """The batch/v1 Job of a FineTuneJob."""

    key: Key
    uid: str
    owner_uid: str
    version: int
    created: str
    deleting: bool
    backoff_limit: int
    retries_before: int
    suspended: bool
    """Somebody holds it back; pods are neither made nor kept."""
    queue: str
    """Kueue's LocalQueue; empty for none."""
    nodes: int
    """Pods that train together."""
    started_at: str | None
    """Since when pods are asked for, as the Job controller says."""
    node_lost: str
    """The profile's nodeLost when the Job was made."""
    longest_deadline: int | None
    """The profile's limit of the active deadline when the Job was made."""
    run_digest: str
    failed: int
    complete: bool
    failure: str | None
    """Reason of the condition Failed, when it is true."""
    failure_message: str
    finished_at: str | None


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod of a FineTuneJob's Job."""

    key: Key
    job: Key
    owner_uid: str
    """UID of the FineTuneJob."""
    job_uid: str
    """UID of the Job that made it."""
    index: int
    """Its rank among the pods that train together."""
    uid: str
    version: int
    created: str
    deletion_at: str | None
    """When its grace is over, for a pod that was told to stop."""
    phase: str
    ip: str
    node: str
    image: str
    unschedulable: str
    """Message of the condition PodScheduled, when it is false."""
    disruption: str
    """Reason of the condition DisruptionTarget, when it is true."""
    pod_reason: str
    """status.reason, such as Evicted."""
    waiting_reason: str
    waiting_message: str
    running: bool
    exit_code: int | None
    exit_reason: str
    """The container's own reason, such as OOMKilled."""
    termination_message: str
    finished_at: str | None
    gone: bool = False
    """The pod object no longer exists; kept until its end stands in the FineTuneJob's status."""

    @property
    def deleting(self) -> bool:
        return self.deletion_at is not None

    @property
    def ended(self) -> bool:
        return self.gone or self.phase in ("Succeeded", "Failed")

    @property
    def has_worked(self) -> bool:
        """Whether its container was ever started, or the pod failed without."""
        return self.running or self.exit_code is not None or self.phase in ("Running", "Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Warned:
    """A Warning Event of a Job: why the Job controller could not make a pod."""

    job: Key
    job_uid: str
    reason: str
    message: str
    at: str


def version_of(body: Object) -> int:
    """resourceVersion as a number, so that of two states the newer can be told; 0 if it is none."""
    text = str(body.get("metadata", {}).get("resourceVersion") or "")
    return int(text) if text.isdigit() else 0


def _number(text: object) -> int | None:
    return int(text) if isinstance(text, str) and text.isdigit() else None


def _compact(value: object) -> bytes:
    return json.dumps(value or {}, separators=(",", ":"), sort_keys=True).encode()


def job_state(body: Object) -> JobState:
    """From a FineTuneJob."""
    meta = body["metadata"]
    status = body.get("status") or {}
    return JobState(
        key=Key(meta["namespace"], meta["name"]),
        uid=meta["uid"],
        version=version_of(body),
        generation=int(meta.get("generation") or 0),
        created=meta["creationTimestamp"],
        deleting=bool(meta.get("deletionTimestamp")),
        spec_json=_compact(body.get("spec")),
        status_json=_compact(status),
        phase=str(status.get("phase") or "Pending"),
    )


def profile_state(body: Object) -> ProfileState:
    """From a FineTuneProfile."""
    meta = body["metadata"]
    spec = body.get("spec") or {}
    return ProfileState(
        name=meta["name"],
        uid=meta["uid"],
        version=version_of(body),
        is_default=bool(spec.get("isDefault")),
        spec_json=_compact(spec),
    )


def controller_uid(body: Object) -> str:
    """UID of the owner that controls the object; empty for none."""
    for owner in body["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            return str(owner["uid"])
    return ""


def _true_condition(status: Object, name: str) -> Object | None:
    for condition in status.get("conditions") or []:
        if condition.get("type") == name and condition.get("status") == "True":
            return dict(condition)
    return None


def child_state(body: Object) -> ChildState:
    """From a batch/v1 Job."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    annotations = meta.get("annotations") or {}
    complete, failed = _true_condition(status, "Complete"), _true_condition(status, "Failed")
    end = complete or failed or {}
    return ChildState(
        key=Key(meta["namespace"], meta["name"]),
        uid=meta["uid"],
        owner_uid=controller_uid(body),
        version=version_of(body),
        created=meta["creationTimestamp"],
        deleting=bool(meta.get("deletionTimestamp")),
        backoff_limit=int(spec.get("backoffLimit", 6)),
        retries_before=_number(annotations.get(RETRIES_BEFORE_ANNOTATION)) or 0,
        suspended=bool(spec.get("suspend")),
        queue=str((meta.get("labels") or {}).get(QUEUE_LABEL) or ""),
        nodes=int(spec.get("completions") or 1),
        started_at=status.get("startTime"),
        node_lost=str(annotations.get(NODE_LOST_ANNOTATION) or ""),
        longest_deadline=_number(annotations.get(LONGEST_DEADLINE_ANNOTATION)),
        run_digest=str(annotations.get(RUN_DIGEST_ANNOTATION) or ""),
        failed=int(status.get("failed") or 0),
        complete=complete is not None,
        failure=str(failed.get("reason") or "Failed") if failed else None,
        failure_message=str(failed.get("message") or "") if failed else "",
        finished_at=end.get("lastTransitionTime"),
    )


def pod_state(body: Object) -> PodState:
    """From a pod that carries the label of its FineTuneJob."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    containers = [c for c in status.get("containerStatuses") or [] if c.get("name") == CONTAINER]
    state = (containers[0].get("state") or {}) if containers else {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    unschedulable = ""
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            unschedulable = str(condition.get("message") or condition.get("reason") or "")
    disruption = _true_condition(status, "DisruptionTarget") or {}
    labels = meta.get("labels") or {}
    return PodState(
        key=Key(meta["namespace"], meta["name"]),
        job=Key(meta["namespace"], labels.get(JOB_LABEL, "")),
        owner_uid=labels.get(JOB_UID_LABEL, ""),
        job_uid=controller_uid(body),
        index=_number(labels.get(INDEX_LABEL)) or 0,
        uid=meta["uid"],
        version=version_of(body),
        created=meta["creationTimestamp"],
        deletion_at=meta.get("deletionTimestamp"),
        phase=str(status.get("phase") or "Pending"),
        ip=str(status.get("podIP") or ""),
        node=str(spec.get("nodeName") or ""),
        image=next((str(c.get("image", "")) for c in spec.get("containers") or []), ""),
        unschedulable=unschedulable,
        disruption=str(disruption.get("reason") or ""),
        pod_reason=str(status.get("reason") or ""),
        waiting_reason=str(waiting.get("reason") or ""),
        waiting_message=str(waiting.get("message") or ""),
        running="running" in state,
        exit_code=ended.get("exitCode"),
        exit_reason=str(ended.get("reason") or ""),
        termination_message=str(ended.get("message") or ""),
        finished_at=ended.get("finishedAt"),
    )


def gone(pod: PodState) -> PodState:
    """The pod after it was deleted."""
    return replace(pod, gone=True, running=False)


def warned(body: Object) -> Warned:
    """From a core/v1 Event about a Job."""
    about = body.get("involvedObject") or {}
    at = body.get("lastTimestamp") or body.get("eventTime") or body["metadata"].get("creationTimestamp") or ""
    series = body.get("series") or {}
    return Warned(
        job=Key(str(about.get("namespace") or body["metadata"]["namespace"]), str(about.get("name") or "")),
        job_uid=str(about.get("uid") or ""),
        reason=str(body.get("reason") or ""),
        message=str(body.get("message") or ""),
        at=str(series.get("lastObservedTime") or at),
    )
