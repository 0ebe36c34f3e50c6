"""The operator's process: connects, watches, works while it holds the Lease, and leaves in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from finetune_operator.audit import Auditor
from finetune_operator.client import ApiError, Kube
from finetune_operator.events import EventWriter
from finetune_operator.handlers import Handlers
from finetune_operator.health import Health
from finetune_operator.hearing import Hearing
from finetune_operator.leadership import Leadership
from finetune_operator.logs import configure
from finetune_operator.metrics import Metrics
from finetune_operator.progress.board import ProgressBoard
from finetune_operator.progress.client import ProgressClient
from finetune_operator.progress.poller import ProgressPoller
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile.apply import Applier
from finetune_operator.reconcile.controller import Controller, run_workers
from finetune_operator.reconcile.observe import Observer
from finetune_operator.scope import Scope
from finetune_operator.server import ProbeServer
from finetune_operator.settings import Settings
from finetune_operator.store import Store
from finetune_operator.times import utcnow
from finetune_operator.watching import Watcher
from finetune_operator.workloads import WorkloadReader

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
DRAIN_SECONDS = 5.0
"""How long passes that have begun may go on after SIGTERM. What they do not end in it is done by the next operator."""


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
    workloads: WorkloadReader
    progress_client: ProgressClient
    leadership: Leadership
    watcher: Watcher
    server: ProbeServer


def assemble(settings: Settings, kube: Kube, metrics: Metrics) -> Parts:
    """Puts the operator together; nothing runs yet."""
    scope = Scope(settings.namespace, settings.operator_class)
    store = Store()
    queue = WorkQueue(clock=asyncio.get_running_loop().time)
    board = ProgressBoard()
    hearing = Hearing()
    leadership = Leadership(settings.lease_namespace, settings.lease_name, settings.pod_name)
    observer = Observer(kube, store, board, settings.trainer_image)
    controller = Controller(
        kube,
        store,
        queue,
        observer,
        Applier(kube, store, scope),
        EventWriter(kube, settings.pod_name),
        metrics,
        settings.resync_seconds,
        utcnow,
    )
    auditor = Auditor(kube, store, metrics, scope, queue.add, hearing)
    proxy = kube.connection if settings.progress == "apiProxy" else None
    progress_client = ProgressClient(settings.progress_port, proxy)
    poller = ProgressPoller(
        store, board, progress_client, metrics, queue.add, settings.progress_seconds, utcnow, backlog=queue.__len__
    )
    health = Health(store, queue, controller, hearing, settings.audit_seconds / 2, leadership)
    metrics.count_jobs(lambda: ((job.phase, job.key.namespace) for job in store.jobs.values()))
    return Parts(
        kube=kube,
        store=store,
        queue=queue,
        metrics=metrics,
        controller=controller,
        auditor=auditor,
        poller=poller,
        workloads=WorkloadReader(kube, store, settings.namespace, queue.add),
        progress_client=progress_client,
        leadership=leadership,
        watcher=Watcher(Handlers(store, queue.add).by_resource(), scope, hearing),
        server=ProbeServer(metrics.registry, health.problems, health.ready),
    )


async def run(settings: Settings, stop: asyncio.Event) -> int:
    """Runs until `stop` is set. Returns the exit code: 0 for a stop, 1 if watching or working has ended by itself."""
    metrics = Metrics()
    kube = await Kube.connect(metrics)
    parts = assemble(settings, kube, metrics)
    port = await parts.server.start(settings.host, settings.port)
    logger.info("probes and metrics at port %d", port)
    tasks: list[asyncio.Task[None]] = []
    try:
        if not await _primed(parts.auditor, stop):
            return 0
        watching = parts.watcher.start()
        parts.leadership.start()
        kube.may_write = parts.leadership.held
        tasks.append(asyncio.create_task(parts.auditor.run(settings.audit_seconds)))
        tasks.append(asyncio.create_task(_lead(settings, parts)))
        ends: list[asyncio.Future[Any]] = [asyncio.create_task(stop.wait()), watching, *tasks]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            await _drain(parts)
            return 0
        _explain(watching, tasks)
        return 1
    finally:
        await _leave(parts, tasks)


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


async def _lead(settings: Settings, parts: Parts) -> None:
    """Works while it holds the Lease. Losing it aborts every write; the memory stays warm for the next time."""
    while True:
        term = await parts.leadership.won()
        parts.metrics.leader.set(1)
        duty = asyncio.create_task(_duty(settings, parts))
        try:
            await parts.leadership.over(term, duty)
            if duty.done():
                await duty
        finally:
            parts.metrics.leader.set(0)
            duty.cancel()
            await asyncio.gather(duty, return_exceptions=True)


async def _duty(settings: Settings, parts: Parts) -> None:
    """What the leader does. It lists everything anew before: its watches may lag behind what its predecessor has seen
    and written, and a status must not go back."""
    await _primed(parts.auditor, asyncio.Event())
    async with asyncio.TaskGroup() as group:
        group.create_task(run_workers(parts.controller, settings.workers))
        if settings.progress != "off":
            group.create_task(parts.poller.run())
        if settings.kueue:
            group.create_task(parts.workloads.run())


def _explain(watching: asyncio.Future[None], tasks: list[asyncio.Task[None]]) -> None:
    for future in (watching, *tasks):
        if future.done() and not future.cancelled() and future.exception() is not None:
            logger.error("the operator cannot go on", exc_info=future.exception())


async def _drain(parts: Parts) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await parts.controller.drain()


async def _leave(parts: Parts, tasks: list[asyncio.Task[None]]) -> None:
    """Stops writing first, gives the Lease back then, closes connections last."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await parts.leadership.stop()
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
