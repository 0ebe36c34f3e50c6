"""Trained weights in bf16, and nowhere in float32.

Of the layers whose weights autocast rounds anyway; norms, embeddings and what else is trained stay float32, which takes
little and is computed in float32. Gradients are of the weights' dtype. What keeps small updates from being lost is the
optimizer's rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn

from finetune_trainer.engines.halves import in_rounded_layers
from finetune_trainer.errors import ConfigurationError

MOST_MICRO_BATCHES = 32
"""Whose gradients are summed in bf16, which has 8 significant bits: a sum of 256 like ones would not grow by the next.
Of so many it is off by less than 1 % (tests/trainer/test_weights_in_bf16.py)."""


def half_trained(module: nn.Module, trained: Iterable[Tensor]) -> list[nn.Parameter]:
    """Those of `trained` that are kept in bf16 where the settings say so; each once."""
    chosen = {id(value) for value in trained}
    return list(dict.fromkeys(one for one in in_rounded_layers(module) if id(one) in chosen))


def check_sums(spec: ResolvedTraining, micro_batches: int) -> None:
    """Raises ConfigurationError where more gradients are to be summed in bf16 than it has bits for."""
    if spec.weights_dtype == "bf16" and micro_batches > MOST_MICRO_BATCHES:
        raise ConfigurationError(
            f"training.gradientAccumulationSteps comes to {micro_batches} micro-batches in a step, but with "
            f"training.weightsDtype bf16 the gradients of at most {MOST_MICRO_BATCHES} can be summed: later ones would "
            "be lost; use fewer, or fp32"
        )


class TrainedHalves:
    """The trained weights of a module, rounded to the nearest once."""

    def __init__(self, module: nn.Module, trained: Iterable[Tensor]) -> None:
        self._parameters = half_trained(module, trained)
        for parameter in self._parameters:
            parameter.data = parameter.detach().to(torch.bfloat16)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, the weights are the same numbers in float32, and what is written to them is forgotten afterwards.
        Those in bf16 keep their place in memory."""
        kept = [parameter.data for parameter in self._parameters]
        try:
            self.restore()
            yield
        finally:
            # also where memory did not suffice for all of them
            for parameter, value in zip(self._parameters, kept, strict=True):
                parameter.data = value

    def restore(self) -> None:
        """Makes the weights float32."""
        for parameter in self._parameters:
            parameter.data = parameter.detach().float()
