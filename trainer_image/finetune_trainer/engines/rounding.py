"""float32 to bf16 by chance: up or down, the more likely the nearer, so that nothing is lost on average.

Rounded to the nearest, a weight stays where it is whenever an update is less than half the distance to its neighbour,
0.2 % to 0.4 % of the weight, and updates of a fine-tuning are smaller (https://arxiv.org/abs/2010.06192).
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW_BITS = 2**16
"""What a float32 number has more than a bf16 one, as whole numbers below this."""
MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)
"""Of a hash of 32 bits with hardly any bias (https://github.com/skeeto/hash-prospector), as signed numbers."""


def draws(numbers: int, step: Tensor, stream: int) -> Tensor:
    """As many whole numbers in [0, LOW_BITS), int32 [numbers], as if drawn by chance.

    A function of `step` (a scalar on the device) and `stream` alone: no generator is asked, and so nobody else's draws
    change, a step that is repeated or recorded draws the same, and all processes that hold the same weights do too.

    Args:
        step: a whole number of any dtype, exact.
        stream: apart from those of other tensors in the same step, at least 0.
    """
    key = _mixed(step.to(torch.int32, copy=True))
    key = _mixed(key.add_(stream))
    found = _mixed(torch.arange(numbers, dtype=torch.int32, device=step.device).bitwise_xor_(key))
    return _shifted(found, 16)


def rounded_by_chance(values: Tensor, low: Tensor) -> Tensor:
    """bf16, shape of `values`: each of its two neighbours is taken by as many of the LOW_BITS possible draws as the
    value is near to it. What is infinite or NaN stays so.

    Args:
        values: float32, any shape.
        low: from `draws`, as many as there are values.
    """
    # the sign stands apart: added to the magnitude, and what is carried goes to the next neighbour
    bits = values.view(torch.int32) + low.view(values.shape)
    cut = bits.bitwise_and_(-LOW_BITS).view(torch.float32)
    return torch.where(values.isfinite(), cut, values).to(torch.bfloat16)


def _mixed(numbers: Tensor) -> Tensor:
    """A permutation of all int32 numbers, in place."""
    first, second = MULTIPLIERS
    numbers.bitwise_xor_(_shifted(numbers, 16)).mul_(first)
    numbers.bitwise_xor_(_shifted(numbers, 15)).mul_(second)
    return numbers.bitwise_xor_(_shifted(numbers, 16))


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """To the right, zeros from the left."""
    return (numbers >> bits).bitwise_and_(2 ** (32 - bits) - 1)
