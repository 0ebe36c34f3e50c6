"""The operator's process: connects, watches, waits for the Lease, works, and leaves in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from finetune_operator.audit import Auditor
from finetune_operator.client import ApiError, Kube
from finetune_operator.events import EventWriter
from finetune_operator.handlers import Handlers
from finetune_operator.health import Health
from finetune_operator.lease import KubernetesLease, LeaderElection
from finetune_operator.logs import configure
from finetune_operator.metrics import Metrics
from finetune_operator.progress.board import ProgressBoard
from finetune_operator.progress.client import ProgressClient
from finetune_operator.progress.poller import ProgressPoller
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile.apply import Applier
from finetune_operator.reconcile.controller import Controller, run_workers
from finetune_operator.reconcile.observe import Observer
from finetune_operator.server import ProbeServer
from finetune_operator.settings import Settings
from finetune_operator.store import Store
from finetune_operator.times import utcnow
from finetune_operator.watching import Watcher

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


@dataclass
class Parts:
    """The operator, put together."""

    kube: Kube
    store: Store
    queue: WorkQueue
    metrics: Metrics
    controller: Controller
    auditor: Auditor
    poller: ProgressPoller
    progress_client: ProgressClient
    watcher: Watcher
    server: ProbeServer


def assemble(settings: Settings, kube: Kube, metrics: Metrics) -> Parts:
    """Puts the operator together; nothing runs yet."""
    store = Store()
    queue = WorkQueue(clock=asyncio.get_running_loop().time)
    board = ProgressBoard()
    observer = Observer(kube, store, board, settings.trainer_image)
    controller = Controller(
        kube,
        store,
        queue,
        observer,
        Applier(kube, store),
        EventWriter(kube, settings.pod_name),
        metrics,
        settings.resync_seconds,
        utcnow,
    )
    auditor = Auditor(kube, store, metrics, settings.namespace, queue.add)
    progress_client = ProgressClient(settings.progress_port)
    poller = ProgressPoller(store, board, progress_client, metrics, queue.add, settings.progress_seconds, utcnow)
    health = Health(store, controller, auditor)
    metrics.count_jobs(lambda: ((job.phase, job.key.namespace) for job in store.jobs.values()))
    return Parts(
        kube=kube,
        store=store,
        queue=queue,
        metrics=metrics,
        controller=controller,
        auditor=auditor,
        poller=poller,
        progress_client=progress_client,
        watcher=Watcher(Handlers(store, queue.add).by_resource(), settings.namespace),
        server=ProbeServer(metrics.registry, health.problems, health.ready),
    )


@dataclass
class Leadership:
    """Whether this operator holds the Lease, as two flags to wait for."""

    won: asyncio.Event
    lost: asyncio.Event

    def set(self, leads: bool) -> None:
        now, before = (self.won, self.lost) if leads else (self.lost, self.won)
        before.clear()
        now.set()


async def run(settings: Settings, stop: asyncio.Event) -> int:
    """Runs until `stop` is set. Returns the exit code: 0 for a stop, 1 if watching or working has ended by itself."""
    metrics = Metrics()
    kube = await Kube.connect(metrics)
    parts = assemble(settings, kube, metrics)
    port = await parts.server.start(settings.host, settings.port)
    logger.info("probes and metrics at port %d", port)
    tasks: list[asyncio.Task[None]] = []
    election: LeaderElection | None = None
    try:
        if not await _primed(parts.auditor, stop):
            return 0
        watching = parts.watcher.start()
        leadership = Leadership(asyncio.Event(), asyncio.Event())
        election = _election(settings, leadership)
        tasks.append(asyncio.create_task(parts.auditor.run(settings.audit_seconds)))
        tasks.append(asyncio.create_task(_lead(settings, parts, leadership)))
        ends: list[asyncio.Future[Any]] = [asyncio.create_task(stop.wait()), watching, *tasks]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            return 0
        _explain(watching, tasks)
        return 1
    finally:
        await _leave(parts, tasks, election)


async def _primed(auditor: Auditor, stop: asyncio.Event) -> bool:
    """Lists everything, however long the API server or the definitions take to be there. False if stopped."""
    while not stop.is_set():
        try:
            await auditor.prime()
            return True
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.warning("cannot list yet, trying again: %s", error)
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await stop.wait()
        except TimeoutError:
            continue
    return False


def _election(settings: Settings, leadership: Leadership) -> LeaderElection:
    loop = asyncio.get_running_loop()
    identity = f"{settings.pod_name}_{uuid.uuid4().hex[:8]}"

    def tell(leads: bool) -> None:
        loop.call_soon_threadsafe(leadership.set, leads)

    lease = KubernetesLease(settings.lease_namespace, settings.lease_name)
    election = LeaderElection(lease, identity, partial(tell, True), partial(tell, False))
    election.start()
    return election


async def _lead(settings: Settings, parts: Parts, leadership: Leadership) -> None:
    """Works while it holds the Lease. Losing it aborts every write; the memory stays warm for the next time."""
    while True:
        await leadership.won.wait()
        parts.metrics.leader.set(1)
        for key in parts.store.jobs:
            parts.queue.add(key)
        duty = asyncio.create_task(_duty(settings, parts))
        end = asyncio.create_task(leadership.lost.wait())
        try:
            await asyncio.wait({duty, end}, return_when=asyncio.FIRST_COMPLETED)
            if duty.done():
                await duty
        finally:
            parts.metrics.leader.set(0)
            for task in (duty, end):
                task.cancel()
            await asyncio.gather(duty, end, return_exceptions=True)


async def _duty(settings: Settings, parts: Parts) -> None:
    """What the leader does."""
    async with asyncio.TaskGroup() as group:
        group.create_task(run_workers(parts.controller, settings.workers))
        group.create_task(parts.poller.run())


def _explain(watching: asyncio.Future[None], tasks: list[asyncio.Task[None]]) -> None:
    for future in (watching, *tasks):
        if future.done() and not future.cancelled() and future.exception() is not None:
            logger.error("the operator cannot go on", exc_info=future.exception())


async def _leave(parts: Parts, tasks: list[asyncio.Task[None]], election: LeaderElection | None) -> None:
    """Stops writing first, gives the Lease back then, closes connections last."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if election is not None:
        await asyncio.to_thread(election.stop)
    await parts.watcher.stop()
    await parts.progress_client.close()
    await parts.server.stop()
    await parts.kube.close()


async def _main(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await run(settings, stop)


def main() -> None:
    """Entry point `finetune-operator`."""
    settings = Settings()
    configure(settings.log_format)
    sys.exit(asyncio.run(_main(settings)))
