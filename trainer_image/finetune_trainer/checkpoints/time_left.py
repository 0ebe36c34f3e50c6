"""Whether one more checkpoint can be stored before SIGKILL. A pure rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

SAFETY = 1.5
"""Everybody on a node that is drained uploads at the same time."""


@dataclass(frozen=True)
class Rate:
    """What the last checkpoint took, from the first byte on this machine's disk to the last one in the store."""

    size: int
    """Bytes."""
    seconds: float


def is_time_for(size: int, rate: Rate | None, seconds_left: float) -> bool:
    """Whether `size` bytes can be written and uploaded in `seconds_left`, with some safety.

    While nothing was measured it is worth a try: half an upload counts for nobody, and the process is ended in time.
    """
    if math.isinf(seconds_left):
        return True
    if rate is None or rate.size == 0:
        return seconds_left > 0
    return size * rate.seconds / rate.size * SAFETY <= seconds_left
