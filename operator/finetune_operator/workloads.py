"""What Kueue says of the Jobs it holds back, for people to read. Read only, and only while some Job is held back.

The state of a Workload: https://kueue.sigs.k8s.io/docs/concepts/workload/. One LIST for all jobs rather than a watch:
where Kueue is not installed there is nothing to watch, and a few seconds more or less do not matter here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp

from finetune_operator.client import ApiError, Kube, NotFoundError, Object
from finetune_operator.policies.queueing import QueueNote
from finetune_operator.projections import Key
from finetune_operator.resources import WORKLOADS
from finetune_operator.store import Store

logger = logging.getLogger(__name__)

JOB_UID = "kueue.x-k8s.io/job-uid"
"""Label of a Workload: UID of its Job."""
INTERVAL_SECONDS = 8.0


def note_of(workload: Object) -> tuple[str, QueueNote] | None:
    """(UID of the Job, what is said of it); None for a Workload of something else."""
    uid = (workload["metadata"].get("labels") or {}).get(JOB_UID)
    if not uid:
        return None
    conditions = {c.get("type"): c for c in (workload.get("status") or {}).get("conditions") or []}
    waits, evicted = conditions.get("QuotaReserved") or {}, conditions.get("Evicted") or {}
    message = str(waits.get("message") or waits.get("reason") or "") if waits.get("status") == "False" else ""
    stopped = str(evicted.get("message") or evicted.get("reason") or "") if evicted.get("status") == "True" else ""
    return str(uid), QueueNote(message, stopped)


class WorkloadReader:
    """One task for all jobs."""

    def __init__(self, kube: Kube, store: Store, namespace: str, wake: Callable[[Key], None]) -> None:
        """`namespace`: the only one served, or empty for all."""
        self._kube = kube
        self._store = store
        self._namespace = namespace or None
        self._wake = wake

    async def run(self) -> None:
        """Reads until it is cancelled. Kueue, or the right to read its Workloads, may be missing: then nothing is
        known but that a Job is held back."""
        while True:
            try:
                await self.read()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                level = logging.DEBUG if isinstance(error, NotFoundError) else logging.WARNING
                logger.log(level, "Kueue's Workloads cannot be read: %s", error)
            await asyncio.sleep(INTERVAL_SECONDS)

    async def read(self) -> None:
        """Brings the store up to date and wakes the jobs of which something else is said now."""
        held_back = {
            child.uid: key
            for key, child in self._store.children.items()
            if child.suspended and child.finished_at is None
        }
        notes: dict[str, QueueNote] = {}
        if held_back:
            async for page in self._kube.list_pages(WORKLOADS, self._namespace, labels=JOB_UID):
                notes.update(note for note in map(note_of, page) if note is not None and note[0] in held_back)
        for uid in self._store.put_notes(notes):
            if uid in held_back:
                self._wake(held_back[uid])
