"""What the training must not wait for, done by one thread: checkpoints and weights are written and uploaded by it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

log = logging.getLogger("finetune")
T = TypeVar("T")


class Background:
    """Carries out one piece of work after the other, in the order in which they were given. So whatever is stored was
    stored after everything that was given before it: a checkpoint that says that weights were published is right.

    Whoever gives work decides how much of it may wait. Used by one thread, as a context manager. The thread does not
    keep the process alive.
    """

    def __init__(self) -> None:
        self._given: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._open: deque[tuple[Future[Any], Callable[[Future[Any]], None]]] = deque()
        self._thread = threading.Thread(target=self._work, name="background", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was given is still done, however the training ended: a checkpoint that is on its way is worth waiting
        for. Only a person who presses Ctrl-C again does not wait."""
        self._given.put(None)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            return
        self._thread.join()
        while self._open:
            try:
                self.hear()
            except Exception as another:
                if error is None:
                    raise
                # it must not hide why the training ended
                log.warning("and then: %s", another)

    def submit(self, work: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        """Has `work` done by the thread. `then` is called by `hear`, in the thread of the caller, with what came of
        it; what it raises, `hear` raises."""
        future: Future[T] = Future()

        def carry_out() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # it is raised where it is heard
                future.set_exception(error)

        self._open.append((future, then))
        self._given.put(carry_out)

    def hear(self) -> None:
        """Tells what is done by now, in order. Never waits."""
        while self._open and self._open[0][0].done():
            future, then = self._open.popleft()
            then(future)

    def finish(self) -> None:
        """Waits until everything is done, and tells it."""
        while self._open:
            self._open[0][0].exception()
            self.hear()

    def _work(self) -> None:
        while (piece := self._given.get()) is not None:
            piece()
