"""The arithmetic of a step, and how much of it a device can do: the two sides of model FLOPs utilisation."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from finetune_trainer.data.samples import Batch

SIDE = 8192
"""Of the matrices that are multiplied on a GPU: large enough for all of its units."""
SIDE_ON_CPU = 1024
REPEATS = 8


def forward_flops(module: nn.Module, batches: Iterable[Batch], device: torch.device) -> int:
    """Floating-point operations of the forward passes of a whole step, a multiplication and its addition counted as
    two: matrix products, convolutions and attention, as torch counts them. `module` is what an engine is given."""
    devices = [device] if device.type == "cuda" else []
    # dropout in the modules must not move anybody's draws
    with torch.random.fork_rng(devices), torch.no_grad(), FlopCounterMode(display=False) as counter:
        for batch in batches:
            module(batch.to(device))
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
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)
    return 2 * side**3 / min(_seconds_of(left, right) for _ in range(REPEATS))


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
