"""One operator process: the real store, queue, workers, handlers and audit, in virtual time. Only the API client, the
watch streams, the Lease and the trainers' answers are the schedule's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import aiohttp
from finetune_api.progress import Progress
from finetune_operator.audit import Auditor
from finetune_operator.client import ApiError
from finetune_operator.events import EventWriter
from finetune_operator.handlers import Handlers
from finetune_operator.hearing import Hearing
from finetune_operator.metrics import Metrics
from finetune_operator.progress.board import ProgressBoard
from finetune_operator.projections import Key
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile.apply import Applier
from finetune_operator.reconcile.controller import Controller, run_workers
from finetune_operator.reconcile.observe import Observer
from finetune_operator.scope import Scope
from finetune_operator.store import Store
from finetune_operator.workloads import WorkloadReader

from chaos.client import Client
from chaos.watches import Watches
from chaos.weather import Weather

WORKERS = 3
AUDIT_SECONDS = 300.0
RESYNC_SECONDS = 900.0
METRICS = Metrics()
"""Shared: nothing in a schedule reads them, and making a registry takes long."""


class Process:
    """Born with an empty memory, which it fills by itself; works from `lead` to `step_down`; dies by `kill`."""

    def __init__(
        self,
        client: Client,
        rng: random.Random,
        weather: Callable[[], Weather],
        clock: Callable[[], datetime],
    ) -> None:
        """`clock`: the API server's time, from which this process's own may differ."""
        self.client = client
        self.skew = timedelta(0)
        """How far its clock is off."""
        self.store, self.board = Store(), ProgressBoard()
        loop = asyncio.get_running_loop()
        self.queue = WorkQueue(loop.time, rng.random)
        scope, kube = Scope(), self._as_kube()
        self._clock = lambda: clock() + self.skew
        hearing = Hearing(loop.time)
        self.auditor = Auditor(kube, self.store, METRICS, scope, self.queue.add, hearing)
        self.watches = Watches(Handlers(self.store, self.queue.add).by_resource(), scope, client, rng, weather)
        self.controller = Controller(
            kube,
            self.store,
            self.queue,
            Observer(kube, self.store, self.board, ""),
            Applier(kube, self.store, scope),
            EventWriter(kube, client.who),
            METRICS,
            RESYNC_SECONDS,
            self._clock,
        )
        self._workloads = WorkloadReader(kube, self.store, "", self.queue.add)
        self.term = 0
        """How often it has got the Lease."""
        self._duty: asyncio.Task[None] | None = None
        self._life = asyncio.create_task(self._live())

    def _as_kube(self) -> Any:
        return self.client

    @property
    def leads(self) -> bool:
        return self._duty is not None

    def hear_progress(self, key: Key, progress: Progress) -> None:
        """A trainer has answered."""
        if self.board.answered(progress.run_uid, progress, self._clock()):
            self.queue.add(key)

    def lead(self) -> None:
        """It holds the Lease."""
        self.term += 1
        self.client.may_write = True
        if self._duty is None:
            self._duty = asyncio.create_task(self._work())

    def fence(self) -> None:
        """By its own clock the Lease has run out: the client sends no more writes."""
        self.client.may_write = False

    def step_down(self, term: int) -> None:
        """It has noticed that the Lease which it had got as its `term`th is another's: its writes are broken off."""
        if self._duty is not None and term == self.term:
            self._duty.cancel()
            self._duty = None

    def kill(self) -> None:
        """SIGKILL: nothing of it does anything any more."""
        self.client.dead = True
        self.watches.stop()
        self.step_down(self.term)
        self._life.cancel()

    def died_by_itself(self) -> BaseException | None:
        """The exception that ended its work or its audits, if one has."""
        for task in (self._life, self._duty):
            if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None

    async def _primed(self) -> None:
        while True:
            try:
                await self.auditor.prime()
                return
            except (ApiError, aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(2.0)

    async def _live(self) -> None:
        await self._primed()
        self.watches.start()
        await self.auditor.run(AUDIT_SECONDS)

    async def _work(self) -> None:
        await self._primed()
        for key in self.store.jobs:
            self.queue.add(key)
        async with asyncio.TaskGroup() as group:
            group.create_task(run_workers(self.controller, WORKERS))
            group.create_task(self._workloads.run())
