"""The work queue: keys wait once however often they are added, and one key is never worked on twice at a time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import zlib
from collections.abc import Callable

from finetune_operator.projections import Key

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 120.0


def spread(key: Key, seconds: float) -> float:
    """Three quarters of `seconds` to the whole, by the key: thousands of jobs that were all looked at together, at the
    operator's start, must not all come back together, and stand in the way of news."""
    return seconds * (1 - zlib.crc32(str(key).encode()) / 2**32 / 4)


class WorkQueue:
    """A queue of keys with delays and, for each key, an exponential backoff without end.

    Clock and jitter are given so that tests decide them. Not thread-safe.
    """

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        """`clock` in seconds; `jitter` between 0 and 1."""
        self._clock = clock
        self._jitter = jitter
        self._ready: dict[Key, float] = {}
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = itertools.count()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: Key) -> None:
        """`key` is to be worked on now; if it is being worked on, once more after that."""
        if key in self._working:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = self._clock()
            self._changed.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """`key` is to be worked on in `seconds` at the latest; an earlier appointment stays."""
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, next(self._order), key))
            self._changed.set()

    def add_failed(self, key: Key) -> float:
        """Like add_after, with the next delay of the key's backoff. Returns the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures, 32)) * (1 + self._jitter() / 2)
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """Ends the key's backoff."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """The key no longer stands for anything."""
        self._failures.pop(key, None)
        self._due.pop(key, None)
        self._ready.pop(key, None)

    def done(self, key: Key) -> None:
        """The work that `get` began has ended."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def pop(self) -> tuple[Key, float] | None:
        """The next key and how many seconds it waited, or None. The caller must call `done` later."""
        self._promote()
        if not self._ready:
            return None
        key = next(iter(self._ready))
        since = self._ready.pop(key)
        self._working.add(key)
        return key, self._clock() - since

    async def get(self) -> tuple[Key, float]:
        """Waits for the next key. Returns it and how many seconds it waited.

        Everything else that is ready to run gets its turn first: most passes wait for nothing, and thousands of them
        in a row would keep answers, probes and news waiting for seconds.
        """
        await asyncio.sleep(0)
        while True:
            self._changed.clear()
            taken = self.pop()
            if taken is not None:
                if self._ready:
                    self._changed.set()
                return taken
            timeout = self._heap[0][0] - self._clock() if self._heap else None
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _promote(self) -> None:
        """Moves what is due to what is ready."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
