"""SIGTERM and Ctrl-C as a question that the training asks between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signals(on_signal: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yields should_stop. A first signal calls `on_signal` and is remembered; a second one acts as it usually does."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        on_signal()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield stop.is_set
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
