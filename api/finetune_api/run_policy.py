"""spec.runPolicy: when a job waits, gives up, and is cleaned away. With spec.suspend the only part that may change
after creation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import Model, Seconds
from finetune_api.rules import Requires, Rule

LabelValue = Annotated[
    str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
]


class RunPolicySpec(Model):
    """Queue, retries and deadlines."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Requires("priorityClass", "queueName", "the priority is that of the Workload which Kueue makes"),
    )

    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a pod that failed for no fault of yours is started again. Interruptions do not count."""
    active_deadline_seconds: Seconds | None = None
    """Fail when the job has not ended this long after its start."""
    start_deadline_seconds: Seconds | None = None
    """Fail when no pod runs this long after creation (quota, no node, no image)."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Clean up this long after the job's end, as deletionPolicy says; the weights stay. Default: never."""
    deletion_policy: Literal["DeleteSelf", "DeletePods"] = "DeleteSelf"
    """What ttlSecondsAfterFinished removes: the job and everything that belongs to it, or only its pods, so that status
    and report stay to be read."""
    queue_name: LabelValue | None = None
    """Kueue LocalQueue that admits the job. The Job is created suspended, and Kueue starts it."""
    priority_class: LabelValue | None = None
    """Kueue WorkloadPriorityClass of the job."""
