"""Asks the trainers of all running pods, each in its turn, and wakes the jobs that have news."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from finetune_operator.metrics import Metrics
from finetune_operator.progress.board import ProgressBoard
from finetune_operator.progress.client import NoProgressError, ProgressClient
from finetune_operator.projections import Key, PodState
from finetune_operator.store import Store

logger = logging.getLogger(__name__)

WRITES_PER_SECOND = 20
"""Each answer leads to one write of a status at most, so questions are asked no faster than this: with many jobs each
is asked less often. It also bounds how many trainers that never answer are waited for at the same time."""
TICK_SECONDS = 1.0
LONG_AGO = datetime.min.replace(tzinfo=UTC)


class ProgressPoller:
    """One task for all jobs."""

    def __init__(
        self,
        store: Store,
        board: ProgressBoard,
        client: ProgressClient,
        metrics: Metrics,
        wake: Callable[[Key], None],
        interval: float,
        clock: Callable[[], datetime],
        backlog: Callable[[], int],
    ) -> None:
        """`interval`: shortest time between two questions to the same pod, in seconds. `backlog`: how many jobs wait
        for a worker; so many fewer trainers are asked, since news of progress must not stand in the way of the rest."""
        self._store = store
        self._board = board
        self._client = client
        self._metrics = metrics
        self._wake = wake
        self._interval = interval
        self._clock = clock
        self._backlog = backlog
        self._asked: dict[str, datetime] = {}
        self._busy: set[str] = set()

    async def run(self) -> None:
        """Runs until it is cancelled; may be run again then."""
        self._busy.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                due = self.due()
                for pod in due:
                    self._busy.add(pod.uid)
                    group.create_task(self._ask(pod))
                    await asyncio.sleep(1 / WRITES_PER_SECOND)
                await asyncio.sleep(max(0.0, TICK_SECONDS - len(due) / WRITES_PER_SECOND))

    def due(self) -> list[PodState]:
        """The pods to ask in the second that begins now: those that have waited longest."""
        now = self._clock()
        running = [pod for pod in self._store.pods() if pod.running and pod.ip and not pod.deleting and pod.index == 0]
        self._asked = {pod.uid: self._asked[pod.uid] for pod in running if pod.uid in self._asked}
        self._board.keep_only({pod.owner_uid for pod in running})
        waiting = [
            pod
            for pod in running
            if pod.uid not in self._busy
            and (pod.uid not in self._asked or (now - self._asked[pod.uid]).total_seconds() >= self._interval)
        ]
        room = max(0, WRITES_PER_SECOND - self._backlog())
        due = sorted(waiting, key=lambda pod: self._asked.get(pod.uid, LONG_AGO))[:room]
        self._asked.update((pod.uid, now) for pod in due)
        return due

    async def _ask(self, pod: PodState) -> None:
        try:
            progress = await self._client.ask(pod)
        except NoProgressError as error:
            self._metrics.progress_requests.labels(str(error)).inc()
            news = self._board.silent(pod.owner_uid, self._clock())
        else:
            self._metrics.progress_requests.labels("answered").inc()
            news = self._board.answered(pod.owner_uid, progress, self._clock())
        finally:
            self._busy.discard(pod.uid)
        if news:
            self._wake(pod.job)
