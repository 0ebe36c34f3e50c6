"""status.attempts: one entry for each pod that worked on the job, the last twenty. Of a group the first pod stands for
all; another one has an entry when it failed, for it is then the one that says why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from finetune_api.progress import Progress, Result
from finetune_api.status import AttemptStatus
from pydantic import ValidationError

from finetune_operator.policies.exit_codes import reason_of
from finetune_operator.projections import PodState

KEPT = 20
LARGEST_MESSAGE = 4096
INTERRUPTIONS = frozenset(
    {
        # the trainer's own word, or nobody's
        "Interrupted",
        "PeerLost",
        "Lost",
        "Deleted",
        # reasons of the pod condition DisruptionTarget:
        # https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions
        "PreemptionByScheduler",
        "DeletionByTaintManager",
        "EvictionByEvictionAPI",
        "DeletionByPodGC",
        "TerminationByKubelet",
        # ours, where a node no longer answers, and for a pod that outlived its group
        "NodeLost",
        "GroupBroken",
    }
)
"""Ends that are nobody's fault and do not count."""
STARTED = ("Training", "DrawingAfter", "Evaluating", "Exporting", "Sampling", "Publishing", "Done")
"""Stages in which it is known at which step the training went on."""


def interrupted(attempt: AttemptStatus) -> bool:
    """Whether the attempt was cut short through no fault of its own."""
    return attempt.reason in INTERRUPTIONS


def result_of(pod: PodState, job_uid: str) -> Result | None:
    """The trainer's termination message, if it is one and speaks of this job. Anything else is not looked at."""
    text = pod.termination_message
    if not text or len(text.encode()) > LARGEST_MESSAGE:
        return None
    try:
        result = Result.model_validate_json(text)
    except ValidationError:
        return None
    return result if result.run_uid == job_uid else None


def at_work(pod: PodState) -> PodState:
    """A pod that has ended well counts as at work until the Job says so too: it is about to."""
    if pod.exit_code != 0 or pod.gone:
        return pod
    return replace(pod, phase="Running", running=True, exit_code=None, finished_at=None)


def attempts_of(
    recorded: Iterable[AttemptStatus], pods: Iterable[PodState], job_uid: str, progress: Progress | None = None
) -> list[AttemptStatus]:
    """What was recorded, brought up to date with the pods and with what one of them last said: oldest first.

    A recorded pod that no longer exists and never reported its end was lost with its node.
    """
    seen = {pod.uid: pod for pod in pods if pod.index == 0 or _says_why(pod)}
    merged: dict[str, AttemptStatus] = {}
    for attempt in recorded:
        lost = attempt.pod_uid not in seen and attempt.reason is None
        merged[attempt.pod_uid] = attempt.model_copy(update={"reason": "Lost"}) if lost else attempt
    for pod in seen.values():
        if pod.has_worked:
            known = merged.get(pod.uid)
            unheard = known is not None and known.reason in ("Lost", "Deleted") and pod.ended
            if known is None or known.reason is None or unheard:
                merged[pod.uid] = _attempt(pod, job_uid, known, progress)
    ordered = sorted(merged.values(), key=lambda attempt: (attempt.started_at or "", attempt.pod_uid))
    return ordered[-KEPT:]


@dataclass(frozen=True)
class Tally:
    """Totals over all attempts that there ever were."""

    interruptions: int
    lost_steps: int


def tally(before: Tally, recorded: Sequence[AttemptStatus], attempts: Sequence[AttemptStatus]) -> Tally:
    """`before` and what is new in `attempts` since `recorded`. Both are written together, so nothing counts twice."""
    old = {attempt.pod_uid: attempt for attempt in recorded}
    interruptions, lost_steps = before.interruptions, before.lost_steps
    for number, attempt in enumerate(attempts):
        known = old.get(attempt.pod_uid)
        if interrupted(attempt) and (known is None or known.reason is None):
            interruptions += 1
        went_on = attempt.resumed_from_step
        if went_on is not None and (known is None or known.resumed_from_step is None):
            reached = [a.step for a in attempts[:number] if a.step is not None and a.resumed_from_step is not None]
            lost_steps += max(0, reached[-1] - went_on) if reached else 0
    return Tally(interruptions, lost_steps)


def _attempt(pod: PodState, job_uid: str, known: AttemptStatus | None, progress: Progress | None) -> AttemptStatus:
    result = result_of(pod, job_uid)
    said = progress if progress is not None and progress.pod_uid == pod.uid else None
    step = known.step if known is not None else None
    went_on = known.resumed_from_step if known is not None else None
    if said is not None and said.stage in STARTED:
        step, went_on = max(said.step, step or 0), said.resumed_from_step or 0
    if result is not None and result.step:
        step, went_on = max(result.step, step or 0), result.resumed_from_step or 0
    return AttemptStatus(
        pod_uid=pod.uid,
        pod_name=pod.key.name,
        started_at=pod.created,
        finished_at=pod.finished_at,
        exit_code=pod.exit_code,
        step=step,
        resumed_from_step=went_on,
        reason=_reason(pod),
        message=result.message or None if result else None,
    )


def _says_why(pod: PodState) -> bool:
    """Whether a pod beside the first ended by a failure of its own."""
    return pod.ended and pod.exit_code not in (None, 0) and _reason(pod) not in INTERRUPTIONS


def _reason(pod: PodState) -> str | None:
    """None while it runs."""
    if pod.exit_code is not None:
        if pod.exit_reason == "OOMKilled":
            return pod.exit_reason
        ours = reason_of(pod.exit_code)
        return pod.disruption or ours if ours == "Error" else ours
    if pod.disruption and pod.ended:
        return pod.disruption
    if pod.gone:
        return "Deleted"
    return (pod.pod_reason or "Error") if pod.ended else None
