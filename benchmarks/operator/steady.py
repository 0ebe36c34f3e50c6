"""Many FineTuneJobs present: what the operator holds, what it costs while nothing happens, how soon it sees a change,
and how soon it is at work after a start."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from benchmarks.operator.bare import Object
from benchmarks.operator.jobs import collection, create, names, until
from benchmarks.operator.plane import Plane, quantile, sum_of

REST = "rest"
"""Namespace of the suspended jobs."""
PATIENCE = 900.0
QUIET_SECONDS = 5.0


@dataclass(frozen=True)
class Idle:
    """`seconds` in which nothing happened."""

    seconds: float
    memory: float
    peak: float
    cpu: float
    """Share of one core."""


@dataclass
class Trickle:
    """From edits of spec to the status that tells of them, as another client's watch sees it."""

    seconds: list[float] = field(default_factory=list)
    queue: str = ""
    """99th percentile of finetune_operator_queue_seconds, by its buckets."""
    operator_cpu: float = 0.0

    def quantile(self, q: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


@dataclass(frozen=True)
class ColdStart:
    """Seconds from the start of the process."""

    ready: float
    first_status: float
    """Until the status tells of an edit that was made while no operator ran: Lease included."""
    all_seen: float
    """Until every job was reconciled once."""


async def fill(plane: Plane, count: int) -> None:
    """`count` suspended jobs."""
    await create(plane.admin, REST, count, suspend=True)

    async def done() -> bool:
        return await plane.jobs_in("Suspended") >= count

    await until(done, PATIENCE, "the suspension of all")


async def measure_idle(plane: Plane, seconds: float) -> Idle:
    """Waits until the queue is empty, a little longer, and then watches the operator do nothing."""

    async def empty() -> bool:
        return sum_of(await plane.metrics(), "finetune_operator_queue_depth") == 0

    await until(empty, PATIENCE, "an empty queue")
    await asyncio.sleep(QUIET_SECONDS)
    cpu, began = plane.cpu(), time.monotonic()
    await asyncio.sleep(seconds)
    spent = plane.spent(cpu)["operator"] / (time.monotonic() - began)
    return Idle(seconds, plane.memory(), plane.peak(), spent)


async def edit(plane: Plane, name: str, value: int) -> int:
    """Changes a suspended job in a way that its status must tell of. Returns the new generation."""
    body = {"spec": {"runPolicy": {"ttlSecondsAfterFinished": value}}}
    answer = await plane.admin.merge(f"{collection(REST)}/{name}", body)
    return int(answer["metadata"]["generation"])


def tells_of(job: Object) -> int:
    """The generation that the status speaks of."""
    return int((job.get("status") or {}).get("observedGeneration") or 0)


async def measure_trickle(plane: Plane, present: int, rate: float, seconds: float, seed: int) -> Trickle:
    """Edits `rate` of the suspended jobs a second, each job once; `seed` (up to 9) makes the edits differ."""
    count = min(present, int(rate * seconds))
    chosen = random.Random(seed).sample(names(present), count)  # noqa: S311 - the same jobs in every run
    sent: dict[str, float] = {}
    wanted: dict[str, int] = {}
    told: dict[str, tuple[int, float]] = {}
    found, all_told = Trickle(), asyncio.Event()
    path = collection(REST)
    before, cpu = await plane.metrics(), plane.cpu()
    version = await plane.admin.version(path)

    def settle(name: str) -> None:
        """The edit's answer and the news of its status may come in either order."""
        if name in wanted and told.get(name, (0, 0.0))[0] >= wanted[name]:
            found.seconds.append(told[name][1] - sent.pop(name))
            del wanted[name]
        if len(found.seconds) == count:
            all_told.set()

    async def follow() -> None:
        async for event in plane.admin.watch(path, version):
            name, generation = event["object"]["metadata"]["name"], tells_of(event["object"])
            if name in sent and generation > told.get(name, (0, 0.0))[0]:
                told[name] = (generation, time.monotonic())
                settle(name)

    async def change(name: str, value: int) -> None:
        sent[name] = time.monotonic()
        wanted[name] = await edit(plane, name, value)
        settle(name)

    async with asyncio.timeout(seconds + 120), asyncio.TaskGroup() as group:
        following = group.create_task(follow())
        began = time.monotonic()
        for number, name in enumerate(chosen):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            group.create_task(change(name, 100_000 * seed + number))
        await all_told.wait()
        following.cancel()
    found.queue = quantile(await plane.metrics(), before, "finetune_operator_queue_seconds", 0.99)
    found.operator_cpu = plane.spent(cpu)["operator"]
    return found


async def measure_cold_start(plane: Plane, present: int) -> ColdStart:
    """Stops the operator, edits a job, starts the operator again."""
    assert await asyncio.to_thread(plane.operator.stop) == 0, "the operator leaves in order"
    name = names(1)[0]
    generation = await edit(plane, name, 7200)
    version = await plane.admin.version(collection(REST))
    began = time.monotonic()

    async def told() -> float:
        async for event in plane.admin.watch(collection(REST), version):
            job = event["object"]
            if job["metadata"]["name"] == name and tells_of(job) >= generation:
                return time.monotonic()
        raise RuntimeError("the watch ended")

    async def all_seen() -> bool:
        metrics = await plane.metrics()
        passes = sum_of(metrics, "finetune_operator_reconcile_seconds_count")
        return passes >= present and sum_of(metrics, "finetune_operator_queue_depth") == 0

    first = asyncio.create_task(told())
    ready = await plane.start()
    everything = await until(all_seen, PATIENCE, "a look at every job", every=0.2)
    async with asyncio.timeout(60):
        return ColdStart(ready, await first - began, everything - began)
