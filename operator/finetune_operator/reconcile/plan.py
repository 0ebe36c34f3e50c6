"""plan(): what follows from what was observed. Pure; the order of the steps is the life of a job."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_operator.policies import outcome as outcomes
from finetune_operator.policies import retry
from finetune_operator.policies.acceptance import Refused, accept
from finetune_operator.policies.activity import Activity, began, effective_deadline
from finetune_operator.policies.attempts import Tally, at_work, attempts_of, result_of, tally
from finetune_operator.policies.lost_node import seconds_overdue
from finetune_operator.policies.queueing import held_back
from finetune_operator.policies.readiness import MOUNT_PATIENCE, Readiness, may_hang, no, node_lost, readiness
from finetune_operator.policies.replacement import wants_new_job
from finetune_operator.policies.start_deadline import seconds_to_start
from finetune_operator.policies.ttl import seconds_to_deletion
from finetune_operator.progress.reading import engine_status, finished_progress, judgement_status, progress_status
from finetune_operator.reconcile.actions import (
    Action,
    CreateChild,
    CreateSnapshot,
    DeleteChild,
    DeleteJob,
    Plan,
    SetBackoffLimit,
)
from finetune_operator.reconcile.announce import announcements, deleted_pods
from finetune_operator.reconcile.observed import Observed
from finetune_operator.reconcile.pods import pods_to_end
from finetune_operator.reconcile.results import artifacts_of, resolved_status, with_revision
from finetune_operator.reconcile.status import StatusDraft
from finetune_operator.specs.configmap import Snapshot
from finetune_operator.specs.job import Queue
from finetune_operator.specs.naming import snapshot_name
from finetune_operator.times import parse, show

NOTHING = Plan()
CHILD_PATIENCE = 2.0
"""Seconds between two looks at a child that is going away."""


def plan(seen: Observed, now: datetime) -> Plan:
    """What to do about one FineTuneJob, and what to say of it."""
    if seen.deleting:
        return NOTHING
    if seen.holds("Succeeded") or seen.holds("Failed"):
        return _after_the_end(seen, now)
    return _Planner(seen, now).plan()


def _after_the_end(seen: Observed, now: datetime) -> Plan:
    """A job that has ended never makes a child again; what still runs is stopped, and the TTL is kept."""
    actions: list[Action] = []
    child = seen.own_child
    if child is not None and child.finished_at is None and not child.deleting:
        actions.append(DeleteChild(child.uid))
    deletions, timers = pods_to_end(child, seen.pods, now)
    actions.extend(deletions)
    left = seconds_to_deletion(seen.policy.ttl_seconds_after_finished, parse(seen.status.completion_time), now)
    if left is not None and left > 0:
        timers.append(left)
    elif left is not None and seen.policy.deletion_policy == "DeleteSelf":
        actions.append(DeleteJob(seen.identity.uid))
    elif left is not None and child is not None and not child.deleting and not actions:
        actions.append(DeleteChild(child.uid))
    return Plan(
        actions=tuple(actions),
        announcements=deleted_pods(actions),
        requeue_after=min(timers, default=None),
    )


class _Planner:
    """One pass over a job that has not ended. Holds what the steps share; lives as long as the call of plan()."""

    def __init__(self, seen: Observed, now: datetime) -> None:
        self.child = seen.own_child
        ending = self.child is not None and self.child.finished_at is None
        self.seen = replace(seen, pods=tuple(map(at_work, seen.pods))) if ending else seen
        self.now = now
        self.draft = StatusDraft(seen.status, seen.generation, now)
        self.actions: list[Action] = []
        self.timers: list[float] = []
        self.recorded_digest = (seen.status.resolved and seen.status.resolved.run_sha256) or (
            self.child.run_digest if self.child else None
        )
        self.used = retry.used(self.child, seen.status.retries)

    def plan(self) -> Plan:
        if self._must_look():
            return Plan(look=True)
        self._attempts()
        deletions, timers = pods_to_end(self.child, self.seen.pods, self.now)
        self.actions += deletions
        self.timers += timers
        decision = self._acceptance()
        if not self._ended():
            if not self._overdue():
                self._running(decision)
            elif not self.seen.looked:
                return Plan(look=True)  # there is no way back: the pod may have begun, or the Job be complete
        self._count_activity()
        status = self.draft.finished()
        return Plan(
            status=status,
            actions=tuple(self.actions),
            announcements=announcements(self.seen, status, self.actions),
            requeue_after=min((t for t in self.timers if t > 0), default=None),
        )

    def _must_look(self) -> bool:
        """Memory may lag behind: absence counts only when the API server itself says so."""
        seen = self.seen
        if seen.looked:
            return False
        if seen.suspend and seen.holds("Suspended"):
            # nothing was left then: what memory still has may be what it has not heard the end of
            return self.child is not None or not all(pod.ended for pod in seen.pods)
        if self.child is None:
            return self.recorded_digest is not None
        if self.child.finished_at is not None and not any(pod.exit_code is not None for pod in seen.child_pods):
            return True
        return bool(seen.mount_failure) or "Accepted" not in seen.conditions or self._misses_a_pod()

    def _misses_a_pod(self) -> bool:
        """The status, which another operator may have written, can be ahead of what is remembered of the pods: one that
        is not there may be one that was not heard of yet."""
        known = {pod.uid for pod in self.seen.pods}
        recorded = self.seen.status.attempts or []
        return any(attempt.reason is None and attempt.pod_uid not in known for attempt in recorded)

    def _attempts(self) -> None:
        seen = self.seen
        recorded = seen.status.attempts or []
        progress = seen.reading.progress if seen.reading is not None else None
        attempts = attempts_of(recorded, seen.pods, seen.identity.uid, progress)
        before = Tally(seen.status.interruptions or 0, seen.status.lost_steps or 0)
        total = tally(before, recorded, attempts)
        self.draft.set(
            attempts=attempts or None,
            retries=self.used,
            interruptions=total.interruptions,
            lost_steps=total.lost_steps,
        )

    def _acceptance(self) -> Snapshot | Refused | None:
        """The snapshot that holds, where one was made, else what job and profile give today; None where there is no
        need to know: a job that was accepted stays so."""
        seen = self.seen
        if self.recorded_digest is not None and not seen.looked:
            return None
        if seen.snapshot is not None and self._is_recorded(seen.snapshot):
            decision: Snapshot | Refused = seen.snapshot
        else:
            decision = accept(seen.spec, seen.profiles, seen.identity, seen.default_image)
        if isinstance(decision, Refused):
            if self.recorded_digest is None:
                self.draft.condition("Accepted", "False", decision.reason, decision.message)
        elif self.recorded_digest in (None, decision.digest):
            self.draft.condition("Accepted", "True", "Accepted", "the job can be carried out")
            resolved = resolved_status(self.draft.status.resolved, decision, seen.identity)
            self.draft.set(method=decision.run.method.name, resolved=resolved)
        return decision

    def _is_recorded(self, snapshot: Snapshot) -> bool:
        """Whether a ConfigMap is the one that was made when the job was accepted. Whoever can write ConfigMaps must not
        get a pod of another profile by it."""
        resolved = self.seen.status.resolved
        profile_digest = resolved.profile_sha256 if resolved is not None else None
        return self.recorded_digest == snapshot.digest and profile_digest in (None, snapshot.profile_digest)

    def _ended(self) -> bool:
        """Takes over the end of the Job."""
        seen, child = self.seen, self.child
        if child is None:
            return False
        results = [result_of(pod, seen.identity.uid) for pod in seen.pods if pod.exit_code == 0]
        result = next((r for r in reversed(results) if r is not None and r.outcome == "Succeeded"), None)
        attempts = self.draft.status.attempts or []
        end = outcomes.outcome(child, attempts, result, seen.policy.retries, self.used)
        if isinstance(end, outcomes.Failed):
            self._fail(end.reason, end.message, child.finished_at)
        elif end is not None:
            self.draft.set(
                completion_time=child.finished_at or show(self.now),
                progress=finished_progress(self.draft.status.progress, end.result),
                judgement=judgement_status(
                    self.draft.status.judgement, end.result.judgement if end.result is not None else None
                ),
                artifacts=artifacts_of(end.result, seen.spec),
                resolved=with_revision(self.draft.status.resolved, end.result),
            )
            self.draft.condition("PodsReady", "False", "Finished", "the training has ended")
            self.draft.condition("Suspended", "False", "Finished")
            self.draft.condition("Succeeded", "True", end.reason, end.message)
            self.draft.condition("Failed", "False", "Succeeded")
        return end is not None

    def _overdue(self) -> bool:
        """activeDeadlineSeconds and startDeadlineSeconds."""
        seen, policy = self.seen, self.seen.policy
        suspended = seen.conditions.get("Suspended")
        resumed = suspended is not None and suspended.reason == "Resumed"
        since = parse(suspended.last_transition_time) if suspended is not None else None
        if seen.suspend or seen.holds("Suspended"):
            return False
        longest = self.child.longest_deadline if self.child else None
        deadline = effective_deadline(policy.active_deadline_seconds, longest)
        activity = self._activity()
        if deadline is not None and activity.since is not None:
            left = deadline - activity.total(self.now)
            if left <= 0:
                self._stop()
                self._fail("DeadlineExceeded", f"the job was active for {deadline} s, its deadline", None)
                return True
            self.timers.append(left)
        begin = since if resumed and since is not None else seen.created
        starts = [parse(attempt.started_at) for attempt in self.draft.status.attempts or []]
        worked = any(moment is not None and moment >= begin for moment in starts)
        left_to_start = seconds_to_start(policy.start_deadline_seconds, begin, worked, self.now)
        if left_to_start is not None and left_to_start <= 0:
            self._stop()
            self._fail("StartDeadlineExceeded", self._why_not_started(), None)
            return True
        self.timers.extend([left_to_start] if left_to_start is not None else [])
        return False

    def _why_not_started(self) -> str:
        limit = self.seen.policy.start_deadline_seconds
        accepted, ready = self.draft.conditions.get("Accepted"), self._readiness()
        why = ready.message if accepted is not None and accepted.status == "True" else ""
        why = why or (accepted.message if accepted is not None else "")
        return f"no pod began within spec.runPolicy.startDeadlineSeconds ({limit} s): {why}"

    def _running(self, decision: Snapshot | Refused | None) -> None:
        """Neither ended nor overdue: suspended, waiting, or at work."""
        self.draft.condition("Succeeded", "Unknown", "InProgress")
        self.draft.condition("Failed", "False", "InProgress")
        reading = self.seen.reading
        said = reading.progress if reading is not None else None
        self.draft.set(
            progress=progress_status(self.draft.status.progress, reading),
            engine=engine_status(self.draft.status.engine, said.engine if said is not None else None),
            judgement=judgement_status(self.draft.status.judgement, said.judgement if said is not None else None),
        )
        if self._snapshot_lost(decision):
            return
        if isinstance(decision, Snapshot) and decision != self.seen.snapshot:
            replace = self.seen.snapshot is not None
            self.actions.append(CreateSnapshot(self.seen.identity, decision, replace))
        if self.seen.suspend:
            self._suspend()
            return
        was = self.seen.conditions.get("Suspended")
        back = was is not None and (was.status == "True" or was.reason in ("Resumed", "Suspending"))
        self.draft.condition("Suspended", "False", "Resumed" if back else "NotSuspended")
        if isinstance(decision, Refused) and self.recorded_digest is None:
            self._ready(no("NotAccepted", "see the condition Accepted"))
        else:
            self._work(decision if isinstance(decision, Snapshot) else None)

    def _snapshot_lost(self, decision: Snapshot | Refused | None) -> bool:
        """The ConfigMap is gone, and what would be made today is another run: that must not pass for the same."""
        seen = self.seen
        if self.recorded_digest is None or not seen.looked:
            return False
        if isinstance(decision, Snapshot) and decision.digest == self.recorded_digest:
            return False
        self._stop()
        why = decision.message if isinstance(decision, Refused) else "it differs from what job and profile give today"
        self._fail(
            "SnapshotLost",
            f"ConfigMap {snapshot_name(seen.identity)} was deleted or replaced and cannot be made again: {why}; "
            "delete the job and create it anew",
            None,
        )
        return True

    def _work(self, snapshot: Snapshot | None) -> None:
        seen, child = self.seen, self.child
        if child is None and seen.refusal is None and snapshot is not None:
            account = seen.spec.get("serviceAccountName")
            limit = retry.left(seen.policy.retries, self.used)
            policy = seen.policy
            queue = Queue(policy.queue_name, policy.priority_class) if policy.queue_name else None
            self.actions.append(CreateChild(snapshot, account, limit, self.used, queue))
        if child is not None and not child.deleting:
            wanted = retry.wanted_backoff_limit(seen.policy.retries, child)
            if wanted != child.backoff_limit:
                self.actions.append(SetBackoffLimit(child.uid, wanted))
        if child is not None and child.deleting:
            self.timers.append(CHILD_PATIENCE)
        busy = any(not pod.ended for pod in seen.child_pods)
        if child is not None and wants_new_job(child, self.draft.status.attempts or [], busy):
            self.actions.append(DeleteChild(child.uid))
        self._ready(self._readiness())
        live = [pod for pod in seen.child_pods if not pod.ended]
        created = parse(live[-1].created) if live and may_hang(live[-1]) else None
        if created is not None:
            self.timers.append(max(MOUNT_PATIENCE, (self.now - created).total_seconds() / 2))

    def _readiness(self) -> Readiness:
        seen = self.seen
        child = self.child
        if seen.refusal is not None:
            return seen.refusal
        if child is None:
            return readiness((), seen.warning, seen.mount_failure)
        overdue = [pod for pod in seen.child_pods if (seconds_overdue(pod, self.now) or -1.0) >= 0]
        if overdue and child.node_lost == "Wait":
            return node_lost(overdue[-1])
        worked = any((attempt.started_at or "") >= child.created for attempt in self.draft.status.attempts or [])
        waits = held_back(child, seen.note, worked)
        return waits or readiness(seen.child_pods, seen.warning, seen.mount_failure, child.nodes)

    def _ready(self, ready: Readiness) -> None:
        old = self.draft.conditions.get("PodsReady")
        if old is not None and old.reason == ready.reason == "ImagePullFailed" and "Back-off" in ready.message:
            # the kubelet alternates between the error and "Back-off"; the error is the one that helps
            return
        self.draft.condition("PodsReady", ready.status, ready.reason, ready.message)

    def _suspend(self) -> None:
        """Frees the resources by deleting the Job; suspended when nothing of it is left."""
        seen, child = self.seen, self.child
        if child is not None and not child.deleting:
            self.actions.append(DeleteChild(child.uid))
        self._ready(no("Suspended", "spec.suspend is true"))
        if child is None and all(pod.ended for pod in seen.pods):
            self.draft.condition("Suspended", "True", "Suspended", "set spec.suspend to false to go on")
        else:
            self.draft.condition("Suspended", "False", "Suspending", "the pods are saving their state")
            self.timers.append(CHILD_PATIENCE)

    def _activity(self) -> Activity:
        status = self.seen.status
        return Activity(status.active_seconds or 0, parse(status.active_since))

    def _count_activity(self) -> None:
        """startTime, activeSeconds and activeSince."""
        seen, child, conditions = self.seen, self.child, self.draft.conditions
        over = any(conditions[name].status == "True" for name in ("Succeeded", "Failed") if name in conditions)
        suspended = "Suspended" in conditions and conditions["Suspended"].status == "True"
        made = next((action for action in self.actions if isinstance(action, CreateChild)), None)
        activity = self._activity()
        if over:
            activity = activity.rests(parse(self.draft.status.completion_time) or self.now)
        elif suspended or (child is not None and child.suspended):
            activity = activity.rests(self.now)
        elif child is not None and not child.deleting:
            activity = activity.goes_on(began(child, self.now))
        elif made is not None and made.queue is None and seen.refusal is None:
            activity = activity.goes_on(self.now)
        since = show(activity.since) if activity.since is not None else None
        self.draft.set(
            start_time=seen.status.start_time or since,
            active_seconds=activity.seconds or None,
            active_since=since,
        )

    def _stop(self) -> None:
        if self.child is not None and not self.child.deleting:
            self.actions.append(DeleteChild(self.child.uid))

    def _fail(self, reason: str, message: str, at: str | None) -> None:
        self.draft.set(completion_time=at or show(self.now))
        self.draft.condition("PodsReady", "False", "Finished", "the training has ended")
        self.draft.condition("Succeeded", "False", reason)
        self.draft.condition("Failed", "True", reason, message)
