"""Many FineTuneJobs at once, beside the floor."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from benchmarks.operator.floor import floor, recorded
from benchmarks.operator.jobs import Arrivals, children, collection, completed, create, until
from benchmarks.operator.plane import Plane, calls, sum_of

PATIENCE = 900.0


@dataclass(frozen=True)
class Floor:
    """What the bare client took."""

    writes: dict[str, int]
    children_seconds: float
    all_seconds: float
    completed_seconds: float
    cpu_children: dict[str, float]
    """CPU seconds until the last child Job existed."""
    cpu_completed: dict[str, float]
    """CPU seconds until KWOK had completed all."""


@dataclass(frozen=True)
class Burst:
    """What the operator took, from the first FineTuneJob on."""

    children_seconds: float
    succeeded_seconds: float
    cpu_children: dict[str, float]
    cpu_succeeded: dict[str, float]
    calls_children: dict[str, float]
    """Requests until the last child Job existed, by verb and resource."""
    calls_succeeded: dict[str, float]
    passes: float
    """Reconciles until all had succeeded."""
    children: int
    owners: int
    phases: dict[str, int]
    reasons: dict[str, int]
    """Of the condition Succeeded."""


async def measure_floor(plane: Plane, count: int) -> Floor:
    """Repeats the operator's writes for `count` jobs, waits for KWOK to complete them, and clears up."""
    writes = await recorded()
    namespace, before, began = "floor", plane.cpu(), time.monotonic()
    children_seconds, all_seconds = await floor(plane.admin, plane.rights, namespace, count, writes)
    cpu = plane.spent(before)

    async def done() -> bool:
        return await completed(plane.admin, namespace) == count

    ended = await until(done, PATIENCE, "the completion of the floor's Jobs", every=1.0) - began
    cpu_ended = plane.spent(before)
    await plane.admin.send("DELETE", f"{collection(namespace)}?propagationPolicy=Background", b"{}")

    async def gone() -> bool:
        left = [f"/api/v1/namespaces/{namespace}/{kind}" for kind in ("pods", "services", "configmaps")]
        counts = [len(await plane.admin.list(path, metadata=True)) for path in (children(namespace), *left)]
        return sum(counts) <= 1  # kube-root-ca.crt stays

    await until(gone, PATIENCE, "the removal of the floor's objects", every=2.0)
    return Floor(dict(Counter(write.what for write in writes)), children_seconds, all_seconds, ended, cpu, cpu_ended)


async def measure_burst(plane: Plane, namespace: str, count: int) -> Burst:
    """`count` FineTuneJobs at once, until all have succeeded."""
    admin = plane.admin
    arrivals = Arrivals(admin, namespace, await admin.version(children("default")))
    waiting = asyncio.create_task(arrivals.last(count))
    requests, cpu, began = await plane.metrics(), plane.cpu(), time.monotonic()
    await create(admin, namespace, count)
    there = await waiting
    cpu_children, calls_children = plane.spent(cpu), calls(await plane.metrics(), requests)

    async def all_succeeded() -> bool:
        return await plane.jobs_in("Succeeded") >= count

    ended = await until(all_succeeded, PATIENCE, "the success of all")
    metrics, cpu_succeeded = await plane.metrics(), plane.spent(cpu)
    passes = "finetune_operator_reconcile_seconds_count"
    jobs = await admin.list(collection(namespace))
    made = await admin.list(children(namespace), metadata=True)
    owners = {owner["uid"] for child in made for owner in child["metadata"]["ownerReferences"]}
    conditions = [c for job in jobs for c in job["status"]["conditions"] if c["type"] == "Succeeded"]
    return Burst(
        children_seconds=there - began,
        succeeded_seconds=ended - began,
        cpu_children=cpu_children,
        cpu_succeeded=cpu_succeeded,
        calls_children=calls_children,
        calls_succeeded=calls(metrics, requests),
        passes=sum_of(metrics, passes) - sum_of(requests, passes),
        children=len(made),
        owners=len(owners),
        phases=dict(Counter(job["status"]["phase"] for job in jobs)),
        reasons=dict(Counter(condition["reason"] for condition in conditions)),
    )
