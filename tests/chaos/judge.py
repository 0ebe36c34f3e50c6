"""What must hold after every write, whatever happens. The judge looks at the API server alone: at what is written, by
whom, and when; never into an operator."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable

from finetune_operator.reconcile.controller import LONGEST_PASS_SECONDS
from finetune_operator.resources import CONFIGMAPS, EVENTS, FINETUNEJOBS, JOBS, PODS, SERVICES, Resource
from finetune_operator.specs.naming import JOB_LABEL, JOB_UID_LABEL, QUEUE_LABEL, RUN_DIGEST_ANNOTATION
from support.memory_api import FOREGROUND, Body, Write, owner_uid, uid_of

from chaos import history
from chaos.job_controller import condition, exit_code, is_terminal
from chaos.users import ACCEPTABLE

OPERATOR = "operator"
MAY_WRITE = {
    FINETUNEJOBS: {"MODIFIED", "DELETED"},
    JOBS: {"ADDED", "MODIFIED"},
    PODS: {"MODIFIED", "DELETED"},
    SERVICES: {"ADDED"},
    CONFIGMAPS: {"ADDED", "DELETED"},
    EVENTS: {"ADDED"},
}
CALLS_AFTER_LAST_LOOK = 3
"""From the last look at a FineTuneJob to its Job: POST Service, at most one GET of it, POST Job."""


class Facts:
    """What has really happened to one FineTuneJob."""

    def __init__(self) -> None:
        self.jobs: dict[str, int] = {}
        """Failures that each of its Jobs counted."""
        self.completed_at: float | None = None
        self.exhausted = False
        self.failed_otherwise = False
        self.exit_codes: set[int] = set()
        self.began_at: dict[str, float] = {}
        """By UID of a pod that exists: when its container began."""
        self.suspensions = 0
        self.resumptions = 0
        self.admissions = 0
        self.evictions = 0
        self.closed_at: int | None = None
        """Version at which it became one that must get no Job: ended, suspended, deleted. None: it may."""


class Judge:
    """`fail` is told of the first thing that must not be."""

    def __init__(self, seconds: Callable[[], float], fail: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._fail = fail
        self.facts: dict[str, Facts] = defaultdict(Facts)
        self.watches_are_late = False
        """By seconds. A Job that an operator had not heard of until it was gone then looks as if it were there, and the
        same suspension may be told once more."""
        self.repetitions = 0
        """How often that happened: campaigns are asked that it be rare."""
        self.phases: Counter[tuple[str, str]] = Counter()
        """Changes of status.phase that were seen."""
        self.reasons: set[tuple[str, str, str]] = set()
        """(type, status, reason) of conditions that were seen."""
        self._calls: dict[object, deque[int]] = defaultdict(lambda: deque(maxlen=8))
        self._version = 0
        self._live: dict[str, dict[str, str]] = defaultdict(dict)
        """FineTuneJob's UID → live pod's UID → its Job's UID."""
        self._pods: set[str] = set()
        """UIDs of all pods that exist."""
        self._groups_that_broke: set[str] = set()
        """UIDs of Jobs of which a pod has failed."""
        self._removed: set[str] = set()
        """UIDs of Jobs that somebody other than an operator removed."""
        self._told: Counter[tuple[str, str, str]] = Counter()
        self._interrupted: dict[str, set[str]] = defaultdict(set)

    def called(self, who: str, verb: str, resource: Resource, namespace: str, name: str) -> None:
        """A request of an operator sets out."""
        self._calls[asyncio.current_task()].append(self._version)

    def saw(self, write: Write) -> None:
        """A write has taken effect."""
        self._version = int(write.new["metadata"]["resourceVersion"])
        by_operator = write.who.startswith(OPERATOR)
        if by_operator and write.kind not in MAY_WRITE.get(write.resource, ()):
            self._fail(f"{write.who} {write.kind} {write.resource.kind} {write.new['metadata']['name']}")
        match write.resource:
            case r if r is FINETUNEJOBS:
                self._finetunejob(write, by_operator)
            case r if r is JOBS:
                self._job(write, by_operator)
            case r if r is PODS:
                self._pod(write, by_operator)
            case r if r is EVENTS:
                self._event(write.new)
            case r if r is CONFIGMAPS and by_operator and write.kind == "DELETED":
                self._snapshot_deleted(write.new)

    # FineTuneJobs

    def _finetunejob(self, write: Write, by_operator: bool) -> None:
        uid, new, old = uid_of(write.new), write.new, write.old or {"spec": {}, "status": {}}
        facts = self.facts[uid]
        suspend, was = bool(new["spec"].get("suspend")), bool(old["spec"].get("suspend"))
        facts.suspensions += suspend and not was
        facts.resumptions += was and not suspend
        deleted = write.kind == "DELETED" or new["metadata"].get("deletionTimestamp")
        closed = deleted or suspend or history.ended(new.get("status") or {})
        facts.closed_at = (facts.closed_at or self._version) if closed else None
        before, after = old.get("status") or {}, new.get("status") or {}
        if by_operator and write.kind == "DELETED":
            if not history.ended(after) or "ttlSecondsAfterFinished" not in new["spec"]["runPolicy"]:
                self._fail(f"FineTuneJob {uid} was deleted by {write.who}, though no TTL had passed")
            self.phases[after.get("phase", ""), "[*]"] += 1
        elif before != after:
            self._status(uid, write, before, after)

    def _status(self, uid: str, write: Write, before: Body, after: Body) -> None:
        for wrong in history.steps_back(before, after):
            self._fail(f"status of {write.new['metadata']['name']} {uid}: {wrong}")
        if (after.get("observedGeneration") or 0) > write.new["metadata"]["generation"]:
            self._fail(f"{uid}: observedGeneration is ahead of the generation")
        if before.get("phase") != after.get("phase"):
            self.phases[before.get("phase") or "[*]", after["phase"]] += 1
        self.reasons |= {(c["type"], c["status"], c["reason"]) for c in after.get("conditions") or []}
        facts = self.facts[uid]
        self._interrupted[uid] |= history.interrupted(after)
        if (after.get("interruptions") or 0) != len(self._interrupted[uid]):
            counted, known = after.get("interruptions"), len(self._interrupted[uid])
            self._fail(f"{uid}: {counted} interruptions are counted, status.attempts told of {known}")
        if (after.get("retries") or 0) > sum(facts.jobs.values()):
            self._fail(f"{uid}: status.retries is {after['retries']}, its Jobs counted {facts.jobs}")
        for attempt in after.get("attempts") or []:
            if attempt.get("reason") in ("Lost", "Deleted") and attempt["podUid"] in self._pods:
                self._fail(f"attempt {attempt['podName']} is said to be {attempt['reason']}, but its pod is there")
        if history.ended(after):
            self._end(uid, facts, write.new, after)

    def _end(self, uid: str, facts: Facts, job: Body, status: Body) -> None:
        """The end that is written must be the one that happened."""
        reason = history.ended(status)
        policy = job["spec"]["runPolicy"]
        true = {
            "Published": facts.completed_at is not None,
            "ResultUnreported": facts.completed_at is not None,
            "BadData": 65 in facts.exit_codes,
            "BadConfiguration": 78 in facts.exit_codes,
            "RetriesExhausted": facts.exhausted,
            "JobFailed": facts.failed_otherwise,
            "DeadlineExceeded": "activeDeadlineSeconds" in policy or job["spec"].get("profileName") == "short",
            "StartDeadlineExceeded": "startDeadlineSeconds" in policy,
            "SnapshotLost": True,
        }
        if not true[reason]:
            self._fail(f"{uid} ended with {reason}, which did not happen")
        now = self._seconds()
        known = facts.completed_at is not None and now - facts.completed_at > LONGEST_PASS_SECONDS
        if reason not in ("Published", "ResultUnreported") and known:
            self._fail(f"{uid} ended with {reason}, though its Job had long been complete")
        began = any(now - at > LONGEST_PASS_SECONDS for at in facts.began_at.values())
        if reason == "StartDeadlineExceeded" and began and not facts.suspensions:
            self._fail(f"{uid} ended with {reason}, though its trainer had long begun")

    # children

    def _job(self, write: Write, by_operator: bool) -> None:
        job, uid = write.new, owner_uid(write.new)
        facts = self.facts[uid]
        if write.kind == "ADDED":
            if by_operator:
                self._made(job, facts)
            if uid:
                facts.jobs[uid_of(job)] = 0
            return
        if by_operator and write.old is not None:
            self._job_written(write.old, job, uid)
        if write.kind == "DELETED" and FOREGROUND not in ((write.old or job)["metadata"].get("finalizers") or []):
            self._removed.add(uid_of(job))
        if write.who == "kueue":
            facts.admissions += not job["spec"]["suspend"]
            facts.evictions += bool(job["spec"]["suspend"])
        if uid:
            facts.jobs[uid_of(job)] = (job.get("status") or {}).get("failed", 0)
            failed = condition(job, "Failed") or {}
            if condition(job, "Complete") and facts.completed_at is None:
                facts.completed_at = self._seconds()
            facts.exhausted |= failed.get("reason") in ("BackoffLimitExceeded", "MaxFailedIndexesExceeded")
            facts.failed_otherwise |= bool(failed)

    def _made(self, job: Body, facts: Facts) -> None:
        name, uid = job["metadata"]["name"], owner_uid(job)
        if facts.closed_at is not None:
            late = [at for at in self._calls[asyncio.current_task()] if at >= facts.closed_at]
            if len(late) > CALLS_AFTER_LAST_LOOK:
                self._fail(f"{name} {uid} got a Job {len(late)} calls after it had ended, was suspended or deleted")
        digest = job["metadata"]["annotations"][RUN_DIGEST_ANNOTATION]
        owner = self.find(FINETUNEJOBS, name)
        if owner is not None and uid_of(owner) == uid:
            recorded = ((owner.get("status") or {}).get("resolved") or {}).get("runSha256")
            if recorded not in (None, digest):
                self._fail(f"{name} {uid} got a Job with another run than the one it was accepted with")
            if owner["spec"]["dataset"]["uri"] != ACCEPTABLE:
                self._fail(f"{name} {uid} got a Job, though it cannot be accepted")
            queue = owner["spec"]["runPolicy"].get("queueName")
            if (queue is not None) != bool(job["spec"].get("suspend")):
                self._fail(f"the Job of {name} {uid} with queue {queue}: suspend is {job['spec'].get('suspend')}")
            if job["metadata"]["labels"].get(QUEUE_LABEL) != queue:
                self._fail(f"the Job of {name} {uid} lacks the label of its queue")

    def _job_written(self, old: Body, new: Body, uid: str) -> None:
        """Of a Job that exists an operator writes backoffLimit, or deletes it in the foreground. All else is Kueue's,
        the Job controller's or somebody else's."""
        name = new["metadata"]["name"]
        if uid not in self.facts or not uid:
            self._fail(f"a Job {name} that belongs to somebody else was written")
        changed = {k for k in old["spec"].keys() | new["spec"].keys() if old["spec"].get(k) != new["spec"].get(k)}
        changed |= {part for part in ("status",) if old.get(part) != new.get(part)}
        if changed - {"backoffLimit"}:
            self._fail(f"{', '.join(changed)} of Job {name} were written, which are not the operator's")
        if new["metadata"].get("deletionTimestamp") and FOREGROUND not in new["metadata"].get("finalizers", []):
            self._fail(f"Job {name} was deleted without waiting for its pods")

    def _pod(self, write: Write, by_operator: bool) -> None:
        pod = write.new
        uid = pod["metadata"]["labels"][JOB_UID_LABEL]
        live, facts = self._live[uid], self.facts[uid]
        (self._pods.discard if write.kind == "DELETED" else self._pods.add)(uid_of(pod))
        if write.kind == "ADDED":
            others = {job for job in live.values() if job != owner_uid(pod)} - self._removed
            if others:
                self._fail(f"pod {pod['metadata']['name']} was made while those of Job {others} of the same run live")
            live[uid_of(pod)] = owner_uid(pod)
        if is_terminal(pod) or write.kind == "DELETED":
            live.pop(uid_of(pod), None)
        if pod["status"].get("phase") == "Failed":
            self._groups_that_broke.add(owner_uid(pod))
        code = exit_code(pod)
        if code is not None:
            facts.exit_codes.add(code)
        if write.kind == "DELETED":
            facts.began_at.pop(uid_of(pod), None)
        elif pod["status"].get("phase") == "Running":
            facts.began_at.setdefault(uid_of(pod), self._seconds())
        before = write.old or pod
        told = before["metadata"].get("deletionTimestamp") or owner_uid(pod) in self._groups_that_broke
        if by_operator and not told and not is_terminal(before):
            self._fail(f"pod {pod['metadata']['name']} was ended, though nobody had told it to go")

    def _snapshot_deleted(self, body: Body) -> None:
        """Only one that no job was accepted with."""
        digest = hashlib.sha256(body.get("data", {}).get("run.json", "").encode()).hexdigest()
        owner = self.find(FINETUNEJOBS, body["metadata"]["labels"][JOB_LABEL])
        if owner is not None and uid_of(owner) == body["metadata"]["labels"][JOB_UID_LABEL]:
            recorded = ((owner.get("status") or {}).get("resolved") or {}).get("runSha256")
            if recorded == digest:
                self._fail(f"the snapshot {body['metadata']['name']} was deleted")

    # Events

    def _event(self, event: Body) -> None:
        uid, reason, note = event["regarding"]["uid"], event["reason"], event["note"]
        facts = self.facts[uid]
        self._told[uid, reason, note] += 1
        self._told[uid, reason, ""] += 1
        jobs = len(facts.jobs)
        most = {
            "Created": jobs,
            "Suspended": facts.suspensions,
            "Resumed": facts.resumptions,
            "Admitted": facts.admissions,
            # a pod that has worked while the Job's news is still under way looks as if it had been stopped again
            "Preempted": facts.evictions + facts.admissions,
            "Queued": jobs + facts.evictions,
        }
        if reason in most:
            once_more = self.watches_are_late and reason != "Created"
            self.repetitions += self._told[uid, reason, ""] > most[reason]
            if self._told[uid, reason, ""] > most[reason] + once_more:
                self._fail(f"Event {reason} of {uid} was told {self._told[uid, reason, '']} times, not {most[reason]}")
        elif reason in history.RECURRING:
            if self._told[uid, reason, ""] > jobs + 1:
                self._fail(f"Event {reason} of {uid} was told more often than it had Jobs ({jobs})")
        elif self._told[uid, reason, note] > 1:
            self._fail(f"Event {reason} of {uid} was told twice: {note}")

    find: Callable[[Resource, str], Body | None]
    """The object of this kind and name, as it is now."""
