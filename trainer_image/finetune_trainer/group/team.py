"""What a training asks of the other processes of its group; and the group of one, which needs nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from finetune_trainer.group.seat import Seat

T = TypeVar("T")


class Team(Protocol):
    """The processes that train together. All of them call the same methods in the same order, except `leads`'s own
    business in between.

    Raises (all methods that talk): PeerLost when another process is gone.
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""

    def meet(self, should_stop: Callable[[], bool]) -> None:
        """Waits, however long, until all are here. Raises Interrupted when `should_stop` says so."""

    def rejoin(self, mark: str) -> None:
        """Waits, however long, until rank 0 has called this with `mark`, which is new each time."""

    def share(self, value: T | None) -> T:
        """Rank 0's `value`, in every process."""

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process: all get the same answer, so that all act in the same step."""

    def close(self) -> None:
        """The training is over; each goes its own way."""


class Alone:
    """Implements Team for a single process. Touches nothing of torch.distributed."""

    rank = 0
    size = 1
    leads = True

    def meet(self, should_stop: Callable[[], bool]) -> None:
        """Nobody to wait for."""

    def rejoin(self, mark: str) -> None:
        """Nobody waits."""

    def share(self, value: T | None) -> T:
        return value  # type: ignore[return-value]  # rank 0 always has a value, of type T

    def any(self, flag: bool) -> bool:
        return flag

    def close(self) -> None:
        """Nobody to leave."""


ALONE = Alone()


def join(seat: Seat | None, device: torch.device) -> Team:
    """The group of `seat`, not yet met; the group of one for None."""
    if seat is None:
        return ALONE
    # torch.distributed costs a single process nothing
    from finetune_trainer.group.torch_team import TorchTeam

    return TorchTeam(seat, device)
