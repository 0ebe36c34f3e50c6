"""Compares what is remembered with the API server. Fills the store at the start, and finds later what a watch missed:
after a broken watch kopf lists anew and says nothing of objects that vanished in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import aiohttp

from finetune_operator.client import ApiError, Kube, Object
from finetune_operator.hearing import Hearing
from finetune_operator.metrics import Metrics
from finetune_operator.projections import Key, child_state, job_state, pod_state, profile_state, version_of
from finetune_operator.resources import FINETUNEJOBS, FINETUNEPROFILES, JOBS, PODS, Resource
from finetune_operator.scope import Scope
from finetune_operator.store import Store

logger = logging.getLogger(__name__)

AUDITED = (FINETUNEJOBS, FINETUNEPROFILES, JOBS, PODS)
FIRST_AUDIT_SECONDS = 30.0
PATIENCE_SECONDS = 10.0
"""How long a watch may take at most to bring what a LIST has shown."""


class Auditor:
    """Primes the store, then audits it."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        metrics: Metrics,
        scope: Scope,
        wake: Callable[[Key], None],
        hearing: Hearing,
    ) -> None:
        self._kube = kube
        self._store = store
        self._metrics = metrics
        self._scope = scope
        self._wake = wake
        self._hearing = hearing

    async def prime(self) -> None:
        """Lists everything once and wakes every job. Raises ApiError and what aiohttp raises."""
        async for body in self._list(FINETUNEPROFILES):
            self._store.put_profile(profile_state(body))
        async for body in self._list(FINETUNEJOBS):
            self._store.put_job(job_state(body))
        async for body in self._list(JOBS):
            self._store.put_child(child_state(body))
        async for body in self._list(PODS):
            self._store.put_pod(pod_state(body))
        self._store.primed = True
        for key in list(self._store.jobs):
            self._wake(key)

    async def run(self, interval: float) -> None:
        """Audits every `interval` seconds until it is cancelled."""
        await asyncio.sleep(min(interval, FIRST_AUDIT_SECONDS))
        while True:
            try:
                await self.audit(min(PATIENCE_SECONDS, interval / 4))
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                logger.warning("the audit could not be made: %s", error)
            await asyncio.sleep(interval)

    async def audit(self, patience: float = PATIENCE_SECONDS) -> int:
        """Repairs the store. Returns how many objects the watches had missed for `patience` seconds."""
        began = self._hearing.now()
        suspects = {resource: await self._differences(resource) for resource in AUDITED}
        if not any(suspects.values()):
            return 0
        await asyncio.sleep(patience)
        drift = 0
        for resource, earlier in suspects.items():
            still = earlier & await self._differences(resource) if earlier else set()
            for namespace, name, _ in sorted(still):
                await self._repair(resource, namespace, name)
                self._metrics.audit_repairs.labels(resource.plural).inc()
            if any(exists for _, _, exists in still):
                # what vanished does not count: after a relist kopf never tells of it, though the watch is sound
                self._hearing.missed(resource, began)
            drift += len(still)
        return drift

    async def _differences(self, resource: Resource) -> set[tuple[str, str, bool]]:
        """(namespace, name, whether it exists) of what is newer on the API server than in memory, or only in one of
        them."""
        known = self._known(resource)
        different: set[tuple[str, str, bool]] = set()
        seen: set[tuple[str, str]] = set()
        async for body in self._list(resource, metadata_only=True):
            meta = body["metadata"]
            where = (str(meta.get("namespace") or ""), str(meta["name"]))
            seen.add(where)
            if known.get(where, ("", -1))[1] < version_of(body) or known[where][0] != meta["uid"]:
                different.add((*where, True))
        return different | {(*where, False) for where in known.keys() - seen}

    def _known(self, resource: Resource) -> dict[tuple[str, str], tuple[str, int]]:
        """(namespace, name) → (uid, version) of what is remembered."""
        store = self._store
        if resource is FINETUNEPROFILES:
            return {("", name): (p.uid, p.version) for name, p in store.profiles.items()}
        if resource is FINETUNEJOBS:
            return {(key.namespace, key.name): (j.uid, j.version) for key, j in store.jobs.items()}
        if resource is JOBS:
            return {(key.namespace, key.name): (c.uid, c.version) for key, c in store.children.items()}
        return {(pod.key.namespace, pod.key.name): (pod.uid, pod.version) for pod in store.pods()}

    async def _repair(self, resource: Resource, namespace: str, name: str) -> None:
        """Takes over one object as it is."""
        logger.warning("the watch missed %s %s/%s", resource.kind, namespace, name)
        body = await self._kube.get(resource, namespace or None, name)
        key = Key(namespace, name)
        store = self._store
        if resource is FINETUNEPROFILES:
            if body is None:
                store.drop_profile(name)
            else:
                store.put_profile(profile_state(body))
            for waiting in list(store.jobs):
                self._wake(waiting)
        elif resource is FINETUNEJOBS:
            if body is not None:
                store.put_job(job_state(body))
            elif key in store.jobs:
                store.drop_job(key, store.jobs[key].uid)
            self._wake(key)
        elif resource is JOBS:
            if body is not None:
                store.put_child(child_state(body))
            elif key in store.children:
                store.drop_child(key, store.children[key].uid)
            self._wake(key)
        else:
            self._repair_pod(key, body)

    def _repair_pod(self, key: Key, body: Object | None) -> None:
        state = pod_state(body) if body is not None else None
        for pod in [pod for pod in self._store.pods() if pod.key == key]:
            if state is None or state.uid != pod.uid:
                self._store.drop_pod(pod)
                self._wake(pod.job)
        if state is not None:
            self._store.put_pod(state)
            self._wake(state.job)

    async def _list(self, resource: Resource, metadata_only: bool = False) -> AsyncIterator[Object]:
        scope = self._scope
        pages = self._kube.list_pages(
            resource, scope.namespace_of(resource), scope.labels(resource), scope.fields(resource), metadata_only
        )
        async for page in pages:
            for body in page:
                yield body
