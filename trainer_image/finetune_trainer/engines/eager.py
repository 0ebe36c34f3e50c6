"""One process, one step after the other, with torch's own AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn

from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.base import EngineState, NonFiniteLoss, StepResult
from finetune_trainer.methods.base import ParameterGroup


class EagerEngine:
    """Implements Engine."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def prepare(
        self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining, example: Sequence[Batch]
    ) -> None:
        self._module = module
        self._parameters = {name: value for group in groups for name, value in group.parameters.items()}
        self._rates = [spec.learning_rate if g.learning_rate is None else g.learning_rate for g in groups]
        self._max_grad_norm = spec.max_grad_norm
        self._bf16 = precision_of(spec, self._device) == "bf16"
        self._optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters.values())} for group in groups],
            lr=spec.learning_rate,
            betas=(spec.optimizer.beta1, spec.optimizer.beta2),
            eps=spec.optimizer.epsilon,
            weight_decay=spec.optimizer.weight_decay,
            fused=True,
        )

    def step(self, batches: Sequence[Batch], factor: float) -> StepResult:
        total = self._gradients(batches)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm)
        if not bool(torch.isfinite(total) & torch.isfinite(norm)):
            self._optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLoss(
                f"the loss is {total.item():g} and its gradient {norm.item():g}: the training diverged; use a "
                "smaller training.learningRate, or training.precision fp32"
            )
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(total, norm)

    def state(self) -> EngineState:
        weights = {name: _copy(value) for name, value in self._parameters.items()}
        optimizer = {
            f"{name}/{key}": _copy(value)
            for name, parameter in self._parameters.items()
            for key, value in self._optimizer.state[parameter].items()
        }
        return EngineState(weights, optimizer)

    @torch.no_grad()
    def load(self, state: EngineState | None) -> None:
        if state is None:
            raise ValueError("a single process has nobody to get its state from")
        if state.weights.keys() != self._parameters.keys():
            strange = sorted(state.weights.keys() ^ self._parameters.keys())[:3]
            raise ValueError(f"the state belongs to other parameters: {', '.join(strange)} …")
        for name, parameter in self._parameters.items():
            parameter.copy_(state.weights[name])
            self._optimizer.state[parameter] = {
                key.rpartition("/")[2]: _like(value, parameter)
                for key, value in state.optimizer.items()
                if key.rpartition("/")[0] == name
            }

    def gather(self) -> None:
        """Nothing to do: the one process has everything."""

    def _gradients(self, batches: Sequence[Batch]) -> Tensor:
        """Adds the step's gradient to the parameters; returns its loss."""
        total = torch.zeros((), device=self._device)
        for batch in batches:
            total += self._backward(self._module, batch, 1)
        return total

    def _backward(self, module: nn.Module, batch: Batch, scale: float) -> Tensor:
        """Gradient of `scale` times the loss of one micro-batch; returns the loss."""
        with self._autocast():
            loss, _ = module(batch.to(self._device))
        (loss if scale == 1 else loss * scale).backward()
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._bf16 else nullcontext()


def precision_of(spec: ResolvedTraining, device: torch.device) -> str:
    """fp32 or bf16: what the run says, else bf16 on a GPU and fp32 on a CPU."""
    return spec.precision or ("fp32" if device.type == "cpu" else "bf16")


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """The optimizer's value as the optimizer would have made it: moments laid out like the parameter."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(value)
