"""Frozen weights in half precision, where that changes nothing.

Under autocast a layer rounds its float32 weights in each step, twice the memory and a pass over all of them, to the
same numbers each time: frozen ones are rounded once instead. Only those of the layers that autocast rounds: norms and
embeddings are computed in float32 as before, and so is everything that is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from finetune_trainer.engines.precision import HALVES, Precision

ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights and biases autocast rounds."""


def half_for(precision: Precision, device: torch.device) -> torch.dtype | None:
    """What frozen weights are kept in. A CPU draws pictures without autocast, and has no lack of memory: None."""
    return HALVES.get(precision) if device.type == "cuda" else None


def in_rounded_layers(module: nn.Module) -> Iterator[nn.Parameter]:
    """The float32 weights that autocast would round, frozen and trained."""
    for layer in module.modules():
        if isinstance(layer, ROUNDED):
            for parameter in layer.parameters(recurse=False):
                if parameter.dtype == torch.float32:
                    yield parameter


def roundable(module: nn.Module) -> Iterator[nn.Parameter]:
    """The frozen ones of them."""
    return (parameter for parameter in in_rounded_layers(module) if not parameter.requires_grad)


class FrozenHalves:
    """The frozen weights of a module, rounded; as they were, they wait in the host's memory."""

    def __init__(self, module: nn.Module, half: torch.dtype) -> None:
        self._weights: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        """Each with its values in the host's memory, and rounded on the device."""
        for parameter in roundable(module):
            rounded = parameter.detach().to(half)
            self._weights.append((parameter, parameter.detach().to("cpu", copy=True), rounded))
            parameter.data = rounded

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, the weights are float32 again, to the bit. The rounded ones keep their place in memory."""
        try:
            self.restore()
            yield
        finally:
            # also where memory did not suffice for all of them
            for parameter, _, rounded in self._weights:
                parameter.data = rounded

    def restore(self) -> None:
        """Makes the weights whole."""
        for parameter, values, rounded in self._weights:
            parameter.data = values.to(rounded.device, copy=True)
