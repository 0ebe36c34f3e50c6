"""How steps are executed. An engine never asks which technique it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn

from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.average import AverageState
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.methods.base import ParameterGroup


class NonFiniteLoss(ConfigurationError):
    """The loss or the gradient became infinite or NaN; no weight was changed by that step.

    Not tried again: all that is drawn is a function of the step, so that another attempt would come to the same step
    with the same weights and diverge once more."""


@dataclass(frozen=True)
class StepResult:
    """Scalars on the device, float32."""

    loss: Tensor
    """Loss of the whole optimizer step, before the update."""
    grad_norm: Tensor
    """Length of the gradient before clipping."""
    learning_rate: float
    """What the first group's update was multiplied by, with what the optimizer found out itself."""


@dataclass(frozen=True)
class EngineState:
    """All that an engine must get back to go on as if nothing had happened. CPU tensors."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """As engines.optimizers.optimizer_state names it."""
    average: AverageState | None = None
    """With training.ema."""


class Engine(Protocol):
    """Executes optimizer steps."""

    def prepare(
        self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining, example: Sequence[Batch]
    ) -> None:
        """Takes the module whose forward maps a Batch to (weighted loss, losses of samples). `example` is a step's
        worth of batches, for engines that plan memory or capture ahead.

        Raises:
            ConfigurationError: the settings do not suit the optimizer.
        """

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

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the module has the averaged weights where training.ema asks for them; then its own again, to the
        bit."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of the module's parameters as they are now, on the CPU."""

    def settle(self, weights: Mapping[str, Tensor] | None) -> None:
        """The training is over: makes the module's parameters whole in this process, for drawing and export, and
        sets them to `weights`, else to the average where there is one. In a group rank 0's `weights` count."""
