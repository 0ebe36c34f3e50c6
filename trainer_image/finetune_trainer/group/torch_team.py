"""A Team over torch.distributed: gloo between CPUs, NCCL between GPUs, and gloo for what is small."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from finetune_trainer.errors import Interrupted, PeerLost, first_line
from finetune_trainer.group.seat import Seat

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Longest time that a process may keep the others waiting within a training step: a checkpoint of all weights going
to a slow store. Whether the others are alive at all is the supervisors' business, not this limit's."""
STORE_TIMEOUT = timedelta(days=1)
"""Rank 0 may take its time with fetching and drawing before it opens the store."""
MEETING_SECONDS_BETWEEN_LOOKS = 0.2


class TorchTeam:
    """Implements Team."""

    def __init__(self, seat: Seat, device: torch.device) -> None:
        self.rank, self.size = seat.rank, seat.size
        self._device = device
        with _talking():
            server = dist.TCPStore(
                seat.store_host,
                seat.store_port,
                is_master=seat.leads,
                wait_for_workers=False,
                timeout=STORE_TIMEOUT,
                **({} if seat.store_fd is None else {"master_listen_fd": seat.store_fd}),
            )
        self._store = dist.PrefixStore(seat.generation, server)
        self._flag = torch.zeros(1, dtype=torch.int32)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def meet(self, should_stop: Callable[[], bool]) -> None:
        with _talking():
            self._store.set(f"here/{self.rank}", "")
            while not self._store.check([f"here/{rank}" for rank in range(self.size)]):
                if should_stop():
                    raise Interrupted("stopped while waiting for the group; the same run goes on from its checkpoint")
                time.sleep(MEETING_SECONDS_BETWEEN_LOOKS)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.size,
                timeout=COLLECTIVE_TIMEOUT,
            )

    def rejoin(self, mark: str) -> None:
        with _talking():
            if self.leads:
                self._store.set(f"rejoin/{mark}", "")
            while not self._store.check([f"rejoin/{mark}"]):
                time.sleep(MEETING_SECONDS_BETWEEN_LOOKS)

    def share(self, value: T | None) -> T:
        box: list[T | None] = [value]
        with _talking():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]  # rank 0 had a value, of type T

    def any(self, flag: bool) -> bool:
        self._flag.fill_(flag)
        with _talking():
            dist.all_reduce(self._flag, dist.ReduceOp.MAX)
        return bool(self._flag)

    def close(self) -> None:
        dist.destroy_process_group()


@contextmanager
def _talking() -> Iterator[None]:
    """torch says RuntimeError, of which DistError is one, when the other side is gone."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(f"another process of the group is gone ({first_line(error)})") from error
