"""All that a plan may depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from finetune_api.run_policy import RunPolicySpec
from finetune_api.status import Condition, FineTuneJobStatus
from finetune_api.training_run import RunIdentity

from finetune_operator.policies.queueing import QueueNote
from finetune_operator.policies.readiness import Readiness
from finetune_operator.progress.reading import Reading
from finetune_operator.projections import ChildState, PodState, ProfileState, Warned
from finetune_operator.specs.configmap import Snapshot


@dataclass(frozen=True)
class Observed:
    """One FineTuneJob and everything around it."""

    identity: RunIdentity
    generation: int
    created: datetime
    deleting: bool
    spec: Mapping[str, Any]
    status: FineTuneJobStatus
    profiles: Mapping[str, ProfileState] = field(default_factory=dict)
    default_image: str = ""
    child: ChildState | None = None
    """The Job of this name, whoever owns it."""
    pods: tuple[PodState, ...] = ()
    """Pods of this FineTuneJob, oldest first."""
    warning: Warned | None = None
    note: QueueNote | None = None
    mount_failure: str = ""
    reading: Reading | None = None
    looked: bool = False
    """child, pods and snapshot come from the API server itself, not from memory."""
    snapshot: Snapshot | None = None
    """The ConfigMap's content; known only when `looked`."""
    refusal: Readiness | None = None
    """Why the API server did not take a child a moment ago."""

    @cached_property
    def policy(self) -> RunPolicySpec:
        """spec.runPolicy; what cannot be read counts as not set, and the job is not accepted anyway."""
        try:
            return RunPolicySpec.model_validate(self.spec.get("runPolicy") or {})
        except ValueError:
            return RunPolicySpec()

    @property
    def suspend(self) -> bool:
        """spec.suspend."""
        return bool(self.spec.get("suspend"))

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """Recorded conditions by type."""
        return {condition.type: condition for condition in self.status.conditions or []}

    def holds(self, condition: str) -> bool:
        """Whether a recorded condition is true."""
        found = self.conditions.get(condition)
        return found is not None and found.status == "True"

    @property
    def own_child(self) -> ChildState | None:
        """The Job, if this FineTuneJob owns it."""
        child = self.child
        return child if child is not None and child.owner_uid == self.identity.uid else None

    @property
    def child_pods(self) -> tuple[PodState, ...]:
        """Pods of the present Job."""
        child = self.own_child
        return tuple(pod for pod in self.pods if child is not None and pod.job_uid == child.uid)
