"""A CUDA graph in software: what a CPU can tell about whether work can be captured.

Like a graph it repeats the same operations on the same memory: every number that came from Python is frozen, and so is
which tensors are read and written. And like a stream that is being captured it refuses whoever asks for a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAIT_FOR_THE_DEVICE = {
    aten._local_scalar_dense.default: "asks the device for a number",
    aten.nonzero.default: "makes a tensor of as many numbers as the device finds",
    aten.masked_select.default: "makes a tensor of as many numbers as the device finds",
    aten._unique2.default: "makes a tensor of as many numbers as the device finds",
    aten.lift_fresh.default: "copies a number of Python's to the device",
}


class Tape:
    """Implements Recorder."""

    def __init__(self) -> None:
        self.operations = 0
        """Of all recordings."""

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        yield

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        with _Recording() as recording:
            work()
        self.operations += len(recording.done)
        return recording.again

    def make_room(self) -> None:
        """It has no memory of its own."""


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[object]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert func not in WAIT_FOR_THE_DEVICE, f"{func} {WAIT_FOR_THE_DEVICE[func]}"
        if func is aten.index.Tensor:
            assert not any(isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1]), "index by a mask"
        made = func(*args, **kwargs)
        self.done.append((func, args, kwargs, tree_leaves(made)))
        return made

    @torch.no_grad()
    def again(self) -> None:
        for func, args, kwargs, places in self.done:
            for value, place in zip(tree_leaves(func(*args, **kwargs)), places, strict=True):
                # what was written in place, and views of it, are there already
                if isinstance(value, Tensor) and isinstance(place, Tensor) and value.data_ptr() != place.data_ptr():
                    place.copy_(value)
