"""How work that is the same in each step is recorded once and repeated: on a GPU as a CUDA graph, which costs the host
one call in place of thousands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Protocol

import torch

from finetune_trainer.errors import RunError, first_line

Work = Callable[[], None]


class RecordingFailed(Exception):
    """Work could not be recorded; the message is the reason, in a line. Nothing of the training has changed."""


@contextmanager
def being_recorded() -> Iterator[None]:
    """Turns whatever a library raises within into a RecordingFailed.

    Raises:
        RecordingFailed: with a reason.
        RunError: as it was raised.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        raise RecordingFailed(first_line(_reason(error))) from error


def _reason(error: Exception) -> BaseException:
    """The first of the library's errors that led to `error`: of a recording that was broken off, the end says only that
    it was."""
    reason: BaseException = error
    before = error.__cause__ or error.__context__
    while before is not None:
        if isinstance(before, RuntimeError):
            reason = before
        before = before.__cause__ or before.__context__
    return reason


class Recorder(Protocol):
    """Records work that reads from and writes to fixed places alone, and asks the device for no number."""

    def rehearsing(self) -> AbstractContextManager[object]:
        """Within, work is done before it is recorded, so that it need not set up anything any more."""

    def record(self, work: Work) -> Work:
        """What does `work` again. Whether it is also done now is not said."""

    def make_room(self) -> None:
        """All recordings are gone: gives back the memory that they had in common."""


class Again:
    """Implements Recorder where there are no graphs: does the work itself each time."""

    def rehearsing(self) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self, work: Work) -> Work:
        return work

    def make_room(self) -> None:
        """There is none."""


class CudaGraphs:
    """Implements Recorder. All graphs share one pool of memory: they never run at the same time, and none leaves
    anything in it that another one reads. Once a recording broke off nothing more can be recorded by this one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # held for as long as this lives: torch takes no pool again whose last graph is gone
        self._pool = torch.cuda.MemPool()

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        main = torch.cuda.current_stream(self._device)
        # nothing that is cached can be given back to the driver while memory comes from a pool
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        # what autograd remembers of a stream must not be the default one's, which nothing is recorded on
        self._stream.wait_stream(main)
        try:
            with torch.cuda.stream(self._stream), self._in_the_pool():
                yield
        finally:
            # also where it failed: what follows may write over what the last work still reads
            main.wait_stream(self._stream)

    def record(self, work: Work) -> Work:
        graph, main = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # another thread may be making batches: only what this one does must fit into a graph
            with torch.cuda.graph(graph, pool=self._pool.id, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except BaseException:
            # torch's own ways back are behind the call that tells of a recording that was broken off
            torch.cuda.set_stream(main)
            with suppress(RuntimeError):  # where this one was not: then nothing is left to end
                self._leave_the_pool()
            raise
        return graph.replay

    def make_room(self) -> None:
        # with the last that holds it the pool is given back
        self._pool = torch.cuda.MemPool()

    @contextmanager
    def _in_the_pool(self) -> Iterator[None]:
        """Within, memory comes from the graphs' pool, in all threads: autograd has its own, so that torch's public
        function, which is for one thread, does not do. Elsewhere, rehearsing another shape would take as much memory
        again as all graphs have."""
        torch._C._cuda_beginAllocateToPool(self._stream.device_index, self._pool.id)
        try:
            yield
        finally:
            self._leave_the_pool()

    def _leave_the_pool(self) -> None:
        torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool.id)
        torch._C._cuda_releasePool(self._stream.device_index, self._pool.id)


def recorder_for(device: torch.device) -> Recorder:
    """Graphs on a GPU."""
    return CudaGraphs(device) if device.type == "cuda" else Again()
