"""status.attempts: one entry for each pod that worked on the job, the last twenty."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from finetune_api.progress import Result
from finetune_api.status import AttemptStatus
from pydantic import ValidationError

from finetune_operator.policies.exit_codes import reason_of
from finetune_operator.projections import PodState

KEPT = 20
LARGEST_MESSAGE = 4096


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


def attempts_of(recorded: Iterable[AttemptStatus], pods: Iterable[PodState], job_uid: str) -> list[AttemptStatus]:
    """What was recorded, brought up to date with the pods: oldest first.

    A recorded pod that no longer exists and never reported its end was lost with its node.
    """
    seen = {pod.uid: pod for pod in pods}
    merged: dict[str, AttemptStatus] = {}
    for attempt in recorded:
        lost = attempt.pod_uid not in seen and attempt.reason is None
        merged[attempt.pod_uid] = attempt.model_copy(update={"reason": "Lost"}) if lost else attempt
    for pod in seen.values():
        if pod.has_worked:
            known = merged.get(pod.uid)
            if known is None or known.reason in (None, "Lost", "Deleted"):
                merged[pod.uid] = _attempt(pod, job_uid)
    ordered = sorted(merged.values(), key=lambda attempt: (attempt.started_at or "", attempt.pod_uid))
    return ordered[-KEPT:]


def _attempt(pod: PodState, job_uid: str) -> AttemptStatus:
    result = result_of(pod, job_uid)
    return AttemptStatus(
        pod_uid=pod.uid,
        pod_name=pod.key.name,
        started_at=pod.created,
        finished_at=pod.finished_at,
        exit_code=pod.exit_code,
        reason=_reason(pod),
        message=result.message or None if result else None,
    )


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
