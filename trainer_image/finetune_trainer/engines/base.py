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
from finetune_trainer.engines.loss_scale import ScaleState
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.methods.base import ParameterGroup


class NonFiniteLoss(ConfigurationError):
    """The loss or the gradient was infinite or NaN in too many steps; no weight was changed by them.

    Not tried again: all that is drawn is a function of the step, so that another attempt would come to the same steps
    with the same weights and diverge once more."""


@dataclass(frozen=True)
class StepResult:
    """Scalars on the device, float32 where nothing else is said. Reading one makes the host wait for the step."""

    loss: Tensor
    """Loss of the whole optimizer step, before the update."""
    grad_norm: Tensor
    """Length of the gradient before clipping."""
    skipped: Tensor
    """Bool: the loss or the gradient was infinite or NaN, so that the step changed no weight, nothing that the
    optimizer remembers, and no average."""
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
    loss_scale: ScaleState | None = None
    """With training.precision fp16."""


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
        """One optimizer step; `factor` multiplies each group's learning rate. A step whose loss or gradient is not
        finite changes nothing, and says so."""

    def state(self) -> EngineState:
        """A copy of the state at a step's boundary. All processes of a group call this at the same step: each may hold
        a part of it, and only rank 0's result need be whole."""

    def load(self, state: EngineState | None) -> None:
        """Puts `state` back; in a group rank 0's, and None in the others, who get it from there. Raises ValueError
        when it belongs to other parameters."""

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the module has the averaged weights where training.ema asks for them; then its own again, to the
        bit."""

    def make_room(self) -> bool:
        """Gives back memory of the device that steps alone need; the next one takes it again. Between steps, in a
        process that trains alone. Whether there was any."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of the trained parameters as they are now, on the CPU; called and given as `state` is."""

    def settle(self, weights: Mapping[str, Tensor] | None) -> None:
        """The training is over: makes the module's parameters whole in this process, for drawing and export, and
        sets them to `weights`, else to the average where there is one. In a group rank 0's `weights` count."""
