"""The loss, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sample_losses(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, float32 [B], whatever the precision of the prediction."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def sample_weights(stream_weights: Sequence[float], samples_per_stream: int) -> Tensor:
    """Fixed weights of samples, float32 [B]: the weighted losses of a whole step add up to the mean over the user's
    pictures plus λ times the mean over class pictures, however the step is cut into micro-batches and processes.

    Args:
        stream_weights: for each sample of the micro-batch 1 (the user's) or λ (class).
        samples_per_stream: samples of each kind in the whole optimizer step, over all processes.
    """
    return torch.tensor(stream_weights, dtype=torch.float32) / samples_per_stream
