"""What is asked of CUDA around a recording, and what is undone when it breaks off: told by a CUDA that only writes down
what it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from finetune_trainer.engines.recording import CudaGraphs

POOL = (0, 7)


class Cuda:
    """Streams are called main and side; the memory allocator knows whether a pool is in use."""

    def __init__(self, breaks_off: bool) -> None:
        self.said: list[str] = []
        self.current = "main"
        self.breaks_off = breaks_off
        self.in_use = False

    def begin(self, index: int, pool: tuple[int, int]) -> None:
        assert (index, pool, self.in_use) == (1, POOL, False)
        self.in_use = True
        self.said.append("begin")

    def end(self, index: int, pool: tuple[int, int]) -> None:
        if not self.in_use:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.in_use = False
        self.said.append("end")

    def release(self, index: int, pool: tuple[int, int]) -> None:
        self.said.append("release")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, pool: object, stream: Any, capture_error_mode: str) -> Iterator[None]:
        """As torch.cuda.graph: what ends a recording may raise before the pool is left and the stream is put back."""
        assert (pool, capture_error_mode) == (POOL, "thread_local")
        self.current, self.in_use = stream.name, True
        try:
            yield
        finally:
            if self.breaks_off:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.current, self.in_use = "main", False


@pytest.fixture
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda(getattr(request, "param", False))

    class Stream:
        device_index = 1

        def __init__(self, name: object) -> None:
            self.name = name if name == "main" else "side"

        def wait_stream(self, other: Any) -> None:
            cuda.said.append(f"{self.name} waits for {other.name}")

    class Pool:
        id = POOL

    class Graph:
        def replay(self) -> None:
            cuda.said.append("replay")

    def set_stream(stream: Any) -> None:
        cuda.current = stream.name

    for name, value in {
        "Stream": Stream,
        "MemPool": Pool,
        "CUDAGraph": Graph,
        "graph": cuda.graph,
        "stream": cuda.stream,
        "set_stream": set_stream,
        "current_stream": lambda device: Stream("main"),
        "synchronize": lambda device: cuda.said.append("synchronize"),
        "empty_cache": lambda: cuda.said.append("empty cache"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name, function in {
        "_cuda_beginAllocateToPool": cuda.begin,
        "_cuda_endAllocateToPool": cuda.end,
        "_cuda_releasePool": cuda.release,
    }.items():
        monkeypatch.setattr(torch._C, name, function, raising=False)
    return cuda


def failing() -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


def test_a_rehearsal_takes_its_memory_where_the_recording_will(cuda: Cuda) -> None:
    with CudaGraphs(torch.device("cuda", 1)).rehearsing():
        assert (cuda.current, cuda.in_use) == ("side", True)
        cuda.said.append("work")
    assert cuda.said == [
        "synchronize",
        "empty cache",
        "side waits for main",
        "begin",
        "work",
        "end",
        "release",
        "main waits for side",
    ]
    assert cuda.current == "main"


def test_after_a_rehearsal_that_fails_the_rest_waits_for_what_it_began(cuda: Cuda) -> None:
    with pytest.raises(RuntimeError, match="not permitted"), CudaGraphs(torch.device("cuda", 1)).rehearsing():
        failing()
    assert cuda.said[-3:] == ["end", "release", "main waits for side"]
    assert (cuda.current, cuda.in_use) == ("main", False)


def test_a_recording_is_repeated(cuda: Cuda) -> None:
    def work() -> None:
        assert (cuda.current, cuda.in_use) == ("side", True)

    CudaGraphs(torch.device("cuda", 1)).record(work)()
    assert cuda.said == ["replay"]
    assert (cuda.current, cuda.in_use) == ("main", False)


@pytest.mark.parametrize(
    ("cuda", "says", "undone"),
    [(False, "not permitted", []), (True, "previous error", ["end", "release"])],
    indirect=["cuda"],
)
def test_a_recording_that_breaks_off_leaves_nothing_behind(cuda: Cuda, says: str, undone: list[str]) -> None:
    """Or torch's allocator would believe for ever that one goes on, and give nothing back to anybody."""
    with pytest.raises(RuntimeError, match=says):
        CudaGraphs(torch.device("cuda", 1)).record(failing)
    assert cuda.said == undone
    assert (cuda.current, cuda.in_use) == ("main", False)
