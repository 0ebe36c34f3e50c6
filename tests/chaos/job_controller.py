"""The Job controller, one step of one Job at a time.

Written from https://kubernetes.io/docs/concepts/workloads/controllers/job/ and compared with Kubernetes 1.34: pods are
counted while they hold the finalizer; with podReplacementPolicy Failed only a terminal pod counts and is replaced, not
one that merely terminates; FailureTarget and SuccessCriteriaMet come first, Failed and Complete once no pod is left;
a suspended Job's pods are deleted. Its pauses are left out: when a step is made is the schedule's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from finetune_operator.projections import CONTAINER
from finetune_operator.resources import CORE_EVENTS, JOBS, PODS
from finetune_operator.times import show
from support.memory_api import Body, MemoryApi, owner_uid, uid_of

WHO = "job-controller"
FINALIZER = "batch.kubernetes.io/job-tracking"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
TERMINAL = ("Succeeded", "Failed")


class JobController:
    """`refuses` gives the words with which a pod is refused now; empty where it is not."""

    def __init__(self, api: MemoryApi, refuses: Callable[[], str]) -> None:
        self._api = api
        self._refuses = refuses
        self._names = 0

    def step(self, job: Body) -> None:
        """What the controller does about one Job when it looks at it."""
        pods = [pod for pod in self._api.find(PODS, job["metadata"]["namespace"]) if owner_uid(pod) == uid_of(job)]
        if job["metadata"].get("deletionTimestamp") or condition(job, "Complete") or condition(job, "Failed"):
            for pod in pods:
                self._release(pod)
            return
        self._count(job, pods)

    def release_orphans(self) -> None:
        """A pod whose Job is gone is held by nobody."""
        jobs = {uid_of(job) for job in self._api.find(JOBS)}
        for pod in self._api.find(PODS):
            if owner_uid(pod) not in jobs:
                self._release(pod)

    def _count(self, job: Body, pods: list[Body]) -> None:
        status = dict(job.get("status") or {})
        verdict = condition(job, "FailureTarget") or condition(job, "SuccessCriteriaMet")
        fresh = [pod for pod in pods if is_terminal(pod) and held(pod)]
        for pod in fresh:
            if pod["status"]["phase"] == "Succeeded":
                status["succeeded"] = status.get("succeeded", 0) + 1
                continue
            action, message = judgement(job, pod)
            if action == "FailJob" and verdict is None:
                verdict = self._truth("FailureTarget", "PodFailurePolicy", message)
            if action != "Ignore":
                status["failed"] = status.get("failed", 0) + 1
        verdict = verdict or self._verdict(job, status)
        live = [pod for pod in pods if not is_terminal(pod)]
        if verdict is not None and not live:
            ended = "Complete" if verdict["type"] == "SuccessCriteriaMet" else "Failed"
            status = with_condition(status, verdict)
            status = with_condition(status, self._truth(ended, verdict["reason"], verdict["message"]))
        elif verdict is not None:
            status = with_condition(status, verdict)
        status["active"] = len([pod for pod in live if not pod["metadata"].get("deletionTimestamp")])
        status = self._suspension(job, status)
        now = self._api.update(WHO, JOBS, job, status=status)
        for pod in fresh:
            self._release(pod)
        if verdict is not None or job["spec"].get("suspend"):
            for pod in live:
                self._stop(pod)
        else:
            self._make_pods(now, pods)

    def _suspension(self, job: Body, status: Body) -> Body:
        if job["spec"].get("suspend"):
            if not has_condition(status, "Suspended", "True"):
                status = with_condition(status, self._truth("Suspended", "JobSuspended", "Job suspended"))
        elif has_condition(status, "Suspended", "True") or "startTime" not in status:
            if has_condition(status, "Suspended", "True"):
                resumed = self._truth("Suspended", "JobResumed", "Job resumed") | {"status": "False"}
                status = with_condition(status, resumed)
            status = {**status, "startTime": show(self._api.now())}
        return status

    def _verdict(self, job: Body, status: Body) -> Body | None:
        spec = job["spec"]
        if status.get("succeeded", 0) >= spec.get("completions", 1):
            return self._truth("SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods")
        if status.get("failed", 0) > spec.get("backoffLimit", 6):
            message = "Job has reached the specified backoff limit"
            return self._truth("FailureTarget", "BackoffLimitExceeded", message)
        return None

    def _make_pods(self, job: Body, pods: list[Body]) -> None:
        taken = {index_of(pod) for pod in pods if not is_terminal(pod) or pod["status"]["phase"] == "Succeeded"}
        for index in range(job["spec"].get("completions", 1)):
            if index in taken:
                continue
            words = self._refuses()
            if words:
                self._warn(job, f"Error creating: pods is forbidden: {words}")
                return
            self._make_pod(job, index)

    def _make_pod(self, job: Body, index: int) -> None:
        meta, template = job["metadata"], job["spec"]["template"]
        self._names += 1
        labels = dict(template["metadata"]["labels"])
        if job["spec"].get("completionMode") == "Indexed":
            labels[INDEX_LABEL] = str(index)
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": uid_of(job), "controller": True}
        body = {
            "metadata": {
                "name": f"{meta['name']}-{self._names:05d}",
                "labels": labels,
                "annotations": template["metadata"].get("annotations") or {},
                "ownerReferences": [{**owner, "blockOwnerDeletion": True}],
                "finalizers": [FINALIZER],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self._api.create(WHO, PODS, meta["namespace"], body)

    def _warn(self, job: Body, message: str) -> None:
        """One Event for each Job; the API server would count a series."""
        meta = job["metadata"]
        name = f"{meta['name']}.{uid_of(job)[:8]}"
        now = show(self._api.now())
        known = self._api.get(CORE_EVENTS, meta["namespace"], name)
        if known is not None:
            self._api.update(WHO, CORE_EVENTS, known, message=message, lastTimestamp=now)
            return
        about = {"kind": "Job", "namespace": meta["namespace"], "name": meta["name"], "uid": uid_of(job)}
        body = {
            "metadata": {"name": name},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": message,
            "involvedObject": about,
            "lastTimestamp": now,
        }
        self._api.create(WHO, CORE_EVENTS, meta["namespace"], body)

    def _stop(self, pod: Body) -> None:
        if not pod["metadata"].get("deletionTimestamp"):
            self._api.delete(WHO, PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _release(self, pod: Body) -> None:
        meta = pod["metadata"]
        now = self._api.get(PODS, meta["namespace"], meta["name"])
        if now is not None and held(now):
            kept = [name for name in now["metadata"]["finalizers"] if name != FINALIZER]
            self._api.update(WHO, PODS, now, metadata={**now["metadata"], "finalizers": kept})

    def _truth(self, kind: str, reason: str, message: str) -> Body:
        at = show(self._api.now())
        return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": at}


def conditions(body: Body) -> Iterator[Body]:
    yield from (body.get("status") or {}).get("conditions") or []


def condition(body: Body, kind: str) -> Body | None:
    """The condition, if it is true."""
    return next((c for c in conditions(body) if c["type"] == kind and c["status"] == "True"), None)


def has_condition(status: Body, kind: str, truth: str) -> bool:
    return any(c["type"] == kind and c["status"] == truth for c in status.get("conditions") or [])


def with_condition(status: Body, added: Body) -> Body:
    others = [c for c in status.get("conditions") or [] if c["type"] != added["type"]]
    return {**status, "conditions": [*others, added]}


def is_terminal(pod: Body) -> bool:
    return pod["status"].get("phase") in TERMINAL


def held(pod: Body) -> bool:
    return FINALIZER in (pod["metadata"].get("finalizers") or [])


def index_of(pod: Body) -> int:
    return int((pod["metadata"].get("labels") or {}).get(INDEX_LABEL, 0))


def exit_code(pod: Body) -> int | None:
    for container in pod["status"].get("containerStatuses") or []:
        ended: Any = (container.get("state") or {}).get("terminated")
        if container["name"] == CONTAINER and ended is not None:
            return int(ended["exitCode"])
    return None


def judgement(job: Body, pod: Body) -> tuple[str, str]:
    """What podFailurePolicy says of a failed pod, and the words of a FailJob."""
    code = exit_code(pod)
    true = {c["type"] for c in conditions(pod) if c["status"] == "True"}
    for number, rule in enumerate((job["spec"].get("podFailurePolicy") or {}).get("rules") or []):
        codes = (rule.get("onExitCodes") or {}).get("values") or []
        kinds = {pattern["type"] for pattern in rule.get("onPodConditions") or []}
        if kinds & true or (code is not None and code in codes):
            name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            words = f"Container {CONTAINER} for pod {name} failed with exit code {code} matching FailJob rule"
            return str(rule["action"]), f"{words} at index {number}"
    return "Count", ""
