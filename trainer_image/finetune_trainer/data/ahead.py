"""Things made ahead by a thread, in their order, a few at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

T = TypeVar("T")

DEPTH = 2
"""How many are ready at most: one that is taken, and one more for when making it takes longer than usual."""


class Ahead(Generic[T]):
    """Calls `make` for each of `numbers` in a thread of its own, at most DEPTH ahead of whoever takes them. What is
    made is the same as without: `make` must depend on its number alone. Used by one thread, as a context manager."""

    def __init__(self, make: Callable[[int], T], numbers: Sequence[int], device: torch.device) -> None:
        """What `make` computes on `device` goes to a stream of its own there; what it gives is in the host's memory."""
        self._make, self._numbers, self._device = make, numbers, device
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._closed = self._paused = self._making = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def take(self) -> T:
        """The next one. Raises what `make` raised for it; ValueError when there is none left."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error is not None)
            if not self._ready and self._error is not None:
                raise self._error
            taken = self._ready.popleft()
            self._changed.notify_all()
            return taken

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, nothing is made: whoever needs the model for something else has it alone."""
        with self._changed:
            self._paused = True
            self._changed.wait_for(lambda: not self._making)
        try:
            yield
        finally:
            with self._changed:
                self._paused = False
                self._changed.notify_all()

    def _run(self) -> None:
        error: BaseException = ValueError("nothing is left")
        try:
            with self._own_stream():
                for number in self._numbers:
                    with self._changed:
                        self._changed.wait_for(self._may_go_on)
                        if self._closed:
                            return
                        self._making = True
                    made = self._make(number)
                    with self._changed:
                        self._making = False
                        self._ready.append(made)
                        self._changed.notify_all()
        except BaseException as met:  # raised where it is taken
            error = met
        finally:
            with self._changed:
                self._error, self._making = error, False
                self._changed.notify_all()

    def _may_go_on(self) -> bool:
        return self._closed or (len(self._ready) < DEPTH and not self._paused)

    def _own_stream(self) -> AbstractContextManager[object]:
        if self._device.type != "cuda":
            return nullcontext()
        # with it this thread uses the device too, which each thread knows for itself alone
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.default_stream(self._device))
        return torch.cuda.stream(stream)
