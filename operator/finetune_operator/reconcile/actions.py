"""What a plan may ask for. Each is safe to do twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api.status import FineTuneJobStatus
from finetune_api.training_run import RunIdentity

from finetune_operator.specs.configmap import Snapshot
from finetune_operator.specs.job import Queue


@dataclass(frozen=True)
class CreateSnapshot:
    """POST the ConfigMap; with `replace`, after deleting one that we did not make."""

    identity: RunIdentity
    snapshot: Snapshot
    replace: bool = False


@dataclass(frozen=True)
class CreateChild:
    """POST the Service and the Job, after a last look at the FineTuneJob itself."""

    snapshot: Snapshot
    service_account: str | None
    backoff_limit: int
    retries_before: int
    queue: Queue | None = None


@dataclass(frozen=True)
class SetBackoffLimit:
    """PATCH the Job after spec.runPolicy.retries was edited."""

    uid: str
    value: int


@dataclass(frozen=True)
class DeleteChild:
    """DELETE the Job; in the foreground it stays until its pods are gone."""

    uid: str


@dataclass(frozen=True)
class DeleteJob:
    """DELETE the FineTuneJob itself: its TTL is over."""

    uid: str


@dataclass(frozen=True)
class DeletePod:
    """DELETE a pod that does not end with its group. With `force`: its node no longer answers, so it is first declared
    failed, as the cluster's own pod collector does, and then deleted without waiting for anybody."""

    name: str
    uid: str
    node: str
    force: bool = False


Action = CreateSnapshot | CreateChild | SetBackoffLimit | DeleteChild | DeleteJob | DeletePod


@dataclass(frozen=True)
class Announcement:
    """An Event for people. `mark` tells repetitions of the same news from new ones of the same reason."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str
    mark: str = ""


@dataclass(frozen=True)
class Plan:
    """What follows from an observation."""

    status: FineTuneJobStatus | None = None
    """None: leave it."""
    actions: tuple[Action, ...] = ()
    announcements: tuple[Announcement, ...] = ()
    requeue_after: float | None = None
    """Seconds until time alone may change the plan."""
    look: bool = False
    """Children seem to be missing: ask the API server itself before anything is concluded."""
