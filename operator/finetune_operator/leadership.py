"""The Lease as the event loop sees it: whose turn it is, since when, and for how long that is certain."""

from __future__ import annotations

import asyncio
import time
import uuid

from finetune_operator.lease import KubernetesLease, LeaderElection

PULSE_SECONDS = 1.0
LONGEST_STALL_SECONDS = 20.0
"""An event loop that has not moved for so long does not get the Lease renewed: the other operator may do better."""


class Leadership:
    """Brings the election's thread and the event loop together."""

    def __init__(self, lease_namespace: str, lease_name: str, operator: str) -> None:
        """`operator` names this process; something random is added, since a restarted container keeps its name."""
        self._lease = (lease_namespace, lease_name)
        self._identity = f"{operator}_{uuid.uuid4().hex[:8]}"
        self._won = asyncio.Event()
        self._since: float | None = None
        self._moved = time.monotonic()
        self._pulse: asyncio.Task[None] | None = None
        self._election: LeaderElection | None = None

    def start(self) -> None:
        """Stands for election, until `stop`."""
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(self._won.set)

        self._pulse = asyncio.create_task(self._beat())
        self._election = LeaderElection(
            KubernetesLease(*self._lease),
            self._identity,
            on_won=tell,
            well=lambda: time.monotonic() - self._moved < LONGEST_STALL_SECONDS,
        )
        self._election.start()

    async def _beat(self) -> None:
        while True:
            self._moved = time.monotonic()
            await asyncio.sleep(PULSE_SECONDS)

    def held(self) -> bool:
        """Whether this operator surely holds the Lease at this moment."""
        return self._election is not None and self._election.left() > 0

    def since(self) -> float | None:
        """When (monotonic seconds) the present term began; None for who does not lead."""
        return self._since if self.held() else None

    def well(self) -> bool:
        """Whether the Lease is being looked after."""
        return self._election is None or self._election.alive

    async def won(self) -> int:
        """Waits for a term to begin. Returns its number."""
        while not self.held():
            self._won.clear()
            await self._won.wait()
        assert self._election is not None
        self._since = time.monotonic()
        return self._election.term

    async def over(self, term: int, duty: asyncio.Task[None]) -> None:
        """Waits until the term is over, or `duty` is done."""
        assert self._election is not None
        while not duty.done() and self._election.term == term and (left := self._election.left()) > 0:
            await asyncio.wait({duty}, timeout=left)

    async def stop(self) -> None:
        """Gives the Lease back. Nothing may be written after this was called."""
        if self._pulse is not None:
            self._pulse.cancel()
        if self._election is not None:
            await asyncio.to_thread(self._election.stop)
