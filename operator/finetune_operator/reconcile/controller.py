"""The worker pool: takes a key, observes, plans, acts, and says what came of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from finetune_operator.client import ConflictError, Kube, NotFoundError
from finetune_operator.events import EventWriter
from finetune_operator.metrics import Metrics
from finetune_operator.projections import JobState, Key, job_state
from finetune_operator.queue import WorkQueue, spread
from finetune_operator.reconcile.actions import Plan
from finetune_operator.reconcile.apply import Applier, LookAgainError, RefusedError
from finetune_operator.reconcile.observe import Observer
from finetune_operator.reconcile.observed import Observed
from finetune_operator.reconcile.plan import plan
from finetune_operator.reconcile.status import status_patch, wire
from finetune_operator.resources import FINETUNEJOBS
from finetune_operator.store import Store

logger = logging.getLogger(__name__)

REFUSED_SECONDS = {"WaitingForCleanup": 1.0, "QuotaExceeded": 15.0, "NameConflict": 10.0}
REFUSED_DEFAULT_SECONDS = 30.0
LOOKS = 3
LONGEST_PASS_SECONDS = 120.0
"""With a slow API server the requests of one pass, each of them bounded, could add up to many minutes. It is broken off
and repeated, so that a worker that is busy for longer is truly stuck."""


class Controller:
    """Reconciles FineTuneJobs until it is told to stop."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        queue: WorkQueue,
        observer: Observer,
        applier: Applier,
        events: EventWriter,
        metrics: Metrics,
        resync: float,
        clock: Callable[[], datetime],
    ) -> None:
        """`resync`: seconds after which a job that has not ended is looked at without any news of it."""
        self._kube = kube
        self._store = store
        self._queue = queue
        self._observer = observer
        self._applier = applier
        self._events = events
        self._metrics = metrics
        self._resync = resync
        self._clock = clock
        self.busy: dict[Key, float] = {}
        """When (monotonic seconds) the work on each present key began."""
        self.finished = 0.0
        """When (monotonic seconds) a pass last ended, well or badly."""
        self._leaving = False
        self._idle = asyncio.Event()

    async def work(self) -> None:
        """One worker, until it is cancelled or drained. An error costs the key a pause, never the worker its life."""
        while True:
            key, waited = await self._queue.get()
            if self._leaving:
                return
            self._idle.clear()
            self._metrics.queue_seconds.observe(waited)
            self._metrics.queue_depth.set(len(self._queue))
            self.busy[key] = time.monotonic()
            try:
                with self._metrics.reconcile_seconds.time():
                    async with asyncio.timeout(LONGEST_PASS_SECONDS):
                        again = await self.reconcile(key)
            except ConflictError:
                self._queue.add_after(key, 0.2)  # somebody wrote in between: the watch brings the news
            except Exception:  # whatever one job brings up, the worker lives on for the others
                self._metrics.reconcile_errors.inc()
                delay = self._queue.add_failed(key)
                logger.exception("%s: reconcile failed, again in %.1f s", key, delay)
            else:
                self._queue.succeeded(key)
                if again is not None:
                    self._queue.add_after(key, again)
            finally:
                del self.busy[key]
                self.finished = time.monotonic()
                self._queue.done(key)
                if not self.busy:
                    self._idle.set()

    async def drain(self) -> None:
        """Begins no more passes, and waits for the end of those that have begun."""
        self._leaving = True
        if self.busy:
            await self._idle.wait()

    async def reconcile(self, key: Key) -> float | None:
        """One pass. Returns the seconds after which the next is due without news; None: only on news.

        Raises ApiError and what aiohttp raises; nothing is lost by it, the next pass begins anew.
        """
        look = False
        for _ in range(LOOKS):
            now = self._clock()
            found = await self._observer.observe(key, now, look)
            if found is None:
                self._queue.forget(key)
                return None
            job, seen = found
            intended = plan(seen, now)
            if intended.look:
                look = True
                continue
            try:
                await self._applier.apply(key, job.version, intended.actions)
            except LookAgainError:
                look = True
                continue
            except RefusedError as error:
                intended = plan(replace(seen, refusal=error.readiness), now)
                await self._report(job, seen, intended, now)
                return REFUSED_SECONDS.get(error.readiness.reason, REFUSED_DEFAULT_SECONDS)
            await self._report(job, seen, intended, now)
            return self._next(key, intended)
        raise RuntimeError(f"{key} changed {LOOKS} times while it was looked at")

    def _next(self, key: Key, intended: Plan) -> float | None:
        ended = intended.status is None or intended.status.completion_time is not None
        timers = [intended.requeue_after, None if ended else spread(key, self._resync)]
        if intended.status is not None and ended:
            timers.append(0.0)  # once more, for what follows the end
        return min((seconds for seconds in timers if seconds is not None), default=None)

    async def _report(self, job: JobState, seen: Observed, intended: Plan, now: datetime) -> None:
        """Events, then the status: told twice is better than not at all, and telling twice does no harm."""
        await self._events.post(job, intended.announcements, now)
        gone = {pod.uid for pod in seen.pods if pod.gone}
        if intended.status is not None and wire(intended.status) != wire(seen.status):
            self._metrics.status_writes.inc()
            try:
                answer = await self._kube.apply_status(
                    FINETUNEJOBS, job.key.namespace, job.key.name, status_patch(job, intended.status)
                )
            except NotFoundError:
                return
            self._store.replace_job(job_state(answer))
        self._store.forget_gone(job.key, gone)


async def run_workers(controller: Controller, count: int) -> None:
    """`count` workers until they are cancelled; each then finishes nothing more than its present await."""
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(controller.work())
