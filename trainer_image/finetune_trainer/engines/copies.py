"""Copies of tensors in the host's memory, made while the training goes on."""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

COPIED_FIRST = 256 * 2**20
"""Bytes of a snapshot that are copied on the device first, at the speed of its own memory, so that not even the device
waits for the bus. What is larger has no room for a second copy there: then the next step begins when the bus is
done, and the host waits for neither."""


class Snapshot:
    """Within its `with` block `host_copy` begins copies and does not wait for them; `wait` does, in any thread.

    On a CPU a copy is made at once. On a GPU copies go to pinned memory on a stream of their own, behind all work that
    was given to the device before: what the training does afterwards does not change them.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._done = torch.cuda.Event() if self._stream is not None else None
        self._copied_first = 0
        self._in_place = False
        self._laid_out: list[Tensor] = []
        """Copies that still lie as their originals do."""

    def __enter__(self) -> Self:
        self._token = _taken.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _taken.reset(self._token)
        if self._stream is not None and self._done is not None:
            self._done.record(self._stream)
            if self._in_place:
                # the next step writes over what is still being read
                torch.cuda.current_stream(self._stream.device).wait_event(self._done)

    def wait(self) -> None:
        """Until all copies are there."""
        if self._done is not None:
            self._done.synchronize()
        while self._laid_out:
            host = self._laid_out.pop()
            host.data = host.contiguous()

    def copy(self, value: Tensor) -> Tensor:
        """A contiguous copy of `value`; of one on a GPU, only begun, and contiguous once it is done."""
        if self._stream is None or not value.is_cuda:
            return _copied(value)
        # as it lies: another order would be made on the device first, and take memory there until the bus is done
        host = torch.empty_like(value, device="cpu", pin_memory=True)
        source = value
        if host.stride() != value.stride():
            source = value.contiguous()
            host = torch.empty_like(source, device="cpu", pin_memory=True)
        elif self._copied_first + value.nbytes <= COPIED_FIRST:
            source = value.clone()
            self._copied_first += value.nbytes
        else:
            self._in_place = True
        if not host.is_contiguous():
            self._laid_out.append(host)
        self._stream.wait_stream(torch.cuda.current_stream(value.device))
        with torch.cuda.stream(self._stream):
            host.copy_(source, non_blocking=True)
        # its memory must not be given to somebody else before it was read
        source.record_stream(self._stream)
        return host


def host_copy(value: Tensor) -> Tensor:
    """A contiguous copy of `value` in the host's memory: complete at once, or, where a Snapshot is being taken, when
    that says so."""
    snapshot = _taken.get()
    return _copied(value.detach()) if snapshot is None else snapshot.copy(value.detach())


def _copied(value: Tensor) -> Tensor:
    return value.to("cpu", copy=True).contiguous()


_taken: ContextVar[Snapshot | None] = ContextVar("snapshot", default=None)
