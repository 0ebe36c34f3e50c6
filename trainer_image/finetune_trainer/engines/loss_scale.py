"""Dynamic loss scaling for fp16, as torch.amp.GradScaler does it (https://arxiv.org/abs/1710.03740), on the device.

float16 has no numbers below 6e-8: gradients that small would vanish, so the loss is multiplied before the backward pass
and the gradients are divided after it. The factor is halved whenever they overflow, and doubled when they did not for a
long time. torch's own scaler asks the GPU whether to step, which makes the host wait in each one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST, GROWTH, BACKOFF, INTERVAL = 65536.0, 2.0, 0.5, 2000
"""torch's own."""


@dataclass(frozen=True)
class ScaleState:
    """What a checkpoint holds."""

    value: float
    steps: int
    """Since the value changed."""


class LossScale:
    """The factor, and for how many steps it has been right."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.tensor(FIRST, device=device)
        """float32 scalar on the device; its address never changes."""
        self._steps = torch.tensor(0, device=device)

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divides `gradients`, in place. The factor is a power of two, so that this rounds nothing."""
        torch._foreach_mul_(list(gradients), self.value.reciprocal())

    def update(self, skipped: Tensor) -> None:
        """After each step; `skipped`, a bool scalar, says that the gradients were not finite."""
        steps = self._steps + 1
        grown = self.value * GROWTH
        grows = (steps == INTERVAL) & torch.isfinite(grown)
        self.value.copy_(torch.where(skipped, self.value * BACKOFF, torch.where(grows, grown, self.value)))
        self._steps.copy_(torch.where(skipped | (steps == INTERVAL), 0, steps))

    def state(self) -> ScaleState:
        return ScaleState(self.value.item(), int(self._steps))

    def load(self, state: ScaleState) -> None:
        """Puts `state` back."""
        self.value.fill_(state.value)
        self._steps.fill_(state.steps)
