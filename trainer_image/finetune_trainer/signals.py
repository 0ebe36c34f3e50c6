"""SIGTERM and Ctrl-C as a question that the training asks between steps, and the time that is left to answer it."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESERVE_SECONDS = 5.0
"""Kept back at the end of the grace for the last words; of a short grace a quarter."""


class Stop:
    """Whether a signal asked the run to stop. Calling it gives the answer."""

    def __init__(self, grace_seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`grace_seconds` lie between SIGTERM and SIGKILL; None where nobody sends a SIGKILL, as on a laptop."""
        self.usable_seconds = math.inf
        if grace_seconds is not None:
            self.usable_seconds = grace_seconds - min(RESERVE_SECONDS, grace_seconds / 4)
        self.last_words: list[Callable[[], None]] = []
        """Called when the time is up, for at most a part of the reserve; what is not done then stays undone."""
        self._clock = clock
        self._asked_at: float | None = None

    def __call__(self) -> bool:
        return self._asked_at is not None

    def ask(self) -> None:
        """From now on the run is to stop, and its time runs."""
        if self._asked_at is None:
            self._asked_at = self._clock()

    def seconds_left(self) -> float:
        """Time for saving, without the reserve; infinite while nobody asked, or where there is no SIGKILL to come."""
        if self._asked_at is None:
            return math.inf
        return max(0.0, self._asked_at + self.usable_seconds - self._clock())


@contextmanager
def stop_signals(stop: Stop, on_signal: Callable[[], None], on_last_call: Callable[[], None]) -> Iterator[None]:
    """A first signal asks `stop` and calls `on_signal`. When the usable time is up and the block is still busy,
    `on_last_call` is called in a thread: it must end the process.

    A second signal acts as it usually does where the time is unlimited (a person is impatient), and is passed over
    where it is not (SIGKILL comes anyway, and launchers pass on what their children had already).
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    limited = math.isfinite(stop.usable_seconds)
    timer = threading.Timer(stop.usable_seconds, on_last_call) if limited else None

    def handle(number: int, frame: FrameType | None) -> None:
        if stop():
            return
        stop.ask()
        if timer is not None:
            timer.daemon = True
            timer.start()
        else:
            for each, handler in before.items():
                signal.signal(each, handler)
        on_signal()

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        for each, handler in before.items():
            signal.signal(each, handler)
