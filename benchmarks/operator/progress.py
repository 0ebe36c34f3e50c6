"""Progress of many running jobs, a tenth of whose trainers cannot be reached."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

from benchmarks.operator.bare import Object, concurrently
from benchmarks.operator.jobs import CREATORS, NOWHERE, collection, create, until
from benchmarks.operator.plane import Plane
from benchmarks.operator.steady import Trickle, measure_trickle
from benchmarks.operator.trainers import Trainers, address

RUNNING = "running"
PATIENCE = 900.0
UNREACHABLE = 10
"""Every tenth trainer; these are silent and refusing in turn."""


@dataclass(frozen=True)
class Followed:
    """What following `count` trainings came to in `seconds`."""

    count: int
    seconds: float
    writes_per_second: float
    most_writes: int
    """In any one second."""
    ages: list[float]
    """Seconds since the progress in each status was read, for the trainers that answer; sorted."""
    never: int
    """Trainers that answer, whose job shows no progress."""
    outcomes: dict[str, float]
    """finetune_operator_progress_requests_total."""
    trickle: Trickle
    """Edits of other jobs meanwhile."""
    operator_cpu: float
    """Share of one core."""


async def run_pods(plane: Plane, count: int) -> dict[str, tuple[str, str]]:
    """`count` jobs whose pods run, by a status as a kubelet would write it. Returns address → (job, pod) by UID."""
    admin = plane.admin
    await create(admin, RUNNING, count, profileName=NOWHERE)
    path = f"/api/v1/namespaces/{RUNNING}/pods"

    async def made() -> bool:
        return len(await admin.list(path, metadata=True)) == count

    await until(made, PATIENCE, "the pods of all", every=2.0)
    pods = await admin.list(path, metadata=True)
    found = {}
    requests = []
    for number, pod in enumerate(pods):
        meta = pod["metadata"]
        found[address(number)] = (meta["labels"]["finetune.dev/job-uid"], meta["uid"])
        requests.append(admin.merge(f"{path}/{meta['name']}/status", {"status": runs(address(number))}))
    await concurrently(requests, CREATORS)
    return found


def runs(ip: str) -> Object:
    """Status of a pod that runs."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    container = {"name": "trainer", "image": "none", "imageID": "", "ready": True, "restartCount": 0}
    state = {"running": {"startedAt": now}}
    return {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "containerStatuses": [{**container, "state": state}],
    }


async def measure_progress(plane: Plane, count: int, present: int, rate: float, seconds: float) -> Followed:
    """Lets trainers answer, waits until each could be asked twice, and watches for `seconds`."""
    pods = await run_pods(plane, count)
    mute = [host for number, host in enumerate(pods) if number % UNREACHABLE == 0]
    talking = {host: pod for host, pod in pods.items() if host not in mute}
    trainers = Trainers(plane.operator.progress_port, talking, silent=mute[::2])
    servers = await trainers.start()
    try:

        async def all_run() -> bool:
            return await plane.jobs_in("Running") >= count

        await until(all_run, PATIENCE, "all to run")
        await asyncio.sleep(min(seconds, 2 * count / 20))
        return await _follow(plane, talking, present, rate, seconds)
    finally:
        for server in servers:
            server.close()


async def _follow(
    plane: Plane, talking: dict[str, tuple[str, str]], present: int, rate: float, seconds: float
) -> Followed:
    writes: list[float] = []
    version = await plane.admin.version(collection(RUNNING))

    async def count_writes() -> None:
        async for _ in plane.admin.watch(collection(RUNNING), version, metadata=True):
            writes.append(time.monotonic())

    before, cpu, began = await plane.metrics(), plane.cpu(), time.monotonic()
    counting = asyncio.create_task(count_writes())
    trickle = await measure_trickle(plane, present, rate, seconds, seed=2)
    await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
    counting.cancel()
    lasted = time.monotonic() - began
    metrics, spent = await plane.metrics(), plane.spent(cpu)["operator"]
    now, jobs = datetime.now(UTC), await plane.admin.list(collection(RUNNING))
    answering = {run for run, _ in talking.values()}
    told = [job["status"].get("progress") for job in jobs if job["metadata"]["uid"] in answering]
    ages = [(now - datetime.fromisoformat(p["lastUpdateTime"])).total_seconds() for p in told if p]
    name = "finetune_operator_progress_requests_total"
    outcomes = Counter({dict(labels)["outcome"]: v for (n, labels), v in metrics.items() if n == name})
    outcomes.subtract({dict(labels)["outcome"]: v for (n, labels), v in before.items() if n == name})
    return Followed(
        count=len(jobs),
        seconds=lasted,
        writes_per_second=len(writes) / lasted,
        most_writes=max(Counter(int(at - began) for at in writes).values(), default=0),
        ages=sorted(ages),
        never=len(told) - len(ages),
        outcomes=dict(outcomes),
        trickle=trickle,
        operator_cpu=spent / lasted,
    )
