"""A moving average of the weights (EMA), as Diffusers keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune_trainer.engines.copies import host_copy

DECAY = 0.9999


@dataclass(frozen=True)
class AverageState:
    """CPU tensors."""

    weights: dict[str, Tensor]
    """float32, by the parameters' names."""
    updates: int


def decay_of(update: Tensor) -> Tensor:
    """How much of the average is kept in update `update` (int64 scalar, 1 for the first, which keeps nothing), as a
    float64 scalar: Diffusers' warm-up, so that the first weights are soon forgotten."""
    done = update.double() - 1
    return torch.where(done > 0, ((1 + done) / (10 + done)).clamp(max=DECAY), 0.0)


class Average:
    """Averages of `parameters`, on their device."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self.weights = {name: value.detach().float().clone() for name, value in parameters.items()}
        # on the device too: whether a step counts is known there first
        self.updates = torch.zeros((), dtype=torch.int64, device=next(iter(self.weights.values())).device)

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """After each optimizer step; where it was `skipped` (bool scalar on the device), nothing changes."""
        self.updates += ~skipped
        share = torch.where(skipped, 0.0, 1 - decay_of(self.updates)).float()
        for name, parameter in self._parameters.items():
            average = self.weights[name]
            average.sub_(share * (average - parameter))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The averages in the parameters' place; afterwards these are what they were, to the bit."""
        # all that swapping takes is taken first: for want of it later some would be swapped and others not
        largest = max(self.weights.values(), key=Tensor.numel)
        room = torch.empty(largest.numel(), dtype=largest.dtype, device=largest.device)
        self._swap(room)
        try:
            yield
        finally:
            self._swap(room)

    def state(self) -> AverageState:
        """A copy."""
        weights = {name: host_copy(value) for name, value in self.weights.items()}
        return AverageState(weights, int(self.updates))

    def load(self, state: AverageState) -> None:
        """Puts `state` back."""
        for name, value in self.weights.items():
            value.copy_(state.weights[name])
        self.updates.fill_(state.updates)

    @torch.no_grad()
    def _swap(self, room: Tensor) -> None:
        # one by one: all of the weights twice would be twice the memory
        for name, parameter in self._parameters.items():
            kept = room[: parameter.numel()].view(parameter.shape)
            kept.copy_(parameter)
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(kept)
