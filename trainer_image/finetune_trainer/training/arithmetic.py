"""The arithmetic of a step, and how much of it a device can do: the two sides of model FLOPs utilisation."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from finetune_trainer.data.samples import Batch, mapped
from finetune_trainer.engines.precision import HALVES, Precision

log = logging.getLogger("finetune")

SIDE = 8192
"""Of the matrices that are multiplied on a GPU: large enough for all of its units."""
SIDE_ON_CPU = 1024
REPEATS = 8


def ideal_seconds(
    module: nn.Module, trained: Iterable[Tensor], batches: Iterable[Batch], precision: Precision, device: torch.device
) -> float | None:
    """What the arithmetic of a step would take at the peak of `device`, measured now: 0.1 s on a GPU. None on a CPU,
    whose first step would wait for it, and where the module does what torch cannot count; no training fails for it.

    Args:
        module: as an engine is given it, before it was.
        trained: what of it is trained.
        batches: of a step, on the CPU.
    """
    if device.type != "cuda":
        return None
    try:
        forward = forward_flops(module, batches, device)
        peak = matmul_peak(device, HALVES.get(precision, torch.float32))
    except Exception as error:
        # a module that shapes alone do not go through may raise anything; too little memory for the matrices is one too
        log.info("the model FLOPs utilisation is not measured: %s", str(error).partition("\n")[0])
        return None
    return step_flops(forward, _numbers(trained), _numbers(module.parameters())) / peak


def forward_flops(module: nn.Module, batches: Iterable[Batch], device: torch.device) -> int:
    """Floating-point operations of the forward passes of a whole step, a multiplication and its addition counted as
    two: matrix products, convolutions and attention, as torch counts them. Nothing is computed, and no memory taken:
    shapes go through the module, and no values.

    Raises:
        RuntimeError: the module decides by values.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as shapes,
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        for batch in batches:
            module(mapped(batch, lambda tensor: shapes.from_tensor(tensor).to(device)))
    return int(counter.get_total_flops())


def step_flops(forward: int, trained: int, held: int) -> int:
    """Model FLOPs of a step: with all weights trained a backward pass is two forward passes, by the inputs and by the
    weights; where few are trained, by the inputs alone. What gradient checkpointing computes twice does not count.

    Args:
        forward: of its forward passes.
        trained: numbers that are trained.
        held: numbers in the whole module.
    """
    return forward * (3 if trained * 2 > held else 2)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second that products of large square matrices reach on `device`: the fastest of eight."""
    side = SIDE if device.type == "cuda" else SIDE_ON_CPU
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    torch.mm(left, right)
    fastest = min(_seconds_of(left, right) for _ in range(REPEATS))
    del left, right
    if device.type == "cuda":
        # the memory is another's now, and is not to be counted as the training's
        torch.cuda.empty_cache()
    return 2 * side**3 / fastest


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _seconds_of(left: Tensor, right: Tensor) -> float:
    if left.device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.mm(left, right)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    began = time.perf_counter()
    torch.mm(left, right)
    return time.perf_counter() - began
