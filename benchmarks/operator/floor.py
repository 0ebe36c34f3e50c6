"""The floor: the writes of the operator without the operator.

What it writes is not a second description of what the operator does: the operator's own pass over one new job is run
against a recorder, and the recorded writes are repeated with other names and UIDs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from finetune_operator.client import Kube
from finetune_operator.main import assemble
from finetune_operator.metrics import Metrics
from finetune_operator.projections import Key, job_state, profile_state
from finetune_operator.resources import FINETUNEJOBS, Resource
from finetune_operator.settings import Settings

from benchmarks.operator.bare import Bare, Object, concurrently
from benchmarks.operator.jobs import CREATORS, PROFILE, Arrivals, children, collection, fine_tune_job, names, profile

NAME = "name-of-the-job"
NAMESPACE = "namespace-of-the-job"
UID = "0feedbee-0000-4000-8000-000000000000"
VERSION = "987654321"
MADE = {"uid": UID, "resourceVersion": VERSION, "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}


@dataclass(frozen=True)
class Write:
    """One recorded request, with placeholders."""

    method: str
    path: str
    body: str
    content: str
    what: str

    async def send(self, api: Bare, job: Object) -> None:
        """Repeats it for another job."""
        meta = job["metadata"]
        put = ((UID, meta["uid"]), (UID[:8], meta["uid"][:8]), (NAMESPACE, meta["namespace"]), (NAME, meta["name"]))
        path, body = self.path, self.body
        for placeholder, value in (*put, (VERSION, meta["resourceVersion"])):
            path, body = path.replace(placeholder, value), body.replace(placeholder, value)
        await api.send(self.method, path, body.encode(), self.content)


class Recorder:
    """Stands for the operator's client; answers as an API server without objections would."""

    def __init__(self, job: Object) -> None:
        self._job = job
        self.writes: list[Write] = []

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        return self._job if resource is FINETUNEJOBS else None

    async def list_pages(self, *_: object, **__: object) -> AsyncIterator[list[Object]]:
        yield []

    async def create(self, resource: Resource, namespace: str | None, body: Object) -> Object:
        self._record("POST", resource, resource.path(namespace) + "?fieldManager=finetune-operator", body)
        return {**body, "metadata": {**body["metadata"], **MADE, "uid": f"{resource.plural}-uid"}}

    async def apply_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        path = resource.path(namespace, name, "status") + "?fieldManager=finetune-operator&force=true"
        self._record("PATCH", resource, path, body, "application/apply-patch+yaml")
        return {**self._job, "status": body["status"]}

    def _record(
        self, method: str, resource: Resource, path: str, body: Object, content: str = "application/json"
    ) -> None:
        what = f"{method} {resource.plural}" + ("/status" if method == "PATCH" else "")
        self.writes.append(Write(method, path, json.dumps(body), content, what))


async def recorded() -> list[Write]:
    """The operator's writes for one new job, up to its first status, in its order."""
    body = fine_tune_job(NAME)
    job = {**body, "metadata": {"name": NAME, "namespace": NAMESPACE, **MADE}}
    recorder = Recorder(job)
    parts = assemble(Settings(), cast(Kube, recorder), Metrics())
    parts.store.put_profile(profile_state({**profile(PROFILE), "metadata": {"name": PROFILE, **MADE}}))
    parts.store.put_job(job_state(job))
    await parts.controller.reconcile(Key(NAMESPACE, NAME))
    return recorder.writes


async def floor(maker: Bare, rights: Path, namespace: str, count: int, writes: list[Write]) -> tuple[float, float]:
    """Seconds from the first FineTuneJob until the last child Job exists, and until the last write is done. The
    FineTuneJobs are made as for the operator; whoever makes them hands each on to as many workers as the operator has,
    with the operator's own rights."""
    await maker.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    arrivals = Arrivals(maker, namespace, await maker.version(children(namespace)))
    all_there = asyncio.create_task(arrivals.last(count))
    made: asyncio.Queue[Object] = asyncio.Queue()

    async def make(name: str) -> None:
        made.put_nowait(await maker.create(collection(namespace), fine_tune_job(name)))

    async with Bare(rights) as api:

        async def work() -> None:
            while True:
                job = await made.get()
                for write in writes:
                    await write.send(api, job)
                made.task_done()

        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(work()) for _ in range(Settings().workers)]
            await concurrently((make(name) for name in names(count)), CREATORS)
            await made.join()
            for worker in workers:
                worker.cancel()
    written = time.monotonic()
    return await all_there - began, written - began
