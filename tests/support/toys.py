"""Modules of a few numbers, and batches for them: for engines and optimizers, which do not care what they train."""

from __future__ import annotations

import torch
from finetune_trainer.data.samples import Batch
from finetune_trainer.families import Moments
from torch import Tensor, nn


class Regression(nn.Module):
    """Learns a fixed linear map through layers of every shape that models have: matrices, a convolution, biases, a
    single number. `dropout` is of its inputs."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.dropout = nn.Dropout(dropout)
        self.first = nn.Parameter(torch.randn(128, 64, generator=generator) / 8)
        self.bias = nn.Parameter(torch.zeros(128))
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3, generator=generator) / 6)
        self.second = nn.Parameter(torch.zeros(16, 128))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.truth = torch.randn(16, 64, generator=generator)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(int(batch.timesteps)))
        images = nn.functional.conv2d(self.dropout(inputs).view(32, 4, 4, 4), self.kernel, padding=1)
        hidden = (images.reshape(32, 64) + inputs) @ self.first.T + self.bias
        losses = ((hidden.relu() @ self.second.T) * self.scale - inputs @ self.truth.T).square().mean(1)
        return losses.mean() * batch.weights.sum(), losses


def batch_of(weight: float = 1.0, number: int = 0, seed: int = 0) -> Batch:
    """A batch of one sample with this weight; `number` chooses a Regression's inputs, `seed` its dropout."""
    nothing = torch.zeros(1, 1, 1, 1)
    return Batch(
        Moments(nothing, nothing),
        nothing,
        nothing,
        torch.tensor([number]),
        torch.tensor([weight]),
        torch.zeros(1, 1, 1, dtype=torch.int64),
        None,
        torch.zeros(1, 6),
        None,
        seed,
    )
