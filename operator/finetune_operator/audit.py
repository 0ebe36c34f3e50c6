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
        """Lists everything, takes it over, forgets what is not there any more, and wakes every job. Memory is then at
        least as new as whatever any operator has seen. Raises ApiError and what aiohttp raises."""
        for resource in AUDITED:
            before = self._known(resource)
            listed: set[str] = set()
            async for body in self._list(resource):
                listed.add(str(body["metadata"]["uid"]))
                self._take_over(resource, body)
            for (namespace, name), (uid, _) in before.items():
                if uid not in listed:
                    self._forget(resource, namespace, name, uid)
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
        known = self._known(resource).get((namespace, name))
        body = await self._kube.get(resource, namespace or None, name)
        if known is not None and (body is None or body["metadata"]["uid"] != known[0]):
            self._forget(resource, namespace, name, known[0])
        if body is not None:
            self._take_over(resource, body)
        for key in self._concerned(resource, Key(namespace, name)):
            self._wake(key)

    def _take_over(self, resource: Resource, body: Object) -> None:
        store = self._store
        if resource is FINETUNEPROFILES:
            store.put_profile(profile_state(body))
        elif resource is FINETUNEJOBS:
            store.put_job(job_state(body))
        elif resource is JOBS:
            store.put_child(child_state(body))
        else:
            store.put_pod(pod_state(body))

    def _forget(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Unless another one has taken the name meanwhile."""
        store, key = self._store, Key(namespace, name)
        if resource is FINETUNEPROFILES:
            if name in store.profiles and store.profiles[name].uid == uid:
                store.drop_profile(name)
        elif resource is FINETUNEJOBS:
            store.drop_job(key, uid)
        elif resource is JOBS:
            store.drop_child(key, uid)
        else:
            for pod in [pod for pod in store.pods() if pod.uid == uid]:
                store.drop_pod(pod)

    def _concerned(self, resource: Resource, key: Key) -> list[Key]:
        """The FineTuneJobs that an object matters to."""
        if resource is FINETUNEPROFILES:
            return list(self._store.jobs)
        if resource in (FINETUNEJOBS, JOBS):
            return [key]
        return [pod.job for pods in map(self._store.pods_of, self._store.jobs) for pod in pods if pod.key == key]

    async def _list(self, resource: Resource, metadata_only: bool = False) -> AsyncIterator[Object]:
        scope = self._scope
        pages = self._kube.list_pages(
            resource, scope.namespace_of(resource), scope.labels(resource), scope.fields(resource), metadata_only
        )
        async for page in pages:
            for body in page:
                yield body
