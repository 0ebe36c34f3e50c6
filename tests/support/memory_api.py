"""An API server and a Job controller in memory, with faults between any two calls.

It knows what the operator relies on: resourceVersions, UIDs and preconditions, names that exist once, owner
references, foreground deletion. Watch events reach the operator late, or never.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

from finetune_operator.client import ApiError, ConflictError, NotFoundError
from finetune_operator.resources import (
    CONFIGMAPS,
    EVENTS,
    FINETUNEJOBS,
    FINETUNEPROFILES,
    JOBS,
    PODS,
    SERVICES,
    Resource,
)
from finetune_operator.specs.naming import JOB_LABEL

Body = dict[str, Any]
Where = tuple[str, str]


class KilledError(BaseException):
    """The operator dies here. Not an Exception: nothing may catch it."""


class MemoryApi:
    """Stands for `finetune_operator.client.Kube`."""

    def __init__(self, seed: int, now: Callable[[], str]) -> None:
        self.random = random.Random(seed)
        self.now = now
        self.fault_rate = 0.0
        self.objects: dict[Resource, dict[Where, Body]] = {}
        self.pending: list[tuple[Resource, str, Body]] = []
        """Watch events that the operator has not seen yet."""
        self.lost_rate = 0.0
        self.created: list[tuple[Body, Body | None]] = []
        """Every Job ever made, and the FineTuneJob of its name as it was at that moment."""
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    # what the operator calls

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Body | None:
        return await self._faulty(lambda: copy.deepcopy(self.kind(resource).get((namespace or "", name))))

    async def list_pages(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = "", **_: object
    ) -> AsyncIterator[list[Body]]:
        def find() -> list[Body]:
            wanted = dict(part.split("=") for part in labels.split(",") if part)
            return [
                copy.deepcopy(body)
                for (where, _), body in self.kind(resource).items()
                if namespace in (None, where) and wanted.items() <= (body["metadata"].get("labels") or {}).items()
            ]

        yield await self._faulty(find)

    async def create(self, resource: Resource, namespace: str | None, body: Body) -> Body:
        return await self._faulty(lambda: self.put_new(resource, namespace or "", body))

    async def apply_status(self, resource: Resource, namespace: str, name: str, body: Body) -> Body:
        def write() -> Body:
            known = self._existing(resource, namespace, name)
            if body["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]:
                raise ConflictError(409, "Conflict", "changed meanwhile")
            return self.change(resource, known, status=body["status"])

        return await self._faulty(write)

    async def patch(self, resource: Resource, namespace: str, name: str, body: Body) -> Body:
        def write() -> Body:
            known = self._existing(resource, namespace, name)
            if body["metadata"]["uid"] != known["metadata"]["uid"]:
                raise ConflictError(409, "Conflict", "another object")
            return self.change(resource, known, spec={**known["spec"], **body["spec"]})

        return await self._faulty(write)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str, propagation: str) -> None:
        def erase() -> None:
            known = self.kind(resource).get((namespace, name))
            if known is None or known["metadata"]["uid"] != uid:
                return
            if propagation == "Foreground":
                self.change(resource, known, metadata={**known["metadata"], "deletionTimestamp": self.now()})
            else:
                self.remove(resource, namespace, name)

        await self._faulty(erase)

    # what the rest of the cluster does

    def kind(self, resource: Resource) -> dict[Where, Body]:
        return self.objects.setdefault(resource, {})

    def put_new(self, resource: Resource, namespace: str, body: Body) -> Body:
        name = body["metadata"]["name"]
        if (namespace, name) in self.kind(resource):
            raise ConflictError(409, "AlreadyExists", f"{name} already exists")
        made = copy.deepcopy(body)
        made["metadata"] |= {
            "uid": f"{resource.kind.lower()}-{next(self._uids):06d}",
            "generation": 1,
            "creationTimestamp": self.now(),
            "resourceVersion": str(next(self._versions)),
        }
        if resource.namespaced:
            made["metadata"]["namespace"] = namespace
        if resource is JOBS:
            owner = self.kind(FINETUNEJOBS).get((namespace, name))
            self.created.append((copy.deepcopy(made), copy.deepcopy(owner)))
        self.kind(resource)[namespace, name] = made
        self._tell(resource, "ADDED", made)
        return copy.deepcopy(made)

    def change(self, resource: Resource, known: Body, **parts: Body) -> Body:
        known.update(copy.deepcopy(parts))
        known["metadata"]["resourceVersion"] = str(next(self._versions))
        if "spec" in parts:
            known["metadata"]["generation"] += 1
        self._tell(resource, "MODIFIED", known)
        return copy.deepcopy(known)

    def remove(self, resource: Resource, namespace: str, name: str) -> None:
        gone = self.kind(resource).pop((namespace, name), None)
        if gone is None:
            return
        gone["metadata"]["resourceVersion"] = str(next(self._versions))
        self._tell(resource, "DELETED", gone)
        for kind in (JOBS, PODS, CONFIGMAPS, SERVICES):
            for (where, child), body in list(self.kind(kind).items()):
                owners = body["metadata"].get("ownerReferences") or []
                if gone["metadata"]["uid"] in [owner["uid"] for owner in owners]:
                    self.remove(kind, where, child)

    def run_job_controller(self) -> None:
        """One step of each Job: a pod is made, starts, ends; the Job ends with it, or goes away."""
        for (namespace, name), job in list(self.kind(JOBS).items()):
            pods = [p for p in self.kind(PODS).values() if p["metadata"]["ownerReferences"][0]["uid"] == uid_of(job)]
            if job["metadata"].get("deletionTimestamp"):
                for pod in pods:
                    self.remove(PODS, namespace, pod["metadata"]["name"])
                self.remove(JOBS, namespace, name)
            elif not any(c["status"] == "True" for c in job.get("status", {}).get("conditions", [])):
                self._advance(job, pods)

    def _advance(self, job: Body, pods: list[Body]) -> None:
        live = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
        if not live:
            self._next_pod(job, pods)
            return
        (pod,) = live
        if pod["status"]["phase"] == "Pending":
            state: Body = {"running": {"startedAt": self.now()}}
            self.change(PODS, pod, status={"phase": "Running", "containerStatuses": [container(state)]})
            return
        code = self.random.choice([0, 0, 0, 1, 75])
        phase = "Failed" if code else "Succeeded"
        ended: Body = {"terminated": {"exitCode": code, "finishedAt": self.now()}}
        self.change(PODS, pod, status={"phase": phase, "containerStatuses": [container(ended)]})

    def _next_pod(self, job: Body, pods: list[Body]) -> None:
        """What the Job controller concludes from the pods that have ended."""
        codes = [pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] for pod in pods]
        failed = codes.count(1)
        if 0 in codes:
            done = {"type": "Complete", "status": "True", "lastTransitionTime": self.now()}
            self.change(JOBS, job, status={"failed": failed, "conditions": [done]})
        elif failed > job["spec"]["backoffLimit"]:
            over = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "…"}
            over["lastTransitionTime"] = self.now()
            self.change(JOBS, job, status={"failed": failed, "conditions": [over]})
        else:
            if failed != job.get("status", {}).get("failed", 0):
                self.change(JOBS, job, status={"failed": failed})
            meta = job["metadata"]
            owner = {"kind": "Job", "uid": meta["uid"], "controller": True}
            body = {
                "metadata": {
                    "name": f"{meta['name']}-{len(pods)}-{meta['uid'][-6:]}",
                    "labels": meta["labels"],
                    "ownerReferences": [owner],
                },
                "spec": {"nodeName": "node-1", "containers": job["spec"]["template"]["spec"]["containers"]},
                "status": {"phase": "Pending"},
            }
            self.put_new(PODS, meta["namespace"], body)

    def _existing(self, resource: Resource, namespace: str, name: str) -> Body:
        known = self.kind(resource).get((namespace, name))
        if known is None:
            raise NotFoundError(404, "NotFound", name)
        return known

    def _tell(self, resource: Resource, kind: str, body: Body) -> None:
        watched = resource in (FINETUNEJOBS, FINETUNEPROFILES, JOBS, PODS) and resource is not EVENTS
        ours = resource in (FINETUNEJOBS, FINETUNEPROFILES) or JOB_LABEL in (body["metadata"].get("labels") or {})
        if watched and ours and self.random.random() >= self.lost_rate:
            self.pending.append((resource, kind, copy.deepcopy(body)))

    async def _faulty(self, act: Callable[[], Any]) -> Any:
        """Does it; or fails before, or fails after; or the operator dies before or after."""
        dice = self.random.random() / self.fault_rate if self.fault_rate else 1.0
        if dice < 0.3:
            refusals = [ApiError(500, "InternalError", "…"), ApiError(429, "TooMany", "…"), TimeoutError()]
            raise self.random.choice(refusals)
        if dice < 0.4:
            raise KilledError
        answer = act()
        if dice < 0.7:
            raise self.random.choice([TimeoutError(), ApiError(504, "Timeout", "…")])
        if dice < 0.8:
            raise KilledError
        return answer


def uid_of(body: Body) -> str:
    return str(body["metadata"]["uid"])


def container(state: Body) -> Body:
    return {"name": "trainer", "state": state}
