"""What is said of a job whose Job somebody holds back: Kueue, until its queue has room, and again when others go first.

Nothing of it is written here: `suspend`, and what an admission adds to the pod template, belong to who holds it."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.policies.readiness import Readiness, no
from finetune_operator.projections import ChildState

HELD_BACK = frozenset({"Queued", "Preempted"})
"""Reasons of PodsReady."""


@dataclass(frozen=True)
class QueueNote:
    """What Kueue's Workload says of a Job."""

    message: str
    """Why it waits, in Kueue's words; empty when it does not say."""
    evicted: str = ""
    """Why it was stopped; empty when it was not."""


def held_back(child: ChildState, note: QueueNote | None, worked: bool) -> Readiness | None:
    """None for a Job that is not suspended. `worked`: a pod of this Job has begun."""
    if not child.suspended:
        return None
    where = f'in queue "{child.queue}"' if child.queue else "until whoever suspended its Job resumes it"
    why = f": {note.message}" if note is not None and note.message else ""
    if worked or (note is not None and note.evicted):
        cause = f" ({note.evicted})" if note is not None and note.evicted else ""
        return no("Preempted", f"it was stopped{cause} and waits {where}{why}; it goes on from its last checkpoint")
    return no("Queued", f"it waits {where}{why}")
