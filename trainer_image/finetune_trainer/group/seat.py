"""Where a training process sits in its group. The supervisor that starts it says so, in FINETUNE_SEAT."""

from __future__ import annotations

import os
import sys
import threading
from typing import Annotated

from finetune_api import ExitCode
from pydantic import BaseModel, ConfigDict, Field


class Seat(BaseModel):
    """One process of a group."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=0)]
    """0 … size - 1, over all pods. Rank 0 leads: it alone reports, publishes, and talks to the store, but for
    a plan that another one has to give up."""
    size: Annotated[int, Field(ge=1)]
    """Processes of the group."""
    local_rank: Annotated[int, Field(ge=0)]
    """0 … processesPerNode - 1, in this pod: the number of its GPU."""
    generation: str
    """Attempt of rank 0: a process of another generation shares nothing with this one."""
    store_host: str
    """Where rank 0 serves the group's torch.distributed store."""
    store_port: Annotated[int, Field(ge=1, le=65535)]
    store_fd: int | None = None
    """Rank 0's: the socket that listens on store_port, inherited, so that nobody else can take the port."""

    @property
    def leads(self) -> bool:
        return self.rank == 0


def end_with_supervisor() -> None:
    """From now on the process ends when its supervisor does, however that went: the pipe between them closes."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        # not sys.exit: the main thread may wait in C for a peer that will never come
        os._exit(ExitCode.PEER_LOST)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()
