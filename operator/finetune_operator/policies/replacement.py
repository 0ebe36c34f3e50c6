"""How long a job stands still after an interruption.

The Job controller pauses 10, 20, 40 … seconds, up to ten minutes, before it replaces a pod, also where podFailurePolicy
ignores the pod's end, and only a new Job begins at the start again. After an interruption a Job whose pauses have grown
is therefore made anew; failures that count keep their growing pauses.

A queued Job is left alone: a new one would have to queue again.
"""

from __future__ import annotations

from collections.abc import Iterable

from finetune_api.status import AttemptStatus

from finetune_operator.policies.attempts import interrupted
from finetune_operator.projections import ChildState

ENDS_BORNE = 3
"""Ended pods, those of a group all counted, after which the next pause would be longer than LONGEST_PAUSE_SECONDS."""
LONGEST_PAUSE_SECONDS = 10 * 2 ** (ENDS_BORNE - 1)


def wants_new_job(child: ChildState, attempts: Iterable[AttemptStatus], live: bool) -> bool:
    """`attempts`: those of the FineTuneJob, oldest first; `live`: a pod of the Job has not ended."""
    if live or child.queue or child.suspended or child.finished_at is not None or child.deleting:
        return False
    its = [attempt for attempt in attempts if (attempt.started_at or "") >= child.created]
    # of a group that broke, one may have failed and the first only have lost its peer: that counts, so it pauses
    return len(its) * child.nodes > ENDS_BORNE and all(map(interrupted, its[-child.nodes :]))
