"""How steps are executed. An engine never asks which technique it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn

from finetune_trainer.data.samples import Batch
from finetune_trainer.errors import RunError
from finetune_trainer.methods.base import ParameterGroup


class NonFiniteLoss(RunError):
    """The loss or the gradient became infinite or NaN; no weight was changed by that step."""


@dataclass(frozen=True)
class StepResult:
    """Scalars on the device, float32."""

    loss: Tensor
    """Loss of the whole optimizer step, before the update."""
    grad_norm: Tensor
    """Length of the gradient before clipping."""


@dataclass(frozen=True)
class EngineState:
    """All that an engine must get back to go on as if nothing had happened. CPU tensors."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """Parameter's name, a slash, the name of the optimizer's value."""


class Engine(Protocol):
    """Executes optimizer steps."""

    def prepare(
        self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining, example: Sequence[Batch]
    ) -> None:
        """Takes the module whose forward maps a Batch to (weighted loss, losses of samples). `example` is a step's
        worth of batches, for engines that plan memory or capture ahead."""

    def step(self, batches: Sequence[Batch], factor: float) -> StepResult:
        """One optimizer step; `factor` multiplies each group's learning rate.

        Raises:
            NonFiniteLoss: and the weights are as they were.
        """

    def state(self) -> EngineState:
        """A copy of the state at a step's boundary."""

    def load(self, state: EngineState | None) -> None:
        """Puts `state` back; in a group rank 0's, and None in the others, who get it from there. Raises ValueError
        when it belongs to other parameters."""

    def gather(self) -> None:
        """Makes the module's parameters whole in this process, for drawing and export."""
