"""The status as it is built up: conditions keep their time while they do not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from finetune_api.base import API_VERSION
from finetune_api.status import Condition, ConditionType, FineTuneJobStatus

from finetune_operator.policies.phase import phase_of
from finetune_operator.projections import JobState
from finetune_operator.times import show

Truth = Literal["True", "False", "Unknown"]
ORDER = ("Accepted", "PodsReady", "Suspended", "Succeeded", "Failed")
LONGEST = 4000


@dataclass
class StatusDraft:
    """A status in the making. Starts from what is recorded, so that nothing known is lost."""

    status: FineTuneJobStatus
    generation: int
    now: datetime

    def __post_init__(self) -> None:
        self.conditions = {condition.type: condition for condition in self.status.conditions or []}

    def set(self, **fields: object) -> None:
        """Sets fields of the status (snake case)."""
        self.status = self.status.model_copy(update=fields)

    def condition(self, name: ConditionType, truth: Truth, reason: str, message: str = "") -> None:
        """Sets a condition; its time moves only when its truth does."""
        old = self.conditions.get(name)
        same = old is not None and old.status == truth
        self.conditions[name] = Condition(
            type=name,
            status=truth,
            reason=reason,
            message=message[:LONGEST],
            last_transition_time=old.last_transition_time if old is not None and same else show(self.now),
            observed_generation=self.generation,
        )

    def finished(self) -> FineTuneJobStatus:
        """The whole status, phase included."""
        self.set(
            observed_generation=self.generation,
            conditions=[self.conditions[name] for name in ORDER if name in self.conditions],
            phase=phase_of(self.conditions, self.status.start_time is not None),
        )
        return self.status


def wire(status: FineTuneJobStatus) -> dict[str, Any]:
    """The status as it stands in YAML."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def read(recorded: Mapping[str, Any]) -> FineTuneJobStatus:
    """The recorded status. Raises pydantic.ValidationError if somebody else wrote what the CRD would not allow."""
    return FineTuneJobStatus.model_validate(recorded)


def status_patch(job: JobState, status: FineTuneJobStatus) -> dict[str, Any]:
    """Body of the server-side apply; the resourceVersion makes it fail if the job has changed since."""
    return {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "metadata": {
            "name": job.key.name,
            "namespace": job.key.namespace,
            "uid": job.uid,
            "resourceVersion": str(job.version),
        },
        "status": wire(status),
    }
