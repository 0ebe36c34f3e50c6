"""Times of one training, the same for all sides: from the start of its process, without making the host wait for the
device but once after the warm-up and once at the end."""

from __future__ import annotations

import json
import resource
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
    """Seconds a step, over all after the warm-up."""
    counted: int
    """Steps after the warm-up."""
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


class Watch:
    """Counts steps."""

    def __init__(self, warm_up: int, synchronize: Callable[[], None] = lambda: None) -> None:
        """`synchronize` waits until the device has done all that it was told to."""
        self._warm_up, self._synchronize = warm_up, synchronize
        self._born = psutil.Process().create_time()
        self._first = self._since = self._until = 0.0
        self._first_cpu = self._since_cpu = self._until_cpu = 0.0
        self._count = 0

    def step(self) -> None:
        """Another step was given to the device."""
        self._count += 1
        if self._count == 1:
            self._synchronize()
            self._first, self._first_cpu = time.time() - self._born, time.process_time()
        if self._count == self._warm_up:
            self._synchronize()
            self._since, self._since_cpu = time.perf_counter(), time.process_time()

    def trained(self) -> None:
        """That was the last one."""
        self._synchronize()
        self._until, self._until_cpu = time.perf_counter(), time.process_time()

    def done(self, device_bytes: int = 0, mfu: float | None = None) -> Measured:
        """The weights are on the disk.

        Raises:
            ValueError: there were not more steps than those of the warm-up.
        """
        counted = self._count - self._warm_up
        if counted <= 0:
            raise ValueError(f"{self._count} steps are not more than the {self._warm_up} of the warm-up")
        return Measured(
            first=self._first,
            step=(self._until - self._since) / counted,
            counted=counted,
            job=time.time() - self._born,
            first_cpu=self._first_cpu,
            step_cpu=(self._until_cpu - self._since_cpu) / counted,
            resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            device=device_bytes,
            mfu=mfu,
        )


def leave(measured: Measured, file: Path) -> None:
    """For the process that started this one."""
    file.write_text(json.dumps(asdict(measured)))


def found(file: Path) -> Measured:
    """What `leave` left."""
    return Measured(**json.loads(file.read_text()))
