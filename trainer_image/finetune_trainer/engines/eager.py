"""One process, one step after the other, with torch's own autograd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn

from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.average import Average
from finetune_trainer.engines.base import EngineState, StepResult
from finetune_trainer.engines.clipping import clip
from finetune_trainer.engines.halves import FrozenHalves, half_for
from finetune_trainer.engines.loss_scale import LossScale
from finetune_trainer.engines.optimizers import (
    as_tensor,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    rate_in_use,
    rates_of,
    step_unless,
)
from finetune_trainer.engines.precision import autocast, precision_of
from finetune_trainer.engines.trained_halves import TrainedHalves, check_sums
from finetune_trainer.methods.base import ParameterGroup


class EagerEngine:
    """Implements Engine."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def prepare(
        self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining, example: Sequence[Batch]
    ) -> None:
        self._module = module
        self._groups = tuple(groups)
        self._parameters = {name: value for group in groups for name, value in group.parameters.items()}
        self._rates = rates_of(spec, groups)
        self._max_grad_norm = spec.max_grad_norm
        self._precision = precision_of(spec, self._device)
        self._loss_scale = LossScale(self._device) if self._precision == "fp16" else None
        check_sums(spec, max(len(example), spec.gradient_accumulation_steps))
        self._halves = TrainedHalves(module, self._parameters.values()) if spec.weights_dtype == "bf16" else None
        self._optimizer = make_optimizer(spec, groups, self._rates)
        self._average = Average(self._parameters) if spec.ema else None
        half = half_for(self._precision, self._device)
        self._frozen = FrozenHalves(module, half) if half is not None else None

    def step(self, batches: Sequence[Batch], factor: float) -> StepResult:
        rate = self._set_rates(factor)
        total = self._gradients(batches)
        norm, skipped = self._update(total)
        return StepResult(total, norm, skipped, rate)

    def state(self) -> EngineState:
        average = self._average.state() if self._average is not None else None
        scale = self._loss_scale.state() if self._loss_scale is not None else None
        return EngineState(self.weights(), optimizer_state(self._optimizer, self._parameters), average, scale)

    @torch.no_grad()
    def load(self, state: EngineState | None) -> None:
        if state is None:
            raise ValueError("a single process has nobody to get its state from")
        if state.weights.keys() != self._parameters.keys():
            strange = sorted(state.weights.keys() ^ self._parameters.keys())[:3]
            raise ValueError(f"the state belongs to other parameters: {', '.join(strange)} …")
        if (state.average is None) != (self._average is None):
            raise ValueError("the state belongs to another training.ema")
        if (state.loss_scale is None) != (self._loss_scale is None):
            raise ValueError("the state belongs to another training.precision")
        for name, parameter in self._parameters.items():
            parameter.copy_(state.weights[name])
        load_optimizer_state(self._optimizer, self._parameters, state.optimizer)
        if self._average is not None and state.average is not None:
            self._average.load(state.average)
        if self._loss_scale is not None and state.loss_scale is not None:
            self._loss_scale.load(state.loss_scale)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        with (
            self._halves.whole() if self._halves is not None and self._needs_float32 else nullcontext(),
            self._average.swapped() if self._average is not None else nullcontext(),
            self._frozen.whole() if self._frozen is not None else nullcontext(),
        ):
            yield

    @property
    def _needs_float32(self) -> bool:
        """Whether weights in bf16 cannot stay so for what is not a step: a CPU draws without autocast, and an average
        is finer. On a GPU there is no need, and may be no room."""
        return self._device.type == "cpu" or self._average is not None

    def make_room(self) -> bool:
        # nothing of a step outlives it but what torch's allocator gives to whoever asks next
        return False

    def weights(self) -> dict[str, Tensor]:
        return {name: as_tensor(value) for name, value in self._parameters.items()}

    @torch.no_grad()
    def settle(self, weights: Mapping[str, Tensor] | None) -> None:
        if self._frozen is not None:
            self._frozen.restore()
        if self._halves is not None and self._needs_float32:
            self._halves.restore()
        if weights is None and self._average is not None:
            weights = self._average.weights
        if weights is not None:
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])

    def _set_rates(self, factor: float) -> float:
        """For the next step; the first group's, with what the optimizer found out itself."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return rate_in_use(self._optimizer)

    def _update(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Clips the gradients and steps, unless they or the loss `total` are not finite; afterwards there are none. The
        length of the gradient and whether the step was skipped, scalars on the device.

        Nothing here asks the device for a number, but for what `step_unless` says of some optimizers."""
        if self._loss_scale is not None:
            self._loss_scale.unscale([one.grad for one in self._parameters.values() if one.grad is not None])
        norm = clip(self._parameters.values(), self._max_grad_norm)
        skipped = self._is_bad(total, norm)
        step_unless(self._optimizer, skipped)
        self._clear_gradients()
        self._constrain(self._parameters, skipped)
        if self._average is not None:
            self._average.update(skipped)
            # a mean of what keeps to a rule need not: that of vectors of one length is shorter
            self._constrain(self._average.weights, skipped)
        if self._loss_scale is not None:
            self._loss_scale.update(skipped)
        return norm, skipped

    def _is_bad(self, total: Tensor, norm: Tensor) -> Tensor:
        """Whether a step with this loss and gradient is to change nothing: a bool scalar on the device."""
        return ~(torch.isfinite(total) & torch.isfinite(norm))

    def _clear_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _constrain(self, values: Mapping[str, Tensor], skipped: Tensor) -> None:
        for group in self._groups:
            if group.constraint is not None:
                for name in group.parameters:
                    value = values[name]
                    kept = value.detach().clone()
                    group.constraint(value)
                    value.copy_(torch.where(skipped, kept, value))

    def _gradients(self, batches: Sequence[Batch]) -> Tensor:
        """Adds the step's gradient to the parameters; returns its loss."""
        total = torch.zeros((), device=self._device)
        for batch in batches:
            total += self._backward(self._module, batch, 1)
        return total

    def _backward(self, module: nn.Module, batch: Batch, scale: float) -> Tensor:
        """Gradient of `scale` times the loss of one micro-batch; returns the loss."""
        with self._seeded(batch.seed):
            return self._pass(module, batch.to(self._device), scale)

    def _pass(self, module: nn.Module, batch: Batch, scale: float) -> Tensor:
        """As `_backward`, of a batch that is on the device, drawing from torch's generators as they are."""
        with autocast(self._precision, self._device):
            loss, _ = module(batch)
        scaled = loss if scale == 1 else loss * scale
        if self._loss_scale is not None:
            scaled = scaled * self._loss_scale.value
        scaled.backward()
        return loss.detach()

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Dropout draws from torch's global generators: the same in each attempt, and nobody else's draws change."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            # as torch.manual_seed, which looks for all kinds of devices and notes the stack for what is not there
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            yield
