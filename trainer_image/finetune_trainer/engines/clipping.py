"""The length of a gradient, and what is longer than it may be made as short."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip(parameters: Iterable[Tensor], longest: float) -> Tensor:
    """Scales the gradients so that together they are no longer than `longest`; their length before, float32, a scalar
    on the device. As torch.nn.utils.clip_grad_norm_, which would give the length of bf16 gradients in bf16, 0.4 % off.
    """
    # what goes through many tensors at once wants them of one dtype
    alike: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            alike.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    lengths = [one for gradients in alike.values() for one in torch._foreach_norm(gradients, 2, dtype=torch.float32)]
    length = torch.linalg.vector_norm(torch.stack(lengths))
    factor = (longest / (length + 1e-6)).clamp(max=1.0)
    for gradients in alike.values():
        torch._foreach_mul_(gradients, factor)
    return length
