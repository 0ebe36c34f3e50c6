"""Events in, keys out: kopf delivers, the store remembers, the queue is told whom it concerns. Nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_operator.projections import (
    Key,
    child_state,
    job_state,
    pod_state,
    profile_state,
    warned,
)
from finetune_operator.resources import CORE_EVENTS, FINETUNEJOBS, FINETUNEPROFILES, JOBS, PODS, Resource
from finetune_operator.store import Store

Object = dict[str, Any]
Handle = Callable[[str | None, Object], None]
MODIFIED, DELETED = "MODIFIED", "DELETED"


class Handlers:
    """One method for each watched kind. They run on the operator's event loop."""

    def __init__(self, store: Store, wake: Callable[[Key], None]) -> None:
        self._store = store
        self._wake = wake

    def by_resource(self) -> dict[Resource, Handle]:
        """What is watched, and who takes it."""
        return {
            FINETUNEJOBS: self.on_job,
            FINETUNEPROFILES: self.on_profile,
            JOBS: self.on_child,
            PODS: self.on_pod,
            CORE_EVENTS: self.on_event,
        }

    def on_job(self, kind: str | None, body: Object) -> None:
        job = job_state(body)
        if kind == DELETED:
            self._store.drop_job(job.key, job.uid)
        elif not self._late(kind, job.uid):
            self._store.put_job(job)
        self._wake(job.key)

    def on_profile(self, kind: str | None, body: Object) -> None:
        """A profile matters to the jobs that were not accepted yet."""
        profile = profile_state(body)
        if kind == DELETED:
            self._store.drop_profile(profile.name)
        else:
            self._store.put_profile(profile)
        for key, job in self._store.jobs.items():
            if job.phase == "Pending":
                self._wake(key)

    def on_child(self, kind: str | None, body: Object) -> None:
        child = child_state(body)
        if kind == DELETED:
            self._store.drop_child(child.key, child.uid)
        elif not self._late(kind, child.uid):
            self._store.put_child(child)
        self._wake(child.key)

    def on_pod(self, kind: str | None, body: Object) -> None:
        pod = pod_state(body)
        if kind == DELETED:
            self._store.put_pod(pod)  # its last state may hold the end that no earlier one showed
            self._store.drop_pod(pod)
        elif not self._late(kind, pod.uid):
            self._store.put_pod(pod)
        self._wake(pod.job)

    def _late(self, kind: str | None, uid: str) -> bool:
        """News of what is known to be gone. What comes into view (ADDED, or listed) is there, even if it left once."""
        return kind == MODIFIED and self._store.buried(uid)

    def on_event(self, kind: str | None, body: Object) -> None:
        """A Warning about a Job: the Job controller cannot make a pod."""
        warning = warned(body)
        if kind != DELETED and self._store.put_warning(warning):
            self._wake(warning.job)
