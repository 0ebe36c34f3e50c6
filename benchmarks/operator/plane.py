"""What runs during the benchmark: the control plane with its pretended nodes, and the operator's process."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families
from support import control_plane
from support.operating import ChartRights, Operator

from benchmarks.operator.bare import Bare
from benchmarks.operator.jobs import NOWHERE, PROFILE, profile, until

ROLES = ("etcd", "API server", "controller manager", "scheduler", "kwok")
NODES = 20
MEBI = 2**20
Sample = tuple[str, tuple[tuple[str, str], ...]]


@dataclass
class Plane:
    """A control plane, the operator beside it (not started at first), and an administrator's client."""

    admin: Bare
    rights: Path
    operator: Operator
    processes: dict[str, psutil.Process]

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far: of each process of the control plane, of the operator, and of this benchmark."""
        processes = {**self.processes, "benchmark": psutil.Process()}
        if self.operator.process is not None:
            processes["operator"] = psutil.Process(self.operator.process.pid)
        times = {role: process.cpu_times() for role, process in processes.items()}
        return {role: spent.user + spent.system for role, spent in times.items()}

    def spent(self, before: dict[str, float]) -> dict[str, float]:
        """CPU seconds since `before`."""
        return {role: round(seconds - before.get(role, 0.0), 2) for role, seconds in self.cpu().items()}

    def memory(self) -> float:
        """MiB that the operator holds (RSS)."""
        assert self.operator.process is not None
        return psutil.Process(self.operator.process.pid).memory_info().rss / MEBI

    def peak(self) -> float:
        """MiB that the operator ever held."""
        assert self.operator.process is not None
        status = Path(f"/proc/{self.operator.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    async def metrics(self) -> dict[Sample, float]:
        """The operator's metrics: (name, sorted labels) → value."""
        text = await asyncio.to_thread(self.operator.get, "/metrics")
        families = text_string_to_metric_families(text)
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}

    async def jobs_in(self, phase: str) -> int:
        """FineTuneJobs in a phase, by the operator's account."""
        return int(sum_of(await self.metrics(), "finetune_operator_jobs", phase=phase))

    async def start(self) -> float:
        """Starts the operator. Returns the seconds from the process's start until it is ready."""
        before, began = self.operator.starts, time.monotonic()
        starting = asyncio.create_task(asyncio.to_thread(self.operator.start))
        await until(lambda: self.operator.starts > before, 5, "the start", every=0.001)
        ready = await until(self._ready, 120, "readiness", every=0.05)
        await starting
        return ready - began

    async def _ready(self) -> bool:
        try:
            return bool(await asyncio.to_thread(self.operator.get, "/readyz"))
        except (OSError, AssertionError):
            return False


def sum_of(metrics: dict[Sample, float], name: str, **labels: str) -> float:
    """Sum over the samples of this name that carry these labels."""
    return sum(v for (n, has), v in metrics.items() if n == name and labels.items() <= dict(has).items())


def calls(metrics: dict[Sample, float], before: dict[Sample, float]) -> dict[str, float]:
    """Requests to the API server since `before`, by verb and resource (and code, where it is an error)."""
    found: dict[str, float] = {}
    for sample, value in metrics.items():
        name, labels = sample[0], dict(sample[1])
        more = value - before.get(sample, 0.0)
        if name == "finetune_operator_api_requests_total" and more:
            failed = "" if labels["code"].startswith("2") else f" {labels['code']}"
            key = f"{labels['verb']} {labels['resource']}{failed}"
            found[key] = found.get(key, 0.0) + more
    return dict(sorted(found.items()))


def quantile(metrics: dict[Sample, float], before: dict[Sample, float], name: str, q: float) -> str:
    """Upper bound of the bucket of a histogram that holds the quantile of what was observed since `before`."""
    buckets = sorted(
        (float(dict(labels)["le"]), value - before.get((n, labels), 0.0))
        for (n, labels), value in metrics.items()
        if n == f"{name}_bucket"
    )
    total = buckets[-1][1]
    return next(f"<= {bound:g}" for bound, count in buckets if count >= q * total)


@asynccontextmanager
async def running(settings: dict[str, str], progress_port: int) -> AsyncIterator[Plane]:
    """A control plane with the definitions, profiles and nodes, until the block ends."""
    program = control_plane.program()
    if program is None:
        raise SystemExit("FINETUNE_CONTROL_PLANE names no program that brings up a control plane")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with control_plane.running(program, folder, kwok=True) as kubeconfig:
            control_plane.install_definitions(kubeconfig)
            rights = ChartRights(kubeconfig, folder).path
            pids = [int(line) for line in (kubeconfig.parent / "pids").read_text().split()]
            processes = {role: psutil.Process(pid) for role, pid in zip(ROLES, pids, strict=True)}
            operator = Operator(rights, folder, progress_port, settings)
            async with Bare(kubeconfig) as admin:
                await furnish(admin)
                plane = Plane(admin, rights, operator, processes)
                try:
                    yield plane
                finally:
                    if operator.process is not None and operator.process.poll() is None:
                        operator.stop()


async def furnish(admin: Bare) -> None:
    """Nodes that KWOK plays, and the two profiles."""
    for number in range(NODES):
        node: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"kwok-{number}"}}
        await admin.create("/api/v1/nodes", node)
    path = "/apis/finetune.dev/v1alpha1/finetuneprofiles"
    await admin.create(path, profile(PROFILE))
    await admin.create(path, profile(NOWHERE, nodeSelector={"finetune.dev/benchmark": "nowhere"}))
