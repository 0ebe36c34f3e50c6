"""Gathers what a plan needs: from memory, and from the API server itself where the plan asks for it."""

from __future__ import annotations

from datetime import datetime

from finetune_api.training_run import RunIdentity

from finetune_operator.client import Kube
from finetune_operator.policies.readiness import MOUNT_PATIENCE, may_hang
from finetune_operator.progress.board import ProgressBoard
from finetune_operator.projections import ChildState, JobState, Key, PodState, child_state, job_state, pod_state
from finetune_operator.reconcile.observed import Observed
from finetune_operator.reconcile.status import read
from finetune_operator.resources import CONFIGMAPS, CORE_EVENTS, FINETUNEJOBS, JOBS, PODS
from finetune_operator.specs.configmap import Snapshot, snapshot_in
from finetune_operator.specs.naming import JOB_UID_LABEL, snapshot_name
from finetune_operator.store import Store
from finetune_operator.times import parse


class Observer:
    """Reads; never writes to the API server."""

    def __init__(self, kube: Kube, store: Store, board: ProgressBoard, default_image: str) -> None:
        self._kube = kube
        self._store = store
        self._board = board
        self._default_image = default_image

    async def observe(self, key: Key, now: datetime, look: bool) -> tuple[JobState, Observed] | None:
        """The FineTuneJob and everything around it; None when there is no such job.

        With `look` the children come from the API server, so that absence is certain.
        """
        if look:
            await self._look(key)
        job = self._store.jobs.get(key)
        if job is None:
            return None
        identity = RunIdentity(name=key.name, namespace=key.namespace, uid=job.uid)
        pods = tuple(pod for pod in self._store.pods_of(key) if pod.owner_uid == job.uid)
        child = self._store.children.get(key)
        created = parse(job.created)
        assert created is not None
        return job, Observed(
            identity=identity,
            generation=job.generation,
            created=created,
            deleting=job.deleting,
            spec=job.spec,
            status=read(job.status),
            profiles=self._store.profiles,
            default_image=self._default_image,
            child=child,
            pods=pods,
            warning=self._store.warning_of(key),
            note=self._store.note_of(child.uid) if child is not None else None,
            mount_failure=await self._mount_failure(pods, now),
            reading=self._board.reading(job.uid, now),
            looked=look,
            snapshot=await self._snapshot(identity) if look else None,
        )

    async def _look(self, key: Key) -> None:
        """Brings memory up to date with the API server for one job. Only what was remembered before the question can be
        found gone by the answer: the watches go on meanwhile."""
        known = self._store.jobs.get(key)
        live = await self._kube.get(FINETUNEJOBS, key.namespace, key.name)
        if live is not None:
            self._store.put_job(job_state(live))
        elif known is not None:
            self._store.drop_job(key, known.uid)
            return
        child: ChildState | None = self._store.children.get(key)
        body = await self._kube.get(JOBS, key.namespace, key.name)
        if body is not None:
            self._store.put_child(child_state(body))
        elif child is not None:
            self._store.drop_child(key, child.uid)
        job = self._store.jobs.get(key)
        if job is not None:
            await self._look_at_pods(job)

    async def _look_at_pods(self, job: JobState) -> None:
        selector = f"{JOB_UID_LABEL}={job.uid}"
        before = self._store.pods_of(job.key)
        found: set[str] = set()
        async for page in self._kube.list_pages(PODS, job.key.namespace, labels=selector):
            for body in page:
                found.add(body["metadata"]["uid"])
                self._store.put_pod(pod_state(body))
        for pod in before:
            if pod.uid not in found and not pod.gone:
                self._store.drop_pod(pod)

    async def _snapshot(self, identity: RunIdentity) -> Snapshot | None:
        body = await self._kube.get(CONFIGMAPS, identity.namespace, snapshot_name(identity))
        return snapshot_in(body) if body is not None else None

    async def _mount_failure(self, pods: tuple[PodState, ...], now: datetime) -> str:
        """The newest Warning Event of a pod that hangs on its node without saying why."""
        hanging = [pod for pod in pods if not pod.ended and may_hang(pod)]
        created = parse(hanging[-1].created) if hanging else None
        if created is None or (now - created).total_seconds() < MOUNT_PATIENCE:
            return ""
        pod = hanging[-1]
        newest, message = "", ""
        selector = f"involvedObject.uid={pod.uid},type=Warning"
        async for page in self._kube.list_pages(CORE_EVENTS, pod.key.namespace, fields=selector):
            for event in page:
                at = str(event.get("lastTimestamp") or event.get("eventTime") or "")
                if event.get("reason") in ("FailedMount", "FailedAttachVolume") and at >= newest:
                    newest, message = at, str(event.get("message") or "")
        return message
