"""Which Events a change of status deserves. Marks are taken from what was observed, never from the clock: the same
news told twice, by a restarted operator say, has the same name and is one Event."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.status import AttemptStatus, Condition, EngineStatus, FineTuneJobStatus

from finetune_operator.policies.attempts import interrupted
from finetune_operator.policies.queueing import HELD_BACK
from finetune_operator.policies.readiness import BLOCKED
from finetune_operator.reconcile.actions import Action, Announcement, CreateChild, DeletePod
from finetune_operator.reconcile.observed import Observed


def announcements(seen: Observed, status: FineTuneJobStatus, actions: Sequence[Action]) -> tuple[Announcement, ...]:
    """Events for the way from the recorded status to `status`, with `actions` carried out."""
    old = seen.conditions
    new = {condition.type: condition for condition in status.conditions or []}
    found = [
        _accepted(old.get("Accepted"), new.get("Accepted"), status),
        _created(seen, status, actions),
        *deleted_pods(actions),
        *_attempts(seen, status),
        _given_up(seen.status.engine, status.engine),
        _queued(seen, old.get("PodsReady"), new.get("PodsReady")),
        _blocked(seen, old.get("PodsReady"), new.get("PodsReady")),
        _suspended(old.get("Suspended"), new.get("Suspended")),
        _ended(new.get("Succeeded"), new.get("Failed"), status),
    ]
    return tuple(announcement for announcement in found if announcement is not None)


def _accepted(old: Condition | None, new: Condition | None, status: FineTuneJobStatus) -> Announcement | None:
    if new is None or (old is not None and (old.status, old.message) == (new.status, new.message)):
        return None
    if new.status == "True":
        resolved = status.resolved
        profile = f"profile {resolved.profile}" if resolved and resolved.profile else "built-in defaults"
        return Announcement("Normal", "Accepted", f"{status.method} with {profile}", "accepted")
    return Announcement("Warning", new.reason, new.message, new.message)


def _created(seen: Observed, status: FineTuneJobStatus, actions: Sequence[Action]) -> Announcement | None:
    for action in actions:
        if isinstance(action, CreateChild):
            message = f"Job {seen.identity.name} was created with image {action.snapshot.profile.image}"
            mark = f"{status.retries} {status.interruptions} {status.active_seconds}"
            return Announcement("Normal", "Created", message, mark)
    return None


def deleted_pods(actions: Sequence[Action]) -> tuple[Announcement, ...]:
    """Why the operator itself ends pods."""
    found = []
    for action in actions:
        if isinstance(action, DeletePod) and action.force:
            message = (
                f"pod {action.name} outlived its grace by two minutes, so node {action.node} does not answer: the pod "
                "is deleted by force, and training goes on elsewhere"
            )
            found.append(Announcement("Warning", "NodeLost", message, action.uid))
        elif isinstance(action, DeletePod):
            message = f"pod {action.name} did not end with its group and is deleted; the group begins anew"
            found.append(Announcement("Warning", "PeerLost", message, action.uid))
    return tuple(found)


def _attempts(seen: Observed, status: FineTuneJobStatus) -> list[Announcement]:
    old = {attempt.pod_uid: attempt for attempt in seen.status.attempts or []}
    found = []
    for attempt in status.attempts or []:
        before = old.get(attempt.pod_uid)
        if before is None:
            message = f"pod {attempt.pod_name} has started"
            found.append(Announcement("Normal", "Started", message, attempt.pod_uid))
        if attempt.reason not in (None, "Succeeded") and (before is None or before.reason is None):
            found.append(_attempt_ended(attempt))
    return found


def _attempt_ended(attempt: AttemptStatus) -> Announcement:
    if interrupted(attempt):
        message = f"pod {attempt.pod_name} was interrupted ({attempt.reason}); training goes on from its checkpoint"
        return Announcement("Normal", "Interrupted", message, attempt.pod_uid)
    code = f", exit code {attempt.exit_code}" if attempt.exit_code is not None else ""
    said = f": {attempt.message}" if attempt.message else ""
    message = f"pod {attempt.pod_name} failed ({attempt.reason}{code}){said}"
    return Announcement("Warning", "AttemptFailed", message, attempt.pod_uid)


def _given_up(old: EngineStatus | None, new: EngineStatus | None) -> Announcement | None:
    if new is None or new.fell_from is None:
        return None
    if old is not None and (old.fell_from, old.does) == (new.fell_from, new.does):
        return None
    message = f"{new.why}; steps are executed by {new.does}"
    return Announcement("Warning", "EngineGivenUp", message, f"{new.fell_from}, then {new.does}")


def _queued(seen: Observed, old: Condition | None, new: Condition | None) -> Announcement | None:
    was, now = old.reason if old else "", new.reason if new else ""
    # of the recorded status, which is the same each time the news is told, until it is recorded
    recorded = seen.status
    mark = f"{seen.own_child.uid if seen.own_child else ''} {recorded.active_since} {recorded.active_seconds}"
    if new is not None and now in HELD_BACK and was != now:
        return Announcement("Normal", now, new.message, mark)
    if was in HELD_BACK and now not in HELD_BACK and seen.own_child is not None and not seen.own_child.suspended:
        return Announcement("Normal", "Admitted", "its Job was resumed", mark)
    return None


def _blocked(seen: Observed, old: Condition | None, new: Condition | None) -> Announcement | None:
    if new is None or new.reason not in BLOCKED or (old is not None and old.reason == new.reason):
        return None
    child = seen.own_child
    return Announcement("Warning", new.reason, new.message, child.uid if child is not None else "no-job")


def _suspended(old: Condition | None, new: Condition | None) -> Announcement | None:
    if new is None or new.reason == "Finished":
        return None
    mark = f"{new.reason} {old.last_transition_time if old is not None else ''}"
    if new.status == "True" and (old is None or old.status != "True"):
        return Announcement("Normal", "Suspended", "nothing of the job runs; its checkpoint is kept", mark)
    if new.reason == "Resumed" and old is not None and old.status == "True":
        return Announcement("Normal", "Resumed", "training goes on from the last checkpoint", mark)
    return None


def _ended(succeeded: Condition | None, failed: Condition | None, status: FineTuneJobStatus) -> Announcement | None:
    if failed is not None and failed.status == "True":
        return Announcement("Warning", "Failed", f"{failed.reason}: {failed.message}", "end")
    if succeeded is not None and succeeded.status == "True":
        where = f": {status.artifacts.uri}" if status.artifacts else ""
        return Announcement("Normal", "Succeeded", f"the weights are published{where}", "end")
    return None
