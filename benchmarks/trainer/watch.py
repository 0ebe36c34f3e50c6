"""Times of one training, the same for all sides: from the start of its process, without making the host wait for the
device but once after the warm-up and once after the last step."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Measured:
    """What one process found."""

    first: float
    """Seconds from its start to the end of the first step."""
    step: float
    """Seconds a step, over all after the warm-up that changed weights."""
    counted: int
    """Steps after the warm-up that changed weights; those with a loss or gradient that is not finite do not."""
    job: float
    """Seconds from its start to the weights on the disk."""
    first_cpu: float
    """As first, in seconds of processor time: what else the machine does adds little to it."""
    step_cpu: float
    """As step, in seconds of processor time."""
    resident: int
    """Bytes of main memory at most."""
    device: int
    """Bytes that torch held on the GPU at most; 0 without one."""
    mfu: float | None = None
    """Model FLOPs utilisation of the steps; None where it is not measured."""
    stall: float | None = None
    """Seconds that a checkpoint costs the training: from the end of the step before it to the end of the one after it,
    less what a step takes. Median over the checkpoints; None where each step is not waited for."""
    used: int | None = None
    """Bytes by which the use of the GPU rose, seen from outside of the process; None where nobody looked."""


class Watch:
    """Counts the steps of a training."""

    def __init__(
        self, warm_up: int, steps: int, synchronize: Callable[[], None] = lambda: None, each: bool = False
    ) -> None:
        """
        Args:
            warm_up: steps that do not count.
            steps: of the whole training; with the last one the time of the steps is over.
            synchronize: waits until the device has done all that it was told to.
            each: wait after each step, to see what a checkpoint costs.
        """
        self._warm_up, self._steps, self._synchronize, self._each = warm_up, steps, synchronize, each
        self._born = psutil.Process().create_time()
        self._first = self._since = self._until = 0.0
        self._first_cpu = self._since_cpu = self._until_cpu = 0.0
        self._count = 0
        self._ended = 0.0
        self._laps: list[tuple[float, bool]] = []
        """Seconds from the end of a step to that of the next, and whether a checkpoint was made between them."""
        self._checkpointed = False

    @property
    def is_warm(self) -> bool:
        """The next step counts."""
        return self._count >= self._warm_up

    def step(self) -> None:
        """Another step was given to the device."""
        self._count += 1
        if self._each or self._count in (1, self._warm_up, self._steps):
            self._synchronize()
        if self._count == 1:
            self._first, self._first_cpu = time.time() - self._born, time.process_time()
        now = time.perf_counter()
        if self._count > self._warm_up:
            self._laps.append((now - self._ended, self._checkpointed))
        self._ended, self._checkpointed = now, False
        if self._count == self._warm_up:
            self._since, self._since_cpu = now, time.process_time()
        if self._count == self._steps:
            self._until, self._until_cpu = now, time.process_time()

    def checkpoint(self) -> None:
        """A checkpoint was made, or begun, since the last step."""
        self._checkpointed = True

    def done(self, device_bytes: int = 0, mfu: float | None = None, skipped: int = 0) -> Measured:
        """The weights are on the disk. `skipped` of the steps after the warm-up changed no weights.

        Raises:
            ValueError: there were other steps than there should have been, or none that counts.
        """
        if self._count != self._steps:
            raise ValueError(f"{self._count} steps and not {self._steps}: what was measured is another training")
        applied = self._count - self._warm_up - skipped
        if applied <= 0:
            raise ValueError(
                f"{self._count} steps, of which {skipped} changed nothing, are not more than the {self._warm_up} of "
                "the warm-up"
            )
        return Measured(
            first=self._first,
            step=(self._until - self._since) / applied,
            counted=applied,
            job=time.time() - self._born,
            first_cpu=self._first_cpu,
            step_cpu=(self._until_cpu - self._since_cpu) / applied,
            resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            device=device_bytes,
            mfu=mfu,
            stall=self._stall() if self._each else None,
        )

    def _stall(self) -> float | None:
        usual = [seconds for seconds, checkpoint in self._laps if not checkpoint]
        others = [seconds for seconds, checkpoint in self._laps if checkpoint]
        return statistics.median(others) - statistics.median(usual) if usual and others else None


def leave(measured: Measured, file: Path) -> None:
    """For the process that started this one."""
    file.write_text(json.dumps(asdict(measured)))


def found(file: Path) -> Measured:
    """What `leave` left."""
    return Measured(**json.loads(file.read_text()))
