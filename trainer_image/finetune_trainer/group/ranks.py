"""The training processes of this pod: started, watched, asked to stop, killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from finetune_api import Result
from pydantic import ValidationError

from finetune_trainer.group.conduct import Event, RankEnded, RankFrozen
from finetune_trainer.group.seat import Seat

LOOK_SECONDS = 1.0
FROZEN = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class Ranks:
    """Implements what the pod's part of a group is made of; `report` hears of each end."""

    def __init__(
        self, arguments: Sequence[str], scratch: Path, patience: float, report: Callable[[Event], None]
    ) -> None:
        """
        Args:
            arguments: of the command `finetune`.
            scratch: folder for the last words of each process.
            patience: seconds that a process may be frozen.
        """
        self._arguments, self._scratch, self._patience, self._report = arguments, scratch, patience, report
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._asked = False

    async def start(self, seats: Sequence[Seat]) -> None:
        """Starts the command once for each seat."""
        for seat in seats:
            self._processes[seat.rank] = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "finetune_trainer", *self._arguments),
                # A pipe that nobody writes to: it closes when this process is gone, however it went.
                stdin=subprocess.PIPE,
                env=self._environment(seat, len(seats)),
                pass_fds=() if seat.store_fd is None else (seat.store_fd,),
                # Ctrl-C reaches this process alone, which passes it on once.
                start_new_session=True,
            )
        self._watching = [
            *(asyncio.create_task(self._until_end(rank, each)) for rank, each in self._processes.items()),
            asyncio.create_task(self._look()),
        ]
        if self._asked:
            self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM for all, once: a second one would cut their saving short."""
        if not self._asked:
            self._asked = True
            self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """Ends what still runs, frozen or not, and waits for that."""
        for task in self._watching:
            task.cancel()
        self._signal(signal.SIGKILL)
        await asyncio.gather(*(process.wait() for process in self._processes.values()))

    def last_words(self, rank: int) -> Result | None:
        """The Result that a process left."""
        with contextlib.suppress(OSError, ValidationError):
            return Result.model_validate_json(self._words(rank).read_bytes())
        return None

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    async def _until_end(self, rank: int, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        if code < 0:
            self._report(RankEnded(rank, 128 - code, f"killed by {signal.Signals(-code).name}"))
            return
        words = self.last_words(rank)
        self._report(RankEnded(rank, code, words.message if words is not None else ""))

    async def _look(self) -> None:
        since: dict[int, float] = {}
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for rank, process in self._processes.items():
                if not _frozen(process.pid):
                    since.pop(rank, None)
                elif time.monotonic() - since.setdefault(rank, time.monotonic()) >= self._patience:
                    self._report(RankFrozen(rank))

    def _words(self, rank: int) -> Path:
        return self._scratch / f"rank-{rank}.json"

    def _environment(self, seat: Seat, processes: int) -> dict[str, str]:
        changed = {
            "FINETUNE_SEAT": seat.model_dump_json(exclude_none=True),
            "FINETUNE_TERMINATION_LOG": str(self._words(seat.rank)),
        }
        # c10d warns in lines that are no JSON; what goes wrong reaches Python as an error all the same
        unless_set = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
        if processes > 1:
            # or each of them would take all cores
            unless_set["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
        if seat.size == processes and "lo" in {name for _, name in socket.if_nameindex()}:
            # all are here: a machine whose name leads nowhere must not keep them from finding each other
            unless_set["GLOO_SOCKET_IFNAME"] = "lo"
        return {**unless_set, **os.environ, **changed}


def _frozen(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() in FROZEN)
    except psutil.NoSuchProcess:
        return False
