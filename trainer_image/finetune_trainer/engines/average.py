"""A moving average of the weights (EMA), as Diffusers keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DECAY = 0.9999


@dataclass(frozen=True)
class AverageState:
    """CPU tensors."""

    weights: dict[str, Tensor]
    """float32, by the parameters' names."""
    updates: int


def decay_of(update: int) -> float:
    """How much of the average is kept in update `update` (1 for the first, which keeps nothing): Diffusers' warm-up,
    so that the first weights are soon forgotten."""
    done = update - 1
    return min(DECAY, (1 + done) / (10 + done)) if done > 0 else 0.0


class Average:
    """Averages of `parameters`, on their device."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self.weights = {name: value.detach().float().clone() for name, value in parameters.items()}
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step."""
        self.updates += 1
        share = 1 - decay_of(self.updates)
        for name, parameter in self._parameters.items():
            average = self.weights[name]
            average.sub_(share * (average - parameter))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The averages in the parameters' place; afterwards these are what they were, to the bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> AverageState:
        """A copy."""
        weights = {name: value.to("cpu", copy=True).contiguous() for name, value in self.weights.items()}
        return AverageState(weights, self.updates)

    def load(self, state: AverageState) -> None:
        """Puts `state` back."""
        for name, value in self.weights.items():
            value.copy_(state.weights[name])
        self.updates = state.updates

    @torch.no_grad()
    def _swap(self) -> None:
        # one by one: all of the weights twice would be twice the memory
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(kept)
